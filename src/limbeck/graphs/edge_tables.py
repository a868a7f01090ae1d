"""The edges of a view as a table in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet
import torch

from limbeck.errors import OutputError
from limbeck.files import appearing_whole
from limbeck.graphs.view import View
from limbeck.table_files import FORMATS


def write_edges(view: View, path: Path, notes: dict[str, Any] | None = None) -> None:
    """Write the edges of a view as a table that :func:`limbeck.graphs.tables.read_tables` reads.

    Columns ``source`` and ``target`` hold the nodes' own ids, each undirected edge once. The file
    is there as a whole or not at all.

    Args:
        view: Its full graph is written: of a rewired view, the rewired edges between observed
            nodes and those of unseen nodes as they are.
        path: ``.parquet``, ``.arrow``, ``.feather`` or ``.csv``; one that is there is replaced.
        notes: Kept as JSON in the metadata of the table, except in CSV.

    Raises:
        OutputError: Another extension, or the file cannot be written.
    """
    check_table_path(path)
    ends = torch.unique(view.nodes[view.everything.edge_index].sort(0).values, dim=1).numpy()
    ids = view.info.node_ids
    table = pa.table({"source": pa.array(ids[ends[0]]), "target": pa.array(ids[ends[1]])})
    if notes is not None:
        table = table.replace_schema_metadata({"limbeck": json.dumps(notes)})
    write = {
        "parquet": pyarrow.parquet.write_table,
        "arrow": pyarrow.feather.write_feather,
        "csv": pyarrow.csv.write_csv,
    }[FORMATS[path.suffix.lower()]]
    with appearing_whole(path) as aside:
        write(table, aside)


def check_table_path(path: Path) -> None:
    """Refuse a file that no table can be written to.

    Raises:
        OutputError: Its extension is unknown, it is a folder, or its folder does not exist.
    """
    if path.suffix.lower() not in FORMATS:
        raise OutputError(
            f"{path} has the extension {path.suffix!r}: a table is a {', '.join(FORMATS)} file."
        )
    if path.is_dir() or not path.parent.is_dir():
        raise OutputError(f"{path} cannot be written: give a file in a folder that exists.")
