"""`limbeck audit`: what it prints."""

import json

from limbeck.cli import run

QUICK = ["--set", "max_epochs=2", "--set", "hidden_channels=8", "--no-latency", "--quiet"]


def test_audit_prints_a_verdict_and_json(tmp_path, capsys):
    bundle = str(tmp_path / "student")
    command = ["distill", "--graph", "digits", "--teacher", "sgc", "--teacher-set", "max_epochs=2"]
    assert run([*command, "--defer-accuracy", "0.5", "--out", bundle, *QUICK]) == 0
    capsys.readouterr()
    assert run(["audit", bundle, "digits"]) == 0
    text = capsys.readouterr().out
    assert "verdict: keep" in text
    assert "shift of degrees" in text
    assert run(["audit", bundle, "--graph", "digits", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["verdict"] == "keep"
    assert document["degrees"]["0"] == [0.0, 0.0]
    assert run(["distill", "--graph", "digits", "--defer-accuracy", "2", "--out", bundle]) == 2
    assert "must be above 0 and at most 1" in capsys.readouterr().err
