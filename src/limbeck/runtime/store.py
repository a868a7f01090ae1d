"""The node store: what a bundle knows of known nodes, memory-mapped.

Arrays, by name (``store/<name>.npy``), for ``N`` nodes, ``F`` features and ``C`` classes::

    ids              int64 [N], or uint8: the UTF-8 bytes of all ids, one after the other
    ids_offsets      int64 [N + 1], only for text ids: where each id begins in those bytes
    x                float32 [N, F], dense features, raw; or instead
    x_indptr         int64 [N + 1]  ┐
    x_indices        int64 [nnz]    ├ the same as CSR
    x_values         float32 [nnz]  ┘
    logits           float32 [N, C], the student's cached answers
    position, bands  float32 [N, d], [N, w], what it reads beside features, if it does
    banded           bool [N], beside bands: whether they are known
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from limbeck.errors import BundleError, OptionError, RequestError, nearest_name
from limbeck.runtime.arrays import checked_array
from limbeck.runtime.bundle import STORE, Bundle
from limbeck.runtime.native import Answers, index_of, takes_nothing
from limbeck.runtime.rows import CsrRows, Rows

if TYPE_CHECKING:
    from limbeck.runtime._kernels import Known

# Up to this many text ids an unknown one is compared with all of them; it takes some 10 us each.
NEAREST_AMONG = 2000


def store_arrays(
    ids: npt.NDArray[Any],
    x: Rows,
    logits: npt.NDArray[np.float32],
    position: npt.NDArray[np.float32] | None = None,
    observed: npt.NDArray[np.bool_] | None = None,
    bands: npt.NDArray[np.float32] | None = None,
    banded: npt.NDArray[np.bool_] | None = None,
) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a node store, as a bundle holds them.

    Args:
        ids: The nodes' own ids ``[N]``: integers or strings, all different.
        x: Their features, dense ``[N, F]`` or CSR.
        logits: The student's answers, float32 ``[N, C]``.
        position: Their positional encodings, float32 ``[N, d]``, for a student that reads them.
        observed: Which of them training observed, so that their encoding is their own, ``[N]``;
            all by default. New nodes take the mean of observed neighbours.
        bands: What bands say of them, float32 ``[N, w]``, for a student that reads that.
        banded: Which of them have bands, bool ``[N]``; all by default.

    Raises:
        OptionError: Ids are of another type or not all different, or lengths differ.
    """
    if not len(ids) == len(x) == len(logits):
        raise OptionError(
            f"a node store needs one id, feature row and answer per node, and was given "
            f"{len(ids)}, {len(x)} and {len(logits)}."
        )
    arrays = {**_id_arrays(ids), "logits": np.asarray(logits, dtype=np.float32)}
    if position is not None:
        all_of_them = np.ones(len(ids), dtype=np.bool_)
        arrays["position"] = np.asarray(position, dtype=np.float32)
        arrays["observed"] = all_of_them if observed is None else observed
    if bands is not None:
        arrays["bands"] = np.asarray(bands, dtype=np.float32)
        arrays["banded"] = np.ones(len(ids), dtype=np.bool_) if banded is None else banded
    if isinstance(x, CsrRows):
        return arrays | {"x_indptr": x.indptr, "x_indices": x.indices, "x_values": x.values}
    return arrays | {"x": np.asarray(x, dtype=np.float32)}


