"""What students of experts cost beside an MLP of the same width, as their bundles answer.

    python benchmarks/experts_latency.py

RbM and MoE of two layers are exported with features as sparse as cpf-cora's (1,433 words, some 18
of them in a node) and as dense as a-computer's (767 words, 35 % of them in a node), and asked
through ``predict_proba``. Weights are random, memories placed by k-means as in training: time
depends on shapes and on where nodes are sent, not on what is answered. All that stands in one row
of a table is asked in turns, in one process and on one thread. Printed is that thread's time on the
CPU, the median of the quickest turn: close to the latency of a process that has a core and its
caches for itself, also where the machine is shared with others.

The second table is of the models alone, without the checks of a request: the same RbM with its
layers computed in each of the forms of :mod:`limbeck.export.forms`, and as
:func:`torch.onnx.export` writes it, every expert for every row. Beside them stands what choosing
itself adds to: as many MLPs as there are experts in use, on the rows that each of them gets.
"""

from __future__ import annotations

import argparse
import math
import platform
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from untrained import TURNS, stored_request, times_us, untrained_bundle

import limbeck
from limbeck.export import to_onnx
from limbeck.graphs.sparse import to_csr
from limbeck.runtime import BundledStudent
from limbeck.runtime.kernel import OnnxKernel
from limbeck.runtime.rows import Rows
from limbeck.students import MLP, NodeInputs
from limbeck.students.moe import MoE
from limbeck.students.rbm import RbM

NODES = 600
BATCHES = (1, 10, 256)
WIDTHS = (128, 512)
EXPERTS = ((4, 3), (7, 2), (8, 3))


@dataclass(frozen=True)
class Shape:
    """What a graph's features look like."""

    name: str
    num_features: int
    per_node: float
    num_classes: int
    sparse: bool

    def features(self) -> torch.Tensor:
        """Binary features of ``NODES`` nodes, of words that differ in how common they are."""
        share = torch.rand(self.num_features) ** 2
        share = (share * self.per_node / share.sum()).clamp(max=1)
        x = (torch.rand(NODES, self.num_features) < share).float()
        return to_csr(x) if self.sparse else x


SHAPES = (
    Shape("cora, sparse", 1433, 18, 7, sparse=True),
    Shape("a-computer, dense", 767, 267, 10, sparse=False),
)


def make_student(kind: str, shape: Shape, width: int, experts: tuple[int, int]) -> torch.nn.Module:
    """A student with random weights, past pretraining."""
    size = (shape.num_features, width, shape.num_classes, 2)
    if kind == "mlp":
        return MLP(*size)
    if kind == "moe":
        moe = MoE(*size, *experts)
        moe.begin_routing()
        return moe
    rbm = RbM(*size, *experts)
    rbm.convert(NodeInputs(shape.features()))
    for module in rbm.modules():
        if isinstance(module, torch.nn.Linear):
            module.reset_parameters()
    return rbm


def load(student: torch.nn.Module, shape: Shape, folder: Path) -> BundledStudent:
    """The student as its bundle answers."""
    path = folder / f"{type(student).__name__}-{id(student)}"
    untrained_bundle(path, student, NodeInputs(shape.features()), shape.num_classes)
    return limbeck.load(path)


def drawn(size: int) -> npt.NDArray[np.int64]:
    """Nodes that the students know, the same at each call."""
    return np.random.default_rng(size).integers(NODES, size=size)


def stored_rows(student: BundledStudent, size: int) -> Rows:
    """Their features."""
    return student.store.features(drawn(size))


