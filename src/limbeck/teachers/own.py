"""Teachers that people bring: a module of theirs, or nothing but its logits."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from limbeck.errors import TeacherError
from limbeck.graphs.view import View
from limbeck.teachers.knowledge import (
    Answers,
    FittedTeacher,
    Knowledge,
    ask,
    check_logits,
    with_noise,
)


@runtime_checkable
class TeacherSource(Protocol):
    """Anything that becomes a fitted teacher once a view is known."""

    def fitted(self, view: View) -> FittedTeacher:
        """Ask for everything that the view needs."""


@dataclass(frozen=True, eq=False)
class Teacher:
    """A network of your own, already trained.

    Args:
        module: Any module with ``forward(x, edge_index) -> logits [N, C]``. It is put into eval
            mode and asked on the observed graph, and for scores on the full one, so it must not
            have been trained on nodes that the view hides.
        name: What to call it in tables; its class by default.
    """

    module: torch.nn.Module
    name: str = ""

    @classmethod
    def from_file(cls, path: str | Path, name: str = "") -> Teacher:
        """Load a whole module that ``torch.save(module, path)`` wrote.

        Its class must be importable here. Such a file is a pickle and can run code when it is
        loaded: open only files that you trust.

        Raises:
            TeacherError: The file cannot be read, its class cannot be imported, or it does not
                hold a module.
        """
        path = Path(path)
        try:
            module = torch.load(path, map_location="cpu", weights_only=False)
        except (AttributeError, ModuleNotFoundError) as error:
            raise TeacherError(
                f"{path}: the teacher's class cannot be imported ({error}): put its module on "
                "PYTHONPATH."
            ) from None
        except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile) as e:
            raise TeacherError(
                f"{path}: not a teacher that can be read ({_first_line(e)}): save one with "
                "torch.save(module, path)."
            ) from None
        if not isinstance(module, torch.nn.Module):
            raise TeacherError(
                f"{path} holds {_what(module)}, not a module: save the whole teacher with "
                "torch.save(module, path), or give its logits."
            )
        return cls(module, name or type(module).__name__)

    def fitted(self, view: View) -> FittedTeacher:
        """Ask the module on the view.

        Raises:
            TeacherError: Its logits do not fit the graph.
        """
        name = self.name or type(self.module).__name__
        knowledge, answers = ask(self.module, view, name, depth=None)
        count = sum(parameter.numel() for parameter in self.module.parameters())
        knowledge = with_noise(knowledge, self.module, view)
        return FittedTeacher(
            name,
            knowledge,
            answers,
            self.module,
            num_parameters=count,
            view=view.cut_fingerprint,
        )


@dataclass(frozen=True, eq=False)
class LogitsTeacher:
    """Nothing but a teacher's logits, one row per node of the graph, in its order.

    Rows of unseen nodes are used for scoring only, and may be NaN where the teacher has no
    answer. Logits that were computed with unseen nodes in the graph carry something of them
    into the observed rows; only you can know.

    Args:
        logits: float ``[N, C]``.
        where: Where they came from, for messages.
        name: What to call the teacher in tables.
        ids: The nodes' own ids, one per row, if rows are not in the graph's order.
        columns: Names of the classes, one per column, if columns may not be in their order.
    """

    logits: Tensor
    where: str = "logits"
    name: str = "logits"
    ids: np.ndarray[Any, Any] | None = None
    columns: tuple[str, ...] | None = None

    def fitted(self, view: View) -> FittedTeacher:
        """Put the rows in the view's order and check them.

        Raises:
            TeacherError: Wrong shape, NaN for an observed node, or ids that do not match.
        """
        classes = view.num_classes
        logits = self.in_order(view.info.node_ids, view.info.class_names)[view.nodes]
        observed = check_logits(logits[: view.num_observed], view.num_observed, classes, self.where)
        unseen = logits[view.num_observed :].to(torch.float32)
        complete = view.has_unseen and bool(torch.isfinite(unseen).all())
        return FittedTeacher(
            self.name,
            Knowledge(observed, name=self.name),
            Answers(observed, unseen.contiguous() if complete else None),
            view=view.cut_fingerprint,
        )

    def in_order(self, node_ids: np.ndarray[Any, Any], class_names: tuple[str, ...]) -> Tensor:
        """The logits ``[N, C]`` of these nodes and classes, in their order.

        Args:
            node_ids: The nodes' own ids, ``[N]``, all of the graph's and in its order.
            class_names: Names of the classes.

        Raises:
            TeacherError: Wrong shape, or ids that do not match.
        """
        logits, wanted = self.logits, (len(node_ids), len(class_names))
        if logits.ndim != 2 or tuple(logits.shape) != wanted:
            raise TeacherError(
                f"{self.where}: logits have the shape {tuple(logits.shape)}, but the graph asks "
                f"for {wanted}: one row per node and one column per class."
            )
        if self.columns is not None:
            logits = logits[:, self._column_order(class_names)]
        return logits if self.ids is None else logits[self._row_order(node_ids)]

    def _column_order(self, class_names: tuple[str, ...]) -> list[int]:
        assert self.columns is not None
        if sorted(self.columns) != sorted(class_names):
            return list(range(len(self.columns)))
        return [self.columns.index(name) for name in class_names]

    def _row_order(self, node_ids: np.ndarray[Any, Any]) -> Tensor:
        assert self.ids is not None
        wanted, given = pa.array(node_ids), pa.array(self.ids)
        if wanted.type != given.type:
            wanted, given = wanted.cast(pa.string()), given.cast(pa.string())
        rows = pc.index_in(wanted, value_set=given)
        if rows.null_count:
            missing = wanted[int(np.flatnonzero(rows.is_null().to_numpy(False))[0])].as_py()
            raise TeacherError(
                f"{self.where}: there is no row for node {missing!r}; every node of the graph "
                "needs one."
            )
        return torch.from_numpy(rows.to_numpy().astype(np.int64))


def knowledge_from(
    logits: Tensor | np.ndarray[Any, Any] | str | Path, name: str = "logits"
) -> LogitsTeacher:
    """Take a teacher's logits as an array or from a file.

    Args:
        logits: ``[N, C]``, one row per node in the graph's order; or a ``.npy`` file, a ``.npz``
            file (its array ``logits``, or its only one), a ``.pt`` file with one tensor, or a
            Parquet file with a column per class and, if rows are in another order, a column
            ``id``.
        name: What to call the teacher in tables.

    Raises:
        TeacherError: The file cannot be read or does not hold such an array.
    """
    if isinstance(logits, str | Path):
        return _read(Path(logits), name)
    return LogitsTeacher(torch.as_tensor(logits), name=name)


def _read(path: Path, name: str) -> LogitsTeacher:
    readers = {".npy": _read_npy, ".npz": _read_npz, ".pt": _read_pt, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise TeacherError(
            f"{path}: logits are read from {', '.join(readers)}, not from {path.suffix!r} files."
        )
    try:
        return readers[path.suffix](path, name)
    except (
        OSError,
        EOFError,
        ValueError,
        RuntimeError,
        pa.ArrowException,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ) as error:
        if isinstance(error, TeacherError):
            raise
        raise TeacherError(f"{path}: logits cannot be read ({_first_line(error)}).") from None


def _read_npy(path: Path, name: str) -> LogitsTeacher:
    return LogitsTeacher(torch.from_numpy(np.load(path, allow_pickle=False)), str(path), name)


def _read_npz(path: Path, name: str) -> LogitsTeacher:
    with np.load(path, allow_pickle=False) as arrays:
        names = arrays.files
        key = "logits" if "logits" in names else names[0] if len(names) == 1 else None
        if key is None:
            raise TeacherError(
                f"{path} holds the arrays {', '.join(names)}: name the one to use 'logits'."
            )
        return LogitsTeacher(torch.from_numpy(arrays[key]), str(path), name)


def _read_pt(path: Path, name: str) -> LogitsTeacher:
    logits = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(logits, Tensor):
        raise TeacherError(f"{path} holds {_what(logits)}: save one tensor [N, C] in it.")
    return LogitsTeacher(logits, str(path), name)


def _read_parquet(path: Path, name: str) -> LogitsTeacher:
    table = pq.read_table(path)
    ids = None
    if "id" in table.column_names:
        ids = table["id"].to_numpy()
        table = table.drop_columns(["id"])
    for column in table.column_names:
        kind = table.schema.field(column).type
        if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
            raise TeacherError(f"{path}: column {column!r} is {kind}, not a number per class.")
    values = np.column_stack([column.to_numpy() for column in table.columns]).astype(np.float32)
    columns: Sequence[str] = table.column_names
    return LogitsTeacher(torch.from_numpy(values), str(path), name, ids, tuple(columns))


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__


def _what(value: object) -> str:
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"
