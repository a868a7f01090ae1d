"""SA-MLP, the method: mixing, stages, leakage, and what the card says it can learn."""

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.utils import stochastic_blockmodel_graph

import limbeck
import limbeck.methods.sa_mlp as module
from limbeck.errors import OptionError, TeacherError
from limbeck.evaluation.distill import distill
from limbeck.evaluation.protocol import Run
from limbeck.graphs.info import GraphInfo
from limbeck.graphs.sparse import to_csr
from limbeck.graphs.view import View, make_view
from limbeck.methods import make_method
from limbeck.methods.losses import soft_target_loss
from limbeck.methods.sa_mlp import (
    Lessons,
    Mixture,
    StructureAwareLabels,
    StructureAwareMLP,
    capped,
    draw_mixture,
    embedding_loss,
    frozen_statistics,
    mixed_target_loss,
)
from limbeck.students import NodeInputs, inputs_of
from limbeck.students.inputs import stack_rows
from limbeck.students.sa_mlp import SAMLP
from limbeck.students.structure_tables import FullTable
from limbeck.teachers import fit_teacher, knowledge_from
from limbeck.teachers.knowledge import Knowledge
from limbeck.testing import check_method, small_graph
from limbeck.testing.methods import same_weights
from limbeck.training.loop import Checkpoint, fit, seeded

SMALL = {"hidden_channels": 16, "max_epochs": 6}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def mixture(count: int, own: float | Tensor, partner: Tensor | None = None) -> Mixture:
    """A mixture with the same weight for everything."""
    weight = torch.full((1, 1), own) if isinstance(own, float) else own
    return Mixture(torch.randperm(count) if partner is None else partner, weight, weight, weight)


def lessons_of(method: StructureAwareMLP, view: View) -> tuple[Lessons, SAMLP]:
    """What the method would train on, with a random teacher."""
    inputs = inputs_of(view, neighbors=True)
    student = method.build(view, inputs.observed)
    soft = torch.randn(view.num_observed, view.num_classes)
    return Lessons(method, student, inputs.observed, view, Knowledge(soft)), student


# --- conformance ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_size": 32, "row_cap": 3, "num_layers": 2, "norm": "batch", "mix_per": "node"},
        {"stages": "joint", "stream_norm": "batch", "stage2_teacher": "both", "table": "landmark"},
        {"stages": "one", "structure_dropout": 0.3, "table": "hashed", "adj_norm": "row"},
        {"stage2_train": "all", "stage2_mix": True, "table": "tied", "feature_scale": "standard"},
        {"table_lr": 0.1, "batch_size": 32, "hold_out": True},
    ],
    ids=["default", "batches", "joint", "dropout", "all", "lazy"],
)
def test_conforms(options: dict[str, object]) -> None:
    check_method(StructureAwareMLP(**SMALL, table_rows=20, **options))


