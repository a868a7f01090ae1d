"""``limbeck.json`` read: its fields with their types checked, and its seal."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from limbeck.errors import BundleError
from limbeck.runtime.bundle.manifest import (
    BANDS,
    BANDS_CHAINS,
    CARD,
    COLD_MODEL,
    EDGE_WEIGHTS,
    GRAPH,
    HEAD_CHAINS,
    INPUTS,
    LABELS_FORMAT,
    LONE_CHAINS,
    LONE_SUM_CHAINS,
    MANIFEST,
    MODEL,
    MOST_BANDS,
    MOST_EXPERTS,
    NEIGHBORS,
    PREDICTOR_CHAIN,
    SPARSE_MODEL,
    STUDENT_CHAIN,
    SUM_CHAINS,
    TASKS,
    BandsEntry,
    CascadeEntry,
    FileEntry,
    FoldedBands,
    FoldedEntry,
    GraphEntry,
    HeadEntry,
    InputEntry,
    LayerEntry,
    Manifest,
    NeighborhoodEntry,
    QuantizationEntry,
    RoutingEntry,
    SparseEntry,
    StatisticsEntry,
    StructureEntry,
)

# Far beyond any fitted temperature; within them, float32 neither overflows nor divides by zero.
MIN_TEMPERATURE = 1e-6
MAX_TEMPERATURE = 1e6

# Names inside a bundle are plain: a listed file can lie in the bundle or in its store, nowhere
# else, on any system.
_FILE_NAME = re.compile(r"(?:store/)?[A-Za-z0-9_][A-Za-z0-9_.-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")

T = TypeVar("T")


def seal(body: bytes) -> bytes:
    """The last bytes of ``limbeck.json``: the sha256 of all bytes before them."""
    return b',\n  "sha256": "%s"\n}\n' % hashlib.sha256(body).hexdigest().encode("ascii")


def parse_manifest(document: Mapping[str, Any], where: Path) -> Manifest:
    """Check the fields of ``limbeck.json`` and give them their types.

    Args:
        document: The parsed JSON document.
        where: Path of the file, for messages.

    Raises:
        BundleError: A field is missing or of the wrong form; the message names it.
    """
    top = _Fields(document, where)
    graph = _Fields(top.get("graph", dict), where, "graph.")
    calibration = _Fields(top.get("calibration", dict), where, "calibration.")
    number = top.get("format", int)
    files = _parse_files(top)
    inputs = _parse_inputs(top)
    structure = _parse_structure(top) if inputs[-1].name == NEIGHBORS else None
    return Manifest(
        format=number,
        limbeck=top.get("limbeck", str),
        method=top.get("method", str),
        student=top.get("student", str),
        classes=top.strings("classes"),
        inputs=inputs,
        routing=_parse_routing(top) if number > 1 else (),
        sparse=_parse_sparse(top, files) if number > 1 else None,
        structure=structure,
        bands=_parse_bands(top, files) if inputs[-1].name == BANDS else None,
        neighborhood=_parse_neighborhood(top) if inputs[-1].name == GRAPH else None,
        preprocessing=top.optional("preprocessing", dict),
        hyper_parameters=top.get("hyper_parameters", dict),
        teacher=top.get("teacher", dict),
        setting=top.get("setting", str),
        scores=top.get("scores", dict),
        latency=top.optional("latency", dict),
        temperature=calibration.temperature("temperature"),
        graph=GraphEntry(
            name=graph.get("name", str),
            dataset=graph.get("dataset", str),
            source=graph.get("source", str),
            fingerprint=graph.get("fingerprint", str),
            counts=_parse_counts(graph),
        ),
        versions=top.get("versions", dict),
        files=files,
        cascade=_parse_cascade(top),
        statistics=_parse_statistics(top),
        task=top.choice("task", *TASKS) if number >= LABELS_FORMAT else TASKS[0],
        folded=_parse_folded(top, inputs, structure),
        quantization=_parse_quantization(top),
    )


class _Fields:
    """The fields of one JSON object, taken out with their types checked."""

    def __init__(self, document: Mapping[str, Any], where: Path, prefix: str = "") -> None:
        self.document = document
        self.where = where
        self.prefix = prefix

    def wrong(self, name: str, expected: str) -> BundleError:
        """The error for field ``name``, which is not ``expected``."""
        return BundleError(f"{self.where}: the field {self.prefix + name!r} must be {expected}.")

    def get(self, name: str, kind: type[T]) -> T:
        """Field ``name`` of exactly that type (a JSON ``true`` is no integer)."""
        value = self.document.get(name)
        if type(value) is not kind:
            raise self.wrong(name, _JSON_NAMES[kind])
        return value

    def optional(self, name: str, kind: type[T]) -> T | None:
        """As :meth:`get`, or ``None`` for a JSON ``null``."""
        if name in self.document and self.document[name] is None:
            return None
        return self.get(name, kind)

    def strings(self, name: str) -> tuple[str, ...]:
        """A list of different strings, at least one."""
        values = self.get(name, list)
        if not values or not all(type(value) is str for value in values):
            raise self.wrong(name, "a list of strings, at least one")
        if len(set(values)) != len(values):
            raise self.wrong(name, "a list of different strings")
        return tuple(values)

    def entries(self, name: str) -> list[_Fields]:
        """A list of objects."""
        values = self.get(name, list)
        if not all(type(value) is dict for value in values):
            raise self.wrong(name, "a list of objects")
        return [_Fields(value, self.where, f"{self.prefix}{name}.") for value in values]

    def choice(self, name: str, *values: str) -> str:
        """One of some strings."""
        value = self.get(name, str)
        if value not in values:
            raise self.wrong(name, " or ".join(map(repr, values)))
        return value

    def number(self, name: str, least: float, most: float) -> float:
        """A number between two others."""
        value = self.document.get(name)
        # a JSON `true` is no number
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(name, "a number")
        if not least <= value <= most:
            raise self.wrong(name, f"between {least:g} and {most:g}")
        return float(value)

    def temperature(self, name: str) -> float:
        """A number that logits can be divided by in float32."""
        return self.number(name, MIN_TEMPERATURE, MAX_TEMPERATURE)

    def share(self, name: str) -> float | None:
        """A number between 0 and 1, or ``None``."""
        return None if self.document.get(name) is None else self.number(name, 0.0, 1.0)

    def shares(self, name: str, most: float = 1.0) -> tuple[float, ...]:
        """A list of numbers between 0 and ``most``."""
        values = self.get(name, list)
        entries = _Fields(dict(enumerate(values)), self.where, f"{self.prefix}{name}.")  # type: ignore[arg-type]
        return tuple(entries.number(place, 0.0, most) for place in entries.document)

    def count(self, name: str, least: int = 0) -> int:
        """An integer of at least ``least``."""
        value = self.get(name, int)
        if value < least:
            raise self.wrong(name, f"an integer of at least {least}")
        return value


_JSON_NAMES: dict[type, str] = {
    bool: "true or false",
    int: "an integer",
    str: "a string",
    dict: "an object",
    list: "a list",
}


def _parse_input(entry: _Fields) -> InputEntry:
    parsed = InputEntry(entry.get("name", str), entry.get("dtype", str), entry.count("width"))
    dtypes = {
        **dict.fromkeys((*INPUTS, BANDS), "float32"),
        **dict.fromkeys((NEIGHBORS, GRAPH), "int64"),
    }
    if dtypes.get(parsed.name) != parsed.dtype or parsed.width == 0:
        wanted = " or ".join(f"{name!r} of dtype {dtype!r}" for name, dtype in dtypes.items())
        raise entry.wrong("name", f"{wanted}, and of a width of at least 1")
    return parsed


def _parse_inputs(top: _Fields) -> tuple[InputEntry, ...]:
    parsed = tuple(_parse_input(entry) for entry in top.entries("inputs"))
    names = tuple(entry.name for entry in parsed)
    behind = (*INPUTS[1:], NEIGHBORS, BANDS, GRAPH)
    if names != INPUTS[:1] and names not in [(INPUTS[0], name) for name in behind]:
        raise top.wrong("inputs", f"x, then nothing or one of {', '.join(behind)}")
    return parsed


def _parse_structure(top: _Fields) -> StructureEntry:
    fields = _Fields(top.get("structure", dict), top.where, "structure.")
    dtype = fields.choice("table_dtype", "float32", "int8")
    power = fields.number("power", 0.0, 1.0)
    blend = fields.number("blend", 0.0, float("inf"))
    agreement = fields.number("agreement", 0.0, 1.0)
    # bundles older than students without a gate do not say that theirs have one
    gated = fields.get("gated", bool) if "gated" in fields.document else True
    lone = fields.get("lone", bool) if "lone" in fields.document else False
    if lone and gated:
        raise fields.wrong("lone", "false where a gate weighs neighbors")
    return StructureEntry(fields.count("width", 1), power, blend, dtype, agreement, gated, lone)


def _parse_bands(top: _Fields, files: Mapping[str, FileEntry]) -> BandsEntry:
    if COLD_MODEL not in files:
        raise BundleError(f"{top.where} does not list the file {COLD_MODEL!r}.")
    fields = _Fields(top.get("bands", dict), top.where, "bands.")
    return BandsEntry(fields.count("count"), fields.count("layers"))


def _parse_neighborhood(top: _Fields) -> NeighborhoodEntry:
    fields = _Fields(top.get("neighborhood", dict), top.where, "neighborhood.")
    weights = fields.choice("weights", *EDGE_WEIGHTS)
    return NeighborhoodEntry(fields.count("hops", 1), weights, fields.get("undirected", bool))


def _parse_routing(top: _Fields) -> tuple[RoutingEntry, ...]:
    parsed = []
    for entry in top.entries("routing"):
        layer = RoutingEntry(entry.count("experts", 1), entry.count("top_k", 1))
        if layer.top_k > layer.experts:
            raise entry.wrong("top_k", f"at most the number of experts, {layer.experts}")
        parsed.append(layer)
    return tuple(parsed)


def _parse_sparse(top: _Fields, files: Mapping[str, FileEntry]) -> SparseEntry | None:
    document = top.optional("sparse", dict)
    if (document is None) != (SPARSE_MODEL not in files):
        raise top.wrong("sparse", f"an object if the file {SPARSE_MODEL!r} is listed, or null")
    if document is None:
        return None
    return SparseEntry(_Fields(document, top.where, "sparse.").count("values_per_entry", 1))


def _parse_cascade(top: _Fields) -> CascadeEntry | None:
    document = top.document.get("cascade")
    if document is None:  # of a bundle without a goal, or older than cascades
        return None
    fields = _Fields(top.get("cascade", dict), top.where, "cascade.")
    points = _Fields(fields.get("curve", dict), top.where, "cascade.curve.")
    curve = {name: points.shares(name, 2.0) for name in ("coverage", "accuracy", "threshold")}
    if len({len(values) for values in curve.values()}) != 1:
        raise fields.wrong("curve", "three lists of the same length")
    return CascadeEntry(
        threshold=fields.number("threshold", 0.0, 2.0),
        goal=fields.choice("goal", "accuracy", "coverage"),
        wanted=fields.number("wanted", 0.0, 1.0),
        nodes=fields.count("nodes", 1),
        coverage=fields.number("coverage", 0.0, 1.0),
        accuracy=fields.share("accuracy"),
        accuracy_lower=fields.share("accuracy_lower"),
        together=fields.share("together"),
        curve=curve,
    )


def _parse_statistics(top: _Fields) -> StatisticsEntry | None:
    if top.document.get("statistics") is None:  # likewise
        return None
    fields = _Fields(top.get("statistics", dict), top.where, "statistics.")
    degree = _Fields(fields.get("degree", dict), top.where, "statistics.degree.")
    return StatisticsEntry(
        fields.count("nodes", 1),
        {name: degree.number(name, 0.0, 1.0) for name in degree.document},
        fields.shares("classes"),
    )


def _parse_folded(
    top: _Fields, inputs: tuple[InputEntry, ...], structure: StructureEntry | None
) -> FoldedEntry | None:
    if top.document.get("folded") is None:  # of another student, or older than the kernels
        return None
    fields = _Fields(top.get("folded", dict), top.where, "folded.")
    classes = len(top.strings("classes"))
    if inputs[-1].name == BANDS:
        return _parse_folded_bands(fields, top, inputs, classes)
    if "chains" not in fields.document:
        return FoldedEntry.mlp(_parse_widths(fields, inputs, classes))
    heads = _parse_heads(fields)
    gated = structure is not None and structure.gated
    if bool(heads) != gated or inputs[-1].name == GRAPH:
        raise fields.wrong("heads", "a list with a head where a gate weighs neighbors only")
    chains = _Fields(fields.get("chains", dict), top.where, "folded.chains.")
    if structure is None:
        names = {STUDENT_CHAIN}
        features = sum(entry.width for entry in inputs)
        ends = {STUDENT_CHAIN: (features, classes)}
    else:
        names = _chains_of_readers(structure, len(heads), chains)
        ends = dict.fromkeys(names, (structure.width, classes))
        ends |= dict.fromkeys(
            names & {HEAD_CHAINS[0], SUM_CHAINS[0], LONE_CHAINS[0], PREDICTOR_CHAIN},
            (inputs[0].width, structure.width),
        )
    if set(chains.document) != names:
        raise fields.wrong("chains", f"an object with {', '.join(sorted(names))}")
    parsed = {name: _parse_chain(chains, name, *ends[name]) for name in sorted(names)}
    if structure is not None and not gated:
        for name in names & {SUM_CHAINS[0], LONE_SUM_CHAINS[0]}:
            last = parsed[name][-1]
            if last.relu or last.norm == "behind relu":
                raise chains.wrong(name, "a list of layers, the last without a ReLU")
    return FoldedEntry(
        parsed,
        heads,
        fields.get("scaled", bool),
        fields.get("unit_sum", bool),
    )


def _chains_of_readers(structure: StructureEntry, heads: int, chains: _Fields) -> set[str]:
    """Names of the chains that a student has which reads neighbours."""
    if not structure.gated:
        return {*SUM_CHAINS, *(LONE_SUM_CHAINS if structure.lone else ())}
    names = {*HEAD_CHAINS, *(LONE_CHAINS if heads > 1 else ())}
    return names | ({PREDICTOR_CHAIN} & set(chains.document))


def _parse_folded_bands(
    fields: _Fields, top: _Fields, inputs: tuple[InputEntry, ...], classes: int
) -> FoldedEntry:
    form = _Fields(fields.get("bands", dict), top.where, "folded.bands.")
    layers, count = (form.count(name, 1) for name in ("layers", "count"))
    told = _Fields(top.get("bands", dict), top.where, "bands.")
    for name, found in (("layers", layers), ("count", count)):
        if found > MOST_BANDS or found != told.count(name):
            raise form.wrong(name, f"that of bands, and at most {MOST_BANDS}")
    flags = (form.get(name, bool) for name in ("tied", "released"))
    bands = FoldedBands(layers, count, form.count("coefficients"), *flags)
    chains = _Fields(fields.get("chains", dict), top.where, "folded.chains.")
    names = {*bands.chains, *({PREDICTOR_CHAIN} & set(chains.document))}
    if set(chains.document) != names:
        raise fields.wrong("chains", f"an object with {', '.join(sorted(names))}")
    encoder, re_encoder, _ = BANDS_CHAINS
    # all parts share one width: that of what the features' encoder ends in
    layers_of_encoder = chains.entries(encoder)
    width = layers_of_encoder[-1].count("answers", 1) if layers_of_encoder else 0
    if layers * count * (bands.coefficients or width) != inputs[-1].width:
        raise form.wrong("coefficients", f"such that a node has {inputs[-1].width} values of bands")
    ends = dict.fromkeys(names, (width, classes))
    ends |= {encoder: (inputs[0].width, width), re_encoder: (width, width)}
    ends[PREDICTOR_CHAIN] = (inputs[0].width, layers * count * width)
    return FoldedEntry(
        {name: _parse_chain(chains, name, *ends[name]) for name in sorted(names)},
        scaled=fields.get("scaled", bool),
        bands=bands,
    )


def _parse_widths(fields: _Fields, inputs: tuple[InputEntry, ...], classes: int) -> tuple[int, ...]:
    widths = fields.get("widths", list)
    ends = (sum(entry.width for entry in inputs), classes)
    if (
        len(widths) < 2
        or any(type(width) is not int or width < 1 for width in widths)
        or (widths[0], widths[-1]) != ends
        or any(entry.name not in INPUTS for entry in inputs)
    ):
        raise fields.wrong("widths", f"a list of widths from {ends[0]} to {ends[1]}")
    return tuple(widths)


def _parse_heads(fields: _Fields) -> tuple[HeadEntry, ...]:
    heads = tuple(
        HeadEntry(
            entry.choice("norm", "none", "affine", "layer"), entry.number("epsilon", 0.0, 1.0)
        )
        for entry in fields.entries("heads")
    )
    if len(heads) > 2:
        raise fields.wrong("heads", "a list of two heads at most")
    return heads


def _parse_chain(chains: _Fields, name: str, reads: int, answers: int) -> tuple[LayerEntry, ...]:
    layers = tuple(_parse_layer(entry) for entry in chains.entries(name))
    fits = (
        bool(layers)
        and (layers[0].reads, layers[-1].answers) == (reads, answers)
        and all(a.answers == b.reads for a, b in pairwise(layers))
    )
    if not fits:
        raise chains.wrong(name, f"a list of layers that leads from {reads} values to {answers}")
    return layers


def _parse_layer(entry: _Fields) -> LayerEntry:
    layer = LayerEntry(
        entry.count("reads", 1),
        entry.count("answers", 1),
        entry.get("relu", bool),
        entry.count("experts"),
        entry.count("top_k"),
        entry.count("gate"),
        entry.get("shift", bool),
        entry.choice("norm", "none", "before relu", "behind relu"),
        entry.number("epsilon", 0.0, 1.0),
    )
    if layer.experts > MOST_EXPERTS:
        raise entry.wrong("experts", f"at most {MOST_EXPERTS}")
    if layer.top_k > layer.experts or (layer.top_k == 0) != (layer.experts == 0):
        raise entry.wrong("top_k", "between 1 and the number of experts, or 0 without experts")
    return layer


def _parse_quantization(top: _Fields) -> QuantizationEntry | None:
    if top.document.get("quantization") is None:  # likewise
        return None
    fields = _Fields(top.get("quantization", dict), top.where, "quantization.")
    return QuantizationEntry(
        fields.choice("weights", "int8"),
        fields.count("calibration_nodes", 1),
        fields.number("agreement", 0.0, 1.0),
        fields.number("largest_change", 0.0, 1.0),
    )


def _parse_counts(graph: _Fields) -> dict[str, int]:
    counts = _Fields(graph.get("counts", dict), graph.where, "graph.counts.")
    counts.count("nodes")
    return {name: counts.count(name) for name in counts.document}


def _parse_files(top: _Fields) -> dict[str, FileEntry]:
    files = _Fields(top.get("files", dict), top.where, "files.")
    parsed = {}
    for name in files.document:
        if not _FILE_NAME.fullmatch(name) or name == MANIFEST:
            raise BundleError(
                f"{top.where} lists the file {name!r}, which is no name of a file in a bundle."
            )
        entry = _Fields(files.get(name, dict), top.where, f"files.{name}.")
        digest = entry.get("sha256", str)
        if not _SHA256.fullmatch(digest):
            raise entry.wrong("sha256", "64 hexadecimal digits")
        parsed[name] = FileEntry(digest, entry.count("bytes"))
    for name in (MODEL, CARD):
        if name not in parsed:
            raise BundleError(f"{top.where} does not list the file {name!r}.")
    return parsed
