"""Several labels per node through the whole project, on files in the layout of PPI's."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import limbeck
from limbeck.cli import run as run_command
from limbeck.errors import BundleError, OptionError
from limbeck.evaluation.audit import audit
from limbeck.evaluation.bench import run_bench
from limbeck.evaluation.cascade import DeferGoal
from limbeck.evaluation.distill import distill
from limbeck.evaluation.metrics import multilabel_roc_auc
from limbeck.evaluation.plan import Bench
from limbeck.evaluation.teachers_by_degree import teachers_by_degree
from limbeck.registry import names
from limbeck.runtime.bundle import MANIFEST
from limbeck.testing import small_label_graph
from limbeck.training.tasks import SEVERAL_LABELS

QUICK = {"max_epochs": 3, "hidden_channels": 8}


@pytest.fixture(scope="module")
def ppi_root(tmp_path_factory):
    """PPI in small: files as they are distributed, with 3 graphs for training, 2 and 2."""
    root = tmp_path_factory.mktemp("data")
    raw = root / "ppi" / "raw"
    raw.mkdir(parents=True)
    sizes = {"train": 3, "valid": 2, "test": 2}
    for seed, (part, count) in enumerate(sizes.items()):
        graph = small_label_graph(seed=seed, num_graphs=count + 1, nodes=20)
        inside = 20 * count
        links = graph.edge_index[:, (graph.edge_index < inside).all(0)].t().tolist()
        document = {
            "directed": False,
            "multigraph": False,
            "graph": {},
            "nodes": [{"id": i} for i in range(inside)],
            "links": [{"source": source, "target": target} for source, target in links],
        }
        (raw / f"{part}_graph.json").write_text(json.dumps(document))
        np.save(raw / f"{part}_feats.npy", graph.x[:inside].numpy())
        np.save(raw / f"{part}_labels.npy", graph.y[:inside].long().numpy())
        np.save(raw / f"{part}_graph_id.npy", 10 * seed + 1 + graph.batch[:inside].numpy())
    return root


@pytest.fixture(scope="module")
def view(ppi_root):
    return limbeck.view(limbeck.load_graph("ppi", data_root=ppi_root), "inductive", 0)


@pytest.fixture(scope="module")
def teachers(view):
    return [
        limbeck.fit_teacher(view, "gcn", 0, num_layers=depth, max_epochs=60, patience=60)
        for depth in (2, 3)
    ]


@pytest.fixture(scope="module")
def run(view, teachers):
    return distill(view, teachers[0], "glnn", 0, max_epochs=60)


@pytest.fixture(scope="module")
def bundle(run, tmp_path_factory):
    return run.save(tmp_path_factory.mktemp("bundles") / "ppi")


def test_ppi_is_seven_graphs_of_which_two_are_unseen(view):
    graph = view.graph
    assert graph.info.task == "labels"
    assert graph.batch.unique().tolist() == list(range(7))
    source, target = graph.batch[graph.edge_index]
    assert torch.equal(source, target)
    parts = [view.train, view.val, view.test_unseen]
    assert [graph.batch[view.nodes[part]].unique().tolist() for part in parts] == [
        [0, 1, 2],
        [3, 4],
        [5, 6],
    ]
    assert view.num_observed == 100


def test_a_teacher_learns_the_labels(view, teachers):
    """Of graphs that it never saw; an answer without features has an area of 0.5."""
    y = view.everything.y[view.test_unseen]
    for teacher in teachers:
        area = multilabel_roc_auc(teacher.answers.unseen, y)
        assert area is not None
        assert area > 0.6


def test_scores_say_that_accuracy_is_micro_f1(view, run):
    student = run.scores["student"]
    y, logits = view.everything.y[view.test_unseen], run.answers.unseen
    assert student["metric"] == "micro-F1"
    assert student["test_accuracy"] == pytest.approx(SEVERAL_LABELS.score(logits, y))
    same = (logits > 0) == (run.teacher.answers.unseen > 0)
    assert student["agreement"] == pytest.approx(float(same.float().mean()))
    assert 0 <= student["ece"] <= 1
    assert student["test_roc_auc"] > 0.6
    assert set(student["slices"]) == {f"degree={n}" for n in ("0", "1-2", "3-5", "6-10", "11+")}
    assert sum(part["num_nodes"] for part in student["slices"].values()) == 40
    cold = run.in_setting("cold-start").scores
    assert cold["student"]["test_accuracy"] == student["test_accuracy"]  # it reads no edges
    assert cold["teacher"]["test_accuracy"] != run.scores["teacher"]["test_accuracy"]


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("mlp", {}),
        ("glnn", {"label_weight": 0.5}),
        ("kd", {}),
        ("lsp", {"kd_weight": 0.5, "num_layers": 3}),
        ("mskd", {"attention": "node_learned", "kd_weight": 1.0, "num_layers": 3, "heads": 1}),
    ],
)
def test_a_student_learns_what_its_losses_ask(view, teachers, method, options):
    options = {"dropout": 0.0, "hidden_channels": 32, "max_epochs": 40, **options}
    found = distill(view, teachers, method, 0, **options)
    assert found.history.loss[-1] < found.history.loss[0]
    y = view.observed.y[view.val]
    logits = found.answers.observed[view.val]
    assert found.history.best_score == pytest.approx(SEVERAL_LABELS.score(logits, y))


def test_every_method_knows_or_refuses_labels(view, teachers):
    refused = {}
    for name in names("method"):
        if name.endswith("sa-mlp") or name.startswith("fmlp"):
            continue  # as any other that does not list the task; slow to build
        try:
            distill(view, teachers, name, 0, **QUICK)
        except OptionError as error:
            refused[name] = str(error)
        except limbeck.errors.MissingExtraError:
            pass  # of nosmog's encoding
    assert {"krd", "ff-g2m", "rbm", "moe", "ensemble"} <= set(refused)
    for sentence in refused.values():
        assert "learns one class per node, and those of 'ppi' have several" in sentence
    assert not {"mlp", "glnn", "plain", "kd", "lsp", "mskd", "fitnet", "at"} & set(refused)


def test_a_bundle_answers_with_lists_of_labels(run, bundle):
    student = limbeck.load(bundle)
    document = json.loads((bundle / MANIFEST).read_text())
    assert (document["task"], document["format"]) == ("labels", 3)
    order = run.view.nodes.argsort()
    logits = torch.cat([run.answers.observed, run.answers.unseen])[order]
    probabilities = (logits / run.temperature).sigmoid()
    given = student.predict_proba(nodes=list(range(len(logits))))
    np.testing.assert_allclose(given, probabilities.numpy(), atol=1e-5)
    assert given.dtype == np.float32
    answers = student.predict(nodes=[0, 139])
    for answer, row in zip(answers.tolist(), given[[0, 139]], strict=True):
        assert answer == [student.classes[c] for c in np.flatnonzero(row > 0.5)]
    x = run.view.graph.x[:3].numpy()
    np.testing.assert_allclose(student.predict_proba(x=x), given[:3], atol=1e-5)
    assert student.predict(x=x).shape == (3,)
    assert student.predict(x=x[:1]).shape == (1,)
    assert "whether a node has it" in (bundle / "README.md").read_text()


def test_extreme_logits_are_probabilities(run, tmp_path):
    student = limbeck.load(run.save(tmp_path / "bundle"))
    with np.errstate(over="raise", invalid="raise"):
        sure = student.predict_proba(x=1e4 * run.view.graph.x[:2].numpy())
    assert np.isfinite(sure).all()
    assert ((sure >= 0) & (sure <= 1)).all()


def test_a_gnn_student_answers_from_its_neighborhood(view, teachers, tmp_path):
    found = distill(view, teachers, "mskd", 0, student="gcn", num_layers=3, **QUICK)
    student = limbeck.load(found.save(tmp_path / "bundle"))
    assert student.manifest.task == "labels"
    new = student.predict_proba(x=view.graph.x[:1].numpy(), neighbors=[[3, 5]])
    assert ((new > 0) & (new < 1)).all()


def test_what_knows_classes_only_refuses(run, view, teachers, bundle, tmp_path):
    with pytest.raises(OptionError, match="leave 'defer' out"):
        run.save(tmp_path / "deferring", defer=DeferGoal("coverage", 0.5))
    with pytest.raises(OptionError, match="have several labels each"):
        teachers_by_degree(distill(view, teachers, "glnn", 0, **QUICK))
    with pytest.raises(BundleError, match="the audit knows one class per node only"):
        audit(bundle, view.graph)


def test_a_table_has_micro_f1_and_says_so(ppi_root, tmp_path):
    bench = Bench(
        graphs=("ppi",),
        methods=("mlp", "glnn"),
        settings=("inductive", "cold-start"),
        teachers=("gcn",),
        seeds=1,
        method_options={"mlp": QUICK, "glnn": QUICK},
        teacher_options={"gcn": QUICK},
        latency=False,
        data_root=str(ppi_root),
    )
    table = run_bench(bench, tmp_path / "table")
    assert table.num_rows == 6
    assert set(table["metric"].to_pylist()) == {"micro-F1"}
    assert pq.read_table(tmp_path / "table" / "runs.parquet").equals(table)


def test_commands(ppi_root, tmp_path, capsys):
    out = str(tmp_path / "bundle")
    common = ["--graph", "ppi", "--data-root", str(ppi_root), "--setting", "inductive"]
    quick = ["--set", "max_epochs=3", "--teacher-set", "max_epochs=3", "--no-latency", "--quiet"]
    assert run_command(["distill", *common, "--teacher", "gcn", *quick, "--out", out]) == 0
    assert "test_micro-F1" in capsys.readouterr().out
    assert run_command(["predict", out, "--nodes", "0", "1", "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    student = limbeck.load(out)
    for answer, expected in zip(answers, student.predict(nodes=[0, 1]), strict=True):
        assert sorted(each["class"] for each in answer["classes"]) == sorted(expected)
    assert run_command(["predict", out, "--nodes", "0", "--top", "2", "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    first, second = (each["probability"] for each in answer["classes"])
    assert first >= second
    assert run_command(["predict", out, "--nodes", "0", "1"]) == 0
    assert "labels" in capsys.readouterr().out
    assert run_command(["profile", *common[:4]]) != 0
    assert "a profile tells of classes" in capsys.readouterr().err
