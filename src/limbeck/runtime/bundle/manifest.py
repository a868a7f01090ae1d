"""What a bundle says of itself: names of its files, and the content of ``limbeck.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from limbeck.errors import BundleError

FORMAT = 2
LABELS_FORMAT = 3
"""Of students that give nodes several labels, which a reader of format 2 would take for classes."""

READABLE = (1, FORMAT, LABELS_FORMAT)
TASKS = ("classes", "labels")
MANIFEST = "limbeck.json"
INPUTS = ("x", "position")
NEIGHBORS = "neighbors"
BANDS = "bands"
GRAPH = "graph"
MODEL = "model.onnx"
SPARSE_MODEL = "sparse.onnx"
COLD_MODEL = "cold.onnx"
CARD = "README.md"
STORE = "store"
STUDENT_CHAIN = "student"
HEAD_CHAINS = ("encoder", "from_structure", "from_features")
"""Chains of layers of a student that reads neighbours: its features' encoder, its decoders."""

LONE_CHAINS = ("lone_encoder", "lone_from_structure", "lone_from_features")
"""The same of the head that nodes without neighbours have, if it has one."""

PREDICTOR_CHAIN = "predictor"
SUM_CHAINS = ("encoder", "from_sum")
"""Chains of layers of a student that adds what neighbours contribute to what features do: the
encoder of features, and what reads the sum behind a ReLU. A norm of the encoder's last layer is
taken of the sum."""

LONE_SUM_CHAINS = ("lone_encoder", "lone_from_sum")
"""The same of the network of nodes without neighbours, on features, if there is one."""

BANDS_CHAINS = ("encoder", "re_encoder", "from_features")
"""Chains of layers of a student that reads bands: its features' encoder, what stands between two
layers that weigh bands, if there are two, and the features' head."""

MOST_EXPERTS = 64
"""Experts of a layer, for the compiled kernels."""

MOST_BANDS = 64
"""Bands that a student reads, and layers that read them, for the compiled kernels."""

EDGE_WEIGHTS = ("symmetric", "mean", "neighbor-mean", "attention")


@dataclass(frozen=True)
class InputEntry:
    """One input that the student reads of a node: ``width`` values of type ``dtype``."""

    name: str
    dtype: str
    width: int


@dataclass(frozen=True)
class RoutingEntry:
    """One layer of experts: how many there are, and how many of them a node uses."""

    experts: int
    top_k: int


@dataclass(frozen=True)
class SparseEntry:
    """The model of sparse rows.

    Args:
        values_per_entry: Weights of its first layer that it copies together for one entry of a
            row, by which a runtime bounds the memory of a call.
    """

    values_per_entry: int


@dataclass(frozen=True)
class LayerEntry:
    """One layer of a student as the compiled kernels read it, whose arrays the store has.

    Args:
        reads: Values of a row that it reads.
        answers: Values that it answers.
        relu: Whether a ReLU is behind it.
        experts: How many experts it has; 0 for a linear map.
        top_k: How many of them a row uses.
        gate: Width of the comparison that a trained gate chooses by; 0 where memories do.
        shift: Whether something is added behind the experts.
        norm: ``"none"``, or where a layer norm is: ``"before relu"``, ``"behind relu"``.
        epsilon: What that adds to the variance.
    """

    reads: int
    answers: int
    relu: bool
    experts: int = 0
    top_k: int = 0
    gate: int = 0
    shift: bool = False
    norm: str = "none"
    epsilon: float = 0.0


@dataclass(frozen=True)
class HeadEntry:
    """What a student that reads neighbours makes of the structure's part, before its ReLU.

    Args:
        norm: ``"none"``, ``"affine"`` (a factor and a summand per value) or ``"layer"``.
        epsilon: What layer norm adds to the variance.
    """

    norm: str
    epsilon: float


