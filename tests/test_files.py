"""Files appear whole or not at all, and what goes wrong is one sentence."""

from __future__ import annotations

import errno
import os

import pytest

from limbeck.errors import OutputError
from limbeck.files import appearing_whole


def test_a_file_appears_when_it_is_whole(tmp_path):
    target = tmp_path / "answers.json"
    target.write_text("old")
    with appearing_whole(target) as aside:
        aside.write_text("new")
        assert target.read_text() == "old"
        assert aside.parent == target.parent
        assert list(tmp_path.glob("*.json")) == [target]  # no reader takes it for a finished one
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["answers.json"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), ValueError("broken")])
def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path, failure):
    target = tmp_path / "answers.json"
    target.write_text("old")
    with pytest.raises(type(failure)), appearing_whole(target) as aside:
        aside.write_text("ne")
        raise failure
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["answers.json"]


def test_a_full_disk_is_one_sentence(tmp_path):
    target = tmp_path / "answers.json"
    with (
        pytest.raises(OutputError) as error,
        appearing_whole(target, "make room") as aside,
        aside.open("w") as stream,
    ):
        stream.write("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert str(error.value) == f"{target} cannot be written (No space left on device): make room."
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_not_there_is_named(tmp_path):
    target = tmp_path / "missing" / "answers.json"
    with pytest.raises(OutputError, match=r"missing/answers\.json cannot be written"):
        with appearing_whole(target) as aside:
            aside.write_text("x")
