"""Clients that others made, against a process of its own: tritonclient, schemathesis, noise."""

import json
import random
import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import schemathesis
import tritonclient.http as triton
from hypothesis import HealthCheck, given, settings
from server_process import Process
from tiny_bundle import BIAS, WEIGHT, X

FUZZED = 300


@pytest.mark.parametrize("binary", [False, True])
def test_tritonclient_works_unchanged(running: Process, binary: bool) -> None:
    client = triton.InferenceServerClient(running.address)
    headers = dict(running.headers)  # the client writes into it
    assert client.is_server_live(headers)
    assert client.is_server_ready(headers)
    assert client.is_model_ready("tiny", headers=headers)
    assert client.get_server_metadata(headers)["name"] == "limbeck"
    told = client.get_model_metadata("tiny", headers=headers)
    assert told["outputs"][0]["shape"] == [-1, 2]
    assert client.get_model_repository_index(headers)[0]["name"] == "tiny"
    x = np.array([[1, 2, 3], [0, 1, 0]], dtype=np.float32)
    given = triton.InferInput("x", [2, 3], "FP32")
    given.set_data_from_numpy(x, binary_data=binary)
    wanted = [
        triton.InferRequestedOutput(name, binary_data=binary) for name in ("logits", "labels")
    ]
    found = client.infer("tiny", [given], outputs=wanted, headers=headers, request_id="7")
    np.testing.assert_allclose(found.as_numpy("logits"), x @ WEIGHT + BIAS, rtol=1e-5)
    labels = found.as_numpy("labels").tolist()
    assert [t.decode() if isinstance(t, bytes) else t for t in labels] == ["art", "maths"]
    assert found.get_response()["id"] == "7"
    nodes = triton.InferInput("nodes", [2], "BYTES")
    nodes.set_data_from_numpy(np.array(["b", "ç"], dtype=object), binary_data=binary)
    found = client.infer("tiny", [nodes], headers=headers)
    np.testing.assert_allclose(found.as_numpy("logits"), X[1:3] @ WEIGHT + BIAS, rtol=1e-5)
    client.close()


def test_no_request_of_the_schema_is_a_fault(running: Process) -> None:
    document = httpx.get(f"{running.url}/openapi.json", headers=running.headers).json()
    schema = schemathesis.openapi.from_dict(document)

    for operation in schema.get_all_operations():
        ask_examples(operation.ok(), running)


def ask_examples(operation: Any, running: Process) -> None:
    @settings(
        max_examples=10,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(case=operation.as_strategy())
    def ask(case: Any) -> None:
        answer = case.call(base_url=running.url, headers=running.headers)
        told = f"{case.method} {case.path} {case.body!r}: {answer.text}"
        assert answer.status_code < 500, told
        if answer.status_code >= 400:
            assert isinstance(answer.json()["error"], str), told

    ask()


def test_noise_is_answered_with_a_sentence(running: Process) -> None:
    draw = random.Random(0)
    good = json.dumps(
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}]}
    ).encode()
    with httpx.Client(base_url=running.url, headers=running.headers) as client:
        for _ in range(FUZZED):
            body = bytearray(good)
            for _ in range(draw.randint(1, 8)):
                place = draw.randrange(len(body))
                kind = draw.randrange(3)
                if kind == 0:
                    body[place] = draw.randrange(256)
                elif kind == 1:
                    del body[place : place + draw.randint(1, 9)]
                else:
                    body[place:place] = draw.choice(
                        [b"-", b"9e99", b"[", b"}", b"null", b'"', b"0"]
                    )
                body = body or bytearray(b"x")
            headers = {}
            if draw.random() < 0.3:
                length = draw.choice(["0", "-1", "1e3", str(len(body)), str(len(body) - 3), "x"])
                headers = {"inference-header-content-length": length}
            route = draw.choice(["/v2/models/tiny/infer", "/predict", "/edges"])
            answer = client.post(route, content=bytes(body), headers=headers)
            assert answer.status_code < 500, (bytes(body), answer.text)
            if answer.status_code >= 400:
                assert len(answer.json()["error"].splitlines()) == 1


def test_sigterm_lets_requests_end_and_changes_stay(tiny: Path, tmp_path: Path) -> None:
    arguments = (str(tiny), "--overlay", str(tmp_path / "overlay"), "--workers", "2")
    process = Process(tmp_path, *arguments)
    acknowledged: list[str] = []
    other = []

    def write() -> None:
        with httpx.Client(base_url=process.url, headers=process.headers) as client:
            for i in range(10_000):
                body = {"nodes": [{"id": f"n{i}", "x": [i, 0, 0]}]}
                try:
                    answer = client.put("/nodes", json=body)
                except httpx.TransportError:
                    return
                if answer.status_code != 200:
                    other.append(answer.text)
                    return
                acknowledged.append(f"n{i}")

    writer = threading.Thread(target=write)
    writer.start()
    while len(acknowledged) < 10 and writer.is_alive():
        writer.join(0.01)
    process.stop()
    writer.join()
    assert other == []
    again = Process(tmp_path, *arguments)
    answer = httpx.post(f"{again.url}/predict", json={"nodes": acknowledged}, headers=again.headers)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["answers"]) == len(acknowledged)
    again.stop()
