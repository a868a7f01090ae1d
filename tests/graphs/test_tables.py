import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Data

from limbeck.errors import GraphError, OptionError, SplitError
from limbeck.graphs.tables import read_folder, read_tables
from limbeck.table_files import find_table, open_table

NODES: dict[str, Any] = {
    "id": ["p0", "p1", "p2", "p3"],
    "label": ["net", "gui", None, "net"],
    "split": ["train", "Valid", None, "test"],
    "size": [1.0, 2.5, -3.0, 4.0],
    "licence": ["mit", "gpl", "mit", "bsd"],
}
EDGES: dict[str, Any] = {"source": ["p0", "p1", "p1", "p3"], "target": ["p1", "p0", "p2", "p3"]}

WRITERS: dict[str, Any] = {
    "parquet": pyarrow.parquet.write_table,
    "csv": pyarrow.csv.write_csv,
    "arrow": lambda table, path: pyarrow.feather.write_feather(table, str(path)),
    "feather": lambda table, path: pyarrow.feather.write_feather(table, str(path)),
}


def write(folder: Path, nodes: Any, edges: Any, extension: str = "parquet") -> tuple[Path, Path]:
    paths = folder / f"nodes.{extension}", folder / f"edges.{extension}"
    for path, table in zip(paths, (nodes, edges), strict=True):
        WRITERS[extension](table if isinstance(table, pa.Table) else pa.table(table), path)
    return paths


def read(folder: Path, nodes: Any, edges: Any = EDGES, **options: Any) -> Data:
    options.setdefault("categorical", ["licence"] if "licence" in nodes else [])
    return read_tables(*write(folder, nodes, edges), **options)


def same(a: Data, b: Data) -> bool:
    masks = ("train_mask", "val_mask", "test_mask")
    dense = [graph.x.to_dense() if graph.x.is_sparse_csr else graph.x for graph in (a, b)]
    return (
        torch.equal(*dense)
        and torch.equal(a.edge_index, b.edge_index)
        and torch.equal(a.y, b.y)
        and all((m in a) == (m in b) and (m not in a or torch.equal(a[m], b[m])) for m in masks)
        and a.info.class_names == b.info.class_names
        and a.info.node_ids.tolist() == b.info.node_ids.tolist()
        and a.info.encoder == b.info.encoder
    )


# --- what a sound pair of tables becomes -----------------------------------------------------


@pytest.mark.parametrize("extension", WRITERS)
def test_graph_by_hand(tmp_path: Path, extension: str) -> None:
    paths = write(tmp_path, NODES, EDGES, extension)
    graph = read_tables(*paths, categorical=["licence"])
    # size, then bsd gpl mit
    assert graph.x.tolist() == [[1, 0, 0, 1], [2.5, 0, 1, 0], [-3, 0, 0, 1], [4, 1, 0, 0]]
    assert graph.edge_index.tolist() == [[0, 1, 1, 2, 3], [1, 0, 2, 1, 3]]
    assert graph.y.tolist() == [1, 0, -1, 1]
    assert graph.train_mask.tolist() == [True, False, False, False]
    assert graph.val_mask.tolist() == [False, True, False, False]
    assert graph.test_mask.tolist() == [False, False, False, True]
    assert (graph.x.dtype, graph.edge_index.dtype, graph.y.dtype, graph.val_mask.dtype) == (
        torch.float32,
        torch.int64,
        torch.int64,
        torch.bool,
    )
    info = graph.info
    assert (info.name, info.source, info.split) == ("nodes", str(paths[0]), "fixed")
    assert info.class_names == ("gui", "net")
    assert info.node_ids.tolist() == NODES["id"]
    assert info.scaled_columns.tolist() == [0]
    assert info.notes == {"edge_direction": "undirected", "edge_rows": 4, "self_loops": 1}


@pytest.mark.parametrize(
    ("direction", "expected"),
    [
        ("source-to-target", [[0, 1, 1, 3], [1, 0, 2, 3]]),
        ("target-to-source", [[0, 1, 2, 3], [1, 0, 1, 3]]),
    ],
)
def test_directed_edges(tmp_path: Path, direction: str, expected: list[list[int]]) -> None:
    graph = read(tmp_path, NODES, edge_direction=direction)
    assert graph.edge_index.tolist() == expected
    with pytest.raises(OptionError, match="unknown edge direction 'both'"):
        read(tmp_path, NODES, edge_direction="both")


