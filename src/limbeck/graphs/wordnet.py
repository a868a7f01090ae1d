"""The embedded data set: the nouns of WordNet 3.0 as a graph.

A node is a synset, an edge a pointer from noun to noun of any kind (is-a, part-of, ...), taken
without direction; the label is the lexicographer file (26 classes, from ``act`` to ``Tops``);
the features are the words of the gloss, a binary bag over the 5,000 words that occur in most
glosses. A synset's own words are its node id only, never a feature.

``scripts/build_wordnet.py`` made the arrays. WordNet's licence lies beside them.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.utils import to_undirected

from limbeck.graphs.info import GraphInfo
from limbeck.graphs.sparse import csr_tensor

Arrays = dict[str, npt.NDArray[Any]]

# lexnames(5WN), files 3 to 28, in the order of the labels
LEXICOGRAPHER_FILES = (
    "Tops",
    "act",
    "animal",
    "artifact",
    "attribute",
    "body",
    "cognition",
    "communication",
    "event",
    "feeling",
    "food",
    "group",
    "location",
    "motive",
    "object",
    "person",
    "phenomenon",
    "plant",
    "possession",
    "process",
    "quantity",
    "relation",
    "shape",
    "state",
    "substance",
    "time",
)


def load_wordnet() -> Data:
    """Load the nouns of WordNet 3.0; needs neither network nor folder.

    Returns:
        A graph with ``x`` float32 ``[82115, 5000]`` in CSR form, ``edge_index`` int64
        ``[2, 230620]`` (115,310 undirected edges), ``y`` int64 ``[82115]``. Node ids are synset
        names such as ``dog.n.01``. A seed draws 10 % training, 10 % validation and 80 % test
        nodes, stratified by class.
    """
    arrays = _arrays()
    graph = Data(
        x=_features(arrays),
        edge_index=_edges(arrays),
        y=torch.from_numpy(arrays["labels"].astype(np.int64)),
    )
    graph.info = GraphInfo(
        name="wordnet",
        dataset="wordnet",
        source="WordNet 3.0, Princeton University, embedded in Limbeck",
        split="random",
        class_names=LEXICOGRAPHER_FILES,
        node_ids=np.array(_lines(arrays["names"]), dtype=object),
        notes={
            "fractions": {"train": 0.1, "val": 0.1},
            "edges": "noun-to-noun pointers of every kind, in both directions, no self-loops",
            "licence": "WordNet 3.0 (limbeck/graphs/data/WORDNET-LICENSE.txt)",
        },
    )
    return graph


def wordnet_vocabulary() -> tuple[str, ...]:
    """The 5,000 words behind the columns of ``x``, in their order (alphabetical)."""
    return tuple(_lines(_arrays()["vocabulary"]))


def _arrays() -> Arrays:
    """The arrays that ``scripts/build_wordnet.py`` wrote."""
    with (files("limbeck.graphs") / "data" / "wordnet.npz").open("rb") as archive:
        return dict(np.load(archive, allow_pickle=False))


def _features(arrays: Arrays) -> Tensor:
    counts = torch.from_numpy(arrays["words_per_gloss"].astype(np.int64))
    indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    indices = torch.from_numpy(arrays["word_index"].astype(np.int64))
    size = (len(counts), len(_lines(arrays["vocabulary"])))
    return csr_tensor(indptr, indices, torch.ones(len(indices)), size)


def _edges(arrays: Arrays) -> Tensor:
    counts = arrays["edges_per_source"]
    source = np.repeat(np.arange(len(counts)), counts)
    target = source + arrays["edge_span"].astype(np.int64)
    ends = torch.from_numpy(np.stack([source, target]))
    both: Tensor = to_undirected(ends, num_nodes=len(counts))
    return both


def _lines(text: npt.NDArray[np.uint8]) -> list[str]:
    return text.tobytes().decode("ascii").split("\n")
