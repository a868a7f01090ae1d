"""Faults: processes that are killed, a full disk, damaged files, noise.

    python benchmarks/faults.py BUNDLE [--parts PART ...] [--kills 200] [--noise 10000]
        [--minutes 5]

Each part says in one line what was done and found, and takes at most ``--minutes``; the exit code
is 1 where one found what may not be.

* *upserts*: a process upserts pairs of nodes and says after each that it was acknowledged, until it
  is killed (SIGKILL). After each kill the overlay is opened, checked whole, and asked for every
  node that was acknowledged: each is there with its features, and no pair by half.
* *scoring*: a job of bulk scoring is killed and called again until it is done, again and again. At
  any time the output is whole or not there, and each is the same bytes as that of a job which
  nothing disturbed.
* *swap*: a process swaps between two versions until it is killed. After each kill the plan is read
  and its versions answer; none that was acknowledged is lost.
* *disk*: files may not grow any more. The change is refused, nothing of it is there, and what was
  acknowledged before is.
* *overlay*: one that is damaged, cut off, of another bundle, or no overlay at all: it is refused,
  or holds all that was acknowledged.
* *writers*: two processes write into one overlay; every change is there, and has its own number.
* *bundles*: files of the bundle damaged, cut off or taken away, and manifests that say something
  else: one sentence each, or an answer.
* *requests*: bodies and headers damaged, against ``limbeck serve``: never a 500, and one sentence
  for each refusal.

The bundle's student must read features alone.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import hashlib
import http.client
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from server_load import ask_for, free_port, wait_for

import limbeck
from limbeck.errors import BundleError, LimbeckError, OutputError
from limbeck.runtime.bundle import MANIFEST
from limbeck.runtime.bundle.parsing import seal
from limbeck.scoring import Columns, score_tables
from limbeck.serving import Settings
from limbeck.serving.models import Models

CLOSE: dict[str, float] = {"rtol": 1e-5, "atol": 1e-5}


class Bounds(NamedTuple):
    """How much a part does."""

    kills: int
    noise: int
    until: float

    def has_time(self) -> bool:
        return time.perf_counter() < self.until


def names_of(student: limbeck.BundledStudent, number: int) -> list[int | str]:
    """Ids of the two nodes of a pair, of the type that the bundle has, and new to it."""
    if student.store.has_text_ids:
        return [f"fault-left-{number}", f"fault-right-{number}"]
    return [2**40 + 2 * number, 2**40 + 2 * number + 1]


def rows_of(student: limbeck.BundledStudent, number: int) -> np.ndarray:
    rows = np.zeros((2, student.width), dtype=np.float32)
    rows[:, number % student.width] = [number % 97 + 1, -(number % 89) - 1]
    return rows


def check_pairs(student: limbeck.BundledStudent, numbers: list[int]) -> None:
    """Every pair is there with its features."""
    names = [name for number in numbers for name in names_of(student, number)]
    rows = np.concatenate([rows_of(student, number) for number in numbers])
    found = student.predict_logits(names)
    np.testing.assert_allclose(found, student.predict_logits(x=rows), **CLOSE)


def in_child(work: Callable[[int], None]) -> tuple[int, int]:
    """Fork a process that does some work; its id, and the pipe that it writes lines into."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(readable)
        try:
            work(writable)
        finally:
            os._exit(1)
    os.close(writable)
    return child, readable


def killed_after(work: Callable[[int], None], seconds: float) -> list[int]:
    """Let a process work, kill it some time after its first line; the numbers that it wrote."""
    child, readable = in_child(work)
    with open(readable, "rb") as lines:
        begun = lines.readline()
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return [int(line) for line in (begun, *lines) if line.endswith(b"\n")]


# ---------------------------------------------------------------- kills


