"""Small graphs as their edges, each undirected edge once unless drawn."""

import itertools

import torch


def edges(pairs) -> torch.Tensor:
    return torch.tensor(list(pairs)).t()


def path(n: int) -> torch.Tensor:
    return edges((i, i + 1) for i in range(n - 1))


def cycle(n: int) -> torch.Tensor:
    return edges((i, (i + 1) % n) for i in range(n))


def complete(n: int, first: int = 0) -> list[tuple[int, int]]:
    """Pairs of a complete graph of the nodes from ``first``."""
    return list(itertools.combinations(range(first, first + n), 2))


def barbell(n: int = 8) -> torch.Tensor:
    """Two complete graphs and one edge between them."""
    return edges([*complete(n), *complete(n, n), (n - 1, n)])


def random_graph(num_nodes: int, num_edges: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(num_nodes, (2, num_edges), generator=generator)