def test_own_column_names_and_choice_of_features(tmp_path: Path) -> None:
    nodes = pa.table({**NODES, "age": [1, 2, 3, 4]}).rename_columns(
        ["package", "section", "part", "size", "licence", "age"]
    )
    edges = pa.table(EDGES).rename_columns(["needs", "needed"])
    graph = read_tables(
        *write(tmp_path, nodes, edges),
        id="package",
        label="section",
        split="part",
        source="needs",
        target="needed",
        features=["age", "size"],
        name="packages",
        scale=False,
    )
    assert graph.x.tolist() == [[1, 1], [2, 2.5], [3, -3], [4, 4]]
    assert graph.info.name == "packages"
    assert graph.info.scaled_columns is None


def test_without_split_a_seed_picks_it(tmp_path: Path) -> None:
    graph = read(tmp_path, {k: v for k, v in NODES.items() if k != "split"})
    assert graph.info.split == "random"
    assert "train_mask" not in graph


@pytest.mark.parametrize(
    ("labels", "y", "names"),
    [
        ([10, 9, None, 10], [1, 0, -1, 1], ("9", "10")),
        ([2.0, math.nan, 10.0, None], [0, -1, 1, -1], ("2", "10")),
        ([True, False, True, None], [1, 0, 1, -1], ("false", "true")),
        (["b", "", "a", "b"], [1, -1, 0, 1], ("a", "b")),
        (pa.array(["b", None, "a", "b"]).dictionary_encode(), [1, -1, 0, 1], ("a", "b")),
    ],
)
def test_labels_of_any_type(
    tmp_path: Path, labels: Any, y: list[int], names: tuple[str, ...]
) -> None:
    nodes = {"id": [0, 1, 2, 3], "label": labels, "f": [0.0, 1, 2, 3]}
    graph = read(tmp_path, nodes, {"source": [0], "target": [1]})
    assert graph.y.tolist() == y
    assert graph.info.class_names == names


def test_words_become_a_csr_matrix(tmp_path: Path) -> None:
    graph = read(tmp_path, {**NODES, "words": [["a"], [], ["b", "a"], ["b"]]}, features=["words"],
                 categorical=[])  # fmt: skip
    assert graph.x.layout == torch.sparse_csr
    assert graph.x.to_dense().tolist() == [[1, 0], [0, 0], [1, 1], [0, 1]]
    assert graph.info.scaled_columns is None


@pytest.mark.parametrize(
    "ids",
    [
        pa.array([7, 3, 5, 9], type=pa.uint16()),
        pa.array(["x", "y", "z", "ü"], type=pa.large_string()),
        pa.array(["x", "y", "z", "w"]).dictionary_encode(),
        pa.array([f"6f1c{i}d2e-0000-4000-8000-00000000000{i}" for i in range(4)]),
    ],
)
def test_ids_of_any_type(tmp_path: Path, ids: pa.Array) -> None:
    nodes = {"id": ids, "label": [0, 1, 0, 1], "f": [0.0, 1, 2, 3]}
    edges = {"source": ids.take(pa.array([3, 0])), "target": ids.take(pa.array([1, 0]))}
    graph = read(tmp_path, nodes, edges, edge_direction="source-to-target")
    assert graph.edge_index.tolist() == [[0, 3], [0, 1]]
    assert graph.info.node_ids.tolist() == ids.to_pylist()


def test_csv_ids_are_what_is_written(tmp_path: Path) -> None:
    (tmp_path / "edges.csv").write_text("source,target\n7,007\nNA,7\n")
    (tmp_path / "nodes.csv").write_text("id,label,f\n7,a,1\n007,b,2\nNA,a,3\n")
    graph = read_folder(tmp_path, edge_direction="source-to-target")
    assert graph.info.node_ids.tolist() == ["7", "007", "NA"]
    assert graph.edge_index.tolist() == [[0, 2], [1, 0]]
    # integers where all are written so, whatever the edges look like
    (tmp_path / "nodes.csv").write_text("id,label,f\n7,a,1\n8,b,2\n")
    (tmp_path / "edges.csv").write_text("source,target\n7,8\n7,07\n")
    with pytest.raises(GraphError, match=r"'target' of .*edges.csv names node '07' in row 1"):
        read_folder(tmp_path)
    (tmp_path / "edges.csv").unlink()
    pyarrow.parquet.write_table(
        pa.table({"source": ["7"], "target": ["8"]}), tmp_path / "edges.parquet"
    )
    assert read_folder(tmp_path).info.node_ids.tolist() == [7, 8]


