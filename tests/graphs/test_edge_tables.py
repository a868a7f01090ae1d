"""Edges in files: each once, with its notes, and nothing half written."""

import json

import pyarrow.parquet as pq
import pytest

from limbeck.errors import OutputError
from limbeck.graphs.edge_tables import write_edges
from limbeck.graphs.rewire import SurgeryOptions
from limbeck.graphs.view import make_view, rewire_view
from limbeck.testing.graphs import small_graph


def test_edges_are_written_once_with_their_notes(tmp_path):
    view = make_view(small_graph(), "inductive", 0)
    rewired = rewire_view(view, SurgeryOptions(loops=5))
    write_edges(rewired, tmp_path / "edges.parquet", {"seed": 0})
    table = pq.read_table(tmp_path / "edges.parquet")
    assert json.loads(table.schema.metadata[b"limbeck"]) == {"seed": 0}
    written = {frozenset(pair) for pair in zip(*table.to_pydict().values(), strict=True)}
    ends = view.nodes[rewired.everything.edge_index].t().tolist()
    ids = view.info.node_ids.tolist()
    assert written == {frozenset((ids[u], ids[v])) for u, v in ends}
    assert len(written) == table.num_rows
    assert [file.name for file in tmp_path.iterdir()] == ["edges.parquet"]


def test_files_that_cannot_be_written(tmp_path):
    view = make_view(small_graph(), "transductive", 0)
    with pytest.raises(OutputError, match="extension '.txt'"):
        write_edges(view, tmp_path / "edges.txt")
    with pytest.raises(OutputError, match="a folder that exists"):
        write_edges(view, tmp_path / "nowhere" / "edges.csv")
