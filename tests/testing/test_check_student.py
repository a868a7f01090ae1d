"""The battery over students: it must notice what it is there for."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from limbeck.students import InputSpec, NodeInputs
from limbeck.students.gnn import GNNStudent
from limbeck.students.inputs import Surroundings
from limbeck.teachers.gcn import GCN
from limbeck.testing import check_student

NODES = 6


class Banded(torch.nn.Module):
    """Reads features and bands, and answers from the features alone where there are none."""

    def __init__(self) -> None:
        super().__init__()
        self.of_x = torch.nn.Linear(4, 3)
        self.of_bands = torch.nn.Linear(5, 3)

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        return (InputSpec("x", 4), InputSpec("bands", 5))

    def forward(self, inputs: NodeInputs) -> Tensor:
        logits: Tensor = self.of_x(inputs.x)
        return logits if inputs.bands is None else logits + self.of_bands(inputs.bands)


def banded() -> NodeInputs:
    return NodeInputs(torch.randn(NODES, 4), bands=torch.randn(NODES, 5))


def around() -> NodeInputs:
    edges = torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2]])
    x = torch.randn(NODES, 4)
    return NodeInputs(x, graph=Surroundings(x, edges, torch.arange(NODES)))


def test_bands_are_optional() -> None:
    check_student(Banded(), banded(), 3)

    class Strict(Banded):
        def forward(self, inputs: NodeInputs) -> Tensor:
            logits: Tensor = super().forward(inputs)
            return logits if inputs.bands is not None else logits / 0

    with pytest.raises(AssertionError, match="logits of nodes without bands are not finite"):
        check_student(Strict(), banded(), 3)


def test_bands_have_the_width_that_is_declared() -> None:
    student = Banded()
    student.of_bands = torch.nn.Linear(7, 3)
    wide = replace(banded(), bands=torch.randn(NODES, 7))
    with pytest.raises(AssertionError, match="5 values are declared for bands of 7"):
        check_student(student, wide, 3)


def test_layers_end_in_the_logits_and_have_a_row_per_node() -> None:
    class Layered(Banded):
        def layers(self, inputs: NodeInputs) -> dict[str, Tensor]:
            return {"hidden1": inputs.x[:1], "logits": self(inputs)}

    with pytest.raises(AssertionError, match="layer hidden1 has 1 rows"):
        check_student(Layered(), banded(), 3)

    class Backwards(Banded):
        def layers(self, inputs: NodeInputs) -> dict[str, Tensor]:
            return {"logits": self(inputs), "hidden1": inputs.x}

    with pytest.raises(AssertionError, match="the last of the student's layers is not its logits"):
        check_student(Backwards(), banded(), 3)


def test_a_graph_has_the_nodes_that_are_declared() -> None:
    gnn = GCN(4, 8, 3)
    check_student(GNNStudent(gnn, NODES), around(), 3)
    with pytest.raises(AssertionError, match="9 nodes are declared, the graph has 6"):
        check_student(GNNStudent(gnn, 9), around(), 3)


def test_the_numbering_of_nodes_means_nothing() -> None:
    class Counting(GNNStudent):
        def layers(self, inputs: NodeInputs) -> dict[str, Tensor]:
            assert inputs.graph is not None
            number = inputs.graph.nodes.float().unsqueeze(1)
            logits = super().layers(inputs)["logits"]
            return {"logits": logits + number * torch.tensor([1.0, 0.0, 0.0])}

    with pytest.raises(AssertionError, match="not close"):
        check_student(Counting(GCN(4, 8, 3), NODES), around(), 3)
