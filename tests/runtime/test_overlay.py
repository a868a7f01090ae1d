"""What is kept of changes: durable, whole or not at all, and of one bundle only."""

import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_bundle import BIAS, WEIGHT, X, linear_model

import limbeck
from limbeck.errors import BundleError, OutputError, RequestError
from limbeck.runtime import OverlaidStudent, Overlay

KILLS = 20


@pytest.fixture
def bundle(write_tiny: Callable[..., Path]) -> Path:
    return write_tiny()


@pytest.fixture
def student(bundle: Path, place: str | Path) -> OverlaidStudent:
    """With an overlay of each kind."""
    return limbeck.load(bundle).with_overlay(place)


@pytest.fixture
def filed(bundle: Path, tmp_path: Path) -> OverlaidStudent:
    """With an overlay that is a file."""
    return limbeck.load(bundle).with_overlay(tmp_path / "tiny.sqlite")


def answer(*rows: list[float]) -> np.ndarray:
    return np.array(rows, dtype=np.float32) @ WEIGHT + BIAS


def test_new_and_changed_nodes_are_answered_by_their_ids(student: OverlaidStudent) -> None:
    before = student.predict_logits(["a", "b"])
    first = student.upsert(["new", "a"], [[1, 2, 3], [0, 0, 1]])
    np.testing.assert_allclose(
        student.predict_logits(["b", "new", "a", "new"]),
        answer([0, 3, 0], [1, 2, 3], [0, 0, 1], [1, 2, 3]),
    )
    second = student.upsert(["new"], [[5, 0, 0]])
    assert second > first
    np.testing.assert_allclose(student.predict_logits(["new"]), answer([5, 0, 0]))
    np.testing.assert_array_equal(student.predict_logits(["b"]), before[1:])
    assert student.predict(["new"]).tolist() == ["art"]
    found = student.staleness(["new", "a", "b"])
    assert found.is_new.tolist() == [True, False, False]
    assert found.is_changed.tolist() == [True, True, False]


def test_integer_ids_and_unsorted_batches(
    write_tiny: Callable[..., Path], place: str | Path
) -> None:
    student = limbeck.load(write_tiny(ids=[7, 3, 5, 9])).with_overlay(place)
    student.upsert([4, 3], [[1, 1, 1], [2, 2, 2]])
    np.testing.assert_allclose(
        student.predict_logits(np.array([9, 4, 3, 7])), answer(X[3], [1, 1, 1], [2, 2, 2], X[0])
    )
    for ids in ([True], ["4"], [2**63], [1.0]):
        with pytest.raises(RequestError, match="node"):
            student.upsert(ids, [[1, 1, 1]])


def test_what_was_written_is_there_after_opening_again(
    student: OverlaidStudent, bundle: Path, place: str | Path
) -> None:
    student.upsert(["new"], [[1, 2, 3]])
    student.close()
    again = limbeck.load(bundle).with_overlay(place)
    np.testing.assert_allclose(again.predict_logits(["new"]), answer([1, 2, 3]))


def test_readers_see_changes_of_others(
    student: OverlaidStudent, bundle: Path, place: str | Path
) -> None:
    reader = limbeck.load(bundle).with_overlay(place)
    assert not reader.overlay.changes_since(0)
    for i in range(3):
        student.upsert(["new"], [[i, 0, 0]])
        np.testing.assert_allclose(reader.predict_logits(["new"]), answer([i, 0, 0]))
    student.delete(["new", "b"])
    with pytest.raises(RequestError, match="'new' was deleted"):
        reader.predict(["new"])


def test_deleted_nodes_are_gone_until_they_are_added_again(student: OverlaidStudent) -> None:
    student.delete(["a"])
    with pytest.raises(RequestError, match="'a' was deleted"):
        student.predict(["a", "b"])
    with pytest.raises(RequestError, match="'a' was deleted"):
        student.delete(["a"])
    with pytest.raises(RequestError, match="unknown node 'nobody'"):
        student.delete(["nobody"])
    student.upsert(["a"], [[0, 1, 0]])
    np.testing.assert_allclose(student.predict_logits(["a"]), answer([0, 1, 0]))
    assert student.overlay.counts()[:3] == (2, 1, 0)


