"""SA-MLP, LINKX and ours in their bundles: the runtime answers as torch, each on its route."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.cli import run as cli
from limbeck.errors import BundleError, OptionError, RequestError
from limbeck.evaluation.distill import distill
from limbeck.evaluation.protocol import Run
from limbeck.export import export_bundle
from limbeck.graphs.view import make_view
from limbeck.methods import Method
from limbeck.methods.limbeck import Limbeck
from limbeck.methods.linkx import LINKXOnLabels
from limbeck.methods.sa_mlp import StructureAwareMLP
from limbeck.runtime import (
    BundledStudent,
    LiveStructure,
    StructureExplanation,
    load_bundle,
    loading,
    measure_latency,
    open_bundle,
)
from limbeck.runtime.native import HAS_KERNELS, NativeKernel
from limbeck.runtime.structure import StructureStore
from limbeck.students.inputs import NodeInputs, neighbor_rows
from limbeck.teachers import knowledge_from
from limbeck.testing import small_graph

UNKNOWN = 10**6
VARIANTS: list[dict[str, Any]] = [
    {},
    {"blend": 2.0, "adj_norm": "row", "feature_scale": "row", "stream_norm": "layer"},
    {"table": "hashed", "table_rows": 9, "stage2_train": "all", "num_layers": 2, "norm": "batch"},
    {"table": "landmark", "table_rows": 20, "feature_scale": "standard", "stages": "one"},
    {"table": "tied", "num_layers": 2, "order": "glnn", "norm": "layer", "stream_norm": "batch"},
]
OF_LINKX: list[dict[str, Any]] = [{"linkx": True}, {"linkx": True, "num_layers": 1}]
OURS: list[dict[str, Any]] = [
    {"ours": True, "told": ("answers", "positions")},
    {"ours": True, "norm": "layer", "num_layers": 3, "adj_norm": "sqrt-degree"},
    {"ours": True, "norm": "batch", "num_layers": 3, "told": ("answers", "rows")},
]


def trained(
    *, sparse: bool = False, linkx: bool = False, ours: bool = False, **options: Any
) -> Run:
    view = make_view(small_graph(sparse=sparse), "inductive", 0)
    torch.manual_seed(0)
    teacher = knowledge_from(torch.randn(len(view.nodes), 3))
    kind: type[Method] = LINKXOnLabels if linkx else StructureAwareMLP
    if ours:
        # their teacher is drawn: validated, it would not be heard, and neighbours neither
        heard = {"trust": "always", "hear": "always"}
        kind, options = Limbeck, {"encoding": "spectral", "dim": 4, **heard, **options}
    method = kind(hidden_channels=16, max_epochs=6, **options)
    return distill(view, teacher if method.needs_teacher else None, method, 0)


def neighbor_ids(run: Run, inputs: NodeInputs) -> list[list[int]]:
    """The neighbours of some nodes by the ids that the graph has them under."""
    assert inputs.neighbors is not None
    starts = inputs.neighbors.crow_indices().tolist()
    ids = run.view.nodes[inputs.neighbors.col_indices()].tolist()
    return [ids[a:b] for a, b in itertools.pairwise(starts)]


def features(inputs: NodeInputs) -> np.ndarray:
    return inputs.x.to_dense().numpy()


@pytest.fixture(scope="module")
def run() -> Run:
    return trained()


@pytest.fixture
def bundle(run: Run, tmp_path: Path) -> BundledStudent:
    return load_bundle(run.save(tmp_path / "student"))


@pytest.mark.parametrize("with_kernels", [True, False])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("options", VARIANTS + OF_LINKX + OURS)
def test_the_runtime_answers_as_torch_does(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sparse: bool,
    options: dict[str, Any],
    with_kernels: bool,
) -> None:
    if with_kernels and not HAS_KERNELS:
        pytest.skip("built without a C compiler")
    run = trained(sparse=sparse, **options)
    path = run.save(tmp_path / "student")
    monkeypatch.setattr(loading, "HAS_KERNELS", with_kernels)
    student = load_bundle(path)
    assert isinstance(student.kernel, NativeKernel) == with_kernels
    unseen = run.inputs.unseen
    x, ids = features(unseen), neighbor_ids(run, unseen)
    close: dict[str, float] = {"rtol": 1e-5, "atol": 1e-5}
    connected = student.predict_logits(x=x, neighbors=ids)
    np.testing.assert_allclose(connected, run.answers.unseen, **close)
    alone = student.predict_logits(x=x)
    np.testing.assert_allclose(alone, run.answers.isolated, **close)
    np.testing.assert_array_equal(student.predict_logits(x=x, neighbors=[[]] * len(x)), alone)
    nodes = run.view.nodes[: run.view.num_observed].tolist()
    np.testing.assert_allclose(student.predict_logits(nodes), run.answers.observed, **close)
    # ids that are not known are ignored, and those that are named twice count once
    named = [[UNKNOWN, *own, *own] for own in ids]
    np.testing.assert_allclose(student.predict_logits(x=x, neighbors=named), connected, **close)
    assert student.ignored_neighbors(named).tolist() == [1] * len(x)


@pytest.mark.parametrize("options", VARIANTS[1:3])
def test_explanations_are_those_of_torch(tmp_path: Path, options: dict[str, Any]) -> None:
    run = trained(**options)
    student = load_bundle(run.save(tmp_path / "student"))
    unseen = run.inputs.unseen
    ids = neighbor_ids(run, unseen)
    found = student.explain(x=features(unseen), neighbors=ids)
    assert isinstance(found, StructureExplanation)
    theirs = run.student.explain(unseen)
    np.testing.assert_allclose(found.gate, theirs.gate, atol=1e-5)
    np.testing.assert_allclose(found.share, theirs.share, atol=1e-5)
    for effects, own in zip(found.neighbors, ids, strict=True):
        changes = [abs(effect.change) for effect in effects]
        assert changes == sorted(changes, reverse=True)
        assert sorted(effect.neighbor for effect in effects) == sorted(own)
    # known nodes, and the effect of a neighbour by asking without it
    node = int(run.view.nodes[run.view.num_observed])
    known = student.explain([node])
    assert isinstance(known, StructureExplanation)
    effect = known.neighbors[0][0]
    x = features(unseen)[:1]
    probs = student.predict_proba(x=x, neighbors=[ids[0]])[0]
    without = [one for one in ids[0] if one != effect.neighbor]
    less = student.predict_proba(x=x, neighbors=[without])[0]
    assert effect.change == pytest.approx(probs.max() - less[probs.argmax()], abs=1e-5)


def test_nodes_without_neighbours_never_read_the_table(
    bundle: BundledStudent, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = features(run.inputs.unseen)
    alone = bundle.predict_logits(x=x)
    assert bundle.structure is not None
    monkeypatch.setattr(bundle.structure, "_table", np.full_like(bundle.structure._table, np.nan))
    for name in ("kernel", "_answer_new", "_answer_among"):  # made anew of this table
        bundle.__dict__.pop(name, None)
    np.testing.assert_array_equal(bundle.predict_logits(x=x), alone)
    unknown = [[UNKNOWN]] * len(x)
    np.testing.assert_array_equal(bundle.predict_logits(x=x, neighbors=unknown), alone)
    with pytest.raises(RequestError, match="not finite"):  # the others do
        bundle.predict_logits(x=x, neighbors=neighbor_ids(run, run.inputs.unseen))


@pytest.mark.parametrize("options", VARIANTS[:4] + OF_LINKX[:1] + OURS[:2])
@pytest.mark.parametrize("sparse", [False, True])
def test_a_batch_with_one_lone_node_is_answered_as_two_batches(
    tmp_path: Path, sparse: bool, options: dict[str, Any]
) -> None:
    run = trained(sparse=sparse, **options)
    student = load_bundle(run.save(tmp_path / "student"))
    known = run.inputs.observed
    x, ids = features(known)[:5], neighbor_ids(run, known)[:5]
    connected = [own or [int(run.view.nodes[0])] for own in ids]
    without_predictor = student.predict_logits(x=x, neighbors=connected)
    alone = student.predict_logits(x=x)
    mixed = student.predict_logits(x=x, neighbors=[*connected[:4], []])
    np.testing.assert_allclose(mixed[:4], without_predictor[:4], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mixed[4:], alone[4:], rtol=1e-5, atol=1e-6)
    one_by_one = [
        student.predict_logits(x=x[i : i + 1], neighbors=[connected[i]]) for i in range(5)
    ]
    np.testing.assert_allclose(np.vstack(one_by_one), without_predictor, rtol=1e-5, atol=1e-6)
    assert student.predict_logits(x=x[:0], neighbors=[]).shape == (0, 3)


def test_a_request_in_the_callers_own_form_needs_no_general_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not HAS_KERNELS:
        pytest.skip("built without a C compiler")
    run = trained(sparse=True, stage2_train="all")
    path = run.save(tmp_path / "student")
    plain = load_bundle(path)
    with monkeypatch.context() as patch:
        patch.setattr(loading, "HAS_KERNELS", False)
        plain.kernel  # noqa: B018
    student = load_bundle(path, max_neighbors=90)
    unseen = run.inputs.unseen
    ids = [[*own, own[0] if own else 0, UNKNOWN] for own in neighbor_ids(run, unseen)]
    ids[0] = [*range(len(run.view.nodes), 0, -2)][:90]  # longer, and falling
    x = features(unseen)
    rows, columns = map(np.ascontiguousarray, np.nonzero(x))
    entries = (np.searchsorted(rows, np.arange(len(x) + 1)), columns, x[rows, columns])
    for given in (x, entries):
        answer = student._answer_among(given, ids)
        assert answer is not None
        np.testing.assert_allclose(
            answer, plain.predict_logits(x=x, neighbors=ids), rtol=1e-5, atol=1e-5
        )
        as_arrays = [np.array(own, dtype=np.int64) for own in ids]
        np.testing.assert_array_equal(student._answer_among(given, as_arrays), answer)
        for wrong in (ids[1:], [[True]] * len(x), [["a"]] * len(x), [ids[0] * 2] * len(x), "ab"):
            assert student._answer_among(given, wrong) is None
        for wrong in ((1, 2), [(1, 2)] * len(x), [[2**70]] * len(x), [[1.0]] * len(x)):
            assert student._answer_among(given, wrong) is None


def test_sums_in_blocks(bundle: BundledStudent, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bundle.structure is not None
    edges = bundle.structure.edges_of_known(np.arange(bundle.store.num_nodes))
    sums, degree = bundle.structure.sums(edges)
    np.testing.assert_allclose(sums, bundle.structure.known_sums(np.arange(len(edges)))[0])
    monkeypatch.setattr("limbeck.runtime.structure.BLOCK_VALUES", 3 * 16)  # three rows at a time
    again, same = bundle.structure.sums(edges)
    np.testing.assert_allclose(again, sums, atol=1e-6)
    np.testing.assert_array_equal(same, degree)


@pytest.mark.parametrize("options", VARIANTS + OF_LINKX + OURS)
def test_live_edges_equal_recomputation(tmp_path: Path, options: dict[str, Any]) -> None:
    run = trained(**options)
    student = load_bundle(run.save(tmp_path / "student"))
    live, view = LiveStructure(student), run.view
    observed = view.nodes[: view.num_observed].tolist()
    node, others = observed[0], observed[5:12]
    before = live.predict_logits([node])
    np.testing.assert_array_equal(before, student.predict_logits([node]))
    place = view.nodes.argsort()
    rows = run.inputs.observed.neighbors.to_dense()
    own = rows[0].nonzero().flatten().tolist()
    for other in others:
        assert live.add(node, other) == (int(place[other]) not in own)
        assert not live.add(node, other)
    edges = torch.tensor([[int(place[other]) for other in others] + own, [0] * (7 + len(own))])
    changed = neighbor_rows(edges, 1, view.num_observed)
    x = run.inputs.observed.take(torch.tensor([0])).x
    with torch.no_grad():
        expected = run.student(NodeInputs(x, neighbors=changed))
    np.testing.assert_allclose(live.predict_logits([node]), expected, rtol=1e-5, atol=1e-5)
    # and back again, then to no edge at all
    for other in others:
        if int(place[other]) not in own:
            assert live.remove(node, other)
            assert not live.remove(node, other)
    np.testing.assert_allclose(live.predict_logits([node]), before, rtol=1e-5, atol=1e-5)
    for other in own:
        live.remove(node, int(view.nodes[other]))
    alone = student.predict_logits(x=x.numpy())
    np.testing.assert_allclose(live.predict_logits([node]), alone, rtol=1e-5, atol=1e-5)


def test_ignored_ids_are_counted(bundle: BundledStudent, run: Run) -> None:
    live = LiveStructure(bundle)
    node, other = run.view.nodes[:2].tolist()
    unseen = int(run.view.nodes[-1])  # known, but training did not observe it
    assert not live.add(node, UNKNOWN)
    assert not live.add(node, unseen)
    assert live.ignored([node, other]).tolist() == [2, 0]
    assert not live.remove(node, UNKNOWN)
    assert live.ignored([node]).tolist() == [1]
    with pytest.raises(RequestError, match="unknown node"):
        live.add(UNKNOWN, node)


@pytest.mark.parametrize("table", ["full", "landmark", "hashed", "of LINKX", "ours"])
def test_an_int8_table(tmp_path: Path, table: str) -> None:
    run = (
        trained(**{"of LINKX": OF_LINKX[0], "ours": OURS[2]}[table])
        if table in ("of LINKX", "ours")
        else trained(table=table, table_rows=20)
    )
    view, known = run.view, run._known_inputs()
    path = export_bundle(
        tmp_path / "small",
        student=run.student,
        inputs=known,
        graph_info=view.info,
        method="sa-mlp",
        student_name="samlp",
        hyper_parameters={},
        teacher={},
        setting="inductive",
        scores={},
        fingerprint="",
        counts={},
        columns=view.nodes[: view.num_observed],
        table_dtype="int8",
    )
    student = load_bundle(path)
    assert student.structure is not None
    entry = student.structure.entry
    assert entry.table_dtype == "int8"
    nodes = view.nodes[: view.num_observed].tolist()
    ours = student.predict_logits(nodes)
    theirs = run.answers.observed.numpy()
    assert 0 < np.abs(ours - theirs).max() < 0.05
    agree = student.predict(range(120)) == load_bundle(run.save(tmp_path / "x")).predict(range(120))
    assert entry.agreement == pytest.approx(agree.mean())
    assert f"{100 * entry.agreement:.2f} % of the known nodes" in (path / "README.md").read_text()
    # accumulated in float32, and the known nodes' answers are those of the stored rows
    new = student.predict_logits(
        x=features(run.inputs.observed), neighbors=neighbor_ids(run, run.inputs.observed)
    )
    np.testing.assert_allclose(new, ours, rtol=1e-5, atol=1e-5)


def test_requests_that_do_not_fit(bundle: BundledStudent, run: Run, tmp_path: Path) -> None:
    x = features(run.inputs.unseen)[:2]
    for neighbors, message in (
        ([[1]], "1 lists of neighbors for 2 rows"),
        ("ab", "neighbors is a text"),
        ([1, 2], "a list of ids for each node"),
        ([["a"], []], "list of integers"),
    ):
        with pytest.raises(RequestError, match=message):
            bundle.predict(x=x, neighbors=neighbors)
    with pytest.raises(RequestError, match="not positions"):
        bundle.predict(x=x, position=[[1.0], [2.0]])
    capped = load_bundle(run.save(tmp_path / "capped"), max_neighbors=2)
    capped.predict(x=x, neighbors=[[1, 2], []])
    with pytest.raises(RequestError, match=r"neighbors\[1\] names 3 nodes, .* at most 2") as raised:
        capped.predict(x=x, neighbors=[[1, 2], [1, 2, 3]])
    assert str(raised.value).count(". ") == 0
    with pytest.raises(OptionError, match="max_neighbors is 0"):
        load_bundle(tmp_path / "capped", max_neighbors=0)


def test_a_store_that_lacks_the_table(run: Run, tmp_path: Path) -> None:
    bundle = open_bundle(run.save(tmp_path / "student"))
    arrays = bundle.arrays()
    del arrays["table"]
    assert bundle.manifest.structure is not None
    with pytest.raises(BundleError, match="table.npy is missing"):
        StructureStore(arrays, bundle.manifest.structure, 120)


def test_latency_is_that_of_requests_with_neighbours(bundle: BundledStudent) -> None:
    figures = measure_latency(bundle, (1, 10), 0.05)
    assert figures["x"]["10"]["p50_us"] > figures["nodes"]["10"]["p50_us"] > 0


def test_predict_explains(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(run.save(tmp_path / "student"))
    node = str(int(run.view.nodes[0]))
    assert cli(["predict", path, "--nodes", node, "--explain"]) == 0
    assert "share of structure" in capsys.readouterr().out
    assert cli(["predict", path, "--nodes", node, "--explain", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert 0 <= printed[0]["structure_share"] <= 1
    assert {"node", "change"} == set(printed[0]["neighbors"][0])
