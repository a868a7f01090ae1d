"""LSP and MSKD: attention, schedules, several teachers, and that they are what they say."""

import dataclasses
import hashlib

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr

import limbeck
import limbeck.methods.mskd as mskd_module
from limbeck.errors import OptionError, TeacherError
from limbeck.evaluation.distill import distill
from limbeck.graphs.view import make_view
from limbeck.methods import make_method
from limbeck.methods.edges import training_labels
from limbeck.methods.local_structure import Neighborhoods, local_divergence, local_log_probs
from limbeck.methods.losses import soft_target_loss
from limbeck.methods.mskd import (
    MSKD,
    LearnedAttention,
    cosine_attention,
    gate_loss,
    released_weights,
)
from limbeck.teachers import Teacher, knowledge_from
from limbeck.teachers.gcn import GCN
from limbeck.testing import check_method, small_graph
from limbeck.testing.methods import same_weights
from limbeck.training.loop import seeded
from limbeck.training.tasks import ONE_CLASS

SMALL = {"hidden_channels": 16, "num_layers": 3, "max_epochs": 6, "dropout": 0.2}


@pytest.fixture(scope="module")
def view():
    return make_view(small_graph(), "inductive", 0)


@pytest.fixture(scope="module")
def teachers(view):
    found = []
    for depth in (2, 3, 4):
        with seeded(depth):
            module = GCN(view.num_features, 12, view.num_classes, depth, dropout=0.5)
        found.append(Teacher(module, f"gcn{depth}").fitted(view))
    return found


# -- conformance


@pytest.mark.parametrize("name", ["lsp", "mskd"])
@pytest.mark.parametrize("student", ["gcn", "gat", "sage", "mlp", "sa-mlp"])
def test_conforms(name, student):
    check_method(make_method(name, student=student, **SMALL, kd_weight=0.5))


def test_conforms_in_batches_with_a_gate():
    options = {"attention": "node_learned", "uniform_share": 0.0, "batch_size": 32}
    check_method(MSKD(student="mlp", kernel="rbf", bandwidth="median", **options, **SMALL))


# -- the card's golden figures for attention; test_local_structure.py has the same states

EDGES = torch.tensor([[0, 0, 0, 1, 1, 2, 3, 2], [1, 2, 3, 2, 0, 0, 0, 1]])
OURS = torch.tensor([[0, 1], [2, -1], [5, 3], [-4, 0.5], [9, 9]], dtype=torch.float64)
WIDE = torch.tensor(
    [[0, 0, 0], [10, 5, -5], [40, 20, 10], [-30, 60, 30], [1, 1, 1]], dtype=torch.float64
)
NARROW = torch.tensor([[0], [50], [100], [-200], [7]], dtype=torch.float64)
OUR_LOGITS = torch.tensor(
    [[1, -0.5, 0.2], [0.3, 0.8, -1], [-0.2, 0.1, 0.4], [0, 1, 1], [0.5, 0.5, -0.5]],
    dtype=torch.float64,
)
THEIR_LOGITS = torch.stack(
    [
        torch.tensor(
            [[2, -1, 0], [1, 1, -2], [0.5, -0.5, 0], [-1, 2, 1], [1, 0, -1]], dtype=torch.float64
        ),
        torch.tensor(
            [[0.5, 0.5, -1], [0, 2, -2], [-1, 0.5, 1], [0, 3, 3], [-1, 1, 0]], dtype=torch.float64
        ),
    ],
    dim=1,
)


def divergences(hidden, self_loops):
    edges = Neighborhoods.of(EDGES, 5, self_loops=self_loops)
    theirs = torch.stack([local_log_probs(h, edges) for h in (WIDE, NARROW)], dim=1)
    return local_divergence(hidden, theirs, edges)


def test_golden_attention():
    attention = cosine_attention(OUR_LOGITS, THEIR_LOGITS, 0.2)
    expected = [0.991355, 0.493136, 0.000873, 0.338525, 0.983414]
    assert attention[:, 0].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("temperature", "self_loops", "expected"),
    [(0.2, False, 0.006607), (0.2, True, 0.027773), (1.0, False, 0.006104), (1.0, True, 0.027662)],
)
def test_golden_weighted_divergence(temperature, self_loops, expected):
    attention = cosine_attention(OUR_LOGITS, THEIR_LOGITS, temperature)
    loss = (attention * divergences(OURS, self_loops)).sum(1).mean()
    assert float(loss) == pytest.approx(expected, abs=1e-6)


