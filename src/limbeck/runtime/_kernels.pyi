"""Types of the compiled kernels, see ``_kernels.c``."""

from typing import Any

import numpy as np
import numpy.typing as npt

class Network:
    def __init__(
        self,
        layers: tuple[tuple[Any, ...], ...],
        beside: int = 0,
        mean: npt.NDArray[np.float32] | None = None,
        deviation: npt.NDArray[np.float32] | None = None,
        /,
    ) -> None: ...
    def answer(
        self, x: Any, position: npt.NDArray[np.float32] = ..., /
    ) -> npt.NDArray[np.float32] | None: ...

class Streams:
    def __init__(
        self,
        known: Known,
        table: tuple[npt.NDArray[Any] | None, ...],
        numbers: tuple[float, float, int, int],
        bias: npt.NDArray[np.float32],
        heads: tuple[tuple[Any, ...], ...],
        predictor: tuple[tuple[Any, ...], ...] | None,
        scaling: tuple[bool, npt.NDArray[np.float32] | None, npt.NDArray[np.float32] | None],
        /,
    ) -> None: ...
    def answer(self, x: Any, *beside: Any) -> npt.NDArray[np.float32] | None: ...

class Bands:
    def __init__(
        self,
        sizes: tuple[int, int, bool, bool],
        encoder: tuple[tuple[Any, ...], ...],
        re_encoder: tuple[tuple[Any, ...], ...] | None,
        heads: tuple[tuple[tuple[Any, ...], ...], ...],
        from_features: tuple[tuple[Any, ...], ...],
        predictor: tuple[tuple[Any, ...], ...] | None,
        gates: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]],
        maps: tuple[npt.NDArray[np.float32], ...] | None,
        scaling: tuple[npt.NDArray[np.float32] | None, npt.NDArray[np.float32] | None],
        /,
    ) -> None: ...
    def answer(
        self, x: Any, bands: npt.NDArray[np.float32] = ..., /
    ) -> npt.NDArray[np.float32] | None: ...

class Known:
    def __init__(
        self,
        logits: npt.NDArray[np.float32],
        ids: npt.NDArray[np.int64] | None,
        order: npt.NDArray[np.int64] | None,
        rows: dict[str, int] | None,
        /,
    ) -> None: ...
    def answer(self, nodes: Any, /) -> npt.NDArray[np.float32] | None: ...

def softmax(
    logits: npt.NDArray[np.float32], temperature: float, /
) -> npt.NDArray[np.float32] | None: ...
