"""Networks of published sizes, to the parameter; and new options that leave old names alone."""

import copy

import pytest
import torch
from torch_geometric.nn import SAGEConv

from limbeck.graphs.view import make_view
from limbeck.teachers import fit_teacher, teacher_options
from limbeck.teachers.fit import train
from limbeck.teachers.gat import GAT
from limbeck.teachers.gcn import GCN
from limbeck.teachers.gcnii import GCNII
from limbeck.teachers.sage import SAGE
from limbeck.testing import check_teacher, small_graph
from limbeck.training.loop import seeded

CORA, CITESEER, PUBMED, PPI, ARXIV = (1433, 7), (3703, 6), (500, 3), (50, 121), (128, 40)

EDGES = torch.tensor([[0, 1, 2, 1], [1, 0, 1, 1]])


def size(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("num_layers", "width", "heads", "out_heads", "parameters"),
    [
        (2, 4 * 256, 4, 6, 923_173),
        (3, 4 * 256, 4, 6, 3_023_397),
        (4, 4 * 256, 4, 6, 5_123_621),
        (5, 2 * 68, 2, 2, 169_381),
    ],
)
def test_gat_of_mskd(num_layers, width, heads, out_heads, parameters):
    features, classes = PPI
    gat = GAT(features, width, classes, num_layers, heads, out_heads=out_heads, residual=True)
    assert size(gat) == parameters


@pytest.mark.parametrize(
    ("data", "parameters"),
    [
        (PPI, (44_153, 109_945, 175_737, 25_893)),
        (CORA, (368_903, 434_695, 500_487, 112_071)),
        (CITESEER, (949_766, 1_015_558, 1_081_350, 266_362)),
        (PUBMED, (129_027, 194_819, 260_611, 48_351)),
    ],
)
def test_gcn_of_mskd(data, parameters):
    features, classes = data
    shapes = [(256, 2), (256, 3), (256, 4), (68, 5)]
    assert tuple(size(GCN(features, h, classes, layers)) for h, layers in shapes) == parameters


@pytest.mark.parametrize(
    ("data", "width", "num_layers", "parameters"),
    [
        (PUBMED, 64, 64, 294_403),
        (PUBMED, 4, 4, 2_083),
        (CORA, 64, 64, 354_375),
        (CORA, 4, 4, 5_835),
        (CITESEER, 64, 64, 499_590),
        (CITESEER, 4, 4, 14_910),
    ],
)
def test_gcnii_of_abkd(data, width, num_layers, parameters):
    features, classes = data
    assert size(GCNII(features, width, classes, num_layers)) == parameters


def test_students_on_arxiv():
    features, classes = ARXIV
    assert size(GCN(features, 256, classes, 2, "batch")) == 43_816
    assert size(SAGE(features, 256, classes, 2, "batch", root_weight=True)) == 86_824


def test_64_layers_are_recorded_one_by_one():
    torch.manual_seed(0)
    gcnii = GCNII(6, 8, 3, 64).eval()
    outputs = gcnii.layers(torch.randn(4, 6), gcnii.prepare(EDGES, 4))
    assert list(outputs) == [f"hidden{i}" for i in range(1, 65)] + ["logits"]
    assert all(torch.isfinite(output).all() for output in outputs.values())


def test_sage_with_a_root_weight_is_pygs():
    torch.manual_seed(0)
    ours = SAGE(3, 5, 2, root_weight=True).eval()
    theirs = [SAGEConv(3, 5), SAGEConv(5, 2)]
    for i, conv in enumerate(theirs):
        conv.lin_l.load_state_dict(ours.lins[i].state_dict())
        conv.lin_r.load_state_dict(ours.roots[i].state_dict())
    x = torch.randn(4, 3)
    h = torch.relu(theirs[0](x, EDGES))
    expected = theirs[1](h, EDGES)
    torch.testing.assert_close(ours(x, EDGES), expected)
    torch.testing.assert_close(ours(x.to_sparse_csr(), EDGES), expected)