def test_golden_equal_weights():
    assert float(divergences(OURS, False).mean()) == pytest.approx(0.005495, abs=1e-6)
    assert float(divergences(OURS, True).mean()) == pytest.approx(0.027754, abs=1e-6)


def test_golden_gradient():
    hidden = OURS.clone().requires_grad_()
    attention = cosine_attention(OUR_LOGITS, THEIR_LOGITS, 0.2)
    (attention * divergences(hidden, True)).sum(1).mean().backward()
    expected = [
        [-2.974673, -2.421522],
        [1.581597, 1.028445],
        [-3.571115, -3.571115],
        [4.964192, 4.964192],
        [0, 0],
    ]
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(1e4 * hidden.grad, expected, atol=1e-5, rtol=0)


def test_golden_released_weights():
    weights = released_weights(OUR_LOGITS, THEIR_LOGITS, 7.0)
    assert weights.tolist() == pytest.approx([2.74, 4.26])
    # the other form of A_k: the mean over all pairs of classes of (z^S)^T z^k
    products = torch.einsum("ic,ikd->kcd", OUR_LOGITS, THEIR_LOGITS).mean((1, 2))
    assert products.tolist() == pytest.approx([0.522222, 1.35], abs=1e-6)
    again = (7 * (products / products.sum()).softmax(0) * 100).round() / 100
    assert torch.equal(weights, again)


def test_released_weights_that_cancel():
    teachers = torch.stack([torch.ones(3, 2), -torch.ones(3, 2)], dim=1)
    with pytest.raises(OptionError, match="'released' is not defined here"):
        released_weights(torch.ones(3, 2), teachers, 7.0)


# -- attention


