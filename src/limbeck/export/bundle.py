"""From a trained student to its bundle."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

import limbeck
from limbeck.errors import OptionError
from limbeck.export.bands import export_bands
from limbeck.export.card import make_card
from limbeck.export.compiled import compile_student
from limbeck.export.gnn import export_gnn
from limbeck.export.graph import without_subnormals
from limbeck.export.int8 import (
    CALIBRATION_NODES,
    Quantization,
    answers_of,
    check_quantize,
    compare,
    quantize_model,
)
from limbeck.export.onnx import (
    BLOCK_ROWS,
    PROBE_ROWS,
    Scaling,
    check_scaling,
    dense_rows,
    input_widths,
    known_logits,
    on_cpu,
    reads_linearly,
    routing_entries,
    to_onnx,
    to_sparse_onnx,
)
from limbeck.export.rgcn import export_rgcn, is_typed
from limbeck.export.structure import TableDtype, export_structure
from limbeck.graphs.info import GraphInfo
from limbeck.graphs.sparse import is_csr
from limbeck.runtime.bundle import (
    BANDS,
    CARD,
    COLD_MODEL,
    INPUTS,
    MANIFEST,
    MODEL,
    SPARSE_MODEL,
    RoutingEntry,
    check_target,
    format_of,
    parse_manifest,
    write_bundle,
)
from limbeck.runtime.kernel import SparseModel
from limbeck.runtime.loading import (
    fastest_kernel,
    make_ball_model,
    make_cold_kernel,
    make_kernel,
)
from limbeck.runtime.neighborhood import Neighborhood
from limbeck.runtime.predictor import BundledStudent
from limbeck.runtime.rows import CsrRows, Rows
from limbeck.runtime.store import NodeStore, store_arrays
from limbeck.runtime.structure import StructureStore
from limbeck.students.gnn import GNNStudent
from limbeck.students.inputs import InputSpec, NodeInputs
from limbeck.students.linkx import LINKX
from limbeck.students.neighbor_mlp import NeighborMLP
from limbeck.students.sa_mlp import SAMLP

Judge = Callable[[npt.NDArray[np.float32]], Mapping[str, Any]]
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
    banded: torch.Tensor | None = None,
    more_fields: Mapping[str, Any] | None = None,
    more_arrays: Mapping[str, npt.NDArray[Any]] | None = None,
    quantize: Quantization | None = None,
    judge: Judge | None = None,
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
            takes its position from such neighbours; a student that is a GNN answers such nodes on
            the graph of observed ones, and all others on the whole graph. One that is an R-GCN
            answers known nodes so, and new ones from their features alone.
        columns: For a student that reads neighbours: the known node that each column of
            ``inputs.neighbors`` stands for, int64 ``[observed]``.
        table_dtype: How the rows of its table are stored: ``"float32"``, or ``"int8"`` with one
            factor per row. The card says how many known nodes that leaves in their class.
        banded: For a student that reads bands: which known nodes have some, bool ``[N]``; all by
            default. The others are answered as new nodes without.
        more_fields: Fields of the manifest that no answer depends on: ``cascade``, ``statistics``.
        more_arrays: Arrays of the store that go with them.
        quantize: ``"int8"`` computes and stores answers in eight bits, see
            :mod:`limbeck.export.int8`: for MLPs, on features or features and positions.
        judge: What scores logits ``[N, C]`` of the known nodes in eight bits, for the card.

    Returns:
        The folder.

    Raises:
        OptionError: The student reads something else than ``x``, ``scaling`` or a field does not
            fit, there is no form of it in int8, or nodes, ids and classes differ in number.
        OutputError: The folder cannot be written; nothing is left behind.
        ParityError: ONNX Runtime answers differently from torch.
    """
    check_target(path)  # before the work, not only after it
    check_quantize(quantize)
    inputs = on_cpu(inputs)
    specs = _input_specs(student, len(inputs))
    check_scaling(scaling, specs[0].width)
    _check_inputs(graph_info, inputs, specs[0].width)
    rows = _raw_rows(inputs)
    parts = _parts(
        student,
        inputs,
        rows,
        scaling,
        observed=observed,
        columns=columns,
        table_dtype=table_dtype,
        banded=banded,
    )
    _check_classes(graph_info, parts.logits)
    scores = dict(scores)
    if quantize is not None:
        parts = _quantized(student, inputs, parts, observed, float(temperature))
        if judge is not None:
            scores["student as int8"] = dict(judge(parts.logits))
    fields: dict[str, Any] = {
        "limbeck": limbeck.__version__,
        "method": method,
        "student": student_name,
        "classes": list(graph_info.class_names),
        "inputs": [asdict(spec) for spec in specs],
        "preprocessing": None if graph_info.encoder is None else graph_info.encoder.to_json(),
        "hyper_parameters": dict(hyper_parameters),
        "teacher": dict(teacher),
        "setting": setting,
        "scores": scores,
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
    if graph_info.task == "labels":
        fields["task"] = graph_info.task
    fields["routing"] = [asdict(layer) for layer in parts.routing]
    sparse = parts.sparse
    fields["sparse"] = None if sparse is None else {"values_per_entry": sparse.values_per_entry}
    fields |= {**parts.fields, **(more_fields or {})}
    store = store_arrays(
        graph_info.node_ids,
        rows,
        parts.logits,
        _as_array(inputs.position),
        _as_array(observed),
        _as_array(inputs.bands),
        _as_array(banded),
    )
    store |= {name: without_subnormals(array) for name, array in parts.arrays.items()}
    store |= more_arrays or {}
    if callable(latency):
        latency = latency(_in_memory(fields, parts, store))
    fields["latency"] = None if latency is None else dict(latency)
    example_id = graph_info.node_ids[:1].tolist()
    card = make_card(fields, Path(path).name, example_id[0] if example_id else None)
    sparse_model = None if sparse is None else sparse.content
    assert sparse_model is None or isinstance(sparse_model, bytes)
    return write_bundle(path, fields, parts.model, store, card, sparse_model, parts.cold)


@dataclass(frozen=True)
class _Parts:
    """What becomes of a student, whatever it reads.

    Args:
        logits: Answers for the known nodes, float32 ``[N, C]``.
        model: The ONNX model.
        sparse: That of sparse rows, or ``None``.
        cold: That of nodes without bands, or ``None``.
        routing: Layers of experts that the models tell of.
        fields: Fields of the manifest that only such students have.
        arrays: Arrays of the store that only such students have.
    """

    logits: npt.NDArray[np.float32]
    model: bytes
    sparse: SparseModel | None = None
    cold: bytes | None = None
    routing: tuple[RoutingEntry, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)


def _parts(
    student: torch.nn.Module,
    inputs: NodeInputs,
    rows: Rows,
    scaling: Scaling | None,
    *,
    observed: torch.Tensor | None,
    columns: torch.Tensor | None,
    table_dtype: TableDtype,
    banded: torch.Tensor | None,
) -> _Parts:
    """Export a student by what it reads; see :func:`export_bundle`."""
    if isinstance(student, SAMLP | LINKX | NeighborMLP):
        if columns is None:
            raise OptionError("the student reads neighbors: say which node each column stands for.")
        table = export_structure(student, inputs, rows, columns.cpu(), scaling, table_dtype)
        return _Parts(
            table.logits,
            table.model,
            table.sparse,
            fields=table.fields,
            arrays=table.arrays,
        )
    if isinstance(student, GNNStudent) and not is_typed(student):
        gnn = export_gnn(student, inputs, rows, observed, scaling)
        return _Parts(gnn.logits, gnn.model, fields={"neighborhood": gnn.fields}, arrays=gnn.arrays)
    if _reads_bands(student):
        bands = export_bands(student, inputs, banded, scaling)
        return _Parts(
            bands.logits,
            bands.model,
            cold=bands.cold,
            fields=bands.fields,
            arrays={} if bands.compiled is None else bands.compiled.arrays,
        )
    logits = None
    if isinstance(student, GNNStudent):
        logits, student = export_rgcn(student, inputs, observed, scaling)
    probe = _probe(inputs)
    compiled = compile_student(student, scaling, probe=probe)
    return _Parts(
        known_logits(student, inputs, scaling) if logits is None else logits,
        to_onnx(student, scaling, probe=probe),
        to_sparse_onnx(student, scaling, probe=probe) if is_csr(inputs.x) else None,
        routing=routing_entries(student),
        fields={} if compiled is None else {"folded": compiled.fields},
        arrays={} if compiled is None else compiled.arrays,
    )


def _quantized(
    student: torch.nn.Module,
    inputs: NodeInputs,
    parts: _Parts,
    observed: torch.Tensor | None,
    temperature: float,
) -> _Parts:
    """The same student in eight bits, in one model.

    Raises:
        OptionError: There is no such form of it, or no observed node to calibrate with.
    """
    if set(parts.fields) - {"folded"} or not reads_linearly(student):
        raise OptionError(
            f"the student {type(student).__name__} has no form in int8: only MLPs do; leave "
            "quantize out."
        )
    nodes = torch.arange(len(inputs)) if observed is None else observed.cpu().nonzero().flatten()
    if len(nodes) == 0:
        raise OptionError("int8 needs observed nodes to calibrate with, and there are none.")
    place = torch.linspace(0, len(nodes) - 1, min(CALIBRATION_NODES, len(nodes))).long()
    model = quantize_model(parts.model, _rows_by_name(inputs.take(nodes[place])))
    blocks = [
        answers_of(
            model,
            _rows_by_name(inputs.take(torch.arange(start, min(start + BLOCK_ROWS, len(inputs))))),
            parts.logits.shape[1],
        )
        for start in range(0, len(inputs), BLOCK_ROWS)
    ]
    logits = np.concatenate(blocks)
    entry = compare(parts.logits, logits, temperature, len(place))
    return _Parts(logits, model, fields={"quantization": asdict(entry)})


def _rows_by_name(inputs: NodeInputs) -> dict[str, npt.NDArray[np.float32]]:
    """Dense inputs of some nodes as a model reads them."""
    rows = (np.ascontiguousarray(part.float().numpy()) for part in dense_rows(inputs))
    return dict(zip(INPUTS, rows, strict=False))


def _reads_bands(student: torch.nn.Module) -> bool:
    specs = cast(tuple[InputSpec, ...], student.inputs)
    return [(spec.name, spec.dtype) for spec in specs] == [("x", "float32"), (BANDS, "float32")]


def _input_specs(student: torch.nn.Module, num_nodes: int) -> tuple[InputSpec, ...]:
    """What the student reads.

    Raises:
        OptionError: A bundle has no place for it.
    """
    specs = cast(tuple[InputSpec, ...], student.inputs)
    if is_typed(student):
        return specs[:1]  # new nodes are answered without edges
    if isinstance(student, GNNStudent):
        # of training's graph it had the observed nodes; of the bundle's all nodes can be named
        return (specs[0], replace(specs[1], width=num_nodes))
    if not isinstance(student, SAMLP | LINKX | NeighborMLP) and not _reads_bands(student):
        input_widths(student)
    return specs


def _as_array(tensor: torch.Tensor | None) -> npt.NDArray[Any] | None:
    return None if tensor is None else tensor.detach().cpu().numpy()


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
    fields: Mapping[str, Any], parts: _Parts, store: Mapping[str, npt.NDArray[Any]]
) -> BundledStudent:
    """The student as its bundle will answer, before it is written."""
    placeholder = {"sha256": "0" * 64, "bytes": 0}  # no file is written yet, and none is read
    files = [MODEL, CARD]
    files += [] if parts.sparse is None else [SPARSE_MODEL]
    files += [] if parts.cold is None else [COLD_MODEL]
    document = {"format": format_of(fields), **fields, "files": dict.fromkeys(files, placeholder)}
    # by way of JSON, as a reader will have it: lists where there are tuples now
    manifest = parse_manifest(json.loads(json.dumps(document)), Path(MANIFEST))
    node_store = NodeStore(
        store,
        manifest.graph.counts["nodes"],
        manifest.width,
        len(manifest.classes),
        position_width=manifest.position_width,
        bands_width=manifest.bands_width,
    )
    where, cold = "the exported model", parts.cold
    if manifest.neighborhood is not None:
        neighborhood = Neighborhood(
            node_store,
            store,
            manifest.neighborhood,
            lambda: make_ball_model(manifest, parts.model, where),
        )
        return BundledStudent(manifest, node_store, None, neighborhood=neighborhood)
    structure = None
    if manifest.structure is not None:
        structure = StructureStore(store, manifest.structure, node_store.num_nodes)
    return BundledStudent(
        manifest,
        node_store,
        lambda: fastest_kernel(
            manifest,
            lambda: store,
            node_store,
            structure,
            partial(make_kernel, manifest, parts.model, where, parts.sparse),
        ),
        structure,
        make_cold_kernel=None if cold is None else lambda: make_cold_kernel(manifest, cold, where),
    )


def _versions() -> dict[str, str]:
    """Versions of what made the bundle."""
    packages = ("torch_geometric", "onnx", "onnxscript", "onnxruntime", "numpy")
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # with the build, which a wheel's metadata may leave out
        **{name: version(name) for name in packages},
    }
