"""Our teachers: each against its equation, and all against the battery."""

import pytest
import torch
from torch_geometric.nn import SGConv
from torch_geometric.utils import add_self_loops

from limbeck.graphs.adjacency import mean_adjacency, plain_adjacency, symmetric_adjacency
from limbeck.graphs.view import make_view
from limbeck.registry import TEACHERS
from limbeck.teachers import fit_teacher, teacher_options
from limbeck.teachers.gpr_gnn import GPRGNN
from limbeck.teachers.linkx import LINKX
from limbeck.teachers.sage import SAGE
from limbeck.teachers.sgc import SGC
from limbeck.testing import check_teacher, small_graph

# 0 → 1, 1 → 0, 2 → 1 and a self-loop on 1; node 3 has no edge
EDGES = torch.tensor([[0, 1, 2, 1], [1, 0, 1, 1]])

QUICK = {
    "sage": {"fan_out": (), "max_epochs": 60},
    "appnp": {"weight_decay": 5e-4},
    "gcnii": {"num_layers": 4, "hidden_channels": 16, "max_epochs": 100},
    "gpr-gnn": {"max_epochs": 100},
    "linkx": {"hidden_channels": 16, "max_epochs": 100},
}


@pytest.mark.parametrize("name", TEACHERS)
def test_conforms(name):
    check_teacher(teacher_options(name, "small-graph", **QUICK.get(name, {})))


def test_sage_with_drawn_neighbours_conforms():
    check_teacher(
        teacher_options("sage", "small-graph", fan_out=(5, 5), batch_size=16, max_epochs=30)
    )


def test_mean_adjacency_counts_a_self_loop_once_more():
    expected = torch.tensor(
        [
            [1 / 2, 1 / 2, 0, 0],
            [1 / 4, 2 / 4, 1 / 4, 0],  # sources 0, 1 (loop), 2 and the node itself
            [0, 0, 1, 0],
            [0, 0, 0, 1],
        ]
    )
    torch.testing.assert_close(mean_adjacency(EDGES, 4).to_dense(), expected)


def test_symmetric_adjacency_by_hand():
    # one loop per node: in-degrees 2, 3, 1, 1
    dense = symmetric_adjacency(EDGES, 4).to_dense()
    assert float(dense[0, 1]) == pytest.approx((3 * 2) ** -0.5)
    assert float(dense[1, 1]) == pytest.approx(1 / 3)
    assert float(dense[1, 2]) == pytest.approx(3**-0.5)
    assert float(dense[3, 3]) == pytest.approx(1.0)


def test_plain_adjacency_counts_repeated_edges():
    repeated = torch.cat([EDGES, EDGES[:, :1]], dim=1)
    assert float(plain_adjacency(repeated, 4).to_dense()[1, 0]) == 2


def test_sage_is_its_equation():
    torch.manual_seed(0)
    sage = SAGE(3, 5, 2).eval()
    x = torch.randn(4, 3)
    first, second = sage.lins
    h = torch.stack([x[[0, 1]].mean(0), x[[0, 1, 1, 2]].mean(0), x[2], x[3]])
    h = torch.relu(h @ first.weight.t() + first.bias)
    h = torch.stack([h[[0, 1]].mean(0), h[[0, 1, 1, 2]].mean(0), h[2], h[3]])
    expected = h @ second.weight.t() + second.bias
    torch.testing.assert_close(sage(x, EDGES), expected)
    layers = sage.layers(x, sage.prepare(EDGES, 4))
    assert list(layers) == ["hidden1", "logits"]


def test_sgc_equals_pygs():
    torch.manual_seed(0)
    ours = SGC(3, 2, num_hops=2).eval()
    theirs = SGConv(3, 2, K=2)
    theirs.lin.weight.data.copy_(ours.lin.weight.data)
    theirs.lin.bias.data.copy_(ours.bias.data)
    x = torch.randn(4, 3)
    symmetric = torch.cat(
        [EDGES[:, :1], EDGES[:, 1:2], EDGES[:, 2:3], EDGES[:, 2:3].flip(0)], dim=1
    )
    torch.testing.assert_close(ours(x, symmetric), theirs(x, symmetric))


