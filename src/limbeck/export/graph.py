"""A thin layer over ``onnx.helper``: an ONNX graph written as one writes the formula."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 20
IR_VERSION = 10  # the one that came with this opset
LARGEST_SHARED = 64

Dtype: TypeAlias = Literal["float32", "int64"]
Signature: TypeAlias = Mapping[str, tuple[Dtype, tuple[str | int, ...]]]
"""Names of inputs or outputs, with their type and shape; a dimension with a name is free."""

_ELEMENTS = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}


@dataclass
class Graph:
    """An ONNX graph being written; values are known by name.

    Example::

        g = Graph()
        y = g.op("MatMul", "x", np.eye(3, dtype=np.float32))
    """

    _nodes: list[Any] = field(default_factory=list)
    _written: int = 0  # nodes in branches
    _constants: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    _names: dict[tuple[str, tuple[int, ...], bytes], str] = field(default_factory=dict)

    def op(self, kind: str, *inputs: str | npt.NDArray[Any], **attributes: Any) -> str:
        """Add an operation with one output.

        Args:
            kind: Name of the ONNX operator.
            inputs: Names of values, or constants.
            attributes: Attributes of the operator.

        Returns:
            The name of its output.
        """
        return self.ops(kind, 1, *inputs, **attributes)[0]

    def ops(
        self, kind: str, num_outputs: int, *inputs: str | npt.NDArray[Any], **attributes: Any
    ) -> list[str]:
        """Add an operation with several outputs; see :meth:`op`."""
        name = f"{kind}_{self._written + len(self._nodes)}"
        outputs = [f"{name}_{i}" if num_outputs > 1 else name for i in range(num_outputs)]
        named = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        self._nodes.append(helper.make_node(kind, named, outputs, name=name, **attributes))
        return outputs

    def choose(
        self,
        condition: str,
        then: Callable[[], Sequence[str]],
        otherwise: Callable[[], Sequence[str]],
    ) -> list[str]:
        """Add values that are computed in one of two ways, of which the other costs nothing.

        Args:
            condition: Name of a boolean scalar.
            then: Writes the one way and returns its float32 values, as many as the other's.
            otherwise: Writes the other way.

        Returns:
            The names of the values.
        """
        branches = {}
        for name, write in (("then_branch", then), ("else_branch", otherwise)):
            before = len(self._nodes)
            # a branch must compute what it returns, even where that is at hand outside
            values = [self.op("Identity", value) for value in write()]
            ends = [helper.make_tensor_value_info(v, TensorProto.FLOAT, None) for v in values]
            branches[name] = helper.make_graph(self._nodes[before:], name, [], ends)
            # names go on counting, since those of a branch must not occur outside of it
            self._nodes[before:] = []
            self._written += len(branches[name].node)
        return self.ops("If", len(values), condition, **branches)

    def name(self, value: str, name: str) -> None:
        """Give a value the name that it is to have outside."""
        for node in self._nodes:
            for ends in (node.input, node.output):
                ends[:] = [name if end == value else end for end in ends]

    def constant(self, array: npt.NDArray[Any]) -> str:
        """The name of a constant; equal small ones, such as axes, are held once."""
        array = without_subnormals(array)
        fresh = f"constant_{len(self._constants)}"
        if array.size > LARGEST_SHARED:
            self._constants[fresh] = array
            return fresh
        name = self._names.setdefault((array.dtype.str, array.shape, array.tobytes()), fresh)
        self._constants.setdefault(name, array)
        return name

    def model(self, inputs: Signature, outputs: Signature) -> bytes:
        """The checked model, serialised.

        Args:
            inputs: What the model reads.
            outputs: What it answers; every one was named by :meth:`name`.
        """
        graph = helper.make_graph(
            self._nodes,
            "student",
            [_value(name, *kind) for name, kind in inputs.items()],
            [_value(name, *kind) for name, kind in outputs.items()],
            [numpy_helper.from_array(array, name) for name, array in self._constants.items()],
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="limbeck",
        )
        onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString(deterministic=True))


def without_subnormals(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The array with zeros for its subnormal numbers, in float32 those below 1.2e-38.

    Beside any other number a product with them is lost in rounding, and many processors take a
    hundred cycles and more for one: with 2 % of such weights a student took twenty times as long.
    """
    if array.dtype.kind != "f":
        return array
    small = (array != 0) & (np.abs(array) < np.finfo(array.dtype).smallest_normal)
    return np.where(small, array.dtype.type(0), array) if small.any() else array


def int64(*values: int) -> npt.NDArray[np.int64]:
    """A constant vector of integers, such as axes."""
    return np.array(values, dtype=np.int64)


def float32(value: float) -> npt.NDArray[np.float32]:
    """A constant scalar."""
    return np.array(value, dtype=np.float32)


def _value(name: str, dtype: Dtype, shape: tuple[str | int, ...]) -> Any:
    return helper.make_tensor_value_info(name, _ELEMENTS[dtype], list(shape))
