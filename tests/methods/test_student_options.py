"""Methods whose student may be a GNN: what they build, and the battery over each network."""

from collections.abc import Iterator
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.errors import OptionError
from limbeck.evaluation.distill import distill
from limbeck.evaluation.protocol import predict_logits
from limbeck.graphs.view import make_view
from limbeck.methods.base import Distilled, validation_accuracy
from limbeck.methods.losses import soft_target_loss
from limbeck.methods.student_options import StudentOptions
from limbeck.students.gnn import GNNStudent, full_batch
from limbeck.students.mlp import MLP
from limbeck.students.sa_mlp import SAMLP
from limbeck.teachers.gat import GAT
from limbeck.teachers.gcn import GCN
from limbeck.teachers.gcnii import GCNII
from limbeck.teachers.sage import SAGE
from limbeck.testing import check_method, small_graph
from limbeck.training.loop import seeded

KINDS = {
    "mlp": MLP,
    "sa-mlp": SAMLP,
    "gcn": GCN,
    "gat": GAT,
    "sage": SAGE,
    "gcnii": GCNII,
}


class SoftLabels(StudentOptions):
    """Labels and soft labels of all observed nodes at once, for any student."""

    name: ClassVar[str] = "soft-labels"
    title: ClassVar[str] = "soft labels"
    paper: ClassVar[str] = "a test"

    def distill(self, view, knowledge, *, checkpoint=None, progress=None) -> Distilled:
        student, inputs = self.build(view)
        y = view.observed.y

        def losses(epoch: int) -> Iterator[Tensor]:
            logits = student.layers(inputs.observed)["logits"]
            hard = F.cross_entropy(logits[view.train], y[view.train])
            yield hard + soft_target_loss(logits, knowledge.logits)

        validate = validation_accuracy(student, inputs.observed, view)
        history = self.fit(student, losses, validate, checkpoint=checkpoint, progress=progress)
        return Distilled(student, history, inputs)


@pytest.mark.parametrize("student", KINDS)
def test_conforms(student: str) -> None:
    check_method(SoftLabels(student=student, hidden_channels=8, max_epochs=3, dropout=0.2))


@pytest.mark.parametrize("student", KINDS)
def test_what_is_built(student: str) -> None:
    view = make_view(small_graph(), "inductive", 0)
    method = SoftLabels(student=student, hidden_channels=8, num_layers=3, dropout=0.4)
    with seeded(0):
        built, inputs = method.build(view)
    inner = built.gnn if isinstance(built, GNNStudent) else built
    assert type(inner) is KINDS[student]
    assert full_batch(inputs.observed) == isinstance(built, GNNStudent)
    assert (inner.head if student == "sa-mlp" else inner).dropout == 0.4
    outputs = built.layers(inputs.observed)
    widths = {"gcnii": 4, "sa-mlp": 2}
    assert len(outputs) == widths.get(student, 3)
    assert outputs["hidden1"].shape == (view.num_observed, 16 if student == "sa-mlp" else 8)
    assert outputs["logits"].shape == (view.num_observed, 3)


def test_options_reach_the_network() -> None:
    view = make_view(small_graph(), "transductive", 0)
    options = {"hidden_channels": 12, "heads": 3, "out_heads": 2, "residual": True}
    method = SoftLabels(student="gat", exposed="pre-activation", input_dropout=0.3, **options)
    gat = method.build_gnn(view)
    assert [conv.heads for conv in gat.convs] == [3, 2]
    assert [conv.res is not None for conv in gat.convs] == [False, True]
    assert (gat.dropout, gat.input_dropout, gat.exposed) == (0.0, 0.3, "pre-activation")
    assert len(SoftLabels(student="sage", root_weight=True).build_gnn(view).roots) == 2
    mlp, _ = SoftLabels(student="mlp", exposed="pre-activation").build(view)
    assert mlp.exposed == "pre-activation"


def test_heads_that_do_not_divide_the_width_are_refused_for_a_gat_only() -> None:
    with pytest.raises(OptionError, match="hidden_channels 7 is not a multiple of heads 2"):
        SoftLabels(student="gat", hidden_channels=7)
    assert SoftLabels(student="gcn", hidden_channels=7).hidden_channels == 7


def test_an_unknown_student_is_refused() -> None:
    with pytest.raises(OptionError, match=r"option 'student' of SoftLabels is 'rnn': input should"):
        SoftLabels(student="rnn")


# --- scores of a GNN student ------------------------------------------------------------------


@pytest.fixture(scope="module")
def run():
    view = make_view(small_graph(), "inductive", 0, unseen=0.5)
    perfect = 8.0 * F.one_hot(view.graph.y, 3).float()
    method = SoftLabels(student="gcn", hidden_channels=16, max_epochs=20)
    return distill(view, perfect, method)


def right(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(1) == labels).float().mean())


def test_each_setting_is_scored_on_its_own_graph(run) -> None:
    view, gnn = run.view, run.student.gnn
    known, full, alone = view.observed, view.everything, view.without_new_edges
    y = full.y
    with torch.no_grad():
        seen = right(gnn(known.x, known.edge_index)[view.test_observed], y[view.test_observed])
        new = view.test_unseen
        unseen = right(gnn(full.x, full.edge_index)[new], y[new])
        isolated = right(gnn(full.x, alone.edge_index)[new], y[new])
    expected = {
        "inductive": unseen,
        "production": 0.5 * seen + 0.5 * unseen,
        "cold-start": isolated,
    }
    assert unseen > isolated  # else the test would not tell them apart
    for setting, accuracy in expected.items():
        scores = run.in_setting(setting).scores["student"]
        assert scores["test_accuracy"] == pytest.approx(accuracy, abs=1e-6)


def test_the_graph_is_passed_once_however_many_nodes_are_asked(run, monkeypatch) -> None:
    monkeypatch.setattr("limbeck.evaluation.protocol.EVAL_BLOCK", 4)
    passes = []
    layers = type(run.student.gnn).layers
    monkeypatch.setattr(
        type(run.student.gnn), "layers", lambda *given: (passes.append(1), layers(*given))[1]
    )
    logits = predict_logits(run.student, run.inputs.observed)
    assert len(passes) == 1
    assert torch.equal(logits, run.answers.observed)


def test_the_bundle_is_given_the_graph_in_its_own_order(run) -> None:
    inputs = run._known_inputs()
    graph = run.view.graph
    assert torch.equal(inputs.x, graph.x)
    assert torch.equal(inputs.graph.x, graph.x)
    assert torch.equal(inputs.graph.edge_index, graph.edge_index)
    assert torch.equal(inputs.graph.nodes, torch.arange(len(graph.x)))
    # the same answers as on the view's full graph, whose nodes are in another order
    with torch.no_grad():
        theirs = run.student.gnn(run.view.everything.x, run.view.everything.edge_index)
        ours = run.student(inputs)
    torch.testing.assert_close(ours[run.view.nodes], theirs, rtol=1e-4, atol=1e-5)
