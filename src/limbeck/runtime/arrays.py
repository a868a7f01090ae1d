"""Arrays of a bundle, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from limbeck.errors import BundleError


def checked_array(
    arrays: Mapping[str, npt.NDArray[Any]],
    where: str,
    name: str,
    dtype: type[np.generic],
    shape: tuple[int | None, ...],
) -> npt.NDArray[Any]:
    """Array ``name`` of a store, which must be of that type and shape (``None`` is any length).

    Raises:
        BundleError: It is missing, of another type or shape, or its head is damaged.
    """
    if name not in arrays:
        raise BundleError(f"{where}/{name}.npy is missing.")
    array = arrays[name]
    fits = len(array.shape) == len(shape) and all(
        wanted in (None, found) for wanted, found in zip(shape, array.shape, strict=True)
    )
    if array.dtype != dtype or not fits:
        wanted_shape = ", ".join("any" if length is None else str(length) for length in shape)
        raise BundleError(
            f"{where}/{name}.npy holds {array.dtype} of shape {array.shape}, and must hold "
            f"{np.dtype(dtype)} of shape ({wanted_shape})."
        )
    if not array.flags.aligned:  # NumPy writes heads whose length is a multiple of 64
        raise BundleError(f"{where}/{name}.npy is damaged: its head has a wrong length.")
    return array
