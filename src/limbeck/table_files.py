"""Tables in files: which formats there are, which columns a file has, and reading some of them."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset

from limbeck.errors import GraphError, nearest_name

TableFormat = Literal["parquet", "arrow", "csv"]
FORMATS: dict[str, TableFormat] = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".csv": "csv",
}
"""Format by a file's extension; a folder is read as Parquet parts in the order of their names."""

# cells may hold line breaks; only an empty cell is a null: "NA" is a country and a fine id
_CSV_PARSE = pyarrow.csv.ParseOptions(newlines_in_values=True)


@dataclass(frozen=True)
class TableFile:
    """A table that has been found but not read.

    Args:
        path: The file, or the folder of Parquet parts.
        format: One of ``"parquet"``, ``"arrow"``, ``"csv"``.
        columns: Names of its columns, in the file's order, unique.
    """

    path: Path
    format: TableFormat
    columns: tuple[str, ...]

    def read(self, columns: Sequence[str], *, names: Collection[str] = ()) -> pa.Table:
        """Read some columns.

        Args:
            columns: Their names; every one is among :attr:`columns`.
            names: Those that name things (ids, classes, categories). A CSV file does not know
                its types, so there they are taken as written: as ``int64`` if every cell is
                written as an integer is, else as text, where ``1`` and ``01`` are two names.

        Raises:
            GraphError: The file cannot be read or has no rows.
        """
        with _readable(self.path, self.format):
            if self.format == "csv":
                table = _read_csv(self.path, columns, names)
            else:
                table = _dataset(self.path, self.format).to_table(columns=list(columns))
        if table.num_rows == 0:
            raise GraphError(f"{self.path} has no rows.")
        return table

    def check_column(self, name: str, option: str) -> None:
        """Refuse a column that the file does not have.

        Raises:
            GraphError: Names the column, the option it was given by, and the nearest column.
        """
        if name in self.columns:
            return
        near = nearest_name(name, self.columns)
        hint = f"did you mean {near!r}? " if near else ""
        raise GraphError(
            f"no column {name!r} in {self.path} (option {option!r}): {hint}"
            f"There are {_listed(self.columns)}."
        )

    def find_column(self, option: str, given: str | None, usual: Collection[str]) -> str:
        """Settle which column plays a part.

        Args:
            option: The part, as the user names it in an option (``"id"``).
            given: The column that the user named, if any.
            usual: Names to look for otherwise.

        Raises:
            GraphError: The named column is missing, or none or several of the usual ones exist.
        """
        found = self.find_optional_column(option, given, usual)
        if found is None:
            raise GraphError(
                f"no column of {self.path} is called {_listed(usual, 'or')}: name one of "
                f"{_listed(self.columns)} with the option {option!r}."
            )
        return found

    def find_optional_column(
        self, option: str, given: str | None, usual: Collection[str]
    ) -> str | None:
        """As :meth:`find_column`, but ``None`` where none of the usual columns exists."""
        if given is not None:
            self.check_column(given, option)
            return given
        found = [name for name in usual if name in self.columns]
        if len(found) > 1:
            raise GraphError(
                f"{self.path} has columns {_listed(found, 'and')}: say with the option "
                f"{option!r} which one it is."
            )
        return found[0] if found else None


def open_table(path: str | os.PathLike[str]) -> TableFile:
    """Find a table and its columns: ``.parquet``, ``.arrow``, ``.feather``, ``.csv`` or a folder.

    Raises:
        GraphError: There is no such file, its extension is unknown, it is empty or unreadable,
            or two of its columns have the same name.
    """
    path = Path(path)
    if not path.exists():
        raise GraphError(f"there is no file or folder {path}.")
    if not path.is_dir() and path.suffix.lower() not in FORMATS:
        raise GraphError(
            f"{path} has the extension {path.suffix!r}: a table is a {_listed(FORMATS, 'or')} "
            "file or a folder of Parquet files."
        )
    table_format: TableFormat = "parquet" if path.is_dir() else FORMATS[path.suffix.lower()]
    if path.is_file() and path.stat().st_size == 0:
        raise GraphError(f"{path} is empty.")
    with _readable(path, table_format):
        if table_format == "csv":
            names = pyarrow.csv.open_csv(path, parse_options=_CSV_PARSE).schema.names
        else:
            names = _dataset(path, table_format).schema.names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise GraphError(f"{path} has more than one column called {twice[0]!r}.")
    return TableFile(path, table_format, tuple(names))


def find_table(folder: str | os.PathLike[str], stem: str) -> Path:
    """Find the one table called ``stem`` in a folder: a file of a known format, or a folder.

    Raises:
        GraphError: There is no such folder, or it has no such table or several.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise GraphError(f"there is no folder {folder}.")
    candidates = [folder / stem, *(folder / f"{stem}{extension}" for extension in FORMATS)]
    found = [path for path in candidates if path.exists()]
    if not found:
        names = _listed([path.name for path in candidates[1:]], "or")
        raise GraphError(f"{folder} has no table of {stem}: expected {names}, or a folder {stem}.")
    if len(found) > 1:
        names = _listed([path.name for path in found], "and")
        raise GraphError(f"{folder} has {names}: leave one of them.")
    return found[0]


def _dataset(path: Path, table_format: TableFormat) -> pa.dataset.Dataset:
    return pyarrow.dataset.dataset(path, format=table_format)


def _read_csv(path: Path, columns: Sequence[str], names: Collection[str]) -> pa.Table:
    convert = pyarrow.csv.ConvertOptions(
        include_columns=list(columns),
        column_types={name: pa.large_string() for name in names},
        null_values=[""],
        strings_can_be_null=True,
    )
    table = pyarrow.csv.read_csv(path, parse_options=_CSV_PARSE, convert_options=convert)
    for position, column in enumerate(columns):
        if column in names:
            values = _integers_if_written_so(table.column(column))
            table = table.set_column(position, column, values)
    return table


def _integers_if_written_so(text: pa.ChunkedArray) -> pa.ChunkedArray:
    """Text as integers, if turning them back into text gives what was written."""
    try:
        integers = text.cast(pa.int64())
    except pa.ArrowInvalid:
        return text
    return integers if integers.cast(pa.large_string()).equals(text) else text


@contextmanager
def _readable(path: Path, table_format: TableFormat) -> Iterator[None]:
    """Turn what pyarrow says of a broken file into a sentence that names it."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        name = {"parquet": "Parquet", "arrow": "Arrow", "csv": "CSV"}[table_format]
        raise GraphError(f"{path} cannot be read as {name}: {reason}.") from error


def _listed(names: Collection[str], conjunction: str = "and") -> str:
    *most, last = map(repr, names)
    return f"{', '.join(most)} {conjunction} {last}" if most else last