def kills_during_upserts(bundle: Path, bounds: Bounds) -> str:
    draw = random.Random(0)
    done: list[int] = []
    unacknowledged = kills = 0
    with tempfile.TemporaryDirectory() as folder:
        overlay = Path(folder) / "overlay"
        while kills < bounds.kills and bounds.has_time():
            first = kills * 10**6

            def write(acknowledged: int, first: int = first) -> None:
                student = limbeck.load(bundle, verify=False).with_overlay(overlay)
                number = first
                while True:
                    student.upsert(names_of(student, number), rows_of(student, number))
                    os.write(acknowledged, f"{number}\n".encode())
                    number += 1

            new = killed_after(write, draw.random() * 0.03)
            done += new
            kills += 1
            student = limbeck.load(bundle, verify=False).with_overlay(overlay)
            # all of them again from time to time, and each time those that are new
            check_pairs(student, done if kills % 20 == 0 else new)
            nodes = student.overlay.counts().nodes
            assert nodes % 2 == 0, "half a pair is there"
            unacknowledged = nodes // 2 - len(done)
            assert unacknowledged >= 0, "a pair that was acknowledged is lost"
            student.close()
        student = limbeck.load(bundle).with_overlay(overlay)
        check_pairs(student, done)
        student.close()
    return (
        f"{kills} kills, {len(done):,} changes acknowledged, none lost, none by half; "
        f"{unacknowledged} were on the disk before they could be acknowledged."
    )


def score(bundle: str, table: str, output: str) -> None:
    """A job; in a process of its own."""
    columns = Columns(id=("key",), features="x", probabilities=True)
    score_tables(bundle, [table], output, columns, part_rows=200)


def kills_during_scoring(bundle: Path, bounds: Bounds) -> str:
    draw = random.Random(0)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["limbeck.scoring", "faults"])
    width = limbeck.load(bundle).width
    x = np.random.default_rng(0).random((6000, width), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        table, output = Path(folder, "in.parquet"), Path(folder, "out.parquet")
        lists = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), width)
        keys = pa.array([f"r{i}" for i in range(len(x))])
        pq.write_table(pa.table({"key": keys, "x": lists}), table, row_group_size=200)
        plain = Path(folder, "plain.parquet")
        arguments = (str(bundle), str(table))
        score(*arguments, str(plain))
        started = time.perf_counter()
        score(*arguments, str(plain))
        whole = time.perf_counter() - started
        wanted = plain.read_bytes()
        kills = jobs = 0
        while kills < bounds.kills and bounds.has_time():
            process = context.Process(target=score, args=(*arguments, str(output)))
            process.start()
            process.join(draw.random() * whole)
            if process.is_alive():
                process.kill()
                process.join()
                kills += 1
            else:
                assert process.exitcode == 0, "a job that was called again fails"
            if output.exists():
                assert output.read_bytes() == wanted, "an output is not whole"
                output.unlink()
                jobs += 1
        score(*arguments, str(output))
        assert output.read_bytes() == wanted, "the last output differs"
    return f"{kills} kills, {jobs + 1} outputs made, each the same bytes as without a kill."


def kills_during_swap(bundle: Path, bounds: Bounds) -> str:
    draw = random.Random(0)
    kills = swaps = 0
    with tempfile.TemporaryDirectory() as folder:
        other = another(bundle, Path(folder) / "other")
        paths = [str(bundle.resolve()), str(other)]
        settings = Settings({"model": paths[0]}, str(Path(folder) / "plan.json"))
        x = np.random.default_rng(0).random((3, limbeck.load(bundle).width), dtype=np.float32)
        answers = {path: limbeck.load(path).predict_proba(x=x) for path in paths}

        def swap(acknowledged: int) -> None:
            with ThreadPoolExecutor(1) as executor:
                models = Models(settings, executor, executor)
                models.load()

                async def for_ever() -> None:
                    os.write(acknowledged, f"{models.plan('model').active}\n".encode())
                    while True:
                        active = models.get("model")
                        path = paths[active.path == paths[0]]
                        version = await models.swap("model", path)
                        os.write(acknowledged, f"{version.number}\n".encode())

                asyncio.run(for_ever())

        while kills < bounds.kills and bounds.has_time():
            numbers = killed_after(swap, draw.random() * 0.5)
            kills += 1
            swaps += len(numbers) - 1
            with ThreadPoolExecutor(1) as executor:
                models = Models(settings, executor, executor)
                models.load()
            active = models.get("model")
            assert int(active.number) >= numbers[-1], "a swap that was acknowledged is lost"
            for version in models.versions():
                found = version.student.predict_proba(x=x)
                np.testing.assert_array_equal(found, answers[version.path])
    return f"{kills} kills, {swaps} swaps acknowledged, none lost; the plan was whole each time."