@dataclass(frozen=True)
class FoldedBands:
    """How a student reads bands and weighs them.

    Args:
        layers: Layers that weigh bands against features, the output the last of them.
        count: Number of bands, the low-pass first.
        coefficients: Values of a band that a map of its own reads in each layer; 0 where bands are
            pre-activations.
        tied: Whether one head serves all bands and, where there are several layers, the low band's
            values stand for all in the output.
        released: Whether the output's gate weighs the features, not the graph.
    """

    layers: int
    count: int
    coefficients: int
    tied: bool
    released: bool

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the chains that make logits of the values of each band, or of any."""
        return tuple(f"from_band_{band}" for band in range(1 if self.tied else self.count))

    @property
    def chains(self) -> tuple[str, ...]:
        """Names of all chains that the student must have; ``"predictor"`` may stand beside them."""
        encoder, re_encoder, from_features = BANDS_CHAINS
        between = (re_encoder,) if self.layers > 1 else ()
        return (encoder, *between, from_features, *self.heads)


@dataclass(frozen=True)
class FoldedEntry:
    """A student as the compiled kernels read it; its arrays are in the store.

    Args:
        chains: Its layers: the chain ``"student"``, or those that :data:`HEAD_CHAINS` and
            :data:`LONE_CHAINS` name and ``"predictor"``, those of :data:`SUM_CHAINS` and
            :data:`LONE_SUM_CHAINS`, or, of a student that reads bands, those of
            :attr:`FoldedBands.chains`.
        heads: Of a student that weighs neighbours with a gate: its head, and perhaps one of its
            own for nodes without any.
        scaled: Whether features are standardised before, by ``folded_mean`` and
            ``folded_deviation``.
        unit_sum: Whether a row is then divided by the sum of its absolute values.
        bands: Of a student that reads bands: how.
    """

    chains: Mapping[str, tuple[LayerEntry, ...]]
    heads: tuple[HeadEntry, ...] = ()
    scaled: bool = False
    unit_sum: bool = False
    bands: FoldedBands | None = None

    @property
    def width(self) -> int:
        """Values that the encoder of features ends in, where neighbours or bands are read."""
        return self.chains[HEAD_CHAINS[0]][-1].answers

    @classmethod
    def mlp(cls, widths: tuple[int, ...]) -> FoldedEntry:
        """That of an MLP, by the widths of its layers' ends."""
        ends = list(pairwise(widths))
        layers = (LayerEntry(a, b, i + 1 < len(ends)) for i, (a, b) in enumerate(ends))
        return cls({STUDENT_CHAIN: tuple(layers)})

    @property
    def widths(self) -> tuple[int, ...]:
        """Values between the layers of the only chain, features and classes at the ends."""
        layers = self.chains[STUDENT_CHAIN]
        return (layers[0].reads, *(layer.answers for layer in layers))

    @property
    def is_mlp(self) -> bool:
        """Whether it is linear maps with a ReLU between them, so that its widths say all."""
        return set(self.chains) == {STUDENT_CHAIN} and self == self.mlp(self.widths)


@dataclass(frozen=True)
class QuantizationEntry:
    """What computing in eight bits changes, measured on the known nodes.

    Args:
        weights: How weights are stored: ``"int8"``, with a factor for each output.
        calibration_nodes: Observed nodes whose values set the ranges of activations.
        agreement: Share of the known nodes that keep their class.
        largest_change: The largest difference in a calibrated probability.
    """

    weights: str
    calibration_nodes: int
    agreement: float
    largest_change: float


@dataclass(frozen=True)
class StructureEntry:
    """The table of a student that reads neighbours.

    Args:
        width: Values ``h`` of a row.
        power: Power of the degree that the sum over neighbours is divided by: 0, 0.5 or 1.
        blend: Degree at which neighbours and features count the same, 0 for no blend.
        table_dtype: How rows are stored: ``"float32"``, or ``"int8"`` with a factor for each.
        agreement: Share of the known nodes whose class is that of the table as it was trained.
        gated: Whether neighbours and features give an answer each, which a gate weighs; otherwise
            what they contribute is added before the first ReLU, and there is one answer.
        lone: Whether a student without a gate has another network, on features, for nodes without
            known neighbours.
    """

    width: int
    power: float
    blend: float
    table_dtype: str
    agreement: float
    gated: bool = True
    lone: bool = False


@dataclass(frozen=True)
class BandsEntry:
    """What the models of a student that reads the bands of a graph transform tell of them.

    Args:
        count: Number of bands, the low-pass first; 0 where the models tell nothing.
        layers: Layers that weigh bands against features, the output the last of them; 0 likewise.
    """

    count: int
    layers: int


@dataclass(frozen=True)
class NeighborhoodEntry:
    """What a student that is itself a GNN looks at around a node.

    Args:
        hops: Its layers ``L``: nodes as far away as this count.
        weights: How it weighs the edges into a node: ``"symmetric"``, one over the root of the
            degrees at both ends, and ``"mean"``, one over the receiver's degree, the node itself
            among its neighbours; ``"neighbor-mean"``, the same without itself; ``"attention"``
            where it weighs them by what they say.
        undirected: Whether each edge goes both ways, so also from a new node to its neighbours.
    """

    hops: int
    weights: str
    undirected: bool


