"""What every method must do."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch_geometric.data import Data

from limbeck.errors import OptionError
from limbeck.evaluation.distill import distill
from limbeck.evaluation.protocol import Run
from limbeck.graphs.sparse import is_csr, to_csr
from limbeck.graphs.view import View, make_view
from limbeck.methods import Method
from limbeck.teachers.own import Teacher
from limbeck.teachers.sage import SAGE
from limbeck.testing.graphs import small_graph, small_label_graph
from limbeck.testing.students import check_student
from limbeck.training.loop import seeded


def check_method(method: Method) -> None:
    """Run the battery over a method, on small graphs.

    Determinism for a seed, other weights for another; no leakage of test labels or of unseen
    nodes, neither into the weights nor into the answers for observed nodes; every setting; dense
    and sparse features; isolated nodes and a graph without edges among the observed; several
    labels per node, or a refusal of them; the student's own battery; an unknown option is rejected.

    Args:
        method: The method with its hyper-parameters; a small network and few epochs will do.

    Raises:
        AssertionError: The method breaks a rule; the message says which.
    """
    _check_options(method)
    for sparse in (False, True):
        graph = small_graph(sparse=sparse)
        for setting in ("transductive", "inductive"):
            run = _distill(method, graph, setting)
            _check_run(run)
            _check_determinism(method, graph, setting, run)
            _check_leakage(method, graph, setting, run)
    _check_run(_distill(method, _without_edges(small_graph()), "inductive"))
    run = _distill(method, small_graph(), "transductive")
    check_student(run.student, run.inputs.observed, 3)
    _check_labels(method)


def _check_labels(method: Method) -> None:
    """Several labels per node: the same rules, or a refusal."""
    graph = small_label_graph()
    if "labels" not in method.tasks:
        try:
            _distill(method, graph, "transductive")
        except OptionError:
            return
        raise AssertionError("a task that the method does not list is accepted")
    for setting in ("transductive", "inductive"):
        run = _distill(method, graph, setting)
        _check_run(run)
        _check_determinism(method, graph, setting, run)
        _check_leakage(method, graph, setting, run)


def _check_options(method: Method) -> None:
    try:
        method.replace(no_such_option=1)
    except OptionError:
        pass
    else:
        raise AssertionError("an unknown option is accepted")
    try:
        method.max_epochs = 1
    except (AttributeError, ValueError):
        pass
    else:
        raise AssertionError("the method is not frozen")
    assert type(method)(**method.model_dump()) == method, "options do not survive a round trip"


def _check_run(run: Run) -> None:
    scores = run.scores["student"]
    assert 0 <= scores["test_accuracy"] <= 1, "the student has no test accuracy"
    assert not run.student.training, "the student is left in training mode"
    for part in (run.inputs.observed, run.inputs.unseen, run.inputs.isolated):
        assert part.neighbors is None or part.neighbors.shape[1] == run.view.num_observed, (
            "neighbours are not those of the observed graph"
        )
    graph = run.inputs.observed.graph
    assert graph is None or len(graph.x) == run.view.num_observed, (
        "the graph around observed nodes is not the observed graph"
    )
    if run.view.has_unseen:
        several = "batch" in run.view.graph  # of which test graphs are unseen as a whole
        production = () if several else ("production",)
        for setting in ("inductive", *production, "cold-start"):
            accuracy = run.in_setting(setting).scores["student"]["test_accuracy"]
            assert 0 <= accuracy <= 1, f"no score in the setting {setting!r}"


def _check_determinism(method: Method, graph: Data, setting: str, run: Run) -> None:
    again = _distill(method, graph, setting)
    assert same_weights(run, again), "the same seed gives other weights"
    assert not same_weights(run, _distill(method, graph, setting, seed=1)), (
        "another seed gives the same weights"
    )


def _check_leakage(method: Method, graph: Data, setting: str, run: Run) -> None:
    view = run.view
    assert same_weights(run, _distill(method, with_other_test_labels(graph, view), setting)), (
        "test labels change the student"
    )
    if view.has_unseen:
        there = _distill(method, with_noise_on_unseen(graph, view), setting)
        assert same_weights(run, there), "features or edges of unseen nodes change the student"
        assert torch.equal(run.answers.observed, there.answers.observed), (
            "features or edges of unseen nodes change the answers for observed ones"
        )


def with_other_test_labels(graph: Data, view: View) -> Data:
    """The graph with the labels of all test nodes replaced, its split kept."""
    nodes = view.nodes[torch.cat([view.test_observed, view.test_unseen])]
    changed = _with_fixed_split(graph, view)
    changed.y = graph.y.clone()
    others = 1 - graph.y[nodes] if graph.y.dim() == 2 else (graph.y[nodes] + 1) % view.num_classes
    changed.y[nodes] = others
    return changed


def with_noise_on_unseen(graph: Data, view: View) -> Data:
    """The graph with noise for the features of unseen nodes, and with other edges to them."""
    unseen = view.nodes[view.test_unseen]
    changed = _with_fixed_split(graph, view)
    x = graph.x.to_dense().clone()
    generator = torch.Generator().manual_seed(1)
    x[unseen] = (torch.rand(x[unseen].shape, generator=generator) > 0.5).float()
    changed.x = to_csr(x) if is_csr(graph.x) else x
    kept = ~torch.isin(graph.edge_index, unseen).any(0)
    new = torch.stack([unseen, unseen.roll(1)])
    changed.edge_index = torch.cat([graph.edge_index[:, kept], new, new.flip(0)], dim=1)
    return changed


def same_weights(one: Run, other: Run) -> bool:
    """Whether two students are equal to the bit, and of one form."""
    theirs: dict[str, Tensor] = other.student.state_dict()
    mine: dict[str, Tensor] = one.student.state_dict()
    if mine.keys() != theirs.keys():
        return False
    return all(torch.equal(value, theirs[name]) for name, value in mine.items())


def _with_fixed_split(graph: Data, view: View) -> Data:
    """A copy whose split is written down, so that changed labels cannot move it."""
    changed = graph.clone()
    parts = {
        "train": view.train,
        "val": view.val,
        "test": torch.cat([view.test_observed, view.test_unseen]),
    }
    for name, nodes in parts.items():
        mask = torch.zeros(len(view.nodes), dtype=torch.bool)
        mask[view.nodes[nodes]] = True
        changed[f"{name}_mask"] = mask
    changed.info = dataclasses.replace(graph.info, split="fixed")
    return changed


def _without_edges(graph: Data) -> Data:
    changed = graph.clone()
    changed.edge_index = graph.edge_index[:, :0]
    return changed


def _distill(method: Method, graph: Data, setting: str, seed: int = 0) -> Run:
    """Distil networks with random weights, so that the battery needs no trained teacher.

    A method for several teachers gets two of different depths.
    """
    view = make_view(graph, setting, 0)
    depths = (2, 3) if method.several_teachers else (2,)
    with seeded(7):
        networks = [SAGE(view.num_features, 8, view.num_classes, depth) for depth in depths]
    return distill(view, [Teacher(network) for network in networks], method, seed)