def test_a_refused_change_changes_nothing(student: OverlaidStudent) -> None:
    student.upsert(["new"], [[1, 2, 3]])
    version = student.overlay.counts().version
    refused: list[tuple[Callable[[], int], str]] = [
        (lambda: student.upsert(["a", "b"], [[1, 2, 3]]), "1 rows of x for 2 nodes"),
        (lambda: student.upsert(["a", "a"], [[1, 2, 3]] * 2), "twice"),
        (lambda: student.upsert(["a"], [[1, 2]]), "shape"),
        (lambda: student.upsert(["a"], [[1, 2, float("nan")]]), "finite"),
        (lambda: student.upsert(["a"]), "nothing to change"),
        (lambda: student.upsert([1], [[1, 2, 3]]), "strings"),
        (lambda: student.upsert(["\ud800"], [[1, 2, 3]]), "UTF-8"),
        (lambda: student.upsert("a", [[1, 2, 3]]), "list of ids"),
        (lambda: student.upsert(["a"], [[1, 2, 3]], neighbors=[["b"]]), "reads no neighbors"),
        (lambda: student.add_edges([("a", "b")]), "reads no neighbors"),
        (lambda: student.delete(["b", "nobody"]), "unknown node"),
    ]
    for call, sentence in refused:
        with pytest.raises(RequestError, match=sentence):
            call()
    assert student.overlay.counts().version == version
    student.predict(["a", "b", "new"])


def test_features_so_large_that_no_answer_is_finite_are_named(student: OverlaidStudent) -> None:
    student.upsert(["new"], [[3e38, 0, 3e38]])
    with pytest.raises(RequestError, match="'new' are so large"):
        student.predict(["new"])


# ------------------------------------------------------------ what is kept


