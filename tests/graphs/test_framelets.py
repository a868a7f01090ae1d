"""The framelet transform: its filters, its frame, and its realisations against each other."""

import numpy as np
import pytest
import torch
from numpy.polynomial import chebyshev
from torch_geometric.utils import erdos_renyi_graph, get_laplacian, to_dense_adj

from limbeck.errors import GraphError, OptionError, OutputError
from limbeck.graphs.framelet_banks import (
    NUM_HIGH,
    FrameletOptions,
    coefficients,
    filters,
    power_series,
    response,
)
from limbeck.graphs.framelets import Framelets, clean_adjacency

BANKS = list(NUM_HIGH)
MODES = ["matfree", "sparse", "eigh"]

# the largest |Σ w_b² − 1| by degree: Haar and Linear at one and at two levels
DEFECTS = {
    1: (2.7e-1, 5.7e-1, 3.9e-1, 5.4e-1),
    2: (2.5e-2, 5.1e-2, 1.4e-1, 3.1e-1),
    3: (3.9e-3, 5.8e-3, 2.8e-2, 2.6e-2),
    4: (2.0e-4, 4.0e-4, 4.4e-3, 8.8e-3),
    5: (2.0e-5, 3.0e-5, 6.0e-4, 4.9e-4),
    6: (7.5e-7, 1.5e-6, 6.7e-5, 1.3e-4),
    8: (1.6e-9, 3.3e-9, 5.9e-7, 1.2e-6),
}


def path(n):
    return torch.stack([torch.arange(n - 1), torch.arange(1, n)])


def cycle(n):
    return torch.stack([torch.arange(n), (torch.arange(n) + 1) % n])


def random_graph(n=60, p=0.08):
    torch.manual_seed(0)
    return erdos_renyi_graph(n, p)


GRAPHS = {
    "random": (random_graph(), 60),
    "star": (torch.stack([torch.zeros(9, dtype=torch.int64), torch.arange(1, 10)]), 10),
    "path": (path(12), 12),
    "cycle": (cycle(11), 11),
    "bipartite cycle": (cycle(10), 10),
    "complete": (torch.combinations(torch.arange(8)).t(), 8),
    "disconnected": (torch.cat([path(5), path(6) + 5], dim=1), 11),
    "isolated nodes": (path(6) + 1, 9),
    "without edges": (path(4)[:, :0], 4),
    "one node": (path(1), 1),
}


def signal(num_nodes, width=3, dtype=torch.float64):
    return torch.randn(num_nodes, width, dtype=dtype, generator=torch.Generator().manual_seed(1))


def dense_laplacian(edge_index, num_nodes):
    edge_index = clean_adjacency(edge_index, num_nodes).to_sparse_coo().indices()
    edges, weight = get_laplacian(edge_index, None, "sym", torch.float64, num_nodes)
    return to_dense_adj(edges, edge_attr=weight, max_num_nodes=num_nodes)[0]


def dense_aggregation(edge_index, num_nodes, epsilon=0.0):
    looped = clean_adjacency(edge_index, num_nodes).to_dense().double() + torch.eye(num_nodes)
    scale = looped.sum(1).pow(-0.5)
    return scale[:, None] * looped * scale + epsilon * torch.diag(scale**2)


def exact_filter(edge_index, num_nodes, bank, r):
    """g_r(πL/2) by hand."""
    values, vectors = torch.linalg.eigh(dense_laplacian(edge_index, num_nodes))
    xi = np.clip(np.pi / 2 * values.numpy(), 0, np.pi)
    return vectors @ torch.diag(torch.from_numpy(filters(bank, xi)[r])) @ vectors.t()


# --- the filters


