"""RbM and its control together with positions, labels, reliable neighbours, NOSMOG's losses."""

import pytest
import torch
import torch.nn.functional as F

from limbeck.errors import TeacherError
from limbeck.evaluation.distill import distill
from limbeck.graphs.sparse import append_columns, to_csr
from limbeck.graphs.view import make_view
from limbeck.methods import make_method
from limbeck.methods.edges import neighbor_pairs
from limbeck.methods.experts import ExpertLessons, sharpened_target_loss
from limbeck.methods.losses import similarity_loss, soft_target_loss
from limbeck.methods.rbm import RoutingByMemory
from limbeck.students.inputs import NodeInputs
from limbeck.students.rbm import RbM
from limbeck.teachers import fit_teacher, knowledge_from
from limbeck.testing import check_method, check_student, small_graph

SMALL = {
    "hidden_channels": 16,
    "max_epochs": 4,
    "batch_size": 32,
    "dropout": 0.2,
    "pretrain_epochs": 2,
    "dim": 4,
}

PARTS = {
    "positions": {"encoding": "spectral"},
    "labels": {"label_inputs": True},
    "reliable": {"reliable_sampling": True, "reliability_epochs": 1},
    "similarity": {"similarity_weight": 0.1},
    "adversarial": {"adversarial_weight": 0.05, "adversarial_steps": 2},
}
EVERYTHING = {name: value for part in PARTS.values() for name, value in part.items()}


@pytest.mark.parametrize("name", ["rbm", "moe"])
def test_everything_together_conforms(name: str) -> None:
    check_method(make_method(name, **SMALL, **EVERYTHING, label_weight=0.2))


@pytest.mark.parametrize("part", PARTS)
def test_each_part_trains_alone_and_changes_the_student(part: str) -> None:
    view = make_view(small_graph(), "inductive", 0)
    teacher = fit_teacher(view, "gcn", 0, max_epochs=20)
    plain = distill(view, teacher, make_method("rbm", **SMALL))
    with_it = distill(view, teacher, make_method("rbm", **SMALL, **PARTS[part]))
    assert not torch.equal(plain.answers.observed, with_it.answers.observed)
    assert torch.isfinite(with_it.answers.unseen).all()
    # what helped to train is left behind
    assert not [name for name in with_it.student.state_dict() if "similarity" in name]


@pytest.mark.parametrize("sparse", [False, True])
def test_a_student_of_experts_reads_positions_behind_features(sparse: bool) -> None:
    torch.manual_seed(0)
    x, position = (torch.rand(20, 6) < 0.4).float(), torch.randn(20, 2)
    inputs = NodeInputs(to_csr(x) if sparse else x, position)
    student = RbM(6, 8, 3, 2, 4, 2, position_channels=2)
    student.convert(inputs)
    whole = RbM(8, 8, 3, 2, 4, 2)
    whole.load_state_dict(student.state_dict())
    student.eval(), whole.eval()
    torch.testing.assert_close(
        student(inputs), whole(NodeInputs(torch.cat([x, position], 1))), rtol=1e-5, atol=1e-6
    )
    check_student(student, inputs, 3)


def test_append_columns_is_concatenation_and_has_its_gradient() -> None:
    torch.manual_seed(0)
    x = (torch.rand(7, 5) < 0.4).float()
    x[2] = 0
    columns = torch.randn(7, 3, requires_grad=True)
    appended = append_columns(to_csr(x), columns)
    torch.testing.assert_close(appended.to_dense(), torch.cat([x, columns], 1))
    assert appended.crow_indices()[-1] == int(x.sum()) + 21
    (appended.values().sum() * 2).backward()
    assert torch.equal(columns.grad, torch.full((7, 3), 2.0))


