"""A student read from a bundle: answers without torch and without a graph library."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from limbeck.errors import RequestError
from limbeck.runtime.bundle import (
    Manifest,
)
from limbeck.runtime.cascade import Cascade, Decisions
from limbeck.runtime.explain import BandExplanation, StructureExplanation, explain_structure
from limbeck.runtime.kernel import (
    BandAnswers,
    Kernel,
    Routes,
    sigmoid,
)
from limbeck.runtime.native import (
    Answers,
    NativeKernel,
    softmax,
    takes_nothing,
)
from limbeck.runtime.neighborhood import Neighborhood
from limbeck.runtime.rows import CsrRows, Rows, check_beside, check_rows
from limbeck.runtime.store import NodeStore
from limbeck.runtime.structure import Edges, StructureStore

if TYPE_CHECKING:
    import pyarrow

    from limbeck.runtime.overlaid import OverlaidStudent

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
        make_kernel: Makes what computes logits; called when the first new node arrives. ``None``
            for a student that is itself a GNN.
        structure: What known nodes tell their neighbours, for a student that reads neighbours.
        max_neighbors: How many neighbours a new node may name; ``None`` for any number.
        make_cold_kernel: Makes what computes logits of nodes without bands, for a student that
            reads bands.
        neighborhood: What answers new nodes of a student that is itself a GNN, in the place of
            the kernel.
        cascade: What the student defers; ``None`` where no goal was given to it.
    """

    def __init__(
        self,
        manifest: Manifest,
        store: NodeStore,
        make_kernel: Callable[[], Kernel] | None,
        structure: StructureStore | None = None,
        max_neighbors: int | None = None,
        *,
        make_cold_kernel: Callable[[], Kernel] | None = None,
        neighborhood: Neighborhood | None = None,
        cascade: Cascade | None = None,
    ) -> None:
        self._cascade = cascade
        self.manifest = manifest
        self.store = store
        self.structure = structure
        self.max_neighbors = max_neighbors
        self.neighborhood = neighborhood
        self._make_kernel = make_kernel
        self._make_cold_kernel = make_cold_kernel

    @property
    def classes(self) -> tuple[str, ...]:
        """Name of each class or label, in the order of the logits."""
        return self.manifest.classes

    @property
    def width(self) -> int:
        """Number of features ``F`` of a node."""
        return self.manifest.width

    @property
    def cascade(self) -> Cascade:
        """What the student defers.

        Raises:
            RequestError: It was distilled without a goal.
        """
        if self._cascade is None:
            raise RequestError(
                "this bundle has no threshold to defer by: distil it with --defer-accuracy or "
                "--defer-coverage."
            )
        return self._cascade

    @cached_property
    def kernel(self) -> Kernel:
        """What computes logits from feature rows; made at first use.

        Raises:
            RequestError: The student is a GNN, which no row of features is enough for.
        """
        if self._make_kernel is None:
            raise RequestError(
                f"the student {self.manifest.student!r} is a GNN: it answers from a neighborhood."
            )
        return self._make_kernel()

    @cached_property
    def _answer_new(self) -> Answers:
        """Answers new nodes by their features, where one call of compiled code can."""
        if self.manifest.folded is None or not isinstance(self.kernel, NativeKernel):
            return takes_nothing
        return self.kernel.answer

    @cached_property
    def _answer_among(self) -> Answers:
        """The same by their features and neighbours."""
        if self.manifest.folded is None or not isinstance(self.kernel, NativeKernel):
            return takes_nothing
        return self.kernel.answer_among

    @cached_property
    def _answer_banded(self) -> Answers:
        """The same by their features and bands."""
        if self.manifest.folded is None or not isinstance(self.kernel, NativeKernel):
            return takes_nothing
        return self.kernel.answer_banded

    @cached_property
    def cold_kernel(self) -> Kernel:
        """What computes logits of nodes without bands; made at first use.

        Raises:
            RequestError: The student reads no bands.
        """
        if self._make_cold_kernel is None:
            raise RequestError(f"the student {self.manifest.student!r} reads no bands.")
        if isinstance(self.kernel, NativeKernel):  # it answers such nodes, too
            return NativeKernel(self.kernel.answer, self._make_cold_kernel)
        return self._make_cold_kernel()

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
        bands: Any = None,
    ) -> npt.NDArray[Any]:
        """Class name of each node, ``str`` ``[B]``.

        Of a student that gives nodes several labels: for each node the list of the names of those
        with a calibrated probability above one half, objects ``[B]``.

        Args:
            nodes: Ids of known nodes.
            x: Features of new nodes. Give exactly one of ``nodes`` and ``x``.
            neighbors: For each new node the ids of its neighbours, for a student that reads them
                or positions. Those that are not known, or that training did not observe, are
                ignored, see :meth:`ignored_neighbors`. A position is the mean over the others, and
                zeros for a node without any or a request without this argument.
            position: The positional encodings themselves, ``[B, d]``, instead of neighbours.
            bands: What the bands of the graph transform say of new nodes, ``[B, w]``, for a student
                that reads them. Without, it answers from features alone.

        Raises:
            RequestError: A node is not known, ``x`` is not ``B`` rows of ``F`` finite numbers, a
                node names more than ``max_neighbors`` others, or something is given that the
                student does not read.
        """
        logits = self.predict_logits(
            nodes, x=x, neighbors=neighbors, position=position, bands=bands
        )
        if not self.manifest.several_labels:
            names: npt.NDArray[np.str_] = self._class_names[logits.argmax(axis=1)]
            return names
        labels = np.empty(len(logits), dtype=object)
        # the sign of a logit says it, whatever the temperature
        labels[:] = [self._class_names[row].tolist() for row in logits > 0]
        return labels

    def predict_proba(
        self,
        nodes: Nodes | None = None,
        *,
        x: Any = None,
        neighbors: Any = None,
        position: Any = None,
        bands: Any = None,
    ) -> npt.NDArray[np.float32]:
        """Calibrated probability of each class or label, float32 ``[B, C]``.

        Those of classes sum to one, those of labels stand each for itself; see :meth:`predict`.
        """
        logits = self.predict_logits(
            nodes, x=x, neighbors=neighbors, position=position, bands=bands
        )
        probabilities = sigmoid if self.manifest.several_labels else softmax
        return probabilities(logits, self.manifest.temperature)

    def predict_logits(
        self,
        nodes: Nodes | None = None,
        *,
        x: Any = None,
        neighbors: Any = None,
        position: Any = None,
        bands: Any = None,
    ) -> npt.NDArray[np.float32]:
        """Logits before calibration, float32 ``[B, C]``; see :meth:`predict`."""
        if position is None and (nodes is None or x is None):
            if bands is not None:
                alone = nodes is None and neighbors is None
                quickly = self._answer_banded(x, bands) if alone else None
            elif neighbors is not None:
                quickly = self._answer_among(x, neighbors) if nodes is None else None
            else:
                quickly = self._answer_new(x) if nodes is None else self.store.lookup(nodes)
            if quickly is not None:
                return quickly
        known = self._known_rows(nodes, x, neighbors, position, bands)
        if known is not None:
            return self.store.logits(known)
        rows = check_rows(x, self.width)
        if self.manifest.bands is not None:
            given = self._bands(len(rows), neighbors, position, bands)
            logits = self.cold_kernel(rows) if given is None else self.kernel(rows, bands=given)
        elif self.neighborhood is not None:
            edges = self._edges(len(rows), neighbors, position)
            logits = self.neighborhood.logits(rows, edges)
        elif self.structure is not None:
            edges = self._edges(len(rows), neighbors, position)
            logits = self.kernel(
                rows, structure=self.structure.structure(*self.structure.sums(edges))
            )
        else:
            logits = self.kernel(rows, self._positions(len(rows), neighbors, position))
        if not np.isfinite(logits).all():
            row = int(np.argmin(np.isfinite(logits).all(axis=1)))
            raise RequestError(f"x[{row}] holds numbers so large that its answer is not finite.")
        return logits

    def decide(
        self,
        nodes: Nodes | None = None,
        *,
        x: Any = None,
        neighbors: Any = None,
        position: Any = None,
        bands: Any = None,
        threshold: float | None = None,
    ) -> Decisions:
        """Answer where the student is sure, and defer the rest.

        A deferred node that is known is answered by the teacher, whose answer the bundle holds; a
        new one keeps the student's answer, for the caller to hand on. See :meth:`predict` for the
        other arguments.

        Args:
            nodes: Ids of known nodes.
            x: Features of new nodes.
            neighbors: Ids of their neighbours.
            position: Their positional encodings.
            bands: What bands say of them.
            threshold: Confidence below which a node is deferred; by default that of the bundle,
                which was fitted on validation nodes.

        Raises:
            RequestError: The bundle has no cascade, or :meth:`predict` would raise it.
            OptionError: ``threshold`` is below 0.
        """
        cascade = self.cascade
        probabilities = self.predict_proba(
            nodes, x=x, neighbors=neighbors, position=position, bands=bands
        )
        rows = None if nodes is None else self._taught_rows(nodes)
        choice = cascade.decide(probabilities, rows, threshold)
        return Decisions(self._class_names[choice.answer], *choice[1:])

    def _taught_rows(self, nodes: Nodes) -> npt.NDArray[np.int64]:
        """Rows of known nodes in the store, −1 where a teacher's answer no longer holds."""
        return self.store.rows_of(nodes)

    def explain(
        self,
        nodes: Nodes | None = None,
        *,
        x: Any = None,
        neighbors: Any = None,
        position: Any = None,
        bands: Any = None,
    ) -> tuple[Routes, ...] | StructureExplanation | BandExplanation:
        """Which experts each node is sent to, or how much its neighbours or bands count.

        Known nodes are answered anew, from their stored features and edges; see :meth:`predict` for
        the arguments.

        Returns:
            For a student of experts, for each layer of them: the ``k`` chosen ones, int64
            ``[B, k]``, counted from 0, the one with the largest gate first, and their gates,
            float32 ``[B, k]``. For a student that reads neighbours a
            :class:`~limbeck.runtime.StructureExplanation`, for one that reads bands a
            :class:`~limbeck.runtime.BandExplanation`.

        Raises:
            RequestError: The student has none of these, or :meth:`predict` would raise it.
        """
        tells_of_bands = self.manifest.bands is not None and self.manifest.bands.count > 0
        if self.structure is None and not self.manifest.routing and not tells_of_bands:
            raise RequestError(
                f"the student {self.manifest.student!r} has no layers of experts or bands that "
                "this bundle tells of, and no table of neighbors: there is nothing to explain."
            )
        known = self._known_rows(nodes, x, neighbors, position, bands)
        rows = check_rows(x, self.width) if known is None else self.store.features(known)
        if tells_of_bands:
            if known is not None:
                return self._explain_bands(rows, self.store.bands(known), self.store.banded(known))
            given = self._bands(len(rows), neighbors, position, bands)
            return self._explain_bands(rows, given, np.full(len(rows), given is not None))
        if self.structure is None:
            if known is None:
                return self.kernel.routes(rows, self._positions(len(rows), neighbors, position))
            has_position = self.manifest.position_width > 0
            return self.kernel.routes(rows, self.store.positions(known) if has_position else None)
        self.manifest.require_one_class("an explanation by neighbors")
        if known is None:
            edges = self._edges(len(rows), neighbors, position)
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
        if self.structure is None and self.neighborhood is None:
            raise RequestError(f"the student {self.manifest.student!r} reads no neighbors.")
        counts, _ = self.store.neighbor_rows(neighbors)
        return self._edges(len(counts), neighbors, None).ignored

    def _edges(self, count: int, neighbors: Any, position: Any) -> Edges:
        """The edges of new nodes, for a student that reads neighbours."""
        if position is not None:
            raise RequestError("this student reads neighbors, not positions: leave position out.")
        if self.neighborhood is not None:
            return self.neighborhood.edges_of_request(neighbors, count)
        assert self.structure is not None
        return self.structure.edges_of_request(self.store, neighbors, count, self.max_neighbors)

    def _bands(
        self, count: int, neighbors: Any, position: Any, bands: Any
    ) -> npt.NDArray[np.float32] | None:
        """Bands ``[B, w]`` of new nodes; ``None`` if none are given."""
        if neighbors is not None or position is not None:
            raise RequestError("this student reads bands: leave neighbors and position out.")
        if bands is None:
            return None
        given = check_beside("bands", bands, self.manifest.bands_width)
        if len(given) != count:
            raise RequestError(f"there are {len(given)} rows of bands for {count} rows of x.")
        return given

    def _explain_bands(
        self, x: Rows, bands: npt.NDArray[np.float32] | None, has_bands: npt.NDArray[np.bool_]
    ) -> BandExplanation:
        """How bands count for nodes of which some have them and others do not."""
        parts: list[tuple[npt.NDArray[np.int64], BandAnswers]] = []
        for which, kernel in ((True, self.kernel), (False, self.cold_kernel)):
            rows = np.flatnonzero(has_bands == which)
            if len(rows) or (which and len(has_bands) == 0):
                own = x.take(rows) if isinstance(x, CsrRows) else x[rows]
                read = bands[rows] if which and bands is not None else None
                parts.append((rows, kernel.band_answers(own, read)))
        order = np.argsort(np.concatenate([rows for rows, _ in parts]), kind="stable")
        gates = np.concatenate([answers.gates for _, answers in parts])[order]
        shares = np.concatenate([answers.shares for _, answers in parts])[order]
        return BandExplanation(gates, shares, has_bands)

    def _known_rows(
        self, nodes: Nodes | None, x: Any, neighbors: Any, position: Any, bands: Any
    ) -> npt.NDArray[np.int64] | None:
        """Rows of known nodes in the store; ``None`` if new ones are given."""
        if (nodes is None) == (x is None):
            given = "neither" if x is None else "both"
            raise RequestError(f"give either nodes or x; {given} was given.")
        if nodes is None:
            if bands is not None and self.manifest.bands is None:
                raise RequestError("this student reads no bands: leave bands out.")
            return None
        if neighbors is not None or position is not None or bands is not None:
            raise RequestError(
                "neighbors, position and bands belong to new nodes: give x with them."
            )
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
            given = check_beside("position", position, width)
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

    def with_overlay(self, path: str | os.PathLike[str], *, verify: bool = True) -> OverlaidStudent:
        """The same student with new and changed nodes beside its bundle.

        Args:
            path: The file that keeps them, made if it is not there; or a Redis server for several
                replicas, ``redis://HOST:PORT/DATABASE`` (extra ``redis``).
            verify: Check all that is kept for damage.

        Raises:
            BundleError: What is there is no overlay, is damaged, or belongs to another bundle.
            OutputError: The file cannot be made or written, or the server cannot be reached.
            MissingExtraError: It is a Redis server, and redis-py is not installed.
        """
        # imported here: most students have none, and it is a subclass of this one
        from limbeck.runtime.overlaid import OverlaidStudent

        return OverlaidStudent(self, path, verify=verify)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.manifest.student!r} by {self.manifest.method!r} from "
            f"{self.manifest.graph.name!r}, {self.width} features, {len(self.classes)} classes, "
            f"{self.store.num_nodes:,} known nodes)"
        )
