"""R-GCN: its equation, its size, and its types as a scope of ABKD."""

import copy
from dataclasses import replace

import pytest
import torch
from torch_geometric.data import HeteroData
from torch_geometric.nn import HeteroConv, SAGEConv

import limbeck
from limbeck.errors import GraphError, OptionError, TeacherError
from limbeck.graphs.hetero import bare
from limbeck.graphs.load import load_graph
from limbeck.graphs.minimag import MiniMag, make_minimag
from limbeck.graphs.view import make_view
from limbeck.methods import make_method
from limbeck.methods.layers import TypedLayers
from limbeck.teachers.rgcn import RGCN, RGCNOptions, _mean, _means, mean_features
from limbeck.testing.teachers import check_teacher

TYPES = ("paper", "author", "institution", "field")
MAG = [
    ("author", "affiliated_with", "institution"),
    ("author", "writes", "paper"),
    ("paper", "cites", "paper"),
    ("paper", "has_topic", "field"),
    ("institution", "rev_affiliated_with", "author"),
    ("paper", "rev_writes", "author"),
    ("field", "rev_has_topic", "paper"),
]


@pytest.fixture(scope="module")
def view():
    size = MiniMag(400, institutions=0.05, areas=2, schools=2, classes=3)
    return make_view(load_graph(make_minimag(size)), "transductive", 0)


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("layers", "hidden", "count"), [(3, 512, 5_575_540), (2, 32, 169_428)])
def test_the_published_sizes_on_mag(layers, hidden, count):
    with torch.device("meta"):
        network = RGCN(dict.fromkeys(TYPES, 128), hidden, 349, MAG, "paper", layers)
    assert parameters(network) == count
    assert network.num_table_parameters == 0


def test_tables_are_counted_apart():
    counts = {"author": 1_134_649, "institution": 8_740, "field": 59_965}
    with torch.device("meta"):
        network = RGCN(dict.fromkeys(TYPES, 128), 32, 349, MAG, "paper", 2, tables=counts)
    assert network.num_table_parameters == 154_029_312
    assert parameters(network) - network.num_table_parameters == 169_428


def test_it_is_what_pyg_computes(view):
    hetero = view.observed.hetero
    network = RGCN.for_view(view, 8, num_layers=2).eval()
    h = dict(hetero.collect("x"))
    for i, conv in enumerate(network.convs):
        theirs = HeteroConv(
            {
                relation: SAGEConv(
                    (h[relation[0]].shape[1], h[relation[2]].shape[1]),
                    lin.out_features,
                    root_weight=False,
                    bias=False,
                )
                for relation, lin in zip(conv.relations, conv.lins, strict=True)
            },
            aggr="sum",
        )
        for relation, lin in zip(conv.relations, conv.lins, strict=True):
            theirs.convs[relation].lin_l.weight.data = lin.weight.data
        messages = theirs(h, hetero.collect("edge_index"))
        roots = dict(zip(conv.types, conv.roots, strict=True))
        h = {kind: roots[kind](h[kind]) + messages[kind] for kind in h}
        h = {kind: rows.relu() for kind, rows in h.items()} if i == 0 else h
    torch.testing.assert_close(network(view.observed.x, hetero), h["paper"], rtol=1e-4, atol=1e-5)
    typed = network.typed_layers(view.observed.x, network.prepare(hetero, view.num_observed))
    torch.testing.assert_close(typed["logits"]["author"], h["author"], rtol=1e-4, atol=1e-5)


def test_gradients_through_the_transpose_are_those_of_the_product(view):
    mean = _means(view.observed.hetero, MAG[1])
    h = torch.randn(mean[0].shape[1], 3, requires_grad=True)
    weight = torch.randn(mean[0].shape[0], 3)
    ours = torch.autograd.grad((_mean(mean, h) * weight).sum(), h)[0]
    theirs = torch.autograd.grad(((mean[0].to_dense() @ h) * weight).sum(), h)[0]
    torch.testing.assert_close(ours, theirs)


def test_an_empty_relation_changes_nothing(view):
    hetero = bare(view.observed.hetero, "paper", view.observed.x)
    network = RGCN.for_view(view, 8, num_layers=2).eval()
    before = network(view.observed.x, hetero)
    more = ("field", "loves", "paper")
    hetero[more].edge_index = torch.empty((2, 0), dtype=torch.int64)
    widths = dict.fromkeys(hetero.node_types, 32)
    other = RGCN(widths, 8, 3, [*network.relations, more], "paper", 2).eval()
    other.load_state_dict({**other.state_dict(), **network.state_dict()})
    torch.testing.assert_close(other(view.observed.x, hetero), before)