def test_labels_alone_conform_and_need_no_teacher() -> None:
    check_method(StructureAwareLabels(**SMALL))
    view = make_view(small_graph(), "transductive", 0)
    with pytest.raises(TeacherError, match="method 'sa-mlp' learns from a teacher: give one"):
        StructureAwareMLP(**SMALL).distill(view, None)
    with_teacher = distill(view, torch.randn(120, 3), StructureAwareLabels(**SMALL))
    assert same_weights(with_teacher, distill(view, None, StructureAwareLabels(**SMALL)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ce_weight": 0, "kd_weight": 0, "mix_weight": 0}, "mix_weight must be positive"),
        ({"mix_weight": 0, "replace_originals": True}, "with mix_weight 0 there are no mixtures"),
        ({"mix_inputs": "structure", "decoupled": True}, "there is one weight only"),
        ({"structure_dropout": 1.0}, "'structure_dropout'"),
        ({"table": "sparse"}, "'table'"),
        ({"table": "hashed", "table_lr": 0.1}, "only table 'full' takes steps of its own"),
    ],
)
def test_options_that_contradict_each_other(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        StructureAwareMLP(**options)


# --- mixing -----------------------------------------------------------------------------------


def test_mixed_parts_are_the_parts_of_mixed_rows() -> None:
    rows = (torch.rand(20, 15) < 0.3).float()
    given = NodeInputs(torch.randn(20, 6), neighbors=to_csr(rows))
    student = SAMLP(6, 8, 3, FullTable(15, 8, 0.5)).eval()
    mixed = mixture(20, torch.rand(20, 1))
    z_a, z_x = student.structure_part(given.neighbors), student.head.encode(given.x)
    shortcut = student.head.decode(mixed.mix(z_a, mixed.target), mixed.mix(z_x, mixed.target))
    explicit = NodeInputs(
        mixed.mix(given.x, mixed.target), neighbors=to_csr(mixed.mix(rows, mixed.target))
    )
    torch.testing.assert_close(shortcut.logits, student(explicit), rtol=1e-5, atol=1e-5)
    # interpolating behind the ReLU is another method
    h_a, h_x = (mixed.mix(F.relu(z), mixed.target) for z in (z_a, z_x))
    behind = student.head.decode(h_a, h_x).logits
    assert float((behind - shortcut.logits).detach().abs().max()) > 0.01


def test_mixed_features_are_mixed_behind_the_predictors_first_map() -> None:
    predictor = SAMLP(6, 8, 3, FullTable(15, 8), norm="layer").eval().predictor
    x, mixed = torch.randn(20, 6), mixture(20, 0.3)
    shortcut = predictor.rest(mixed.mix(predictor.first(x), mixed.target))
    torch.testing.assert_close(shortcut, predictor(mixed.mix(x, mixed.target)))


def test_a_mixture_that_mixes_nothing() -> None:
    student, teacher = torch.randn(12, 4), torch.randn(12, 4)
    plain = soft_target_loss(student, teacher, 2.0)
    for nothing in (mixture(12, 1.0), mixture(12, 0.4, torch.arange(12))):
        torch.testing.assert_close(mixed_target_loss(student, teacher, nothing, 2.0), plain)


def test_a_mixture_looks_the_same_from_both_ends() -> None:
    values, own = torch.randn(10, 3), torch.rand(10, 1)
    partner = torch.tensor([1, 0, 3, 2, 5, 4, 7, 6, 9, 8])
    one = Mixture(partner, own, own, own).mix(values, own)
    other = 1 - own[partner]
    torch.testing.assert_close(
        one, Mixture(partner, other, other, other).mix(values, other)[partner]
    )


def test_mixed_targets_are_distributions_with_the_gradient_of_two_cross_entropies() -> None:
    student, teacher = torch.randn(12, 4, requires_grad=True), torch.randn(12, 4)
    mixed = mixture(12, torch.rand(12, 1))
    p = teacher.softmax(1)
    target = mixed.mix(p, mixed.target)
    assert bool((target >= 0).all())
    torch.testing.assert_close(target.sum(1), torch.ones(12), rtol=0, atol=1e-6)
    (gradient,) = torch.autograd.grad(mixed_target_loss(student, teacher, mixed), student)
    log_student = student.log_softmax(1)
    mine = -(p * log_student).sum(1)
    theirs = -(p[mixed.partner] * log_student).sum(1)
    own = mixed.target.squeeze(1)
    (expected,) = torch.autograd.grad((own * mine + (1 - own) * theirs).mean(), student)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("eta", [0.2, 1.0, 4.0])
def test_mixing_weights_have_the_moments_of_beta(eta: float) -> None:
    method = StructureAwareMLP(mix_concentration=eta, mix_per="node")
    drawn = draw_mixture(40_000, 3, method)
    variance = 1 / (4 * (2 * eta + 1))
    assert float(drawn.target.mean()) == pytest.approx(0.5, abs=4 * math.sqrt(variance / 40_000))
    assert float(drawn.target.var()) == pytest.approx(variance, rel=0.03)
    assert torch.equal(drawn.partner.sort().values, torch.arange(40_000))


def test_a_draw_has_a_seed_of_its_own() -> None:
    method, before = StructureAwareMLP(), torch.get_rng_state()
    one, same, other = (draw_mixture(30, seed, method) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.partner, same.partner)
    assert torch.equal(one.target, same.target)
    assert not torch.equal(one.partner, other.partner)


def test_kinds_of_mixtures() -> None:
    batch = draw_mixture(9, 1, StructureAwareMLP())
    assert batch.target.shape == (1, 1)
    assert torch.equal(batch.structure, batch.features)
    node = draw_mixture(9, 1, StructureAwareMLP(mix_per="node"))
    assert node.target.shape == (9, 1)
    only = draw_mixture(9, 1, StructureAwareMLP(mix_inputs="structure"))
    assert float(only.features) == 1.0
    assert float(only.target) == float(only.structure) < 1
    apart = draw_mixture(9, 1, StructureAwareMLP(decoupled=True))
    assert float(apart.features) != float(apart.structure)
    assert float(apart.target) == pytest.approx(float(apart.features + apart.structure) / 2)


def test_without_weight_nothing_is_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    view, soft = make_view(small_graph(), "transductive", 0), torch.randn(120, 3)
    run = distill(view, soft, StructureAwareMLP(mix_weight=0, **SMALL))
    other = StructureAwareMLP(mix_weight=0, mix_concentration=4, mix_per="node", **SMALL)
    monkeypatch.delattr(module, "draw_mixture")
    assert same_weights(run, distill(view, soft, other))


def test_without_mixing_the_first_stage_is_plain_distillation() -> None:
    """The same weights, to the bit, as a loop written down here without any mixing in it."""
    view = make_view(small_graph(), "transductive", 0)
    soft = torch.randn(120, 3)
    method = StructureAwareMLP(mix_weight=0, stages="one", **SMALL)
    run = distill(view, soft, method, 5)
    inputs, y = inputs_of(view, neighbors=True).observed, view.observed.y
    with seeded(5):
        student = SAMLP(12, 16, 3, FullTable(120, 16))

        def losses(_: int) -> Iterator[Tensor]:
            logits = student(inputs)
            hard = F.cross_entropy(logits[view.train], y[view.train])
            yield hard + soft_target_loss(logits, soft)

        def validate() -> float:
            return float((student(inputs)[view.val].argmax(1) == y[view.val]).float().mean())

        fit(student, losses, validate, lr=0.01, weight_decay=5e-4, max_epochs=6, patience=100)
    theirs = run.student.state_dict()
    for name, value in student.state_dict().items():
        assert torch.equal(theirs[name], value), name


def test_mixtures_move_no_running_statistics() -> None:
    norm = torch.nn.BatchNorm1d(3)
    norm(torch.randn(8, 3))
    before = copy.deepcopy(norm.state_dict())
    with frozen_statistics(torch.nn.Sequential(norm)):
        mixed = norm(x := torch.randn(8, 3) + 5)
    torch.testing.assert_close(mixed.mean(0), torch.zeros(3), rtol=0, atol=1e-5)
    assert all(torch.equal(before[name], value) for name, value in norm.state_dict().items())
    norm(x)
    assert not torch.equal(before["running_mean"], norm.running_mean)


def test_losses_by_hand() -> None:
    """One step of the first stage, dropout off, put together from its three terms."""
    view = make_view(small_graph(), "transductive", 0)
    weights = {"ce_weight": 0.5, "kd_weight": 2.0, "mix_weight": 3.0, "temperature": 2.0}
    method = StructureAwareMLP(dropout=0.0, hidden_channels=16, mix_labels=True, **weights)
    lessons, student = lessons_of(method, view)
    (loss,) = lessons.with_structure(4)
    logits, y, soft = student(lessons.known), view.observed.y, lessons.soft
    expected = 0.5 * F.cross_entropy(logits[view.train], y[view.train])
    expected += 2.0 * soft_target_loss(logits, soft, 2.0)
    drawn = lessons.mixture(120, 1, 4, 0)
    own = float(drawn.target)
    rows = lessons.known.neighbors.to_dense()
    mixed = student(
        NodeInputs(
            drawn.mix(lessons.known.x, drawn.target),
            neighbors=to_csr(drawn.mix(rows, drawn.target)),
        )
    )
    expected += 3.0 * mixed_target_loss(mixed, soft, drawn, 2.0)
    train = torch.isin(torch.arange(120), view.train)
    both = train & train[drawn.partner]
    expected += 0.5 * own * F.cross_entropy(mixed[both], y[both])
    expected += 0.5 * (1 - own) * F.cross_entropy(mixed[both], y[drawn.partner][both])
    torch.testing.assert_close(loss, expected)


def test_replaced_originals_leave_the_teacher_to_mixtures() -> None:
    view = make_view(small_graph(), "transductive", 0)
    with_both = StructureAwareMLP(dropout=0.0, hidden_channels=16)
    both, student = lessons_of(with_both, view)
    plain = soft_target_loss(student(both.known), both.soft)
    both.method = with_both.replace(replace_originals=True)
    (without,) = both.with_structure(0)
    both.method = with_both
    (whole,) = both.with_structure(0)
    torch.testing.assert_close(whole - without, plain)


# --- rows -------------------------------------------------------------------------------------


def test_capped_rows_keep_the_sum_on_average() -> None:
    dense = torch.zeros(4, 12)
    dense[0, :9], dense[2, 3:5], dense[3, :] = 1, 2, 0.5
    rows, values = to_csr(dense), torch.randn(12)
    total = torch.zeros(4)
    for _ in range(4000):
        drawn = capped(rows, 3)
        assert drawn.crow_indices().diff().tolist() == [3, 0, 2, 3]
        total += drawn.to_dense() @ values
    torch.testing.assert_close(total / 4000, dense @ values, rtol=0, atol=0.15)
    torch.testing.assert_close(drawn.to_dense().sum(1), dense.sum(1))
    assert capped(rows, 12) is rows


def test_batches_of_whole_rows_answer_as_the_full_batch() -> None:
    view = make_view(small_graph(), "transductive", 0)
    lessons, student = lessons_of(StructureAwareMLP(**SMALL), view)
    whole = student.eval()(lessons.known)
    order = torch.randperm(120)
    parts = [student(lessons.known.take(nodes)) for nodes in order.split(32)]
    torch.testing.assert_close(torch.cat(parts), whole[order])


# --- the second stage -------------------------------------------------------------------------


def test_embedding_loss_has_no_scale() -> None:
    predicted, target = (
        torch.tensor([[1.0, 0.0], [0.0, 2.0]]),
        torch.tensor([[2.0, 0.0], [0.0, 1.0]]),
    )
    assert float(embedding_loss(predicted, target)) == pytest.approx(2 / 5)
    assert float(embedding_loss(100 * predicted, 100 * target)) == pytest.approx(2 / 5)


def test_the_second_stage_moves_the_predictor_and_nothing_else() -> None:
    view, soft = make_view(small_graph(), "inductive", 0), torch.randn(120, 3)
    one = distill(view, soft, StructureAwareMLP(stages="one", **SMALL))
    two = distill(view, soft, StructureAwareMLP(**SMALL))
    before, after = one.student.state_dict(), two.student.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.startswith("predictor")} | {"_extra_state"}
    assert len(two.history.loss) == 12
    torch.testing.assert_close(one.answers.observed[:5], two.answers.observed[:5])
    assert not torch.equal(one.answers.isolated, two.answers.isolated)