def _id_arrays(ids: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
    if ids.dtype.kind in "iu":
        if len(np.unique(ids)) != len(ids):
            raise OptionError("the ids of a node store must all be different.")
        return {"ids": ids.astype(np.int64)}
    texts = ids.tolist()
    if not all(isinstance(text, str) for text in texts):
        raise OptionError("the ids of a node store must be all integers or all strings.")
    if len(set(texts)) != len(texts):
        raise OptionError("the ids of a node store must all be different.")
    encoded = [text.encode("utf-8") for text in texts]
    offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
    np.cumsum([len(text) for text in encoded], out=offsets[1:])
    return {"ids": np.frombuffer(b"".join(encoded), dtype=np.uint8), "ids_offsets": offsets}


class NodeStore:
    """Known nodes: their ids, features and cached logits.

    Arrays stay memory-mapped; nothing is read before it is asked for. The index from ids to
    rows is built at the first lookup: for integer ids their sorted order (nothing if they are
    sorted already), for text ids a dictionary.

    Args:
        arrays: The store's arrays by name, see :func:`store_arrays`.
        num_nodes: Number of known nodes ``N``.
        width: Number of features ``F``.
        num_classes: Number of classes ``C``.
        where: Name of the store, for messages.
        position_width: Width ``d`` of the positional encodings, 0 for none.
        bands_width: Number of values ``w`` of bands, 0 for none.

    Raises:
        BundleError: An array is missing or has another type or shape than these say.
    """

    def __init__(
        self,
        arrays: Mapping[str, npt.NDArray[Any]],
        num_nodes: int,
        width: int,
        num_classes: int,
        where: str = STORE,
        position_width: int = 0,
        bands_width: int = 0,
    ) -> None:
        self._where = where
        self.num_nodes = num_nodes
        self.width = width
        self._arrays = arrays
        self._logits = self._checked("logits", np.float32, (num_nodes, num_classes))
        self._has_text_ids = "ids_offsets" in arrays
        if self._has_text_ids:
            self._ids = self._checked("ids", np.uint8, (None,))
            self._checked("ids_offsets", np.int64, (num_nodes + 1,))
        else:
            self._ids = self._checked("ids", np.int64, (num_nodes,))
        self.position_width = position_width
        if position_width:
            self._checked("position", np.float32, (num_nodes, position_width))
            self._checked("observed", np.bool_, (num_nodes,))
        if bands_width:
            self._checked("bands", np.float32, (num_nodes, bands_width))
            self._checked("banded", np.bool_, (num_nodes,))
        self._is_sparse = "x_indptr" in arrays
        if self._is_sparse:
            self._checked("x_indptr", np.int64, (num_nodes + 1,))
            entries = self._checked("x_indices", np.int64, (None,))
            self._checked("x_values", np.float32, entries.shape)
        else:
            self._checked("x", np.float32, (num_nodes, width))

    @classmethod
    def open(cls, bundle: Bundle) -> NodeStore:
        """The store of an opened bundle.

        Raises:
            BundleError: An array is missing, unreadable or of the wrong type or shape.
        """
        return cls(
            bundle.arrays(),
            num_nodes=bundle.manifest.graph.counts["nodes"],
            width=bundle.manifest.width,
            num_classes=len(bundle.manifest.classes),
            where=str(bundle.path / STORE),
            position_width=bundle.manifest.position_width,
            bands_width=bundle.manifest.bands_width,
        )

    def _checked(
        self, name: str, dtype: type[np.generic], shape: tuple[int | None, ...]
    ) -> npt.NDArray[Any]:
        return checked_array(self._arrays, self._where, name, dtype, shape)

    @property
    def has_text_ids(self) -> bool:
        """Whether ids are strings, not integers."""
        return self._has_text_ids

    @property
    def ids(self) -> npt.NDArray[Any]:
        """The nodes' own ids ``[N]``: int64, or ``str`` objects."""
        if not self._has_text_ids:
            return self._ids
        texts = np.empty(self.num_nodes, dtype=object)
        texts[:] = self._texts()
        return texts

    def ids_of(self, rows: npt.NDArray[np.int64]) -> list[Any]:
        """The own ids of the nodes in ``rows``, integers or strings."""
        if not self._has_text_ids:
            ids: list[Any] = self._ids[rows].tolist()
            return ids
        offsets = self._arrays["ids_offsets"]
        try:
            return [
                self._ids[offsets[row] : offsets[row + 1]].tobytes().decode("utf-8")
                for row in rows.tolist()
            ]
        except UnicodeDecodeError as error:
            raise BundleError(f"{self._where}/ids.npy does not hold UTF-8 text.") from error

    def rows_of(self, ids: Sequence[int] | Sequence[str] | npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Rows of known nodes, int64 ``[B]``.

        Args:
            ids: The nodes' own ids, of the type that the graph has them in.

        Raises:
            RequestError: An id is not known, or not of the type of the known ones.
        """
        if isinstance(ids, str | bytes):
            raise RequestError(f"nodes is the text {ids!r}: give a list of ids.")
        return self._rows_of_texts(ids) if self._has_text_ids else self._rows_of_integers(ids)

    def logits(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Cached logits ``[B, C]`` of the nodes in ``rows``, a copy."""
        return self._logits[rows]

    @property
    def num_classes(self) -> int:
        """Number of classes ``C``."""
        return int(self._logits.shape[1])

    @cached_property
    def lookup(self) -> Answers:
        """Cached logits ``[B, C]`` of a list of ids, or for integers an array, quickly.

        It answers ``None`` for a request with a node that it does not find, and for any where the
        kernels are not there: what it leaves, :meth:`rows_of` and :meth:`logits` answer or refuse
        in words.

        Raises:
            BundleError: The stored ids are not text.
        """
        return takes_nothing if self.index is None else self.index.answer

    @cached_property
    def index(self) -> Known | None:
        """The compiled index from ids to rows and answers; ``None`` where there is none.

        Raises:
            BundleError: The stored ids are not text.
        """
        if self._has_text_ids:
            return index_of(self._logits, rows=self._row_of_text)
        if self._ids_are_rows:
            return index_of(self._logits)
        return index_of(self._logits, self._sorted_ids, self._order)

    def features(self, rows: npt.NDArray[np.int64]) -> Rows:
        """Features of the nodes in ``rows``: dense ``[B, F]``, or CSR as they are stored.

        Raises:
            BundleError: The stored rows are not those of a CSR matrix.
        """
        if not self._is_sparse:
            dense: npt.NDArray[np.float32] = self._arrays["x"][rows]
            return dense
        indptr, indices = self._arrays["x_indptr"], self._arrays["x_indices"]
        first, last = indptr[rows], indptr[rows + 1]
        if (first < 0).any() or (last < first).any() or (last > len(indices)).any():
            raise BundleError(f"{self._where}/x_indptr.npy does not hold the ends of rows.")
        stored = CsrRows(indptr, indices, self._arrays["x_values"], self.width)
        taken = stored.take(rows)
        if ((taken.indices < 0) | (taken.indices >= self.width)).any():
            raise BundleError(f"{self._where}/x_indices.npy holds a column that does not exist.")
        return taken

    def positions(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Positional encodings ``[B, d]`` of the nodes in ``rows``, a copy."""
        stored: npt.NDArray[np.float32] = self._arrays["position"][rows]
        return stored

    def bands(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """What bands say of the nodes in ``rows``, ``[B, w]``, a copy."""
        stored: npt.NDArray[np.float32] = self._arrays["bands"][rows]
        return stored

    def banded(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of the nodes in ``rows`` have bands, bool ``[B]``; the others have zeros there."""
        stored: npt.NDArray[np.bool_] = self._arrays["banded"][rows]
        return stored

    def positions_from_neighbors(self, neighbors: Any) -> npt.NDArray[np.float32]:
        """Positional encodings ``[B, d]`` of new nodes: the mean over their observed neighbours.

        Neighbours that are not known, or that training did not observe, do not count; a node
        that has no other gets zeros.

        Args:
            neighbors: For each new node a list of ids.

        Raises:
            RequestError: It is not a list of lists of ids.
        """
        counts, rows = self.neighbor_rows(neighbors)
        node = np.repeat(np.arange(len(counts)), counts)
        keep = rows >= 0
        keep[keep] = self._arrays["observed"][rows[keep]]
        sums = np.zeros((len(counts), self.position_width), dtype=np.float64)
        np.add.at(sums, node[keep], self._arrays["position"][rows[keep]])
        share = np.maximum(np.bincount(node[keep], minlength=len(counts)), 1)
        means: npt.NDArray[np.float32] = (sums / share[:, None]).astype(np.float32)
        return means

    def neighbor_rows(self, neighbors: Any) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Rows of the neighbours of some nodes, one node's after another's.

        Args:
            neighbors: For each node a list of ids.

        Returns:
            How many ids each node names, int64 ``[B]``, and their rows, −1 for one not known.

        Raises:
            RequestError: It is not a list of lists of ids.
        """
        if isinstance(neighbors, str | bytes):
            raise RequestError("neighbors is a text: give a list of ids for each node.")
        is_list = hasattr(neighbors, "__len__")
        if not is_list or any(
            isinstance(ids, str | bytes) or not hasattr(ids, "__len__") for ids in neighbors
        ):
            raise RequestError("neighbors must be a list of ids for each node.")
        counts = np.fromiter(map(len, neighbors), dtype=np.int64, count=len(neighbors))
        return counts, self.find(list(chain.from_iterable(neighbors)))

    def edges_of_request(
        self, neighbors: Any, count: int, most: int | None, is_read: npt.NDArray[np.bool_] | None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The edges that a request names for new nodes, each once.

        Args:
            neighbors: For each new node a list of ids; ``None`` for no edges at all.
            count: Number of new nodes ``B``.
            most: How many ids a node may name; ``None`` for any number.
            is_read: Which known nodes count as neighbours, bool ``[N]``; ``None`` for all.

        Returns:
            For each edge the new node, int64 ``[n]``, never falling, and the row of its neighbour,
            int64 ``[n]``, rising within a node; and how many of the ids given for each node are of
            no known node that counts, int64 ``[B]``.

        Raises:
            RequestError: It is not a list of ``B`` lists of ids, or one is too long.
        """
        if neighbors is None:
            none = np.empty(0, dtype=np.int64)
            return none, none, np.zeros(count, dtype=np.int64)
        lengths, found = self.neighbor_rows(neighbors)
        if len(lengths) != count:
            raise RequestError(
                f"there are {len(lengths)} lists of neighbors for {count} rows of x."
            )
        if most is not None and lengths.max(initial=0) > most:
            row = int(lengths.argmax())
            raise RequestError(
                f"neighbors[{row}] names {lengths[row]:,} nodes, and this student reads at most "
                f"{most:,} of a node."
            )
        # one node is what most requests name, and this the quicker way to write it
        node = np.zeros_like(found) if count == 1 else np.repeat(np.arange(count), lengths)
        ignored = np.zeros(count, dtype=np.int64)
        counts = found >= 0
        if is_read is not None:
            counts &= is_read[found]  # of −1 the last, which is left out already
        if not counts.all():
            ignored += np.bincount(node[~counts], minlength=count)
            node, found = node[counts], found[counts]
        # those of a node in order: arrays are read faster, and an edge that is named twice, which
        # counts once as in training, stands beside itself
        before = node * self.num_nodes
        key = before + found
        key.sort()
        if (key[1:] == key[:-1]).any():
            key = key[np.append(True, key[1:] != key[:-1])]
            node = key // self.num_nodes
            before = node * self.num_nodes
        return node, key - before, ignored

    def find(self, ids: list[Any]) -> npt.NDArray[np.int64]:
        """Rows of nodes, −1 where one is not known.

        Raises:
            RequestError: Ids are not of the type of the known ones.
        """
        if self._has_text_ids:
            try:
                return np.array([self._row_of_text.get(text, -1) for text in ids], dtype=np.int64)
            except TypeError as error:  # an id that is a list
                raise RequestError(
                    f"nodes must be a list of strings, as the ids of the known nodes are; given "
                    f"{_shorten(ids)}."
                ) from error
        if not ids:
            return np.empty(0, dtype=np.int64)
        wanted = np.asarray(ids)
        if wanted.dtype.kind not in "iu" or wanted.ndim != 1:
            raise _not_integers(ids)
        if self._ids_are_rows:
            rows = wanted.astype(np.int64, copy=False)
            return np.where((rows >= 0) & (rows < self.num_nodes), rows, -1)
        place, known = self._find_integers(wanted)
        found = np.full(len(wanted), -1, dtype=np.int64)
        found[known] = place[known] if self._order is None else self._order[place[known]]
        return found

    # ------------------------------------------------------------ integer ids

    @cached_property
    def _order(self) -> npt.NDArray[np.int64] | None:
        """Rows in the order of their ids; ``None`` if they are stored in that order."""
        if (self._ids[1:] > self._ids[:-1]).all():
            return None
        return np.argsort(self._ids, kind="stable")

    @cached_property
    def _ids_are_rows(self) -> bool:
        """Whether ids are 0, 1, 2 and so on, so that there is nothing to look up."""
        if self.num_nodes == 0 or self._order is not None:
            return False
        return int(self._ids[0]) == 0 and int(self._ids[-1]) == self.num_nodes - 1

    @cached_property
    def _sorted_ids(self) -> npt.NDArray[np.int64]:
        return self._ids if self._order is None else self._ids[self._order]

    def _rows_of_integers(self, ids: Any) -> npt.NDArray[np.int64]:
        try:
            wanted = np.asarray(ids)
        except ValueError as error:  # lists of different lengths
            raise _not_integers(ids) from error
        if wanted.shape == (0,):
            return np.empty(0, dtype=np.int64)
        if wanted.dtype.kind not in "iu" or wanted.ndim != 1:
            raise _not_integers(ids)
        place, known = self._find_integers(wanted)
        if not known.all():
            raise self._unknown(int(wanted[np.argmin(known)]))
        return place if self._order is None else self._order[place]

    def _find_integers(
        self, wanted: npt.NDArray[Any]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Place of each id in the sorted order, and whether the id there is that one."""
        # an unsigned id beyond int64 turns negative here, and must not be found as that
        signed = wanted.astype(np.int64, copy=False)
        place = np.searchsorted(self._sorted_ids, signed)
        inside = (place < self.num_nodes) & (wanted <= np.iinfo(np.int64).max)
        found = np.zeros(len(wanted), dtype=np.bool_)
        found[inside] = self._sorted_ids[place[inside]] == signed[inside]
        return place, found

    # ------------------------------------------------------------ text ids

    def _texts(self) -> list[str]:
        path = f"{self._where}/ids.npy"
        offsets = self._arrays["ids_offsets"].tolist()
        raw = self._ids.tobytes()
        if offsets[0] != 0 or offsets[-1] != len(raw) or any(a > b for a, b in pairwise(offsets)):
            raise BundleError(f"{self._where}/ids_offsets.npy does not fit {path}.")
        try:
            return [raw[start:stop].decode("utf-8") for start, stop in pairwise(offsets)]
        except UnicodeDecodeError as error:
            raise BundleError(f"{path} does not hold UTF-8 text.") from error

    @cached_property
    def _row_of_text(self) -> dict[str, int]:
        return {text: row for row, text in enumerate(self._texts())}

    def _rows_of_texts(self, ids: Any) -> npt.NDArray[np.int64]:
        if isinstance(ids, np.ndarray):
            ids = ids.tolist()
        try:
            return np.array([self._row_of_text[text] for text in ids], dtype=np.int64)
        except KeyError as error:
            unknown = error.args[0]
        except TypeError as error:  # not a list, or an id that is a list
            raise RequestError(
                f"nodes must be a list of strings, as the ids of the known nodes are; given "
                f"{_shorten(ids)}."
            ) from error
        if not isinstance(unknown, str):
            raise RequestError(
                f"the node {unknown!r} is given as {type(unknown).__name__}, and the ids of the "
                "known nodes are strings."
            )
        raise self._unknown(unknown)

    def _unknown(self, node: int | str) -> RequestError:
        few = isinstance(node, str) and self.num_nodes <= NEAREST_AMONG
        near = nearest_name(str(node), self._row_of_text) if few else None
        hint = f"did you mean {near!r}? " if near else ""
        return RequestError(
            f"unknown node {_shorten(node)}: {hint}The bundle knows {self.num_nodes:,} nodes; give "
            "the features of others as x."
        )


def _not_integers(ids: Any) -> RequestError:
    return RequestError(
        f"nodes must be a list of integers, as the ids of the known nodes are; given "
        f"{_shorten(ids)}."
    )


def _shorten(given: Any) -> str:
    """What was given, short enough for a message."""
    text = repr(given)
    return text if len(text) <= 80 else text[:77] + "..."
