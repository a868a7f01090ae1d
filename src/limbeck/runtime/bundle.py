"""Bundle format 2: the folder that leaves the training machine.

::

    limbeck.json       what the bundle is; size and sha256 of every other file; its own seal
    model.onnx         the student: node inputs in, logits out
    sparse.onnx        the same for feature rows given as their entries, where features are sparse
    store/*.npy        known nodes: ids, features, cached logits
    README.md          the card

A bundle holds no pickles and no code. ``docs/bundle.md`` describes it field by field. Reading
and writing need NumPy and the standard library only. Bundles of format 1, which had neither
``sparse.onnx`` nor the fields ``routing`` and ``sparse``, are read, too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt

from limbeck.errors import BundleError, OptionError, OutputError

FORMAT = 2
READABLE = (1, FORMAT)
MANIFEST = "limbeck.json"
INPUTS = ("x", "position")
NEIGHBORS = "neighbors"
MODEL = "model.onnx"
SPARSE_MODEL = "sparse.onnx"
CARD = "README.md"
STORE = "store"

# Far beyond any fitted temperature; within them, float32 neither overflows nor divides by zero.
MIN_TEMPERATURE = 1e-6
MAX_TEMPERATURE = 1e6

# Names inside a bundle are plain: a listed file can lie in the bundle or in its store, nowhere
# else, on any system.
_FILE_NAME = re.compile(r"(?:store/)?[A-Za-z0-9_][A-Za-z0-9_.-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")

T = TypeVar("T")


@dataclass(frozen=True)
class InputEntry:
    """One input that the student reads of a node: ``width`` values of type ``dtype``."""

    name: str
    dtype: str
    width: int


@dataclass(frozen=True)
class RoutingEntry:
    """One layer of experts: how many there are, and how many of them a node uses."""

    experts: int
    top_k: int


@dataclass(frozen=True)
class SparseEntry:
    """The model of sparse rows.

    Args:
        values_per_entry: Weights of its first layer that it copies together for one entry of a
            row, by which a runtime bounds the memory of a call.
    """

    values_per_entry: int


@dataclass(frozen=True)
class StructureEntry:
    """The table of a student that reads neighbours.

    Args:
        width: Values ``h`` of a row.
        power: Power of the degree that the sum over neighbours is divided by: 0, 0.5 or 1.
        blend: Degree at which neighbours and features count the same, 0 for no blend.
        table_dtype: How rows are stored: ``"float32"``, or ``"int8"`` with a factor for each.
        agreement: Share of the known nodes whose class is that of the table as it was trained.
    """

    width: int
    power: float
    blend: float
    table_dtype: str
    agreement: float


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and sha256 (hexadecimal) of one file of the bundle."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class GraphEntry:
    """The graph that a student was distilled from.

    Args:
        name: What the graph is called.
        dataset: Name by which Limbeck loads it again, empty for a graph of the user's own.
        source: Where it came from.
        fingerprint: Digest of its nodes, edges and labels.
        counts: Sizes worth printing; ``counts["nodes"]`` is the number of known nodes.
    """

    name: str
    dataset: str
    source: str
    fingerprint: str
    counts: Mapping[str, int]


@dataclass(frozen=True)
class Manifest:
    """The content of ``limbeck.json``.

    Args:
        format: Number of the format, 1 or 2.
        limbeck: Version of Limbeck that wrote the bundle.
        method: Name of the distillation method.
        student: Name of the student's network.
        classes: Name of each class, in the order of the logits.
        inputs: What the student reads of a node.
        routing: Its layers of experts that say where they send a node; none for other students.
        sparse: The model of sparse rows, or ``None`` where there is none.
        structure: The table of a student that reads neighbours; ``None`` for others.
        preprocessing: JSON form of the encoder that turns a table's row into features, or
            ``None`` where the features came as an array.
        hyper_parameters: Hyper-parameters of method and student.
        teacher: What the student was distilled from.
        setting: What of the graph training saw (``"inductive"``, ...).
        scores: Measured scores of teacher and student.
        latency: Measured latency in microseconds, or ``None`` where it was not measured.
        temperature: Number that logits are divided by before the softmax.
        graph: The graph that the student was distilled from.
        versions: Versions of Python and of the packages that made the bundle.
        files: Size and checksum of every file beside ``limbeck.json``, by name.
    """

    format: int
    limbeck: str
    method: str
    student: str
    classes: tuple[str, ...]
    inputs: tuple[InputEntry, ...]
    routing: tuple[RoutingEntry, ...]
    sparse: SparseEntry | None
    structure: StructureEntry | None
    preprocessing: Mapping[str, Any] | None
    hyper_parameters: Mapping[str, Any]
    teacher: Mapping[str, Any]
    setting: str
    scores: Mapping[str, Any]
    latency: Mapping[str, Any] | None
    temperature: float
    graph: GraphEntry
    versions: Mapping[str, str]
    files: Mapping[str, FileEntry]

    @property
    def width(self) -> int:
        """Number of features ``F`` that the student reads."""
        return self.inputs[0].width

    @property
    def position_width(self) -> int:
        """Width ``d`` of the positional encoding that it reads, 0 for none."""
        return sum(entry.width for entry in self.inputs if entry.name == "position")


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: where it lies and what it says of itself.

    Args:
        path: The bundle's folder.
        manifest: The content of its ``limbeck.json``.
    """

    path: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        """Path of the listed file ``name``.

        Raises:
            BundleError: The bundle lists no such file.
        """
        if name not in self.manifest.files:
            raise BundleError(f"{self.path / MANIFEST} lists no file {name!r}.")
        return self.path / name

    def array(self, name: str) -> npt.NDArray[Any]:
        """Array ``store/<name>.npy``, memory-mapped and read-only.

        Raises:
            BundleError: The bundle lists no such array, or it is not one.
        """
        path = self.file(f"{STORE}/{name}.npy")
        try:
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError, RecursionError, MemoryError) as error:
            raise BundleError(f"{path} is not a readable .npy file: {error}.") from error
        # a plain view of the same pages: indexing a `memmap` object is several times slower
        return np.asarray(mapped)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """All arrays of the store by name; see :meth:`array`."""
        prefix, ending = f"{STORE}/", ".npy"
        names = [
            name.removeprefix(prefix).removesuffix(ending)
            for name in self.manifest.files
            if name.startswith(prefix) and name.endswith(ending)
        ]
        return {name: self.array(name) for name in names}

    def has_array(self, name: str) -> bool:
        """Whether the store holds an array of that name."""
        return f"{STORE}/{name}.npy" in self.manifest.files


