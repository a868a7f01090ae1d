"""FMLP-O, FMLP-S and FMLP-X, the methods: losses, leakage, policies for new nodes."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.errors import OptionError, TeacherError
from limbeck.evaluation.distill import distill
from limbeck.evaluation.protocol import Run
from limbeck.graphs.bands import feature_bands, random_projection
from limbeck.graphs.framelets import Framelets
from limbeck.graphs.view import View, make_view
from limbeck.methods.fmlp import (
    POLICIES,
    FMLPFeatures,
    FMLPOriginal,
    FMLPSimplified,
    FrameletMLP,
    Lessons,
    under_policy,
    withheld_nodes,
)
from limbeck.methods.losses import soft_target_loss
from limbeck.students.inputs import NodeInputs
from limbeck.teachers.knowledge import Knowledge
from limbeck.testing import check_method, small_graph
from limbeck.testing.methods import same_weights
from limbeck.training.loop import Checkpoint, fit, seeded

SMALL = {"hidden_channels": 8, "max_epochs": 4, "predictor_channels": 8}
METHODS = {"fmlp-o": FMLPOriginal, "fmlp-s": FMLPSimplified, "fmlp-x": FMLPFeatures}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def lessons_of(method: FrameletMLP, view: View, soft: Tensor | None = None) -> Lessons:
    """What the method would train on, with a random teacher."""
    framelets = Framelets(view.observed.edge_index, view.num_observed, method.framelets)
    student, source = method.build(view, framelets)
    if soft is None:
        soft = torch.randn(view.num_observed, view.num_classes)
    return Lessons(method, student, source, framelets, view, Knowledge(soft))


def distilled(name: str, view: View, soft: Tensor | None = None, **options: object) -> Run:
    if soft is None:
        with seeded(1):
            soft = torch.randn(len(view.nodes), view.num_classes)
    return distill(view, soft, METHODS[name](**{**SMALL, **options}))


# --- conformance ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fmlp-o", {"num_layers": 3, "table_decay": 1e-4}),
        ("fmlp-o", {"gate": "released", "tied": True, "fidelity": "released", "two_step": True}),
        ("fmlp-s", {"new_nodes": "predictor", "bank": "linear", "label_weight": 0.3}),
        ("fmlp-s", {"new_nodes": "features-only", "tied": True, "greedy_restore": True}),
        ("fmlp-x", {"batch_size": 32, "head_layers": 2, "norm": "layer"}),
        ("fmlp-x", {"network": "simplified", "projection": 5, "predictor_channels": 0}),
    ],
)
def test_conforms(name: str, options: dict[str, object]) -> None:
    check_method(METHODS[name](**{**SMALL, **options}))


@pytest.mark.parametrize("name", METHODS)
def test_needs_a_teacher(name: str) -> None:
    view = make_view(small_graph(), "transductive", 0)
    with pytest.raises(TeacherError, match=f"method '{name}' learns from a teacher: give one"):
        METHODS[name](**SMALL).distill(view, None)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fmlp-o", {"num_layers": 1}, "'num_layers'"),
        ("fmlp-o", {"batch_size": 32}, "tables are propagated whole in every step"),
        ("fmlp-x", {"num_layers": 1}, "with num_layers 1 there is no hidden layer"),
        ("fmlp-x", {"tied": True}, "unknown option 'tied'"),
        ("fmlp-s", {"new_nodes": "predictor", "predictor_channels": 0}, "must be at least 1"),
        ("fmlp-s", {"fused": True, "epsilon": 0.5}, "'fused' and 'epsilon' exclude each other"),
        ("fmlp-s", {"bank": "wavelet"}, "'bank'"),
        ("fmlp-x", {"withhold": 1.5}, "'withhold'"),
    ],
)
def test_options_that_cannot_be(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        METHODS[name](**options)


def test_a_policy_must_be_known() -> None:
    run = distilled("fmlp-x", make_view(small_graph(), "inductive", 0), predictor_channels=0)
    with pytest.raises(OptionError, match="unknown policy 'row'"):
        under_policy(run.student, run.inputs, "row")
    with pytest.raises(OptionError, match="the student has no predictor"):
        under_policy(run.student, run.inputs, "predictor")


# --- bands ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"num_layers": 3}, {"bank": "linear", "levels": 2}])
@pytest.mark.parametrize("name", ["fmlp-o", "fmlp-s"])
def test_kept_bands_answer_as_tables_do(name: str, options: dict[str, object]) -> None:
    """Cached logits are those of the network and the tables that were trained."""
    view = make_view(small_graph(), "transductive", 0)
    lessons = lessons_of(METHODS[name](**{**SMALL, **options}), view)
    lessons.learn(None, None)
    kept = lessons.freeze()
    student = lessons.student.eval()
    by_tables = student(replace(lessons.x, bands=lessons.source.on(lessons.framelets, 0)))
    torch.testing.assert_close(student(replace(lessons.x, bands=kept)), by_tables)
    assert not kept.requires_grad
    width = len(lessons.method.powers) * len(lessons.framelets.bands) * 8
    assert kept.shape == (view.num_observed, width)


def test_bands_of_features_are_those_of_the_transform() -> None:
    view = make_view(small_graph(), "inductive", 0)
    run = distilled("fmlp-x", view, projection=None)
    known, total = view.num_observed, len(view.nodes)
    observed = Framelets(view.observed.edge_index, known)
    expected = torch.cat(
        [observed.propagate_band(b, view.observed.x, k) for k in (1, 2) for b in (0, 1)], dim=1
    )
    torch.testing.assert_close(run.inputs.observed.bands, expected, rtol=1e-4, atol=1e-5)
    full = Framelets(view.everything.edge_index, total)
    unseen = feature_bands(full, view.everything.x, (1, 2))[known:]
    torch.testing.assert_close(run.inputs.unseen.bands, unseen, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("predictor", [0, 8])
def test_without_edges_no_row_is_read(name: str, predictor: int) -> None:
    """No known node is in such a row; the predictor answers, or the features if there is none."""
    view = make_view(small_graph(), "inductive", 0)
    run = distilled(name, view, predictor_channels=predictor)
    assert run.inputs.unseen.bands is not None
    assert run.inputs.isolated.bands is None
    policy = "predictor" if predictor else "features-only"
    student, inputs = under_policy(run.student, run.inputs, policy)
    expected = replace(run, student=student, inputs=inputs).answers
    torch.testing.assert_close(run.answers.isolated, expected.isolated)
    assert not torch.allclose(run.answers.unseen, expected.unseen)


def test_a_projection_keeps_inner_products() -> None:
    projection = random_projection(40, 4000)
    torch.testing.assert_close(projection.t() @ projection, torch.eye(40), rtol=0, atol=0.08)
    run = distilled("fmlp-x", make_view(small_graph(), "transductive", 0), projection=5)
    assert run.student.reader.in_channels == 5
    assert run.inputs.observed.bands.shape[1] == 2 * 2 * 5
    # no wider than the features themselves
    wide = distilled("fmlp-x", make_view(small_graph(), "transductive", 0), projection=500)
    assert wide.student.reader.in_channels == 12


def test_what_is_served_is_small() -> None:
    view = make_view(small_graph(), "transductive", 0)
    for name in METHODS:
        shapes = [value.shape for value in distilled(name, view).student.state_dict().values()]
        assert all(view.num_observed not in shape for shape in shapes)


# --- losses -----------------------------------------------------------------------------------


@pytest.mark.parametrize("label_weight", [0.0, 0.4, 1.0])
def test_the_loss_is_the_formula(label_weight: float) -> None:
    view = make_view(small_graph(), "transductive", 0)
    method = FMLPSimplified(
        **SMALL, label_weight=label_weight, temperature=2.0, weight_decay=0.0, table_decay=0.0
    )
    lessons = lessons_of(method, view)
    (loss,) = lessons.with_bands(0)
    logits = lessons.student(replace(lessons.x, bands=lessons.source.on(lessons.framelets, 0)))
    hard = F.cross_entropy(logits[view.train], view.observed.y[view.train])
    soft = soft_target_loss(logits, lessons.soft, 2.0)
    expected = label_weight * hard + (1 - label_weight) * soft
    torch.testing.assert_close(loss, expected)


def test_hard_labels_weigh_alike_however_batches_fall() -> None:
    view = make_view(small_graph(), "transductive", 0)
    lessons = lessons_of(FMLPFeatures(**SMALL, label_weight=1.0), view)
    logits = torch.randn(view.num_observed, 3)
    nodes = torch.randperm(view.num_observed)
    parts = nodes.split(view.num_observed // 4)
    assert {len(part) for part in parts} == {30}
    mean = sum(lessons.lesson(logits[part], part, 1.0, 0.0) for part in parts) / len(parts)
    expected = F.cross_entropy(logits[view.train], view.observed.y[view.train])
    torch.testing.assert_close(mean, expected)


def test_the_loss_is_zero_only_where_both_agree() -> None:
    view = make_view(small_graph(), "transductive", 0)
    lessons = lessons_of(FMLPSimplified(**SMALL), view)
    nodes = torch.arange(view.num_observed)
    assert float(lessons.lesson(lessons.soft + 3.0, nodes, 0.0, 1.0)) == pytest.approx(0, abs=1e-6)
    # KL(teacher || student) by hand: teacher (3/4, 1/4), student (1/2, 1/2)
    teacher = torch.tensor([[0.75, 0.25]]).log()
    by_hand = 0.75 * torch.tensor(1.5).log() + 0.25 * torch.tensor(0.5).log()
    torch.testing.assert_close(soft_target_loss(torch.zeros(1, 2), teacher), by_hand)


def trained(lessons: Lessons, steps: int, **options: float) -> dict[str, Tensor]:
    """The weights after some epochs of the method's own training."""
    lessons.method = lessons.method.replace(max_epochs=steps, **options)
    lessons.learn(None, None)
    return lessons.student.state_dict()