def test_training_all_leaves_the_connected_path_alone() -> None:
    view, soft = make_view(small_graph(), "inductive", 0), torch.randn(120, 3)
    one = distill(view, soft, StructureAwareMLP(stages="one", **SMALL))
    run = distill(view, soft, StructureAwareMLP(stage2_train="all", **SMALL))
    connected = run.inputs.observed.neighbors.crow_indices().diff() > 0
    torch.testing.assert_close(run.answers.observed[connected], one.answers.observed[connected])
    head, lone = run.student.head.state_dict(), run.student.lone_head.state_dict()
    assert all(not torch.equal(head[name], value) for name, value in lone.items())


@pytest.mark.parametrize("stages", ["two", "joint"])
def test_validation_nodes_are_new_to_the_predictor(stages: str) -> None:
    """What they are, and what the teacher says of them, does not reach the predictor."""
    view = make_view(small_graph(), "transductive", 0)
    options = {"stages": stages, "structure_dropout": 0.5, "mix_weight": 0, "dropout": 0.0}
    lessons, student = lessons_of(StructureAwareMLP(hidden_channels=16, **options), view)

    def gradients() -> tuple[Tensor, ...]:
        torch.manual_seed(1)
        (loss,) = lessons.without_structure(0) if stages == "two" else lessons.with_structure(0)
        return torch.autograd.grad(loss, list(student.predictor.parameters()))

    if stages == "two":
        lessons.freeze()
    before = gradients()
    lessons.soft[view.val] += 3.0
    x = lessons.known.x.clone()
    x[view.val] = torch.randn_like(x[view.val])
    lessons.known = replace(lessons.known, x=x)
    for one, other in zip(before, gradients(), strict=True):
        torch.testing.assert_close(one, other)
    assert not bool(lessons.rowless(view.val, torch.zeros(len(view.val))).any())


