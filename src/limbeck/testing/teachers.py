"""What every teacher must do."""

from __future__ import annotations

import torch

from limbeck.graphs.view import make_view
from limbeck.teachers.base import TeacherOptions
from limbeck.teachers.fit import train
from limbeck.teachers.knowledge import ask
from limbeck.testing.graphs import small_graph
from limbeck.training.loop import seeded


def check_teacher(options: TeacherOptions, *, min_accuracy: float = 0.6) -> None:
    """Run the battery over a teacher's options, on a small graph.

    Dense and sparse features give the same logits; prepared edges equal plain ones; training is
    deterministic for a seed and learns; knowledge is of observed nodes only; new nodes with and
    without edges, and a graph without edges, are answered.

    Args:
        options: The teacher with its hyper-parameters.
        min_accuracy: Accuracy on observed test nodes that training must reach.

    Raises:
        AssertionError: The teacher breaks a rule; the message says which.
    """
    view = make_view(small_graph(), "inductive", 0)
    with seeded(0):
        module = options.build(view).eval()
    graph = view.observed
    rows = view.num_observed
    with torch.no_grad():
        logits = module(graph.x, graph.edge_index)
        assert logits.shape == (rows, view.num_classes), f"logits have shape {logits.shape}"
        assert logits.dtype == torch.float32, f"logits are {logits.dtype}, not float32"
        prepared = module(graph.x, module.prepare(graph.edge_index, rows))
        torch.testing.assert_close(prepared, logits, rtol=1e-4, atol=1e-5)
        as_csr = module(graph.x.to_sparse_csr(), graph.edge_index)
        torch.testing.assert_close(as_csr, logits, rtol=1e-4, atol=1e-4)
        no_edges = module(graph.x, graph.edge_index[:, :0])
        assert torch.isfinite(no_edges).all(), (
            "a graph without edges gives logits that are not finite"
        )
    states = []
    for _ in range(2):
        with seeded(0):
            module = options.build(view)
            train(module, view, options)
        states.append(module.state_dict())
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), f"training is not deterministic: {name} differs"
    knowledge, answers = ask(module, view, options.name, options.num_layers)
    assert len(knowledge.logits) == rows, "knowledge covers more than the observed nodes"
    assert answers.unseen is not None
    assert answers.isolated is not None
    assert len(answers.unseen) == len(answers.isolated) == len(view.test_unseen)
    labels = view.everything.y[view.test_observed]
    right = (knowledge.logits[view.test_observed].argmax(1) == labels).float().mean()
    assert right >= min_accuracy, f"training reached an accuracy of {right:.2f} only"
