"""What Limbeck knows about a graph beside its tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from limbeck.features import FeatureEncoder
    from limbeck.graphs.rewire import SurgeryOptions

SplitRule = Literal["fixed", "columns", "per-class", "balanced", "random"]
TaskName = Literal["classes", "labels"]


@dataclass(frozen=True)
class GraphInfo:
    """Facts about a graph that its tensors do not hold; kept as ``graph.info``.

    Args:
        name: What the graph is called in tables and file names.
        source: Where it came from (a data set's name and split, or a path).
        split: How a seed picks training, validation and test nodes.
            ``"fixed"``: the 1-D masks of the graph, for every seed;
            ``"columns"``: column ``seed % S`` of the ``[N, S]`` masks;
            ``"per-class"``: 20 training and 30 validation nodes per class, the rest test
            (the CPF protocol);
            ``"balanced"``: of every class ``int(0.2 N / C)`` nodes for training and as many for
            validation, the rest test;
            ``"random"``: 60/20/20, stratified by class.
        class_names: Name of each class or label, ``C`` of them, in the order of ``y``.
        node_ids: The nodes' own ids, ``[N]``, ``int64`` or ``str`` objects, unique.
        encoder: How a row of the user's table became a row of ``x``; ``None`` where the
            features came as an array.
        scaled_columns: Indices of the columns of ``x`` that a view standardises with the
            mean and deviation of its *observed* nodes; ``None`` for none.
        dataset: Name by which :func:`limbeck.load_graph` loads it again and whose presets apply;
            ``""`` for a graph of the user's own.
        surgery: Graph surgery that every view of the graph applies to what it observes; ``None``
            for none. The graph's own edges are those before it.
        notes: Further facts worth printing (directed, licence, what was dropped).
        task: What is asked of a node: ``"classes"``, one of them each; ``"labels"``, any number of
            them, which do not exclude each other.
    """

    name: str
    source: str
    split: SplitRule
    class_names: tuple[str, ...]
    node_ids: npt.NDArray[Any]
    encoder: FeatureEncoder | None = None
    scaled_columns: npt.NDArray[np.int64] | None = None
    dataset: str = ""
    surgery: SurgeryOptions | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    task: TaskName = "classes"

    @property
    def num_classes(self) -> int:
        """Number of classes or labels, also those that no labelled node has."""
        return len(self.class_names)
