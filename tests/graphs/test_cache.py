"""The cache of raw files: one maker per entry, whole or not at all."""

import errno
import os
import subprocess
import sys

import pytest

from limbeck.errors import GraphError, OutputError
from limbeck.graphs.cache import cached_root

# Makes the entry slowly, and says so in a file outside of it.
MAKER = """
import sys, time
from pathlib import Path
from limbeck.graphs.cache import cached_root

def process(folder):
    with open(sys.argv[2], "a") as made:
        made.write("made\\n")
    time.sleep(0.3)
    (folder / "processed").write_text((folder / "set" / "raw" / "a.txt").read_text() * 2)

entry = cached_root("set", Path(sys.argv[1]), "set/raw", process)
print((entry / "processed").read_text())
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A data root with one raw file, and a cold cache beside it."""
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    raw = tmp_path / "root" / "set" / "raw"
    raw.mkdir(parents=True)
    (raw / "a.txt").write_text("a")
    (tmp_path / "root" / "set" / "processed").mkdir()
    (tmp_path / "root" / "set" / "processed" / "old.pt").write_text("of another PyG")
    return tmp_path / "root"


def test_processes_wait_for_the_one_that_makes_the_entry(root, tmp_path):
    command = [sys.executable, "-c", MAKER, str(root), str(tmp_path / "made")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    runs = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert [run.communicate(timeout=60)[0].strip() for run in runs] == ["aa"] * 4
    assert (tmp_path / "made").read_text() == "made\n"


def test_an_entry_holds_raw_files_and_what_was_made_of_them(root):
    entry = cached_root("set", root, "set", lambda folder: (folder / "new").write_text("b"))
    files = {path.relative_to(entry).as_posix() for path in entry.rglob("*") if path.is_file()}
    assert files == {"set/raw/a.txt", "new"}  # and nothing that PyG had made in the root
    assert cached_root("set", root, "set", lambda folder: pytest.fail("made twice")) == entry


def test_an_entry_in_place_needs_no_lock(root, tmp_path):
    entry = cached_root("set", root, "set/raw", lambda folder: None)
    lock = entry.with_name(f"{entry.name}.lock")
    lock.unlink()
    cached_root("set", root, "set/raw", lambda folder: None)
    assert not lock.exists()


@pytest.mark.parametrize("change", ["contents", "name", "one more"])
def test_other_raw_files_are_another_entry(root, change):
    before = cached_root("set", root, "set/raw", lambda folder: None)
    file = root / "set" / "raw" / "a.txt"
    if change == "contents":
        file.write_text("other")
    elif change == "name":
        file.rename(file.with_name("b.txt"))
    else:
        file.with_name("b.txt").write_text("")
    assert cached_root("set", root, "set/raw", lambda folder: None) != before


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (ValueError("no graph"), ValueError),
        (OSError(errno.ENOSPC, "No space left on device"), OutputError),
        (OSError(errno.ECONNREFUSED, "Connection refused"), ConnectionRefusedError),
    ],
)
def test_a_failure_leaves_no_entry(root, tmp_path, failure, error):
    def process(folder):
        (folder / "half").write_text("half")
        raise failure

    with pytest.raises(error):
        cached_root("set", root, "set/raw", process)
    assert [path.suffix for path in (tmp_path / "cache" / "datasets").iterdir()] == [".lock"]


def test_a_raw_file_that_cannot_be_read_is_not_blamed_on_the_cache(root, monkeypatch):
    def refuse(source, target):
        raise PermissionError(errno.EACCES, "Permission denied", str(source))

    monkeypatch.setattr("shutil.copyfile", refuse)  # root reads everything, so no chmod will do
    with pytest.raises(GraphError, match=r"a\.txt cannot be read \(Permission denied\)"):
        cached_root("set", root, "set/raw", lambda folder: None)
