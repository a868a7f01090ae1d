"""Named data sets: real counts, the cache and its faults, files in the layouts not at hand."""

import gzip
import json
import os
import shutil
import stat
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch
from torch_geometric.utils import contains_self_loops, homophily, is_undirected, remove_self_loops

from limbeck.errors import GraphError, MissingExtraError, OptionError, OutputError
from limbeck.graphs.datasets import DATASETS, load_dataset
from limbeck.graphs.splits import split_nodes

CSR, DENSE = torch.sparse_csr, torch.strided

# name: nodes, undirected edges without loops, loops, features, layout, nodes per class (None: not
# stated), homophily without loops, sizes of the split of seed 0. Counted in the files themselves,
# and for the CPF protocol those of GLNN, appendix A.1.
COUNTS = {
    "cora": (2708, 5278, 0, 1433, CSR, 7, 0.810, (140, 500, 1000)),
    "cora:geom-gcn": (2708, 5278, 0, 1433, CSR, 7, 0.810, (1192, 796, 497)),
    "cora:geom-gcn/9": (2708, 5278, 0, 1433, CSR, 7, 0.810, (1192, 796, 497)),
    "cora:random": (2708, 5278, 0, 1433, CSR, 7, 0.810, (1624, 542, 542)),
    "cora:20-20-60": (2708, 5278, 0, 1433, CSR, 7, 0.810, (539, 539, 1630)),
    "citeseer": (3327, 4552, 0, 3703, CSR, 6, 0.7355, (120, 500, 1000)),
    "citeseer:geom-gcn": (3327, 4552, 0, 3703, CSR, 6, 0.7355, (1596, 1065, 666)),
    "citeseer:geom-gcn/4": (3327, 4552, 0, 3703, CSR, 6, 0.7355, (1017, 679, 424)),
    "pubmed": (19717, 44324, 0, 500, DENSE, 3, 0.8024, (60, 500, 1000)),
    "cpf-cora": (2485, 5069, 2485, 1433, CSR, 7, 0.8041, (140, 210, 2135)),
    "cpf-citeseer": (2110, 3668, 2110, 3703, CSR, 6, 0.7364, (120, 180, 1810)),
    "cpf-pubmed": (19717, 44324, 19717, 500, DENSE, 3, 0.8024, (60, 90, 19567)),
    "a-photo": (7487, 119043, 7487, 745, DENSE, 8, None, (160, 240, 7087)),
    "a-computer": (13381, 245778, 13381, 767, DENSE, 10, None, (200, 300, 12881)),
    "chameleon": (2277, 31371, 50, 2325, CSR, 5, None, (1092, 729, 456)),
    "chameleon-filtered": (890, 8854, 0, 2325, CSR, 5, 0.2361, (409, 287, 194)),
    "actor": (7600, 26659, None, 932, CSR, 5, None, (3648, 2432, 1520)),
    "texas": (183, 279, None, 1703, CSR, 5, None, (87, 59, 37)),
    "wisconsin": (251, 450, None, 1703, CSR, 5, None, (120, 80, 51)),
    "cornell": (183, 277, None, 1703, CSR, 5, None, (87, 59, 37)),
}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cold cache."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("LIMBECK_CACHE", str(folder))
    return folder


@pytest.fixture
def texas(data_root, tmp_path):
    """A data root of our own that holds one small data set."""
    root = tmp_path / "root"
    for file in (data_root / "texas" / "raw").iterdir():
        (root / "texas" / "raw").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, root / "texas" / "raw" / file.name)
    return root


