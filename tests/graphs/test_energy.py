"""Energies: two definitions of one number, where dynamics settle, and the gain of a model."""

import math

import networkx as nx
import pytest
import torch

from limbeck.errors import InputError
from limbeck.graphs.adjacency import symmetric_adjacency
from limbeck.graphs.energy import (
    EDGE_BLOCK,
    band_gains,
    band_shares,
    dirichlet_energy,
    gain_curve,
    rayleigh_quotient,
)
from limbeck.graphs.framelets import FrameletOptions, Framelets
from limbeck.graphs.sparse import to_csr

EXACT = FrameletOptions(mode="eigh")


def regular_graph(degree: int, num_nodes: int) -> torch.Tensor:
    return torch.tensor(list(nx.random_regular_graph(degree, num_nodes, seed=0).edges)).t()


def random_graph(num_nodes: int = 40, num_edges: int = 90) -> torch.Tensor:
    return torch.randint(num_nodes, (2, num_edges), generator=torch.Generator().manual_seed(0))


def signal(num_nodes: int, width: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(num_nodes, width, generator=generator, dtype=torch.float64)


def dense_laplacian(edge_index: torch.Tensor, num_nodes: int) -> torch.Tensor:
    """I − Â with one self-loop per node, dense."""
    both = torch.cat([edge_index, edge_index.flip(0)], dim=1)
    both = both[:, both[0] != both[1]].unique(dim=1)
    return torch.eye(num_nodes).double() - symmetric_adjacency(both, num_nodes).to_dense().double()


def test_energy_by_edges_is_the_trace(monkeypatch):
    graph, h = random_graph(), signal(40)
    trace = float((h * (dense_laplacian(graph, 40) @ h)).sum())
    assert dirichlet_energy(h, graph) == pytest.approx(trace, rel=1e-6)
    monkeypatch.setattr("limbeck.graphs.energy.EDGE_BLOCK", 7)
    assert EDGE_BLOCK > 7
    assert dirichlet_energy(h, graph) == pytest.approx(trace, rel=1e-6)


def test_sparse_signal_has_the_same_energy():
    graph, h = random_graph(), (signal(40) > 1).float()
    assert dirichlet_energy(to_csr(h), graph) == dirichlet_energy(h, graph)


def test_quotient_of_eigenvectors_is_their_eigenvalue():
    graph = random_graph()
    values, vectors = torch.linalg.eigh(dense_laplacian(graph, 40))
    for index in (0, 20, 39):
        quotient = rayleigh_quotient(3 * vectors[:, [index]], graph)
        assert quotient == pytest.approx(float(values[index]), abs=1e-6)


@pytest.mark.parametrize("bank", ["haar", "linear"])
@pytest.mark.parametrize("levels", [1, 2])
def test_shares_sum_to_one(bank, levels):
    graph, h = random_graph(), signal(40)
    options = FrameletOptions(bank=bank, levels=levels, mode="eigh")
    shares = band_shares(h, Framelets(graph, 40, options))
    assert len(shares) == len(options.bands)
    assert float(shares.sum()) == pytest.approx(1, abs=1e-6)
    assert bool((shares > 0).all())


def test_a_smooth_signal_lives_in_the_low_band_and_a_rough_one_does_not():
    graph = random_graph()
    framelets = Framelets(graph, 40, EXACT)
    laplacian = framelets.laplacian(torch.eye(40, dtype=torch.float64))
    vectors = torch.linalg.eigh(laplacian)[1]
    connected = vectors[:, (torch.linalg.eigvalsh(laplacian) > 1e-6)]
    assert float(band_shares(connected[:, :1], framelets)[0]) > 0.9
    assert float(band_shares(connected[:, -1:], framelets)[0]) < 0.1


def test_signals_without_energy():
    graph = regular_graph(4, 20)
    with pytest.raises(InputError, match="without energy"):
        band_shares(torch.ones(20, 2), Framelets(graph, 20, EXACT))
    with pytest.raises(InputError, match="zero everywhere"):
        rayleigh_quotient(torch.zeros(20, 2), graph)


@pytest.mark.parametrize(("theta", "settles_high"), [(0.5, False), (1.5, True)])
def test_where_the_spectral_layer_settles(theta, settles_high):
    """Low-frequency dominant iff |θ| < 1: the response is 1 + (θ − 1) sin²(ξ/2)."""
    graph, num_nodes = regular_graph(4, 60), 60
    framelets = Framelets(graph, num_nodes, EXACT)
    h = signal(num_nodes)
    for _ in range(400):
        low, high = framelets.decompose(h)
        h = framelets.reconstruct([low, theta * high])
        h = h / h.norm()
    largest = float(torch.linalg.eigvalsh(dense_laplacian(graph, num_nodes))[-1])
    if settles_high:
        assert rayleigh_quotient(h, graph) > 0.95 * largest
    else:
        assert rayleigh_quotient(h, graph) < 1e-3


@pytest.mark.parametrize(("factor", "settles_high"), [(0.85, False), (1.15, True)])
def test_how_much_epsilon_turns_the_dynamics(factor, settles_high):
    """On a d-regular graph the top beats the zero mode iff ε > (d + 1)(1 + |μ_min|) / 2."""
    degree, num_nodes = 4, 60
    graph = regular_graph(degree, num_nodes)
    laplacian = dense_laplacian(graph, num_nodes)
    largest = float(torch.linalg.eigvalsh(laplacian)[-1])
    threshold = (degree + 1) * (1 + abs(1 - largest)) / 2
    options = EXACT.replace(epsilon=factor * threshold)
    framelets = Framelets(graph, num_nodes, options)
    h = signal(num_nodes)
    for _ in range(400):
        h = torch.stack(framelets.propagate(h)).sum(0)
        h = h / h.norm()
    quotient = rayleigh_quotient(h, graph)
    assert quotient > 0.5 * largest if settles_high else quotient < 1e-3


def test_gain_of_a_model_with_one_weight_per_band():
    """Haar, J = 1: the bands are cos² and sin² of πλ/4, times 1 − λ."""
    eigenvalues = torch.linspace(0, 2, 9, dtype=torch.float64)
    quarter = math.pi * eigenvalues / 4
    low, high = band_gains(EXACT, eigenvalues, power=2)
    torch.testing.assert_close(low, (quarter.cos() ** 2 * (1 - eigenvalues)) ** 2)
    torch.testing.assert_close(high, (quarter.sin() ** 2 * (1 - eigenvalues)) ** 2)
    weights = [torch.diag(torch.tensor([2.0, 1.0])), torch.diag(torch.tensor([0.0, 3.0]))]
    curve = gain_curve(EXACT, weights, eigenvalues, power=2)
    wanted = torch.maximum(2 * low, low + 3 * high)
    torch.testing.assert_close(curve, wanted)
    assert float(curve[4]) == pytest.approx(0, abs=1e-12)  # λ = 1 is silenced in every band


def test_gain_is_the_operator_of_a_fused_transform():
    graph = random_graph()
    options = FrameletOptions(mode="eigh", fused=True)
    framelets = Framelets(graph, 40, options)
    values, vectors = torch.linalg.eigh(dense_laplacian(graph, 40))
    gains = band_gains(options, values, power=2)
    for gain, part in zip(gains, framelets.propagate(vectors, 2), strict=True):
        torch.testing.assert_close(part, gain * vectors, atol=1e-5, rtol=0)


def test_one_weight_per_band():
    with pytest.raises(InputError, match="1 weights were given for 2 bands"):
        gain_curve(EXACT, [torch.eye(2)], torch.tensor([0.5]))