@pytest.mark.parametrize("bank", BANKS)
def test_the_squares_of_a_bank_add_up_to_one(bank):
    values = filters(bank, np.linspace(0, np.pi, 10_001))
    assert len(values) == 1 + NUM_HIGH[bank]
    np.testing.assert_allclose((values**2).sum(0), 1, rtol=0, atol=1e-14)
    # the low-pass lets the lowest frequency through, the high-passes stop it; but for the two
    # banks whose cut-off is not sharp
    if bank != "sigmoid":
        np.testing.assert_allclose(values[:, 0], [1, *[0] * NUM_HIGH[bank]], atol=1e-12)


def test_haar_and_linear_have_the_reference_coefficients():
    haar, linear = coefficients("haar", 7), coefficients("linear", 7)
    reference = [1.204389, -0.513625, -0.103546, 0.013732, 0.001359, -0.000107, -0.000007, 0]
    np.testing.assert_allclose(haar[0] * [2, *[1] * 7], reference, atol=1e-6)
    reference = [1.0, -0.566824, 0, 0.069036, 0, -0.002245, 0, 0.000034]
    np.testing.assert_allclose(linear[0] * [2, *[1] * 7], reference, atol=1e-6)
    reference = [0.667511, 0, -0.353131, 0, 0.019793, 0, -0.000422, 0]
    np.testing.assert_allclose(linear[1] * [2, *[1] * 7], reference, atol=1e-6)
    mirror = (-1.0) ** np.arange(8)
    np.testing.assert_allclose(haar[1], mirror * haar[0], atol=1e-14)
    np.testing.assert_allclose(linear[2], mirror * linear[0], atol=1e-14)


@pytest.mark.parametrize("bank", ["haar", "linear", "quadratic"])
def test_the_series_converges_to_the_filters(bank):
    xi = np.linspace(0, np.pi, 101)
    found = chebyshev.chebval(2 * xi / np.pi - 1, coefficients(bank, 30).T)
    np.testing.assert_allclose(found, filters(bank, xi), atol=1e-13)


@pytest.mark.parametrize("degree", DEFECTS)
def test_how_far_from_tight(degree):
    cases = [("haar", 1), ("haar", 2), ("linear", 1), ("linear", 2)]
    for (bank, levels), expected in zip(cases, DEFECTS[degree], strict=True):
        options = FrameletOptions(bank=bank, levels=levels, degree=degree)
        found = Framelets(path(3), 3, options).tight_defect()
        assert found == pytest.approx(expected, rel=0.1), (bank, levels)


def test_the_default_degrees_are_tight_and_the_released_one_is_not():
    for bank in ("haar", "linear", "quadratic"):
        assert Framelets(path(3), 3, FrameletOptions(bank=bank)).tight_defect() < 1e-8
    assert Framelets(path(3), 3, FrameletOptions(bank="sigmoid")).tight_defect() < 1e-5
    released = FrameletOptions(fidelity="released")
    assert released.effective_degree == 1
    assert Framelets(path(3), 3, released).tight_defect() == pytest.approx(0.27, abs=0.01)


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("bank", ["haar", "linear", "quadratic"])
def test_bands_and_their_levels(bank, levels):
    framelets = Framelets(path(5), 5, FrameletOptions(bank=bank, levels=levels))
    assert len(framelets.bands) == 1 + NUM_HIGH[bank] * levels
    assert framelets.bands[0].is_low
    assert framelets.bands[0].level == levels - 1
    assert [band.level for band in framelets.bands[1:]] == sorted(
        list(range(levels)) * NUM_HIGH[bank]
    )
    assert len({band.name for band in framelets.bands}) == len(framelets.bands)


def test_the_finest_level_spans_the_spectrum_and_the_next_a_share_of_it():
    options = FrameletOptions(levels=2, dilation=3.0, mode="eigh")
    low, fine, coarse = response(options, np.array([2.0]))[:, 0]
    # ξ = π and π/3: what the low-pass of level 0 stops does not reach level 1
    assert fine == pytest.approx(1)
    assert [low, coarse] == pytest.approx([0, 0], abs=1e-12)
    low, fine, coarse = response(options, np.array([1.0]))[:, 0]  # ξ = π/2 and π/6
    assert fine == pytest.approx(np.sin(np.pi / 4))
    assert coarse == pytest.approx(np.cos(np.pi / 4) * np.sin(np.pi / 12))
    assert low == pytest.approx(np.cos(np.pi / 4) * np.cos(np.pi / 12))


