"""Kills during upserts: nothing that was acknowledged may be lost.

    python benchmarks/faults.py BUNDLE [--kills 200]

A process upserts pairs of nodes into an overlay and says after each pair that it was acknowledged;
it is killed (SIGKILL) after a random time, again and again. After each kill the overlay is opened,
checked whole, and asked for every node that was acknowledged: each must be there with the features
that it was given, and no pair may be there by half.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import tempfile
import time
from pathlib import Path

import numpy as np

import limbeck


def names_of(student: limbeck.BundledStudent, number: int) -> list[int | str]:
    """Ids of the two nodes of a pair, of the type that the bundle has, and new to it."""
    if student.store.has_text_ids:
        return [f"fault-left-{number}", f"fault-right-{number}"]
    return [2**40 + 2 * number, 2**40 + 2 * number + 1]


def rows_of(student: limbeck.BundledStudent, number: int) -> np.ndarray:
    rows = np.zeros((2, student.width), dtype=np.float32)
    rows[:, number % student.width] = [number % 97 + 1, -(number % 89) - 1]
    return rows


def write_for_ever(bundle: Path, overlay: Path, first: int, acknowledged: int) -> None:
    student = limbeck.load(bundle, verify=False).with_overlay(overlay)
    number = first
    while True:
        student.upsert(names_of(student, number), rows_of(student, number))
        os.write(acknowledged, f"{number}\n".encode())
        number += 1


def kill_once(bundle: Path, overlay: Path, first: int, draw: random.Random) -> list[int]:
    """Let a process write, kill it, and return the pairs that it acknowledged."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            write_for_ever(bundle, overlay, first, writable)
        finally:
            os._exit(1)
    os.close(writable)
    with open(readable, "rb") as lines:
        begun = lines.readline()
        time.sleep(draw.random() * 0.03)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return [int(line) for line in (begun, *lines) if line.endswith(b"\n")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--kills", type=int, default=200)
    arguments = parser.parse_args()
    draw = random.Random(0)
    done: list[int] = []
    unacknowledged = 0
    with tempfile.TemporaryDirectory() as folder:
        overlay = Path(folder) / "overlay"
        for kill in range(arguments.kills):
            done += kill_once(arguments.bundle, overlay, kill * 10**6, draw)
            student = limbeck.load(arguments.bundle, verify=False).with_overlay(overlay)
            names = [name for number in done for name in names_of(student, number)]
            rows = np.concatenate([rows_of(student, number) for number in done])
            found = student.predict_logits(names)
            np.testing.assert_allclose(found, student.predict_logits(x=rows), rtol=1e-5, atol=1e-5)
            there = {node for node, _, _ in student.overlay.changes_since(0)}
            extra = len(there) - len(names)
            assert extra % 2 == 0, "half a pair is there"
            unacknowledged = extra // 2
            student.close()
    print(
        f"{arguments.kills} kills, {len(done):,} changes acknowledged, none lost, none by half; "
        f"{unacknowledged} were on the disk before they could be acknowledged."
    )


if __name__ == "__main__":
    main()
