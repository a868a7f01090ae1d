"""Commands as a user types them: what they print, and that JSON is JSON."""

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from limbeck.cli import run

QUICK = ["--set", "max_epochs=3", "--teacher-set", "max_epochs=3", "--no-latency", "--quiet"]


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """A small graph of packages as two Parquet files."""
    folder = tmp_path_factory.mktemp("tables")
    rng = np.random.default_rng(0)
    section = rng.integers(0, 3, 150)
    names = [f"package-{i}" for i in range(150)]
    nodes = {
        "name": names,
        "section": np.array(["net", "text", "math"])[section],
        "size": 100 * rng.normal(size=150) + section,
        "age": rng.normal(size=150) - section,
        "maker": np.array(["a", "b"])[rng.integers(0, 2, 150)],
        "tags": [[f"t{k}" for k in rng.integers(0, 9, 3)] for _ in names],
    }
    pq.write_table(pa.table(nodes), folder / "packages.parquet")
    ends = rng.integers(0, 150, (2, 900))
    ends = ends[:, section[ends[0]] == section[ends[1]]]
    needs = {"package": [names[i] for i in ends[0]], "needs": [names[i] for i in ends[1]]}
    pq.write_table(pa.table(needs), folder / "needs.parquet")
    return folder


@pytest.fixture(scope="module")
def bundle(tables, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "packages"
    assert run([*distill_tables(tables), "--out", str(out), *QUICK]) == 0
    return out


def distill_tables(tables) -> list[str]:
    return [
        "distill",
        *("--nodes", str(tables / "packages.parquet"), "--edges", str(tables / "needs.parquet")),
        *("--id", "name", "--label", "section", "--source", "package", "--target", "needs"),
        *("--categorical", "maker", "--teacher", "gcn", "--method", "glnn"),
        *("--setting", "inductive"),
    ]


def output(capsys, *arguments: str):
    assert run(list(arguments)) == 0
    return capsys.readouterr().out


def test_distill_prints_scores_as_json(tables, tmp_path, capsys):
    text = output(capsys, *distill_tables(tables), "--out", str(tmp_path / "b"), "--json", *QUICK)
    document = json.loads(text)
    assert document["bundle"] == str(tmp_path / "b")
    assert set(document["scores"]) == {"teacher", "student"}
    assert 0 <= document["scores"]["student"]["test_accuracy"] <= 1
    assert (tmp_path / "b" / "limbeck.json").is_file()


def test_distill_again_replaces_its_own_bundle(bundle, tables):
    assert run([*distill_tables(tables), "--out", str(bundle), *QUICK]) == 0


def test_distill_from_logits(tmp_path, capsys):
    np.save(tmp_path / "logits.npy", np.random.default_rng(0).normal(size=(1797, 10)))
    text = output(
        capsys,
        *("distill", "--graph", "digits", "--logits", str(tmp_path / "logits.npy")),
        *(
            "--out",
            str(tmp_path / "b"),
            "--set",
            "max_epochs=2",
            "--json",
            "--no-latency",
            "--quiet",
        ),
    )
    assert json.loads(text)["teacher"] == "logits"


def test_inspect(bundle, capsys):
    assert "all checksums right" in output(capsys, "inspect", str(bundle))
    manifest = json.loads(output(capsys, "inspect", str(bundle), "--json"))
    assert manifest["method"] == "glnn"
    assert manifest["classes"] == ["math", "net", "text"]


def test_predict_known_nodes_and_rows_of_a_table_agree(bundle, tables, capsys):
    nodes = [f"package-{i}" for i in range(150)]
    known = json.loads(output(capsys, "predict", str(bundle), "--json", "--nodes", *nodes))
    table = str(tables / "packages.parquet")
    new = json.loads(output(capsys, "predict", str(bundle), "--json", "--input", table))
    for one, other in zip(known, new, strict=True):
        assert one["classes"][0]["class"] == other["classes"][0]["class"]
        assert one["classes"][0]["probability"] == pytest.approx(
            other["classes"][0]["probability"], abs=1e-5
        )
    text = output(capsys, "predict", str(bundle), "--nodes", "package-3", "--top", "2")
    assert "package-3" in text


def test_predict_needs_no_torch(bundle):
    code = (
        "import sys; from limbeck.cli import run; "
        f"code = run(['predict', {str(bundle)!r}, '--nodes', 'package-1']); "
        "assert not {'torch', 'torch_geometric', 'scipy'} & set(sys.modules); sys.exit(code)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_latency_of_student_and_teacher(bundle, tmp_path, capsys):
    text = output(
        capsys, "latency", str(bundle), "--batch-sizes", "1", "--seconds", "0.2", "--json"
    )
    assert json.loads(text)["student"]["1"]["p50_us"] > 0
    out = str(tmp_path / "digits")
    assert run(["distill", "--graph", "digits", "--out", out, *QUICK]) == 0
    capsys.readouterr()
    arguments = ["latency", out, "--teacher", "--batch-sizes", "1", "--seconds", "0.2", "--json"]
    figures = json.loads(output(capsys, *arguments))
    for kind in ("whole graph", "all neighbours", "drawn neighbours"):
        assert figures[f"teacher, {kind}"]["1"]["p50_us"] > figures["student"]["1"]["p50_us"]


def test_bench_writes_rows_and_a_table(tmp_path, capsys):
    config = tmp_path / "table.yaml"
    config.write_text(
        "graphs: [digits]\nmethods: [mlp, glnn]\nsettings: [transductive, cold-start]\n"
        "latency: false\nmethod_options: {mlp: {max_epochs: 2}, glnn: {max_epochs: 2}}\n"
        "teacher_options: {sage: {max_epochs: 2}}\n"
    )
    arguments = ["bench", "--config", str(config), "--seeds", "2", "--out", str(tmp_path / "out")]
    text = output(capsys, *arguments, "--quiet")
    assert "digits" in text
    assert "±" in text
    markdown = (tmp_path / "out" / "table.md").read_text()
    assert "| digits |" in markdown
    assert "ties to the later epoch" in markdown
    rows = json.loads(output(capsys, *arguments, "--json", "--quiet"))
    assert len(rows) == 2 * 2 * 3


def test_profile_lists_and_help(tables, capsys):
    figures = json.loads(output(capsys, "profile", "digits", "--json"))
    assert figures["num_nodes"] == 1797
    assert "for distillation" in output(capsys, "profile", "digits")
    for kind in ("methods", "teachers", "datasets"):
        assert len(json.loads(output(capsys, kind, "--json"))) >= 2
        assert output(capsys, kind)
    options = json.loads(output(capsys, "methods", "glnn", "--json"))["options"]
    assert all(option["meaning"] for option in options)
    for name in ("sage", "gat", "linkx"):
        options = json.loads(output(capsys, "teachers", name, "--json"))["options"]
        assert all(option["meaning"] for option in options)
    assert "distill" in output(capsys, "--help")


def test_the_package_is_the_command_too(bundle):
    command = [sys.executable, "-m", "limbeck", "predict", str(bundle)]
    known = subprocess.run([*command, "--nodes", "package-1"], check=True, capture_output=True)
    assert b"package-1" in known.stdout
    wrong = subprocess.run(command, capture_output=True)
    assert wrong.returncode == 2
    assert wrong.stdout == b""
    assert wrong.stderr.startswith(b"limbeck: ")
    assert wrong.stderr.count(b"\n") == 1
