"""KD, FitNet, AT, GSP, G-CRD and the plain student: by hand, by their invariants, as methods."""

import math

import pytest
import torch
import torch.nn.functional as F

from limbeck.errors import OptionError, TeacherError
from limbeck.evaluation.distill import distill
from limbeck.graphs.view import make_view
from limbeck.methods import make_method
from limbeck.methods.at import AttentionTransferLoss
from limbeck.methods.fitnet import FitNetLoss
from limbeck.methods.g_crd import ContrastiveLoss, contrasts
from limbeck.methods.gsp import GlobalStructureLoss, similarities
from limbeck.methods.layers import Head, draw_nodes, logit_loss, recorded
from limbeck.teachers import Teacher, knowledge_from
from limbeck.teachers.gcn import GCN
from limbeck.teachers.sage import SAGE
from limbeck.testing import small_graph
from limbeck.testing.methods import same_weights
from limbeck.training.loop import seeded

BASELINES = ("fitnet", "at", "gsp", "g-crd")
SMALL = {"hidden_channels": 8, "max_epochs": 4, "dropout": 0.2}


def drawn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rotation(width, seed=3):
    return torch.linalg.qr(drawn(width, width, seed=seed, dtype=torch.float64))[0]


@pytest.fixture(scope="module")
def view():
    return make_view(small_graph(), "transductive", 0)


@pytest.fixture(scope="module")
def teacher(view):
    with seeded(7):
        return Teacher(SAGE(view.num_features, 16, view.num_classes)).fitted(view)


# --- the losses -------------------------------------------------------------------------------


