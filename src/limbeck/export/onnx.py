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
        - **input:** raw features ``[B, F]``
        - **output:** logits ``[B, C]``
    """

    def __init__(self, student: torch.nn.Module, scaling: Scaling | None) -> None:
        super().__init__()
        self.student = student
        self.scales = scaling is not None
        if scaling is not None:
            self.register_buffer("mean", scaling[0].float())
            self.register_buffer("deviation", scaling[1].float())

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[B, C]`` of raw rows ``x``."""
        if self.scales:
            x = (x - cast(Tensor, self.mean)) / cast(Tensor, self.deviation)
        return cast(Tensor, self.student(NodeInputs(x=x)))


def to_onnx(
    student: torch.nn.Module, scaling: Scaling | None = None, *, probe: Tensor | None = None
) -> bytes:
    """Export a student to ONNX and check that it answers the same.

    The model maps ``x``, raw features float32 ``[B, F]``, to ``logits`` float32 ``[B, C]`` for
    any ``B``. Batch norm is folded into the linear maps, scaling is part of the model. The
    student itself is left as it is.

    Args:
        student: The student; its ``inputs`` declare ``x`` alone.
        scaling: Mean and deviation that ``x`` was standardised with in training, ``[F]`` each.
        probe: Raw rows ``[B, F]`` to compare the two on; normal random numbers by default.

    Returns:
        The serialised model.

    Raises:
        OptionError: The student reads something else than ``x``, or ``scaling`` does not fit.
        ParityError: Probabilities differ by more than :data:`PARITY`.
    """
    width = input_width(student)
    check_scaling(scaling, width)
    raw_student = RawStudent(copy.deepcopy(student), scaling).cpu().eval()
    model = _export(raw_student, width)
    rows = _random_rows(scaling, width) if probe is None else probe.cpu().float()
    _check_parity(raw_student, model, rows)
    return model


def input_width(student: torch.nn.Module) -> int:
    """Number of features that a student reads.

    Raises:
        OptionError: It reads something else than ``x``, which bundle format 1 has no place for.
    """
    inputs = cast(tuple[InputSpec, ...], student.inputs)
    if [(spec.name, spec.dtype) for spec in inputs] != [("x", "float32")]:
        names = ", ".join(spec.name for spec in inputs) or "nothing"
        raise OptionError(
            f"the student {type(student).__name__} reads {names}: bundle format 1 holds students "
            "that read x as float32 and nothing else."
        )
    return inputs[0].width


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


def _export(module: torch.nn.Module, width: int) -> bytes:
    with _quiet_exporter():
        program = torch.onnx.export(
            module,
            (torch.zeros(2, width),),
            dynamo=True,
            input_names=["x"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
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


def _random_rows(scaling: Scaling | None, width: int) -> Tensor:
    """Rows ``[PROBE_ROWS, F]`` of the size that the student is used to."""
    rows = torch.randn(PROBE_ROWS, width, generator=torch.Generator().manual_seed(0))
    if scaling is None:
        return rows
    return rows * scaling[1].cpu().float() + scaling[0].cpu().float()


def _check_parity(raw_student: RawStudent, model: bytes, rows: Tensor) -> None:
    with torch.no_grad():
        ours = raw_student(rows).numpy()
    kernel = OnnxKernel(model, rows.shape[1], ours.shape[1], where="the exported model")
    theirs = kernel(np.ascontiguousarray(rows.numpy()))
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
