"""What a student reads of a node, and how it says so."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from limbeck.graphs.sparse import take_rows


@dataclass(frozen=True)
class InputSpec:
    """Declaration of one node input; batching, export, runtime and server follow from it.

    Args:
        name: ``"x"``: the node's features.
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
    """

    x: Tensor

    def __len__(self) -> int:
        return int(self.x.shape[0])

    def take(self, index: Tensor) -> NodeInputs:
        """Return the inputs of the nodes ``index`` (int64 ``[b]``), in that order."""
        return NodeInputs(x=take_rows(self.x, index))
