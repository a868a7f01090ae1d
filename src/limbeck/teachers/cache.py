"""Trained teachers on disk, so that a table of methods trains each of them once."""

from __future__ import annotations

import hashlib
import json
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from limbeck.errors import OptionError
from limbeck.files import appearing_whole
from limbeck.graphs.cache import MAKE_ROOM, cache_folder, writing_cache
from limbeck.teachers.knowledge import Answers, Knowledge

# Part of every key: raise it when training or the stored form changes.
GENERATION = 1


def key_of(
    fingerprint: str, nodes_fingerprint: str, name: str, options: dict[str, Any], seed: int
) -> str:
    """Key of a teacher: what it saw, whom it is asked about, what it is, and its seed."""
    parts = [GENERATION, torch.__version__, fingerprint, nodes_fingerprint, name, options, seed]
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class TeacherCache:
    """One file per teacher under ``folder``; a damaged file counts as absent.

    Args:
        folder: Where the files are; made when first needed.
        half_layers: Store hidden layers as float16, for deep teachers of large graphs. They are
            float32 again when they are read, rounded, whether or not they were just stored.
    """

    def __init__(self, folder: Path | None = None, *, half_layers: bool = False) -> None:
        self.folder = (folder or cache_folder()) / "teachers"
        self.half_layers = half_layers

    def path(self, key: str) -> Path:
        """File of a key."""
        return self.folder / (f"{key}.half.pt" if self.half_layers else f"{key}.pt")

    def lock(self, key: str) -> FileLock:
        """Lock under which a key is trained, so that two processes do not train it twice."""
        with writing_cache(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / f"{key}.lock")

    def load(self, key: str) -> dict[str, Any] | None:
        """The record stored under a key, or ``None``."""
        try:
            record: dict[str, Any] = torch.load(self.path(key), weights_only=True)
        except (
            FileNotFoundError,
            EOFError,
            RuntimeError,
            pickle.UnpicklingError,
            zipfile.BadZipFile,
        ):
            return None
        hidden = record["knowledge"]["hidden"]
        record["knowledge"]["hidden"] = {name: h.to(torch.float32) for name, h in hidden.items()}
        return record

    def save(
        self,
        key: str,
        knowledge: Knowledge,
        answers: Answers,
        state: dict[str, torch.Tensor],
        train_seconds: float,
    ) -> None:
        """Store a trained teacher, whole or not at all.

        Raises:
            OutputError: The folder cannot be written.
            OptionError: A layer does not fit into float16, where ``half_layers`` asks for that.
        """
        if self.half_layers:
            halves = {name: h.to(torch.float16) for name, h in knowledge.hidden.items()}
            for name, half in halves.items():
                if not bool(torch.isfinite(half).all()):
                    raise OptionError(
                        f"layer {name!r} of teacher {knowledge.name!r} goes beyond float16: "
                        "leave half_layers out."
                    )
            knowledge = replace(knowledge, hidden=halves)
        record = {
            "knowledge": _shallow(knowledge),
            "answers": _shallow(answers),
            "state": state,
            "train_seconds": train_seconds,
        }
        with appearing_whole(self.path(key), MAKE_ROOM) as aside, aside.open("wb") as stream:
            torch.save(record, stream)


def _shallow(record: Knowledge | Answers) -> dict[str, Any]:
    """The fields of a record; those that are ``None``, a default everywhere, are left out."""
    fields = {name: getattr(record, name) for name in record.__dataclass_fields__}
    return {name: value for name, value in fields.items() if value is not None}