def test_logit_loss_by_hand_and_its_gradient():
    teacher = torch.log(torch.tensor([[3.0, 1.0, 1.0], [1.0, 1.0, 2.0]]))
    student = torch.zeros(2, 3, requires_grad=True)
    rows = [
        [0.6 * math.log(1.8), 0.2 * math.log(0.6), 0.2 * math.log(0.6)],
        [0.25 * math.log(0.75), 0.25 * math.log(0.75), 0.5 * math.log(1.5)],
    ]
    expected = (sum(rows[0]) + sum(rows[1])) / 2
    assert float(logit_loss(student, teacher, 1.0).detach()) == pytest.approx(expected, abs=1e-6)
    nodes = logit_loss(student, teacher, 4.0)
    elements = logit_loss(student, teacher, 4.0, "elementmean")
    torch.testing.assert_close(3 * elements, nodes, rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(nodes, student)
    softer = (teacher / 4).softmax(1)
    torch.testing.assert_close(gradient, 4.0 * ((student / 4).softmax(1) - softer).detach() / 2)
    same = teacher.clone().requires_grad_()
    value = logit_loss(same, teacher, 2.0)
    assert float(value.detach()) == pytest.approx(0, abs=1e-7)
    assert torch.autograd.grad(value, same)[0].abs().max() < 1e-7


def test_fitnet_is_a_cosine_over_the_width():
    student, teacher = drawn(50, 6), drawn(50, 9, seed=1)
    loss = FitNetLoss(9, 6, 12)
    value = float(loss([student], [teacher]).detach())
    cosine = F.cosine_similarity(loss.student_head(student), loss.teacher_head(teacher), dim=1)
    assert value == pytest.approx(float((2 - 2 * cosine).mean().detach()) / 12, rel=1e-5)
    assert 0 < value <= 4 / 12
    loss.student_head = loss.teacher_head = torch.nn.Identity()
    assert float(loss([student], [student])) == 0


def test_attention_transfer_sees_energies_only():
    loss = AttentionTransferLoss()
    student, teacher = drawn(20, 6, dtype=torch.float64), drawn(20, 9, seed=1, dtype=torch.float64)
    value = loss([student], [teacher])
    for other in (
        loss([3 * student], [0.1 * teacher]),
        loss([student @ rotation(6)], [teacher @ rotation(9)]),
    ):
        torch.testing.assert_close(other, value)
    assert 0 < float(value) <= 2 / 20
    twice = loss([student.repeat(2, 1)], [teacher.repeat(2, 1)])
    torch.testing.assert_close(twice, value / 2)  # a mean over twice the nodes of the same sum
    torch.testing.assert_close(AttentionTransferLoss("sum")([student], [teacher]), 20 * value)
    # energies (1, 0) and (0, 1) are as far apart as can be
    far = loss([torch.tensor([[2.0], [0.0]])], [torch.tensor([[0.0], [1.0]])])
    assert float(far) == 1.0


@pytest.mark.parametrize("kernel", ["cosine", "poly", "l2", "rbf"])
def test_global_structure_by_brute_force(kernel):
    student, teacher = drawn(6, 3, dtype=torch.float64), drawn(6, 4, seed=1, dtype=torch.float64)

    def similarity(a, b):
        cosine = float(a @ b / (a.norm() * b.norm()))
        distance = float((a - b).norm())
        table = {"cosine": cosine, "poly": cosine**2, "l2": distance}
        return table.get(kernel, math.exp(-(distance**2) / 2))

    differences = [
        (similarity(student[u], student[v]) - similarity(teacher[u], teacher[v])) ** 2
        for u in range(6)
        for v in range(6)
    ]
    value = GlobalStructureLoss(4, 3, kernel)([student], [teacher])
    assert float(value) == pytest.approx(sum(differences) / 36, rel=1e-6)
    turned = GlobalStructureLoss(4, 3, kernel)([student @ rotation(3)], [teacher @ rotation(4)])
    torch.testing.assert_close(turned, value)
    leaf = student.clone().requires_grad_()
    similarities(leaf, kernel).sum().backward()
    assert torch.isfinite(leaf.grad).all()  # also at the zero distances of the diagonal


def test_drawn_nodes_are_distinct_and_the_same_on_both_sides():
    generator = torch.Generator().manual_seed(5)
    chosen = draw_nodes(40, 7, generator)
    assert len(chosen.unique()) == 7
    assert int(chosen.max()) < 40
    assert draw_nodes(7, 7, None) is None
    features = drawn(40, 5)
    loss = GlobalStructureLoss(5, 5, max_samples=7)
    same = loss([features], [features], torch.Generator().manual_seed(5))
    assert float(same) == 0  # rows drawn apart would differ
    expected = GlobalStructureLoss(5, 5)([features[chosen]], [-2 * features[chosen].flip(1)])
    value = loss([features], [-2 * features.flip(1)], torch.Generator().manual_seed(5))
    torch.testing.assert_close(value, expected)


def test_contrast_of_orthonormal_rows():
    rows = torch.eye(8)
    expected = math.log(1 + 7 * math.exp(-1 / 0.5))
    assert float(contrasts(rows[None], rows[None], 0.5)) == pytest.approx(expected, rel=1e-5)


def test_contrast_starts_at_the_logarithm_and_knows_who_is_who():
    student, teacher = drawn(200, 8), drawn(200, 16, seed=1)
    with seeded(0):
        loss = ContrastiveLoss(16, 8, 64, temperature=0.5)
    value = loss([student], [teacher])
    assert float(value.detach()) == pytest.approx(math.log(200), rel=0.25)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(loss([student[order]], [teacher[order]]), value)
    assert abs(float((loss([student[order]], [teacher]) - value).detach())) > 1e-4


# --- what methods share -----------------------------------------------------------------------


def test_recorded_layers():
    outputs = {"hidden1": drawn(4, 2), "hidden2": drawn(4, 2, seed=1), "logits": drawn(4, 3)}
    assert [len(h[0]) for h in recorded(outputs, 3, "all")] == [2, 2, 3]  # a GCN of three layers
    assert [len(h[0]) for h in recorded(outputs, 2, "all")] == [2, 2]  # a GCNII of two
    assert [len(h[0]) for h in recorded(outputs, None, "all")] == [2, 2, 3]
    assert [len(h[0]) for h in recorded(outputs, 3, "hidden")] == [2, 2]


def test_layers_of_teacher_and_student_stand_before_dropout(view):
    with seeded(0):
        gcn = GCN(view.num_features, 8, 3, num_layers=2, dropout=0.9).train()
        adj = gcn.prepare(view.observed.edge_index, view.num_observed)
        hidden = gcn.layers(view.observed.x, adj)["hidden1"]
        gcn.eval()
        torch.testing.assert_close(gcn.layers(view.observed.x, adj)["hidden1"], hidden)


@pytest.mark.parametrize("name", [*BASELINES, "abkd"])
def test_without_weight_it_is_the_plain_student_to_the_bit(name, view, teacher):
    plain = distill(view, teacher, make_method("plain", **SMALL), 3)
    none = distill(view, teacher, make_method(name, beta=0.0, **SMALL), 3)
    assert same_weights(plain, none)
    some = distill(view, teacher, make_method(name, **SMALL), 3)
    assert not same_weights(plain, some)


def test_what_is_trained_beside_a_student_changes_no_random_number(view, teacher):
    # dropout and weights are those of the plain student: a loss of nearly no weight ends near it
    plain = distill(view, teacher, make_method("plain", **SMALL), 3)
    for name in BASELINES:
        light = distill(view, teacher, make_method(name, beta=1e-9, **SMALL), 3)
        for a, b in zip(plain.student.parameters(), light.student.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", [*BASELINES, "abkd"])
def test_the_teacher_stays_frozen_and_the_student_bare(name, view):
    with seeded(7):
        network = SAGE(view.num_features, 16, view.num_classes, norm="batch")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    run = distill(view, Teacher(network), make_method(name, kd_weight=0.5, **SMALL), 0)
    assert not network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    fresh, _ = run.method.build(view)
    fresh.load_state_dict(run.student.state_dict())  # no key more, none less
    plain, _ = make_method("plain", **SMALL).build(view)
    assert {k: v.shape for k, v in plain.state_dict().items()} == {
        k: v.shape for k, v in run.student.state_dict().items()
    }


@pytest.mark.parametrize("name", ["kd", *BASELINES, "abkd"])
def test_scope_train_reads_nothing_of_other_nodes(name, view, teacher):
    method = make_method(name, scope="train", kd_weight=0.5, **SMALL)
    others = torch.ones(view.num_observed, dtype=torch.bool)
    others[view.train] = False

    def noisy(values):
        changed = values.clone()
        changed[others] += 5.0
        return changed

    changed = Teacher(SAGE(view.num_features, 16, view.num_classes)).fitted(view)
    knowledge = teacher.knowledge
    changed.knowledge.logits.copy_(noisy(knowledge.logits))
    for key, value in knowledge.hidden.items():
        changed.knowledge.hidden[key] = noisy(value)
    assert same_weights(distill(view, teacher, method, 0), distill(view, changed, method, 0))
    wide = method.replace(scope="target")
    assert not same_weights(distill(view, teacher, wide, 0), distill(view, changed, wide, 0))


def test_kd_alone_is_the_logit_loss_and_labels(view, teacher):
    run = distill(view, teacher, make_method("kd", hidden_channels=8, max_epochs=1, dropout=0.0))
    with seeded(0):
        student, inputs = run.method.build(view)
    logits, soft = student(inputs.observed), teacher.knowledge.logits
    kl = F.kl_div((logits / 4).log_softmax(1), (soft / 4).softmax(1), reduction="batchmean")
    hard = F.cross_entropy(logits[view.train], view.observed.y[view.train])
    expected = 0.9 * 16 * kl + 0.1 * hard
    assert run.history.loss[0] == pytest.approx(float(expected.detach()), rel=1e-4)


def test_the_record_of_a_training(view, teacher):
    quiet = distill(view, teacher, make_method("g-crd", **SMALL))
    assert quiet.history.notes == []
    run = distill(view, teacher, make_method("g-crd", log_every=2, **SMALL))
    assert [note["epoch"] for note in run.history.notes] == [0, 2]
    assert all(note["gradient_ratio"] > 0 for note in run.history.notes)
    assert same_weights(quiet, run)  # looking changes nothing


def test_batches_for_students_that_read_single_nodes(view, teacher):
    options = {**SMALL, "student": "mlp", "max_epochs": 60, "dropout": 0.0}
    for batch_size in (None, 40):
        method = make_method("fitnet", batch_size=batch_size, **options)
        run = distill(view, teacher, method, 0)
        assert run.scores["student"]["val_accuracy"] > 0.5


def test_soft_labels_of_a_perfect_teacher_help(view):
    graph = small_graph()
    perfect = knowledge_from(8.0 * F.one_hot(graph.y, 3).float())
    options = {"hidden_channels": 8, "max_epochs": 80, "student": "mlp"}
    run = distill(view, perfect, make_method("kd", temperature=1.0, **options))
    plain = distill(view, None, make_method("plain", **options))
    scores, without = run.scores["student"], plain.scores["student"]
    assert scores["test_accuracy"] > without["test_accuracy"]


def test_what_is_refused(view, teacher):
    with pytest.raises(
        TeacherError, match="'at' compares layers, and teacher 'logits' is only log"
    ):
        distill(view, knowledge_from(torch.zeros(120, 3)), make_method("at", **SMALL))
    with pytest.raises(TeacherError, match="method 'kd' learns from a teacher: give one"):
        distill(view, None, make_method("kd", **SMALL))
    with pytest.raises(OptionError, match="one of the two networks has none"):
        distill(view, teacher, make_method("fitnet", num_layers=1, **SMALL))
    with pytest.raises(OptionError, match="kernel"):
        make_method("gsp", kernel="sine")
    with pytest.raises(OptionError, match="method 'kd' has no presets, so there is no 'kd:hot'"):
        make_method("kd:hot")


def test_a_head_is_a_linear_map_batch_norm_and_relu():
    head = Head(4, 6).eval()
    x = drawn(5, 4)
    torch.testing.assert_close(
        head(x), torch.relu(F.linear(x, head[0].weight, head[0].bias)), rtol=1e-4, atol=1e-5
    )
