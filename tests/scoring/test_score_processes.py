"""Several processes, Dask, and processes that are killed: always the same output."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from score_files import write_rows

from limbeck.errors import MissingExtraError, OptionError
from limbeck.scoring import Columns, score_tables

KEY = Columns(id=("key",), probabilities=True)
NUM_ROWS = 6000
KILLS = 3


@pytest.fixture
def table(tmp_path):
    x = np.random.default_rng(0).normal(size=(NUM_ROWS, 3)).astype(np.float32)
    x[[17, 4000, 4001]] = np.nan
    return write_rows(tmp_path / "in.parquet", x)


@pytest.fixture
def expected(tiny, table, tmp_path):
    """Bytes of the output and of its side file, from one process without interruption."""
    score_tables(tiny("other"), [table], tmp_path / "plain.parquet", KEY, part_rows=100)
    return (tmp_path / "plain.parquet").read_bytes(), (tmp_path / "plain.bad.parquet").read_bytes()


def files_of(out: Path) -> tuple[bytes, bytes]:
    return out.read_bytes(), out.with_suffix(".bad.parquet").read_bytes()


def test_several_processes_write_the_same_bytes(tiny, table, tmp_path, expected):
    seen = []
    out = tmp_path / "out.parquet"
    score_tables(tiny(), [table], out, KEY, part_rows=100, workers=2, progress=seen.append)
    assert files_of(out) == expected
    assert [each.rows for each in seen] == list(range(100, NUM_ROWS + 1, 100))


def test_dask_writes_the_same_bytes_with_two_processes(tiny, table, tmp_path, expected):
    pytest.importorskip("distributed", reason="Dask comes with the extra `scale`")
    out = tmp_path / "out.parquet"
    script = (
        "from limbeck.cli import run\n"
        "if __name__ == '__main__':\n"
        f"    raise SystemExit(run(['score', {str(tiny())!r}, {str(table)!r}, {str(out)!r}, "
        "'--id', 'key', '--probabilities', '--part-rows', '100', '--workers', '2', "
        "'--dask', 'local']))\n"
    )
    (tmp_path / "job.py").write_text(script)
    subprocess.run([sys.executable, tmp_path / "job.py"], check=True, capture_output=True)
    assert files_of(out) == expected


def test_dask_that_is_not_there_is_named(tiny, table, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "distributed", None)
        with pytest.raises(MissingExtraError, match=r"limbeck\[scale\]"):
            score_tables(tiny(), [table], tmp_path / "out.parquet", KEY, dask="local")


def test_a_killed_job_goes_on_and_writes_the_same_bytes(tiny, table, tmp_path, expected):
    out, parts = tmp_path / "out.parquet", tmp_path / "out.parquet.parts"
    script = tmp_path / "job.py"
    script.write_text(
        "from limbeck.scoring import Columns, score_tables\n"
        "columns = Columns(id=('key',), probabilities=True)\n"
        f"score_tables({str(tiny())!r}, [{str(table)!r}], {str(out)!r}, columns, part_rows=100)\n"
    )
    moment = random.Random(0)
    for _ in range(KILLS):
        before = len(list(parts.glob("part-*.json")))
        with subprocess.Popen([sys.executable, script]) as job:
            deadline = time.monotonic() + 120
            while len(list(parts.glob("part-*.json"))) <= before and job.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.001)
            time.sleep(moment.random() * 0.02)
            os.kill(job.pid, signal.SIGKILL)
        if out.exists():
            break  # it was quicker than we were
    finished_before = len(list(parts.glob("part-*.json")))
    report = score_tables(tmp_path / "tiny", [table], out, KEY, part_rows=100)
    assert files_of(out) == expected
    assert report.resumed_parts == finished_before
    assert not parts.exists()


def test_processes_do_not_outlive_the_one_that_started_them(tiny, table, tmp_path):
    psutil = pytest.importorskip("psutil")
    out, parts = tmp_path / "out.parquet", tmp_path / "out.parquet.parts"
    script = tmp_path / "job.py"
    script.write_text(
        "from limbeck.scoring import Columns, score_tables\n"
        "if __name__ == '__main__':\n"
        f"    score_tables({str(tiny())!r}, [{str(table)!r}], {str(out)!r}, "
        "Columns(id=('key',)), part_rows=100, workers=2)\n"
    )
    with subprocess.Popen([sys.executable, script]) as job:
        deadline = time.monotonic() + 120
        while not list(parts.glob("part-*.json")) and job.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        children = psutil.Process(job.pid).children(recursive=True)
        os.kill(job.pid, signal.SIGKILL)
    gone, alive = psutil.wait_procs(children, timeout=60)
    assert len(gone) >= 2
    assert alive == []


def test_dask_address_that_does_not_answer(tiny, table, tmp_path):
    pytest.importorskip("distributed", reason="Dask comes with the extra `scale`")
    with pytest.raises(OptionError, match="no Dask scheduler answers at"):
        score_tables(tiny(), [table], tmp_path / "out.parquet", KEY, dask="not an address")