def test_an_overlay_of_another_bundle_is_refused(
    filed: OverlaidStudent, write_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    other = write_tiny("other", model=linear_model(bias=BIAS + 1))
    with pytest.raises(BundleError, match="belongs to another bundle"):
        limbeck.load(other).with_overlay(tmp_path / "tiny.sqlite")


def test_a_database_of_something_else_is_refused(bundle: Path, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "books.db") as books:
        books.execute("CREATE TABLE books (title)")
    books.close()
    with pytest.raises(BundleError, match="something else"):
        limbeck.load(bundle).with_overlay(tmp_path / "books.db")
    (tmp_path / "text").write_text("no database at all, but a text that is long enough" * 100)
    with pytest.raises(BundleError, match="no overlay at all"):
        limbeck.load(bundle).with_overlay(tmp_path / "text")
    with pytest.raises(OutputError, match="no folder"):
        limbeck.load(bundle).with_overlay(tmp_path / "nowhere" / "o")


def test_a_damaged_overlay_is_one_clear_error(
    filed: OverlaidStudent, bundle: Path, tmp_path: Path
) -> None:
    ids = [f"n{i}" for i in range(2000)]
    filed.upsert(ids, np.ones((2000, 3)))
    filed.close()
    path = tmp_path / "tiny.sqlite"
    content = bytearray(path.read_bytes())
    middle = range(4096, len(content) - 4096)
    content[middle.start : middle.stop] = b"\x5a" * len(middle)
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"tiny\.sqlite.* is damaged"):
        limbeck.load(bundle).with_overlay(path)
    path.write_bytes(content[: len(content) // 2 + 100])
    with pytest.raises(BundleError, match=r"tiny\.sqlite.* is damaged"):
        limbeck.load(bundle).with_overlay(path)


def test_damaged_names_of_tables_are_one_clear_error(
    filed: OverlaidStudent, bundle: Path, tmp_path: Path
) -> None:
    filed.upsert(["new"], [[1, 2, 3]])
    filed.close()
    path = tmp_path / "tiny.sqlite"
    content = path.read_bytes()
    assert b"CREATE TABLE nodes" in content
    path.write_bytes(content.replace(b"CREATE TABLE nodes", b"CREATE TABLE n\x9bdes"))
    with pytest.raises(BundleError, match=r"tiny\.sqlite is damaged"):
        limbeck.load(bundle).with_overlay(path)


def change(path: Path, statement: str) -> None:
    """Change what a file keeps, as a disk would: the file's structure stays sound."""
    with sqlite3.connect(path) as connection:
        assert connection.execute(statement).rowcount == 1
    connection.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE nodes SET x = zeroblob(12) WHERE id = 'n1'",
        "UPDATE nodes SET x = NULL WHERE id = 'n1'",
        "UPDATE nodes SET x = 'text' WHERE id = 'n1'",
        "UPDATE nodes SET id = 'm1' WHERE id = 'n1'",
        "UPDATE nodes SET is_deleted = 1 WHERE id = 'n1'",
        "UPDATE nodes SET version = 5 WHERE id = 'n1'",
        "UPDATE edges SET is_there = 0 WHERE node = 'n1'",
        "UPDATE edges SET neighbor = 'b' WHERE node = 'n1'",
    ],
)
def test_a_row_that_was_changed_is_named(
    filed: OverlaidStudent, bundle: Path, tmp_path: Path, statement: str
) -> None:
    with filed.overlay.writing() as writer:
        writer.put_node("n1", np.ones(3, dtype="<f4").tobytes())
        writer.put_edges("n1", ["a"], is_there=True)
    path = tmp_path / "tiny.sqlite"
    change(path, statement)
    node = "m1" if "m1" in statement else "n1"
    sentence = rf"tiny\.sqlite is damaged: what it keeps of the node '{node}' does not fit"
    with pytest.raises(BundleError, match=sentence):
        limbeck.load(bundle).with_overlay(path)
    if node == "n1":  # nor by one that did not look at all of it when it opened the file
        reader = limbeck.load(bundle).with_overlay(path, verify=False)
        for _ in range(2):
            with pytest.raises(BundleError, match=sentence):
                reader.overlay.read(["n1"], [-1])
    if "nodes" in statement:
        for _ in range(2):
            with pytest.raises(BundleError, match=sentence):
                filed.predict(["a"])


def test_a_number_of_the_last_change_that_is_too_small_is_damage(
    filed: OverlaidStudent, bundle: Path, tmp_path: Path
) -> None:
    filed.upsert(["new"], [[1, 2, 3]])
    change(tmp_path / "tiny.sqlite", "UPDATE about SET value = 0 WHERE name = 'version'")
    with pytest.raises(BundleError, match="does not know its last change"):
        limbeck.load(bundle).with_overlay(tmp_path / "tiny.sqlite")


def test_another_format_is_refused(filed: OverlaidStudent, bundle: Path, tmp_path: Path) -> None:
    change(tmp_path / "tiny.sqlite", "UPDATE about SET value = 1 WHERE name = 'format'")
    with pytest.raises(BundleError, match="is of format 1, and this version"):
        limbeck.load(bundle).with_overlay(tmp_path / "tiny.sqlite")


def test_a_full_disk_is_an_error_and_nothing_is_acknowledged(filed: OverlaidStudent) -> None:
    filed.upsert(["first"], [[1, 0, 0]])
    writer = filed.overlay._writer
    pages = writer.execute("PRAGMA page_count").fetchone()[0]
    writer.execute(f"PRAGMA max_page_count = {pages + 1}")
    many = [f"n{i}" for i in range(5000)]
    with pytest.raises(OutputError, match="the disk is full; nothing was changed"):
        filed.upsert(many, np.ones((5000, 3)))
    with pytest.raises(RequestError, match="unknown node"):
        filed.predict(["n0"])
    assert filed.predict(["first"]).tolist() == ["art"]
    writer.execute("PRAGMA max_page_count = 100000")
    filed.upsert(many, np.ones((5000, 3)))
    assert len(filed.predict(many)) == 5000