def test_held_out_validation_nodes_teach_nothing_of_themselves() -> None:
    view = make_view(small_graph(), "transductive", 0)
    method = StructureAwareMLP(dropout=0.0, hidden_channels=16, hold_out=True)
    lessons, student = lessons_of(method, view)
    before, _ = _loss_and_rows(lessons, student)
    lessons.soft[view.val] += 3.0
    lessons.known.x[view.val] += 1.0
    after, rows = _loss_and_rows(lessons, student)
    torch.testing.assert_close(after, before)
    assert float(rows[view.val].abs().sum()) > 0  # their columns are trained by their neighbours


def _loss_and_rows(lessons: Lessons, student: SAMLP) -> tuple[Tensor, Tensor]:
    (loss,) = lessons.with_structure(0)
    (gradient,) = torch.autograd.grad(loss, student.table.weight)
    return loss.detach(), gradient


def test_lone_nodes_have_no_embedding_to_meet() -> None:
    view = make_view(small_graph(), "transductive", 0)
    lessons, student = lessons_of(StructureAwareMLP(dropout=0.0, **SMALL), view)
    lessons.freeze()
    nodes = lessons.second_nodes
    guess = student.predictor(lessons.known.x[nodes])
    z_x = student.head.encode(lessons.known.x[nodes])
    (loss,) = replaced(lessons, mix_weight=0).without_structure(0)
    logits = student.head.decode(guess, z_x).logits
    known = lessons.degree[nodes] > 0
    assert int((~known).sum()) == 1
    train = lessons.is_train[nodes]
    expected = (
        embedding_loss(F.relu(guess)[known], lessons.embedding[nodes][known])
        + soft_target_loss(logits, lessons.soft[nodes])
        + F.cross_entropy(logits[train], lessons.y[nodes][train])
    )
    torch.testing.assert_close(loss, expected)


