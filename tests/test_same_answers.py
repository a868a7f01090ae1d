"""Each student answers the same in torch, from its bundle, over HTTP and in bulk."""

import copy
import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from onnx import numpy_helper

import limbeck
from limbeck.evaluation.distill import distill
from limbeck.evaluation.protocol import Run
from limbeck.graphs.view import make_view
from limbeck.scoring import Columns, score_tables
from limbeck.teachers import fit_teacher
from limbeck.testing import small_graph

sys.path.insert(0, str(Path(__file__).parent / "serving"))

from server_process import Process

Array = npt.NDArray[Any]

CLOSE: dict[str, float] = {"rtol": 0, "atol": 1e-5}
SMALL: dict[str, Any] = {"hidden_channels": 16, "max_epochs": 3}
STUDENTS: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "mlp": ("glnn", False, SMALL),
    "mlp-of-words": ("glnn", True, SMALL),
    "positions": ("nosmog", False, SMALL),
    "rbm": ("rbm", False, SMALL),
    "rbm-of-words": ("rbm", True, SMALL),
    "moe": ("moe", False, SMALL),
    "ensemble": ("ensemble", False, SMALL),
    "sa-mlp": ("sa-mlp", False, SMALL),
    "linkx": ("linkx", False, SMALL),
    "linkx-of-words": ("linkx", True, SMALL),
    "ours": ("limbeck", False, {**SMALL, "trust": "always", "hear": "always"}),
    "ours-of-words": ("limbeck", True, {**SMALL, "trust": "always", "hear": "always"}),
    "fmlp-o": ("fmlp-o", False, {"max_epochs": 3}),
    "fmlp-s": ("fmlp-s", False, {"max_epochs": 3}),
    "fmlp-x": ("fmlp-x", False, {"max_epochs": 3}),
    "gcn": ("kd", False, {**SMALL, "student": "gcn"}),
    "gat": ("kd", False, {**SMALL, "student": "gat"}),
    "sage": ("kd", True, {**SMALL, "student": "sage"}),
    "gcnii": ("kd", False, {**SMALL, "student": "gcnii"}),
}
"""Name: method, whether features are sparse, options."""


@dataclass
class Asked:
    """New nodes as a bundle is asked about them, and torch's answers."""

    inputs: dict[str, Any]
    logits: Array


@dataclass
class Trained:
    """A student, its bundle and torch's answers for the nodes that the bundle knows."""

    run: Run
    bundle: Path
    known: Array

    @property
    def alone(self) -> Asked:
        """Unseen nodes by their features."""
        x = self.run.inputs.isolated.x.to_dense().numpy()
        return Asked({"x": x}, self.run.answers.isolated.numpy())

    @property
    def whole(self) -> Asked:
        """Unseen nodes by all that their student reads of them, but of a GNN."""
        unseen, asked = self.run.inputs.unseen, self.alone
        if unseen.neighbors is not None:
            ends = unseen.neighbors.crow_indices().tolist()
            ids = self.run.view.nodes[unseen.neighbors.col_indices()].tolist()
            asked.inputs["neighbors"] = [ids[a:b] for a, b in itertools.pairwise(ends)]
        for name in ("position", "bands"):
            if (rows := getattr(unseen, name)) is not None:
                asked.inputs[name] = rows.numpy()
        answers = self.run.answers
        asked.logits = (answers.isolated if unseen.graph else answers.unseen).numpy()
        return asked


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    folder = tmp_path_factory.mktemp("students")
    found = {}
    for sparse in (False, True):
        view = make_view(small_graph(sparse=sparse), "inductive", 0)
        teacher = fit_teacher(view, "gcn", 0, max_epochs=3)
        for name, (method, wants_sparse, options) in STUDENTS.items():
            if wants_sparse is not sparse:
                continue
            run = distill(view, teacher, method, 0, **options)
            answers = torch.cat([run.answers.observed, run.answers.unseen])
            known = answers[view.nodes.argsort()].numpy()
            found[name] = Trained(run, run.save(folder / name), known)
    return found


@pytest.fixture(scope="module")
def server(
    trained: dict[str, Trained], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Process]:
    bundles = [str(each.bundle) for each in trained.values()]
    process = Process(tmp_path_factory.mktemp("served"), *bundles)
    yield process
    process.stop()


def tensors(inputs: dict[str, Any]) -> dict[str, Array]:
    """Inputs as the protocol has them."""
    found = {name: np.asarray(value) for name, value in inputs.items() if name != "neighbors"}
    if "neighbors" in inputs:
        lists = inputs["neighbors"]
        found["neighbors"] = np.array([node for ids in lists for node in ids], dtype=np.int64)
        found["neighbors_indptr"] = np.cumsum([0, *map(len, lists)])
    return found


