"""A small bundle whose answers are known by hand, made without torch."""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from limbeck.runtime.store import store_arrays

# logits = x @ WEIGHT + BIAS, for 3 features and 2 classes
WEIGHT = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, -1.0]], dtype=np.float32)
BIAS = np.array([0.5, 0.0], dtype=np.float32)
X = np.array([[1, 0, 0], [0, 3, 0], [0, 0, 2], [0, 0, 0]], dtype=np.float32)


def linear_model(weight: np.ndarray = WEIGHT, bias: np.ndarray = BIAS) -> bytes:
    width, num_classes = weight.shape
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "weight", "bias"], ["logits"])],
        "student",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", num_classes])],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def manifest_fields(num_nodes: int = 4, **changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "limbeck": "0.1.0",
        "method": "glnn",
        "student": "mlp",
        "classes": ["art", "maths"],
        "inputs": [{"name": "x", "dtype": "float32", "width": 3}],
        "routing": [],
        "sparse": None,
        "preprocessing": None,
        "hyper_parameters": {"hidden": 8},
        "teacher": {"name": "sage"},
        "setting": "inductive",
        "scores": {"student": {"test_accuracy": 0.75}},
        "latency": None,
        "calibration": {"temperature": 2.0},
        "graph": {
            "name": "tiny",
            "dataset": "",
            "source": "made by hand",
            "fingerprint": "0123",
            "counts": {"nodes": num_nodes, "edges": 3},
        },
        "versions": {"python": "3.11"},
    }
    return fields | changes


def tiny_parts(ids: Any = ("a", "b", "ç", "")) -> dict[str, Any]:
    """Arguments of ``write_bundle`` but the path."""
    array = np.asarray(ids) if isinstance(ids[0], int) else np.array(ids, dtype=object)
    return {
        "manifest": manifest_fields(),
        "model": linear_model(),
        "store": store_arrays(array, X, X @ WEIGHT + BIAS),
        "card": "# tiny\n",
    }
