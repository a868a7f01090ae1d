"""Files appear whole or not at all, and what goes wrong is one sentence."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from limbeck.errors import OutputError
from limbeck.files import appearing_whole


def write(target: Path, text: str, failure: BaseException | None = None, advice: str = "") -> None:
    with appearing_whole(target, advice) as aside:
        aside.write_text(text)
        if failure is not None:
            raise failure


def test_a_file_appears_when_it_is_whole(tmp_path):
    target = tmp_path / "answers.json"
    target.write_text("old")
    with appearing_whole(target) as aside:
        aside.write_text("new")
        assert target.read_text() == "old"
        assert list(tmp_path.glob("*.json")) == [target]  # no reader takes the draft for one
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["answers.json"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), ValueError("broken")])
def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path, failure):
    target = tmp_path / "answers.json"
    target.write_text("old")
    with pytest.raises(type(failure)):
        write(target, "ne", failure)
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["answers.json"]


def test_a_full_disk_is_one_sentence(tmp_path):
    target = tmp_path / "answers.json"
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OutputError) as error:
        write(target, "half", full, "make room")
    assert str(error.value) == f"{target} cannot be written (No space left on device): make room."
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(OutputError, match=r"missing/answers\.json cannot be written"):
        write(tmp_path / "missing" / "answers.json", "x")