def another(bundle: Path, folder: Path) -> Path:
    """The same bundle with another temperature, so that its answers differ."""
    shutil.copytree(bundle, folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["calibration"]["temperature"] *= 2
    write_manifest(folder, manifest)
    return folder


# ---------------------------------------------------------------- files


def full_disk(bundle: Path, _: Bounds) -> str:
    with tempfile.TemporaryDirectory() as folder:
        overlay = Path(folder) / "overlay"

        def write(told: int) -> None:
            student = limbeck.load(bundle, verify=False).with_overlay(overlay)
            student.upsert(names_of(student, 0), rows_of(student, 0))
            size = max(path.stat().st_size for path in Path(folder).iterdir())
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 2**16, hard))
            many = range(1, 5000)
            names = [name for number in many for name in names_of(student, number)]
            try:
                student.upsert(names, np.concatenate([rows_of(student, n) for n in many]))
            except OutputError as error:
                check_pairs(student, [0])
                os.write(told, f"{error}\n".encode())

        child, readable = in_child(write)
        with open(readable, "rb") as lines:
            sentence = lines.readline().decode().strip()
        os.waitpid(child, 0)
        assert sentence, "a change for which there was no room was not refused"
        student = limbeck.load(bundle).with_overlay(overlay)
        check_pairs(student, [0])
        assert student.overlay.counts().nodes == 2, "a part of a refused change is there"
        check_pairs_after(student)
        student.close()
    return f"refused ({sentence.replace(str(overlay), 'OVERLAY')}) and nothing was changed."


def check_pairs_after(student: Any) -> None:
    """With room again, changes are taken again."""
    student.upsert(names_of(student, 1), rows_of(student, 1))
    check_pairs(student, [0, 1])


def damaged_overlays(bundle: Path, bounds: Bounds) -> str:
    draw = random.Random(0)
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        good, bad = Path(folder) / "good", Path(folder) / "bad"
        student = limbeck.load(bundle).with_overlay(good)
        for number in range(50):
            student.upsert(names_of(student, number), rows_of(student, number))
        student.close()
        content = good.read_bytes()
        for _ in range(bounds.kills):
            if not bounds.has_time():
                break
            damaged = bytearray(content)
            if draw.random() < 0.3:
                del damaged[draw.randrange(len(damaged)) :]
            else:
                at = draw.randrange(len(damaged))
                for place in range(at, min(at + draw.choice([1, 16, 4096]), len(damaged))):
                    damaged[place] = draw.randrange(256)
            bad.write_bytes(damaged)
            found[opened(bundle, bad)] += 1
            for path in Path(folder).glob("bad*"):
                path.unlink()
        other = another(bundle, Path(folder) / "another")
        card = other / "README.md"
        card.write_text(card.read_text() + "\n")
        refresh(other, "README.md")
        try:
            limbeck.load(other).with_overlay(good)
        except BundleError as error:
            foreign = one_sentence(error)
        else:
            raise AssertionError("an overlay of another bundle is taken")
    assert not found["other"], (
        f"{found['other']} of {found.total()} damages changed content unnoticed"
    )
    return (
        f"{found['refused']} refused by name, {found['read']} read with all that was acknowledged "
        "(the damage met free or unused bytes), none with content changed; "
        f"that of another bundle: {foreign.replace(folder, '')}"
    )


def opened(bundle: Path, overlay: Path) -> str:
    """Whether an overlay that was damaged is refused, or read."""
    try:
        student = limbeck.load(bundle, verify=False).with_overlay(overlay)
        check_pairs(student, list(range(50)))
    except LimbeckError as error:
        one_sentence(error)
        return "refused"
    except AssertionError:
        return "other"
    student.close()
    return "read"


def two_writers(bundle: Path, bounds: Bounds) -> str:
    each = 200
    with tempfile.TemporaryDirectory() as folder:
        overlay = Path(folder) / "overlay"
        limbeck.load(bundle).with_overlay(overlay).close()
        children = []
        for writer in (0, 1):

            def write(told: int, writer: int = writer) -> None:
                student = limbeck.load(bundle, verify=False).with_overlay(overlay)
                for number in range(writer * each, (writer + 1) * each):
                    upsert_in_turn(student, number)
                student.close()
                os.write(told, b"done\n")

            children.append(in_child(write))
        for child, readable in children:
            with open(readable, "rb") as lines:
                assert lines.read() == b"done\n", "a writer failed"
            os.waitpid(child, 0)
        student = limbeck.load(bundle).with_overlay(overlay)
        check_pairs(student, list(range(2 * each)))
        version = student.overlay.counts().version
        assert version == 2 * each, f"{2 * each} changes have {version} numbers"
        student.close()
    return f"2 processes, {2 * each} changes, all there, each with a number of its own."


