"""One door for every graph: a name, a folder of tables, a PyG ``Data`` or ``HeteroData``."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch_geometric.data import Data, HeteroData

from limbeck.errors import GraphError, OptionError, unknown_name
from limbeck.graphs.checks import check_graph
from limbeck.graphs.datasets import DATASETS, load_dataset
from limbeck.graphs.hetero import from_hetero
from limbeck.graphs.hetero_tables import PLAN, hetero_tables, read_hetero_folder
from limbeck.graphs.info import GraphInfo, SplitRule
from limbeck.graphs.rewire import SurgeryOptions
from limbeck.graphs.tables import read_folder
from limbeck.table_files import find_table


def load_graph(
    source: str | os.PathLike[str] | Data,
    *,
    data_root: str | os.PathLike[str] | None = None,
    **table_options: Any,
) -> Data:
    """Load a graph and check it.

    Args:
        source: The name of a data set (``"cora"``, ``"cora:geom-gcn/3"``; see
            ``limbeck datasets``), the path of a folder that holds node and edge tables (with
            ``hetero.yaml``: of several types), or a PyG ``Data`` with ``x``, ``edge_index``, ``y``
            and masks if it has a split of its own, or a ``HeteroData`` with one labelled type.
            ``y`` is ``[N]`` for a class per node, ``[N, C]`` of ones and zeros for several labels;
            a ``Batch`` of several graphs is taken as one whose unseen nodes are whole graphs. A
            name or path followed by ``+sdrf`` (``"cora+sdrf/20"``, ``"texas+sdrf/0.1"``) asks for
            graph surgery: each view rewires what it observes, see
            :class:`limbeck.graphs.rewire.SurgeryOptions`.
        data_root: Folder of the named data sets in PyG's raw layout; ``LIMBECK_DATA`` by default.
        **table_options: How to read a folder; see :func:`limbeck.graphs.tables.read_tables`.

    Returns:
        A ``Data`` with ``info``; a ``HeteroData`` where there are several types of nodes.

    Raises:
        OptionError: Unknown name, or options that do not belong to the source.
        GraphError: The graph is not usable; the sentence says where and why.
    """
    if isinstance(source, Data | HeteroData):
        _no_table_options(table_options, "a PyG Data")
        return from_hetero(source) if isinstance(source, HeteroData) else from_data(source)
    text = _without_surgery(os.fspath(source))
    if text != os.fspath(source):
        suffix = os.fspath(source).removeprefix(f"{text}+")
        surgery = SurgeryOptions.from_suffix(suffix)
        graph = load_graph(text, data_root=data_root, **table_options)
        graph.info = replace(
            graph.info,
            name=f"{graph.info.name}+{suffix.replace('/', '-')}",
            dataset=f"{graph.info.dataset}+{suffix}" if graph.info.dataset else "",
            surgery=surgery,
        )
        return graph
    check_source(text)
    if text.split(":")[0] in DATASETS:
        _no_table_options(table_options, f"the data set {text!r}")
        return load_dataset(text, data_root)
    if (Path(text) / PLAN).is_file():
        _no_table_options(table_options, f"described by {Path(text) / PLAN}")
        return read_hetero_folder(text)
    return read_folder(text, **table_options)


def check_source(source: str) -> None:
    """Refuse a name that no data set has, or a folder that is not there; nothing is read.

    Args:
        source: A name or path as :func:`load_graph` takes it.

    Raises:
        OptionError: Unknown name.
        GraphError: There is no such folder.
    """
    text = _without_surgery(source)
    if text != source:
        SurgeryOptions.from_suffix(source.removeprefix(f"{text}+"))
    if text.split(":")[0] in DATASETS or Path(text).is_dir():
        return
    if os.sep in text or Path(text).exists():
        raise GraphError(f"{text}: no such folder; give a folder that holds nodes and edges.")
    raise unknown_name("data set", text, DATASETS)


def _without_surgery(source: str) -> str:
    """A name or path without what follows its plus; the folder of a user may have one, too."""
    text, plus, _ = source.rpartition("+")
    return text if plus and not Path(source).exists() else source


def content_of(source: str) -> str:
    """Hash of the tables of a folder; of a named data set, which does not change, empty.

    Args:
        source: A name or path as :func:`load_graph` takes it.

    Returns:
        32 hexadecimal digits, or nothing.

    Raises:
        GraphError: The folder holds no tables.
    """
    text = _without_surgery(source)
    if text.split(":")[0] in DATASETS or not Path(text).is_dir():
        return ""
    if (Path(text) / PLAN).is_file():
        tables = hetero_tables(text)
    else:
        tables = [find_table(text, "nodes"), find_table(text, "edges")]
    parts = [sorted(table.rglob("*")) if table.is_dir() else [table] for table in tables]
    files = dict.fromkeys(file for part in parts for file in part if file.is_file())
    stats = ((str(file), file.stat()) for file in files)
    return _content(tuple((file, stat.st_size, stat.st_mtime_ns) for file, stat in stats))


@lru_cache(maxsize=64)
def _content(files: tuple[tuple[str, int, int], ...]) -> str:
    """Hash of files; sizes and times tell a file that was changed since it was read."""
    digest = hashlib.blake2b(digest_size=16)
    for path, *_ in files:
        with open(path, "rb") as stream:
            digest.update(Path(path).name.encode())
            digest.update(hashlib.file_digest(stream, "blake2b").digest())
    return digest.hexdigest()


def from_data(data: Data, name: str = "graph") -> Data:
    """Check a PyG ``Data`` and add what Limbeck needs to know; the given one is not changed.

    Raises:
        GraphError: ``x``, ``edge_index`` or ``y`` is missing or not usable.
    """
    graph = data.clone()
    if isinstance(graph.get("x"), Tensor):
        graph.x = graph.x.float()
    if isinstance(graph.get("y"), Tensor) and graph.y.dim() == 2 and graph.y.shape[1] > 1:
        graph.y = graph.y.float()
    check_graph(graph, f"the graph {name!r}")
    if getattr(graph, "info", None) is not None:
        return graph
    masks = [key for key in ("train_mask", "val_mask", "test_mask") if key in graph]
    if masks and len(masks) < 3:
        raise GraphError(
            f"the graph {name!r} has {' and '.join(masks)} only: give train_mask, val_mask and "
            "test_mask, or none of them."
        )
    rule: SplitRule = "random"
    if masks:
        rule = "columns" if graph.train_mask.dim() == 2 else "fixed"
    several = graph.y.dim() == 2
    num_classes = int(graph.y.shape[1]) if several else int(graph.y.max()) + 1
    graph.info = GraphInfo(
        name=name,
        source="PyG Data",
        split=rule,
        class_names=tuple(str(i) for i in range(num_classes)),
        node_ids=np.arange(graph.num_nodes),
        task="labels" if several else "classes",
    )
    return graph


def _no_table_options(options: dict[str, Any], source: str) -> None:
    if options:
        raise OptionError(
            f"option {min(options)!r} describes tables, but the graph is {source}: leave it out."
        )
