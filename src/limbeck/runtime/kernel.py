"""What computes logits from feature rows."""

from __future__ import annotations

import os
from typing import Protocol

import numpy as np
import numpy.typing as npt

from limbeck.errors import BundleError
from limbeck.runtime.rows import CsrRows, Rows

# Rows per call of the session. They bound the memory that hidden layers and, for sparse input,
# dense rows take; from a few hundred rows on, more of them are no faster per row.
BLOCK_ROWS = 4096
BLOCK_VALUES = 2**23  # 32 MB of float32


class Kernel(Protocol):
    """A student's arithmetic: checked rows in, logits out."""

    def __call__(
        self, x: Rows, position: npt.NDArray[np.float32] | None = None
    ) -> npt.NDArray[np.float32]:
        """Logits ``[B, C]`` of the rows ``x``, with positions ``[B, d]`` if they are read."""
        ...


class OnnxKernel:
    """Runs ``model.onnx`` in ONNX Runtime, on one thread.

    Sparse rows are made dense block by block. The model is given as bytes, not as a path: ONNX
    Runtime then refuses weights that a model would have it read from other files.

    Args:
        model: Content of the model file.
        width: Number of features ``F``.
        num_classes: Number of classes ``C``.
        where: Name of the file, for messages.
        position_width: Width ``d`` of the positional encoding, 0 for none.

    Raises:
        BundleError: ONNX Runtime cannot read the model, or its inputs and outputs are not
            ``x`` float32 ``[B, F]`` and ``logits`` float32 ``[B, C]``.
    """

    def __init__(
        self,
        model: bytes,
        width: int,
        num_classes: int,
        where: str | os.PathLike[str],
        position_width: int = 0,
    ) -> None:
        # imported here: known nodes are answered without it
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as failures

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 4  # errors arrive as exceptions, not on stderr
        try:
            self._session = onnxruntime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"]
            )
        except (
            failures.Fail,
            failures.InvalidArgument,
            failures.InvalidGraph,
            failures.InvalidProtobuf,
            failures.NoSuchFile,
            failures.NotImplemented,
            failures.RuntimeException,
        ) as error:
            raise BundleError(f"{where} is not a model that ONNX Runtime can run.") from error
        self._check_signature(width, num_classes, where, position_width)
        self._position_width = position_width
        self._width = width
        self._num_classes = num_classes

    def _check_signature(
        self, width: int, num_classes: int, where: str | os.PathLike[str], position_width: int
    ) -> None:
        found = [
            (value.name, value.type, value.shape[1:])
            for value in (*self._session.get_inputs(), *self._session.get_outputs())
        ]
        inputs = {"x": width} | ({"position": position_width} if position_width else {})
        wanted = [
            *((name, "tensor(float)", [values]) for name, values in inputs.items()),
            ("logits", "tensor(float)", [num_classes]),
        ]
        if found != wanted:
            rows = " and ".join(f"{name} [B, {values}]" for name, values in inputs.items())
            raise BundleError(
                f"{where} maps {found[0]} to {found[-1]}, and must map {rows} to logits "
                f"[B, {num_classes}], all float32."
            )

    def __call__(
        self, x: Rows, position: npt.NDArray[np.float32] | None = None
    ) -> npt.NDArray[np.float32]:
        """Logits ``[B, C]`` of the rows ``x``; a position left out is zeros."""
        if self._position_width and position is None:
            position = np.zeros((len(x), self._position_width), dtype=np.float32)
        if not isinstance(x, CsrRows) and len(x) <= BLOCK_ROWS:
            return self._run(x, position)
        step = max(1, min(BLOCK_ROWS, BLOCK_VALUES // self._width))
        logits = np.empty((len(x), self._num_classes), dtype=np.float32)
        for start in range(0, len(x), step):
            stop = min(start + step, len(x))
            block = x.dense(start, stop) if isinstance(x, CsrRows) else x[start:stop]
            there = None if position is None else position[start:stop]
            logits[start:stop] = self._run(block, there)
        return logits

    def _run(
        self, block: npt.NDArray[np.float32], position: npt.NDArray[np.float32] | None
    ) -> npt.NDArray[np.float32]:
        feed = {"x": block} if position is None else {"x": block, "position": position}
        logits: npt.NDArray[np.float32] = self._session.run(["logits"], feed)[0]
        return logits