@pytest.fixture
def offline(monkeypatch):
    """No way out: connections are refused at once, on any machine."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


def state(folder: Path):
    return {
        path: (path.stat().st_mtime_ns, path.stat().st_size, stat.S_IMODE(path.stat().st_mode))
        for path in [folder, *folder.rglob("*")]
    }


# --- counts


@pytest.mark.parametrize("name", COUNTS)
def test_counts_of_real_files(name, data_root):
    nodes, edges, loops, features, layout, classes, expected_homophily, sizes = COUNTS[name]
    graph = load_dataset(name, data_root)
    loopless, _ = remove_self_loops(graph.edge_index)
    assert graph.num_nodes == nodes
    assert loopless.shape[1] == 2 * edges
    assert is_undirected(graph.edge_index)
    if loops is not None:
        assert graph.num_edges - loopless.shape[1] == loops
    assert graph.x.shape == (nodes, features)
    assert (graph.x.layout, graph.x.dtype) == (layout, torch.float32)
    assert (graph.y.dtype, graph.edge_index.dtype) == (torch.int64, torch.int64)
    assert graph.info.num_classes == classes == int(graph.y.max()) + 1
    if expected_homophily is not None:
        assert homophily(loopless, graph.y) == pytest.approx(expected_homophily, abs=6e-5)
    split = split_nodes(graph, 0)
    assert (len(split.train), len(split.val), len(split.test)) == sizes
    assert graph.info.node_ids.tolist() == list(range(nodes))
    assert not set(graph.info.name) & set("/:")


def test_features_are_the_words_of_the_files(data_root):
    assert int(load_dataset("cora", data_root).x.values().sum()) == 49_216
    assert int(load_dataset("cpf-cora", data_root).x.values().sum()) == 45_487
    assert int(load_dataset("cpf-citeseer", data_root).x.values().sum()) == 67_659


def test_cpf_protocol_gives_each_node_one_loop(data_root):
    graph = load_dataset("cpf-cora", data_root)
    loops = graph.edge_index[0][graph.edge_index[0] == graph.edge_index[1]]
    assert sorted(loops.tolist()) == list(range(2485))


def test_a_geom_gcn_column_is_the_column_of_all_ten(data_root):
    ten = split_nodes(load_dataset("cora:geom-gcn", data_root), 3)
    one = load_dataset("cora:geom-gcn/3", data_root)
    assert (one.info.split, one.info.name) == ("fixed", "cora-geom-gcn-3")
    for seed in (0, 5):
        assert torch.equal(split_nodes(one, seed).test, ten.test)


def test_random_variant_holds_no_mask(data_root):
    graph = load_dataset("cora:random", data_root)
    assert graph.info.split == "random"
    assert "train_mask" not in graph
    assert "published_split" not in graph.info.notes


def test_imdb_is_heterogeneous(data_root):
    graph = load_dataset("imdb", data_root)
    assert graph.node_types == ["movie", "director", "actor"]
    assert [graph[kind].num_nodes for kind in graph.node_types] == [4278, 2081, 5257]
    assert all(graph[kind].x.layout == CSR for kind in graph.node_types)
    assert graph.num_edges == 34_212
    assert graph.info.notes["target"] == "movie"
    assert graph.info.class_names == ("action", "comedy", "drama")
    split = split_nodes(graph, 0)
    assert (len(split.train), len(split.val), len(split.test)) == (400, 400, 3478)


def test_digits_needs_no_folder_and_no_time(monkeypatch):
    monkeypatch.delenv("LIMBECK_DATA", raising=False)
    start = time.perf_counter()
    graph = load_dataset("digits")
    assert time.perf_counter() - start < 1
    assert (graph.num_nodes, graph.num_features, graph.x.layout) == (1797, 64, DENSE)
    assert 0 <= graph.x.min() < graph.x.max() == 1
    assert is_undirected(graph.edge_index)
    assert not contains_self_loops(graph.edge_index)
    assert graph.edge_index[0].bincount().min() >= 10
    assert homophily(graph.edge_index, graph.y) > 0.95
    assert graph.info.class_names == tuple("0123456789")


def test_wordnet_is_in_the_catalogue(monkeypatch):
    monkeypatch.delenv("LIMBECK_DATA", raising=False)
    assert load_dataset("wordnet").info.name == "wordnet"


# --- names


def test_the_catalogue_is_whole():
    for name, entry in DATASETS.items():
        assert entry.name == name
        assert all((entry.title, entry.description, entry.source, entry.licence, entry.protocol))
    assert len(DATASETS) == 36
    without_files = {name for name, entry in DATASETS.items() if entry.raw is None}
    generated = {"minimag-small", "minimag-medium", "minimag-large"}
    assert without_files == {"wordnet", "digits"} | generated


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("coar", "unknown data set 'coar': did you mean 'cora'?"),
        ("cora:geom-gnc", "did you mean 'geom-gcn'?"),
        ("cora:", "unknown variant of data set 'cora'"),
        ("cora:geom-gcn/10", "from 0 to 9"),
        ("cora:geom-gcn/", "from 0 to 9"),
        ("cora:random/1", "from 0 to 9"),
        ("texas:random", "unknown variant of data set 'texas'"),
        ("cpf-cora:random", "data set 'cpf-cora' has no variants: write 'cpf-cora'"),
    ],
)
def test_names_that_are_not(name, message):
    with pytest.raises(OptionError) as caught:
        load_dataset(name)
    assert message in str(caught.value)


# --- data root and cache


def test_the_data_root_is_only_read(texas, cache):
    for path in sorted(texas.rglob("*"), reverse=True):
        path.chmod(0o555 if path.is_dir() else 0o444)
    texas.chmod(0o555)
    before = state(texas)
    graph = load_dataset("texas", texas)
    assert graph.num_nodes == 183
    assert state(texas) == before
    assert list((cache / "datasets").glob("texas-*/texas/processed/data.pt"))
    assert not list((cache / "datasets").glob("*.partial"))


def test_the_environment_names_the_data_root(texas, cache, monkeypatch):
    monkeypatch.setenv("LIMBECK_DATA", str(texas))
    assert load_dataset("texas").num_nodes == 183
    monkeypatch.setenv("LIMBECK_DATA", str(texas / "nowhere"))
    with pytest.raises(GraphError, match=r"LIMBECK_DATA is .*nowhere, which is not a folder"):
        load_dataset("texas")
    with pytest.raises(GraphError, match=r"data_root is .*nowhere"):
        load_dataset("texas", texas / "nowhere")


def test_changed_raw_files_are_read_anew(texas, cache):
    before = load_dataset("texas", texas)
    edges = texas / "texas" / "raw" / "out1_graph_edges.txt"
    edges.write_text("\n".join(edges.read_text().split("\n")[:11]) + "\n")  # a title and ten edges
    after = load_dataset("texas", texas)
    assert after.num_edges <= 20 < before.num_edges


def test_a_second_load_reads_the_entry_and_writes_nothing(texas, cache):
    load_dataset("texas", texas)
    before = state(cache)
    load_dataset("texas", texas)
    assert state(cache) == before


def test_what_a_killed_process_left_is_replaced(texas, cache):
    load_dataset("texas", texas)
    (entry,) = (cache / "datasets").glob("texas-*[!k]")
    leftover = entry.with_name(f"{entry.name}.partial")
    entry.rename(leftover)
    (leftover / "texas" / "processed" / "data.pt").write_bytes(b"half")
    assert load_dataset("texas", texas).num_nodes == 183
    assert not leftover.exists()


def test_a_damaged_raw_file_is_named_and_leaves_nothing(texas, cache):
    nodes = texas / "texas" / "raw" / "out1_node_feature_label.txt"
    nodes.write_text(nodes.read_text().replace(",", ";"))
    with pytest.raises(GraphError, match=r"'texas' cannot be read from .*texas/raw \(.*damaged"):
        load_dataset("texas", texas)
    assert [path.suffix for path in (cache / "datasets").iterdir()] == [".lock"]


def test_nodes_cut_short_are_noticed_by_the_edges(texas, cache):
    nodes = texas / "texas" / "raw" / "out1_node_feature_label.txt"
    nodes.write_bytes(nodes.read_bytes()[:100_000])
    with pytest.raises(GraphError, match=r"an edge of data set 'texas' .* names node 182"):
        load_dataset("texas", texas)


def test_nodes_cut_short_are_noticed_by_the_masks(texas, cache):
    raw = texas / "texas" / "raw"
    (raw / "out1_graph_edges.txt").write_text("title\n0\t1\n1\t2\n")
    nodes = (raw / "out1_node_feature_label.txt").read_text().split("\n")
    (raw / "out1_node_feature_label.txt").write_text("\n".join(nodes[:101]) + "\n")
    with pytest.raises(GraphError, match=r"'texas' .* has 100 nodes but 183 entries"):
        load_dataset("texas", texas)


def test_a_damaged_entry_is_named(texas, cache):
    load_dataset("texas", texas)
    (processed,) = (cache / "datasets").rglob("data.pt")
    processed.write_bytes(processed.read_bytes()[:300])
    with pytest.raises(GraphError, match=r"cannot be read from its cache .* remove the folder"):
        load_dataset("texas", texas)


def test_a_cache_that_cannot_be_written(texas, cache):
    cache.write_text("a file where a folder should be")
    with pytest.raises(OutputError, match=r"cannot be written .*LIMBECK_CACHE"):
        load_dataset("texas", texas)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only to root")
def test_a_read_only_cache(texas, cache):
    cache.mkdir()
    cache.chmod(0o555)
    with pytest.raises(OutputError, match=r"cannot be written .*LIMBECK_CACHE"):
        load_dataset("texas", texas)


def test_a_failed_download_names_the_data_set_and_the_way_out(tmp_path, cache, offline):
    with pytest.raises(GraphError) as caught:
        load_dataset("a-cs", tmp_path)
    message = str(caught.value)
    assert "'a-cs' is not in" in message
    assert "could not be downloaded" in message
    assert "set LIMBECK_DATA to a folder that holds CS/raw." in message
    assert [path.suffix for path in (cache / "datasets").iterdir()] == [".lock"]


# --- layouts of which no real files are at hand: small ones of the same format


def test_a_graph_in_the_layout_of_gnn_benchmark(tmp_path, cache):
    """Three nodes in a row and one apart; weights, a loop and one direction only."""
    adjacency = scipy.sparse.csr_matrix(([2.0, 1.0, 5.0], ([0, 1, 2], [1, 2, 2])), shape=(4, 4))
    features = scipy.sparse.csr_matrix(np.array([[3.0, 0], [0, 1], [1, 1], [1, 0]]))
    raw = tmp_path / "CS" / "raw"
    raw.mkdir(parents=True)
    arrays = {"labels": np.array([0, 1, 1, 0])}
    for prefix, matrix in (("adj", adjacency), ("attr", features)):
        for key in ("data", "indices", "indptr", "shape"):
            arrays[f"{prefix}_{key}"] = np.array(getattr(matrix, key))
    np.savez(raw / "ms_academic_cs.npz", **arrays)
    graph = load_dataset("a-cs", tmp_path)
    edges = {tuple(edge) for edge in graph.edge_index.t().tolist()}
    assert edges == {(0, 1), (1, 0), (1, 2), (2, 1), (0, 0), (1, 1), (2, 2)}
    assert graph.x.tolist() == [[1, 0], [0, 1], [1, 1]]
    assert graph.y.tolist() == [0, 1, 1]


@pytest.mark.parametrize("name", ["roman-empire", "squirrel-filtered"])
def test_a_graph_in_the_layout_of_platonov(name, tmp_path, cache):
    folder = name.replace("-", "_")
    (tmp_path / folder / "raw").mkdir(parents=True)
    masks = np.eye(3, dtype=bool)
    np.savez(
        tmp_path / folder / "raw" / f"{folder}.npz",
        node_features=np.ones((3, 2), dtype=np.float32),
        node_labels=np.array([0, 1, 1]),
        edges=np.array([[0, 1], [1, 2]]),
        train_masks=masks[[0, 0]],
        val_masks=masks[[1, 2]],
        test_masks=masks[[2, 1]],
    )
    graph = load_dataset(name, tmp_path)
    assert is_undirected(graph.edge_index)
    assert graph.num_edges == 4
    assert split_nodes(graph, 0).val.tolist() == [1]
    assert split_nodes(graph, 1).val.tolist() == [2]


def test_ppi_is_one_graph_whose_masks_are_its_parts(tmp_path, cache):
    """Two nodes and one edge per part; PyG's files number the nodes of a part from 0."""
    raw = tmp_path / "ppi" / "raw"
    raw.mkdir(parents=True)
    links = [{"source": 0, "target": 1}, {"source": 1, "target": 0}]
    file = {"directed": True, "multigraph": False, "graph": {}, "links": links}
    for k, part in enumerate(("train", "valid", "test")):
        (raw / f"{part}_graph.json").write_text(
            json.dumps({**file, "nodes": [{"id": 0}, {"id": 1}]})
        )
        np.save(raw / f"{part}_feats.npy", np.full((2, 3), k, dtype=np.float32))
        np.save(raw / f"{part}_labels.npy", np.array([[1, 0], [1, 1]]))
        np.save(raw / f"{part}_graph_id.npy", np.array([7, 7]))
    graph = load_dataset("ppi", tmp_path)
    split = split_nodes(graph, 0)
    assert split.train.tolist() == [0, 1]
    assert split.val.tolist() == [2, 3]
    assert split.test.tolist() == [4, 5]
    assert graph.edge_index.t().tolist() == [[0, 1], [1, 0], [2, 3], [3, 2], [4, 5], [5, 4]]
    assert graph.y.shape == (6, 2)
    assert graph.info.num_classes == 2


