"""Jacobians against their closed form and their bound; what a run's report says."""

import pytest
import torch

import limbeck
from limbeck.evaluation.framelets import (
    GATE_BINS,
    framelet_diagnostics,
    influence_bound,
    jacobian,
    linear_jacobian,
    reach,
)
from limbeck.graphs.framelets import FrameletOptions, Framelets
from limbeck.graphs.sparse import to_csr
from limbeck.methods.fmlp import FMLPSimplified
from limbeck.methods.glnn import GLNN
from limbeck.teachers.framelet import OriginalFramelet, SimplifiedFramelet
from limbeck.testing.graphs import small_graph
from limbeck.training.loop import seeded

NODES = 20
EXACT = FrameletOptions(mode="eigh")


@pytest.fixture
def graph() -> torch.Tensor:
    return torch.randint(NODES, (2, 35), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(NODES, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("power", [1, 2])
def test_linear_model_by_autograd_and_in_closed_form(graph, x, power):
    with seeded(0):
        model = SimplifiedFramelet(6, 3, power, EXACT).eval()
    nodes = torch.tensor([0, 7, 19])
    found = jacobian(lambda some: model(some, graph), x, nodes)
    weights = list(model.weights)
    wanted = linear_jacobian(Framelets(graph, NODES, EXACT), weights, power, nodes)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    assert float(found.max()) > 0.01


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_original_network_stays_below_the_bound(graph, x, num_layers):
    with seeded(0):
        model = OriginalFramelet(6, 5, 3, num_layers, EXACT).double().eval()
    nodes = torch.arange(NODES)
    bound = influence_bound(Framelets(graph, NODES, EXACT), num_layers)
    for conv in model.convs:
        bound = bound * max(float(torch.linalg.matrix_norm(w.detach(), 2)) for w in conv.weights)

    def answer(some: torch.Tensor) -> torch.Tensor:
        return model(some.double(), graph)

    found = torch.zeros(NODES, NODES)
    for v in nodes.tolist():
        jac = torch.autograd.functional.jacobian(lambda some, v=v: answer(some)[v], x.double())
        found[v] = torch.linalg.matrix_norm(jac.transpose(0, 1), 2)
    assert bool((found <= bound + 1e-9).all())
    assert float(found.max()) > 0.01


def test_sparse_features_have_the_same_jacobian(graph, x):
    x = (x > 0).float()
    with seeded(0):
        model = SimplifiedFramelet(6, 3, 1, EXACT).eval()
    one, other = (
        jacobian(lambda some: model(some, graph), features, torch.tensor([3]))
        for features in (x, to_csr(x))
    )
    assert torch.equal(one, other)


def test_reach_on_a_path():
    path = torch.stack([torch.arange(4), torch.arange(1, 5)])
    influence = torch.tensor([[4.0, 2.0, 1.0, 1.0, 0.0], [1.0, 2.0, 4.0, 2.0, 1.0]]).double()
    found = reach(influence, path, torch.tensor([0, 2]))
    assert found.distance.tolist() == [0, 1, 2, 3, 4]
    assert found.pairs.tolist() == [2, 3, 3, 1, 1]
    torch.testing.assert_close(found.norm, torch.tensor([4.0, 2.0, 1.0, 1.0, 0.0]).double())
    torch.testing.assert_close(
        found.share, torch.tensor([0.45, 0.325, 0.1625, 0.0625, 0.0]).double()
    )


def test_nodes_of_other_components_are_nobodys_distance():
    pair = torch.tensor([[0], [1]])
    found = reach(torch.tensor([[3.0, 1.0, 4.0]]).double(), pair, torch.tensor([0]))
    assert found.pairs.tolist() == [1, 1]
    assert float(found.share.sum()) == pytest.approx(0.5)


@pytest.fixture(scope="module")
def view():
    return limbeck.view(small_graph())


def test_report_of_a_framelet_student(view):
    teacher = limbeck.fit_teacher(view, "framelet-simplified", max_epochs=5)
    run = limbeck.distill(view, teacher, FMLPSimplified(hidden_channels=8, max_epochs=5))
    report = framelet_diagnostics(run)
    assert 0 <= report["edge_homophily"] <= 1
    (gates,) = report["gates"]
    assert set(gates) == {"low", "high"}
    for gate in gates.values():
        assert 0 < gate["mean"] < 1
        assert len(gate["histogram"]) == GATE_BINS
        assert sum(gate["histogram"]) == view.num_observed
    assert sum(report["shares"].values()) == pytest.approx(1, abs=1e-4)
    for who in ("teacher", "student"):
        energies = report[who]["logits"]
        assert 0 < energies["rayleigh"] < 2
        assert sum(energies["band_shares"].values()) == pytest.approx(1, abs=1e-3)
    (weights,) = report["weights"]
    assert weights["low"] == pytest.approx(float(teacher.module.weights[0].detach().norm()))
    assert 0 <= report["gain"]["peak"] <= 2


def test_report_of_another_student(view):
    teacher = limbeck.fit_teacher(view, "gcn", max_epochs=3)
    run = limbeck.distill(view, teacher, GLNN(max_epochs=3))
    report = framelet_diagnostics(run)
    assert "gates" not in report
    assert report["student"]["logits"]["rayleigh"] > 0
    assert list(report["teacher"])[-1] == "logits"