def replaced(lessons: Lessons, **changes: object) -> Lessons:
    lessons.method = lessons.method.replace(**changes)
    return lessons


@pytest.mark.parametrize("whom", ["gnn", "student", "both"])
def test_whom_the_second_stage_learns_from(whom: str) -> None:
    view = make_view(small_graph(), "transductive", 0)
    options = {"ce_weight": 0.0, "embedding_weight": 0.0, "stage2_teacher": whom}
    lessons, student = lessons_of(StructureAwareMLP(dropout=0.0, **options, **SMALL), view)
    lessons.freeze()
    (loss,) = lessons.without_structure(0)
    logits = student.without_structure(lessons.known.x)[lessons.second_nodes]
    gnn = soft_target_loss(logits, lessons.soft[lessons.second_nodes])
    own = soft_target_loss(logits, student(lessons.known)[lessons.second_nodes])
    expected = {"gnn": gnn, "student": own, "both": (gnn + own) / 2}[whom]
    torch.testing.assert_close(loss, expected)


def test_structure_dropout_trains_the_predictor_in_one_stage() -> None:
    view = make_view(small_graph(), "transductive", 0)
    method = StructureAwareMLP(stages="one", structure_dropout=0.5, **SMALL)
    run = distill(view, torch.randn(120, 3), method)
    assert run.student.routed
    lessons, student = lessons_of(method, view)
    (loss,) = lessons.with_structure(0)
    loss.backward()
    assert float(student.predictor.lins[0].weight.grad.abs().sum()) > 0
    student.eval()
    alone = lessons.accuracy(student.without_structure(lessons.val.x))
    mean = (lessons.accuracy(student(lessons.val)) + alone) / 2
    assert lessons.accuracy_with_structure() == pytest.approx(mean)


