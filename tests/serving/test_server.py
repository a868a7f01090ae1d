"""The server's routes: answers, changes, versions, limits."""

import json
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient
from tiny_bundle import BIAS, WEIGHT, X, linear_model, manifest_fields, tiny_parts

import limbeck
from limbeck.errors import OptionError
from limbeck.runtime.bundle import write_bundle
from limbeck.serving import Limits, named_bundles

CLOSE: dict[str, float] = {"rtol": 1e-5, "atol": 1e-5}
TOKEN = {"authorization": "Bearer secret"}


def infer(client: TestClient, *inputs: dict[str, Any], **fields: Any) -> dict[str, np.ndarray]:
    answer = client.post("/v2/models/tiny/infer", json={"inputs": list(inputs), **fields})
    assert answer.status_code == 200, answer.text
    return {o["name"]: np.array(o["data"]).reshape(o["shape"]) for o in answer.json()["outputs"]}


def tensor(name: str, datatype: str, data: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": list(np.shape(data)), "data": data}


def test_json_and_binary_are_what_the_runtime_answers(client: TestClient, tiny: Path) -> None:
    student = limbeck.load(tiny)
    x = np.array([[1, 2, 3], [0.5, 0, -1]], dtype=np.float32)
    found = infer(client, tensor("x", "FP32", x.tolist()))
    np.testing.assert_allclose(found["logits"], student.predict_logits(x=x), **CLOSE)
    np.testing.assert_allclose(found["probabilities"], student.predict_proba(x=x), **CLOSE)
    assert found["labels"].tolist() == student.predict(x=x).tolist()
    # the same rows as CSR, and as binary
    sparse = infer(
        client,
        tensor("x_indptr", "INT64", [0, 3, 5]),
        tensor("x_indices", "INT64", [0, 1, 2, 0, 2]),
        tensor("x_values", "FP32", [1, 2, 3, 0.5, -1]),
    )
    np.testing.assert_allclose(sparse["logits"], found["logits"], **CLOSE)
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "x",
                    "datatype": "FP32",
                    "shape": [2, 3],
                    "parameters": {"binary_data_size": x.nbytes},
                }
            ],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    answer = client.post(
        "/v2/models/tiny/versions/1/infer",
        content=head + x.tobytes(),
        headers={"inference-header-content-length": str(len(head))},
    )
    length = int(answer.headers["inference-header-content-length"])
    told = json.loads(answer.content[:length])
    sizes = [output["parameters"]["binary_data_size"] for output in told["outputs"]]
    assert length + sum(sizes) == len(answer.content)
    probabilities = np.frombuffer(answer.content, "<f4", offset=length, count=4).reshape(2, 2)
    np.testing.assert_allclose(probabilities, found["probabilities"], **CLOSE)
    labels = answer.content[-sizes[2] :]
    (first,) = struct.unpack_from("<I", labels)
    assert labels[4 : 4 + first].decode() == found["labels"][0]


def test_known_nodes_by_their_ids(client: TestClient) -> None:
    found = infer(client, tensor("nodes", "BYTES", ["b", "ç", ""]))
    np.testing.assert_allclose(found["logits"], X[1:] @ WEIGHT + BIAS, **CLOSE)
    answer = client.post("/predict", json={"nodes": ["b"], "top_k": 2}).json()["answers"]
    assert [c["class"] for c in answer[0]["classes"]] == ["maths", "art"]
    assert sum(c["probability"] for c in answer[0]["classes"]) == pytest.approx(1)


def test_requests_that_arrive_together_are_answered_apart(
    serve: Callable[..., TestClient], tiny: Path
) -> None:
    client = serve(limits={"window_us": 20_000, "max_batch": 8})
    student = limbeck.load(tiny)

    def ask(i: int) -> tuple[int, Any]:
        x = [[i, 1, 0]] if i % 5 else [[3e38, 0, 3e38]]
        answer = client.post("/predict", json={"x": x})
        return answer.status_code, answer.json()

    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(ask, range(30)))
    for i, (status, answer) in enumerate(answers):
        if i % 5 == 0:  # its error is its own
            assert status == 422
            assert "x[0] holds numbers so large" in answer["error"]
        else:
            best = answer["answers"][0]["classes"][0]
            assert best["class"] == student.predict(x=[[i, 1, 0]])[0]
            assert best["probability"] == pytest.approx(
                float(student.predict_proba(x=[[i, 1, 0]]).max()), abs=1e-5
            )