def test_gat_by_its_equation():
    torch.manual_seed(0)
    gat = GAT(3, 4, 2, num_layers=2, heads=2, out_heads=3, residual=True).eval()
    x = torch.randn(4, 3)
    loops = torch.arange(4).expand(2, -1)
    looped = torch.cat([EDGES[:, EDGES[0] != EDGES[1]], loops], dim=1)

    def heads_of(conv, h, heads):
        g = conv.lin(h).view(4, heads, -1)
        source, target = (g * conv.att_src).sum(-1), (g * conv.att_dst).sum(-1)
        out = torch.zeros_like(g)
        for i in range(4):
            into = looped[0, looped[1] == i]
            score = torch.nn.functional.leaky_relu(source[into] + target[i], 0.2)
            out[i] = (score.softmax(0).unsqueeze(-1) * g[into]).sum(0)
        return out

    first, last = gat.convs
    u = heads_of(first, x, 2).flatten(1) + first.bias
    z = heads_of(last, torch.nn.functional.elu(u), 3).mean(1)
    z = z + last.res(torch.nn.functional.elu(u)) + last.bias
    torch.testing.assert_close(gat(x, EDGES), z)
    gat.exposed = "pre-activation"
    torch.testing.assert_close(gat.layers(x, EDGES)["hidden1"], u)


@pytest.mark.parametrize("name", ["sage", "gcn", "gat", "gcnii"])
def test_new_options_are_written_down_only_where_they_are_used(name):
    plain = teacher_options(name, "cpf-cora")
    new = {"exposed", "out_heads", "residual", "root_weight", "conv_weight_decay"}
    assert not new & set(plain.model_dump())  # or every stored teacher would be trained anew
    shown = teacher_options(name, "cpf-cora", exposed="pre-activation")
    assert shown.model_dump()["exposed"] == "pre-activation"
    assert type(shown)(**shown.model_dump()) == shown


def test_wide_gat_and_sage_with_a_root_conform():
    check_teacher(
        teacher_options(
            "gat",
            "small-graph",
            hidden_channels=16,
            heads=4,
            out_heads=6,
            residual=True,
            dropout=0.2,
            attention_dropout=0.0,
        )
    )
    check_teacher(
        teacher_options("sage", "small-graph", root_weight=True, fan_out=(), max_epochs=60)
    )


def test_a_teacher_shows_what_lies_in_front_of_its_activations(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path))
    view = make_view(small_graph(), "transductive", 0)
    behind = fit_teacher(view, "gcn", 0, max_epochs=5).knowledge.hidden["hidden1"]
    shown = fit_teacher(view, "gcn", 0, max_epochs=5, exposed="pre-activation")
    front = shown.knowledge.hidden["hidden1"]
    assert bool((front < 0).any())
    assert torch.equal(front.relu(), behind)


def test_graph_layers_of_a_gcnii_decay_by_themselves():
    view = make_view(small_graph(), "transductive", 0)
    sizes = {"hidden_channels": 8, "num_layers": 4, "dropout": 0.0, "max_epochs": 4, "lr": 0.01}
    states = []
    for decay in (None, 0.05):
        options = teacher_options("gcnii", "x", conv_weight_decay=decay, **sizes)
        with seeded(0):
            module = options.build(view)
            start = copy.deepcopy(module)
            train(module, view, options)
        states.append(module)
    # the same by hand: Adam with a group for the graph layers
    grouped = start
    groups = [
        {"params": list(grouped.convs.parameters()), "weight_decay": 0.05},
        {"params": [*grouped.first.parameters(), *grouped.last.parameters()]},
    ]
    optimizer = torch.optim.Adam(groups, lr=0.01, weight_decay=5e-4)
    graph = view.observed
    best, best_state = -1.0, None
    for _ in range(4):
        grouped.train()
        optimizer.zero_grad()
        logits = grouped(graph.x, graph.edge_index)[view.train]
        torch.nn.functional.cross_entropy(logits, graph.y[view.train]).backward()
        optimizer.step()
        with torch.no_grad():
            guess = grouped.eval()(graph.x, graph.edge_index)[view.val].argmax(1)
        score = float((guess == graph.y[view.val]).float().mean())
        if score >= best:
            best, best_state = score, copy.deepcopy(grouped.state_dict())
    for name, value in states[1].state_dict().items():
        torch.testing.assert_close(value, best_state[name], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(states[0].convs[0].weight1, states[1].convs[0].weight1)