def logits(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_attention_is_a_distribution_over_teachers():
    ours, theirs = logits(50, 4), logits(50, 3, 4, seed=1)
    attention = cosine_attention(ours, theirs, 0.2)
    torch.testing.assert_close(attention.sum(1), torch.ones(50))
    assert torch.equal(cosine_attention(ours, theirs[:, :1], 0.2), torch.ones(50, 1))
    alike = cosine_attention(ours, theirs[:, :1].expand(-1, 3, -1), 0.2)
    torch.testing.assert_close(alike, torch.full((50, 3), 1 / 3))
    permuted = cosine_attention(ours, theirs[:, [2, 0, 1]], 0.2)
    torch.testing.assert_close(permuted, attention[:, [2, 0, 1]])
    louder = theirs * torch.tensor([1.0, 10.0, 1.0]).view(1, 3, 1)
    torch.testing.assert_close(cosine_attention(ours, louder, 0.2), attention)
    assert torch.isfinite(cosine_attention(torch.zeros(2, 4), theirs[:2], 0.2)).all()


def test_gate_learns_from_labels_alone(view, teachers, monkeypatch):
    """Whatever the structure's weight, the perceptron's gradient is the same."""
    gradients = []
    for weight in (1e-12, 50.0):
        method = MSKD(attention="node_learned", structure_weight=weight, uniform_share=0, **SMALL)

        def first_gradient(self, module, losses, validate, **options):
            module.train()
            next(iter(losses(0))).backward()
            gate = [p.grad.clone() for p in module["attention"].parameters()]
            gradients.append(torch.cat([g.flatten() for g in gate]))
            raise KeyboardInterrupt

        monkeypatch.setattr(MSKD, "fit", first_gradient)
        with pytest.raises(KeyboardInterrupt):
            distill(view, teachers, method)
    assert torch.equal(*gradients)
    assert float(gradients[0].abs().max()) > 0


def test_single_and_equal_are_what_they_say(view, teachers):
    one = distill(view, teachers, "mskd", attention="single:2", **SMALL)
    alone = distill(view, teachers[1], "mskd", attention="equal", **SMALL)
    lsp = distill(view, teachers[1], "lsp", **SMALL)
    for other in (alone, lsp):
        for name, weight in one.student.state_dict().items():
            torch.testing.assert_close(other.student.state_dict()[name], weight)
    assert one.record["attention"].unique().tolist() == [0, 1]
    same = distill(view, [teachers[1]] * 3, "mskd", attention="node", **SMALL)
    for name, weight in one.student.state_dict().items():
        torch.testing.assert_close(same.student.state_dict()[name], weight, atol=1e-4, rtol=1e-4)


def test_equal_is_the_mean_of_the_single_losses(view, teachers):
    record = distill(view, teachers, "mskd", attention="equal", **SMALL).record
    mean = (record["attention"] * record["divergence"]).sum(1).mean()
    each = [record["divergence"][:, k].mean() for k in range(3)]
    assert float(mean) == pytest.approx(float(sum(each) / 3), abs=1e-7)


def test_released_weights_are_computed_once(view, teachers, monkeypatch):
    calls = []
    real = released_weights
    monkeypatch.setattr(
        mskd_module, "released_weights", lambda *a: (calls.append(a[2]), real(*a))[1]
    )
    run = distill(view, teachers, "mskd", attention="released", **SMALL)
    assert calls == [7.0]
    weights = 7 * run.record["attention"]
    assert (weights == weights[0]).all()  # a flat line: the same for every node
    assert float(weights[0].sum()) == pytest.approx(7, abs=0.015)
    torch.testing.assert_close(100 * weights, (100 * weights).round(), atol=1e-4, rtol=0)


def skewed_degrees(num_nodes):
    return torch.arange(num_nodes).float().add(1).pow(-0.7).mul(60).round().clamp_min(1)


def test_planted_specialists():
    num_nodes, classes = 400, 5
    generator = torch.Generator().manual_seed(0)
    degree = skewed_degrees(num_nodes)
    y = torch.randint(classes, (num_nodes,), generator=generator)
    low = degree <= degree.median()

    def answers(right):
        wrong = (y + torch.randint(1, classes, (num_nodes,), generator=generator)) % classes
        confident = 5 * F.one_hot(y, classes).float()
        return torch.where(right.unsqueeze(1), confident, F.one_hot(wrong, classes).float())

    teachers = torch.stack([answers(low), answers(~low)], dim=1)
    specialist = (~low).long()
    good = cosine_attention(5 * F.one_hot(y, classes).float(), teachers, 0.2)
    assert torch.equal(good.argmax(1), specialist)
    assert spearman(good @ torch.tensor([2.0, 4.0]), degree) > 0.5
    random = cosine_attention(torch.randn(num_nodes, classes, generator=generator), teachers, 0.2)
    assert abs(spearman(random @ torch.tensor([2.0, 4.0]), degree)) < 0.2

    # the gate learns the same from the labels of a fifth of the nodes
    train = torch.randperm(num_nodes, generator=generator)[: num_nodes // 5]
    labels = torch.full((num_nodes,), -1).index_copy(0, train, y[train])
    ours = F.one_hot(y, classes).float() + 0.3 * torch.randn(
        num_nodes, classes, generator=generator
    )
    with seeded(0):
        gate = LearnedAttention(classes, 64, 0.2)
    optimizer = torch.optim.Adam(gate.parameters(), lr=0.01)
    for _ in range(200):
        loss = gate_loss(
            gate(ours, teachers), teachers, torch.arange(num_nodes), labels, len(train)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    rest = torch.ones(num_nodes, dtype=torch.bool).index_fill(0, train, False)
    with torch.no_grad():
        chosen = gate(ours, teachers).argmax(1)
    assert float((chosen == specialist)[rest].float().mean()) > 0.9


def spearman(a, b):
    return float(spearmanr(a.numpy(), b.numpy()).statistic)


def test_gate_loss_by_hand():
    # two teachers, two classes: mixture 0.25 * 0.9 + 0.75 * 0.2 = 0.375 for the label
    teachers = torch.tensor([[[0.9, 0.1], [0.2, 0.8]]]).log().expand(2, 2, 2)
    attention = torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    y = torch.tensor([0, -1])
    loss = gate_loss(attention, teachers, torch.arange(2), y, 1)
    assert float(loss) == pytest.approx(-torch.tensor(0.375).log().item(), abs=1e-6)


def test_mixed_soft_targets():
    ours, theirs = logits(20, 4), logits(20, 2, 4, seed=1)
    for k in range(2):
        one = torch.zeros(20, 2)
        one[:, k] = 1
        mixed = ONE_CLASS.mixed_soft_loss(ours, theirs, one, 2.0)
        assert float(mixed) == pytest.approx(float(soft_target_loss(ours, theirs[:, k], 2.0)))


# -- schedule and training


def test_released_schedule():
    method = MSKD(schedule="released")
    epochs = (0, 79, 80, 81, 499, 500, 579, 580, 999, 1000, 1079, 1080, 1499, 1500)
    asked = [method.active_teachers(e, 3).nonzero().flatten().tolist() for e in epochs]
    assert asked == [[0], [0], [0], [], [], [1], [1], [], [], [2], [2], [], [], []]
    assert sum(bool(method.active_teachers(e, 3).any()) for e in range(1500)) == 241


def test_without_weight_it_is_the_plain_student(view, teachers):
    """To the bit: neither teachers nor attention draw a random number."""
    options = {**SMALL, "structure_weight": 0.0}
    one = distill(view, teachers, "mskd", attention="node_learned", **options)
    other = distill(view, teachers[0], "mskd", attention="equal", **options)
    lsp = distill(view, teachers[2], "lsp", **options)
    assert same_weights(one, other)
    assert same_weights(one, lsp)
    assert one.record == {}
    names = set(make_method("plain").model_dump())
    shared = {k: v for k, v in one.method.model_dump().items() if k in names}
    plain = distill(view, None, "plain", **shared)
    for name, weight in one.student.state_dict().items():
        torch.testing.assert_close(plain.student.state_dict()[name], weight)


def digest(module):
    content = hashlib.sha256()
    for name, value in module.state_dict().items():
        content.update(name.encode() + value.numpy().tobytes())
    return content.hexdigest()


def test_teachers_stay_as_they_are(view, teachers):
    before = [digest(teacher.module) for teacher in teachers]
    distill(view, teachers, "mskd", attention="node_learned", kd_weight=1.0, **SMALL)
    assert [digest(teacher.module) for teacher in teachers] == before
    assert not any(teacher.module.training for teacher in teachers)


def test_structure_is_learnt(view, teachers):
    options = {**SMALL, "dropout": 0.0, "weight_decay": 0.0, "bandwidth": "median"}
    options.update(max_epochs=40, patience=40, lr=0.02)
    untaught = distill(view, teachers, "mskd", **options, structure_weight=1e-9)
    taught = distill(view, teachers, "mskd", **options, structure_weight=300.0)
    loss = taught.history.loss
    assert loss[-1] < 0.5 * loss[0]
    assert taught.record["divergence"].mean() < untaught.record["divergence"].mean()


@pytest.mark.parametrize("batch_size", [None, 16])
def test_batches_have_whole_neighbourhoods(view, teachers, batch_size):
    """A batch's divergences are those of its nodes in the whole graph."""
    method = MSKD(student="mlp", batch_size=batch_size, **{**SMALL, "dropout": 0.0})
    edges = method.neighborhoods(view)
    log_probs = method.teacher_log_probs([t.knowledge for t in teachers], edges)
    with seeded(0):
        student, inputs = method.build(view)
        student.eval()
        (whole,) = method.replace(batch_size=None).steps(student, inputs.observed, edges, log_probs)
        for step in method.steps(student, inputs.observed, edges, log_probs):
            torch.testing.assert_close(step.divergence, whole.divergence[step.nodes])
            torch.testing.assert_close(step.logits, whole.logits[step.nodes])


def test_shuffled_attention_is_another_training(view, teachers):
    options = {**SMALL, "uniform_share": 0.0}
    own = distill(view, teachers, "mskd", **options)
    shuffled = distill(view, teachers, "mskd", shuffled=True, **options)
    assert not same_weights(own, shuffled)
    fixed = distill(view, teachers, "mskd", attention="equal", **options)
    # while all teachers count the same, there is nothing to attend to
    warming = distill(view, teachers, "mskd", **{**options, "uniform_share": 1.0})
    assert same_weights(fixed, warming)


def test_a_resumed_run_is_the_same(view, teachers, monkeypatch):
    whole = distill(view, teachers, "mskd", attention="released", **SMALL)
    real = MSKD.active_teachers
    seen = []

    def break_off(self, epoch, num_teachers):
        seen.append(epoch)
        if epoch == 3 and len(seen) == 4:
            raise KeyboardInterrupt
        return real(self, epoch, num_teachers)

    monkeypatch.setattr(MSKD, "active_teachers", break_off)
    original = limbeck.evaluation.protocol._checkpoint

    def often(*arguments):
        return dataclasses.replace(original(*arguments), every_seconds=0.0)

    monkeypatch.setattr(limbeck.evaluation.protocol, "_checkpoint", often)
    with pytest.raises(KeyboardInterrupt):
        distill(view, teachers, "mskd", attention="released", resume=True, **SMALL)
    again = distill(view, teachers, "mskd", attention="released", resume=True, **SMALL)
    assert seen == [0, 1, 2, 3, 3, 4, 5]
    assert same_weights(whole, again)
    assert torch.equal(whole.record["attention"], again.record["attention"])


# -- several teachers


def test_several_teachers_are_scored_and_the_best_validated_stands_for_them(view, teachers):
    run = distill(view, teachers, "mskd", **SMALL)
    assert [scores["name"] for scores in run.committee_scores] == ["gcn2", "gcn3", "gcn4"]
    best = max(scores["val_accuracy"] for scores in run.committee_scores)
    assert run.scores["teacher"]["val_accuracy"] == best
    assert run.in_setting("cold-start").committee_scores != run.committee_scores
    alone = distill(view, run.teacher, "kd", hidden_channels=8, max_epochs=3)
    several = distill(view, teachers, "kd", hidden_channels=8, max_epochs=3)
    assert same_weights(alone, several)
    assert several.teacher is run.teacher
    assert run.record["attention"].shape == (view.num_observed, 3)


def test_order_of_teachers_does_not_matter(view, teachers):
    """Up to rounding: sums over teachers are taken in another order."""
    one = distill(view, teachers, "mskd", **SMALL)
    other = distill(view, teachers[::-1], "mskd", **SMALL)
    for name, weight in one.student.state_dict().items():
        there = other.student.state_dict()[name]
        torch.testing.assert_close(there, weight, atol=1e-4, rtol=1e-4)


def test_wrong_teachers(view, teachers):
    only_logits = knowledge_from(torch.randn(len(view.nodes), view.num_classes))
    with pytest.raises(TeacherError, match="is only logits"):
        distill(view, [teachers[0], only_logits], "mskd", **SMALL)
    with pytest.raises(TeacherError, match="learns from a teacher: give one"):
        distill(view, [], "mskd", **SMALL)
    with pytest.raises(OptionError, match="'single:4', but there are 3 teachers"):
        distill(view, teachers, "mskd", attention="single:4", **SMALL)
    with pytest.raises(OptionError, match="choose from node, node_learned"):
        MSKD(attention="single:0")
    with pytest.raises(OptionError, match="names 2 layers for 3 teachers"):
        distill(view, teachers, "mskd", teacher_layers=("hidden1", "hidden1"), **SMALL)
    with pytest.raises(TeacherError, match="no layer 'hidden9'"):
        distill(view, teachers, "mskd", teacher_layers=("hidden9",) * 3, **SMALL)
    with pytest.raises(OptionError, match="'student_layer' is 7, but the student has 2"):
        distill(view, teachers, "mskd", student_layer=7, **SMALL)
    with pytest.raises(OptionError, match="this student has none"):
        distill(view, teachers, "mskd", **{**SMALL, "num_layers": 1})


def test_layers_can_be_chosen(view, teachers):
    method = MSKD(teacher_layers=("hidden1", "hidden2", "hidden1"), student_layer=1, **SMALL)
    states = method.teacher_states([teacher.knowledge for teacher in teachers])
    assert torch.equal(states[1], teachers[1].knowledge.hidden["hidden2"])
    assert torch.equal(states[2], teachers[2].knowledge.hidden["hidden1"])
    last = MSKD(**SMALL).teacher_states([teacher.knowledge for teacher in teachers])
    assert torch.equal(last[2], teachers[2].knowledge.hidden["hidden3"])
    outputs = {"hidden1": torch.ones(1), "hidden2": torch.zeros(1), "logits": torch.ones(1)}
    assert method.student_state(outputs) is outputs["hidden1"]
    assert MSKD(**SMALL).student_state(outputs) is outputs["hidden2"]


def test_labels_of_training_nodes_only(view, teachers):
    y = training_labels(view)
    assert int((y >= 0).sum()) == len(view.train)
