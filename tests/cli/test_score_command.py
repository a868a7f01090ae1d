"""`limbeck score`: what it prints, and that its answers are those of `limbeck predict`."""

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import limbeck
from limbeck.cli import run

QUICK = ["--set", "max_epochs=2", "--set", "hidden_channels=8", "--no-latency", "--quiet"]
ROOT = "digits"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A bundle with a cascade, and its nodes' features as a file."""
    folder = tmp_path_factory.mktemp("score")
    command = ["distill", "--graph", ROOT, "--teacher", "sgc", "--method", "glnn"]
    command += ["--teacher-set", "max_epochs=2", "--defer-coverage", "0.5"]
    assert run([*command, "--out", str(folder / "student"), *QUICK]) == 0
    store = limbeck.load(folder / "student").store
    x = store.features(np.arange(200))
    lists = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), x.shape[1])
    ids = store.ids[:200]
    pq.write_table(pa.table({"id": ids, "pixels": lists}), folder / "in.parquet")
    return folder


def score(folder, name, *more):
    out = folder / f"{name}.parquet"
    code = run(["score", str(folder / "student"), str(folder / "in.parquet"), str(out), *more])
    return code, out


def test_new_and_known_nodes_get_the_same_answers(folder, capsys):
    code, as_new = score(folder, "new", "--id", "id", "--logits", "--json")
    assert code == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["rows"], report["answered"], report["bad"]) == (200, 200, 0)
    code, as_known = score(folder, "known", "--id", "id", "--nodes", "id", "--logits", "--quiet")
    assert code == 0
    one, other = pq.read_table(as_new), pq.read_table(as_known)
    assert one["id"].equals(other["id"])
    np.testing.assert_allclose(
        np.array(one["logits"].to_pylist()), np.array(other["logits"].to_pylist()), atol=1e-5
    )
    student = limbeck.load(folder / "student")
    assert one["prediction"].to_pylist() == student.predict(nodes=one["id"].to_numpy()).tolist()


def test_cascade_defers_half_and_the_teacher_answers(folder, capsys):
    code, out = score(folder, "cascade", "--nodes", "id", "--cascade")
    assert code == 0
    printed = capsys.readouterr()
    assert "deferred" in printed.out
    assert "200 of 200 rows (100 %)" in printed.err
    table = pq.read_table(out)
    assert table.column_names[:2] == ["file", "row"]
    assert table["by_teacher"].equals(table["deferred"])
    assert 0 < sum(table["deferred"].to_pylist()) < 200


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--id", "name"], "no column 'name'"),
        (["--max-bad", "-1"], "max_bad is -1"),
        (["--workers", "0"], "workers is 0"),
        (["--id", "id", "--neighbors", "id"], "reads no neighbors"),
    ],
)
def test_bad_input_is_one_sentence(folder, capsys, more, sentence):
    code, out = score(folder, "bad", *more)
    assert code == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.strip().splitlines()) == 1
    assert not out.exists()


def test_one_table_is_not_enough(folder, capsys):
    assert run(["score", str(folder / "student"), str(folder / "in.parquet")]) == 2
    assert "the file to make" in capsys.readouterr().err


def test_score_needs_no_torch(folder):
    paths = [str(folder / name) for name in ("student", "in.parquet", "free.parquet")]
    code = (
        f"import sys; from limbeck.cli import run; code = run(['score', *{paths!r}]); "
        "heavy = {'torch', 'torch_geometric', 'scipy', 'pydantic', 'dask'} & set(sys.modules); "
        "assert not heavy, heavy; sys.exit(code)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_neighbors_come_from_a_column_of_lists(folder, tmp_path):
    command = ["distill", "--graph", ROOT, "--teacher", "sgc", "--method", "sa-mlp-labels"]
    command += ["--teacher-set", "max_epochs=2", "--out", str(tmp_path / "student")]
    assert run([*command, *QUICK]) == 0
    student = limbeck.load(tmp_path / "student")
    x = student.store.features(np.arange(4))
    lists = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), x.shape[1])
    neighbors = pa.array([[5, 9], None, [], [7, None, 10**9]], type=pa.list_(pa.int64()))
    pq.write_table(pa.table({"pixels": lists, "links": neighbors}), tmp_path / "in.parquet")
    paths = [str(tmp_path / name) for name in ("student", "in.parquet", "out.parquet")]
    assert run(["score", *paths, "--neighbors", "links", "--logits", "--quiet"]) == 0
    found = np.array(pq.read_table(tmp_path / "out.parquet")["logits"].to_pylist())
    expected = student.predict_logits(x=x, neighbors=[[5, 9], [], [], [7]])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert not np.allclose(found, student.predict_logits(x=x), atol=1e-3)