# --- the frame


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("options", [{}, {"bank": "linear", "levels": 2}, {"fused": True}])
def test_the_frame_is_tight_on_every_graph(graph, options):
    edge_index, num_nodes = GRAPHS[graph]
    z = signal(num_nodes)
    for mode in MODES:
        framelets = Framelets(edge_index, num_nodes, FrameletOptions(mode=mode, **options))
        error = (framelets.reconstruct(framelets.decompose(z)) - z).norm() / z.norm()
        if mode == "eigh":
            assert error <= 1e-12
        elif mode == "matfree":
            assert error <= 1.1 * framelets.tight_defect() + 1e-12
        else:  # entries below 1e-8 are dropped, at most one per node in a row
            assert error <= 1.1 * framelets.tight_defect() + 2e-8 * num_nodes
        z32 = z.float()
        error = (framelets.reconstruct(framelets.decompose(z32)) - z32).norm() / z32.norm()
        assert error <= framelets.tight_defect() + 2e-5


@pytest.mark.parametrize("degree", [1, 2, 4])
def test_reconstruction_is_as_bad_as_the_degree_says(degree):
    edge_index, num_nodes = GRAPHS["random"]
    framelets = Framelets(edge_index, num_nodes, FrameletOptions(degree=degree))
    z = torch.eye(num_nodes, dtype=torch.float64)
    error = torch.linalg.matrix_norm(framelets.reconstruct(framelets.decompose(z)) - z, 2)
    # the lowest frequency, where the defect is largest, is an eigenvector of every graph
    assert float(error) == pytest.approx(framelets.tight_defect(), rel=0.01)


@pytest.mark.parametrize("levels", [1, 2])
def test_the_energy_of_a_signal_splits_over_the_bands(levels):
    edge_index, num_nodes = GRAPHS["random"]
    framelets = Framelets(edge_index, num_nodes, FrameletOptions(levels=levels, mode="eigh"))
    z = signal(num_nodes)
    shares = [
        (part * framelets.laplacian(part)).sum() / (z * framelets.laplacian(z)).sum()
        for part in framelets.decompose(z)
    ]
    assert len(shares) == 1 + levels
    assert float(sum(shares)) == pytest.approx(1, abs=1e-12)
    assert all(share > 0.01 for share in shares)


def test_the_constant_signal_stays_in_the_low_band():
    edge_index, num_nodes = cycle(15), 16
    edge_index = torch.cat([edge_index, torch.tensor([[0, 0], [7, 15]])], dim=1)
    degrees = clean_adjacency(edge_index, num_nodes).to_dense().sum(1)
    z = degrees.double().sqrt()[:, None]
    low, *high = Framelets(edge_index, num_nodes, FrameletOptions(mode="eigh")).decompose(z)
    torch.testing.assert_close(low, z, rtol=0, atol=1e-12)
    assert all(part.norm() < 1e-7 for part in high)  # sin of the rounding in the lowest eigenvalue
    framelets = Framelets(edge_index, num_nodes)
    leak = float(framelets.response(torch.zeros(1))[1, 0])
    assert abs(leak) < 1e-6
    high = framelets.decompose(z)[1]
    torch.testing.assert_close(high, leak * z, rtol=0, atol=1e-12)


# --- the operators


