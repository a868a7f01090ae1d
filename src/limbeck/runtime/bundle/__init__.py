"""Bundle format 2: the folder that leaves the training machine.

::

    limbeck.json       what the bundle is; size and sha256 of every other file; its own seal
    model.onnx         the student: node inputs in, logits out
    sparse.onnx        the same for feature rows given as their entries, where features are sparse
    cold.onnx          the student of nodes whose bands are not known, where it reads bands
    store/*.npy        known nodes: ids, features, cached logits
    README.md          the card

A bundle holds no pickles and no code. ``docs/bundle.md`` describes it field by field. Reading
and writing need NumPy and the standard library only. Bundles of format 1, which had neither
``sparse.onnx`` nor the fields ``routing`` and ``sparse``, are read, too.
"""

from limbeck.runtime.bundle.manifest import (
    BANDS,
    BANDS_CHAINS,
    CARD,
    COLD_MODEL,
    FORMAT,
    GRAPH,
    HEAD_CHAINS,
    INPUTS,
    LABELS_FORMAT,
    LONE_CHAINS,
    LONE_SUM_CHAINS,
    MANIFEST,
    MODEL,
    MOST_BANDS,
    MOST_EXPERTS,
    NEIGHBORS,
    PREDICTOR_CHAIN,
    READABLE,
    SPARSE_MODEL,
    STORE,
    STUDENT_CHAIN,
    SUM_CHAINS,
    BandsEntry,
    CascadeEntry,
    FileEntry,
    FoldedBands,
    FoldedEntry,
    GraphEntry,
    HeadEntry,
    InputEntry,
    LayerEntry,
    Manifest,
    NeighborhoodEntry,
    QuantizationEntry,
    RoutingEntry,
    SparseEntry,
    StatisticsEntry,
    StructureEntry,
    format_of,
)
from limbeck.runtime.bundle.parsing import parse_manifest
from limbeck.runtime.bundle.reading import Bundle, open_bundle
from limbeck.runtime.bundle.writing import check_target, write_bundle

__all__ = [
    "BANDS",
    "BANDS_CHAINS",
    "CARD",
    "COLD_MODEL",
    "FORMAT",
    "GRAPH",
    "HEAD_CHAINS",
    "INPUTS",
    "LABELS_FORMAT",
    "LONE_CHAINS",
    "LONE_SUM_CHAINS",
    "MANIFEST",
    "MODEL",
    "MOST_BANDS",
    "MOST_EXPERTS",
    "NEIGHBORS",
    "PREDICTOR_CHAIN",
    "READABLE",
    "SPARSE_MODEL",
    "STORE",
    "STUDENT_CHAIN",
    "SUM_CHAINS",
    "BandsEntry",
    "Bundle",
    "CascadeEntry",
    "FileEntry",
    "FoldedBands",
    "FoldedEntry",
    "GraphEntry",
    "HeadEntry",
    "InputEntry",
    "LayerEntry",
    "Manifest",
    "NeighborhoodEntry",
    "QuantizationEntry",
    "RoutingEntry",
    "SparseEntry",
    "StatisticsEntry",
    "StructureEntry",
    "check_target",
    "format_of",
    "open_bundle",
    "parse_manifest",
    "write_bundle",
]
