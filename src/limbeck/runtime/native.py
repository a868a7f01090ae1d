"""The compiled kernels: students that are MLPs, without ONNX Runtime, and known nodes.

The kernels are a small C extension, ``_kernels.c``, that is built with the package where there is a
compiler. An installation without it answers the same through ONNX Runtime and NumPy, and says so
once. ``docs/performance.md`` has what either costs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import cache, cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from limbeck.runtime.arrays import checked_array
from limbeck.runtime.bundle import STORE, Bundle, FoldedEntry
from limbeck.runtime.kernel import BandAnswers, Kernel, Routes, Streams, Structure
from limbeck.runtime.kernel import softmax as numpy_softmax
from limbeck.runtime.rows import CsrRows, Rows

try:
    from limbeck.runtime import _kernels
except ImportError:  # the package was installed without a compiler
    HAS_KERNELS = False
else:
    HAS_KERNELS = True

Layers = tuple[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]], ...]
"""Weight ``[in, out]`` and bias ``[out]`` of each layer; a ReLU follows all but the last."""

Answers = Callable[[Any], npt.NDArray[np.float32] | None]
"""Answers a request, or ``None`` for one that it does not take: not each wrong request is told
apart, so the general way answers those."""

_logger = logging.getLogger(__name__)


def folded_names(layer: int) -> tuple[str, str]:
    """Names of the arrays of a layer in the store: its weight and its bias."""
    return f"folded_weight_{layer}", f"folded_bias_{layer}"


def read_layers(bundle: Bundle, entry: FoldedEntry) -> Layers:
    """The layers of an MLP that a bundle holds as arrays; see :func:`layers_from`."""
    names = [name for i in range(len(entry.widths) - 1) for name in folded_names(i)]
    arrays = {name: bundle.array(name) for name in names if bundle.has_array(name)}
    return layers_from(arrays, entry, str(bundle.path / STORE))


def layers_from(arrays: Mapping[str, npt.NDArray[Any]], entry: FoldedEntry, where: str) -> Layers:
    """The layers of an MLP, from arrays of a store.

    Args:
        arrays: The arrays by name.
        entry: What the manifest says of them.
        where: Name of the store, for messages.

    Raises:
        BundleError: An array is missing or of another type or shape than the manifest says.
    """
    layers = []
    for i, shape in enumerate(pairwise(entry.widths)):
        weight, bias = folded_names(i)
        layers.append(
            (
                np.ascontiguousarray(checked_array(arrays, where, weight, np.float32, shape)),
                np.ascontiguousarray(checked_array(arrays, where, bias, np.float32, shape[1:])),
            )
        )
    return tuple(layers)


def folded_arrays(layers: Layers) -> tuple[FoldedEntry, dict[str, npt.NDArray[np.float32]]]:
    """What the manifest says of an MLP's layers, and their arrays by name in the store."""
    arrays: dict[str, npt.NDArray[np.float32]] = {}
    for i, parts in enumerate(layers):
        arrays |= zip(folded_names(i), parts, strict=True)
    return FoldedEntry((len(layers[0][0]), *(len(bias) for _, bias in layers))), arrays


class NativeKernel:
    """Runs an MLP in compiled code, rows of any number and form.

    A sparse row costs its entries in the first layer. Hidden layers are computed for 32 rows at a
    time, with the widest vectors that the processor has. Nothing is kept between calls; it is safe
    for several threads, and large requests let go of the interpreter's lock.

    Args:
        layers: The student's layers; they are copied.
        make_general: Makes the kernel of the bundle's ONNX models, for what this one does not take.

    Raises:
        TypeError: A layer is not a pair of float32 arrays.
        ValueError: Layers do not fit together.
    """

    def __init__(self, layers: Layers, make_general: Callable[[], Kernel]) -> None:
        self._make_general = make_general
        self.answer: Answers = _kernels.Mlp(layers).answer

    @cached_property
    def general(self) -> Kernel:
        """The kernel of the bundle's ONNX models; made at first use."""
        return self._make_general()

    def __call__(
        self,
        x: Rows,
        position: npt.NDArray[np.float32] | None = None,
        *,
        structure: Structure | None = None,
        bands: npt.NDArray[np.float32] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Logits ``[B, C]`` of the rows ``x``; nothing else is read."""
        request = (x.indptr, x.indices, x.values) if isinstance(x, CsrRows) else x
        logits = self.answer(request)
        # an answer that is not finite: it is for the caller to say of which row
        return self.general(x) if logits is None else logits

    def band_answers(self, x: Rows, bands: npt.NDArray[np.float32] | None = None) -> BandAnswers:
        """Not for an MLP; what the general kernel says."""
        return self.general.band_answers(x, bands)

    def streams(self, x: Rows, structure: Structure) -> Streams:
        """Not for an MLP; what the general kernel says."""
        return self.general.streams(x, structure)

    def routes(
        self, x: Rows, position: npt.NDArray[np.float32] | None = None
    ) -> tuple[Routes, ...]:
        """Nothing: an MLP has no layers of experts."""
        return ()


def lookup_of(
    logits: npt.NDArray[np.float32],
    ids: npt.NDArray[np.int64] | None = None,
    order: npt.NDArray[np.int64] | None = None,
    rows: Mapping[str, int] | None = None,
) -> Answers:
    """What looks up the answers of known nodes, given as a list or, for integers, an array.

    Args:
        logits: Their answers, float32 ``[N, C]``.
        ids: Their ids in ascending order, int64 ``[N]``; ``None`` if those are the rows themselves.
        order: Row of each of these ids, int64 ``[N]``; ``None`` if rows are in that order.
        rows: Row of each id for ids that are text; ``None`` for integers.

    Returns:
        The lookup. It answers ``None`` for a request with a node that it does not find, and for any
        where the kernels are not there.
    """
    if not HAS_KERNELS or not logits.flags.c_contiguous:
        return takes_nothing
    return _kernels.Known(logits, ids, order, None if rows is None else dict(rows)).answer


def softmax(logits: npt.NDArray[np.float32], temperature: float) -> npt.NDArray[np.float32]:
    """Softmax of ``logits / temperature`` over the last axis, float32 ``[B, C]``.

    Args:
        logits: float32 ``[B, C]``; where the kernels are there, the result takes its place.
        temperature: Above 0.
    """
    if HAS_KERNELS:
        probabilities = _kernels.softmax(logits, temperature)
        if probabilities is not None:
            return probabilities
    return numpy_softmax(logits, temperature)


@cache
def say_that_kernels_are_missing() -> None:
    """Tell the log, once, that answers take longer than they must."""
    _logger.warning(
        "Limbeck was installed without its compiled kernels, so ONNX Runtime answers, slower for "
        "sparse features and single nodes; install a C compiler and then Limbeck again."
    )


def takes_nothing(request: Any) -> None:
    """Leaves every request to the general way."""
