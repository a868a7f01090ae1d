"""A bundle written, whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from limbeck.errors import BundleError, OptionError, OutputError
from limbeck.runtime.bundle.manifest import (
    CARD,
    COLD_MODEL,
    MANIFEST,
    MODEL,
    SPARSE_MODEL,
    STORE,
    format_of,
)
from limbeck.runtime.bundle.parsing import parse_manifest, seal


def write_bundle(
    path: str | os.PathLike[str],
    manifest: Mapping[str, Any],
    model: bytes,
    store: Mapping[str, npt.NDArray[Any]],
    card: str,
    sparse_model: bytes | None = None,
    cold_model: bytes | None = None,
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
        cold_model: The ONNX model of nodes whose bands are not known, where the student reads some.

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
            models = {MODEL: model, SPARSE_MODEL: sparse_model, COLD_MODEL: cold_model}
            files = _write_files(draft, models, store, card)
            document = {"format": format_of(manifest), **manifest, "files": files}
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
    return body + seal(body)


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
    models: Mapping[str, bytes | None],
    store: Mapping[str, npt.NDArray[Any]],
    card: str,
) -> dict[str, dict[str, Any]]:
    """Write all files but ``limbeck.json``; return their entries in it."""
    (draft / STORE).mkdir(parents=True)
    contents = {**models, CARD: card.encode("utf-8")}
    files = {
        name: _write_bytes(draft / name, content)
        for name, content in contents.items()
        if content is not None
    }
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