def agreeing(**options: object) -> Lessons:
    """Lessons of a student that agrees with its teacher already."""
    view = make_view(small_graph(), "transductive", 0)
    method = FMLPSimplified(**SMALL, weight_decay=0.0, table_decay=0.0, **options)
    with seeded(3):
        lessons = lessons_of(method, view)
    # in double precision, since Adam makes whole steps of what rounding leaves of a gradient
    lessons.student.double()
    lessons.source.double()
    lessons.x = NodeInputs(view.observed.x.double())
    with torch.no_grad():
        lessons.soft = lessons.student(replace(lessons.x, bands=lessons.bands()))
    return lessons


def test_a_step_without_gradient_changes_nothing() -> None:
    lessons = agreeing()
    before = copy.deepcopy(lessons.student.state_dict())
    for name, value in trained(lessons, 1).items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-6)
    # two steps, one of them of no weight: Adam's decay moves all the same, as in the release
    decayed = agreeing(two_step=True)
    before = copy.deepcopy(decayed.student.state_dict())
    after = trained(decayed, 1, weight_decay=0.01, table_decay=0.01)
    assert float((after["gate.weight"] - before["gate.weight"]).abs().max()) > 0.005


def test_the_best_epoch_is_kept() -> None:
    view = make_view(small_graph(), "transductive", 0)
    for greedy in (False, True):
        lessons = lessons_of(FMLPOriginal(**SMALL, greedy_restore=greedy), view)
        history = lessons.learn(None, None)
        lessons.freeze()
        assert lessons.accuracy(lessons.student, lessons.known_bands[view.val]) == pytest.approx(
            max(history.val_score)
        )


