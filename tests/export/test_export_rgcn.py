"""A student that is an R-GCN as a bundle: known nodes as scored, new ones as without edges."""

from pathlib import Path

import numpy as np
import pytest
import torch

import limbeck
from limbeck.errors import OptionError
from limbeck.export.rgcn import export_rgcn, without_edges
from limbeck.graphs.minimag import MiniMag, make_minimag
from limbeck.students.gnn import GNNStudent
from limbeck.students.inputs import NodeInputs
from limbeck.teachers.rgcn import RGCN


@pytest.fixture(scope="module")
def graph():
    return make_minimag(MiniMag(300, institutions=0.05, areas=2, schools=2, classes=3))


@pytest.mark.parametrize("setting", ["transductive", "inductive"])
def test_known_nodes_are_answered_as_scored(graph, setting, tmp_path: Path):
    view = limbeck.view(limbeck.load_graph(graph), setting, 0)
    run = limbeck.distill(
        view, None, "plain", student="rgcn", num_layers=3, hidden_channels=6, max_epochs=5
    )
    bundle = limbeck.load(run.save(tmp_path / "student"))
    assert [spec.name for spec in bundle.manifest.inputs] == ["x"]
    ids = view.info.node_ids
    answers = bundle.predict_logits(ids.tolist())
    scored = torch.cat([run.answers.observed, run.answers.unseen])[view.nodes.argsort()]
    np.testing.assert_allclose(answers, scored.numpy(), atol=1e-4, rtol=1e-4)
    # new nodes with the features of known ones: as those would be without edges
    x = view.graph.x
    alone = bundle.predict_logits(x=x.numpy())
    assert not np.allclose(alone, answers, atol=1e-2)
    if view.has_unseen:
        isolated = run.answers.isolated.numpy()
        unseen = view.nodes[view.num_observed :].numpy()
        np.testing.assert_allclose(alone[unseen], isolated, atol=1e-4, rtol=1e-4)
    card = (tmp_path / "student" / "README.md").read_text(encoding="utf-8")
    assert "known nodes were answered with those of the graph of all types" in card


def test_an_ordinary_graph_is_one_of_one_type(tmp_path: Path):
    view = limbeck.view(limbeck.load_graph("digits"), "transductive", 0)
    run = limbeck.distill(
        view, None, "plain", student="rgcn", num_layers=2, hidden_channels=8, max_epochs=3
    )
    bundle = limbeck.load(run.save(tmp_path / "digits"))
    np.testing.assert_allclose(
        bundle.predict_logits(view.info.node_ids.tolist()),
        run.answers.observed.numpy(),
        atol=1e-4,
        rtol=1e-4,
    )


def test_one_layer_without_edges_is_a_linear_map():
    torch.manual_seed(0)
    relations = [("a", "to", "b"), ("b", "to", "a")]
    gnn = RGCN({"a": 3, "b": 4}, 5, 2, relations, "b", num_layers=1)
    rows = torch.randn(6, 4)
    root = gnn.convs[0].roots[1]
    torch.testing.assert_close(without_edges(gnn)(NodeInputs(rows)), root(rows))


def test_without_a_graph_there_is_no_answer():
    student = GNNStudent(RGCN({"a": 3}, 5, 2, [("a", "to", "a")], "a"), 4)
    with pytest.raises(OptionError, match="its inputs have no such graph"):
        export_rgcn(student, NodeInputs(torch.randn(4, 3)))