def test_nodes_come_change_and_go(client: TestClient) -> None:
    nodes = [{"id": "new", "x": [1, 2, 3]}, {"id": "a", "x": [0, 0, 1]}]
    assert client.put("/nodes", json={"nodes": nodes}).json()["count"] == 2
    found = infer(client, tensor("nodes", "BYTES", ["new", "a"]))
    expected = np.array([[1, 2, 3], [0, 0, 1]]) @ WEIGHT + BIAS
    np.testing.assert_allclose(found["logits"], expected, **CLOSE)
    sparse = [{"id": "thin", "x": {"indices": [1], "values": [4]}}]
    assert client.put("/nodes", json={"nodes": sparse}).status_code == 200
    stale = client.post("/nodes/staleness", json={"nodes": ["new", "b"]}).json()["nodes"]
    assert [each["is_new"] for each in stale] == [True, False]
    assert client.request("DELETE", "/nodes", json={"nodes": ["new"]}).status_code == 200
    answer = client.post("/predict", json={"nodes": ["new"]})
    assert answer.status_code == 422
    assert answer.json()["error"] == "the node 'new' was deleted."
    page = client.get("/metrics").text
    assert 'limbeck_changes_total{model="tiny"} 4.0' in page
    assert 'limbeck_overlay{model="tiny",what="deleted"} 1.0' in page


def test_a_server_without_overlay_keeps_no_changes(serve: Callable[..., TestClient]) -> None:
    client = serve(overlay=None)
    answer = client.put("/nodes", json={"nodes": [{"id": "new", "x": [1, 2, 3]}]})
    assert answer.status_code == 409


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b"{", 400, "not valid JSON"),
        (b"[]", 422, "must be a JSON object"),
        ({"node": ["a"]}, 422, "unknown field 'node': did you mean 'nodes'?"),
        ({}, 422, "give either nodes or x"),
        ({"nodes": ["a"], "x": [[1, 2, 3]]}, 422, "both was given"),
        ({"nodes": "a"}, 422, "nodes must be a list"),
        ({"nodes": ["nobody"]}, 422, "unknown node 'nobody'"),
        ({"nodes": [1]}, 422, "strings"),
        ({"x": [[1, 2]]}, 422, "x has the shape"),
        ({"x": [["1", 2, 3]]}, 422, "x must hold numbers"),
        ({"x": [[1, 2], [3]]}, 422, "x is not an array"),
        ({"x": {"indptr": [0, 1], "indices": [3]}}, 422, "column 3"),
        ({"x": [[1, 2, 3]], "neighbors": [["a"]]}, 422, "neighbors"),
        ({"x": [[1, 2, 3]], "neighbors": [[], []]}, 422, "2 lists of neighbors for 1 rows"),
        ({"nodes": ["a"], "top_k": 0}, 422, "top_k must be"),
        ({"nodes": ["a"], "explain": 1}, 422, "explain must be true or false"),
        ({"nodes": ["a"], "explain": True}, 422, "nothing to explain"),
        ({"nodes": ["a"], "model": "tinny"}, 404, "did you mean 'tiny'?"),
        ({"nodes": ["a"], "version": "7"}, 404, "no version '7'"),
        ({"nodes": ["a"] * 11}, 422, "a request may name 10"),
    ],
)
def test_bad_requests_are_one_sentence(
    serve: Callable[..., TestClient], body: Any, status: int, sentence: str
) -> None:
    client = serve(limits={"max_batch": 10})
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.post("/predict", content=content)
    assert answer.status_code == status, answer.text
    assert sentence in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"inputs": []}, "inputs must be a list"),
        ({"name": "y"}, "inputs[0].name must be one of"),
        ({"datatype": "FP8"}, "the datatype of the input x"),
        ({"datatype": ["FP32"]}, "the datatype of the input x"),
        ({"shape": [1, 4]}, "has 3 values for the shape [1, 4]"),
        ({"shape": [-1, 3]}, "the shape of the input x"),
        ({"shape": [1, 1, 3]}, "3 dimensions"),
        ({"data": None}, "the data of the input x must be a list"),
        ({"datatype": "INT64", "data": [0.5, 1, 2]}, "is not of type INT64"),
        ({"datatype": "UINT8", "data": [1, 2, 300]}, "is not of type UINT8"),
        ({"datatype": "BYTES", "data": ["a", "b", "c"]}, "x must hold numbers"),
        ({"parameters": {"binary_data_size": 12}}, "binary_data_size of the input x"),
        ({"outputs": [{"name": "class"}]}, "outputs[0].name must be one of"),
        ({"id": 1}, "id must be a string"),
    ],
)
def test_bad_tensors_are_named(client: TestClient, changes: dict[str, Any], sentence: str) -> None:
    own = {key: changes[key] for key in changes if key not in ("inputs", "outputs", "id")}
    one = {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]} | own
    others = {key: changes[key] for key in changes if key in ("inputs", "outputs", "id")}
    answer = client.post("/v2/models/tiny/infer", json={"inputs": [one]} | others)
    assert answer.status_code == 422, answer.text
    assert sentence in answer.json()["error"]


def test_bodies_that_are_too_long_and_paths_that_are_not_there(
    serve: Callable[..., TestClient],
) -> None:
    client = serve(limits={"max_body": 100})
    assert client.post("/predict", content=b" " * 101).status_code == 413
    parts = (b" " * 60 for _ in range(2))  # of a length that is not told
    assert client.post("/predict", content=parts).status_code == 413
    assert client.get("/nowhere").status_code == 404
    answer = client.get("/predict")
    assert answer.status_code == 405
    assert answer.json()["error"] == "GET /predict: Method Not Allowed."


