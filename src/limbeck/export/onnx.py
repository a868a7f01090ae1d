"""A student as an ONNX model."""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import onnx
import torch
from torch import Tensor

from limbeck.errors import OptionError
from limbeck.runtime.bundle import INPUTS
from limbeck.runtime.kernel import OnnxKernel
from limbeck.runtime.predictor import softmax
from limbeck.students.inputs import InputSpec, NodeInputs

PARITY = 1e-5
"""Largest difference in probability allowed between torch and the exported model."""

PROBE_ROWS = 64

Scaling = tuple[Tensor, Tensor]
"""Mean and deviation of each column, ``[F]`` each."""


class ParityError(RuntimeError):
    """The exported model does not answer as the student does: a fault of Limbeck's."""


class RawStudent(torch.nn.Module):
    """A student that reads raw, dense features: they are scaled inside.

    Args:
        student: The student, which reads ``x``.
        scaling: Mean and deviation that it was trained with, or ``None``.

    Shapes:
        - **input:** raw features ``[B, F]``; positions ``[B, d]`` if the student reads them
        - **output:** logits ``[B, C]``
    """

    def __init__(self, student: torch.nn.Module, scaling: Scaling | None) -> None:
        super().__init__()
        self.student = student
        self.scales = scaling is not None
        if scaling is not None:
            self.register_buffer("mean", scaling[0].float())
            self.register_buffer("deviation", scaling[1].float())

    def forward(self, x: Tensor, position: Tensor | None = None) -> Tensor:
        """Logits ``[B, C]`` of raw rows ``x``."""
        if self.scales:
            x = (x - cast(Tensor, self.mean)) / cast(Tensor, self.deviation)
        return cast(Tensor, self.student(NodeInputs(x, position)))


def to_onnx(
    student: torch.nn.Module,
    scaling: Scaling | None = None,
    *,
    probe: tuple[Tensor, ...] | None = None,
) -> bytes:
    """Export a student to ONNX and check that it answers the same.

    The model maps ``x``, raw features float32 ``[B, F]``, and ``position`` ``[B, d]`` if the
    student reads it, to ``logits`` float32 ``[B, C]`` for any ``B``. Batch norm is folded into the
    linear maps, scaling is part of the model. The student itself is left as it is.

    Args:
        student: The student; its ``inputs`` declare ``x``, and perhaps ``position``.
        scaling: Mean and deviation that ``x`` was standardised with in training, ``[F]`` each.
        probe: Raw dense inputs to compare the two on; normal random numbers by default.

    Returns:
        The serialised model.

    Raises:
        OptionError: The student reads something else, or ``scaling`` does not fit.
        ParityError: Probabilities differ by more than :data:`PARITY`.
    """
    widths = input_widths(student)
    check_scaling(scaling, widths[0])
    raw_student = RawStudent(copy.deepcopy(student), scaling).cpu().eval()
    model = _export(raw_student, widths)
    rows = _random_rows(scaling, widths) if probe is None else probe
    _check_parity(raw_student, model, tuple(part.cpu().float() for part in rows))
    return model


def input_widths(student: torch.nn.Module) -> tuple[int, ...]:
    """Number of features that a student reads, and of values of a position if it reads one.

    Raises:
        OptionError: It reads something else, which bundle format 1 has no place for.
    """
    inputs = cast(tuple[InputSpec, ...], student.inputs)
    names = tuple(spec.name for spec in inputs)
    alike = all(spec.dtype == "float32" for spec in inputs)
    if not names or names != INPUTS[: len(names)] or not alike:
        raise OptionError(
            f"the student {type(student).__name__} reads {', '.join(names) or 'nothing'}: bundle "
            "format 1 holds students that read x, or x and position, as float32."
        )
    return tuple(spec.width for spec in inputs)


def check_scaling(scaling: Scaling | None, width: int) -> None:
    """Refuse scaling that does not fit ``width`` features.

    Raises:
        OptionError: A vector has another length, is not finite, or a deviation is not above 0.
    """
    if scaling is None:
        return
    for name, vector in zip(("mean", "deviation"), scaling, strict=True):
        if vector.shape != (width,) or not vector.isfinite().all():
            raise OptionError(
                f"the {name} of the scaling must be {width} finite numbers, one per feature."
            )
    if not (scaling[1] > 0).all():
        raise OptionError("the deviation of the scaling must be above 0 for every feature.")


def _export(module: torch.nn.Module, widths: tuple[int, ...]) -> bytes:
    with _quiet_exporter():
        program = torch.onnx.export(
            module,
            tuple(torch.zeros(2, width) for width in widths),
            dynamo=True,
            input_names=list(INPUTS[: len(widths)]),
            output_names=["logits"],
            dynamic_shapes=tuple({0: torch.export.Dim.DYNAMIC} for _ in widths),
            verbose=False,
        )
    if program is None:  # only where a file is asked for
        raise RuntimeError("torch.onnx.export returned no model")
    return bytes(_clean(program.model_proto).SerializeToString(deterministic=True))


def _clean(model: Any) -> Any:
    """Leave out what the exporter notes for debugging, file names of this machine among it."""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    # intermediate shapes: inferred again by any reader, and wrong after folding (quantisation
    # trips over them)
    del model.graph.value_info[:]
    model.graph.name = "student"
    for part in (*model.graph.node, *model.graph.initializer, *_ends(model)):
        part.doc_string = ""
        del part.metadata_props[:]
    for value in _ends(model):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.checker.check_model(model, full_check=True)
    return model


def _ends(model: Any) -> list[Any]:
    return [*model.graph.input, *model.graph.output]


def _random_rows(scaling: Scaling | None, widths: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Inputs ``[PROBE_ROWS, .]`` of the size that the student is used to."""
    generator = torch.Generator().manual_seed(0)
    x, *others = (torch.randn(PROBE_ROWS, width, generator=generator) for width in widths)
    if scaling is not None:
        x = x * scaling[1].cpu().float() + scaling[0].cpu().float()
    return (x, *others)


def _check_parity(raw_student: RawStudent, model: bytes, rows: tuple[Tensor, ...]) -> None:
    with torch.no_grad():
        ours = raw_student(*rows).numpy()
    widths = [part.shape[1] for part in rows]
    kernel = OnnxKernel(model, widths[0], ours.shape[1], "the exported model", sum(widths[1:]))
    theirs = kernel(*(np.ascontiguousarray(part.numpy()) for part in rows))
    difference = np.abs(softmax(ours, 1.0) - softmax(theirs, 1.0)).max(initial=0.0)
    if not difference <= PARITY:
        raise ParityError(
            f"the exported model differs from the student by {difference:.2g} in probability, and "
            f"{PARITY:g} is allowed"
        )


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep two messages of the exporter from users, who cannot act on them.

    One says that torchvision, which we do not use, is not installed; the other is about a
    deprecated call inside torch itself.
    """

    def not_about_torchvision(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("torchvision is not installed")

    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    logger.addFilter(not_about_torchvision)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=r"`isinstance\(treespec, LeafSpec\)`", category=FutureWarning
            )
            yield
    finally:
        logger.removeFilter(not_about_torchvision)