def test_gpr_gnn_without_hops_is_its_mlp():
    torch.manual_seed(0)
    model = GPRGNN(3, 4, 2, steps=3, alpha=1.0).eval()
    # alpha = 1 puts all weight on hop 0, and the last hop starts at (1 - alpha)^K = 0
    assert model.hop_weights.tolist() == [1.0, 0.0, 0.0, 0.0]
    x = torch.randn(4, 3)
    torch.testing.assert_close(model(x, EDGES), model(x, EDGES[:, :0]))


def test_linkx_leaves_out_edges_to_unknown_nodes():
    torch.manual_seed(0)
    model = LINKX(3, 5, 4, 2).eval()
    x = torch.randn(4, 5)
    to_new = torch.tensor([[3], [0]])
    known = torch.tensor([[1, 2], [0, 3]])
    both = torch.cat([known, to_new], dim=1)
    torch.testing.assert_close(model(x, both), model(x, known))
    assert not torch.allclose(model(x, known), model(x, known[:, :1]))


def test_self_loops_added_by_hand_change_nothing_in_gcn():
    looped, _ = add_self_loops(EDGES[:, :3], num_nodes=4)
    torch.testing.assert_close(
        symmetric_adjacency(looped, 4).to_dense(), symmetric_adjacency(EDGES[:, :3], 4).to_dense()
    )


def test_a_teacher_is_trained_once(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path))
    graph = small_graph()
    first = fit_teacher(make_view(graph, "inductive", 0), "gcn", 0, max_epochs=20)
    calls = []
    monkeypatch.setattr("limbeck.teachers.fit.train", lambda *a, **k: calls.append(a))
    again = fit_teacher(make_view(graph, "cold-start", 0), "gcn", 0, max_epochs=20)
    assert calls == []
    assert torch.equal(first.knowledge.logits, again.knowledge.logits)
    assert torch.equal(first.answers.unseen, again.answers.unseen)
    assert again.train_seconds == first.train_seconds
    for name, value in first.module.state_dict().items():
        assert torch.equal(value, again.module.state_dict()[name])


def test_a_teacher_that_learnt_nothing_is_warned_of(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path))
    graph = small_graph()
    fit_teacher(make_view(graph, "transductive", 0), "gcn", 0, max_epochs=20)
    assert caplog.text == ""
    # without features and edges all nodes are alike
    graph.x, graph.edge_index = torch.zeros_like(graph.x), graph.edge_index[:, :0]
    for _ in range(2):  # trained, and from the cache
        caplog.clear()
        fit_teacher(make_view(graph, "transductive", 0), "gcn", 0, max_epochs=20)
        assert "teacher 'gcn' is right on 33.3 % of the validation nodes" in caplog.text


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"max_epochs": 21}, {"setting": "transductive"}, {"view_seed": 1}]
)
def test_another_teacher_is_not_taken_from_the_cache(tmp_path, monkeypatch, change):
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path))
    graph = small_graph()
    fit_teacher(make_view(graph, "inductive", 0), "gcn", 0, max_epochs=20)
    view = make_view(graph, change.get("setting", "inductive"), change.get("view_seed", 0))
    fit_teacher(view, "gcn", change.get("seed", 0), max_epochs=change.get("max_epochs", 20))
    assert len(list((tmp_path / "teachers").glob("*.pt"))) == 2


def test_a_damaged_cache_file_is_trained_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path))
    view = make_view(small_graph(), "inductive", 0)
    first = fit_teacher(view, "gcn", 0, max_epochs=20)
    (file,) = (tmp_path / "teachers").glob("*.pt")
    file.write_bytes(file.read_bytes()[:100])
    again = fit_teacher(view, "gcn", 0, max_epochs=20)
    assert torch.equal(first.knowledge.logits, again.knowledge.logits)
