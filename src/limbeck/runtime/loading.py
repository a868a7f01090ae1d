"""From a bundle's folder to the student that answers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy.typing as npt

from limbeck.errors import BundleError, OptionError
from limbeck.runtime.bundle import (
    COLD_MODEL,
    MODEL,
    SPARSE_MODEL,
    STORE,
    Bundle,
    Manifest,
    open_bundle,
)
from limbeck.runtime.cascade import Cascade
from limbeck.runtime.kernel import Kernel, ModelContent, OnnxKernel, SparseModel
from limbeck.runtime.native import (
    HAS_KERNELS,
    NativeKernel,
    answer_of_bands,
    answer_of_network,
    answer_of_streams,
    read_folded,
    say_that_kernels_are_missing,
)
from limbeck.runtime.neighborhood import Neighborhood, OnnxBallModel
from limbeck.runtime.predictor import BundledStudent
from limbeck.runtime.store import NodeStore
from limbeck.runtime.structure import StructureStore


def load_bundle(
    path: str | os.PathLike[str], *, verify: bool = True, max_neighbors: int | None = None
) -> BundledStudent:
    """Load a student from its bundle.

    Imports no torch, and ONNX Runtime only when the first new node arrives.

    Args:
        path: The bundle's folder.
        verify: Compare every file with its checksum, see
            :func:`limbeck.runtime.bundle.open_bundle`.
        max_neighbors: How many neighbours a new node may name, where the student reads them: a
            bound on what a request costs. A student that is itself a GNN reads no more of a known
            node, either, but a sample. ``None`` for any number.

    Raises:
        BundleError: The folder is no bundle, or is not whole.
        OptionError: ``max_neighbors`` is below 1.
    """
    if max_neighbors is not None and max_neighbors < 1:
        raise OptionError(f"max_neighbors is {max_neighbors}: it must be at least 1.")
    bundle = open_bundle(path, verify=verify)
    manifest, store = bundle.manifest, NodeStore.open(bundle)
    if manifest.neighborhood is not None:
        neighborhood = Neighborhood(
            store,
            bundle.arrays(),
            manifest.neighborhood,
            lambda: make_ball_model(manifest, *_model_file(bundle, MODEL)),
            where=str(bundle.path / STORE),
            max_neighbors=max_neighbors,
        )
        return BundledStudent(
            manifest,
            store,
            None,
            max_neighbors=max_neighbors,
            neighborhood=neighborhood,
            cascade=Cascade.open(bundle),
        )
    structure = StructureStore.open(bundle)
    return BundledStudent(
        manifest,
        store,
        lambda: _kernel(bundle, store, structure, max_neighbors),
        structure,
        max_neighbors,
        make_cold_kernel=None
        if manifest.bands is None
        else lambda: make_cold_kernel(manifest, *_model_file(bundle, COLD_MODEL)),
        cascade=Cascade.open(bundle),
    )


def _model_file(bundle: Bundle, name: str) -> tuple[ModelContent, Path]:
    """What reads a model's file, and its name."""
    path = bundle.file(name)
    return partial(_read, path), path


def _kernel(
    bundle: Bundle,
    store: NodeStore,
    structure: StructureStore | None,
    max_neighbors: int | None,
) -> Kernel:
    """What computes a bundle's answers: compiled code where it can, ONNX Runtime elsewhere."""
    return fastest_kernel(
        bundle.manifest,
        bundle.arrays,
        store,
        structure,
        lambda: _onnx_kernel(bundle),
        max_neighbors=max_neighbors,
        where=str(bundle.path / STORE),
    )


def fastest_kernel(
    manifest: Manifest,
    read_arrays: Callable[[], Mapping[str, npt.NDArray[Any]]],
    store: NodeStore,
    structure: StructureStore | None,
    make_general: Callable[[], Kernel],
    *,
    max_neighbors: int | None = None,
    where: str = STORE,
) -> Kernel:
    """The compiled kernel of a student where there is one, and the general one elsewhere.

    Args:
        manifest: What the bundle says of itself.
        read_arrays: Reads the arrays of its store.
        store: Its known nodes.
        structure: What they tell their neighbours, for a student that reads neighbours.
        make_general: Makes the kernel of its ONNX models.
        max_neighbors: How many ids a new node may name; ``None`` for any number.
        where: Name of the store, for messages.

    Raises:
        BundleError: An array of the store is missing or of another type or shape.
    """
    folded = manifest.folded
    if folded is None:
        return make_general()
    if not HAS_KERNELS:
        say_that_kernels_are_missing()
        return make_general()
    arrays = read_folded(read_arrays(), manifest, where)
    if folded.bands is not None:
        return NativeKernel(answer_of_bands(folded, arrays), make_general, takes_bands=True)
    if structure is None:
        answer = answer_of_network(folded, arrays, manifest.position_width)
        return NativeKernel(answer, make_general)
    among = answer_of_streams(folded, arrays, store, structure, max_neighbors)
    if among is None:
        return make_general()
    return NativeKernel(among, make_general, takes_neighbors=True)


def _onnx_kernel(bundle: Bundle) -> OnnxKernel:
    manifest = bundle.manifest
    sparse = None
    if manifest.sparse is not None:
        content, path = _model_file(bundle, SPARSE_MODEL)
        sparse = SparseModel(content, manifest.sparse.values_per_entry, path)
    return make_kernel(manifest, *_model_file(bundle, MODEL), sparse)


def make_kernel(
    manifest: Manifest,
    model: ModelContent,
    where: str | os.PathLike[str],
    sparse: SparseModel | None,
) -> OnnxKernel:
    """What computes the answers of the student that a manifest describes.

    Args:
        manifest: The manifest.
        model: Content of its model file, or what reads it.
        where: Name of that file, for messages.
        sparse: Its model of sparse rows, or ``None``.
    """
    structure = manifest.structure
    return OnnxKernel(
        model,
        manifest.width,
        len(manifest.classes),
        where,
        manifest.position_width,
        structure_width=0 if structure is None else structure.width,
        gated=structure is not None and structure.gated,
        lone=structure is not None and structure.lone,
        bands_width=manifest.bands_width,
        bands=manifest.bands,
        routing=manifest.routing,
        sparse=sparse,
    )


def make_cold_kernel(
    manifest: Manifest, model: ModelContent, where: str | os.PathLike[str]
) -> OnnxKernel:
    """What computes the answers of nodes whose bands are not known; see :func:`make_kernel`."""
    return OnnxKernel(model, manifest.width, len(manifest.classes), where, bands=manifest.bands)


def make_ball_model(
    manifest: Manifest, model: ModelContent, where: str | os.PathLike[str]
) -> OnnxBallModel:
    """What computes the answers of a student that is itself a GNN; see :func:`make_kernel`."""
    return OnnxBallModel(model, manifest.width, len(manifest.classes), where)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}.") from error
