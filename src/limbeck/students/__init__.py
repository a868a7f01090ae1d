"""Students: one network per file, and the node inputs that they declare."""

from limbeck.students.inputs import InputSpec, NodeInputs, ViewInputs, inputs_of
from limbeck.students.mlp import MLP

__all__ = ["MLP", "InputSpec", "NodeInputs", "ViewInputs", "inputs_of"]
