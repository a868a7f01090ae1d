"""Write a small graph as two tables, the way it would come out of a warehouse.

    python examples/make_tables.py shop

A node is a handwritten digit of scikit-learn with an id of its own; an edge joins two that look
alike. Replace the two files by yours.
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.datasets import load_digits
from sklearn.neighbors import kneighbors_graph

folder = Path(sys.argv[1])
folder.mkdir(exist_ok=True)
pixels, digit = load_digits(return_X_y=True)
names = np.array([f"scan-{i:04d}" for i in range(len(digit))])
nodes = {
    "scan": names,
    "digit": [f"a {d}" for d in digit],
    "ink": pixels.sum(axis=1),
    "pen": np.where(pixels.max(axis=1) == 16, "dark", "light"),
    "pixels": list(pixels.astype(np.float32)),
}
pq.write_table(pa.table(nodes), folder / "scans.parquet")
source, target = kneighbors_graph(pixels, 5).nonzero()
pq.write_table(
    pa.table({"this": names[source], "looks_like": names[target]}), folder / "alike.parquet"
)
print(f"{folder}/scans.parquet, {folder}/alike.parquet")