def open_bundle(path: str | os.PathLike[str], *, verify: bool = True) -> Bundle:
    """Open a bundle and check that it is whole.

    Args:
        path: The bundle's folder.
        verify: Compare the sha256 of every file with ``limbeck.json``, about a second per
            gigabyte. Without it only presence and size are compared: meant for processes that
            open a folder which this machine has verified before.

    Raises:
        BundleError: The folder is no bundle, is of an unknown format, or one of its files is
            missing, truncated or altered; the message names the file.
    """
    folder = Path(path)
    manifest = parse_manifest(_read_manifest(folder), folder / MANIFEST)
    for name, entry in manifest.files.items():
        _check_file(folder / name, entry, verify=verify)
    return Bundle(folder, manifest)


def write_bundle(
    path: str | os.PathLike[str],
    manifest: Mapping[str, Any],
    model: bytes,
    store: Mapping[str, npt.NDArray[Any]],
    card: str,
    sparse_model: bytes | None = None,
) -> Path:
    """Write a bundle, whole or not at all.

    Everything is written to a temporary folder beside ``path``, forced to the disk, and
    renamed.

    Args:
        path: The folder to make. An existing one is replaced only if it is a bundle and holds
            nothing else.
        manifest: The fields of ``limbeck.json`` but ``format`` and ``files``.
        model: The ONNX model.
        store: Arrays of the node store by name, without the ending ``.npy``.
        card: Text of ``README.md``.
        sparse_model: The ONNX model of sparse rows, where ``manifest`` says that there is one.

    Returns:
        The folder.

    Raises:
        OptionError: ``manifest`` lacks a field, or holds a value that JSON has no form for.
        OutputError: The folder cannot be written; nothing is left behind.
    """
    target = Path(os.path.realpath(path))
    check_target(target)
    try:
        with _scratch_folder(target) as scratch:
            draft = scratch / "bundle"
            files = _write_files(draft, model, store, card, sparse_model)
            document = {"format": FORMAT, **manifest, "files": files}
            _write_bytes(draft / MANIFEST, _sealed(document, target))
            _sync_folder(draft / STORE)
            _sync_folder(draft)
            _put_in_place(draft, target, scratch / "replaced")
            _sync_folder(target.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"cannot write the bundle {path}: {reason}; choose a place that can be written "
            "and has room."
        ) from error
    return Path(path)


# ---------------------------------------------------------------- reading