def test_the_token_guards_all_but_health(serve: Callable[..., TestClient]) -> None:
    client = serve(token="secret")
    assert client.get("/v2/health/ready").status_code == 200
    assert client.get("/models").status_code == 401
    wrong = {"authorization": "Bearer secret2"}
    assert client.get("/models", headers=wrong).status_code == 401
    assert client.get("/models", headers=TOKEN).status_code == 200
    # without a token nobody may name folders of the server
    swap = serve().post("/models/tiny/swap", json={"bundle": "/"})
    assert swap.status_code == 403


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Another version of the tiny bundle, that prefers art more."""
    bias = BIAS + np.array([1, 0], dtype=np.float32)
    parts = tiny_parts() | {"model": linear_model(bias=bias)}
    return write_bundle(tmp_path / "other", **parts)


def test_a_swap_fails_no_request_and_can_be_undone(
    serve: Callable[..., TestClient], other: Path
) -> None:
    client = serve(token="secret")
    x = {"x": [[0, 0, 0]]}

    def ask(_: int) -> tuple[str, float]:
        answer = client.post("/predict", json=x, headers=TOKEN)
        assert answer.status_code == 200, answer.text
        found = answer.json()
        return found["version"], found["answers"][0]["classes"][0]["probability"]

    with ThreadPoolExecutor(4) as pool:
        asked = pool.map(ask, range(100))
        swap = client.post("/models/tiny/swap", json={"bundle": str(other)}, headers=TOKEN)
        answers = set(asked)
    assert swap.json()["active"] == "2"
    by_version = dict(answers)
    assert len(by_version) == len(answers)  # each version answers as itself
    assert ask(0)[0] == "2"
    back = client.post("/models/tiny/rollback", headers=TOKEN).json()
    assert (back["active"], back["previous"]) == ("1", "2")
    assert ask(0)[0] == "1"
    both = client.get("/v2/models/tiny", headers=TOKEN).json()
    assert both["versions"] == ["1", "2"]
    old = client.post("/predict", json={**x, "version": "2"}, headers=TOKEN)
    assert old.json()["version"] == "2"


def test_bundles_that_cannot_answer_are_not_swapped_in(
    serve: Callable[..., TestClient], tmp_path: Path
) -> None:
    client = serve(token="secret")
    more = manifest_fields() | {"classes": ["art", "music"]}
    others = write_bundle(tmp_path / "music", **(tiny_parts() | {"manifest": more}))
    for body in ({"bundle": str(tmp_path)}, {"bundle": str(others)}, {"bundle": 1}, {}):
        answer = client.post("/models/tiny/swap", json=body, headers=TOKEN)
        assert answer.status_code == 422, answer.text
    assert client.post("/models/tiny/rollback", headers=TOKEN).status_code == 409
    assert client.post("/models/none/rollback", headers=TOKEN).status_code == 404
    assert client.get("/models", headers=TOKEN).json()["models"][0]["active"] == "1"


def test_a_shadow_is_compared_and_not_seen(serve: Callable[..., TestClient], other: Path) -> None:
    client = serve(token="secret")
    client.post("/models/tiny/shadow", json={"bundle": str(other)}, headers=TOKEN)
    body = {"x": [[-0.9, 0, 0], [5, 0, 0]]}  # the first is maths by 0.4 and art with the shadow
    answer = client.post("/predict", json=body, headers=TOKEN).json()
    assert answer["version"] == "1"
    assert [a["classes"][0]["class"] for a in answer["answers"]] == ["maths", "art"]
    for _ in range(100):
        page = client.get("/metrics", headers=TOKEN).text
        if 'limbeck_shadow_nodes_total{model="tiny"} 2.0' in page:
            break
    assert 'limbeck_shadow_disagreements_total{model="tiny"} 1.0' in page
    client.post("/models/tiny/shadow", json={"bundle": None}, headers=TOKEN)
    assert client.get("/models", headers=TOKEN).json()["models"][0]["shadow"] is None


def test_pages(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    assert all(path in client.get("/").text for path in document["paths"])
    assert client.post("/v2/repository/index").json()[0]["state"] == "READY"
    told = client.get("/v2/models/tiny").json()
    assert {"name": "x", "datatype": "FP32", "shape": [-1, 3]} in told["inputs"]


def test_names_of_bundles() -> None:
    assert list(named_bundles(("a/b/cora", "best=a/b/cora"))) == ["cora", "best"]
    for given in ((), ("a/x", "b/x"), ("=x",), ("a b=x",)):
        with pytest.raises(OptionError):
            named_bundles(given)
    with pytest.raises(OptionError, match="max_batch is 0"):
        Limits(max_batch=0)
