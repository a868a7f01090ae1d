"""The one door: names, folders, PyG Data."""

import pytest
import torch
from torch_geometric.data import Data, HeteroData

from limbeck.errors import GraphError, OptionError
from limbeck.graphs.load import load_graph
from limbeck.graphs.view import make_view
from limbeck.testing import small_graph


def plain() -> Data:
    graph = small_graph()
    return Data(x=graph.x.double(), edge_index=graph.edge_index, y=graph.y)


def test_a_pyg_graph_gets_what_limbeck_needs_and_is_not_changed():
    given = plain()
    graph = load_graph(given)
    assert graph.x.dtype == torch.float32
    assert graph.info.split == "random"
    assert graph.info.class_names == ("0", "1", "2")
    assert given.x.dtype == torch.float64
    assert "info" not in given
    assert load_graph(graph).info is graph.info
    assert make_view(graph, "inductive", 0).num_classes == 3


@pytest.mark.parametrize("columns", [1, 4])
def test_masks_become_the_split(columns):
    given = plain()
    for i, name in enumerate(("train_mask", "val_mask", "test_mask")):
        mask = (torch.arange(120) % 3 == i).unsqueeze(1).repeat(1, columns)
        given[name] = mask[:, 0] if columns == 1 else mask
    graph = load_graph(given)
    assert graph.info.split == ("fixed" if columns == 1 else "columns")
    assert make_view(graph, "transductive", 2).train.tolist() == list(range(0, 120, 3))


def test_half_a_split_is_refused():
    given = plain()
    given.train_mask = torch.ones(120, dtype=torch.bool)
    with pytest.raises(GraphError, match="has train_mask only: give train_mask, val_mask"):
        load_graph(given)


def test_kinds_that_cannot_be_distilled():
    with pytest.raises(GraphError, match="has labels 'y' for no type of nodes: give them to"):
        load_graph(HeteroData(a={"x": torch.zeros(2, 1)}, b={"x": torch.zeros(2, 1)}))


def test_unknown_sources(tmp_path):
    with pytest.raises(OptionError, match="unknown data set 'wordnett': did you mean 'wordnet'"):
        load_graph("wordnett")
    with pytest.raises(GraphError, match="no such folder"):
        load_graph(tmp_path / "nothing")
    with pytest.raises(OptionError, match="'id' describes tables, but the graph is the data set"):
        load_graph("digits", id="name")
