"""A bundle of a network that no method trained, on nodes that were made by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from limbeck.export import export_bundle
from limbeck.graphs.info import GraphInfo
from limbeck.students.inputs import NodeInputs

CLASS_NAMES = ("a", "b", "c")


def export_toy(
    path: Path, student: torch.nn.Module, inputs: NodeInputs, name: str, **options: Any
) -> Path:
    """Export a network; nodes are known by their numbers.

    Args:
        path: The bundle.
        student: Its network.
        inputs: What it reads of the nodes.
        name: Of the network, as the bundle calls it.
        **options: Further ones of ``export_bundle``.
    """
    return export_bundle(
        path,
        student=student,
        inputs=inputs,
        graph_info=GraphInfo("toy", "made by hand", "fixed", CLASS_NAMES, np.arange(len(inputs))),
        method=name,
        student_name=name,
        hyper_parameters={},
        teacher={},
        setting="transductive",
        scores={},
        fingerprint="",
        counts={},
        columns=torch.arange(len(inputs)),
        **options,
    )


def neighbor_lists(inputs: NodeInputs) -> list[list[int]]:
    """The neighbours of each node, by their numbers."""
    assert inputs.neighbors is not None
    return [row.nonzero().flatten().tolist() for row in inputs.neighbors.to_dense()]
