"""A student read from a bundle: answers without torch and without a graph library."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from limbeck.errors import BundleError, OptionError, RequestError
from limbeck.runtime.bundle import MODEL, SPARSE_MODEL, Bundle, Manifest, open_bundle
from limbeck.runtime.explain import StructureExplanation, explain_structure
from limbeck.runtime.kernel import (
    Kernel,
    ModelContent,
    OnnxKernel,
    Routes,
    SparseModel,
    softmax,
)
from limbeck.runtime.rows import check_position, check_rows
from limbeck.runtime.store import NodeStore
from limbeck.runtime.structure import Edges, StructureStore

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
        structure: What known nodes tell their neighbours, for a student that reads neighbours.
        max_neighbors: How many neighbours a new node may name; ``None`` for any number.
    """

    def __init__(
        self,
        manifest: Manifest,
        store: NodeStore,
        make_kernel: Callable[[], Kernel],
        structure: StructureStore | None = None,
        max_neighbors: int | None = None,
    ) -> None:
        self.manifest = manifest
        self.store = store
        self.structure = structure
        self.max_neighbors = max_neighbors
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
            neighbors: For each new node the ids of its neighbours, for a student that reads them
                or positions. Those that are not known, or that training did not observe, are
                ignored, see :meth:`ignored_neighbors`. A position is the mean over the others, and
                zeros for a node without any or a request without this argument.
            position: The positional encodings themselves, ``[B, d]``, instead of neighbours.

        Raises:
            RequestError: A node is not known, ``x`` is not ``B`` rows of ``F`` finite numbers, a
                node names more than ``max_neighbors`` others, or something is given that the
                student does not read.
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
        rows = check_rows(x, self.width)
        if self.structure is None:
            logits = self.kernel(rows, self._positions(len(rows), neighbors, position))
        else:
            edges = self._edges(self.structure, len(rows), neighbors, position)
            logits = self.kernel(
                rows, structure=self.structure.structure(*self.structure.sums(edges))
            )
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
    ) -> tuple[Routes, ...] | StructureExplanation:
        """Which experts each node is sent to, or how much its neighbours count.

        Known nodes are answered anew, from their stored features and edges; see :meth:`predict` for
        the arguments.

        Returns:
            For a student of experts, for each layer of them: the ``k`` chosen ones, int64
            ``[B, k]``, counted from 0, the one with the largest gate first, and their gates,
            float32 ``[B, k]``. For a student that reads neighbours a
            :class:`~limbeck.runtime.StructureExplanation`.

        Raises:
            RequestError: The student has neither, or :meth:`predict` would raise it.
        """
        if self.structure is None and not self.manifest.routing:
            raise RequestError(
                f"the student {self.manifest.student!r} has no layers of experts that this bundle "
                "tells of, and reads no neighbors: there is nothing to explain."
            )
        known = self._known_rows(nodes, x, neighbors, position)
        rows = check_rows(x, self.width) if known is None else self.store.features(known)
        if self.structure is None:
            if known is None:
                return self.kernel.routes(rows, self._positions(len(rows), neighbors, position))
            has_position = self.manifest.position_width > 0
            return self.kernel.routes(rows, self.store.positions(known) if has_position else None)
        if known is None:
            edges = self._edges(self.structure, len(rows), neighbors, position)
        else:
            edges = self.structure.edges_of_known(known)
        temperature = self.manifest.temperature
        return explain_structure(self.kernel, self.store, self.structure, rows, edges, temperature)

    def ignored_neighbors(self, neighbors: Any) -> npt.NDArray[np.int64]:
        """How many of the ids given for each new node no answer depends on, int64 ``[B]``.

        Those are ids that are not known, and ids of nodes that training did not observe.

        Args:
            neighbors: For each new node a list of ids.

        Raises:
            RequestError: It is not a list of lists of ids, or the student reads no neighbours.
        """
        if self.structure is None:
            raise RequestError(f"the student {self.manifest.student!r} reads no neighbors.")
        counts, _ = self.store.neighbor_rows(neighbors)
        return self._edges(self.structure, len(counts), neighbors, None).ignored

    def _edges(self, structure: StructureStore, count: int, neighbors: Any, position: Any) -> Edges:
        if position is not None:
            raise RequestError("this student reads neighbors, not positions: leave position out.")
        return structure.edges_of_request(self.store, neighbors, count, self.max_neighbors)

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
                raise RequestError(
                    "this student reads features alone: leave neighbors and position out."
                )
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
            bound on what a request costs. ``None`` for any number.

    Raises:
        BundleError: The folder is no bundle, or is not whole.
        OptionError: ``max_neighbors`` is below 1.
    """
    if max_neighbors is not None and max_neighbors < 1:
        raise OptionError(f"max_neighbors is {max_neighbors}: it must be at least 1.")
    bundle = open_bundle(path, verify=verify)
    return BundledStudent(
        bundle.manifest,
        NodeStore.open(bundle),
        lambda: _onnx_kernel(bundle),
        StructureStore.open(bundle),
        max_neighbors,
    )


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
        structure_width=0 if manifest.structure is None else manifest.structure.width,
        routing=manifest.routing,
        sparse=sparse,
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}.") from error
