"""`limbeck predict --neighbors`: the edges of new rows, from a column of their table."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import limbeck
from limbeck.cli import run

NUM_NODES = 60
NEIGHBORS = [["n1", "n2", "unknown"], [], None, ["n7"]]
QUICK = ["--set", "max_epochs=3", "--set", "hidden_channels=8", "--no-latency", "--quiet"]


def write(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student that reads neighbours, of a graph of packages in two tables."""
    folder = tmp_path_factory.mktemp("tables")
    rng = np.random.default_rng(0)
    section = np.arange(NUM_NODES) % 3
    names = [f"n{i}" for i in range(NUM_NODES)]
    nodes = write(
        folder / "nodes.parquet",
        name=names,
        section=[f"s{c}" for c in section],
        size=rng.normal(size=NUM_NODES) + section,
    )
    ends = rng.integers(0, NUM_NODES, (2, 200))
    edges = write(
        folder / "edges.parquet",
        source=[names[i] for i in ends[0]],
        target=[names[i] for i in ends[1]],
    )
    out = folder / "student"
    command = ["distill", "--nodes", str(nodes), "--edges", str(edges), "--id", "name"]
    command += ["--label", "section", "--method", "sa-mlp-labels", "--teacher", "sgc"]
    assert run([*command, "--teacher-set", "max_epochs=2", "--out", str(out), *QUICK]) == 0
    return out


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write(tmp_path / "new.parquet", size=[0.0, 1.0, 2.0, 3.0], links=NEIGHBORS)


def ask(capsys: pytest.CaptureFixture[str], bundle: Path, table: Path, *more: str) -> list[Any]:
    arguments = ["predict", str(bundle), "--input", str(table), "--top", "3", "--json", *more]
    assert run(arguments) == 0
    answers: list[Any] = json.loads(capsys.readouterr().out)
    return answers


def test_lists_and_text_say_the_same(
    bundle: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = ask(capsys, bundle, table, "--neighbors", "links")
    student = limbeck.load(bundle)
    x = student.rows_of_table(pq.read_table(table))
    given = [ids or [] for ids in NEIGHBORS]
    probs = student.predict_proba(x=x, neighbors=given)
    for answer, row in zip(answers, probs, strict=True):
        found = {each["class"]: each["probability"] for each in answer["classes"]}
        assert found == pytest.approx(dict(zip(student.classes, row.tolist(), strict=True)))
    text = write(
        tmp_path / "text.parquet",
        size=[0.0, 1.0, 2.0, 3.0],
        links=["n1, n2;unknown", " ", None, "n7"],
    )
    assert ask(capsys, bundle, text, "--neighbors", "links") == answers
    without = ask(capsys, bundle, table)
    assert without[1:3] == answers[1:3]
    assert without[0] != answers[0]
    reasons = ask(capsys, bundle, table, "--neighbors", "links", "--explain")
    assert {each["node"] for each in reasons[0]["neighbors"]} == {"n1", "n2"}


def test_bad_input(
    bundle: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 1), dtype=np.float32))
    for arguments, message in (
        (["--nodes", "n1", "--neighbors", "links"], "give that, too"),
        (["--input", str(tmp_path / "x.npy"), "--neighbors", "links"], "has no columns"),
        (["--input", str(table), "--neighbors", "link"], "link"),
    ):
        assert run(["predict", str(bundle), *arguments]) == 2
        assert message in capsys.readouterr().err
