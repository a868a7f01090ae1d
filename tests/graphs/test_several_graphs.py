"""Several graphs as one, several labels per node: what is checked, hidden and cut."""

import dataclasses

import pytest
import torch
from torch_geometric.data import Batch, Data

from limbeck.errors import GraphError, OptionError, SplitError
from limbeck.graphs.checks import check_graph
from limbeck.graphs.load import load_graph
from limbeck.graphs.profile import profile_graph
from limbeck.graphs.splits import split_nodes
from limbeck.graphs.view import make_view
from limbeck.testing import small_graph, small_label_graph


def edges_between(graph: Data, batch: torch.Tensor) -> int:
    source, target = batch[graph.edge_index]
    return int((source != target).sum())


def test_labels_of_test_nodes_are_hidden():
    graph = small_label_graph()
    view = make_view(graph)
    assert view.num_classes == 4
    known = torch.cat([view.train, view.val])
    assert torch.equal(view.observed.y[known], graph.y[known])
    assert bool((view.observed.y[view.test_observed] == -1).all())
    assert torch.equal(view.everything.y, graph.y)


@pytest.mark.parametrize("setting", ["inductive", "cold-start"])
def test_unseen_nodes_are_whole_graphs(setting):
    graph = small_label_graph()
    assert edges_between(graph, graph.batch) == 0
    view = make_view(graph, setting)
    assert len(view.test_observed) == 0
    unseen = view.nodes[view.test_unseen]
    assert torch.equal(unseen.sort().values, graph.test_mask.nonzero().flatten())
    assert view.num_observed == 150
    assert torch.equal(view.observed.x, graph.x[:150])
    kept = graph.edge_index[:, (graph.edge_index < 150).all(0)]
    assert torch.equal(view.observed.edge_index, kept)


def test_no_test_node_of_several_graphs_is_in_production():
    graph = small_label_graph()
    with pytest.raises(OptionError, match="choose 'inductive' or 'cold-start'"):
        make_view(graph, "production")
    with pytest.raises(OptionError, match="test graphs of 'small-label-graph' are unseen"):
        make_view(graph, "inductive").with_setting("production")


def test_a_graph_of_two_parts_cannot_be_unseen():
    graph = small_label_graph()
    graph.test_mask = graph.test_mask.clone()
    graph.test_mask[-1] = False
    make_view(graph)
    with pytest.raises(SplitError, match="graph 5 of 'small-label-graph' has test nodes and"):
        make_view(graph, "inductive")
    del graph["batch"]
    assert len(make_view(graph, "inductive", unseen=0.5).test_unseen) == 14


def test_batch_must_number_every_node():
    graph = small_label_graph()
    graph.batch = graph.batch[:3]
    with pytest.raises(GraphError, match=r"'batch' .* shape \(3,\)"):
        make_view(graph, "inductive")


def test_a_pyg_batch_is_several_graphs():
    parts = []
    for part in ("train", "val", "test"):
        y = torch.tensor([[1, 0, 1], [0, 0, 0]], dtype=torch.int64)
        graph = Data(x=torch.eye(2), edge_index=torch.tensor([[0, 1], [1, 0]]), y=y)
        for mask in ("train", "val", "test"):
            graph[f"{mask}_mask"] = torch.full((2,), mask == part)
        parts.append(graph)
    graph = load_graph(Batch.from_data_list(parts))
    assert graph.info.task == "labels"
    assert graph.info.num_classes == 3
    assert graph.y.dtype == torch.float32
    assert make_view(graph, "inductive").test_unseen.tolist() == [4, 5]


def test_a_node_without_labels_is_in_no_part():
    graph = small_label_graph()
    graph.y = graph.y.clone()
    graph.y[7] = -1
    with pytest.raises(SplitError, match="node 7 .* training node but has no label"):
        split_nodes(graph, 0)
    graph.train_mask[7] = False
    assert 7 not in make_view(graph).train.tolist()


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.full((180, 4), 0.5), "row 0 .* neither ones and zeros nor all -1"),
        (torch.tensor([[1.0, 0, 0, -1]] * 180), "row 0 .* neither"),
        (torch.zeros(180, 4), "no node of it has a label"),
        (torch.ones(179, 4), r"expected torch.float32 \[180, C\]"),
        (torch.ones(180, 4, dtype=torch.int64), "torch.int64 of shape"),
        (torch.ones(180, 5), "5 labels per node, but 4 names"),
        (torch.tensor([0, 1] * 90), "its task is 'labels'"),
    ],
)
def test_each_fault_of_labels_has_its_sentence(y, message):
    graph = small_label_graph()
    graph.y = y
    with pytest.raises(GraphError, match=message):
        check_graph(graph, "it")


def test_labels_for_a_task_of_classes_are_refused():
    graph = small_label_graph()
    graph.info = dataclasses.replace(graph.info, task="classes")
    with pytest.raises(GraphError, match="its task is 'classes'"):
        check_graph(graph, "it")


def test_a_profile_is_of_classes():
    with pytest.raises(GraphError, match="several labels per node: a profile tells of classes"):
        profile_graph(small_label_graph())


def test_one_class_is_as_it_was():
    view = make_view(small_graph(), "inductive")
    assert view.observed.y.dtype == torch.int64
    assert len(view.test_unseen) == int(0.2 * 24)