def write_csv(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("\n".join([*lines, ""]).encode()))


def test_a_graph_in_the_layout_of_ogb(tmp_path, cache, capsys):
    """Four papers; GLNN's protocol: citations both ways, a loop on every node."""
    pytest.importorskip("ogb", reason="an extra")
    folder = tmp_path / "ogbn_arxiv"
    write_csv(folder / "raw" / "edge.csv.gz", "0,1", "1,0", "1,2", "3,2", "3,3")
    write_csv(folder / "raw" / "num-node-list.csv.gz", "4")
    write_csv(folder / "raw" / "num-edge-list.csv.gz", "5")
    write_csv(folder / "raw" / "node-feat.csv.gz", *["1.0,2.0"] * 4)
    write_csv(folder / "raw" / "node-label.csv.gz", "0", "1", "0", "1")
    write_csv(folder / "raw" / "node_year.csv.gz", *["2000"] * 4)
    for part, lines in {"train": ["0", "1"], "valid": ["2"], "test": ["3"]}.items():
        write_csv(folder / "split" / "time" / f"{part}.csv.gz", *lines)
    (folder / "RELEASE_v1.txt").write_text("")
    graph = load_dataset("ogbn-arxiv", tmp_path)
    assert {tuple(edge) for edge in graph.edge_index.t().tolist()} == {
        *[(0, 1), (1, 0), (1, 2), (2, 1), (2, 3), (3, 2)],
        *[(0, 0), (1, 1), (2, 2), (3, 3)],
    }
    assert graph.num_edges == 10
    assert graph.y.tolist() == [0, 1, 0, 1]
    split = split_nodes(graph, 0)
    assert (split.train.tolist(), split.val.tolist(), split.test.tolist()) == ([0, 1], [2], [3])
    assert capsys.readouterr().out == ""  # OGB's own talk is kept from stdout