def test_tables_decay_by_a_rate_of_their_own() -> None:
    """The penalty and a smaller decay in Adam are two parameter groups of it."""
    view = make_view(small_graph(), "transductive", 0)
    method = FMLPSimplified(**SMALL, dropout=0.0, weight_decay=0.02, table_decay=0.005)
    with seeded(5):
        lessons = lessons_of(method, view)
    reference = copy.deepcopy(lessons)
    lessons.learn(None, None)
    plain = method.replace(weight_decay=0.0, table_decay=0.0)
    reference.method = plain
    student, source = reference.student, reference.source
    optimizer = torch.optim.Adam(
        [
            {"params": list(student.parameters()), "weight_decay": 0.02},
            {"params": list(source.parameters()), "weight_decay": 0.005},
        ],
        lr=method.lr,
    )
    snapshots = []
    for epoch in range(method.max_epochs):
        for loss in reference.with_bands(epoch):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        snapshots.append(copy.deepcopy(student.state_dict()))
    ours = lessons.student.state_dict()
    differences = [
        max(float((shot[name] - ours[name]).abs().max()) for name in ours if name[0] != "_")
        for shot in snapshots
    ]
    assert min(differences) < 1e-5


# --- withheld soft labels ---------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_withheld_soft_labels_are_never_read(name: str) -> None:
    view = make_view(small_graph(), "transductive", 0)
    nodes = withheld_nodes(view, 0.5)
    assert len(nodes) == len(view.test_observed) // 2
    assert not torch.isin(nodes, torch.cat([view.train, view.val])).any()
    assert torch.equal(nodes, withheld_nodes(view, 0.5))
    soft = torch.randn(view.num_observed, 3)
    poisoned = soft.clone()
    poisoned[nodes] = torch.nan
    lessons = lessons_of(METHODS[name](**SMALL, withhold=0.5), view, poisoned)
    assert not torch.isin(lessons.nodes, nodes).any()
    runs = []
    for labels in (soft, poisoned):
        with seeded(0):
            method = METHODS[name](**SMALL, withhold=0.5, label_weight=0.2)
            runs.append(method.distill(view, Knowledge(labels)))
    states = [run.student.state_dict() for run in runs]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_half_a_share_is_part_of_the_whole() -> None:
    view = make_view(small_graph(), "inductive", 0)
    quarter, half = (set(withheld_nodes(view, share).tolist()) for share in (0.25, 0.5))
    assert quarter < half
    assert len(withheld_nodes(view, 0.0)) == 0
    assert max(half) < view.num_observed


