"""What the bands of a framelet transform cost: FMLP students beside an MLP of the same width.

    python benchmarks/framelet_latency.py

All are exported with features as sparse as cpf-cora's (1,433 words, some 18 of them in a node) and
as dense as a-photo's (745 words, 35 % of them in a node), with one low-pass and two high-pass bands
and, but for FMLP-S, two powers of each. FMLP-O and FMLP-S read 64 values per power and band that
were learned, FMLP-X coefficients of the features, projected to 64. They are asked through
``predict_proba`` on one thread in three ways: with their bands, with features alone where the
predictor says what the bands would be, and with features alone where all gates are closed to the
graph. Weights are random: time depends on shapes, not on what is answered.

All that stands in one row of the table is asked in turns, in one process. Printed is that thread's
time on the CPU, the median of the quickest turn: close to the latency of a process that has a core
and its caches for itself, also where the machine is shared with others.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from untrained import TURNS, stored_request, times_us, untrained_bundle

import limbeck
from limbeck.graphs.sparse import to_csr
from limbeck.runtime import BundledStudent
from limbeck.students import MLP, NodeInputs
from limbeck.students.fmlp import FMLP, FMLPO, FMLPS, BandEncoders, GivenBands

NODES = 600
BATCHES = (1, 10, 256)
WIDTHS = (64,)
BANDS = 3
POWERS = 2
COEFFICIENTS = 64


@dataclass(frozen=True)
class Shape:
    """What a graph's features look like."""

    name: str
    features: int
    share: float
    sparse: bool
    classes: int


SHAPES = (
    Shape("cpf-cora", 1433, 18 / 1433, True, 7),
    Shape("a-photo", 745, 0.35, False, 8),
)


def make_students(shape: Shape, width: int) -> dict[str, FMLP]:
    """Framelet students with random weights, each with a predictor."""
    size = (shape.features, shape.classes)
    students: dict[str, FMLP] = {
        "FMLP-O": FMLPO(*size, GivenBands(POWERS, BANDS, width)),
        "FMLP-S": FMLPS(*size, GivenBands(1, BANDS, width)),
        "FMLP-X": FMLPO(*size, BandEncoders(POWERS, BANDS, width, COEFFICIENTS)),
    }
    for student in students.values():
        student.add_predictor(width)
        student.eval()
    return students


def bundled(
    student: torch.nn.Module, inputs: NodeInputs, shape: Shape, path: Path
) -> BundledStudent:
    """The student, read again from its bundle."""
    return limbeck.load(untrained_bundle(path, student, inputs, shape.classes))


def rows_of(shape: Shape, width: int, folder: Path) -> list[list[Any]]:
    """Rows of the table: the students of a shape and a width, each beside the MLP."""
    torch.manual_seed(0)
    x = (torch.rand(NODES, shape.features) < shape.share).float()
    stored = to_csr(x) if shape.sparse else x
    plain = MLP(shape.features, width, shape.classes)
    mlp = bundled(plain, NodeInputs(stored), shape, folder / "mlp")
    rows = []
    for name, student in make_students(shape, width).items():
        bands = torch.randn(NODES, student.reader.width)
        inputs = NodeInputs(stored, bands=bands)
        by_predictor, by_features = (
            bundled(student.answering_by(fallback), inputs, shape, folder / f"{name}-{fallback}")
            for fallback in ("predictor", "features")
        )
        for batch in BATCHES:
            given = stored_request(mlp, np.arange(batch))
            times = times_us(
                {
                    "mlp": partial(mlp.predict_proba, x=given),
                    "bands": partial(
                        by_predictor.predict_proba, x=given, bands=bands[:batch].numpy()
                    ),
                    "predictor": partial(by_predictor.predict_proba, x=given),
                    "features": partial(by_features.predict_proba, x=given),
                }
            )
            cells = [f"{value:.1f}" for value in times.values()]
            ratios = [f"{times[way] / times['mlp']:.1f}" for way in ("bands", "predictor")]
            rows.append([shape.name, width, name, batch, *cells, *ratios])
    return rows


def report(widths: tuple[int, ...]) -> str:
    """The measured table, as Markdown."""
    names = ["shape", "width", "student", "nodes", "MLP", "with bands", "by the predictor"]
    names += ["by features", "with bands / MLP", "by the predictor / MLP"]
    lines = [_row(names), _row(["---"] * len(names))]
    for shape in SHAPES:
        for width in widths:
            with tempfile.TemporaryDirectory() as folder:
                lines += map(_row, rows_of(shape, width, Path(folder)))
    return "\n".join(lines)


def _row(cells: list[Any]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    """Measure, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--out", type=Path, help="file to write instead of printing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    text = (
        "# Framelet students beside an MLP of the same width\n\n"
        "Microseconds of `predict_proba`, time of its one thread on the CPU, median of the "
        f"quickest of {TURNS} turns; {BANDS} bands, of FMLP-O and FMLP-X {POWERS} powers each.\n\n"
        f"{report(tuple(options.widths))}\n\n"
        f"Python {platform.python_version()}, NumPy {np.__version__}, ONNX Runtime "
        f"{onnxruntime.__version__}, Limbeck {limbeck.__version__}.\n\n"
        "    python benchmarks/framelet_latency.py --out benchmarks/results/framelet_latency.md\n"
    )
    if options.out is None:
        print(text)
    else:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