def over_http(server: Process, model: str, inputs: dict[str, Any], *, binary: bool) -> Array:
    """Logits from ``limbeck serve``."""
    given, tail = [], b""
    for name, array in tensors(inputs).items():
        datatype = {"f": "FP32", "i": "INT64"}[array.dtype.kind]
        tensor = {"name": name, "datatype": datatype, "shape": list(array.shape)}
        if binary:
            tensor["parameters"] = {"binary_data_size": array.nbytes}
            tail += array.tobytes()
        else:
            tensor["data"] = array.ravel().tolist()
        given.append(tensor)
    wanted = [{"name": "logits", "parameters": {"binary_data": binary}}]
    head = json.dumps({"inputs": given, "outputs": wanted}).encode()
    headers = dict(server.headers)
    if binary:
        headers["inference-header-content-length"] = str(len(head))
    answer = httpx.post(
        f"{server.url}/v2/models/{model}/infer", content=head + tail, headers=headers, timeout=60
    )
    assert answer.status_code == 200, answer.text
    if not binary:
        (output,) = answer.json()["outputs"]
        return np.array(output["data"], dtype=np.float32).reshape(output["shape"])
    length = int(answer.headers["inference-header-content-length"])
    (output,) = json.loads(answer.content[:length])["outputs"]
    return np.frombuffer(answer.content[length:], dtype=np.float32).reshape(output["shape"])


def in_bulk(bundle: Path, folder: Path, inputs: dict[str, Any]) -> Array:
    """Logits from ``limbeck score``."""
    table, columns = {}, {"nodes": "nodes"} if "nodes" in inputs else {"features": "x"}
    for name, value in inputs.items():
        table[name] = value if name == "nodes" else [list(row) for row in value]
    if "neighbors" in inputs:
        columns["neighbors"] = "neighbors"
    types = {"nodes": pa.int64(), "x": pa.list_(pa.float32()), "neighbors": pa.list_(pa.int64())}
    schema = pa.schema([(name, types[name]) for name in table])
    pq.write_table(pa.table(table, schema=schema), folder / "in.parquet")
    out = folder / "out.parquet"
    score_tables(bundle, [folder / "in.parquet"], out, Columns(**columns, logits=True))
    return np.array(pq.read_table(out)["logits"].to_pylist(), dtype=np.float32)


@pytest.mark.parametrize("name", STUDENTS)
def test_known_nodes(
    trained: dict[str, Trained], server: Process, tmp_path: Path, name: str
) -> None:
    each = trained[name]
    inputs = {"nodes": list(range(len(each.known)))}
    student = limbeck.load(each.bundle)
    np.testing.assert_allclose(student.predict_logits(**inputs), each.known, **CLOSE)
    for binary in (False, True):
        found = over_http(server, name, inputs, binary=binary)
        np.testing.assert_allclose(found, each.known, **CLOSE)
    np.testing.assert_allclose(in_bulk(each.bundle, tmp_path, inputs), each.known, **CLOSE)


@pytest.mark.parametrize("name", STUDENTS)
def test_new_nodes(trained: dict[str, Trained], server: Process, tmp_path: Path, name: str) -> None:
    each = trained[name]
    student = limbeck.load(each.bundle)
    for asked in (each.alone, each.whole):
        inputs = asked.inputs
        np.testing.assert_allclose(student.predict_logits(**inputs), asked.logits, **CLOSE)
        for binary in (False, True):
            found = over_http(server, name, inputs, binary=binary)
            np.testing.assert_allclose(found, asked.logits, **CLOSE)
        if inputs.keys() <= {"x", "neighbors"}:  # what bulk scoring reads
            found = in_bulk(each.bundle, tmp_path, inputs)
            np.testing.assert_allclose(found, asked.logits, **CLOSE)


def test_every_student_is_here() -> None:
    """A student that is added to the package is added above."""
    folder = Path(limbeck.__file__).parent / "students"
    no_students = {"__init__", "inputs", "structure_tables", "experts"}
    files = {path.stem for path in folder.glob("*.py")} - no_students
    known = {"mlp", "rbm", "moe", "ensemble", "sa_mlp", "linkx", "neighbor_mlp", "fmlp", "gnn"}
    assert files == known


def computed_with(bundle: Path) -> dict[str, Array]:
    """All numbers of a bundle that an answer is computed with; features are the user's."""
    found = {}
    for file in bundle.glob("*.onnx"):
        for tensor in onnx.load(file).graph.initializer:
            found[f"{file.name}: {tensor.name}"] = numpy_helper.to_array(tensor)
    for file in (bundle / "store").glob("*.npy"):
        if file.stem not in ("x", "x_values", "ids"):
            found[file.name] = np.load(file)
    return {name: array for name, array in found.items() if array.dtype.kind == "f"}


@pytest.mark.parametrize("name", STUDENTS)
def test_bundles_hold_no_subnormal_numbers(
    trained: dict[str, Trained], name: str, tmp_path: Path
) -> None:
    """A few of them, such as weight decay leaves behind, make a student many times as slow."""
    student = copy.deepcopy(trained[name].run.student)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.flatten()[1::3] = 1e-40
            assert parameter.numel() == 1 or parameter.flatten()[1] != 0
    bundle = replace(trained[name].run, student=student).save(tmp_path / name)
    arrays = computed_with(bundle)
    assert arrays
    for array_name, array in arrays.items():
        small = np.abs(array[array != 0]) < np.finfo(array.dtype).smallest_normal
        assert not small.any(), array_name