@pytest.fixture
def attributed(tmp_path):
    """A root with a small ``wiki`` of one given number of features."""

    def write(num_features):
        raw = tmp_path / "wiki" / "raw"
        raw.mkdir(parents=True)
        attributes = scipy.sparse.csr_matrix(
            ([0.5, 2.0], ([0, 2], [1, 0])), shape=(3, num_features)
        )
        scipy.sparse.save_npz(raw / "attrs.npz", attributes)
        (raw / "edgelist.txt").write_text("0\t1\n1\t2\n")
        (raw / "labels.txt").write_text("0 1\n1 2\n2 1\n")
        return tmp_path

    return write


@pytest.mark.parametrize(("num_features", "layout"), [(2, DENSE), (12_000, CSR)])
def test_a_graph_in_the_layout_of_attributed_graphs(attributed, num_features, layout, cache):
    pytest.importorskip("pandas", reason="PyG reads these files with pandas")
    graph = load_dataset("wiki", attributed(num_features))
    assert graph.edge_index.t().tolist() == [[0, 1], [1, 0], [1, 2], [2, 1]]
    assert graph.y.tolist() == [0, 1, 0]
    assert (graph.x.layout, graph.x.dtype) == (layout, torch.float32)
    assert graph.x.to_dense()[2, 0] == 2


@pytest.mark.parametrize(
    ("name", "module"), [("ogbn-arxiv", "ogb.nodeproppred"), ("wiki", "pandas")]
)
def test_a_missing_extra_is_named(name, module, attributed, cache, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    root = attributed(2)
    (root / "ogbn_arxiv").mkdir()
    package = module.partition(".")[0]
    with pytest.raises(MissingExtraError, match=rf"'{package}'.*pip install 'limbeck\[ogb\]'"):
        load_dataset(name, root)
