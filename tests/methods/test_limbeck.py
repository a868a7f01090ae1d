"""Limbeck's own student: what a neighbour tells is heard, what a node would tell itself is not."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.errors import OptionError, TeacherError
from limbeck.evaluation.distill import distill
from limbeck.evaluation.protocol import Run
from limbeck.evaluation.tune import tune
from limbeck.graphs.sparse import take_rows
from limbeck.graphs.view import View, make_view
from limbeck.methods.glnn import GLNN
from limbeck.methods.limbeck import Alone, Limbeck
from limbeck.methods.mlp import PlainMLP
from limbeck.students import NodeInputs
from limbeck.students.mlp import MLP
from limbeck.students.neighbor_mlp import NeighborMLP
from limbeck.students.structure_tables import FullTable, TiedTable
from limbeck.teachers import knowledge_from
from limbeck.teachers.knowledge import FittedTeacher
from limbeck.testing import check_method, small_graph
from limbeck.training.loop import Checkpoint, seeded

OPTIONS: dict[str, Any] = {"hidden_channels": 16, "max_epochs": 5, "dropout": 0.2}
SMALL = Limbeck(**OPTIONS, encoding="spectral", dim=4, trust="always", hear="always")
CAREFUL = SMALL.replace(trust="validated", hear="validated", max_epochs=30)


def viewed(setting: str = "inductive") -> tuple[View, FittedTeacher]:
    """A view of a graph of which two observed nodes have no edges, and what a teacher says."""
    graph = small_graph()
    ends = graph.edge_index
    graph.edge_index = ends[:, (ends != 0).all(0) & (ends != 1).all(0)]
    view = make_view(graph, setting, 0)
    generator = torch.Generator().manual_seed(0)
    return view, knowledge_from(torch.randn(120, 3, generator=generator)).fitted(view)


@pytest.fixture(scope="module")
def run() -> Run:
    view, teacher = viewed()
    return distill(view, teacher, SMALL, 0)


def test_conforms_with_all_that_can_be_told() -> None:
    told = ("answers", "positions", "features", "rows")
    check_method(SMALL.replace(told=told, norm="batch", label_weight=0.3, batch_size=32))


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_nodes_without_neighbours_are_answered_by_glnn(norm: str) -> None:
    view, teacher = viewed()
    ours = distill(view, teacher, SMALL.replace(norm=norm), 0)
    glnn = distill(view, teacher, GLNN(**OPTIONS, norm=norm), 0)
    assert torch.equal(ours.answers.isolated, glnn.answers.isolated)
    assert isinstance(ours.student, NeighborMLP)
    state = glnn.student.state_dict()
    assert all(torch.equal(v, state[name]) for name, v in ours.student.alone.state_dict().items())
    assert all(parameter.requires_grad for parameter in ours.student.parameters())
    assert not torch.equal(ours.answers.unseen, glnn.answers.unseen)
    assert len(ours.history.loss) == 10  # both trainings
    known = ours.inputs.observed.neighbors
    assert known is not None
    lone = (known.crow_indices().diff() == 0).nonzero().flatten()
    assert len(lone) > 0
    torch.testing.assert_close(ours.answers.observed[lone], glnn.answers.observed[lone])


def test_a_search_leaves_the_nodes_alone() -> None:
    view, teacher = viewed()
    found = SMALL.replace(dropout=0.6, lr=0.1, weight_decay=0.1, label_weight=0.5, temperature=2.0)
    assert found.alone == SMALL.alone == Limbeck(**OPTIONS, label_weight=0.5).alone
    assert found.trust == "always"
    ours, changed = (distill(view, teacher, method, 0) for method in (SMALL, found))
    assert torch.equal(ours.answers.isolated, changed.answers.isolated)
    assert not torch.equal(ours.answers.unseen, changed.answers.unseen)
    told = Limbeck(**OPTIONS, alone={"label_weight": 0.4, "dropout": 0.1}, trust="always")
    assert Limbeck(**json.loads(told.model_dump_json())) == told
    other = distill(view, teacher, told, 0)
    glnn = distill(view, teacher, GLNN(**{**OPTIONS, "label_weight": 0.4, "dropout": 0.1}), 0)
    assert torch.equal(other.answers.isolated, glnn.answers.isolated)


def taught_by(right: bool, setting: str = "inductive") -> tuple[View, FittedTeacher]:
    """A view, and a teacher that is right about all validation nodes or about none."""
    view, _ = viewed(setting)
    logits = torch.randn(120, 3, generator=torch.Generator().manual_seed(1))
    y_val = view.observed.y[view.val]
    said = y_val if right else (y_val + 1) % 3
    logits[view.nodes[view.val], said] = 5.0  # a teacher of one's own numbers nodes as the graph
    return view, knowledge_from(logits).fitted(view)


def test_a_good_teacher_is_heard_as_ever() -> None:
    view, teacher = taught_by(True)
    ours, always = (
        distill(view, teacher, CAREFUL.replace(trust=trust), 0) for trust in ("validated", "always")
    )
    assert torch.equal(ours.answers.unseen, always.answers.unseen)
    assert torch.equal(ours.answers.isolated, always.answers.isolated)
    assert len(ours.history.loss) > len(always.history.loss)  # the plain MLP is in it
    assert ours.history.best_score == always.history.best_score


def test_a_teacher_that_knows_less_than_labels_teaches_nothing() -> None:
    view, bad = taught_by(False)
    logits = torch.zeros(120, 3)
    logits[view.nodes[: view.num_observed]] = 2.0 * bad.knowledge.logits
    other_bad = knowledge_from(logits).fitted(view)
    among_places = CAREFUL.replace(told=("positions",))
    one, other = (distill(view, teacher, among_places, 0) for teacher in (bad, other_bad))
    assert torch.equal(one.answers.unseen, other.answers.unseen)
    assert torch.equal(one.answers.isolated, other.answers.isolated)
    shared = {name: getattr(CAREFUL, name) for name in PlainMLP.model_fields}
    plain = distill(view, None, PlainMLP(**shared), 0)
    assert torch.equal(one.answers.isolated, plain.answers.isolated)
    glnn = distill(view, bad, GLNN(**shared), 0)
    assert not torch.equal(one.answers.isolated, glnn.answers.isolated)


def test_without_a_teacher_neighbours_are_heard_only_if_they_help() -> None:
    view, bad = taught_by(False)
    # steps that are too small to see: the MLP of one of them learns, that of the other does not
    deaf = distill(view, bad, CAREFUL.replace(lr=1e-9, alone={"lr": 0.01}), 0)
    assert isinstance(deaf.student, MLP)
    assert deaf.inputs.observed.neighbors is None
    hearing = distill(view, bad, CAREFUL.replace(lr=0.01, alone={"lr": 1e-9}), 0)
    assert isinstance(hearing.student, NeighborMLP)
    assert hearing.inputs.observed.neighbors is not None


def test_where_no_node_is_unseen_neighbours_are_heard_only_if_they_help() -> None:
    view, good = taught_by(True, "transductive")
    # one learns, the other's steps are too small to see
    careful = CAREFUL.replace(plain={"lr": 1e-9})
    small_steps = careful.replace(lr=1e-9, alone={"lr": 0.01})
    deaf = distill(view, good, small_steps, 0)
    assert isinstance(deaf.student, MLP)
    glnn = distill(view, good, small_steps.parts()["alone"], 0)
    assert torch.equal(deaf.answers.observed, glnn.answers.observed)
    hearing = distill(view, good, careful.replace(lr=0.01, alone={"lr": 1e-9}), 0)
    assert isinstance(hearing.student, NeighborMLP)
    always = careful.replace(lr=1e-9, alone={"lr": 0.01}, hear="always")
    assert isinstance(distill(view, good, always, 0).student, NeighborMLP)


def test_of_unseen_nodes_validation_nodes_cannot_tell() -> None:
    view, good = taught_by(True)
    method = CAREFUL.replace(lr=1e-9, alone={"lr": 0.01}, plain={"lr": 1e-9})
    assert isinstance(distill(view, good, method, 0).student, NeighborMLP)


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("lr", [1e-9, 0.01])
@pytest.mark.parametrize("setting", ["inductive", "transductive"])
def test_the_best_score_is_that_of_the_student(right: bool, lr: float, setting: str) -> None:
    view, teacher = taught_by(right, setting)
    run = distill(view, teacher, CAREFUL.replace(lr=lr), 0)
    answers = run.answers.observed[view.val].argmax(1)
    assert run.history.best_score == pytest.approx(
        (answers == view.observed.y[view.val]).float().mean().item()
    )
    assert run.history.val_score[run.history.best_epoch] == run.history.best_score


def test_parts_are_made_with_the_same_options() -> None:
    made = Limbeck(**OPTIONS, lr=0.02, label_weight=0.5)
    assert made.parts() == {
        "alone": GLNN(**OPTIONS, lr=0.02),
        "plain": PlainMLP(**OPTIONS, lr=0.02),
    }
    assert made.replace(trust="always", lr=0.1).parts() == {"alone": GLNN(**OPTIONS, lr=0.02)}
    other = made.with_part("alone", GLNN(**OPTIONS, lr=0.3, label_weight=0.1))
    assert other.parts()["alone"] == GLNN(**OPTIONS, lr=0.3, label_weight=0.1)
    assert other.parts()["plain"] == made.parts()["plain"]
    assert other.replace(alone=made.alone) == made


@pytest.mark.parametrize("named", [{"label_weight": 0.2}, Alone(label_weight=0.2)])
def test_what_is_said_of_a_part_leaves_the_rest_as_made(named: dict[str, float] | Alone) -> None:
    made = Limbeck(**OPTIONS, lr=0.02, alone=named)
    assert made.parts()["alone"] == GLNN(**OPTIONS, lr=0.02, label_weight=0.2)
    with pytest.raises(OptionError, match="alone"):
        Limbeck(alone=3)


@pytest.mark.parametrize("right", [True, False])
def test_a_search_settles_the_parts_as_if_they_were_alone(right: bool) -> None:
    view, teacher = taught_by(right)
    made = CAREFUL.replace(max_epochs=8, alone={"lr": 1e-9}, plain={"lr": 1e-9})
    ours = tune(view, teacher, made, 4)
    assert ours.name == "limbeck"
    by_itself = made.parts()["alone" if right else "plain"]
    theirs = tune(view, teacher, by_itself, 4)
    assert theirs != by_itself  # what is drawn is better than what was made
    one, other = distill(view, teacher, ours, 0), distill(view, teacher, theirs, 0)
    assert torch.equal(one.answers.isolated, other.answers.isolated)


def test_nobody_tells_of_himself(run: Run) -> None:
    student, known = run.student, run.inputs.observed
    assert isinstance(student, NeighborMLP)
    assert isinstance(student.table, TiedTable)
    assert known.neighbors is not None
    rows = known.neighbors.to_dense()
    node = int(rows.sum(1).argmax())
    assert rows[node, node] == 0
    with torch.no_grad():
        before = student(known)
        told = student.table.values[node].clone()
        student.table.values[node] += 5.0  # another answer, another place
        after = student(known)
        student.table.values[node] = told
    changed = (before != after).any(1)
    assert not changed[node]
    hears = rows[:, node] > 0
    assert bool(changed.any())
    assert not bool((changed & ~hears).any())


def test_another_neighbour_is_another_answer(run: Run) -> None:
    known = run.inputs.observed
    assert known.neighbors is not None
    rows = known.neighbors.to_dense()
    degree = rows.sum(1)
    first, second = degree.argsort(descending=True)[:2].tolist()
    swapped = take_rows(known.neighbors, torch.tensor([second]))
    x = take_rows(known.x, torch.tensor([first]))
    with torch.no_grad():
        own = run.student(known.take(torch.tensor([first])))
        theirs = run.student(NodeInputs(x, neighbors=swapped))
    assert not torch.allclose(own, theirs)


@pytest.mark.parametrize(
    ("told", "width"),
    [
        (("answers",), 3),
        (("positions",), 4),
        (("features",), 12),
        (("answers", "positions"), 7),
        (("positions", "answers", "features"), 19),
    ],
)
def test_what_is_told(told: tuple[str, ...], width: int) -> None:
    view, teacher = viewed()
    method = SMALL.replace(told=told)
    table = method.build_table(view, view.observed.x, teacher.knowledge)
    assert isinstance(table, TiedTable)
    assert table.features.shape == (view.num_observed, width)
    assert table.correction is None
    if "answers" in told:
        torch.testing.assert_close(table.features[:, :3], teacher.knowledge.logits.softmax(1))
    if told == ("positions",):
        torch.testing.assert_close(table.features.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
        torch.testing.assert_close(table.features.std(0), torch.ones(4))


def test_rows_are_learnt_for_each_node() -> None:
    view, teacher = viewed()
    alone = SMALL.replace(told=("rows",)).build_table(view, view.observed.x, teacher.knowledge)
    assert isinstance(alone, FullTable)
    both = SMALL.replace(told=("answers", "rows")).build_table(
        view, view.observed.x, teacher.knowledge
    )
    assert isinstance(both, TiedTable)
    assert both.correction is not None
    assert both.correction.shape == (view.num_observed, 16)


def test_a_resumed_run_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    view, teacher = viewed()
    with seeded(0):
        whole = SMALL.distill(view, teacher.knowledge).student.state_dict()
    checkpoint = Checkpoint(tmp_path / "run.pt", "run", every_seconds=0.0)
    losses, epochs = Limbeck.losses, []

    def interrupted(self: Limbeck, student: Any, *rest: Any) -> Any:
        of_epoch = losses(self, student, *rest)

        def stopping(epoch: int) -> Any:
            if isinstance(student, NeighborMLP):
                epochs.append(epoch)
                if epoch == 4:
                    raise KeyboardInterrupt
            return of_epoch(epoch)

        return stopping

    monkeypatch.setattr(Limbeck, "losses", interrupted)
    with pytest.raises(KeyboardInterrupt), seeded(0):
        SMALL.distill(view, teacher.knowledge, checkpoint=checkpoint)
    monkeypatch.undo()
    assert epochs == [0, 1, 2, 3, 4]
    assert [path.name for path in tmp_path.iterdir()] == ["run-among-neighbours.pt"]
    with seeded(0):
        resumed = SMALL.distill(view, teacher.knowledge, checkpoint=checkpoint).student.state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"told": ()}, "told"),
        ({"told": ("answers", "answers")}, "each part may be named once"),
        ({"told": ("gossip",)}, "told"),
        ({"adj_norm": "column"}, "adj_norm"),
        ({"num_layers": 1}, "num_layers"),
        ({"dim": 0}, "dim"),
        ({"hear": "never"}, "hear"),
        ({"neighbor_dropout": 0.5}, "neighbor_dropout"),
        ({"alone": {"dropout": 1.5}}, "option 'dropout' of Alone is 1.5: input should be less"),
        ({"alone": {"width": 8}}, "unknown option 'width' of Alone: Choose from dropout"),
        ({"alone": 0.5}, "'alone'"),
        ({"dropout": 1.5}, "'dropout'"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message) as raised:
        Limbeck(**options)
    assert "\n" not in str(raised.value)


def test_needs_a_teacher() -> None:
    view, _ = viewed()
    with pytest.raises(TeacherError, match="method 'limbeck' learns from a teacher: give one"):
        distill(view, None, SMALL)
