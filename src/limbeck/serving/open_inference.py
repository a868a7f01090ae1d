"""The Open Inference Protocol, version 2, over HTTP: requests read, answers written.

Source: https://github.com/kserve/open-inference-protocol and Triton's binary tensor extension.

Inputs, of which a request gives those that it has::

    nodes                 INT64 or BYTES [B]   ids of known nodes; or instead
    x                     FP32 [B, F]          features of new nodes; or instead
    x_indptr, x_indices   INT64 [B + 1], [n]   ┐ the same as CSR,
    x_values              FP32 [n]             ┘ values being ones if not given
    neighbors_indptr      INT64 [B + 1]        ┐ ids of the neighbours of new nodes, those of
    neighbors             INT64 or BYTES [m]   ┘ one node together
    position, bands       FP32 [B, d], [B, w]

Outputs: ``probabilities`` and ``logits`` FP32 ``[B, C]``, and ``labels`` BYTES ``[B]``; all of them
where a request names none.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from limbeck.runtime import Manifest
from limbeck.runtime.native import softmax
from limbeck.serving.failures import Refusal
from limbeck.serving.questions import Question, read_json

HEADER = "inference-header-content-length"
"""Length of the JSON that stands before binary tensors."""

DTYPES = {
    "BOOL": "?",
    "UINT8": "u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
OUTPUTS = ("probabilities", "logits", "labels")
INPUTS = (
    "nodes",
    "x",
    "x_indptr",
    "x_indices",
    "x_values",
    "neighbors",
    "neighbors_indptr",
    "position",
    "bands",
)


class Asked(NamedTuple):
    """A request of the protocol.

    Args:
        question: What is asked about.
        id: The request's own id, if it has one.
        outputs: Name of each output wanted, and whether as binary.
    """

    question: Question
    id: str | None
    outputs: dict[str, bool]


def read_request(body: bytes, header_length: str | None, max_batch: int) -> Asked:
    """Read a request.

    Args:
        body: Its body.
        header_length: Content of its header :data:`HEADER`, ``None`` without one.
        max_batch: How many nodes it may ask about.

    Raises:
        Refusal: It is no request of the protocol; the sentence names the field.
    """
    head, tail = body, b""
    if header_length is not None:
        if not (header_length.isascii() and header_length.isdigit()):
            raise Refusal(400, f"the header {HEADER} is {header_length!r}: it must be a number.")
        length = int(header_length)
        if length > len(body):
            raise Refusal(400, f"the header {HEADER} is {length}, and the body has {len(body)}.")
        head, tail = body[:length], body[length:]
    document = read_json(head)
    tensors = _tensors(document.get("inputs"), tail)
    ident = document.get("id")
    if ident is not None and not isinstance(ident, str):
        raise Refusal(422, "id must be a string.")
    return Asked(_question(tensors, max_batch), ident, _outputs(document))


def _tensors(inputs: Any, tail: bytes) -> dict[str, npt.NDArray[Any] | list[Any]]:
    if not isinstance(inputs, list) or not inputs:
        raise Refusal(422, "inputs must be a list of tensors.")
    tensors: dict[str, npt.NDArray[Any] | list[Any]] = {}
    start = 0
    for place, tensor in enumerate(inputs):
        if not isinstance(tensor, dict):
            raise Refusal(422, f"inputs[{place}] must be an object.")
        name = tensor.get("name")
        if not isinstance(name, str) or name not in INPUTS:
            raise Refusal(422, f"inputs[{place}].name must be one of {', '.join(INPUTS)}.")
        if name in tensors:
            raise Refusal(422, f"the input {name} is given twice.")
        shape = _shape(name, tensor.get("shape"))
        datatype = tensor.get("datatype")
        if not isinstance(datatype, str) or datatype not in (*DTYPES, "BYTES"):
            raise Refusal(
                422,
                f"the datatype of the input {name} must be BYTES or one of {', '.join(DTYPES)}.",
            )
        size = _parameters(tensor, f"the input {name}").get("binary_data_size")
        if size is None:
            tensors[name] = _from_json(name, tensor.get("data"), datatype, shape)
            continue
        if type(size) is not int or not 0 <= size <= len(tail) - start:
            raise Refusal(
                422,
                f"binary_data_size of the input {name} must be at most the {len(tail) - start} "
                "bytes that are left of the body.",
            )
        tensors[name] = _from_bytes(name, tail[start : start + size], datatype, shape)
        start += size
    if start != len(tail):
        raise Refusal(422, f"{len(tail) - start} bytes of the body belong to no input.")
    return tensors


def _shape(name: str, shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 2**31 for n in shape):
        raise Refusal(422, f"the shape of the input {name} must be a list of sizes.")
    if len(shape) > 2:
        raise Refusal(422, f"the input {name} has {len(shape)} dimensions, and at most 2 are read.")
    return tuple(shape)


def _parameters(holder: dict[str, Any], what: str) -> dict[str, Any]:
    parameters = holder.get("parameters", {})
    if not isinstance(parameters, dict):
        raise Refusal(422, f"the parameters of {what} must be an object.")
    return parameters


def _from_json(
    name: str, data: Any, datatype: str, shape: tuple[int, ...]
) -> npt.NDArray[Any] | list[Any]:
    if not isinstance(data, list):
        raise Refusal(422, f"the data of the input {name} must be a list.")
    if datatype == "BYTES":
        texts = list(itertools.chain.from_iterable(data)) if _is_nested(data) else data
        if not all(isinstance(text, str) for text in texts):
            raise Refusal(422, f"the data of the input {name} must be strings.")
        return _of_length(name, texts, shape)
    try:
        values = np.asarray(data)
        if values.size and (values.dtype.kind not in "biuf" or _loses(values, datatype)):
            raise TypeError
        with np.errstate(over="ignore"):  # becomes infinite, which the student refuses by name
            array = values.astype(DTYPES[datatype])
    except (ValueError, TypeError, OverflowError):
        raise Refusal(422, f"the data of the input {name} is not of type {datatype}.") from None
    return _in_shape(name, array, shape)


def _loses(values: npt.NDArray[Any], datatype: str) -> bool:
    """Whether numbers are not of a type: fractions as integers, or integers beyond its range."""
    wanted = np.dtype(DTYPES[datatype])
    if wanted.kind == "f":
        return False
    if values.dtype.kind == "f" or (wanted.kind == "b") != (values.dtype.kind == "b"):
        return True
    if wanted.kind == "b":
        return False
    bounds = np.iinfo(wanted)
    return bool(int(values.min()) < bounds.min or int(values.max()) > bounds.max)


def _from_bytes(
    name: str, data: bytes, datatype: str, shape: tuple[int, ...]
) -> npt.NDArray[Any] | list[Any]:
    if datatype == "BYTES":
        return _of_length(name, _texts(name, data), shape)
    dtype = np.dtype(DTYPES[datatype])
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise Refusal(
            422,
            f"the input {name} has {len(data)} bytes, and {math.prod(shape) * dtype.itemsize} for "
            f"the shape {list(shape)} of {datatype}.",
        )
    return np.frombuffer(data, dtype=dtype).reshape(shape)


def _texts(name: str, data: bytes) -> list[str]:
    """Strings, each after its length in four bytes."""
    texts, start = [], 0
    while start < len(data):
        if start + 4 > len(data):
            raise Refusal(422, f"the input {name} ends within the length of a string.")
        (length,) = struct.unpack_from("<I", data, start)
        start += 4
        if start + length > len(data):
            raise Refusal(422, f"the input {name} ends within a string.")
        try:
            texts.append(data[start : start + length].decode())
        except UnicodeDecodeError:
            raise Refusal(422, f"the input {name} holds a string that is not UTF-8.") from None
        start += length
    return texts


def _is_nested(data: list[Any]) -> bool:
    return bool(data) and all(isinstance(each, list) for each in data)


def _of_length(name: str, texts: list[Any], shape: tuple[int, ...]) -> list[Any]:
    if len(texts) != math.prod(shape):
        raise Refusal(
            422, f"the input {name} has {len(texts)} strings for the shape {list(shape)}."
        )
    return texts


def _in_shape(name: str, array: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    if array.size != math.prod(shape):
        raise Refusal(422, f"the input {name} has {array.size} values for the shape {list(shape)}.")
    return array.reshape(shape)


def _question(tensors: dict[str, Any], max_batch: int) -> Question:
    def vector(name: str) -> Any:
        given = tensors.get(name)
        return given.ravel().tolist() if isinstance(given, np.ndarray) else given

    x = tensors.get("x")
    if isinstance(x, list):
        raise Refusal(422, "the input x must hold numbers.")
    if "x_indptr" in tensors or "x_indices" in tensors or "x_values" in tensors:
        if "x_indptr" not in tensors or "x_indices" not in tensors or x is not None:
            raise Refusal(422, "sparse features are x_indptr and x_indices, and no x beside them.")
        names = ("x_indptr", "x_indices", "x_values")
        x = tuple(tensors[name] for name in names if name in tensors)
        if any(isinstance(part, list) for part in x):
            raise Refusal(422, "x_indptr, x_indices and x_values must hold numbers.")
    neighbors = None
    if "neighbors" in tensors or "neighbors_indptr" in tensors:
        neighbors = _lists(vector("neighbors"), tensors.get("neighbors_indptr"))
    for name in ("position", "bands"):
        if isinstance(tensors.get(name), list):
            raise Refusal(422, f"the input {name} must hold numbers.")
    return Question.checked(
        max_batch,
        nodes=vector("nodes"),
        x=x,
        neighbors=neighbors,
        position=tensors.get("position"),
        bands=tensors.get("bands"),
    )


def _lists(ids: list[Any] | None, ends: Any) -> list[list[Any]]:
    """The neighbours of each node, from the ids of all and where those of one begin."""
    if ids is None or not isinstance(ends, np.ndarray):
        raise Refusal(422, "neighbors and neighbors_indptr belong together: give both.")
    if ends.dtype.kind not in "iu" or ends.ndim != 1:
        raise Refusal(422, "neighbors_indptr must be a vector of integers.")
    cuts = ends.tolist()
    falls = any(a > b for a, b in itertools.pairwise(cuts))
    if not cuts or cuts[0] != 0 or cuts[-1] != len(ids) or falls:
        raise Refusal(
            422, f"neighbors_indptr must rise from 0 to the number of neighbors, {len(ids)}."
        )
    return [ids[a:b] for a, b in itertools.pairwise(cuts)]


def _outputs(document: dict[str, Any]) -> dict[str, bool]:
    default = _parameters(document, "the request").get("binary_data_output", False) is True
    wanted = document.get("outputs")
    if wanted is None or wanted == []:
        return dict.fromkeys(OUTPUTS, default)
    if not isinstance(wanted, list):
        raise Refusal(422, "outputs must be a list.")
    outputs = {}
    for place, output in enumerate(wanted):
        name = output.get("name") if isinstance(output, dict) else None
        if not isinstance(name, str) or name not in OUTPUTS:
            raise Refusal(422, f"outputs[{place}].name must be one of {', '.join(OUTPUTS)}.")
        binary = _parameters(output, f"the output {name}").get("binary_data", default)
        outputs[name] = binary is True
    return outputs


def write_answer(
    asked: Asked,
    logits: npt.NDArray[np.float32],
    manifest: Manifest,
    model: str,
    version: str,
) -> tuple[bytes, dict[str, str]]:
    """The answer to a request.

    Args:
        asked: The request.
        logits: The student's answer, float32 ``[B, C]``.
        manifest: What its bundle says of itself.
        model: Name of the model.
        version: Number of its version.

    Returns:
        The body, and the headers that it needs.
    """
    make: dict[str, Callable[[], Any]] = {
        # a copy: it is overwritten, and logits may be wanted, too
        "probabilities": lambda: softmax(logits.copy(), manifest.temperature),
        "logits": lambda: logits,
        "labels": lambda: [manifest.classes[i] for i in logits.argmax(axis=1).tolist()],
    }
    outputs: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for name, is_binary in asked.outputs.items():
        values = make[name]()
        tensor: dict[str, Any] = {
            "name": name,
            "datatype": "BYTES" if name == "labels" else "FP32",
            "shape": [len(logits)] if name == "labels" else list(logits.shape),
        }
        if is_binary:
            content = _bytes_of(values)
            tensor["parameters"] = {"binary_data_size": len(content)}
            tail.append(content)
        else:
            tensor["data"] = values if name == "labels" else values.ravel()
        outputs.append(tensor)
    document: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": outputs}
    if asked.id is not None:
        document["id"] = asked.id
    head = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    if not tail:
        return head, {"content-type": "application/json"}
    headers = {"content-type": "application/octet-stream", HEADER: str(len(head))}
    return b"".join([head, *tail]), headers


def _bytes_of(values: Any) -> bytes:
    if isinstance(values, np.ndarray):
        return values.astype("<f4", copy=False).tobytes()
    texts = [text.encode() for text in values]
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def metadata(
    manifest: Manifest, name: str, versions: list[str], *, has_text_ids: bool
) -> dict[str, Any]:
    """What the protocol tells of a model."""
    ids = "BYTES" if has_text_ids else "INT64"
    inputs: dict[str, tuple[str, list[int]]] = {
        "nodes": (ids, [-1]),
        "x": ("FP32", [-1, manifest.width]),
        "x_indptr": ("INT64", [-1]),
        "x_indices": ("INT64", [-1]),
        "x_values": ("FP32", [-1]),
    }
    if manifest.structure or manifest.neighborhood or manifest.position_width:
        inputs |= {"neighbors": (ids, [-1]), "neighbors_indptr": ("INT64", [-1])}
    if manifest.position_width:
        inputs["position"] = ("FP32", [-1, manifest.position_width])
    if manifest.bands is not None:
        inputs["bands"] = ("FP32", [-1, manifest.bands_width])
    outputs = {name: ("FP32", [-1, len(manifest.classes)]) for name in OUTPUTS[:2]}
    outputs |= {"labels": ("BYTES", [-1])}

    def listed(tensors: dict[str, tuple[str, list[int]]]) -> list[dict[str, Any]]:
        return [
            {"name": tensor, "datatype": datatype, "shape": shape}
            for tensor, (datatype, shape) in tensors.items()
        ]

    return {
        "name": name,
        "versions": versions,
        "platform": "limbeck",
        "inputs": listed(inputs),
        "outputs": listed(outputs),
    }
