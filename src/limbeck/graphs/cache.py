"""Where the raw files of named data sets are copied and processed: the user's cache.

PyG writes a folder ``processed`` beside the raw files that it reads. So that a data root is
never written to, its raw files are copied here, and PyG works on the copy.

::

    <cache>/datasets/cora-3f1c.../    one entry: raw files and PyG's processed ones; final
    <cache>/datasets/cora-3f1c....lock
    <cache>/datasets/cora-3f1c....partial/    an entry being made, or left by a killed process
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import platformdirs
from filelock import FileLock

from limbeck.errors import GraphError, OutputError

MAKE_ROOM = "free or unlock it, or set LIMBECK_CACHE to a folder that can"
"""What to do about a cache that cannot be written."""

# What the system says when a place cannot be written; any other failure is not the cache's.
_UNWRITABLE = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.EFBIG,
}


def cache_folder() -> Path:
    """The folder of Limbeck's caches: ``LIMBECK_CACHE``, else the user's cache folder."""
    given = os.environ.get("LIMBECK_CACHE")
    return Path(given) if given else Path(platformdirs.user_cache_dir("limbeck"))


def cached_root(name: str, root: Path | None, raw: str, process: Callable[[Path], object]) -> Path:
    """Return a folder that PyG can use as the root of a data set, made at the first call.

    An entry is made aside and renamed, and never changed after that; processes that want the
    same one wait for each other. Its key holds names, sizes and times of change of the raw
    files and PyG's version, so that changed files are read anew.

    Args:
        name: Of the data set; the entry's name begins with it.
        root: A folder that holds the raw files; it is only read. ``None`` where they are to be
            downloaded by ``process``.
        raw: The raw file, or the folder of raw files, below ``root``.
        process: Called once with the folder to work in; must leave there all that is read
            later. What it raises passes through.

    Raises:
        OutputError: The cache cannot be written.
        GraphError: A raw file cannot be read.
    """
    files = [] if root is None else sorted(_raw_files(root, raw))
    folder = cache_folder() / "datasets"
    entry = folder / f"{name}-{_key(root, files)}"
    if entry.is_dir():  # an entry in place is whole: no need for the lock, or for a writable cache
        return entry
    with writing_cache(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{entry}.lock"):
            if not entry.is_dir():
                _make(entry, root, files, process)
    return entry


def _make(
    entry: Path, root: Path | None, files: list[Path], process: Callable[[Path], object]
) -> None:
    aside = entry.with_name(f"{entry.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
    try:
        aside.mkdir()
        for file in files:
            (aside / file).parent.mkdir(parents=True, exist_ok=True)
            _copy((root or Path()) / file, aside / file)
        process(aside)
        aside.rename(entry)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _copy(source: Path, target: Path) -> None:
    """Copy the contents alone: the mode of a read-only root would lock PyG out."""
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        if error.filename != str(source):
            raise
        raise GraphError(f"{source} cannot be read ({error.strerror}).") from error


def _raw_files(root: Path, raw: str) -> Iterator[Path]:
    """The files below ``root / raw``, relative to ``root``; none that PyG has made."""
    if (root / raw).is_file():
        yield Path(raw)
    for path in (root / raw).rglob("*"):
        file = path.relative_to(root)
        if path.is_file() and "processed" not in file.parts:
            yield file


def _key(root: Path | None, files: list[Path]) -> str:
    digest = hashlib.sha256(version("torch-geometric").encode())
    for file in files:
        state = ((root or Path()) / file).stat()
        digest.update(f"\n{file.as_posix()} {state.st_size} {state.st_mtime_ns}".encode())
    return digest.hexdigest()[:16] if root is not None else f"download-{digest.hexdigest()[:8]}"


def is_unwritable(error: BaseException) -> bool:
    """Whether an error says that a place cannot be written: full, locked or no folder."""
    return isinstance(error, OSError) and error.errno in _UNWRITABLE


@contextmanager
def writing_cache(folder: Path) -> Iterator[None]:
    """Turn what the system says of a cache that cannot be written into a sentence.

    Raises:
        OutputError: Names the folder.
    """
    try:
        yield
    except OSError as error:
        if not is_unwritable(error):
            raise
        raise OutputError(
            f"the cache {folder} cannot be written ({error.strerror}): {MAKE_ROOM}."
        ) from error
