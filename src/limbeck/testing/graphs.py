"""Small graphs whose answers are learnable, for conformance tests."""

from __future__ import annotations

import numpy as np
import torch
from torch_geometric.data import Data
from torch_geometric.utils import stochastic_blockmodel_graph

from limbeck.graphs.info import GraphInfo
from limbeck.graphs.sparse import to_csr


def small_graph(
    *, seed: int = 0, num_classes: int = 3, per_class: int = 40, sparse: bool = False
) -> Data:
    """A planted partition with noisy class features, and one isolated node.

    Args:
        seed: Draws edges and features.
        num_classes: Number of classes ``C``.
        per_class: Nodes per class.
        sparse: Store the features as a binary CSR matrix instead of dense numbers.

    Returns:
        A graph with ``info`` whose seed picks a random 60/20/20 split.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        probabilities = torch.full((num_classes, num_classes), 0.01)
        probabilities.fill_diagonal_(0.15)
        edge_index = stochastic_blockmodel_graph([per_class] * num_classes, probabilities)
        y = torch.arange(num_classes).repeat_interleave(per_class)
        centre = torch.nn.functional.one_hot(y, 4 * num_classes).float()
        x = centre + 0.6 * torch.randn(len(y), 4 * num_classes)
    isolated = len(y) - 1
    edge_index = edge_index[:, (edge_index != isolated).all(0)]
    graph = Data(x=to_csr((x > 0.7).float()) if sparse else x, edge_index=edge_index, y=y)
    graph.info = GraphInfo(
        name="small-graph",
        source="limbeck.testing",
        split="random",
        class_names=tuple(f"class {i}" for i in range(num_classes)),
        node_ids=np.arange(len(y)),
    )
    return graph
