"""What the server tells of its routes: an OpenAPI document, and a page made of it."""

from __future__ import annotations

from html import escape
from typing import Any

import limbeck
from limbeck.serving.open_inference import DTYPES, INPUTS, OUTPUTS
from limbeck.serving.settings import Settings

_ID = {
    "oneOf": [{"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}, {"type": "string"}]
}
_IDS = {"type": "array", "items": _ID}
_ROW = {"type": "array", "items": {"type": "number"}}
_INTEGERS = {"type": "array", "items": {"type": "integer"}}
_PAIRS = {"type": "array", "items": {**_IDS, "minItems": 2, "maxItems": 2}}
_MODEL = {"type": "string", "description": "The model; may be left out where there is one."}
_SPARSE_ROW = {
    "type": "object",
    "required": ["indices"],
    "additionalProperties": False,
    "properties": {"indices": _INTEGERS, "values": _ROW},
}
_SPARSE_ROWS = {
    "type": "object",
    "required": ["indptr", "indices"],
    "additionalProperties": False,
    "properties": {"indptr": _INTEGERS, "indices": _INTEGERS, "values": _ROW},
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string", "description": "One sentence."}},
}
_FAILURES = {
    400: "The body is not JSON.",
    401: "The token is missing or wrong.",
    403: "Only a server with a token does this.",
    404: "There is no such model or version.",
    409: "The server keeps no changes, or there is nothing to roll back to.",
    413: "The body is too long.",
    422: "A field is wrong; the sentence names it.",
    429: "Too many rows wait for this model.",
    503: "The server has too much to do, its disk is full, or another process writes.",
}


def openapi(settings: Settings) -> dict[str, Any]:
    """The OpenAPI 3.1 document of a server."""
    limits = settings.limits
    tensor = {
        "type": "object",
        "required": ["name", "datatype", "shape"],
        "properties": {
            "name": {"enum": list(INPUTS)},
            "datatype": {"enum": [*DTYPES, "BYTES"]},
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": 2},
            "data": {"type": "array"},
            "parameters": {"type": "object"},
        },
    }
    infer = {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "inputs": {"type": "array", "items": tensor, "minItems": 1},
            "outputs": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {
                        "name": {"enum": list(OUTPUTS)},
                        "parameters": {"type": "object"},
                    },
                },
            },
            "parameters": {"type": "object"},
        },
    }
    predict = _body(
        {
            "model": _MODEL,
            "version": {"type": "string"},
            "nodes": {**_IDS, "maxItems": limits.max_batch},
            "x": {"oneOf": [{"type": "array", "items": _ROW}, _SPARSE_ROWS]},
            "neighbors": {"type": "array", "items": {**_IDS, "maxItems": limits.max_neighbors}},
            "position": {"type": "array", "items": _ROW},
            "bands": {"type": "array", "items": _ROW},
            "top_k": {"type": "integer", "minimum": 1},
            "explain": {"type": "boolean"},
        },
        [],
    )
    node = {
        "type": "object",
        "required": ["id"],
        "additionalProperties": False,
        "properties": {
            "id": _ID,
            "x": {"oneOf": [_ROW, _SPARSE_ROW]},
            "neighbors": {**_IDS, "maxItems": limits.max_neighbors},
        },
    }
    nodes = {"type": "array", "items": node, "minItems": 1}
    upsert = _body({"model": _MODEL, "nodes": nodes}, ["nodes"])
    some = _body({"model": _MODEL, "nodes": {**_IDS, "minItems": 1}}, ["nodes"])
    flag = {"type": "boolean", "default": True}
    edges = _body({"model": _MODEL, "add": _PAIRS, "remove": _PAIRS, "undirected": flag}, [])
    path = {"type": ["string", "null"], "description": "The bundle's folder."}
    bundle = _body({"bundle": path}, ["bundle"])
    name, number = _parameter("model"), _parameter("version")
    v2, v2_version = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
    paths = {
        "/predict": {"post": _operation("Classes of known or new nodes", predict)},
        "/nodes": {
            "put": _operation("Add or change nodes; durable when answered", upsert),
            "delete": _operation("Delete nodes with their edges", some),
        },
        "/nodes/staleness": {"post": _operation("How far nodes moved from the bundle", some)},
        "/edges": {"post": _operation("Add edges or remove them", edges)},
        "/models": {"get": _operation("Models and their versions")},
        "/models/{model}/swap": {"post": _operation("Let another bundle answer", bundle, [name])},
        "/models/{model}/rollback": {
            "post": _operation("Return to the version before", None, [name])
        },
        "/models/{model}/shadow": {
            "post": _operation("Let a bundle answer beside, unseen", bundle, [name])
        },
        "/v2": {"get": _operation("Name, version and extensions")},
        "/v2/health/live": {"get": _operation("Whether the process runs")},
        "/v2/health/ready": {"get": _operation("Whether requests are taken")},
        "/v2/repository/index": {"post": _operation("Models, as the repository extension lists")},
        v2: {"get": _operation("Inputs and outputs", None, [name])},
        v2 + "/ready": {"get": _operation("Whether a model answers", None, [name])},
        v2 + "/infer": {"post": _operation("Answer tensors", infer, [name])},
        v2_version: {"get": _operation("Inputs and outputs", None, [name, number])},
        v2_version + "/ready": {"get": _operation("Whether it answers", None, [name, number])},
        v2_version + "/infer": {"post": _operation("Answer tensors", infer, [name, number])},
        "/metrics": {"get": _operation("Metrics as Prometheus reads them", kind="text/plain")},
    }
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "Limbeck",
            "version": limbeck.__version__,
            "description": "Classes of the nodes of a graph, from distilled students. The /v2 "
            "routes speak the Open Inference Protocol.",
        },
        "paths": paths,
    }
    if settings.token is not None:
        document["components"] = {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}
        }
        document["security"] = [{"token": []}]
    return document


def openapi_page(document: dict[str, Any]) -> str:
    """The document as a page that needs nothing from elsewhere."""
    rows = "".join(
        f"<tr><td><code>{method.upper()}</code></td><td><code>{escape(path)}</code></td>"
        f"<td>{escape(operation['summary'])}</td></tr>"
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    )
    info = document["info"]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>Limbeck</title>"
        "<style>body{font:16px sans-serif;max-width:56em;margin:2em auto;padding:0 1em}"
        "td{padding:.3em 1em .3em 0;vertical-align:top}</style>"
        f"<h1>Limbeck {escape(info['version'])}</h1><p>{escape(info['description'])}</p>"
        f"<table>{rows}</table><p><a href=openapi.json>openapi.json</a></p></html>"
    )


def _body(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": required,
        "additionalProperties": False,
        "properties": properties,
    }


def _parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _operation(
    summary: str,
    body: dict[str, Any] | None = None,
    parameters: list[dict[str, Any]] | None = None,
    kind: str = "application/json",
) -> dict[str, Any]:
    failure = {"content": {"application/json": {"schema": _ERROR}}}
    operation: dict[str, Any] = {
        "summary": summary,
        "responses": {
            "200": {"description": "Done.", "content": {kind: {}}},
            **{str(status): {"description": text, **failure} for status, text in _FAILURES.items()},
        },
    }
    if parameters:
        operation["parameters"] = parameters
    if body is not None:
        content = {"application/json": {"schema": body}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation
