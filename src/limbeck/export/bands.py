"""A student that reads the bands of a graph transform as two ONNX models.

One answers nodes whose bands are known, the other those that come without::

    x, bands [B, w]  ->  logits, gates [B, layers * bands], shares [B, bands + 1]
    x                ->  the same

``gates`` and ``shares`` are there for a student that explains itself, as those of
:mod:`limbeck.students.fmlp` do.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import OptionError
from limbeck.export.compiled import Compiled, compile_bands
from limbeck.export.fmlp import write_fmlp, writes
from limbeck.export.folded import Array, as_array
from limbeck.export.forms import DenseRows
from limbeck.export.graph import Dtype, Graph, Signature
from limbeck.export.onnx import (
    PROBE_ROWS,
    RawStudent,
    Scaling,
    check_parity,
    check_scaling,
    dense_rows,
    export_module,
    known_logits,
)
from limbeck.runtime.bundle import BandsEntry
from limbeck.runtime.kernel import BAND_ANSWERS, OnnxKernel
from limbeck.runtime.native import HAS_KERNELS, answer_of_bands
from limbeck.students.fmlp import FMLP
from limbeck.students.inputs import InputSpec, NodeInputs


class Explanation(Protocol):
    """How bands count in the answers for ``B`` nodes."""

    @property
    def logits(self) -> Tensor:
        """The student's answers, ``[B, C]``."""

    @property
    def gates(self) -> Tensor:
        """Weight of the graph in each layer and band, ``[B, layers, bands]``."""

    @property
    def shares(self) -> Tensor:
        """Share of each band, and of the features behind them, ``[B, bands + 1]``."""


@runtime_checkable
class ExplainsBands(Protocol):
    """A student that says how bands count."""

    def explain(self, inputs: NodeInputs) -> Explanation:
        """How they do for some nodes, with their bands or without."""