@pytest.mark.parametrize("graph", GRAPHS)
def test_haar_is_cosine_and_sine_of_the_laplacian(graph):
    edge_index, num_nodes = GRAPHS[graph]
    z = signal(num_nodes)
    parts = Framelets(edge_index, num_nodes).decompose(z)
    for r, part in enumerate(parts):
        expected = exact_filter(edge_index, num_nodes, "haar", r) @ z
        torch.testing.assert_close(part, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    "options",
    [
        {"levels": 2},
        {"bank": "linear", "levels": 3, "dilation": 1.5},
        {"bank": "quadratic"},
        {"bank": "sigmoid", "degree": 80},
        {"epsilon": 0.7},
        {"fused": True, "levels": 2},
    ],
)
def test_the_three_realisations_agree(options):
    edge_index, num_nodes = GRAPHS["random"]
    z = signal(num_nodes)
    exact, *others = (
        Framelets(edge_index, num_nodes, FrameletOptions(mode=mode, **options))
        for mode in reversed(MODES)
    )
    assert len(others) == 2
    for framelets in others:
        for b, part in enumerate(framelets.decompose(z)):
            torch.testing.assert_close(part, exact.filter(b, z), rtol=0, atol=1e-6)
        for found, expected in zip(framelets.powers(z, 3), exact.powers(z, 3), strict=True):
            for part, other in zip(found, expected, strict=True):
                torch.testing.assert_close(part, other, rtol=0, atol=5e-6)


def test_all_ways_to_a_band_agree():
    edge_index, num_nodes = GRAPHS["random"]
    for mode in MODES:
        options = FrameletOptions(bank="linear", levels=2, epsilon=0.2, mode=mode)
        framelets = Framelets(edge_index, num_nodes, options)
        z = signal(num_nodes)
        nodes = torch.tensor([3, 59, 3])
        powers = framelets.powers(z, 2)
        for b, part in enumerate(framelets.decompose(z)):
            torch.testing.assert_close(part, framelets.filter(b, z))
        for power in (1, 2):
            parts = framelets.propagate(z, power)
            rows = framelets.rows(nodes, power)
            for b, part in enumerate(parts):
                torch.testing.assert_close(part, powers[power - 1][b])
                torch.testing.assert_close(part, framelets.propagate_band(b, z, power))
                torch.testing.assert_close(rows[b].double() @ z, part[nodes], atol=1e-5, rtol=1e-5)


def test_power_zero_is_the_signal():
    framelets = Framelets(path(5), 5)
    z = signal(5)
    assert all(torch.equal(part, z) for part in framelets.propagate(z, 0))


@pytest.mark.parametrize("options", [{"levels": 2}, {"fused": True}, {"mode": "sparse"}])
def test_operators_are_their_own_adjoints(options):
    edge_index, num_nodes = GRAPHS["random"]
    framelets = Framelets(edge_index, num_nodes, FrameletOptions(**options))
    x, y = signal(num_nodes, 1), signal(num_nodes, 2)[:, 1:]
    for b in range(len(framelets.bands)):
        for apply in (framelets.filter, framelets.propagate_band):
            assert float((apply(b, x) * y).sum()) == pytest.approx(
                float((x * apply(b, y)).sum()), abs=1e-10
            )
        assert float((framelets.aggregate(x, b) * y).sum()) == pytest.approx(
            float((x * framelets.aggregate(y, b)).sum()), abs=1e-10
        )
    # reconstruction is the adjoint of decomposition
    parts = [signal(num_nodes, b + 1)[:, b:] for b in range(len(framelets.bands))]
    left = sum((c * w).sum() for c, w in zip(parts, framelets.decompose(x), strict=True))
    right = (framelets.reconstruct(parts) * x).sum()
    assert float(left) == pytest.approx(float(right), abs=1e-10)