def test_names_of_types_do_not_matter():
    graph = HeteroData()
    graph["type"].x = torch.eye(3)  # names that a module cannot have
    graph["a.b"].x = torch.eye(3)
    graph["type", "keys", "a.b"].edge_index = torch.tensor([[0], [1]])
    graph["a.b", "x.y", "type"].edge_index = torch.tensor([[1], [2]])
    graph.target = "type"
    network = RGCN({"type": 3, "a.b": 3}, 4, 2, graph.edge_types, "type")
    assert network(graph["type"].x, graph).shape == (3, 2)


def test_features_of_a_type_without_any_are_means_of_neighbours():
    graph = HeteroData()
    graph.target = "film"
    graph["film"].x = torch.tensor([[1.0, 0], [3, 0], [0, 4]])
    graph["director"].num_nodes, graph["studio"].num_nodes = 3, 1
    graph["film", "by", "director"].edge_index = torch.tensor([[0, 1, 2], [0, 0, 1]])
    graph["director", "at", "studio"].edge_index = torch.tensor([[0, 1], [0, 0]])
    filled = mean_features(graph, {"director", "studio"})
    assert filled["director"].tolist() == [[2, 0], [0, 4], [0, 0]]
    assert filled["studio"].tolist() == [[1, 2]]
    graph["poster"].num_nodes = 1
    with pytest.raises(GraphError, match="'poster' has no features and no relation into it"):
        mean_features(graph, {"poster"})


def test_the_battery_of_teachers():
    check_teacher(RGCNOptions(hidden_channels=16, num_layers=2, max_epochs=40))


def test_it_is_not_trained_on_samples():
    with pytest.raises(OptionError, match="fan_out"):
        RGCNOptions(fan_out=(5,))


def test_another_graph_is_refused(view):
    network = RGCN.for_view(view, 8)
    with pytest.raises(OptionError, match="build it for this very graph"):
        network(view.observed.x, view.observed.edge_index)


# --- as a student, and its types as a scope ----------------------------------------------------

STUDENT = {"student": "rgcn", "hidden_channels": 4, "num_layers": 2, "max_epochs": 2}


@pytest.fixture(scope="module")
def teacher(view):
    return limbeck.fit_teacher(view, "rgcn", hidden_channels=8, max_epochs=3)


@pytest.mark.parametrize("preset", ["abkd-v1", "stride", "abkd-robust"])
@pytest.mark.parametrize("types", ["merged", "separate"])
def test_all_types_are_compared(view, teacher, preset, types):
    options = {**STUDENT, "preset": preset, "types": types, "log_every": 1}
    run = limbeck.distill(view, teacher, "abkd", scope="all", **options)
    entry = run.history.notes[0]
    attention = torch.tensor(entry["attention"])
    assert attention.shape == (3, 2)
    torch.testing.assert_close(attention.sum(1), torch.ones(3))
    assert entry["auxiliary"] == pytest.approx(entry["auxiliary"])  # not NaN


def test_merged_types_are_all_nodes_as_one(view, teacher):
    merged = make_method("abkd", "", **STUDENT, scope="all", types="merged")
    whole = TypedLayers(merged, teacher.knowledge, view).teacher
    parts = TypedLayers(merged.replace(types="separate"), teacher.knowledge, view).teacher
    total = sum(view.observed.hetero.num_nodes_dict.values())
    assert [len(layer) for layer in whole[0]] == [total] * 3
    assert [len(part) for part in parts] == [2, 2, 2, 3]  # only papers have a last layer
    assert torch.equal(parts[-1][-1], teacher.knowledge.logits)


def test_a_type_without_nodes_is_skipped(view, teacher):
    layers = copy.deepcopy(teacher.knowledge.typed_layers)
    for each in layers.values():
        each["field"] = each["field"][:0]
    knowledge = replace(teacher.knowledge, ask_typed=lambda: layers)
    method = make_method("abkd", "", **STUDENT, scope="all")
    assert TypedLayers(method, knowledge, view).kinds == ["author", "institution", "paper"]


def test_scope_all_needs_types(view):
    with pytest.raises(OptionError, match="scope 'all' is for the method 'abkd'"):
        make_method("kd", "", **STUDENT, scope="all")
    with pytest.raises(OptionError, match="types 'merged', other pairs"):
        make_method("abkd", "", **STUDENT, scope="all", pairs="last-layer")
    teacher = limbeck.fit_teacher(view, "gcn", max_epochs=1)
    with pytest.raises(TeacherError, match="the teacher reads none"):
        limbeck.distill(view, teacher, "abkd", scope="all", **STUDENT)
