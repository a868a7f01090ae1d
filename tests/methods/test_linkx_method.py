"""LINKX on labels alone: a control of methods that read neighbours."""

import torch

from limbeck.evaluation.distill import distill
from limbeck.graphs.view import make_view
from limbeck.methods.linkx import LINKXOnLabels
from limbeck.students.linkx import LINKX
from limbeck.testing import check_method, small_graph
from limbeck.testing.methods import same_weights

SMALL = LINKXOnLabels(hidden_channels=16, max_epochs=6)


def test_conforms() -> None:
    check_method(SMALL)
    check_method(SMALL.replace(batch_size=16, num_layers=1))


def test_a_teacher_changes_nothing() -> None:
    view = make_view(small_graph(), "transductive", 0)
    alone = distill(view, None, SMALL)
    assert isinstance(alone.student, LINKX)
    assert same_weights(alone, distill(view, torch.randn(120, 3), SMALL))


def test_reads_structure_that_features_do_not_tell() -> None:
    graph = small_graph()
    graph.x = torch.zeros_like(graph.x)
    run = distill(make_view(graph, "transductive", 0), None, SMALL.replace(max_epochs=100))
    assert run.scores["student"]["test_accuracy"] > 0.6
