"""A student read from a bundle: answers without torch and without a graph library."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from limbeck.errors import BundleError, RequestError
from limbeck.runtime.bundle import MODEL, SPARSE_MODEL, Bundle, Manifest, open_bundle
from limbeck.runtime.kernel import Kernel, ModelContent, OnnxKernel, Routes, SparseModel
from limbeck.runtime.rows import Rows, check_position, check_rows
from limbeck.runtime.store import NodeStore

if TYPE_CHECKING:
    import pyarrow

Nodes = Sequence[int] | Sequence[str] | npt.NDArray[Any]


class BundledStudent:
    """A distilled student that answers for known and for new nodes.

    Made by :func:`load_bundle`. A known node's answer was computed at export and is looked up;
    a new node's is computed from its features by ONNX Runtime on one thread. Known nodes are
    named by their own ids::

        student = limbeck.load("cora-student")
        student.predict(nodes=["paper-17", "paper-4"])
        student.predict(x=rows)

    ``x`` may be dense rows ``[B, F]`` (nested lists, or an array of booleans, integers or
    floats), a SciPy CSR matrix, or a tuple of arrays ``(indptr, indices[, values])``.

    Args:
        manifest: What the bundle says of itself.
        store: Its known nodes.
        make_kernel: Makes what computes logits; called when the first new node arrives.
    """

    def __init__(
        self, manifest: Manifest, store: NodeStore, make_kernel: Callable[[], Kernel]
    ) -> None:
        self.manifest = manifest
        self.store = store
        self._make_kernel = make_kernel

    @property
    def classes(self) -> tuple[str, ...]:
        """Name of each class, in the order of the logits."""
        return self.manifest.classes

    @property
    def width(self) -> int:
        """Number of features ``F`` of a node."""
        return self.manifest.width

    @cached_property
    def kernel(self) -> Kernel:
        """What computes logits from feature rows; made at first use."""
        return self._make_kernel()

    @cached_property
    def _class_names(self) -> npt.NDArray[np.str_]:
        return np.array(self.classes, dtype=np.str_)

    def predict(
        self,
        nodes: Nodes | None = None,
        *,
        x: Any = None,
        neighbors: Any = None,
        position: Any = None,
    ) -> npt.NDArray[np.str_]:
        """Class name of each node, ``[B]``.

        Args:
            nodes: Ids of known nodes.
            x: Features of new nodes. Give exactly one of ``nodes`` and ``x``.
            neighbors: For a student that reads positions: for each new node the ids of its
                neighbours. Its position is the mean over those that training observed; a node
                without any, or a request without this argument, gets zeros.
            position: The positional encodings themselves, ``[B, d]``, instead of neighbours.

        Raises:
            RequestError: A node is not known, ``x`` is not ``B`` rows of ``F`` finite numbers, or
                the student reads no positions and some are given.
        """
        logits = self.predict_logits(nodes, x=x, neighbors=neighbors, position=position)
        names: npt.NDArray[np.str_] = self._class_names[logits.argmax(axis=1)]
        return names

    def predict_proba(
        self,
        nodes: Nodes | None = None,
        *,
        x: Any = None,
        neighbors: Any = None,
        position: Any = None,
    ) -> npt.NDArray[np.float32]:
        """Calibrated probability of each class, float32 ``[B, C]``; see :meth:`predict`."""
        logits = self.predict_logits(nodes, x=x, neighbors=neighbors, position=position)
        return softmax(logits, self.manifest.temperature)

    def predict_logits(
        self,
        nodes: Nodes | None = None,
        *,
        x: Any = None,
        neighbors: Any = None,
        position: Any = None,
    ) -> npt.NDArray[np.float32]:
        """Logits before calibration, float32 ``[B, C]``; see :meth:`predict`."""
        known = self._known_rows(nodes, x, neighbors, position)
        if known is not None:
            return self.store.logits(known)
        logits = self.kernel(*self._inputs(None, x, neighbors, position))
        if not np.isfinite(logits).all():
            row = int(np.argmin(np.isfinite(logits).all(axis=1)))
            raise RequestError(f"x[{row}] holds numbers so large that its answer is not finite.")
        return logits

    def explain(
        self,
        nodes: Nodes | None = None,
        *,
        x: Any = None,
        neighbors: Any = None,
        position: Any = None,
    ) -> tuple[Routes, ...]:
        """Which experts each node is sent to, and with which weights.

        Known nodes are sent anew, from their stored features; see :meth:`predict` for the
        arguments.

        Returns:
            For each layer of experts the ``k`` chosen ones, int64 ``[B, k]``, counted from 0, the
            one with the largest gate first, and their gates, float32 ``[B, k]``.

        Raises:
            RequestError: The student has no experts, or :meth:`predict` would raise it.
        """
        if not self.manifest.routing:
            raise RequestError(
                f"the student {self.manifest.student!r} has no layers of experts that this bundle "
                "tells of: there is no routing to explain."
            )
        return self.kernel.routes(*self._inputs(nodes, x, neighbors, position))

    def _inputs(
        self, nodes: Nodes | None, x: Any, neighbors: Any, position: Any
    ) -> tuple[Rows, npt.NDArray[np.float32] | None]:
        """Checked rows and positions of new nodes, or of known ones as they are stored."""
        known = self._known_rows(nodes, x, neighbors, position)
        if known is None:
            rows = check_rows(x, self.width)
            return rows, self._positions(len(rows), neighbors, position)
        has_position = self.manifest.position_width > 0
        return self.store.features(known), self.store.positions(known) if has_position else None

    def _known_rows(
        self, nodes: Nodes | None, x: Any, neighbors: Any, position: Any
    ) -> npt.NDArray[np.int64] | None:
        """Rows of known nodes in the store; ``None`` if new ones are given."""
        if (nodes is None) == (x is None):
            given = "neither" if x is None else "both"
            raise RequestError(f"give either nodes or x; {given} was given.")
        if nodes is None:
            return None
        if neighbors is not None or position is not None:
            raise RequestError("neighbors and position belong to new nodes: give x with them.")
        return self.store.rows_of(nodes)

    def _positions(
        self, count: int, neighbors: Any, position: Any
    ) -> npt.NDArray[np.float32] | None:
        """Positional encodings ``[B, d]`` of new nodes; ``None`` if the student reads none."""
        width = self.manifest.position_width
        if width == 0:
            if neighbors is not None or position is not None:
                raise RequestError("this student reads features alone: leave positions out.")
            return None
        if neighbors is not None and position is not None:
            raise RequestError("give either neighbors or position; both were given.")
        if position is not None:
            given = check_position(position, width)
        elif neighbors is not None:
            given = self.store.positions_from_neighbors(neighbors)
        else:
            return np.zeros((count, width), dtype=np.float32)
        if len(given) != count:
            raise RequestError(f"there are {len(given)} positions for {count} rows of x.")
        return given

    def rows_of_table(self, table: pyarrow.Table, where: str = "the table") -> Any:
        """Features of each row of a table, as ``x`` of the other calls takes them.

        Args:
            table: The feature columns that the graph's table of nodes had; others are ignored.
            where: What to call the table in messages.

        Raises:
            RequestError: The student was distilled from an array of features, not from a table.
            GraphError: A column is missing, or holds what cannot be a feature.
        """
        if self.manifest.preprocessing is None:
            raise RequestError(
                "this bundle cannot read a table: its features came as an array; "
                f"give [B, {self.width}] rows as x."
            )
        # imported here: only tables need pyarrow, and it takes 0.2 s
        from limbeck.features import FeatureEncoder, SparseRows

        encoder = FeatureEncoder.from_json(dict(self.manifest.preprocessing))
        rows = encoder.encode(table, where=where)
        return (rows.indptr, rows.indices, rows.values) if isinstance(rows, SparseRows) else rows

    def predict_table(self, table: pyarrow.Table) -> npt.NDArray[np.str_]:
        """Class name of each row of a table, ``[B]``; see :meth:`rows_of_table`."""
        return self.predict(x=self.rows_of_table(table))

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.manifest.student!r} by {self.manifest.method!r} from "
            f"{self.manifest.graph.name!r}, {self.width} features, {len(self.classes)} classes, "
            f"{self.store.num_nodes:,} known nodes)"
        )


def softmax(logits: npt.NDArray[np.float32], temperature: float) -> npt.NDArray[np.float32]:
    """Softmax of ``logits / temperature`` over the last axis, float32 ``[B, C]``."""
    # the largest comes off first: what is divided is never above zero, so never overflows
    scaled: npt.NDArray[np.float32] = logits - logits.max(axis=1, keepdims=True)
    scaled /= np.float32(temperature)
    np.exp(scaled, out=scaled)
    scaled /= scaled.sum(axis=1, keepdims=True)
    return scaled


def load_bundle(path: str | os.PathLike[str], *, verify: bool = True) -> BundledStudent:
    """Load a student from its bundle.

    Imports no torch, and ONNX Runtime only when the first new node arrives.

    Args:
        path: The bundle's folder.
        verify: Compare every file with its checksum, see
            :func:`limbeck.runtime.bundle.open_bundle`.

    Raises:
        BundleError: The folder is no bundle, or is not whole.
    """
    bundle = open_bundle(path, verify=verify)
    return BundledStudent(bundle.manifest, NodeStore.open(bundle), lambda: _onnx_kernel(bundle))


def _onnx_kernel(bundle: Bundle) -> OnnxKernel:
    manifest = bundle.manifest
    sparse = None
    if manifest.sparse is not None:
        path = bundle.file(SPARSE_MODEL)
        sparse = SparseModel(partial(_read, path), manifest.sparse.values_per_entry, path)
    path = bundle.file(MODEL)
    return make_kernel(manifest, partial(_read, path), path, sparse)


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
    return OnnxKernel(
        model,
        manifest.width,
        len(manifest.classes),
        where,
        manifest.position_width,
        routing=manifest.routing,
        sparse=sparse,
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}.") from error