@pytest.mark.parametrize(
    "options", [{}, {"levels": 2, "epsilon": 0.3}, {"fused": True}, {"mode": "eigh"}]
)
def test_gradients_twice(options):
    framelets = Framelets(cycle(7), 8, FrameletOptions(degree=3, **options))

    def everything(z):
        parts = [*framelets.decompose(z), *framelets.propagate(z, 2), framelets.laplacian(z)]
        parts.append(framelets.reconstruct(framelets.decompose(z)) + framelets.adjacency(z))
        parts.append(framelets.propagate_band(1, z, 2) + framelets.aggregate(z, 1))
        return sum((i + 1) * (part**2).sum() for i, part in enumerate(parts))

    z = signal(8, 2).requires_grad_()
    assert torch.autograd.gradcheck(everything, z)
    assert torch.autograd.gradgradcheck(everything, z)


def test_aggregation_and_laplacian_are_what_they_say():
    edge_index, num_nodes = GRAPHS["isolated nodes"]
    z = signal(num_nodes)
    framelets = Framelets(edge_index, num_nodes, FrameletOptions(epsilon=0.4))
    low, high = framelets.aggregate(z, 0), framelets.aggregate(z, 1)
    torch.testing.assert_close(low, dense_aggregation(edge_index, num_nodes, -0.4) @ z)
    torch.testing.assert_close(high, dense_aggregation(edge_index, num_nodes, 0.4) @ z)
    aggregated = dense_aggregation(edge_index, num_nodes) @ z
    torch.testing.assert_close(framelets.adjacency(z), aggregated)
    torch.testing.assert_close(framelets.laplacian(z), dense_laplacian(edge_index, num_nodes) @ z)
    fused = Framelets(edge_index, num_nodes, FrameletOptions(fused=True))
    torch.testing.assert_close(fused.laplacian(z), z - aggregated)


@pytest.mark.parametrize("power", [1, 2])
def test_the_operator_of_a_band_by_hand(power):
    edge_index, num_nodes = GRAPHS["random"]
    z = signal(num_nodes)
    parts = Framelets(edge_index, num_nodes).propagate(z, power)
    for b, part in enumerate(parts):
        w = exact_filter(edge_index, num_nodes, "haar", b)
        p = torch.linalg.matrix_power(w @ dense_aggregation(edge_index, num_nodes) @ w, power)
        torch.testing.assert_close(part, p @ z, rtol=0, atol=1e-8)


def test_operators_are_symmetric_and_do_not_grow():
    edge_index, num_nodes = GRAPHS["random"]
    everyone = torch.arange(num_nodes)
    for degree, limit in ((8, 1 + 1e-5), (1, 1.25)):
        framelets = Framelets(edge_index, num_nodes, FrameletOptions(degree=degree))
        norms = []
        for rows in framelets.rows(everyone, 1):
            torch.testing.assert_close(rows, rows.t(), rtol=0, atol=1e-6)
            norms.append(float(torch.linalg.matrix_norm(rows, 2)))
        assert max(norms) <= limit
    assert max(norms) > 1.2  # degree 1 overshoots at the lowest frequency


def test_bands_add_up_to_the_aggregation_where_operators_commute():
    everyone = torch.arange(60)
    regular = torch.cat([cycle(60), torch.stack([everyone, (everyone + 7) % 60])], dim=1)
    irregular = GRAPHS["random"][0]

    def distance(edge_index, **options):
        framelets = Framelets(edge_index, 60, FrameletOptions(**options))
        return (sum(framelets.rows(everyone)) - dense_aggregation(edge_index, 60)).abs().max()

    assert distance(regular) < 1e-5
    assert distance(irregular) > 1e-2
    assert distance(irregular, fused=True) < 1e-5
    assert distance(irregular, fused=True, mode="eigh") < 1e-5


def test_everything_follows_a_permutation_of_the_nodes():
    edge_index, num_nodes = GRAPHS["random"]
    order = torch.randperm(num_nodes, generator=torch.Generator().manual_seed(2))
    place = order.argsort()
    options = FrameletOptions(bank="linear", levels=2)
    ours = Framelets(edge_index, num_nodes, options)
    theirs = Framelets(place[edge_index], num_nodes, options)
    z = signal(num_nodes)
    pairs = [
        *zip(ours.decompose(z), theirs.decompose(z[order]), strict=True),
        *zip(ours.propagate(z, 2), theirs.propagate(z[order], 2), strict=True),
    ]
    for a, b in pairs:
        torch.testing.assert_close(a[order], b, rtol=0, atol=1e-12)