def lessons_on_pairs(**changes: object) -> tuple[ExpertLessons, RoutingByMemory, dict]:
    view = make_view(small_graph(), "transductive", 0)
    knowledge = fit_teacher(view, "gcn", 0, max_epochs=20).knowledge
    options = {**SMALL, "batch_size": None, "dropout": 0.0, "reliable_sampling": True, **changes}
    method = make_method("rbm", **options)
    inputs = method.inputs_of(view).observed
    torch.manual_seed(3)
    student = RbM(view.num_features, 16, 3, position_channels=inputs.position_width)

    def none(routings: object) -> torch.Tensor:
        return torch.zeros(())

    lessons = ExpertLessons(method, student, inputs, view, knowledge, none)
    return lessons, method, {"view": view, "knowledge": knowledge, "student": student, "x": inputs}


@pytest.mark.parametrize("kd_mode", ["official", "tempered"])
def test_reliable_neighbours_teach_by_the_sum_over_pairs(kd_mode: str) -> None:
    _, method, there = lessons_on_pairs(temperature=1.3, kd_mode=kd_mode)
    pairs = neighbor_pairs(there["view"], self_loops=True)
    logits = there["student"](there["x"])
    log_teacher = F.log_softmax(there["knowledge"].logits, dim=1)
    i, j = pairs.to_dense().nonzero(as_tuple=True)
    loss = sharpened_target_loss if kd_mode == "official" else soft_target_loss
    by_pairs = loss(logits[i], log_teacher[j], 1.3)
    everyone = torch.arange(len(logits))
    summed = method.soft_loss(logits, everyone, log_teacher, pairs)
    torch.testing.assert_close(summed, by_pairs)
    lonely = neighbor_pairs(there["view"], self_loops=True)
    lonely = torch.eye(len(logits)).to_sparse_csr().to(lonely.dtype)
    own = method.soft_loss(logits, everyone, log_teacher, None)
    torch.testing.assert_close(method.soft_loss(logits, everyone, log_teacher, lonely), own)


def test_the_sampler_draws_from_the_start_and_is_refitted_from_its_epoch_on(monkeypatch) -> None:
    lessons, _, _ = lessons_on_pairs(reliability_epochs=2)
    refits, draws = [], []
    monkeypatch.setattr(lessons.reliability, "refit", lambda agrees: refits.append(len(agrees)))
    monkeypatch.setattr(lessons.reliability, "draw", lambda pairs: draws.append(1) or pairs)
    for epoch in range(4):
        list(lessons.epoch(epoch))
    assert (len(draws), refits) == (4, [120, 120])


def test_similarities_are_compared_on_the_first_layer_of_labelled_nodes() -> None:
    lessons, _, there = lessons_on_pairs(
        similarity_weight=0.5, reliable_sampling=False, label_weight=1.0
    )
    (loss,) = lessons.epoch(0)
    view, student = there["view"], there["student"]
    trace = student.trace(there["x"])
    nodes = view.train
    mapped = F.relu(lessons.similarity.map(trace.embedding[nodes]))
    hidden = list(there["knowledge"].hidden.values())[-1][nodes]
    expected = F.cross_entropy(trace.logits[nodes], view.observed.y[nodes])
    expected = expected + 0.5 * similarity_loss(mapped, hidden)
    torch.testing.assert_close(loss, expected)


def test_memories_move_in_each_step_of_the_ascent_as_released() -> None:
    moved = []
    for steps in (1, 4):
        lessons, _, there = lessons_on_pairs(
            reliable_sampling=False, adversarial_weight=0.05, adversarial_steps=steps
        )
        student = there["student"].train()
        student.convert(there["x"])
        start = student.layers[0].memory.detach().clone()
        list(lessons.epoch(5))
        moved.append(float((student.layers[0].memory.detach() - start).norm()))
    assert moved[1] > moved[0] > 0


@pytest.mark.parametrize("part", ["reliable", "similarity"])
def test_a_teacher_that_is_only_logits_cannot_give_everything(part: str) -> None:
    view = make_view(small_graph(), "transductive", 0)
    with pytest.raises(TeacherError, match=r"'rbm'.*|similarity_weight"):
        distill(
            view, knowledge_from(torch.randn(120, 3)), make_method("rbm", **SMALL, **PARTS[part])
        )