def _read_manifest(folder: Path) -> dict[str, Any]:
    """Read ``limbeck.json``; check format and seal, in this order."""
    path = folder / MANIFEST
    if not folder.is_dir():
        raise BundleError(f"there is no bundle at {folder}: give a folder that holds a {MANIFEST}.")
    if not path.is_file():
        raise BundleError(f"{folder} is not a bundle, or not a whole one: it has no {MANIFEST}.")
    try:
        raw = path.read_bytes()
        document = json.loads(raw.decode("utf-8"), parse_constant=_reject_constant)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not valid JSON: {error}.") from error
    number = document.get("format") if isinstance(document, dict) else None
    if type(number) is not int or number not in READABLE:
        raise BundleError(
            f"{path} is of format {number!r}, and this version of Limbeck reads formats "
            f"{' and '.join(map(str, READABLE))}."
        )
    body, seal = raw[: -len(_seal(b""))], raw[-len(_seal(b"")) :]
    if seal != _seal(body):
        raise BundleError(
            f"{path} does not match its own checksum: it was altered after it was written."
        )
    return dict(document)


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _check_file(path: Path, entry: FileEntry, *, verify: bool) -> None:
    """Compare one listed file with its entry."""
    try:
        status = path.stat()
        # a pipe or a device would block the reader or never end
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"{path} is not a plain file.")
        if status.st_size != entry.bytes:
            raise BundleError(
                f"{path} has {status.st_size:,} bytes, and {MANIFEST} says {entry.bytes:,}: it is "
                "truncated or altered."
            )
        if not verify:
            return
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise BundleError(f"{path} is missing, and {MANIFEST} lists it.") from error
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}.") from error
    if digest != entry.sha256:
        raise BundleError(f"{path} does not match its checksum in {MANIFEST}: it was altered.")


def parse_manifest(document: Mapping[str, Any], where: Path) -> Manifest:
    """Check the fields of ``limbeck.json`` and give them their types.

    Args:
        document: The parsed JSON document.
        where: Path of the file, for messages.

    Raises:
        BundleError: A field is missing or of the wrong form; the message names it.
    """
    top = _Fields(document, where)
    graph = _Fields(top.get("graph", dict), where, "graph.")
    calibration = _Fields(top.get("calibration", dict), where, "calibration.")
    number = top.get("format", int)
    files = _parse_files(top)
    inputs = _parse_inputs(top)
    return Manifest(
        format=number,
        limbeck=top.get("limbeck", str),
        method=top.get("method", str),
        student=top.get("student", str),
        classes=top.strings("classes"),
        inputs=inputs,
        routing=_parse_routing(top) if number > 1 else (),
        sparse=_parse_sparse(top, files) if number > 1 else None,
        structure=_parse_structure(top) if inputs[-1].name == NEIGHBORS else None,
        preprocessing=top.optional("preprocessing", dict),
        hyper_parameters=top.get("hyper_parameters", dict),
        teacher=top.get("teacher", dict),
        setting=top.get("setting", str),
        scores=top.get("scores", dict),
        latency=top.optional("latency", dict),
        temperature=calibration.temperature("temperature"),
        graph=GraphEntry(
            name=graph.get("name", str),
            dataset=graph.get("dataset", str),
            source=graph.get("source", str),
            fingerprint=graph.get("fingerprint", str),
            counts=_parse_counts(graph),
        ),
        versions=top.get("versions", dict),
        files=files,
    )


class _Fields:
    """The fields of one JSON object, taken out with their types checked."""

    def __init__(self, document: Mapping[str, Any], where: Path, prefix: str = "") -> None:
        self.document = document
        self.where = where
        self.prefix = prefix

    def wrong(self, name: str, expected: str) -> BundleError:
        """The error for field ``name``, which is not ``expected``."""
        return BundleError(f"{self.where}: the field {self.prefix + name!r} must be {expected}.")

    def get(self, name: str, kind: type[T]) -> T:
        """Field ``name`` of exactly that type (a JSON ``true`` is no integer)."""
        value = self.document.get(name)
        if type(value) is not kind:
            raise self.wrong(name, _JSON_NAMES[kind])
        return value

    def optional(self, name: str, kind: type[T]) -> T | None:
        """As :meth:`get`, or ``None`` for a JSON ``null``."""
        if name in self.document and self.document[name] is None:
            return None
        return self.get(name, kind)

    def strings(self, name: str) -> tuple[str, ...]:
        """A list of different strings, at least one."""
        values = self.get(name, list)
        if not values or not all(type(value) is str for value in values):
            raise self.wrong(name, "a list of strings, at least one")
        if len(set(values)) != len(values):
            raise self.wrong(name, "a list of different strings")
        return tuple(values)

    def entries(self, name: str) -> list[_Fields]:
        """A list of objects."""
        values = self.get(name, list)
        if not all(type(value) is dict for value in values):
            raise self.wrong(name, "a list of objects")
        return [_Fields(value, self.where, f"{self.prefix}{name}.") for value in values]

    def number(self, name: str, least: float, most: float) -> float:
        """A number between two others."""
        value = self.document.get(name)
        # a JSON `true` is no number
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(name, "a number")
        if not least <= value <= most:
            raise self.wrong(name, f"between {least:g} and {most:g}")
        return float(value)

    def temperature(self, name: str) -> float:
        """A number that logits can be divided by in float32."""
        return self.number(name, MIN_TEMPERATURE, MAX_TEMPERATURE)

    def count(self, name: str, least: int = 0) -> int:
        """An integer of at least ``least``."""
        value = self.get(name, int)
        if value < least:
            raise self.wrong(name, f"an integer of at least {least}")
        return value


