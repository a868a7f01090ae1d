"""NOSMOG, and the position as a node input from training to the bundle."""

import numpy as np
import pytest
import torch

import limbeck
from limbeck.errors import OptionError, RequestError, TeacherError
from limbeck.evaluation.distill import distill
from limbeck.graphs.sparse import to_csr
from limbeck.graphs.view import make_view
from limbeck.methods import make_method
from limbeck.methods.losses import similarity_loss, soft_target_loss
from limbeck.methods.structure import adversarial_inputs
from limbeck.students import MLP, NodeInputs
from limbeck.teachers import fit_teacher, knowledge_from
from limbeck.testing import check_student, small_graph

QUICK = {
    "hidden_channels": 16,
    "max_epochs": 10,
    "batch_size": 32,
    "encoding": "spectral",
    "dim": 4,
}


@pytest.fixture(scope="module")
def run():
    view = make_view(small_graph(), "inductive", 0)
    teacher = fit_teacher(view, "gcn", 0, max_epochs=30)
    return distill(view, teacher, "nosmog", 0, **QUICK)


def test_similarity_loss_by_hand():
    # S Sᵀ = [[1, 1], [1, 2]], T Tᵀ = [[4, 0], [0, 1]]: squares 9, 1, 1, 1
    student = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    teacher = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert float(similarity_loss(student, teacher)) == pytest.approx(12 / 4)


def test_adversarial_inputs_stay_near_and_raise_the_loss():
    torch.manual_seed(0)
    student = MLP(6, 8, 3, position_channels=2).eval()
    inputs = NodeInputs(torch.randn(20, 6), torch.randn(20, 2))
    target = torch.randn(20, 3)

    def loss(inputs):
        return soft_target_loss(student(inputs), target)

    worst = adversarial_inputs(loss, inputs, 0.1, 5)
    assert float((worst.x - inputs.x).abs().max()) <= 0.1 + 1e-6
    assert float((worst.position - inputs.position).abs().max()) <= 0.1 + 1e-6
    with torch.no_grad():
        before = soft_target_loss(student(inputs), target)
        after = soft_target_loss(student(worst), target)
    assert float(after) > float(before)
    assert all(parameter.grad is None for parameter in student.parameters())


def test_sparse_features_are_perturbed_like_dense_ones():
    student = MLP(6, 8, 3).eval()
    x = (torch.rand(10, 6) < 0.3).float()
    target = torch.randn(10, 3)

    def loss(inputs):
        return soft_target_loss(student(inputs), target)

    moved = []
    for rows in (x, to_csr(x)):
        torch.manual_seed(1)
        moved.append(adversarial_inputs(loss, NodeInputs(rows), 0.1, 3).x)
    torch.testing.assert_close(moved[0], moved[1])


@pytest.mark.parametrize("sparse", [False, True])
def test_a_student_with_positions_conforms(sparse):
    torch.manual_seed(0)
    x = (torch.rand(12, 6) < 0.4).float()
    inputs = NodeInputs(to_csr(x) if sparse else x, torch.randn(12, 2))
    student = MLP(6, 8, 3, position_channels=2)
    check_student(student, inputs, 3)
    whole = torch.cat([x, inputs.position], dim=1)
    plain = MLP(8, 8, 3)
    plain.load_state_dict(student.state_dict())
    torch.testing.assert_close(student(inputs), plain(NodeInputs(whole)))


def test_only_the_student_leaves_training(run):
    assert set(run.student.state_dict()) == set(MLP(12, 16, 3, position_channels=4).state_dict())


def test_cold_start_is_the_path_of_zero_positions(run):
    view = run.view
    x = view.everything.x[view.num_observed :]
    with torch.no_grad():
        zeros = run.student(NodeInputs(x, torch.zeros(len(x), 4)))
    assert torch.equal(run.answers.isolated, zeros)
    assert not torch.equal(run.answers.unseen, zeros)


def test_the_bundle_answers_new_nodes_from_their_neighbours(run, tmp_path):
    view = run.view
    bundle = limbeck.load(run.save(tmp_path / "bundle"))
    assert [(entry.name, entry.width) for entry in bundle.manifest.inputs] == [
        ("x", 12),
        ("position", 4),
    ]
    x = view.graph.x[view.nodes[view.num_observed :]].numpy()
    source, target = view.graph.edge_index
    neighbors = [
        source[(target == node) & (source != node)].tolist()
        for node in view.nodes[view.num_observed :].tolist()
    ]
    expected = run.answers.unseen.numpy()
    np.testing.assert_allclose(bundle.predict_logits(x=x, neighbors=neighbors), expected, atol=1e-4)
    nothing = [[] for _ in neighbors]
    cold = run.answers.isolated.numpy()
    np.testing.assert_allclose(bundle.predict_logits(x=x, neighbors=nothing), cold, atol=1e-4)
    np.testing.assert_allclose(bundle.predict_logits(x=x), cold, atol=1e-4)
    unknown = [[*ids, 10**6] for ids in neighbors]  # a node that the bundle never heard of
    np.testing.assert_allclose(bundle.predict_logits(x=x, neighbors=unknown), expected, atol=1e-4)
    position = run.inputs.unseen.position.numpy()
    np.testing.assert_allclose(bundle.predict_logits(x=x, position=position), expected, atol=1e-4)
    known = [int(node) for node in view.nodes]
    both = torch.cat([run.answers.observed, run.answers.unseen]).numpy()
    np.testing.assert_allclose(bundle.predict_logits(known), both, atol=1e-4)


def test_bad_requests(run, tmp_path):
    bundle = limbeck.load(run.save(tmp_path / "bundle"))
    x = np.zeros((2, 12))
    for request, message in (
        ({"neighbors": [[0]]}, "1 positions for 2 rows"),
        ({"neighbors": [0, 1]}, "a list of ids for each node"),
        ({"neighbors": "01"}, "neighbors is a text"),
        ({"neighbors": [["a"], []]}, "must be a list of integers"),
        ({"position": np.zeros((2, 3))}, "position has the shape"),
        ({"position": [[np.nan] * 4] * 2}, r"position\[0, 0\] is nan"),
        ({"position": np.zeros((2, 4)), "neighbors": [[], []]}, "both were given"),
    ):
        with pytest.raises(RequestError, match=message):
            bundle.predict(x=x, **request)
    with pytest.raises(RequestError, match="belong to new nodes"):
        bundle.predict(nodes=[1], neighbors=[[2]])
    plain = limbeck.load(
        distill(run.view, run.teacher, "glnn", 0, max_epochs=1).save(tmp_path / "plain")
    )
    with pytest.raises(RequestError, match="reads features alone"):
        plain.predict(x=x, neighbors=[[1], []])


def test_what_nosmog_needs():
    view = make_view(small_graph(), "transductive", 0)
    with pytest.raises(TeacherError, match="has no hidden layer that the similarity loss"):
        distill(view, knowledge_from(torch.randn(120, 3)), "nosmog", **QUICK)
    teacher = fit_teacher(view, "gcn", 0, max_epochs=2)
    with pytest.raises(OptionError, match="the similarity loss needs a hidden layer"):
        distill(view, teacher, "nosmog", num_layers=1, **QUICK)


def test_settings_have_presets_of_their_own():
    whole, cut = (make_method("nosmog", "cpf-cora", s) for s in ("transductive", "cold-start"))
    assert (whole.epsilon, whole.walks_per_node, whole.position_epochs) == (0.04, 5, 1)
    assert (cut.epsilon, cut.walks_per_node, cut.position_epochs) == (0.05, 1, 3)
    assert cut.dropout == whole.dropout == 0.6