def test_csv_keeps_names_apart_that_are_one_number(tmp_path: Path) -> None:
    (tmp_path / "edges.csv").write_text("source,target\na,b\n")
    (tmp_path / "nodes.csv").write_text("id,label,kind\na,1,1.0\nb,01,1\nc,,true\n")
    graph = read_folder(tmp_path, categorical=["kind"])
    assert graph.info.class_names == ("01", "1")
    assert graph.y.tolist() == [1, 0, -1]
    assert graph.info.encoder.columns[0].vocabulary == ("1", "1.0", "true")
    # where all are integers they sort as numbers
    (tmp_path / "nodes.csv").write_text("id,label,kind\na,10,10\nb,9,9\nc,,9\n")
    graph = read_folder(tmp_path, categorical=["kind"])
    assert graph.info.class_names == ("9", "10")
    assert graph.info.encoder.columns[0].vocabulary == (9, 10)


def test_csv_numbers_that_turn_to_fractions_late_and_line_breaks_in_cells(tmp_path: Path) -> None:
    rows = 200_000  # more than one block of the CSV reader
    with (tmp_path / "nodes.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "label", "f", "gloss"])
        for i in range(rows):
            writer.writerow([i, i % 2, 0.5 if i == rows - 1 else i, "two\nlines"])
    (tmp_path / "edges.csv").write_text("source,target\n0,1\n")
    graph = read_folder(tmp_path, features=["f"])
    assert graph.num_nodes == rows
    assert graph.x[-2:, 0].tolist() == [rows - 2, 0.5]


# --- folders ---------------------------------------------------------------------------------


def test_folder_of_parquet_parts(tmp_path: Path) -> None:
    whole = read(tmp_path, NODES, name="whole")
    folder = tmp_path / "graph"
    for stem, table in (("nodes", pa.table(NODES)), ("edges", pa.table(EDGES))):
        (folder / stem).mkdir(parents=True)
        pyarrow.parquet.write_table(table.slice(0, 1), folder / stem / "part-0.parquet")
        pyarrow.parquet.write_table(table.slice(1), folder / stem / "part-1.parquet")
    (folder / "nodes" / "_SUCCESS").touch()
    graph = read_folder(folder, categorical=["licence"])
    assert same(graph, whole)
    assert graph.info.name == "graph"
    assert read_folder(folder, categorical=["licence"], name="mine").info.name == "mine"


def test_folder_with_missing_or_several_tables(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match=r"there is no folder .*nowhere"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(GraphError, match=r"no table of nodes: expected 'nodes.parquet'"):
        read_folder(tmp_path)
    write(tmp_path, NODES, EDGES)
    (tmp_path / "edges.parquet").rename(tmp_path / "links.parquet")
    with pytest.raises(GraphError, match="no table of edges"):
        read_folder(tmp_path)
    write(tmp_path, NODES, EDGES, "csv")
    with pytest.raises(GraphError, match=r"has 'nodes.parquet' and 'nodes.csv': leave one"):
        find_table(tmp_path, "nodes")


# --- faults ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": ["p0", "p1", "p1", "p3"]}, "node id 'p1' occurs 2 times in column 'id' of .*nodes"),
        ({"id": ["p0", None, "p2", "p3"]}, r"column 'id' of .*nodes.parquet is null in row 1"),
        ({"id": [0.0, 1.0, 2.0, 3.0]}, "'id' of .* is double: ids must be integers or text"),
        ({"id": pa.array([2**63, 1, 2, 3], pa.uint64())}, "ids in column 'id' .* exceed 64 bits"),
        ({"size": [1, 2, math.nan, 4]}, "'size' of .*nodes.parquet is not a number .* node 'p2'"),
        ({"size": [1, math.inf, 3, 4]}, "'size' of .*nodes.parquet is infinite for node 'p1'"),
        ({"size": [1, None, 3, 4]}, "'size' of .*nodes.parquet is null for node 'p1'"),
        ({"size": ["a", "b", "c", "d"]}, "'size' of .* holds text .*categorical=.'size'"),
        ({"label": pa.nulls(4)}, "'label' of .*nodes.parquet has no label in any row"),
        ({"label": ["a", "a", None, "a"]}, "all labels of .* are one class"),
        ({"label": [0.5, 1.5, 2.0, 3.0]}, "is double and cannot be a label"),
        ({"label": [["a"], ["b"], [], []]}, "is list<.*> and cannot be a label"),
        ({"node": [1, 2, 3, 4]}, "has columns 'id' and 'node': say with the option 'id'"),
    ],
)
def test_fault_in_nodes(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        read(tmp_path, {**NODES, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": ["train", "holdout", None, "test"]}, "'split' of .* is 'holdout' for node 'p1'"),
        ({"split": [0, 1, 2, 0]}, "is 0 for node 'p0': expected train, val, test"),
        ({"split": [["train"]] * 4}, "is list<.*>, not text"),
        ({"split": ["train", "val", "test", "test"]}, "node 'p2' of .* is in test .* no label"),
    ],
)
def test_fault_in_split(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SplitError, match=message):
        read(tmp_path, {**NODES, **changes})


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        (
            {"source": ["p0", "p9", "p8"], "target": ["p1", "p1", "p1"]},
            r"'source' of .*edges.parquet names node 'p9' in row 1 .*2 rows of 3",
        ),
        ({"source": ["p0"], "target": pa.nulls(1, pa.string())}, "'target' of .* null in row 0"),
        ({"source": [0], "target": [1]}, "holds integers, but the ids of .*nodes.* are text"),
        ({"source": pa.array([], pa.string()), "target": pa.array([], pa.string())}, "no rows"),
        ({"source": ["p0"]}, "is called 'target', 'dst' or 'to': name one of 'source'"),
        ({"source": ["p0"], "src": ["p1"], "to": ["p1"]}, "columns 'source' and 'src'"),
    ],
)
def test_fault_in_edges(tmp_path: Path, edges: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        read(tmp_path, NODES, edges)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"id": "idd"}, r"no column 'idd' in .*nodes.parquet \(option 'id'\): did you mean 'id'"),
        ({"target": "targets"}, r"\(option 'target'\): did you mean 'target'"),
        ({"features": ["sise"]}, r"\(option 'features'\): did you mean 'size'"),
        ({"features": ["size", "size"]}, "'size' of .* is named twice in features"),
        ({"features": ["size", "label"]}, "'label' of .* is both label and feature"),
        ({"features": [], "categorical": []}, "has no feature column"),
        ({"categorical": ["license"]}, "no column 'license' .*did you mean 'licence'"),
        ({"label": "id"}, "'id' of .* is both id and label"),
        ({"source": "target"}, "'target' of .* is both source and target"),
    ],
)
def test_fault_in_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        read(tmp_path, NODES, **options)


