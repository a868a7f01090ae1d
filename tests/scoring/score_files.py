"""Small files of rows, and what a manifest says of a cascade."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

CASCADE = {
    "threshold": 0.75,
    "goal": "accuracy",
    "wanted": 0.9,
    "nodes": 10,
    "coverage": 0.5,
    "accuracy": 1.0,
    "accuracy_lower": 0.55,
    "together": 0.9,
    "curve": {"coverage": [0.5, 1.0], "accuracy": [1.0, 0.8], "threshold": [0.75, 0.5]},
}


def rows_of(x: np.ndarray) -> pa.Array:
    """Rows as fixed-size lists."""
    flat = pa.array(np.ascontiguousarray(x, dtype=np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, x.shape[1])


def write_rows(path: Path, x: np.ndarray, *, row_group_size: int = 100, first: int = 0) -> Path:
    """A file with the columns ``key`` and ``x``."""
    keys = [f"r{first + i}" for i in range(len(x))]
    table = pa.table({"key": keys, "x": rows_of(x), "other": np.zeros(len(x))})
    pq.write_table(table, path, row_group_size=row_group_size)
    return path