@dataclass(frozen=True)
class BandsExport:
    """A student that reads bands, as its bundle holds it.

    Args:
        entry: What its models tell of bands.
        model: The ONNX model of nodes with bands.
        cold: That of nodes without.
        logits: Answers for the known nodes, float32 ``[N, C]``.
        compiled: The student as the compiled kernels read it, where they have a form for it.
    """

    entry: BandsEntry
    model: bytes
    cold: bytes
    logits: Array
    compiled: Compiled | None = None

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of the manifest that only such students have."""
        folded = {} if self.compiled is None else {"folded": self.compiled.fields}
        return {"bands": asdict(self.entry), **folded}


class _Answers(NamedTuple):
    logits: Tensor
    gates: Tensor
    shares: Tensor


class _Answering(torch.nn.Module):
    """A student on raw features that says how bands count, where it can."""

    def __init__(self, raw: RawStudent) -> None:
        super().__init__()
        self.raw = raw

    def forward(self, x: Tensor, bands: Tensor | None = None) -> Tensor | _Answers:
        if not isinstance(self.raw.student, ExplainsBands):
            return cast(Tensor, self.raw(x, bands=bands))
        told = self.raw.student.explain(self.raw.inputs(x, bands=bands))
        return _Answers(told.logits, told.gates.flatten(1), told.shares)


def export_bands(
    student: torch.nn.Module,
    inputs: NodeInputs,
    banded: Tensor | None = None,
    scaling: Scaling | None = None,
) -> BandsExport:
    """Export a student that reads bands, and check that it answers the same.

    Args:
        student: The student; its ``inputs`` declare ``x`` and ``bands``. It is left as it is.
        inputs: Raw inputs of all ``N`` known nodes, on the CPU.
        banded: Which of them have bands, bool ``[N]``; all by default. The others are answered as
            new nodes without, whatever stands in their rows.
        scaling: What ``x`` was standardised with in training.

    Raises:
        OptionError: The inputs have no bands or do not fit, or ``scaling`` does not.
        ParityError: The bundle would answer differently from torch.
    """
    specs = cast(tuple[InputSpec, ...], student.inputs)
    width, bands_width = specs[0].width, specs[1].width
    check_scaling(scaling, width)
    inputs, banded = _checked(inputs, banded, bands_width)
    raw = RawStudent(copy.deepcopy(student), scaling).cpu().eval()
    answering = _Answering(raw).eval()
    entry = _entry(answering, width, bands_width)
    compiled = None
    if writes(raw.student):
        compiled = compile_bands(cast(FMLP, raw.student), scaling)
        written = [_written(cast(FMLP, raw.student), scaling, read) for read in (True, False)]
    else:
        outputs = BAND_ANSWERS if entry.count else BAND_ANSWERS[:1]
        reads = {"x": width, "bands": bands_width}, {"x": width}
        written = [export_module(answering, widths, outputs) for widths in reads]
    model, cold = written
    warm = known_logits(student, inputs, scaling)
    alone = known_logits(student, NodeInputs(inputs.x), scaling)
    logits = np.where(banded.numpy()[:, None], warm, alone)
    exported = BandsExport(entry, model, cold, logits, compiled)
    _check(exported, answering, inputs, (width, bands_width))
    return exported


def _written(student: FMLP, scaling: Scaling | None, reads_bands: bool) -> bytes:
    """The model of a student that Limbeck knows, scaling in front of it."""
    g = Graph()
    x, width = "x", student.in_channels
    if scaling is not None:
        mean, deviation = (as_array(vector.cpu()) for vector in scaling)
        x = g.op("Div", g.op("Sub", x, mean), deviation)
    written = write_fmlp(DenseRows(g, x, width), student, "bands" if reads_bands else None)
    for name, value in zip(BAND_ANSWERS, written, strict=True):
        g.name(value, name)
    count, layers = student.num_bands, student.reader.num_powers
    inputs: dict[str, tuple[Dtype, tuple[str | int, ...]]] = {"x": ("float32", ("batch", width))}
    if reads_bands:
        inputs["bands"] = ("float32", ("batch", student.reader.width))
    outputs: Signature = {
        "logits": ("float32", ("batch", student.out_channels)),
        "gates": ("float32", ("batch", layers * count)),
        "shares": ("float32", ("batch", count + 1)),
    }
    return g.model(inputs, outputs)


def _checked(inputs: NodeInputs, banded: Tensor | None, width: int) -> tuple[NodeInputs, Tensor]:
    if inputs.bands is None or inputs.bands.shape != (len(inputs), width):
        found = "none" if inputs.bands is None else f"{tuple(inputs.bands.shape)}"
        raise OptionError(
            f"the student reads bands of {width} values per node, and the inputs of the "
            f"{len(inputs)} known nodes have {found}."
        )
    if banded is None:
        banded = torch.ones(len(inputs), dtype=torch.bool)
    banded = banded.cpu()
    if banded.dtype != torch.bool or banded.shape != (len(inputs),):
        raise OptionError(f"banded must be {len(inputs)} booleans, one per known node.")
    return inputs, banded


@torch.no_grad()
def _entry(answering: _Answering, width: int, bands_width: int) -> BandsEntry:
    """What the models tell, found by asking about two nodes."""
    student = answering.raw.student
    if not isinstance(student, ExplainsBands):
        return BandsEntry(0, 0)
    rows = answering.raw.inputs(torch.zeros(2, width), bands=torch.zeros(2, bands_width))
    _, layers, count = student.explain(rows).gates.shape
    return BandsEntry(count, layers)


@torch.no_grad()
def _check(
    exported: BandsExport, answering: _Answering, inputs: NodeInputs, widths: tuple[int, int]
) -> None:
    """Compare with torch on known nodes, spread evenly, with their bands and without."""
    probe = torch.linspace(0, max(len(inputs) - 1, 0), min(PROBE_ROWS, len(inputs))).long()
    taken = inputs.take(probe)
    assert taken.bands is not None
    (x,) = dense_rows(NodeInputs(taken.x))
    num_classes = exported.logits.shape[1]
    compiled = exported.compiled if HAS_KERNELS else None
    quickly = None if compiled is None else answer_of_bands(compiled.entry, compiled.arrays)
    rows = np.ascontiguousarray(x.float().numpy())
    for model, width, bands in (
        (exported.model, widths[1], taken.bands.float()),
        (exported.cold, 0, None),
    ):
        kernel = OnnxKernel(
            model,
            widths[0],
            num_classes,
            "the exported model",
            bands_width=width,
            bands=exported.entry,
        )
        expected = answering.raw(x.float(), bands=bands).numpy()
        read = None if bands is None else np.ascontiguousarray(bands.numpy())
        check_parity(expected, kernel(rows, bands=read))
        if quickly is not None:
            found = quickly(rows) if read is None else quickly(rows, read)
            assert found is not None
            check_parity(expected, found)