@dataclass(frozen=True)
class CascadeEntry:
    """Below which confidence the student defers, and what that gives on the validation nodes.

    Args:
        threshold: A node is deferred if its calibrated probability is below it; above 1 where no
            confidence is enough for what was wanted, so that every node is deferred.
        goal: What was wanted: ``"accuracy"`` of the nodes that are not deferred, or their share,
            ``"coverage"``.
        wanted: How much of it.
        nodes: Number of validation nodes.
        coverage: Share of them that is not deferred.
        accuracy: The student's accuracy on those; ``None`` if there are none.
        accuracy_lower: Its lower bound at 95 % (Clopper and Pearson's, one-sided), likewise.
        together: Accuracy where the teacher answers the deferred ones; ``None`` without a teacher.
        curve: Coverage, accuracy and threshold, from the surest nodes to all: three lists.
    """

    threshold: float
    goal: str
    wanted: float
    nodes: int
    coverage: float
    accuracy: float | None
    accuracy_lower: float | None
    together: float | None
    curve: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class StatisticsEntry:
    """What the nodes that training observed are like, beside the arrays on their features.

    Args:
        nodes: How many they are.
        degree: Share of them that has so many neighbours, by range of degrees.
        classes: Share of them that the student answers with each class, in their order.
    """

    nodes: int
    degree: Mapping[str, float]
    classes: tuple[float, ...]


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and sha256 (hexadecimal) of one file of the bundle."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class GraphEntry:
    """The graph that a student was distilled from.

    Args:
        name: What the graph is called.
        dataset: Name by which Limbeck loads it again, empty for a graph of the user's own.
        source: Where it came from.
        fingerprint: Digest of its nodes, edges and labels.
        counts: Sizes worth printing; ``counts["nodes"]`` is the number of known nodes.
    """

    name: str
    dataset: str
    source: str
    fingerprint: str
    counts: Mapping[str, int]


@dataclass(frozen=True)
class Manifest:
    """The content of ``limbeck.json``.

    Args:
        format: Number of the format, 1 to 3.
        limbeck: Version of Limbeck that wrote the bundle.
        method: Name of the distillation method.
        student: Name of the student's network.
        classes: Name of each class or label, in the order of the logits.
        inputs: What the student reads of a node.
        routing: Its layers of experts that say where they send a node; none for other students.
        sparse: The model of sparse rows, or ``None`` where there is none.
        structure: The table of a student that reads neighbours; ``None`` for others.
        bands: The bands of a student that reads them; ``None`` for others.
        neighborhood: What a student that is itself a GNN looks at; ``None`` for others.
        preprocessing: JSON form of the encoder that turns a table's row into features, or
            ``None`` where the features came as an array.
        hyper_parameters: Hyper-parameters of method and student.
        teacher: What the student was distilled from.
        setting: What of the graph training saw (``"inductive"``, ...).
        scores: Measured scores of teacher and student.
        latency: Measured latency in microseconds, or ``None`` where it was not measured.
        temperature: Number that logits are divided by before the softmax.
        graph: The graph that the student was distilled from.
        versions: Versions of Python and of the packages that made the bundle.
        files: Size and checksum of every file beside ``limbeck.json``, by name.
        cascade: When the student defers; ``None`` where no goal was given.
        statistics: What its nodes are like; ``None`` where that was not kept.
        task: ``"classes"``: each node is of one of the classes; ``"labels"``: it has any of them.
        folded: The student as the compiled kernels read it; ``None`` where the store has no such
            arrays.
        quantization: What computing in eight bits changes; ``None`` where it is not done.
    """

    format: int
    limbeck: str
    method: str
    student: str
    classes: tuple[str, ...]
    inputs: tuple[InputEntry, ...]
    routing: tuple[RoutingEntry, ...]
    sparse: SparseEntry | None
    structure: StructureEntry | None
    bands: BandsEntry | None
    neighborhood: NeighborhoodEntry | None
    preprocessing: Mapping[str, Any] | None
    hyper_parameters: Mapping[str, Any]
    teacher: Mapping[str, Any]
    setting: str
    scores: Mapping[str, Any]
    latency: Mapping[str, Any] | None
    temperature: float
    graph: GraphEntry
    versions: Mapping[str, str]
    files: Mapping[str, FileEntry]
    cascade: CascadeEntry | None = None
    statistics: StatisticsEntry | None = None
    folded: FoldedEntry | None = None
    quantization: QuantizationEntry | None = None
    task: str = "classes"

    @property
    def several_labels(self) -> bool:
        """Whether a node has any number of labels, not one class."""
        return self.task == "labels"

    def require_one_class(self, what: str) -> None:
        """Refuse a student that gives nodes several labels.

        Args:
            what: What cannot be done with it, for the message.

        Raises:
            BundleError: It gives several labels.
        """
        if self.several_labels:
            raise BundleError(
                f"the student of graph {self.graph.name!r} gives a node several labels, and {what} "
                "knows one class per node only: ask it with 'limbeck predict' or from Python."
            )

    @property
    def width(self) -> int:
        """Number of features ``F`` that the student reads."""
        return self.inputs[0].width

    @property
    def position_width(self) -> int:
        """Width ``d`` of the positional encoding that it reads, 0 for none."""
        return self._width_of("position")

    @property
    def bands_width(self) -> int:
        """Number of values ``w`` of bands that it reads, 0 for none."""
        return self._width_of(BANDS)

    def _width_of(self, name: str) -> int:
        return sum(entry.width for entry in self.inputs if entry.name == name)


def format_of(fields: Mapping[str, Any]) -> int:
    """Number of the format that the fields of a new ``limbeck.json`` are written in."""
    return LABELS_FORMAT if fields.get("task") == "labels" else FORMAT