def upsert_in_turn(student: Any, number: int) -> None:
    """Upsert a pair; again where the other writer was at it for too long."""
    for attempt in range(20):
        try:
            student.upsert(names_of(student, number), rows_of(student, number))
        except OutputError:
            if attempt == 19:
                raise
        else:
            return


# ---------------------------------------------------------------- noise


def one_sentence(error: Exception) -> str:
    text = str(error)
    assert len(text.splitlines()) == 1, f"no sentence: {text!r}"
    return text


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest as the package does, with the seal that fits it."""
    unsealed = {name: value for name, value in manifest.items() if name != "sha256"}
    body = json.dumps(unsealed, indent=2).encode().removesuffix(b"\n}")
    (folder / MANIFEST).write_bytes(body + seal(body))


def refresh(folder: Path, name: str) -> None:
    """Let the manifest hold the checksum and the size that a file has now."""
    manifest = json.loads((folder / MANIFEST).read_text())
    content = (folder / name).read_bytes()
    checksum = hashlib.sha256(content).hexdigest()
    manifest["files"][name] = {"sha256": checksum, "bytes": len(content)}
    write_manifest(folder, manifest)


def noisy(content: bytes, draw: random.Random) -> bytes:
    """Content with a few bytes changed, taken out, put in, or cut off."""
    damaged = bytearray(content)
    for _ in range(draw.randint(1, 8)):
        place = draw.randrange(len(damaged) + 1)
        kind = draw.randrange(4)
        if kind == 0 and place < len(damaged):
            damaged[place] = draw.randrange(256)
        elif kind == 1:
            del damaged[place : place + draw.randint(1, 9)]
        elif kind == 2:
            pieces = [b"-", b"9e99", b"[", b"}", b"null", b'"', b"0", b"\x00", b"\xff"]
            damaged[place:place] = draw.choice(pieces)
        elif draw.random() < 0.1:
            del damaged[place:]
    return bytes(damaged)


STRANGE = (None, True, -1, 0, 10**20, 1.5, "", "x", [], {}, [None], {"x": 1}, "../../x", "9e99")


def strange(document: Any, draw: random.Random) -> Any:
    """JSON with a value somewhere replaced, taken away or put in."""
    document = copy.deepcopy(document)
    at, holder, key = document, None, None
    while isinstance(at, dict | list) and at and (holder is None or draw.random() < 0.75):
        holder = at
        key = draw.choice(list(at)) if isinstance(at, dict) else draw.randrange(len(at))
        at = holder[key]
    kind = draw.randrange(4)
    if kind == 0:
        del holder[key]  # type: ignore[union-attr]
    elif kind == 1 and isinstance(holder, dict):
        holder["strange"] = draw.choice(STRANGE)
    else:
        holder[key] = draw.choice(STRANGE)  # type: ignore[index, call-overload]
    return document


def noisy_bundles(bundle: Path, bounds: Bounds) -> str:
    draw = random.Random(0)
    found: Counter[str] = Counter()
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "bundle"
        shutil.copytree(bundle, folder)
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        contents = {path: path.read_bytes() for path in paths}
        manifest_path = folder / MANIFEST
        manifest = json.loads(contents[manifest_path])
        x = np.zeros((1, limbeck.load(bundle).width), dtype=np.float32)
        tried = 0
        while tried < bounds.noise and bounds.has_time():
            tried += 1
            changed = manifest_path
            kind = draw.randrange(4)
            if kind == 0:
                write_manifest(folder, strange(manifest, draw))
            elif kind == 1:
                manifest_path.write_bytes(noisy(contents[manifest_path], draw))
            else:
                changed = draw.choice(paths)
                if draw.random() < 0.1:
                    changed.unlink()
                elif kind == 2 and changed.suffix == ".npy":  # its head, with a checksum that fits
                    content = contents[changed]
                    changed.write_bytes(noisy(content[:128], draw) + content[128:])
                    refresh(folder, str(changed.relative_to(folder)))
                else:
                    changed.write_bytes(noisy(contents[changed], draw))
            try:
                student = limbeck.load(folder)
                student.predict_proba(x=x)
                if student.store.num_nodes:
                    student.predict_proba(student.store.ids_of(np.array([0])))
                found["answered"] += 1
            except LimbeckError as error:
                found["refused"] += 1
                if len(str(error).splitlines()) != 1:
                    faults.append(f"{changed.relative_to(folder)}: no sentence: {str(error)!r}")
            except Exception as error:
                faults.append(f"{changed.relative_to(folder)}: {type(error).__name__}: {error}")
            for path in {changed, manifest_path}:
                path.write_bytes(contents[path])
    say_faults(faults)
    return (
        f"{tried:,} bundles: {found['refused']:,} refused with a sentence, {found['answered']:,} "
        "answered (what was changed does not matter to an answer)."
    )


def say_faults(faults: list[str]) -> None:
    if faults:
        shown = "\n".join(sorted(set(faults))[:20])
        raise AssertionError(f"{len(faults)} were no clear error:\n{shown}")


def noisy_requests(bundle: Path, bounds: Bounds) -> str:
    draw = random.Random(0)
    port = free_port()
    start = "from limbeck.cli import main; main()"
    found: Counter[str] = Counter()
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "log", "wb") as log:
        command = [sys.executable, "-c", start, "serve", f"model={bundle}", "--port", str(port)]
        command += ["--overlay", f"{folder}/overlay", "--max-batch", "64"]
        server = subprocess.Popen(command, stderr=log)
        try:
            wait_for(port)
            width = limbeck.load(bundle).width
            tried = 0
            while tried < bounds.noise and bounds.has_time():
                tried += 1
                try:
                    ask_noise(port, width, draw, found, faults)
                except OSError as error:
                    faults.append(f"the connection failed: {error}")
            assert server.poll() is None, "the server ended"
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)
    say_faults(faults)
    told = ", ".join(f"{count:,} × {status}" for status, count in sorted(found.items()))
    return f"{tried:,} requests: {told}; a sentence for each that was refused."


def ask_noise(
    port: int, width: int, draw: random.Random, found: Counter[str], faults: list[str]
) -> None:
    binary = draw.random() < 0.4
    ask = ask_for("model", width, draw.choice([1, 2]), binary=binary)
    path = draw.choice([ask.path, ask.path, ask.path, "/predict", "/nodes", "/edges"])
    headers = {}
    if path == ask.path:
        body = ask.body
        if ask.head is not None:
            headers["inference-header-content-length"] = str(ask.head)
        if not binary and draw.random() < 0.4:
            body = json.dumps(strange(json.loads(body), draw)).encode()
    else:
        documents: list[Any] = [
            {"x": [[0] * width], "top_k": 2},
            {"nodes": [1], "explain": False},
            {"nodes": [{"id": 1, "x": [0] * width}]},
            {"add": [[1, 2]], "undirected": True},
        ]
        body = json.dumps(strange(draw.choice(documents), draw)).encode()
    if draw.random() < 0.6:
        body = noisy(body, draw)
    if draw.random() < 0.1:
        length = draw.choice(["0", "-1", "1e3", str(len(body)), str(len(body) - 3), "x", ""])
        headers["inference-header-content-length"] = length
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("PUT" if path == "/nodes" else "POST", path, body, headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    found[str(answer.status)] += 1
    if answer.status >= 500:
        faults.append(f"{path} {answer.status}: {body[:200]!r}")
    elif answer.status >= 400:
        sentence = json.loads(content).get("error", "")
        if not sentence or len(sentence.splitlines()) != 1:
            faults.append(f"{path} {answer.status} without a sentence: {content[:200]!r}")


PARTS: dict[str, Callable[[Path, Bounds], str]] = {
    "upserts": kills_during_upserts,
    "scoring": kills_during_scoring,
    "swap": kills_during_swap,
    "disk": full_disk,
    "overlay": damaged_overlays,
    "writers": two_writers,
    "bundles": noisy_bundles,
    "requests": noisy_requests,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--noise", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=5.0)
    arguments = parser.parse_args()
    failed = False
    for name in arguments.parts:
        started = time.perf_counter()
        bounds = Bounds(arguments.kills, arguments.noise, started + 60 * arguments.minutes)
        try:
            told = PARTS[name](arguments.bundle, bounds)
        except AssertionError as error:
            told, failed = f"FAILED: {error}", True
        print(f"* {name}: {told} ({time.perf_counter() - started:.0f} s)", flush=True)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
