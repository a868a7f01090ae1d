"""The embedded data set: what is in the package, and the script that made it."""

import importlib.util
import sys
import time
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_geometric.utils import homophily, is_undirected

from limbeck.graphs.splits import split_nodes
from limbeck.graphs.wordnet import LEXICOGRAPHER_FILES, load_wordnet, wordnet_vocabulary

SCRIPT = Path(__file__).parents[2] / "scripts" / "build_wordnet.py"

# Three nouns in the format of wndb(5WN), with a licence of 29 lines above them. "cat" points up
# to "animal" and to a verb, "animal" down to "cat" and to itself; "leaf" stands alone.
LICENCE = "".join(f"  {i} licence line {i}  \n" for i in range(1, 30))
DATA_NOUN = (
    LICENCE
    + "00000100 05 n 02 Animal 0 beast 0 002 ~ 00000200 n 0000 + 00000100 n 0101 | "
    + 'a living thing; "the thing moves"  \n'
    + "00000200 05 n 01 cat 0 002 @ 00000100 n 0000 + 00000777 v 0101 | a small living thing  \n"
    + "00000300 20 n 01 cat 1 000 | the thing of a plant  \n"
)
INDEX_NOUN = (
    LICENCE
    + "animal n 1 1 ~ 1 0 00000100  \n"
    + "beast n 1 1 ~ 1 0 00000100  \n"
    + "cat n 2 1 @ 2 0 00000300 00000200  \n"
)


@pytest.fixture(scope="module")
def wordnet():
    return load_wordnet()


@pytest.fixture(scope="module")
def builder():
    spec = importlib.util.spec_from_file_location("build_wordnet", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["build_wordnet"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def dict_folder(tmp_path):
    (tmp_path / "data.noun").write_text(DATA_NOUN)
    (tmp_path / "index.noun").write_text(INDEX_NOUN)
    return tmp_path


def test_counts(wordnet):
    assert wordnet.x.shape == (82_115, 5_000)
    assert wordnet.x.layout == torch.sparse_csr
    assert wordnet.x.dtype == torch.float32
    assert wordnet.x.values().unique().tolist() == [1.0]
    assert wordnet.num_edges == 2 * 115_310
    assert is_undirected(wordnet.edge_index)
    assert not wordnet.has_self_loops()
    assert not wordnet.has_isolated_nodes()
    assert homophily(wordnet.edge_index, wordnet.y) == pytest.approx(0.888, abs=5e-4)
    assert wordnet.y.bincount().min() == 42  # motive
    assert wordnet.info.num_classes == len(LEXICOGRAPHER_FILES) == 26


def test_nodes_carry_their_customary_names_and_files(wordnet):
    ids = wordnet.info.node_ids
    assert len(set(ids)) == len(ids)
    row = {name: i for i, name in enumerate(ids)}
    for name, file in {
        "entity.n.01": "Tops",
        "dog.n.01": "animal",
        "oak.n.02": "plant",
        "joy.n.01": "feeling",
    }.items():
        assert LEXICOGRAPHER_FILES[int(wordnet.y[row[name]])] == file
    neighbours = wordnet.edge_index[1, wordnet.edge_index[0] == row["dog.n.01"]]
    assert {"canine.n.02", "puppy.n.01"} <= set(ids[neighbours.numpy()])


def test_features_are_the_words_of_the_gloss_and_not_of_the_synset(wordnet):
    words = wordnet_vocabulary()
    assert len(words) == 5_000
    assert list(words) == sorted(set(words))
    row = list(wordnet.info.node_ids).index("entity.n.01")
    start, end = wordnet.x.crow_indices()[row : row + 2]
    chosen = {words[i] for i in wordnet.x.col_indices()[start:end]}
    # "that which is perceived or known or inferred to have its own distinct existence (living or
    # nonliving)": of its words without stop words, those in the vocabulary
    gloss = {"perceived", "known", "inferred", "distinct", "existence", "living", "nonliving"}
    assert chosen == gloss & set(words)
    assert {"perceived", "known", "existence", "living"} <= chosen
    assert "entity" in words  # known as a word, and yet no feature of the node of that name


def test_a_tenth_of_every_class_trains(wordnet):
    split = split_nodes(wordnet, 0)
    sizes = len(split.train), len(split.val), len(split.test)
    assert sizes == (8_211, 8_211, 65_693)
    share = wordnet.y[split.train].bincount() / wordnet.y.bincount()
    assert share.min() > 0.09
    assert share.max() < 0.11


def test_loading_is_quick():
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        load_wordnet()
        best = min(best, time.perf_counter() - start)
    assert best < 0.5


def test_the_licence_and_few_bytes_are_in_the_package():
    folder = files("limbeck.graphs") / "data"
    licence = (folder / "WORDNET-LICENSE.txt").read_text()
    assert "WordNet 3.0 Copyright 2006 by Princeton University.  All rights reserved." in licence
    assert "Permission to use, copy, modify and distribute" in licence
    assert sum(len(entry.read_bytes()) for entry in folder.iterdir()) < 1_500_000


def test_builder_reads_the_database_format(builder, dict_folder):
    arrays = builder.build_arrays(dict_folder)
    assert arrays["names"].tobytes() == b"animal.n.01\ncat.n.02\ncat.n.01"
    assert arrays["labels"].tolist() == [2, 2, 17]
    assert arrays["edges_per_source"].tolist() == [1, 0, 0]  # no loop, no verb, one direction
    assert arrays["edge_span"].tolist() == [1]
    # stop words ("the", "of") and one-letter words are out; alphabetical
    assert arrays["vocabulary"].tobytes() == b"living\nmoves\nplant\nsmall\nthing"
    assert arrays["words_per_gloss"].tolist() == [3, 3, 2]
    assert arrays["word_index"].tolist() == [0, 1, 4, 0, 3, 4, 2, 4]


def test_builder_keeps_the_most_frequent_words_ties_by_alphabet(builder, dict_folder, monkeypatch):
    monkeypatch.setattr(builder, "VOCABULARY_SIZE", 3)
    # thing 3 glosses, living 2; moves, plant, small 1 each
    vocabulary = builder.build_arrays(dict_folder)["vocabulary"]
    assert vocabulary.tobytes() == b"living\nmoves\nthing"


def test_builder_gives_the_same_bytes_and_the_licence(builder, dict_folder, tmp_path, monkeypatch):
    written = []
    for out in (tmp_path / "a", tmp_path / "b"):
        monkeypatch.setattr(sys, "argv", ["build_wordnet.py", str(dict_folder), str(out)])
        builder.main()
        assert sorted(path.name for path in out.iterdir()) == ["WORDNET-LICENSE.txt", "wordnet.npz"]
        written.append((out / "wordnet.npz").read_bytes())
    assert written[0] == written[1]
    assert np.load(tmp_path / "a" / "wordnet.npz")["labels"].tolist() == [2, 2, 17]
    lines = (tmp_path / "a" / "WORDNET-LICENSE.txt").read_text().splitlines()
    assert lines == [f"licence line {i}" for i in range(1, 30)]


def test_builder_refuses_a_line_whose_pointers_do_not_add_up(builder):
    with pytest.raises(SystemExit, match="00000100 does not hold the pointers"):
        builder.parse_synset("00000100 05 n 01 cat 0 002 @ 00000200 n 0000 | gloss")