@pytest.mark.parametrize("name", METHODS)
def test_labels_of_validation_nodes_are_not_learnt(name: str) -> None:
    """They choose the epoch; with one epoch there is nothing to choose."""
    view = make_view(small_graph(), "transductive", 0)
    changed = copy.copy(view.observed)
    changed.y = view.observed.y.clone()
    changed.y[view.val] = (changed.y[view.val] + 1) % 3
    poisoned = replace(view, observed=changed)
    options = {"label_weight": 0.5, "max_epochs": 1}
    assert same_weights(distilled(name, view, **options), distilled(name, poisoned, **options))


# --- new nodes --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_one_student_under_every_policy(name: str) -> None:
    view = make_view(small_graph(), "inductive", 0)
    run = distilled(name, view)
    trained_for = {policy: distilled(name, view, new_nodes=policy) for policy in POLICIES}
    answers = {}
    for policy in POLICIES:
        student, inputs = under_policy(run.student, run.inputs, policy)
        scored = replace(run, student=student, inputs=inputs)
        answers[policy] = scored.answers
        # as if it had been trained for that policy
        expected = trained_for[policy].answers
        torch.testing.assert_close(scored.answers.unseen, expected.unseen)
        torch.testing.assert_close(scored.answers.isolated, expected.isolated)
        # known nodes have their bands under each of them
        torch.testing.assert_close(scored.answers.observed, run.answers.observed)
    assert not torch.allclose(answers["rows"].unseen, answers["predictor"].unseen)
    assert not torch.allclose(answers["predictor"].unseen, answers["features-only"].unseen)
    # and back again
    student, inputs = under_policy(*under_policy(run.student, run.inputs, "predictor"), "rows")
    back = replace(run, student=student, inputs=inputs)
    torch.testing.assert_close(back.answers.unseen, run.answers.unseen)


def test_the_predictor_learns_bands_and_nothing_else_moves() -> None:
    view = make_view(small_graph(), "transductive", 0)
    method = FMLPOriginal(**{**SMALL, "max_epochs": 150, "predictor_channels": 32}, patience=150)
    lessons = lessons_of(method, view)
    lessons.learn(None, None)
    lessons.freeze()
    before = copy.deepcopy(lessons.student.state_dict())
    assert not torch.isin(lessons.second_nodes, view.val).any()
    history = lessons.learn_to_predict(None, None)
    assert history.loss[-1] < 0.7 * history.loss[0]
    after = lessons.student.state_dict()
    kept = [name for name in before if name != "_extra_state"]
    assert all(torch.equal(before[name], after[name]) for name in kept)
    assert set(after) - set(before) == {
        f"predictor.lins.{layer}.{part}" for layer in (0, 1) for part in ("weight", "bias")
    }


# --- resumption -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fmlp-o", "fmlp-x"])
def test_an_interrupted_run_ends_as_one_that_was_not(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import limbeck.methods.base as base

    view = make_view(small_graph(), "transductive", 0)
    with seeded(1):
        knowledge = Knowledge(torch.randn(view.num_observed, 3))
    method = METHODS[name](**{**SMALL, "max_epochs": 6})

    def run(checkpoint: Checkpoint | None) -> dict[str, Tensor]:
        with seeded(0):
            state: dict[str, Tensor] = method.distill(
                view, knowledge, checkpoint=checkpoint
            ).student.state_dict()
        return state

    whole = run(None)
    checkpoint = Checkpoint(tmp_path / "run.checkpoint", "key", every_seconds=0.0)
    for stage in (1, 2):
        calls = 0

        def interrupted(module, losses, validate, *, stop=stage, **options):  # type: ignore[no-untyped-def]
            nonlocal calls
            calls += 1
            epochs = 0

            def counted() -> float:
                nonlocal epochs
                epochs += 1
                if calls == stop and epochs == 4:
                    raise KeyboardInterrupt
                score: float = validate()
                return score

            return fit(module, losses, counted, **options)

        with monkeypatch.context() as patch:
            patch.setattr(base, "fit", interrupted)
            with pytest.raises(KeyboardInterrupt):
                run(checkpoint)
        resumed = run(checkpoint)
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)