# --- runs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [1, 2])
def test_an_interrupted_run_ends_with_the_same_weights(
    stage: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    view, knowledge = make_view(small_graph(), "transductive", 0), Knowledge(torch.randn(120, 3))
    method = StructureAwareMLP(stage2_mix=True, **SMALL)
    checkpoint = Checkpoint(tmp_path / "run.checkpoint", "key", every_seconds=0.0)

    def trained(checkpoint: Checkpoint | None = None) -> SAMLP:
        with seeded(3):
            return method.distill(view, knowledge, checkpoint=checkpoint).student

    whole = trained()
    lesson = "with_structure" if stage == 1 else "without_structure"
    losses = getattr(Lessons, lesson)

    def interrupted(self: Lessons, epoch: int) -> object:
        if epoch == 3:
            raise KeyboardInterrupt
        return losses(self, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(Lessons, lesson, interrupted)
        with pytest.raises(KeyboardInterrupt):
            trained(checkpoint)
    assert [path.name for path in tmp_path.iterdir()] == [f"run-stage-{stage}.checkpoint"]
    resumed = trained(checkpoint)
    state = whole.state_dict()
    assert all(torch.equal(state[name], value) for name, value in resumed.state_dict().items())
    assert list(tmp_path.iterdir()) == []


def test_known_inputs_of_a_run_are_in_the_graphs_order() -> None:
    graph = small_graph()
    run = distill(make_view(graph, "inductive", 0), torch.randn(120, 3), StructureAwareMLP(**SMALL))
    known = run._known_inputs()
    both = torch.cat([run.answers.observed, run.answers.unseen])[run.view.nodes.argsort()]
    torch.testing.assert_close(run.student(known), both)
    rows = stack_rows(run.inputs.observed.neighbors, run.inputs.unseen.neighbors).to_dense()
    assert torch.equal(known.neighbors.to_dense(), rows[run.view.nodes.argsort()])


# --- behaviour --------------------------------------------------------------------------------


def blocks(
    inside: float, across: float, *, per_block: int = 500, shift: float = 0.0, seed: int = 0
) -> Data:
    """Two blocks with 32 normal features, the first half of each labelled block by block."""
    with seeded(seed):
        probabilities = torch.tensor([[inside, across], [across, inside]])
        edge_index = stochastic_blockmodel_graph([per_block] * 2, probabilities)
        y = torch.arange(2).repeat_interleave(per_block)
        x = torch.randn(2 * per_block, 32) + shift * (y.unsqueeze(1) * 2 - 1)
        part = torch.rand(2 * per_block)
    graph = Data(x=x, edge_index=edge_index, y=y)
    graph.train_mask, graph.val_mask, graph.test_mask = (
        part < 0.5,
        (part >= 0.5) & (part < 0.6),
        part >= 0.6,
    )
    graph.info = GraphInfo(
        name="blocks",
        source="drawn",
        split="fixed",
        class_names=("a", "b"),
        node_ids=torch.arange(2 * per_block).numpy(),
    )
    return graph


QUICK = {"hidden_channels": 32, "max_epochs": 60, "patience": 60}


def accuracy_of(run: Run) -> float:
    return float(run.scores["student"]["test_accuracy"])


def test_fifty_nodes_are_learnt_by_heart() -> None:
    graph = small_graph(per_class=50)
    view = make_view(graph, "transductive", 0)
    lessons, student = lessons_of(StructureAwareLabels(dropout=0.0, hidden_channels=32), view)
    lessons.y = torch.randint(3, (150,))
    lessons.is_train = torch.arange(150) < 50
    lessons.first_nodes = torch.arange(50)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.01)
    for step in range(199):
        (loss,) = lessons.with_structure(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    answers = student.eval()(lessons.known.take(torch.arange(50))).argmax(1)
    assert torch.equal(answers, lessons.y[:50])


@pytest.mark.parametrize("homophilous", [True, False])
def test_labels_that_only_the_structure_tells(homophilous: bool) -> None:
    inside, across = (0.04, 0.004) if homophilous else (0.004, 0.04)
    view = make_view(blocks(inside, across), "transductive", 0)
    assert accuracy_of(distill(view, None, StructureAwareLabels(**QUICK, stages="one"))) >= 0.98
    assert 0.4 < accuracy_of(distill(view, None, make_method("mlp", "", **QUICK))) < 0.6


def test_labels_that_only_the_features_tell() -> None:
    view = make_view(blocks(0.02, 0.02, shift=0.33), "transductive", 0)
    options = {**QUICK, "weight_decay": 0.005}
    ours = accuracy_of(distill(view, None, StructureAwareLabels(**options, stages="one")))
    plain = accuracy_of(distill(view, None, make_method("mlp", "", **options)))
    assert plain > 0.9
    assert ours >= plain - 0.01


def test_the_predictor_knows_what_features_know_of_the_structure() -> None:
    view = make_view(blocks(0.5, 0.02, per_block=150, shift=1.0), "inductive", 0)
    perfect = 6.0 * F.one_hot(view.graph.y, 2).float()
    run = distill(view, knowledge_from(perfect), StructureAwareMLP(**QUICK))
    connected = accuracy_of(run)
    alone = accuracy_of(run.in_setting("cold-start"))
    assert alone >= connected - 0.02
    student, known = run.student, run.inputs.observed
    with torch.no_grad():
        predicted = F.relu(student.predictor(known.x))
        target = F.relu(student.structure_part(known.neighbors))
    assert float(embedding_loss(predicted, target)) < 0.05


def test_without_anything_to_know_the_predictor_guesses() -> None:
    view = make_view(blocks(0.5, 0.02, per_block=250), "inductive", 0, unseen=0.9)
    perfect = 6.0 * F.one_hot(view.graph.y, 2).float()
    run = distill(view, knowledge_from(perfect), StructureAwareMLP(**QUICK))
    assert accuracy_of(run) == 1.0
    assert 0.38 < accuracy_of(run.in_setting("cold-start")) < 0.62


def test_pilot_bands_on_cora(data_root: Path) -> None:
    """The card's pilot: binary features, a GCN teacher, 87.9 ± 1.6 and 79.1 ± 2.1 on labels."""
    view = make_view(limbeck.load_graph("cora:geom-gcn/0"), "transductive", 0)
    teacher = fit_teacher(view, "gcn", 0)
    pilot = {"hidden_channels": 64, "max_epochs": 200, "patience": 40, "stages": "one"}
    full = distill(view, teacher, StructureAwareMLP(**pilot))
    labels = distill(view, None, StructureAwareLabels(**pilot))
    assert 0.84 <= accuracy_of(full) <= 0.92
    assert 0.72 <= accuracy_of(labels) <= 0.84
    locked = distill(view, teacher, StructureAwareMLP(**pilot, feature_scale="row"))
    gates = [run.student.explain(run.inputs.observed).gate.mean() for run in (full, locked)]
    assert float(gates[0]) < 0.9 < 0.98 < float(gates[1])
