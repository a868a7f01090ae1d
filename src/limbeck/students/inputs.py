"""What a student reads of a node, and how it says so."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.graphs.positions import PositionOptions, positions_of
from limbeck.graphs.sparse import take_rows
from limbeck.graphs.view import View


@dataclass(frozen=True)
class InputSpec:
    """Declaration of one node input; batching, export, runtime and server follow from it.

    Args:
        name: ``"x"``: the node's features; ``"position"``: its positional encoding.
        width: Number of values per node.
        dtype: Type of the values on the wire and in ONNX.
    """

    name: str
    width: int
    dtype: str = "float32"


@dataclass(frozen=True)
class NodeInputs:
    """The inputs of ``B`` nodes.

    Args:
        x: Features ``[B, F]``, float32, dense or ``torch.sparse_csr``.
        position: Positional encodings ``[B, d]``, float32, or ``None``.
    """

    x: Tensor
    position: Tensor | None = None

    def __len__(self) -> int:
        return int(self.x.shape[0])

    def take(self, index: Tensor) -> NodeInputs:
        """Return the inputs of the nodes ``index`` (int64 ``[b]``), in that order."""
        position = None if self.position is None else self.position[index]
        return NodeInputs(take_rows(self.x, index), position)


@dataclass(frozen=True)
class ViewInputs:
    """The inputs of all nodes of a view, as a student would get them in each condition.

    Args:
        observed: Of the observed nodes.
        unseen: Of the unseen nodes when they arrive with their edges.
        isolated: Of the unseen nodes when they arrive without edges.
    """

    observed: NodeInputs
    unseen: NodeInputs
    isolated: NodeInputs


def inputs_of(view: View, positions: PositionOptions | None = None) -> ViewInputs:
    """Build the inputs of a view's nodes; everything learnt comes from the observed graph.

    Args:
        view: What may be seen.
        positions: Which positional encoding the student reads beside ``x``; ``None`` for none.
    """
    x = view.everything.x
    unseen = take_rows(x, torch.arange(view.num_observed, len(view.nodes)))
    if positions is None:
        new = NodeInputs(unseen)
        return ViewInputs(NodeInputs(view.observed.x), new, new)
    there = positions_of(view, positions)
    return ViewInputs(
        NodeInputs(view.observed.x, there.observed),
        NodeInputs(unseen, there.unseen),
        NodeInputs(unseen, there.isolated),
    )
