"""Small graphs whose answers are learnable, for conformance tests."""

from __future__ import annotations

import numpy as np
import torch
from torch_geometric.data import Batch, Data
from torch_geometric.utils import stochastic_blockmodel_graph, to_undirected

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


def small_label_graph(
    *, seed: int = 0, num_labels: int = 4, num_graphs: int = 6, nodes: int = 30
) -> Data:
    """Several graphs as one, whose nodes have several labels each, as PPI's do.

    A node is in each of ``num_labels`` groups with a chance of 0.4, and more groups in common make
    an edge likelier. The last graph is for test, the one before it for validation.

    Args:
        seed: Draws groups, edges and features.
        num_labels: Number of labels ``C``.
        num_graphs: Number of graphs, at least 3.
        nodes: Nodes of each graph.

    Returns:
        A graph with ``info``, masks by graph, and ``batch``, the graph of each node.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = []
        for number in range(num_graphs):
            y = (torch.rand(nodes, num_labels) < 0.4).float()
            chance = (0.02 + 0.15 * (y @ y.t())).clamp(max=1).triu(1)
            edge_index = to_undirected((torch.rand(nodes, nodes) < chance).nonzero().t())
            noise = 0.7 * torch.randn(nodes, 3 * num_labels)
            x = torch.nn.functional.pad(y, (0, 2 * num_labels)) + noise
            parts.append(Data(x=x, edge_index=edge_index, y=y, num_nodes=nodes))
            part = {num_graphs - 1: "test", num_graphs - 2: "val"}.get(number, "train")
            for mask in ("train", "val", "test"):
                parts[-1][f"{mask}_mask"] = torch.full((nodes,), mask == part)
    graph = Data(**Batch.from_data_list(parts).to_dict())
    del graph["ptr"]
    graph.info = GraphInfo(
        name="small-label-graph",
        source="limbeck.testing",
        split="fixed",
        class_names=tuple(f"label {i}" for i in range(num_labels)),
        node_ids=np.arange(num_graphs * nodes),
        task="labels",
    )
    return graph
