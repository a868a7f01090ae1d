"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from limbeck.errors import OutputError


@contextmanager
def appearing_whole(target: Path, advice: str = "") -> Iterator[Path]:
    """A path to write a file to that takes its own name when the block ends well.

    It lies beside ``target``, so that the renaming is one step, and is the process's own; a block
    that fails leaves nothing behind, and what was there before as it was. Whether a crash of the
    machine loses the new file is left to the system: nothing is forced to the disk.

    Args:
        target: The file; one that is there is replaced.
        advice: What to do if it cannot be written, for the error.

    Raises:
        OutputError: The file cannot be written or renamed.
    """
    aside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield aside
        os.replace(aside, target)
    except OSError as error:
        sentence = f"{target} cannot be written ({error.strerror or error})"
        raise OutputError(f"{sentence}: {advice}." if advice else f"{sentence}.") from None
    finally:
        with suppress(OSError):  # what went wrong before is what to tell
            aside.unlink(missing_ok=True)