_JSON_NAMES: dict[type, str] = {
    int: "an integer",
    str: "a string",
    dict: "an object",
    list: "a list",
}


def _parse_input(entry: _Fields) -> InputEntry:
    parsed = InputEntry(entry.get("name", str), entry.get("dtype", str), entry.count("width"))
    dtypes = {**dict.fromkeys(INPUTS, "float32"), NEIGHBORS: "int64"}
    if dtypes.get(parsed.name) != parsed.dtype or parsed.width == 0:
        wanted = " or ".join(f"{name!r} of dtype {dtype!r}" for name, dtype in dtypes.items())
        raise entry.wrong("name", f"{wanted}, and of a width of at least 1")
    return parsed


def _parse_inputs(top: _Fields) -> tuple[InputEntry, ...]:
    parsed = tuple(_parse_input(entry) for entry in top.entries("inputs"))
    names = tuple(entry.name for entry in parsed)
    if not names or names not in (INPUTS[: len(names)], (INPUTS[0], NEIGHBORS)):
        raise top.wrong("inputs", "x, then nothing, position or neighbors")
    return parsed


def _parse_structure(top: _Fields) -> StructureEntry:
    fields = _Fields(top.get("structure", dict), top.where, "structure.")
    dtype = fields.get("table_dtype", str)
    if dtype not in ("float32", "int8"):
        raise fields.wrong("table_dtype", "'float32' or 'int8'")
    power = fields.number("power", 0.0, 1.0)
    blend = fields.number("blend", 0.0, float("inf"))
    agreement = fields.number("agreement", 0.0, 1.0)
    return StructureEntry(fields.count("width", 1), power, blend, dtype, agreement)


def _parse_routing(top: _Fields) -> tuple[RoutingEntry, ...]:
    parsed = []
    for entry in top.entries("routing"):
        layer = RoutingEntry(entry.count("experts", 1), entry.count("top_k", 1))
        if layer.top_k > layer.experts:
            raise entry.wrong("top_k", f"at most the number of experts, {layer.experts}")
        parsed.append(layer)
    return tuple(parsed)


def _parse_sparse(top: _Fields, files: Mapping[str, FileEntry]) -> SparseEntry | None:
    document = top.optional("sparse", dict)
    if (document is None) != (SPARSE_MODEL not in files):
        raise top.wrong("sparse", f"an object if the file {SPARSE_MODEL!r} is listed, or null")
    if document is None:
        return None
    return SparseEntry(_Fields(document, top.where, "sparse.").count("values_per_entry", 1))


def _parse_counts(graph: _Fields) -> dict[str, int]:
    counts = _Fields(graph.get("counts", dict), graph.where, "graph.counts.")
    counts.count("nodes")
    return {name: counts.count(name) for name in counts.document}


def _parse_files(top: _Fields) -> dict[str, FileEntry]:
    files = _Fields(top.get("files", dict), top.where, "files.")
    parsed = {}
    for name in files.document:
        if not _FILE_NAME.fullmatch(name) or name == MANIFEST:
            raise BundleError(
                f"{top.where} lists the file {name!r}, which is no name of a file in a bundle."
            )
        entry = _Fields(files.get(name, dict), top.where, f"files.{name}.")
        digest = entry.get("sha256", str)
        if not _SHA256.fullmatch(digest):
            raise entry.wrong("sha256", "64 hexadecimal digits")
        parsed[name] = FileEntry(digest, entry.count("bytes"))
    for name in (MODEL, CARD):
        if name not in parsed:
            raise BundleError(f"{top.where} does not list the file {name!r}.")
    return parsed


