from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from limbeck.errors import GraphError
from limbeck.graphs.checks import check_graph
from limbeck.graphs.info import GraphInfo
from limbeck.graphs.sparse import to_csr


def four_nodes(**changes: Any) -> Data:
    """A path of four nodes in two classes."""
    fields = {
        "x": torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [0.0, 4.0]]),
        "edge_index": torch.tensor([[0, 1, 2], [1, 2, 3]]),
        "y": torch.tensor([0, 1, -1, 0]),
    }
    return Data(**{**fields, **changes})


def info(num_nodes: int = 4, num_classes: int = 2) -> GraphInfo:
    ids = np.array([f"n{i}" for i in range(num_nodes)], dtype=object)
    names = tuple(map(str, range(num_classes)))
    return GraphInfo("path", "by hand", "random", names, ids)


def test_sound_graph_passes_dense_and_sparse() -> None:
    check_graph(four_nodes(info=info()), "path")
    check_graph(four_nodes(x=to_csr(four_nodes().x)), "path")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("sparse", [False, True])
def test_feature_that_is_not_finite_is_named(value: float, sparse: bool) -> None:
    x = four_nodes().x.clone()
    x[2, 0] = value
    graph = four_nodes(x=to_csr(x) if sparse else x)
    with pytest.raises(GraphError, match=rf"feature 0 of node 2 of path is {value}"):
        check_graph(graph, "path")
    graph.info = info()
    with pytest.raises(GraphError, match="of node 'n2' of path"):
        check_graph(graph, "path")


def test_large_finite_features_pass() -> None:
    check_graph(four_nodes(x=torch.full((4, 2), 3e38)), "path")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": None}, "no node features"),
        ({"x": torch.zeros(4)}, "expected torch.float32"),
        ({"x": torch.zeros(4, 2, dtype=torch.float64)}, "torch.float64"),
        ({"x": torch.zeros(4, 0)}, "at least one row and column"),
        ({"edge_index": None}, "path has no edges"),
        ({"edge_index": torch.zeros(2, 0, dtype=torch.int64)}, "path has no edges"),
        ({"edge_index": torch.tensor([[0], [4]])}, "names node 4, expected 0 to 3"),
        ({"edge_index": torch.tensor([[0], [-1]])}, "names node -1, expected 0 to 3"),
        ({"edge_index": torch.tensor([[0], [1], [2]])}, r"expected torch.int64 \[2, E\]"),
        ({"edge_index": torch.tensor([[0.0], [1.0]])}, "torch.float32"),
        ({"y": None}, "path has no labels"),
        ({"y": torch.tensor([0, 1])}, "one class per node"),
        ({"y": torch.zeros(4, 3)}, "no node of path has a label"),
        ({"y": torch.zeros(4, 1)}, "one class per node"),
        ({"y": torch.tensor([0, 1, -2, 0])}, "label -2"),
        ({"y": torch.tensor([-1, -1, -1, -1])}, "no node of path has a label"),
        ({"y": torch.tensor([1, 1, -1, 1])}, "are one class"),
        ({"info": info(num_nodes=3)}, "4 nodes but 3 node ids"),
        ({"info": info(num_classes=1)}, "a label 1, but 1 classes"),
    ],
)
def test_each_fault_has_its_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        check_graph(four_nodes(**changes), "path")
