"""FF-G2M: the high-frequency loss by hand, limit cases of the whole."""

import math

import pytest
import torch
import torch.nn.functional as F

from limbeck.errors import OptionError, TeacherError
from limbeck.evaluation.distill import distill
from limbeck.graphs.view import make_view
from limbeck.methods.edges import neighbor_pairs
from limbeck.methods.ff_g2m import FFG2M, high_frequency_loss
from limbeck.methods.glnn import GLNN
from limbeck.teachers import knowledge_from
from limbeck.testing import check_method, small_graph
from limbeck.training import loop

SMALL = {"hidden_channels": 16, "max_epochs": 5, "dropout": 0.2}
EDGE = torch.tensor([[0], [1]])


def random_logits(rows, seed):
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("changes", [{}, {"label_weight": 0.4, "batch_size": 32, "norm": "batch"}])
def test_conforms(changes):
    check_method(FFG2M(**{**SMALL, **changes}))


def test_high_frequency_loss_by_hand():
    # the teacher's nodes differ by (ln 3, 0), so by (3/4, 1/4); the student's do not differ
    teacher = torch.tensor([[1.0, 5.0], [1.0 + math.log(3), 5.0]])
    student = torch.tensor([[2.0, -1.0], [2.0, -1.0]])
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(high_frequency_loss(student, teacher, EDGE, 1.0)) == pytest.approx(expected)
    # at temperature 2 the difference is (√3, 1) normalised; there is no factor of 4
    p = math.sqrt(3) / (math.sqrt(3) + 1)
    tempered = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    assert float(high_frequency_loss(student, teacher, EDGE, 2.0)) == pytest.approx(tempered)
    # a mean over edges: one more edge between equal nodes halves it
    three = torch.cat([teacher, teacher[1:]]), torch.cat([student, student[1:]])
    edges = torch.tensor([[0, 1], [1, 2]])
    assert float(high_frequency_loss(three[1], three[0], edges, 1.0)) == pytest.approx(expected / 2)


def test_high_frequency_loss_sees_differences_only():
    teacher, student = random_logits(6, 0), random_logits(6, 1)
    edges = torch.tensor([[0, 1, 2, 3], [4, 5, 0, 1]])
    value = high_frequency_loss(student, teacher, edges, 1.3)
    assert value > 0
    shift = torch.tensor([3.0, -1.0, 0.5])
    for other in (
        high_frequency_loss(student + shift, teacher - shift, edges, 1.3),
        high_frequency_loss(-student, teacher, edges, 1.3),  # |z_i - z_j|: a sign says nothing
        high_frequency_loss(student, teacher, edges.flip(0), 1.3),
    ):
        torch.testing.assert_close(other, value)
    assert float(high_frequency_loss(teacher, teacher, edges, 1.3)) == pytest.approx(0, abs=1e-6)


def test_high_frequency_loss_without_edges_is_zero_and_has_a_gradient():
    student = random_logits(4, 0).requires_grad_()
    value = high_frequency_loss(student, random_logits(4, 1), EDGE[:, :0], 1.0)
    assert float(value.detach()) == 0.0
    value.backward()
    assert torch.equal(student.grad, torch.zeros(4, 3))


def test_the_loss_of_the_first_step_is_that_of_the_paper(monkeypatch):
    view = make_view(small_graph(), "transductive", 0)
    teacher = random_logits(120, 0)
    method = FFG2M(hidden_channels=16, max_epochs=1, label_weight=0.3, temperature=1.4)
    seen = {}

    def look(module, losses, *others, **options):
        seen["loss"], seen["student"] = next(iter(losses(0))).detach(), module
        return loop.History()

    monkeypatch.setattr("limbeck.methods.base.fit", look)
    distill(view, knowledge_from(teacher), method)
    logits = seen["student"].lins[1](torch.relu(seen["student"].lins[0](view.observed.x))).detach()
    t = teacher[view.nodes]
    dense = neighbor_pairs(view, self_loops=False).to_dense()
    i, j = dense.nonzero().t()
    own = torch.arange(120)
    low = [
        float((p * (p / q).log()).sum())
        for p, q in zip(
            t.softmax(1)[torch.cat([j, own])], logits.softmax(1)[torch.cat([i, own])], strict=True
        )
    ]
    high = [
        float((p * (p / q).log()).sum())
        for p, q in zip(
            ((t[i] - t[j]).abs() / 1.4).softmax(1),
            ((logits[i] - logits[j]).abs() / 1.4).softmax(1),
            strict=True,
        )
    ]
    hard = float(F.cross_entropy(logits[view.train], view.observed.y[view.train]))
    expected = 0.3 * hard + 0.7 * (sum(low) / len(low) + sum(high) / len(high))
    assert float(seen["loss"]) == pytest.approx(expected, rel=1e-4)


def test_without_edges_ff_g2m_is_glnn():
    graph = small_graph()
    graph.edge_index = graph.edge_index[:, :0]
    view = make_view(graph, "transductive", 0)
    teacher = knowledge_from(random_logits(120, 0))
    options = {"hidden_channels": 16, "max_epochs": 20, "batch_size": None}
    full = distill(view, teacher, FFG2M(**options))
    glnn = distill(view, teacher, GLNN(**options))
    torch.testing.assert_close(full.answers.observed, glnn.answers.observed, rtol=1e-3, atol=1e-4)


def test_batches_learn_what_the_whole_graph_teaches():
    graph = small_graph()
    view = make_view(graph, "transductive", 0)
    perfect = knowledge_from(6.0 * F.one_hot(graph.y, 3).float())
    for batch_size in (None, 40):
        run = distill(view, perfect, FFG2M(hidden_channels=32, batch_size=batch_size), 0)
        assert run.scores["student"]["test_accuracy"] > 0.8


def test_what_is_refused():
    view = make_view(small_graph(), "transductive", 0)
    with pytest.raises(TeacherError, match="method 'ff-g2m' learns from a teacher: give one"):
        distill(view, None, FFG2M())
    with pytest.raises(OptionError, match="temperature"):
        FFG2M(temperature=0)