def test_a_writer_that_waits_too_long_says_so(student: OverlaidStudent, place: str | Path) -> None:
    hasty: Any
    if isinstance(place, Path):
        hasty = Overlay(place, student.manifest, wait_seconds=0.05)
    else:
        from limbeck.runtime.redis_overlay import RedisOverlay

        hasty = RedisOverlay(place, student.manifest)
        hasty._wait_seconds = 0.05
    with student.overlay.writing() as writer:
        writer.put_node("slow", b"\0" * 12)
        message = "another process has been writing"
        with pytest.raises(OutputError, match=message), hasty.writing():
            pass
    with hasty.writing() as writer:
        writer.put_node("later", b"\0" * 12)
    assert student.predict_logits(["slow", "later"]).shape == (2, 2)


def test_two_writers_lose_nothing(
    student: OverlaidStudent, bundle: Path, place: str | Path
) -> None:
    def write(name: str) -> None:
        own = limbeck.load(bundle).with_overlay(place)
        for i in range(40):
            own.upsert([f"{name}{i}"], [[i, 0, 0]])
        own.close()

    writers = [threading.Thread(target=write, args=(name,)) for name in ("left", "right")]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    names = [f"{name}{i}" for name in ("left", "right") for i in range(40)]
    expected = answer(*[[i, 0, 0] for i in (*range(40), *range(40))])
    np.testing.assert_allclose(student.predict_logits(names), expected)
    assert student.overlay.counts().version == 80  # every change has a number of its own


def test_a_backup_is_a_whole_overlay(filed: OverlaidStudent, bundle: Path, tmp_path: Path) -> None:
    filed.upsert(["new"], [[1, 2, 3]])
    filed.overlay.backup(tmp_path / "copy")
    filed.upsert(["new"], [[0, 0, 0]])
    copy = limbeck.load(bundle).with_overlay(tmp_path / "copy")
    np.testing.assert_allclose(copy.predict_logits(["new"]), answer([1, 2, 3]))
    with pytest.raises(OutputError, match="is there already"):
        filed.overlay.backup(tmp_path / "copy")


def upsert_for_ever(bundle: Path, place: str | Path, first: int, acknowledged: int) -> None:
    """Write pairs of nodes, and say after each that it was acknowledged; never returns."""
    student = limbeck.load(bundle, verify=False).with_overlay(place)
    number = first
    while True:
        student.upsert([f"l{number}", f"r{number}"], [[number, 0, 0], [0, number, 0]])
        os.write(acknowledged, f"{number}\n".encode())
        number += 1


def test_what_was_acknowledged_survives_kills(bundle: Path, place: str | Path) -> None:
    done: list[int] = []
    # on a server each waits until the turn of the one before has run out
    kills = KILLS if isinstance(place, Path) else KILLS // 4
    for kill in range(kills):
        readable, writable = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                upsert_for_ever(bundle, place, len(done) + 1000 * kill, writable)
            finally:
                os._exit(1)
        os.close(writable)
        with open(readable, "rb") as lines:
            done.append(int(lines.readline()))  # it has begun
            time.sleep(0.002 * (kill % 7))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            done += [int(line) for line in lines if line.endswith(b"\n")]
        student = limbeck.load(bundle).with_overlay(place)
        names = [f"{side}{number}" for number in done for side in "lr"]
        expected = answer(*[row for n in done for row in ([n, 0, 0], [0, n, 0])])
        np.testing.assert_allclose(student.predict_logits(names), expected)
        there = {str(node) for node, _, _ in student.overlay.changes_since(0)}
        # never half of a change
        assert {n[1:] for n in there if n[0] == "l"} == {n[1:] for n in there if n[0] == "r"}
        student.close()
    assert len(done) >= kills
