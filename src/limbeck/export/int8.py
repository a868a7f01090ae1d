"""A student's model in eight bits.

Weights become int8, symmetric, with one factor per output; what enters a layer becomes uint8, with
a range that calibration nodes set once. So an answer depends on the node alone, not on what else is
in the batch. Biases, sums and logits stay wide. The arithmetic is that of ONNX Runtime's static
quantisation (``QDQ`` form, Gemm only).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx

from limbeck.errors import OptionError
from limbeck.runtime.bundle import QuantizationEntry
from limbeck.runtime.kernel import OnnxKernel, softmax

Quantization: TypeAlias = Literal["int8"]

CALIBRATION_NODES = 1024
"""Observed nodes at most, evenly spread, whose values set the ranges."""

BLOCK_ROWS = 4096


def quantize_model(model: bytes, rows: dict[str, npt.NDArray[np.float32]]) -> bytes:
    """A model of linear maps and ReLUs in eight bits.

    Args:
        model: The ONNX model, as :func:`limbeck.export.onnx.to_onnx` writes it.
        rows: What it reads of the calibration nodes, by input, ``[n, .]`` each with ``n`` above 0.

    Returns:
        The model, with the same inputs and outputs.
    """
    # imported here: only this option needs it, and it takes half a second
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    wide = onnx.load_from_string(model)
    add_pre_process_metadata(wide)  # else the quantiser advises to optimise what is folded already
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        quantize_static(
            wide,
            path,
            _Calibration(rows),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Gemm"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            # a layer's sums stay float32: ReLU, and the logits, are not rounded a second time
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm"]},
        )
        small = onnx.load(path)
    del small.metadata_props[:]
    small.producer_name, small.producer_version = wide.producer_name, wide.producer_version
    return bytes(small.SerializeToString(deterministic=True))


class _Calibration:
    """Hands the calibration nodes to the quantiser, once."""

    def __init__(self, rows: dict[str, npt.NDArray[np.float32]]) -> None:
        self._rows: Iterator[dict[str, Any]] = iter([rows])

    def get_next(self) -> dict[str, Any] | None:
        """The next batch; ``None`` after the last."""
        return next(self._rows, None)


def check_quantize(quantize: str | None) -> None:
    """Refuse a form of numbers that there is none of.

    Raises:
        OptionError: It is neither ``None`` nor ``"int8"``.
    """
    if quantize not in (None, "int8"):
        raise OptionError(f"quantize is {quantize!r}: it must be 'int8', or left out.")


def compare(
    exact: npt.NDArray[np.float32],
    rounded: npt.NDArray[np.float32],
    temperature: float,
    calibration_nodes: int,
) -> QuantizationEntry:
    """What eight bits change in the answers for the known nodes.

    Args:
        exact: Logits of the student, float32 ``[N, C]`` with ``N`` above 0.
        rounded: Those in eight bits, likewise.
        temperature: Number that logits are divided by before the softmax.
        calibration_nodes: Nodes that set the ranges.
    """
    change = np.abs(softmax(exact, temperature) - softmax(rounded, temperature))
    return QuantizationEntry(
        "int8",
        calibration_nodes,
        agreement=float((exact.argmax(1) == rounded.argmax(1)).mean()),
        largest_change=float(change.max()),
    )


def answers_of(
    model: bytes, rows: dict[str, npt.NDArray[np.float32]], num_classes: int
) -> npt.NDArray[np.float32]:
    """Logits ``[N, C]`` that a model answers.

    Args:
        model: The ONNX model.
        rows: What it reads of ``N`` nodes: ``x`` ``[N, F]``, and perhaps ``position`` ``[N, d]``.
        num_classes: Number of classes ``C``.
    """
    x, position = rows["x"], rows.get("position")
    width = 0 if position is None else position.shape[1]
    return OnnxKernel(model, x.shape[1], num_classes, "the model in int8", width)(x, position)
