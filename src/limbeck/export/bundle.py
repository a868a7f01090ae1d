"""From a trained student to its bundle."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

import limbeck
from limbeck.errors import OptionError
from limbeck.export.card import make_card
from limbeck.export.onnx import (
    PROBE_ROWS,
    Scaling,
    check_scaling,
    dense_rows,
    input_widths,
    known_logits,
    on_cpu,
    routing_entries,
    to_onnx,
    to_sparse_onnx,
)
from limbeck.export.structure import TableDtype, export_structure
from limbeck.graphs.info import GraphInfo
from limbeck.graphs.sparse import is_csr
from limbeck.runtime.bundle import (
    CARD,
    FORMAT,
    MANIFEST,
    MODEL,
    SPARSE_MODEL,
    check_target,
    parse_manifest,
    write_bundle,
)
from limbeck.runtime.kernel import SparseModel
from limbeck.runtime.predictor import BundledStudent, make_kernel
from limbeck.runtime.rows import CsrRows, Rows
from limbeck.runtime.store import NodeStore, store_arrays
from limbeck.runtime.structure import StructureStore
from limbeck.students.inputs import InputSpec, NodeInputs
from limbeck.students.sa_mlp import SAMLP

Latency = Mapping[str, Any] | Callable[[BundledStudent], Mapping[str, Any]]


def export_bundle(
    path: str | os.PathLike[str],
    *,
    student: torch.nn.Module,
    inputs: NodeInputs,
    graph_info: GraphInfo,
    method: str,
    student_name: str,
    hyper_parameters: Mapping[str, Any],
    teacher: Mapping[str, Any],
    setting: str,
    scores: Mapping[str, Any],
    fingerprint: str,
    counts: Mapping[str, int],
    temperature: float = 1.0,
    scaling: Scaling | None = None,
    latency: Latency | None = None,
    observed: torch.Tensor | None = None,
    columns: torch.Tensor | None = None,
    table_dtype: TableDtype = "float32",
) -> Path:
    """Write the bundle of a trained student, whole or not at all.

    Args:
        path: The folder to make; a bundle that is there is replaced.
        student: The student; it is left as it is.
        inputs: Raw (unscaled) inputs of all ``N`` known nodes, in the order of
            ``graph_info.node_ids``.
        graph_info: The graph's facts: classes, ids, encoder.
        method: Name of the distillation method.
        student_name: Name of the student's network.
        hyper_parameters: Hyper-parameters of method and student, as JSON values.
        teacher: What the student was distilled from, as JSON values.
        setting: What of the graph training saw.
        scores: Measured scores, by ``"teacher"`` and ``"student"``.
        fingerprint: Digest of the graph.
        counts: Sizes of the graph beside its number of nodes, such as ``{"edges": 10556}``.
        temperature: Number that logits are divided by before the softmax.
        scaling: Mean and deviation that features were standardised with in training, ``[F]``
            each; ``None`` for none.
        latency: Measured latency, or what measures it on the finished student before it is
            written, such as :func:`limbeck.runtime.measure_latency`; ``None`` leaves it out.
        observed: Which known nodes training observed, bool ``[N]``; all by default. A new node
            takes its position from such neighbours.
        columns: For a student that reads neighbours: the known node that each column of
            ``inputs.neighbors`` stands for, int64 ``[observed]``.
        table_dtype: How the rows of its table are stored: ``"float32"``, or ``"int8"`` with one
            factor per row. The card says how many known nodes that leaves in their class.

    Returns:
        The folder.

    Raises:
        OptionError: The student reads something else than ``x``, ``scaling`` or a field does not
            fit, or nodes, ids and classes differ in number.
        OutputError: The folder cannot be written; nothing is left behind.
        ParityError: ONNX Runtime answers differently from torch.
    """
    check_target(path)  # before the work, not only after it
    inputs = on_cpu(inputs)
    specs = _input_specs(student)
    check_scaling(scaling, specs[0].width)
    _check_inputs(graph_info, inputs, specs[0].width)
    rows = _raw_rows(inputs)
    structure = None
    if isinstance(student, SAMLP):
        if columns is None:
            raise OptionError("the student reads neighbors: say which node each column stands for.")
        structure = export_structure(student, inputs, rows, columns.cpu(), scaling, table_dtype)
        logits, model, sparse = structure.logits, structure.model, structure.sparse
    else:
        logits = known_logits(student, inputs, scaling)
        probe = _probe(inputs)
        model = to_onnx(student, scaling, probe=probe)
        sparse = to_sparse_onnx(student, scaling, probe=probe) if is_csr(inputs.x) else None
    _check_classes(graph_info, logits)
    fields: dict[str, Any] = {
        "limbeck": limbeck.__version__,
        "method": method,
        "student": student_name,
        "classes": list(graph_info.class_names),
        "inputs": [{"name": spec.name, "dtype": spec.dtype, "width": spec.width} for spec in specs],
        "preprocessing": None if graph_info.encoder is None else graph_info.encoder.to_json(),
        "hyper_parameters": dict(hyper_parameters),
        "teacher": dict(teacher),
        "setting": setting,
        "scores": dict(scores),
        "latency": None,
        "calibration": {"temperature": float(temperature)},
        "graph": {
            "name": graph_info.name,
            "dataset": graph_info.dataset,
            "source": graph_info.source,
            "fingerprint": fingerprint,
            "counts": {"nodes": len(inputs), **counts},
        },
        "versions": _versions(),
    }
    fields["routing"] = [asdict(layer) for layer in routing_entries(student)]
    fields["sparse"] = None if sparse is None else {"values_per_entry": sparse.values_per_entry}
    if structure is not None:
        fields["structure"] = structure.fields
    position = None if inputs.position is None else inputs.position.numpy()
    store = store_arrays(
        graph_info.node_ids,
        rows,
        logits,
        position,
        None if observed is None else observed.cpu().numpy(),
    )
    if structure is not None:
        store |= structure.arrays
    if callable(latency):
        latency = latency(_in_memory(fields, model, sparse, store))
    fields["latency"] = None if latency is None else dict(latency)
    example_id = graph_info.node_ids[:1].tolist()
    card = make_card(fields, Path(path).name, example_id[0] if example_id else None)
    sparse_model = None if sparse is None else sparse.content
    assert sparse_model is None or isinstance(sparse_model, bytes)
    return write_bundle(path, fields, model, store, card, sparse_model)


def _input_specs(student: torch.nn.Module) -> tuple[InputSpec, ...]:
    """What the student reads.

    Raises:
        OptionError: A bundle has no place for it.
    """
    if not isinstance(student, SAMLP):
        input_widths(student)
    return cast(tuple[InputSpec, ...], student.inputs)


def _probe(inputs: NodeInputs) -> tuple[torch.Tensor, ...] | None:
    """Some known nodes, evenly spread, to compare torch and ONNX Runtime on."""
    if len(inputs) == 0:
        return None
    index = torch.linspace(0, len(inputs) - 1, min(PROBE_ROWS, len(inputs))).long()
    return dense_rows(inputs.take(index))


def _raw_rows(inputs: NodeInputs) -> Rows:
    """The inputs' features as NumPy arrays, dense or CSR as they are."""
    x = inputs.x
    if not is_csr(x):
        return np.ascontiguousarray(x.float().numpy())
    return CsrRows(
        x.crow_indices().long().numpy(),
        x.col_indices().long().numpy(),
        x.values().float().numpy(),
        int(x.shape[1]),
    )


