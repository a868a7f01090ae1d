"""Local structure distributions: the card's golden figures, invariants, gradients, no E x d."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.utils import softmax

from limbeck.methods.local_structure import (
    Neighborhoods,
    edge_log_softmax,
    edge_logits,
    edge_measure,
    local_divergence,
    local_log_probs,
    median_distance,
    saturation,
)

KERNELS = ("l1_exp", "rbf", "cosine", "poly", "l2")


def both_ways(pairs):
    edge_index = torch.tensor(pairs).t()
    return torch.cat([edge_index, edge_index.flip(0)], dim=1)


def random_graph(num_nodes=40, num_edges=120, seed=0):
    generator = torch.Generator().manual_seed(seed)
    edge_index = torch.randint(num_nodes, (2, num_edges), generator=generator)
    return torch.cat([edge_index, edge_index.flip(0)], dim=1)


def states(*shape, seed=0, dtype=torch.float64, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=dtype)


# -- the card's fixture: five nodes, one of them isolated

EDGES = both_ways([[0, 1], [0, 2], [0, 3], [1, 2]])
OURS = torch.tensor([[0, 1], [2, -1], [5, 3], [-4, 0.5], [9, 9]], dtype=torch.float64)
WIDE = torch.tensor(
    [[0, 0, 0], [10, 5, -5], [40, 20, 10], [-30, 60, 30], [1, 1, 1]], dtype=torch.float64
)
NARROW = torch.tensor([[0], [50], [100], [-200], [7]], dtype=torch.float64)


def test_golden_distributions():
    plain = Neighborhoods.of(EDGES, 5, self_loops=False)
    ours = local_log_probs(OURS, plain).exp()
    wide = local_log_probs(WIDE, plain).exp()
    assert plain.senders[:3].tolist() == [1, 2, 3]
    assert ours[:3].tolist() == pytest.approx([0.337015, 0.327580, 0.335404], abs=1e-6)
    assert wide[:3].tolist() == pytest.approx([0.430927, 0.312246, 0.256827], abs=1e-6)


@pytest.mark.parametrize(
    ("self_loops", "teacher", "expected"),
    [
        (False, WIDE, [0.022401, 0.007221, 0.000341, 0, 0]),
        (False, NARROW, [0.017814, 0.000101, 0.007069, 0, 0]),
        (True, WIDE, [0.030904, 0.011918, 0.020455, 0.050360, 0]),
        (True, NARROW, [0.046178, 0.013903, 0.027144, 0.076675, 0]),
    ],
)
def test_golden_divergences(self_loops, teacher, expected):
    edges = Neighborhoods.of(EDGES, 5, self_loops=self_loops)
    divergence = local_divergence(OURS, local_log_probs(teacher, edges), edges)
    assert divergence.tolist() == pytest.approx(expected, abs=1e-6)


def test_several_teachers_are_columns():
    edges = Neighborhoods.of(EDGES, 5)
    theirs = [local_log_probs(teacher, edges) for teacher in (WIDE, NARROW)]
    together = local_divergence(OURS, torch.stack(theirs, dim=1), edges)
    alone = [local_divergence(OURS, one, edges) for one in theirs]
    torch.testing.assert_close(together, torch.stack(alone, dim=1))


# -- kernel and softmax


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("self_loops", [False, True])
def test_each_neighbourhood_is_a_distribution(kernel, self_loops):
    edges = Neighborhoods.of(random_graph(), 45, self_loops=self_loops)  # five isolated nodes
    hidden = states(45, 7)
    logits = edge_logits(hidden, edges, kernel)
    probabilities = local_log_probs(hidden, edges, kernel).exp()
    torch.testing.assert_close(probabilities, softmax(logits, edges.receivers, num_nodes=45))
    total = torch.zeros(45, dtype=torch.float64).index_add(0, edges.receivers, probabilities)
    degree = edges.indptr.diff()
    torch.testing.assert_close(total[degree > 0], torch.ones_like(total[degree > 0]))
    assert (degree[40:] == int(self_loops)).all()


def dense_kernel(kernel, a, b, sigma):
    if kernel == "l1_exp":
        return math.exp(-float((a - b).abs().sum()) / sigma)
    if kernel == "rbf":
        return math.exp(-float((a - b).square().sum()) / (2 * sigma))
    if kernel == "l2":
        return float((a - b).norm())
    cosine = float(a @ b / (a.norm() * b.norm()))
    return cosine if kernel == "cosine" else cosine**2


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_against_a_double_loop(kernel):
    edge_index = random_graph(6, 8)
    edges = Neighborhoods.of(edge_index, 6, self_loops=False)
    hidden = states(6, 5)
    pairs = {(int(j), int(i)) for j, i in edge_index.t() if j != i}
    expected = [
        dense_kernel(kernel, hidden[j], hidden[i], 3.0)
        for j, i in sorted(pairs, key=lambda p: p[::-1])
    ]
    assert edges.num_edges == len(pairs)  # edges that occur twice count once
    torch.testing.assert_close(
        edge_logits(hidden, edges, kernel, 3.0), torch.tensor(expected, dtype=torch.float64)
    )


def test_similarity_is_symmetric_and_the_distribution_is_not():
    edges = Neighborhoods.of(random_graph(), 40)
    hidden = states(40, 6, scale=20.0)
    dense = torch.zeros(2, 40, 40, dtype=torch.float64)
    logits = edge_logits(hidden, edges)
    for layer, values in enumerate((logits, edge_log_softmax(logits, edges).exp())):
        dense[layer, edges.receivers, edges.senders] = values
    torch.testing.assert_close(dense[0], dense[0].t())
    assert (dense[1] - dense[1].t()).abs().max() > 0.01
    assert (logits[~edges.between_two] == 1).all()  # to the bit
    assert (logits > 0).all()
    assert (logits <= 1).all()


@pytest.mark.parametrize("kernel", ["l1_exp", "rbf", "l2"])
def test_moving_all_states_changes_nothing(kernel):
    edges = Neighborhoods.of(random_graph(), 40)
    hidden = states(40, 6)
    moved = hidden + states(6, seed=1)
    torch.testing.assert_close(
        edge_logits(hidden, edges, kernel), edge_logits(moved, edges, kernel)
    )


@pytest.mark.parametrize("kernel", ["cosine", "poly"])
def test_angles_survive_rotation_and_scale(kernel):
    edges = Neighborhoods.of(random_graph(), 40)
    hidden = states(40, 6)
    rotation, _ = torch.linalg.qr(states(6, 6, seed=1))
    theirs = local_log_probs(3.5 * hidden @ rotation, edges, kernel)
    assert float(local_divergence(hidden, theirs, edges, kernel).abs().max()) < 1e-12


def test_order_of_nodes_and_edges_does_not_matter():
    edge_index, ours, theirs = random_graph(), states(40, 6, scale=9.0), states(40, 3, seed=1)
    edges = Neighborhoods.of(edge_index, 40)
    divergence = local_divergence(ours, local_log_probs(theirs, edges), edges)
    shuffled = edge_index[:, torch.randperm(edge_index.shape[1])]
    same = Neighborhoods.of(shuffled, 40)
    assert torch.equal(same.senders, edges.senders)
    order = torch.randperm(40)
    place = order.argsort()
    permuted = Neighborhoods.of(place[edge_index], 40)
    there = local_divergence(ours[order], local_log_probs(theirs[order], permuted), permuted)
    torch.testing.assert_close(there, divergence[order])


def test_two_graphs_side_by_side():
    first, second = random_graph(20, 40), random_graph(30, 70, seed=1)
    ours, theirs = states(50, 6, scale=9.0), states(50, 3, seed=1)

    def divergence(edge_index, rows):
        edges = Neighborhoods.of(edge_index, rows.stop - rows.start)
        return local_divergence(ours[rows], local_log_probs(theirs[rows], edges), edges)

    both = divergence(torch.cat([first, second + 20], dim=1), slice(0, 50))
    apart = divergence(first, slice(0, 20)), divergence(second, slice(20, 50))
    torch.testing.assert_close(both, torch.cat(apart))
    weighted = (20 * apart[0].mean() + 30 * apart[1].mean()) / 50
    assert float(both.mean()) == pytest.approx(float(weighted))


def test_equal_states_have_nothing_to_learn():
    edges = Neighborhoods.of(random_graph(), 40)
    hidden = states(40, 6, scale=9.0).requires_grad_()
    divergence = local_divergence(hidden, local_log_probs(hidden, edges), edges)
    assert float(divergence.detach().abs().max()) == 0
    divergence.sum().backward()
    assert float(hidden.grad.abs().max()) < 1e-15


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(-3, 4), st.floats(-3, 4), st.booleans())
def test_divergence_is_below_half_a_nat(seed, log_ours, log_theirs, self_loops):
    edges = Neighborhoods.of(random_graph(seed=seed), 40, self_loops=self_loops)
    ours = states(40, 6, seed=seed, dtype=torch.float32, scale=10**log_ours)
    theirs = states(40, 9, seed=seed + 1, dtype=torch.float32, scale=10**log_theirs)
    divergence = local_divergence(ours, local_log_probs(theirs, edges), edges)
    assert float(divergence.min()) >= -1e-6
    assert float(divergence.max()) < 0.5


@pytest.mark.parametrize("kernel", KERNELS)
def test_nodes_with_one_neighbour_or_none(kernel):
    chain = torch.tensor([[0, 1], [1, 2]])  # 0 -> 1 -> 2, node 3 isolated
    edges = Neighborhoods.of(chain, 4, self_loops=False)
    hidden = states(4, 5).requires_grad_()
    theirs = local_log_probs(states(4, 2, seed=1), edges, kernel)
    divergence = local_divergence(hidden, theirs, edges, kernel)
    assert divergence.tolist() == [0, 0, 0, 0]
    divergence.sum().backward()
    assert torch.isfinite(hidden.grad).all()
    nothing = Neighborhoods.of(chain[:, :0], 4, self_loops=False)
    empty = local_divergence(hidden, local_log_probs(hidden, nothing, kernel), nothing, kernel)
    assert empty.tolist() == [0, 0, 0, 0]


# -- gradients


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradient_is_exact(kernel):
    edges = Neighborhoods.of(random_graph(8, 14), 8, self_loops=kernel != "l2")
    theirs = local_log_probs(states(8, 4, seed=1), edges, kernel, 2.0)
    hidden = states(8, 3).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda h: local_divergence(h, theirs, edges, kernel, 2.0), (hidden,)
    )


def test_direction():
    edges = Neighborhoods.of(random_graph(), 40)
    ours, theirs = states(40, 6, scale=30.0), states(40, 3, seed=1)
    there = local_divergence(ours, local_log_probs(theirs, edges), edges)
    back = local_divergence(theirs, local_log_probs(ours, edges), edges)
    assert float((there - back).abs().max()) > 1e-4


def test_gradient_in_closed_form():
    # dD_i/ds_ij = p^S_ij - p^T_ij, and ds_ij/dh_j = -(s_ij / sigma) sign(h_j - h_i) = -ds_ij/dh_i
    edges = Neighborhoods.of(random_graph(), 40)
    hidden = states(40, 6, scale=9.0).requires_grad_()
    theirs = local_log_probs(states(40, 3, seed=1, scale=50.0), edges)
    local_divergence(hidden, theirs, edges).sum().backward()
    h, j, i = hidden.detach(), edges.senders, edges.receivers
    s = edge_logits(h, edges)
    d_s = edge_log_softmax(s, edges).exp() - theirs.exp()
    step = -(d_s * s / 100.0).unsqueeze(1) * (h[j] - h[i]).sign()
    expected = torch.zeros_like(h).index_add(0, j, step).index_add(0, i, -step)
    torch.testing.assert_close(hidden.grad, expected)
    assert float(hidden.grad.abs().max()) > 0


def test_teachers_get_no_gradient():
    edges = Neighborhoods.of(random_graph(), 40)
    ours, theirs = states(40, 6).requires_grad_(), states(40, 3, seed=1).requires_grad_()
    local_divergence(ours, local_log_probs(theirs, edges), edges).mean().backward()
    assert theirs.grad is None
    assert ours.grad is not None


def test_zero_states_have_a_finite_gradient():
    edges = Neighborhoods.of(random_graph(), 40)
    theirs = local_log_probs(states(40, 3, seed=1), edges, "cosine")
    hidden = states(40, 6)
    hidden[::2] = 0  # what a ReLU leaves of many nodes
    for kernel in KERNELS:
        leaf = hidden.clone().requires_grad_()
        local_divergence(leaf, theirs, edges, kernel, "median").sum().backward()
        assert torch.isfinite(leaf.grad).all(), kernel


# -- size


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_hub(dtype):
    leaves = 100_000
    star = both_ways([[0, leaf] for leaf in range(1, leaves + 1)])
    edges = Neighborhoods.of(star, leaves + 1)
    hidden = states(leaves + 1, 4, dtype=torch.float32, scale=30.0).to(dtype).requires_grad_()
    theirs = local_log_probs(states(leaves + 1, 2, seed=1, dtype=torch.float32, scale=80.0), edges)
    assert theirs.dtype == torch.float32
    divergence = local_divergence(hidden, theirs, edges)
    assert divergence.dtype == torch.float32
    assert 0 < float(divergence[0].detach()) < 0.5
    divergence.mean().backward()
    assert hidden.grad.dtype == dtype
    assert torch.isfinite(hidden.grad).all()


@pytest.mark.parametrize("metric", ["l1", "squared", "dot"])
def test_nothing_of_the_size_of_edges_times_width_is_kept(metric):
    edges = Neighborhoods.of(random_graph(50, 4000), 50)
    hidden = states(50, 256, dtype=torch.float32).requires_grad_()
    saved = []

    def keep(tensor):
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        edge_measure(hidden, edges, metric)
    assert max(saved) == hidden.numel() < edges.num_edges * 256


def test_whole_neighbourhoods_of_a_batch():
    edges = Neighborhoods.of(random_graph(), 40)
    ours, theirs = states(40, 6, scale=9.0), states(40, 3, seed=1)
    log_probs = local_log_probs(theirs, edges)
    whole = local_divergence(ours, log_probs, edges)
    nodes = torch.tensor([31, 2, 17])
    batch = edges.into(nodes)
    assert batch.nodes[:3].tolist() == nodes.tolist()
    part = local_divergence(ours[batch.nodes], log_probs[batch.edges], batch.neighborhoods)
    torch.testing.assert_close(part, whole[nodes])


# -- bandwidth


def test_median_bandwidth_by_hand():
    # distances of the edges 0-1, 0-2, 0-3, 1-2 in OURS: 4, 7, 4.5, 7, each twice
    edges = Neighborhoods.of(EDGES, 5)
    assert median_distance(OURS, edges) == 4.5
    expected = edge_logits(OURS, edges, "l1_exp", 4.5)
    assert torch.equal(edge_logits(OURS, edges, "l1_exp", "median"), expected)
    # squared distances 8, 29, 16.25, 25
    assert median_distance(OURS, edges, "rbf") == 16.25


def test_median_bandwidth_does_not_depend_on_scale():
    edges = Neighborhoods.of(random_graph(), 40)
    hidden = states(40, 6)
    torch.testing.assert_close(
        edge_logits(hidden, edges, "l1_exp", "median"),
        edge_logits(1000 * hidden, edges, "l1_exp", "median"),
    )


def test_median_bandwidth_where_most_distances_are_zero():
    edges = Neighborhoods.of(both_ways([[0, 1], [1, 2], [2, 3]]), 4)
    hidden = torch.tensor([[0.0], [0.0], [0.0], [3.0]])
    assert median_distance(hidden, edges) == 1.0  # the mean of 0, 0, 3
    assert median_distance(torch.zeros(4, 2), edges) == 1.0
    assert torch.isfinite(edge_logits(torch.zeros(4, 2), edges, "l1_exp", "median")).all()


def test_saturation_tells_that_a_kernel_says_nothing():
    edges = Neighborhoods.of(random_graph(400, 1200), 400, self_loops=False)
    wide = saturation(states(400, 1024, scale=1.0), edges)
    assert wide.share_near_0 > 0.99  # the card: E r = 1.128 d = 1155, s = 1e-5
    assert wide.median_distance == pytest.approx(1155, rel=0.02)
    assert wide.information < 1e-6
    narrow = saturation(states(400, 1024, scale=1e-4), edges)
    assert narrow.share_near_1 > 0.99
    fitting = saturation(states(400, 16, scale=1.0), edges, bandwidth="median")
    assert fitting.share_near_0 == fitting.share_near_1 == 0
    assert fitting.information > 0.001


def test_overfit():
    edges = Neighborhoods.of(random_graph(50, 100), 50)
    theirs = local_log_probs(states(50, 8, seed=1, dtype=torch.float32, scale=10.0), edges)
    hidden = states(50, 8, dtype=torch.float32, scale=10.0).requires_grad_()
    optimizer = torch.optim.Adam([hidden], lr=0.5)
    losses = []
    for _ in range(300):
        loss = local_divergence(hidden, theirs, edges).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]
