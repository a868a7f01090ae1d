"""Drawn neighbourhoods, held against the graph they come from."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.training.sampler import NeighborSampler


def test_all_neighbours_of_a_path():
    # 0 - 1 - 2 - 3: one hop from 1 reaches 0 and 2, two hops reach 3
    edges = torch.tensor([[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]])
    one = NeighborSampler(edges, 4, (-1,)).sample(torch.tensor([1]))
    assert one.n_id.tolist() == [1, 0, 2]
    assert one.edge_index.tolist() == [[1, 2], [0, 0]]
    two = NeighborSampler(edges, 4, (-1, -1)).sample(torch.tensor([1]))
    assert sorted(two.n_id.tolist()) == [0, 1, 2, 3]
    assert two.edge_index.shape[1] == 2 + 1 + 2  # into 1, into 0, into 2


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_draws_are_distinct_edges_of_the_graph(seed, fan_out):
    generator = torch.Generator().manual_seed(seed)
    edges = torch.randint(0, 12, (2, 60), generator=generator).unique(dim=1)
    sampler = NeighborSampler(edges, 12, (fan_out, fan_out))
    seeds = torch.randperm(12, generator=generator)[:3]
    torch.manual_seed(seed)
    sample = sampler.sample(seeds)
    assert sample.n_id[:3].tolist() == seeds.tolist()
    assert len(sample.n_id.unique()) == len(sample.n_id)
    drawn = sample.n_id[sample.edge_index]
    known = {tuple(pair) for pair in edges.t().tolist()}
    pairs = [tuple(pair) for pair in drawn.t().tolist()]
    assert set(pairs) <= known
    assert len(set(pairs)) == len(pairs)  # without replacement
    degree = torch.bincount(edges[1], minlength=12)
    for node in seeds.tolist():
        expected = min(int(degree[node]), fan_out)
        assert sum(target == node for _, target in pairs) == expected


def test_draws_follow_the_generator():
    edges = torch.randint(0, 50, (2, 800))
    sampler = NeighborSampler(edges, 50, (3, 3))
    torch.manual_seed(1)
    first = sampler.sample(torch.arange(5))
    torch.manual_seed(1)
    again = sampler.sample(torch.arange(5))
    assert torch.equal(first.edge_index, again.edge_index)
    assert torch.equal(first.n_id, again.n_id)


def test_every_neighbour_is_drawn_as_often():
    edges = torch.stack([torch.arange(1, 11), torch.zeros(10, dtype=torch.int64)])
    sampler = NeighborSampler(edges, 11, (3,))
    torch.manual_seed(0)
    counts = torch.zeros(11)
    for _ in range(3000):
        counts[sampler.sample(torch.tensor([0])).n_id[1:]] += 1
    assert counts[1:].min() > 800  # each is expected 900 times, deviation 25
    assert counts[1:].max() < 1000