# --- fused powers


def test_degrees_of_fused_powers():
    options = FrameletOptions(fused=True)
    for tolerance, expected in ((1e-3, [6, 7, 8, 8]), (1e-6, [8, 12, 14, 15])):
        for b in (0, 1):
            found = [len(power_series(options, b, k, tolerance)) - 1 for k in (1, 2, 3, 4)]
            assert found == expected


def test_a_fused_power_is_one_polynomial_of_the_spectrum():
    eigenvalues = np.linspace(0, 2, 301)
    for bank, levels in (("haar", 1), ("linear", 2)):
        options = FrameletOptions(bank=bank, levels=levels, fused=True)
        for b, values in enumerate(response(options, eigenvalues)):
            for power in (1, 3):
                found = chebyshev.chebval(eigenvalues - 1, power_series(options, b, power, 1e-6))
                np.testing.assert_allclose(
                    found, (values**2 * (1 - eigenvalues)) ** power, atol=1.1e-6
                )


def test_fused_powers_take_a_fraction_of_the_products():
    assert Framelets(path(4), 4).num_products(1, 2) == 60
    assert Framelets(path(4), 4, FrameletOptions(fused=True)).num_products(1, 2) == 12


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("options", [{}, {"bank": "linear", "levels": 3}])
def test_the_number_of_products_is_what_is_done(fused, options, monkeypatch):
    from limbeck.graphs.framelet_products import Pattern

    calls = []
    run = Pattern.run
    monkeypatch.setattr(Pattern, "run", lambda *a: (calls.append(1), run(*a))[1])
    framelets = Framelets(path(6), 6, FrameletOptions(fused=fused, **options))
    for power in (0, 1, 3):
        calls.clear()
        framelets.propagate(signal(6), power)
        assert len(calls) == framelets.num_products(power)
    calls.clear()
    framelets.powers(signal(6), 2)
    assert len(calls) == framelets.num_products(1, 2)


# --- what goes in and out


@pytest.mark.parametrize("fused", [False, True])
def test_blocks_files_and_sparse_features_change_nothing(tmp_path, fused):
    edge_index, num_nodes = GRAPHS["random"]
    framelets = Framelets(edge_index, num_nodes, FrameletOptions(fused=fused))
    x = signal(num_nodes, 7, torch.float32)
    x[x < 0.3] = 0
    expected = framelets.powers(x, 2)
    ways = {
        "dense in blocks": framelets.powers(x, 2, block=3),
        "sparse": framelets.powers(x.to_sparse_csr(), 2),
        "sparse in blocks": framelets.powers(x.to_sparse_csr(), 2, block=2),
        "to files": framelets.powers(x.to_sparse_csr(), 2, block=4, out=tmp_path),
    }
    for way, found in ways.items():
        for parts, others in zip(expected, found, strict=True):
            for part, other in zip(parts, others, strict=True):
                assert torch.equal(part, other), way
    stored = np.load(tmp_path / "high-2.npy", mmap_mode="r")
    np.testing.assert_array_equal(stored, expected[1][1].numpy())


def test_blocks_keep_the_gradient():
    framelets = Framelets(cycle(9), 9)
    z = signal(9, 5).requires_grad_()
    whole, blocks = (
        torch.autograd.grad(framelets.propagate(z, block=block)[1].square().sum(), z)[0]
        for block in (None, 2)
    )
    torch.testing.assert_close(whole, blocks)


