"""Types of the compiled kernels, see ``_kernels.c``."""

from typing import Any

import numpy as np
import numpy.typing as npt

class Mlp:
    def __init__(
        self, layers: tuple[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]], ...], /
    ) -> None: ...
    def answer(self, x: Any, /) -> npt.NDArray[np.float32] | None: ...

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
