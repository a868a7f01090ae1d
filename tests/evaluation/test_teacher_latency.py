"""How far a teacher reads, on which the time of its exact answer depends."""

import pytest
import torch
from torch_geometric.data import Data

from limbeck.evaluation.cells import TIMED_TEACHERS
from limbeck.evaluation.latency import measure_teacher_latency
from limbeck.graphs.load import load_graph
from limbeck.graphs.view import make_view
from limbeck.teachers.fit import teacher_options
from limbeck.testing import small_graph


def path(num_nodes: int) -> Data:
    """Nodes in a row, the first of which are in the parts of a split."""
    steps = torch.stack([torch.arange(num_nodes - 1), torch.arange(1, num_nodes)])
    place = torch.arange(num_nodes)
    masks = {"train_mask": place < 2, "val_mask": place == 2, "test_mask": place > 2}
    y = (place == 1).long()
    x = torch.rand(num_nodes, 4, generator=torch.Generator().manual_seed(0))
    edges = torch.cat([steps, steps.flip(0)], dim=1)
    return Data(x=x, edge_index=edges, y=y, **masks)


@pytest.mark.parametrize("name", [name for name in TIMED_TEACHERS if name != "linkx"])
def test_an_answer_depends_on_features_as_far_as_it_reaches(name: str) -> None:
    options = teacher_options(name, "cora", fan_out=(), dropout=0.0)
    num_nodes = 2 * options.hops + 3
    view = make_view(load_graph(path(num_nodes)), "transductive", 0)
    torch.manual_seed(0)
    module = options.build(view).double().eval()
    x = view.everything.x.double().requires_grad_(True)
    adj = module.prepare(view.everything.edge_index, num_nodes)
    module(x, adj.double() if adj.is_floating_point() else adj)[0].sum().backward()
    assert x.grad is not None
    furthest = int(x.grad.abs().sum(1).nonzero().max())
    assert furthest == options.hops


def test_all_ways_to_answer_are_timed() -> None:
    options = teacher_options("appnp", "cora").model_dump()
    figures = measure_teacher_latency("appnp", options, small_graph(), (1,), seconds=0.1)
    assert set(figures) == {
        "teacher, whole graph",
        "teacher, all neighbours",
        "teacher, drawn neighbours",
    }
    assert all(way["1"]["p50_us"] > 0 for way in figures.values())
