"""A bundle opened: every file checked, arrays memory-mapped."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import numpy.typing as npt

from limbeck.errors import BundleError
from limbeck.runtime.bundle.manifest import MANIFEST, READABLE, STORE, FileEntry, Manifest
from limbeck.runtime.bundle.parsing import parse_manifest, seal

_UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    RecursionError,
    MemoryError,
    # a head that is damaged: NumPy reads it as Python
    TokenError,
    SyntaxError,
    TypeError,
    OverflowError,
)
"""What NumPy raises of a file that is no array."""


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
        except _UNREADABLE as error:
            reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
            raise BundleError(f"{path} is not a readable .npy file: {reason}.") from error
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
            f"{', '.join(map(str, READABLE))}."
        )
    body, end = raw[: -len(seal(b""))], raw[-len(seal(b"")) :]
    if end != seal(body):
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