def test_nodes_without_features_or_edges(tmp_path: Path) -> None:
    bare = {"id": ["p0", "p1"], "label": ["a", "b"]}
    with pytest.raises(GraphError, match="has no feature column"):
        read(tmp_path, bare, {"source": ["p0"], "target": ["p1"]})
    with pytest.raises(GraphError, match=r"no edges are given for .*nodes.parquet"):
        read_tables(tmp_path / "nodes.parquet", None)


@pytest.mark.parametrize("extension", WRITERS)
def test_broken_file_is_named(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"nodes.{extension}"
    with pytest.raises(GraphError, match=f"no file or folder .*nodes.{extension}"):
        open_table(path)
    path.touch()
    with pytest.raises(GraphError, match=f"nodes.{extension} is empty"):
        open_table(path)
    path.write_bytes(b'id,label\n"\xff\xfe,1\n2,3,4\n')
    with pytest.raises(GraphError, match=f"nodes.{extension} cannot be read as "):
        open_table(path).read(["id"], names=["id"])


def test_unknown_extension_and_repeated_column(tmp_path: Path) -> None:
    (tmp_path / "nodes.xlsx").write_bytes(b"PK")
    with pytest.raises(GraphError, match=r"the extension '.xlsx': a table is a '.parquet'"):
        open_table(tmp_path / "nodes.xlsx")
    (tmp_path / "nodes.csv").write_text("id,id\n1,2\n")
    with pytest.raises(GraphError, match="more than one column called 'id'"):
        open_table(tmp_path / "nodes.csv")


@pytest.mark.parametrize("extension", ["parquet", "arrow"])
def test_truncated_anywhere_is_one_sentence(tmp_path: Path, extension: str) -> None:
    nodes, edges = write(tmp_path, NODES, EDGES, extension)
    whole = nodes.read_bytes()
    for size in range(1, len(whole), max(1, len(whole) // 60)):
        nodes.write_bytes(whole[:size])
        with pytest.raises(GraphError, match=f"nodes.{extension} cannot be read as "):
            read_tables(nodes, edges, categorical=["licence"])


# --- properties ------------------------------------------------------------------------------

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1)


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of a nodes and an edges table that are sound."""
    id_type = draw(st.sampled_from([TEXT, st.integers(-(2**63), 2**63 - 1)]))
    ids = draw(st.lists(id_type, min_size=2, max_size=7, unique=True))
    class_type = draw(st.sampled_from([TEXT, st.integers(-(2**63), 2**63 - 1)]))
    classes = draw(st.lists(class_type, min_size=2, max_size=4, unique=True))
    labels = [*classes[:2], *(draw(st.sampled_from([*classes, None])) for _ in ids[2:])]
    finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
    kinds = st.sampled_from(draw(st.sampled_from([["k1", "k2"], ["1", "01"], ["9", "10"]])))
    nodes = [
        {
            "id": node,
            "label": label,
            "split": draw(st.sampled_from(["train", "val", "test"])) if label is not None else None,
            "f": draw(finite),
            "kind": draw(kinds),
        }
        for node, label in zip(ids, labels, strict=True)
    ]
    ends = st.fixed_dictionaries({"source": st.sampled_from(ids), "target": st.sampled_from(ids)})
    return nodes, draw(st.lists(ends, min_size=1, max_size=12))


def written_as_integers(values: list[Any]) -> bool:
    """Whether a CSV file of these names is one of integers."""
    try:
        numbers = [int(value) for value in values if value is not None]
    except ValueError:
        return False
    written = [str(value) for value in values if value is not None]
    return [*map(str, numbers)] == written and all(-(2**63) <= n < 2**63 for n in numbers)


def as_csv_types(nodes: list[dict[str, Any]], edges: list[dict[str, Any]]) -> list[pa.Table]:
    """The same tables with the types that are left of them in CSV."""
    for name in ("id", "label", "kind"):
        if written_as_integers([row[name] for row in nodes]):
            nodes = [{**row, name: None if row[name] is None else int(row[name])} for row in nodes]
    if isinstance(nodes[0]["id"], int):
        edges = [{end: int(node) for end, node in edge.items()} for edge in edges]
    return [pa.Table.from_pylist(nodes), pa.Table.from_pylist(edges)]


@settings(deadline=None, max_examples=60)
@given(graphs(), st.randoms(use_true_random=False))
def test_equals_a_slow_reference_in_every_format(
    tmp_path_factory: pytest.TempPathFactory,
    rows: tuple[list[dict[str, Any]], list[dict[str, Any]]],
    random: Any,
) -> None:
    folder = tmp_path_factory.mktemp("graph")
    nodes, edges = (pa.Table.from_pylist(table) for table in rows)
    read_as = {
        extension: read_tables(*write(folder, nodes, edges, extension), categorical=["kind"])
        for extension in ("parquet", "arrow", "csv")
    }
    graph = read_as["parquet"]
    csv_typed = read_tables(*write(folder, *as_csv_types(*rows)), categorical=["kind"])

    place = {row["id"]: i for i, row in enumerate(rows[0])}
    stored = {(place[edge["source"]], place[edge["target"]]) for edge in rows[1]}
    assert graph.edge_index.T.tolist() == sorted(map(list, stored | {(b, a) for a, b in stored}))
    classes = sorted({row["label"] for row in rows[0] if row["label"] is not None})
    assert graph.info.class_names == tuple(map(str, classes))
    kinds = sorted({row["kind"] for row in rows[0]})
    for i, row in enumerate(rows[0]):
        assert graph.info.node_ids[i] == row["id"]
        assert graph.y[i] == (-1 if row["label"] is None else classes.index(row["label"]))
        assert graph.x[i].tolist() == [row["f"], *(float(kind == row["kind"]) for kind in kinds)]
        assert [w for w in ("train", "val", "test") if graph[f"{w}_mask"][i]] == (
            [row["split"]] if row["split"] else []
        )

    assert same(graph, read_as["arrow"])
    assert same(csv_typed, read_as["csv"])
    shuffled = random.sample(rows[1], len(rows[1]))
    again = write(folder, nodes, pa.Table.from_pylist(shuffled))
    assert same(graph, read_tables(*again, categorical=["kind"]))


def test_ids_are_plain_numpy(tmp_path: Path) -> None:
    ids = read(tmp_path, NODES).info.node_ids
    assert isinstance(ids, np.ndarray)
    assert ids.dtype == object