def test_directed_repeated_and_looped_edges_are_cleaned():
    messy = torch.tensor([[0, 1, 1, 2, 2, 0], [1, 0, 2, 2, 2, 1]])
    adjacency = clean_adjacency(messy, 4)
    expected = torch.zeros(4, 4)
    expected[[0, 1, 1, 2], [1, 0, 2, 1]] = 1
    assert torch.equal(adjacency.to_dense(), expected)
    z = signal(4)
    for a, b in zip(
        Framelets(messy, 4).propagate(z), Framelets(path(3), 4).propagate(z), strict=True
    ):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(
        Framelets(adjacency, 4).filter(1, z), Framelets(messy, 4).filter(1, z)
    )


def test_threads_change_nothing(monkeypatch):
    monkeypatch.setattr("limbeck.graphs.framelet_products.WORTH_A_THREAD", 1)
    edge_index, num_nodes = GRAPHS["random"]
    framelets = Framelets(edge_index, num_nodes, FrameletOptions(bank="linear", levels=2))
    z = signal(num_nodes, 5, torch.float32)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append([*framelets.propagate(z, 2), framelets.reconstruct([z] * 5)])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_single_precision_is_near_double():
    edge_index, num_nodes = GRAPHS["random"]
    framelets = Framelets(edge_index, num_nodes, FrameletOptions(levels=2))
    z = signal(num_nodes)
    for single, double in zip(
        framelets.propagate(z.float(), 2), framelets.propagate(z, 2), strict=True
    ):
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-5)


def test_the_signal_given_is_left_alone():
    framelets = Framelets(cycle(9), 9, FrameletOptions(levels=2))
    z = signal(9)
    before = z.clone()
    parts = framelets.decompose(z)
    copies = [part.clone() for part in parts]
    framelets.propagate(z, 2)
    framelets.reconstruct(parts)
    assert torch.equal(z, before)
    assert all(torch.equal(a, b) for a, b in zip(parts, copies, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bank": "har"}, "unknown bank 'har': did you mean 'haar'"),
        ({"mode": "dense"}, "unknown mode"),
        ({"fidelity": "exact"}, "unknown fidelity"),
        ({"levels": 0}, "'levels' is 0"),
        ({"dilation": 1.0}, "'dilation' is 1.0"),
        ({"degree": 0}, "'degree' is 0"),
        ({"epsilon": -0.1}, "'epsilon' is -0.1"),
        ({"fused": True, "epsilon": 0.1}, "exclude each other"),
        ({"fidelity": "released", "degree": 4}, "means degree 1"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(OptionError, match=message):
        FrameletOptions(**options)


def test_bad_input_is_refused(tmp_path, monkeypatch):
    framelets = Framelets(path(4), 4)
    with pytest.raises(GraphError, match="one row for each of the 4 nodes"):
        framelets.decompose(torch.zeros(3, 2))
    with pytest.raises(GraphError, match="float32 or float64"):
        framelets.propagate(torch.zeros(4, 2, dtype=torch.int64))
    with pytest.raises(GraphError, match="must be dense"):
        framelets.filter(0, torch.zeros(4, 2).to_sparse_csr())
    with pytest.raises(GraphError, match="1 parts were given, but the transform has 2 bands"):
        framelets.reconstruct([torch.zeros(4, 2)])
    with pytest.raises(GraphError, match="name nodes from 0 to 3"):
        Framelets(path(4), 3)
    with pytest.raises(OptionError, match="the power is -1"):
        framelets.propagate(torch.zeros(4, 2), -1)
    with pytest.raises(OptionError, match="at least 1"):
        framelets.powers(torch.zeros(4, 2), 0)
    with pytest.raises(OptionError, match="'block' is 0"):
        framelets.propagate(torch.zeros(4, 2), block=0)
    with pytest.raises(OutputError, match="cannot be written"):
        framelets.propagate(torch.zeros(4, 2), out=tmp_path / "absent")
    monkeypatch.setattr("limbeck.graphs.framelets.MAX_EIGH_NODES", 3)
    with pytest.raises(OptionError, match="the graph has 4 nodes"):
        Framelets(path(4), 4, FrameletOptions(mode="eigh"))
