"""The compiled kernels: students that are networks of layers, and known nodes.

The kernels are a small C extension, ``_kernels.c``, that is built with the package where there is a
compiler. An installation without it answers the same through ONNX Runtime and NumPy, and says so
once. ``docs/performance.md`` has what either costs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from limbeck.runtime.arrays import checked_array
from limbeck.runtime.bundle import (
    BANDS_CHAINS,
    HEAD_CHAINS,
    LONE_CHAINS,
    LONE_SUM_CHAINS,
    PREDICTOR_CHAIN,
    STUDENT_CHAIN,
    SUM_CHAINS,
    FoldedEntry,
    LayerEntry,
    Manifest,
)
from limbeck.runtime.kernel import BandAnswers, Kernel, Routes, Streams, Structure
from limbeck.runtime.kernel import softmax as numpy_softmax
from limbeck.runtime.rows import CsrRows, Rows

if TYPE_CHECKING:
    from limbeck.runtime.store import NodeStore
    from limbeck.runtime.structure import StructureStore

try:
    from limbeck.runtime import _kernels
except ImportError:  # the package was installed without a compiler
    HAS_KERNELS = False
else:
    HAS_KERNELS = True

Answers = Callable[..., npt.NDArray[np.float32] | None]
"""Answers a request, or ``None`` for one that it does not take: not each wrong request is told
apart, so the general way answers those."""

_Shape: TypeAlias = tuple[int, ...]

Arrays: TypeAlias = Mapping[str, npt.NDArray[np.float32]]
"""The arrays of a student that the kernels read, by their names in the store."""

_logger = logging.getLogger(__name__)


class Layer(NamedTuple):
    """One layer as the kernels read it.

    Args:
        weight: ``[in, out]``, or of experts ``[E, in, out]``.
        bias: ``[out]``, or of experts ``[E, out]``.
        relu: Whether a ReLU is behind it.
        top_k: How many experts a row uses, 0 for a map.
        chooser: What rows are compared with, ``[in, E]``, or ``[g, E]`` behind ``project``.
        project: A gate's map ``[in, g]``; ``None`` where memories choose.
        project_bias: ``[g]``.
        shift: What is added behind experts, ``[out]``.
        norm: Weight of a layer norm, ``[out]``.
        norm_bias: Its bias, ``[out]``.
        epsilon: What it adds to the variance.
        norm_last: Whether it comes behind the ReLU.
    """

    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    relu: bool
    top_k: int = 0
    chooser: npt.NDArray[np.float32] | None = None
    project: npt.NDArray[np.float32] | None = None
    project_bias: npt.NDArray[np.float32] | None = None
    shift: npt.NDArray[np.float32] | None = None
    norm: npt.NDArray[np.float32] | None = None
    norm_bias: npt.NDArray[np.float32] | None = None
    epsilon: float = 0.0
    norm_last: bool = False


def layer_name(part: str, layer: int, chain: str = STUDENT_CHAIN) -> str:
    """Name of an array of a layer in the store."""
    return f"folded_{part}_{layer}" if chain == STUDENT_CHAIN else f"folded_{chain}_{part}_{layer}"


def head_name(part: str, head: int) -> str:
    """Name of an array of a head in the store."""
    return f"folded_head_{part}_{head}"


def folded_shapes(entry: FoldedEntry, features: int, structure: int = 0) -> dict[str, _Shape]:
    """Shapes of all arrays that the kernels read of a student, by their names in the store.

    Args:
        entry: What the manifest says of it.
        features: Number of features ``F``.
        structure: Width ``h`` of what neighbours contribute, 0 for a student that reads none.
    """
    shapes: dict[str, _Shape] = {}
    for chain, layers in entry.chains.items():
        for i, layer in enumerate(layers):
            several: _Shape = (layer.experts,) if layer.experts else ()
            parts: dict[str, _Shape] = {
                "weight": (*several, layer.reads, layer.answers),
                "bias": (*several, layer.answers),
            }
            if layer.experts:
                parts["chooser"] = (layer.gate or layer.reads, layer.experts)
            if layer.gate:
                parts |= {"project": (layer.reads, layer.gate), "project_bias": (layer.gate,)}
            if layer.shift:
                parts["shift"] = (layer.answers,)
            if layer.norm != "none":
                parts |= dict.fromkeys(("norm", "norm_bias"), (layer.answers,))
            shapes |= {layer_name(part, i, chain): shape for part, shape in parts.items()}
    for i, head in enumerate(entry.heads):
        shapes |= {head_name("gate", i): (2 * structure,), head_name("gate_bias", i): (1,)}
        if head.norm != "none":
            shapes |= {head_name("norm", i): (structure,), head_name("norm_bias", i): (structure,)}
    if entry.heads:
        shapes["folded_structure_bias"] = (structure,)
    if entry.bands is not None:
        bands, width = entry.bands, entry.width
        shapes |= {"folded_gate": (bands.layers, 2 * width), "folded_gate_bias": (bands.layers,)}
        if bands.coefficients:
            shapes |= {
                "folded_bands_weight": (bands.count, bands.coefficients, width),
                "folded_bands_bias": (bands.count, width),
                "folded_bands_factor": (bands.layers, bands.count),
            }
    if entry.scaled:
        shapes |= dict.fromkeys(("folded_mean", "folded_deviation"), (features,))
    return shapes


def read_folded(arrays: Mapping[str, npt.NDArray[Any]], manifest: Manifest, where: str) -> Arrays:
    """The arrays that the kernels read of a student.

    Args:
        arrays: Arrays of a store by name.
        manifest: What the bundle says of itself.
        where: Name of the store, for messages.

    Raises:
        BundleError: An array is missing or of another type or shape than the manifest says.
    """
    assert manifest.folded is not None
    structure = 0 if manifest.structure is None else manifest.structure.width
    return {
        name: np.ascontiguousarray(checked_array(arrays, where, name, np.float32, shape))
        for name, shape in folded_shapes(manifest.folded, manifest.width, structure).items()
    }


def layers_of(entry: FoldedEntry, arrays: Arrays, chain: str = STUDENT_CHAIN) -> tuple[Layer, ...]:
    """The layers of a chain.

    Args:
        entry: What the manifest says of the student.
        arrays: Its arrays.
        chain: Name of the chain.
    """

    def layer_of(i: int, layer: LayerEntry) -> Layer:
        def part(name: str) -> npt.NDArray[np.float32] | None:
            return arrays.get(layer_name(name, i, chain))

        return Layer(
            arrays[layer_name("weight", i, chain)],
            arrays[layer_name("bias", i, chain)],
            layer.relu,
            layer.top_k,
            part("chooser"),
            part("project"),
            part("project_bias"),
            part("shift"),
            part("norm"),
            part("norm_bias"),
            layer.epsilon,
            layer.norm == "behind relu",
        )

    return tuple(layer_of(i, layer) for i, layer in enumerate(entry.chains[chain]))


def answer_of_network(entry: FoldedEntry, arrays: Arrays, beside: int = 0) -> Answers:
    """What answers ``(x)`` or ``(x, position)`` with logits, for a student of one chain.

    Args:
        entry: What the manifest says of the student.
        arrays: Its arrays; they are copied.
        beside: Width of the position that it reads behind features.
    """
    return _kernels.Network(
        layers_of(entry, arrays),
        beside,
        arrays.get("folded_mean"),
        arrays.get("folded_deviation"),
    ).answer


def answer_of_streams(
    entry: FoldedEntry,
    arrays: Arrays,
    store: NodeStore,
    structure: StructureStore,
    max_neighbors: int | None = None,
) -> Answers | None:
    """What answers ``(x)``, ``(x, neighbors)`` or ``(x, parts, known)`` with logits.

    Args:
        entry: What the manifest says of the student, which reads neighbours.
        arrays: Its arrays; they are copied.
        store: The known nodes.
        structure: Their table, which is read where it is.
        max_neighbors: How many ids a node may name; ``None`` for any number.

    Returns:
        ``None`` where the store's arrays are not as the kernels read them.
    """
    known, table = store.index, structure.table
    if known is None or not all(a is None or a.flags.c_contiguous for a in table):
        return None

    if entry.heads:
        heads = [_head(entry, arrays, i) for i in range(len(entry.heads))]
        bias = arrays["folded_structure_bias"]
    else:  # one answer of the sum: no gate, and biases are those of the encoder
        lone = (LONE_SUM_CHAINS,) if structure.entry.lone else ()
        heads = [_sum_head(entry, arrays, names) for names in (SUM_CHAINS, *lone)]
        bias = np.zeros(structure.entry.width, dtype=np.float32)
    has_predictor = PREDICTOR_CHAIN in entry.chains
    return _kernels.Streams(
        known,
        tuple(table),
        (
            structure.entry.power,
            structure.entry.blend,
            np.iinfo(np.int64).max if max_neighbors is None else max_neighbors,
            store.num_classes,
        ),
        bias,
        tuple(heads),
        layers_of(entry, arrays, PREDICTOR_CHAIN) if has_predictor else None,
        (entry.unit_sum, arrays.get("folded_mean"), arrays.get("folded_deviation")),
    ).answer


def _head(entry: FoldedEntry, arrays: Arrays, i: int) -> tuple[Any, ...]:
    """One gate and its two decoders as the kernels take them."""
    names, norm = (HEAD_CHAINS, LONE_CHAINS)[i], entry.heads[i]
    encoder, from_structure, from_features = (layers_of(entry, arrays, n) for n in names)
    weights = (arrays.get(head_name("norm", i)), arrays.get(head_name("norm_bias", i)))
    none = (None, None)
    return (
        encoder,
        *(weights if norm.norm == "affine" else none),
        *(weights if norm.norm == "layer" else none),
        norm.epsilon,
        arrays[head_name("gate", i)],
        float(arrays[head_name("gate_bias", i)][0]),
        from_structure,
        from_features,
    )


def _sum_head(entry: FoldedEntry, arrays: Arrays, names: tuple[str, str]) -> tuple[Any, ...]:
    """A head without a gate; the norm behind its encoder is taken of the sum."""
    encoder, from_sum = (layers_of(entry, arrays, name) for name in names)
    last = encoder[-1]
    encoder = (*encoder[:-1], last._replace(norm=None, norm_bias=None, epsilon=0.0))
    norm = (None, None, last.norm, last.norm_bias, last.epsilon)
    return (encoder, *norm, None, 0.0, None, from_sum)


def answer_of_bands(entry: FoldedEntry, arrays: Arrays) -> Answers:
    """What answers ``(x)`` or ``(x, bands)`` with logits, for a student that reads bands.

    Args:
        entry: What the manifest says of the student.
        arrays: Its arrays; they are copied.
    """
    bands = entry.bands
    assert bands is not None

    def layers(chain: str) -> tuple[Layer, ...] | None:
        return layers_of(entry, arrays, chain) if chain in entry.chains else None

    def flat(name: str) -> npt.NDArray[np.float32]:
        return arrays[name].reshape(-1)

    encoder, re_encoder, from_features = (layers(name) for name in BANDS_CHAINS)
    assert encoder is not None
    assert from_features is not None
    maps = None
    if bands.coefficients:
        bias, factor = flat("folded_bands_bias"), flat("folded_bands_factor")
        maps = (arrays["folded_bands_weight"], bias, factor)
    return _kernels.Bands(
        (bands.layers, bands.count, bands.tied and bands.layers > 1, bands.released),
        encoder,
        re_encoder,
        tuple(layers_of(entry, arrays, name) for name in bands.heads),
        from_features,
        layers(PREDICTOR_CHAIN),
        (flat("folded_gate"), arrays["folded_gate_bias"]),
        maps,
        (arrays.get("folded_mean"), arrays.get("folded_deviation")),
    ).answer


class NativeKernel:
    """Runs a student in compiled code, rows of any number and form.

    A sparse row costs its entries in the first layer, and of experts those that it is sent to.
    Layers are computed for 32 rows at a time, those of experts for 256, with the widest vectors
    that the processor has. Nothing is kept between calls; it is safe for several threads, and large
    requests let go of the interpreter's lock.

    Args:
        answer: What answers requests with logits, or with ``None``.
        make_general: Makes the kernel of the bundle's ONNX models, for what this one does not take.
        takes_neighbors: Whether it answers ``(x, neighbors)``, too.
        takes_bands: Whether it answers ``(x, bands)``, too.
    """

    def __init__(
        self,
        answer: Answers,
        make_general: Callable[[], Kernel],
        *,
        takes_neighbors: bool = False,
        takes_bands: bool = False,
    ) -> None:
        self._make_general = make_general
        self.answer = answer
        self.answer_among: Answers = answer if takes_neighbors else takes_nothing
        self.answer_banded: Answers = answer if takes_bands else takes_nothing

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
        """Logits ``[B, C]`` of the rows ``x``, with what else the student reads of a node."""
        beside: tuple[Any, ...] = () if position is None else (position,)
        if structure is not None:
            beside = tuple(np.ascontiguousarray(part, dtype=np.float32) for part in structure)
        if bands is not None:
            beside = (np.ascontiguousarray(bands, dtype=np.float32),)
        logits = self.answer(_as_request(x), *beside)
        if logits is None and isinstance(x, CsrRows):  # columns out of order, or more than once
            logits = self.answer(_as_request(x.summed()), *beside)
        if logits is not None:
            return logits
        # an answer that is not finite, of which the caller says of which row; or sparse rows that
        # are centred, so dense
        return self.general(x, position, structure=structure, bands=bands)

    def band_answers(self, x: Rows, bands: npt.NDArray[np.float32] | None = None) -> BandAnswers:
        """What the general kernel says."""
        return self.general.band_answers(x, bands)

    def streams(self, x: Rows, structure: Structure) -> Streams:
        """What the general kernel says."""
        return self.general.streams(x, structure)

    def routes(
        self, x: Rows, position: npt.NDArray[np.float32] | None = None
    ) -> tuple[Routes, ...]:
        """What the general kernel says."""
        return self.general.routes(x, position)


def _as_request(x: Rows) -> Any:
    if not isinstance(x, CsrRows):
        return x
    return tuple(np.ascontiguousarray(part) for part in (x.indptr, x.indices, x.values))


def index_of(
    logits: npt.NDArray[np.float32],
    ids: npt.NDArray[np.int64] | None = None,
    order: npt.NDArray[np.int64] | None = None,
    rows: Mapping[str, int] | None = None,
) -> _kernels.Known | None:
    """What finds known nodes and their answers, see :meth:`limbeck.runtime.store.NodeStore.lookup`.

    Args:
        logits: Their answers, float32 ``[N, C]``.
        ids: Their ids in ascending order, int64 ``[N]``; ``None`` if those are the rows themselves.
        order: Row of each of these ids, int64 ``[N]``; ``None`` if rows are in that order.
        rows: Row of each id for ids that are text; ``None`` for integers.

    Returns:
        ``None`` where the kernels are not there, or the answers do not lie as they read them.
    """
    if not HAS_KERNELS or not logits.flags.c_contiguous:
        return None
    return _kernels.Known(logits, ids, order, None if rows is None else dict(rows))


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


def takes_nothing(*request: Any) -> None:
    """Leaves every request to the general way."""
