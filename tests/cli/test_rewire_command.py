"""``limbeck rewire``: what it writes can be read back, and what it prints is what it did."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from limbeck.cli import run
from limbeck.graphs.rewire import SurgeryOptions, rewire
from limbeck.graphs.tables import read_tables
from limbeck.graphs.view import make_view
from limbeck.testing.graphs import small_graph


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small graph of a user's own, nodes with names."""
    graph = small_graph()
    folder = tmp_path_factory.mktemp("own")
    names = [f"node-{i}" for i in range(graph.num_nodes)]
    columns = {f"x{i}": graph.x[:, i].numpy() for i in range(4)}
    pq.write_table(
        pa.table({"id": names, "label": graph.y.numpy(), **columns}), folder / "nodes.parquet"
    )
    ends = graph.edge_index.tolist()
    pq.write_table(
        pa.table({"source": [names[i] for i in ends[0]], "target": [names[i] for i in ends[1]]}),
        folder / "edges.parquet",
    )
    return folder


def edge_set(graph) -> set[frozenset[int]]:
    return {frozenset(pair) for pair in graph.edge_index.t().tolist()}


def test_edges_of_an_own_graph_can_be_read_back(folder, tmp_path, capsys):
    out = tmp_path / "edges.parquet"
    assert run(["rewire", str(folder), "--out", str(out), "--loops", "12", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["added"] == 12
    assert document["edges"] == str(out)
    before, after = document["before"], document["after"]
    change = document["added"] - document["removed"]
    assert after["num_edges"] == before["num_edges"] + change
    given = read_tables(folder / "nodes.parquet", folder / "edges.parquet")
    read = read_tables(folder / "nodes.parquet", out)
    wanted = rewire(given.edge_index, given.num_nodes, SurgeryOptions(loops=12), 0)
    assert torch.equal(read.edge_index, wanted.edge_index)
    assert json.loads(pq.read_schema(out).metadata[b"limbeck"])["options"]["loops"] == 12


def test_edges_of_unseen_nodes_stay(folder, tmp_path):
    out = tmp_path / "edges.csv"
    arguments = ["--setting", "inductive", "--seed", "3", "--no-figures", "--no-removal"]
    assert run(["rewire", str(folder), "--out", str(out), *arguments]) == 0
    given = read_tables(folder / "nodes.parquet", folder / "edges.parquet")
    read = read_tables(folder / "nodes.parquet", out)
    view = make_view(given, "inductive", 3)
    unseen = set(view.nodes[view.num_observed :].tolist())

    def of_unseen(graph) -> set[frozenset[int]]:
        return {edge for edge in edge_set(graph) if edge & unseen}

    assert of_unseen(read) == of_unseen(given)
    assert edge_set(given) < edge_set(read)


def test_figures_for_people(folder, tmp_path, capsys):
    assert run(["rewire", str(folder), "--out", str(tmp_path / "e.parquet"), "--tau", "inf"]) == 0
    printed = capsys.readouterr().out
    for line in ("edges added", "curvature min", "kirchhoff index", "edge homophily"):
        assert line in printed


def test_named_graph(tmp_path, capsys):
    out = tmp_path / "digits.parquet"
    assert run(["rewire", "digits", "--out", str(out), "--loops", "3", "--no-figures"]) == 0
    assert pq.read_metadata(out).num_rows > 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--out", "edges.txt"], "has the extension '.txt'"),
        (["--out", "nowhere/edges.csv"], "give a file in a folder that exists"),
        (["--out", "e.csv", "--loops", "1.5"], "option 'loops' is 1.5"),
        (["--out", "e.csv", "--tau", "-1"], "option 'tau' is -1"),
        (["--out", "e.csv", "--setting", "inductve"], "did you mean 'inductive'"),
    ],
)
def test_bad_input_is_one_sentence(folder, tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    assert run(["rewire", str(folder), *arguments]) == 2
    printed = capsys.readouterr()
    assert sentence in printed.err
    assert printed.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