def _check_inputs(graph_info: GraphInfo, inputs: NodeInputs, width: int) -> None:
    if inputs.x.shape[1] != width:
        raise OptionError(
            f"the inputs have {inputs.x.shape[1]} features, and the student reads {width}."
        )
    if len(graph_info.node_ids) != len(inputs):
        raise OptionError(
            f"the graph {graph_info.name!r} has {len(graph_info.node_ids)} node ids for "
            f"{len(inputs)} nodes."
        )


def _check_classes(graph_info: GraphInfo, logits: npt.NDArray[np.float32]) -> None:
    if graph_info.num_classes != logits.shape[1]:
        raise OptionError(
            f"the student has {logits.shape[1]} logits, and the graph {graph_info.name!r} has "
            f"{graph_info.num_classes} classes."
        )


def _in_memory(
    fields: Mapping[str, Any],
    model: bytes,
    sparse: SparseModel | None,
    store: Mapping[str, npt.NDArray[Any]],
) -> BundledStudent:
    """The student as its bundle will answer, before it is written."""
    placeholder = {"sha256": "0" * 64, "bytes": 0}  # no file is written yet, and none is read
    files = (MODEL, CARD) if sparse is None else (MODEL, CARD, SPARSE_MODEL)
    document = {"format": FORMAT, **fields, "files": dict.fromkeys(files, placeholder)}
    manifest = parse_manifest(document, Path(MANIFEST))
    node_store = NodeStore(
        store,
        manifest.graph.counts["nodes"],
        manifest.width,
        len(manifest.classes),
        position_width=manifest.position_width,
    )
    return BundledStudent(
        manifest,
        node_store,
        lambda: make_kernel(manifest, model, "the exported model", sparse),
        None
        if manifest.structure is None
        else StructureStore(store, manifest.structure, node_store.num_nodes),
    )


def _versions() -> dict[str, str]:
    """Versions of what made the bundle."""
    packages = ("torch", "torch_geometric", "onnx", "onnxscript", "onnxruntime", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