def answers_table(folder: Path) -> list[str]:
    """RbM and MoE against an MLP, through ``predict_proba``."""
    lines = [
        "| features | width | E, k | batch | MLP, us | RbM, us | RbM / MLP | k + 20 % | MoE, us | "
        "MoE / MLP |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for shape in SHAPES:
        for width in WIDTHS:
            mlp = load(make_student("mlp", shape, width, (1, 1)), shape, folder)
            for experts in EXPERTS:
                students = {
                    "mlp": mlp,
                    "rbm": load(make_student("rbm", shape, width, experts), shape, folder),
                    "moe": load(make_student("moe", shape, width, experts), shape, folder),
                }
                for size in BATCHES:
                    x = stored_request(mlp, drawn(size))
                    us = times_us(
                        {
                            name: partial(student.predict_proba, x=x)
                            for name, student in students.items()
                        }
                    )
                    num, top_k = experts
                    lines.append(
                        f"| {shape.name} | {width} | {num}, {top_k} | {size} | {us['mlp']:.1f} | "
                        f"{us['rbm']:.1f} | {us['rbm'] / us['mlp']:.2f} | {1.2 * top_k:.1f} | "
                        f"{us['moe']:.1f} | {us['moe'] / us['mlp']:.2f} |"
                    )
                    print(lines[-1], flush=True)
    return lines


def forms_of(student: torch.nn.Module, shape: Shape, bundle: BundledStudent) -> dict[str, Any]:
    """Kernels that compute the same student in different ways."""
    size = (shape.num_features, shape.num_classes, "model.onnx")
    forms = {"all": 2**62, "grouped": 0}
    kernels: dict[str, Any] = {"bundle": bundle.kernel}
    for name, bound in forms.items():
        with mock.patch("limbeck.export.forms.GROUP_ABOVE", bound):
            kernels[name] = OnnxKernel(to_onnx(student), *size)
    with mock.patch("limbeck.export.onnx.fold", return_value=None):
        kernels["torch.onnx"] = OnnxKernel(to_onnx(student), *size)
    return kernels


def forms_table(folder: Path) -> list[str]:
    """One RbM in the forms that its layers can take."""
    names = ("mlp", "bundle", "grouped", "all", "torch.onnx")
    lines = [
        f"| features | width | E, k | batch | {', us | '.join(names)}, us | MLPs apart, us |",
        "|---" * (5 + len(names)) + "|",
    ]
    for shape in SHAPES:
        for width in WIDTHS:
            mlp = load(make_student("mlp", shape, width, (1, 1)), shape, folder)
            for experts in EXPERTS:
                student = make_student("rbm", shape, width, experts).eval()
                kernels = forms_of(student, shape, load(student, shape, folder))
                kernels = {"mlp": mlp.kernel, **kernels}
                for size in BATCHES:
                    num, top_k = experts
                    # an MLP for each expert that the batch needs, on an even share of its rows
                    in_use = min(num, size * top_k)
                    share = stored_rows(mlp, math.ceil(size * top_k / in_use))
                    rows = stored_rows(mlp, size)
                    calls = {name: partial(kernel, rows) for name, kernel in kernels.items()}
                    us = times_us({**calls, "share": partial(mlp.kernel, share)})
                    figures = " | ".join(f"{us[name]:.1f}" for name in names)
                    lines.append(
                        f"| {shape.name} | {width} | {num}, {top_k} | {size} | {figures} | "
                        f"{in_use * us['share']:.1f} |"
                    )
                    print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=None, help="also write the tables there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        answers = answers_table(Path(folder))
        forms = forms_table(Path(folder))
    text = "\n".join(
        [
            "# Latency of students of experts",
            "",
            "CPU time of one call of `predict_proba`, median of the quickest of "
            f"{TURNS} turns; two "
            "layers, one thread.",
            "",
            *answers,
            "",
            "The same of one call of the kernel, without the checks of a request. *mlp* is the MLP "
            "and *bundle* an exported RbM; *grouped* and *all* make its layers of experts "
            "do so for dense rows; *torch.onnx* is `torch.onnx.export` of the module; *MLPs apart* "
            "is an MLP for each expert that the batch needs, each on its share of the rows.",
            "",
            *forms,
            "",
            f"`python benchmarks/experts_latency.py`, Python {platform.python_version()}, ONNX "
            f"Runtime {onnxruntime.__version__}, {platform.machine()}.",
        ]
    )
    print("\n" + text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