# ---------------------------------------------------------------- writing


def _seal(body: bytes) -> bytes:
    """The last bytes of ``limbeck.json``: the sha256 of all bytes before them."""
    return b',\n  "sha256": "%s"\n}\n' % hashlib.sha256(body).hexdigest().encode("ascii")


def _sealed(document: Mapping[str, Any], target: Path) -> bytes:
    """Bytes of ``limbeck.json``, checked as a reader would and sealed."""
    try:
        text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
        body = text.removesuffix("\n}").encode("utf-8")
    except (TypeError, ValueError) as error:
        raise OptionError(
            f"the manifest of the bundle {target} holds a value that JSON cannot: {error}."
        ) from error
    try:
        parse_manifest(json.loads(text), target / MANIFEST)
    except BundleError as error:
        raise OptionError(str(error)) from error
    return body + _seal(body)


def check_target(path: str | os.PathLike[str]) -> None:
    """Refuse a place without a parent folder, or one that holds anything but a bundle.

    :func:`write_bundle` checks it too; long work that ends in a bundle can ask first.

    Raises:
        OutputError: No bundle can be written at ``path``.
    """
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise OutputError(
            f"cannot write the bundle {target}: the folder {target.parent} does not exist; "
            "make it first."
        )
    if not os.path.lexists(target):
        return
    listed = _listed_files(target)
    if listed is None:
        raise OutputError(
            f"cannot write the bundle {target}: something that is not a bundle is there; "
            "choose another place or remove it."
        )
    stray = sorted(_files_below(target) - listed)
    if stray:
        raise OutputError(
            f"cannot replace the bundle {target}: it also holds {stray[0]!r}, which is not part "
            "of it; move that away first."
        )


def _listed_files(folder: Path) -> set[str] | None:
    """Names of the files of the bundle at ``folder``; ``None`` if it is not one.

    Reads no more than it must: a bundle of another format or a damaged one may be replaced.
    """
    try:
        document = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or type(document.get("format")) is not int:
        return None
    files = document.get("files")
    return {MANIFEST, *files} if isinstance(files, dict) else None


def _files_below(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }


@contextlib.contextmanager
def _scratch_folder(target: Path) -> Iterator[Path]:
    """A folder beside ``target``, so on the same file system, that is gone afterwards."""
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch)


def _write_files(
    draft: Path,
    model: bytes,
    store: Mapping[str, npt.NDArray[Any]],
    card: str,
    sparse_model: bytes | None,
) -> dict[str, dict[str, Any]]:
    """Write all files but ``limbeck.json``; return their entries in it."""
    (draft / STORE).mkdir(parents=True)
    files = {
        MODEL: _write_bytes(draft / MODEL, model),
        CARD: _write_bytes(draft / CARD, card.encode("utf-8")),
    }
    if sparse_model is not None:
        files[SPARSE_MODEL] = _write_bytes(draft / SPARSE_MODEL, sparse_model)
    for name, array in store.items():
        file_name = f"{STORE}/{name}.npy"
        with _hashed_file(draft / file_name) as file:
            np.save(file, np.ascontiguousarray(array), allow_pickle=False)
        files[file_name] = file.entry()
    return files


class _HashedFile:
    """A file being written, and the sha256 of what was written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._bytes = 0

    def write(self, data: bytes) -> int:
        """Write ``data`` whole (a buffered file does) and add it to the checksum."""
        self._file.write(data)
        self._digest.update(data)
        self._bytes += len(data)
        return len(data)

    def entry(self) -> dict[str, Any]:
        """The file's entry in ``limbeck.json``."""
        return {"sha256": self._digest.hexdigest(), "bytes": self._bytes}


@contextlib.contextmanager
def _hashed_file(path: Path) -> Iterator[_HashedFile]:
    """Open ``path`` for writing; it is on the disk when the block ends."""
    with path.open("xb") as file:
        yield _HashedFile(file)
        file.flush()
        os.fsync(file.fileno())


def _write_bytes(path: Path, data: bytes) -> dict[str, Any]:
    with _hashed_file(path) as file:
        file.write(data)
    return file.entry()


def _sync_folder(folder: Path) -> None:
    """Force a folder's entries to the disk, where the system has a way to say so."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put_in_place(draft: Path, target: Path, replaced: Path) -> None:
    """Rename ``draft`` to ``target``; an old bundle there goes to ``replaced``, or stays."""
    if not os.path.lexists(target):
        os.rename(draft, target)
        return
    os.rename(target, replaced)
    try:
        os.rename(draft, target)
    except OSError:
        os.rename(replaced, target)
        raise
