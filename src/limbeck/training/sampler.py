"""Drawing neighbourhoods: PyG's loaders need compiled extensions, this needs only numba."""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch_geometric.data import Data

IntArray = npt.NDArray[np.int64]


class NeighborSampler:
    """Draws, hop by hop, distinct neighbours of seed nodes; the counterpart of PyG's loader.

    Args:
        edge_index: int64 ``[2, E]``; neighbours of a node are the sources of its incoming edges.
        num_nodes: Number of nodes ``N``.
        fan_out: Largest number of neighbours per node for each hop; ``-1`` takes all.
    """

    def __init__(self, edge_index: Tensor, num_nodes: int, fan_out: tuple[int, ...]) -> None:
        source, target = edge_index.numpy()
        order = np.argsort(target, kind="stable")
        self.neighbors: IntArray = source[order]
        self.first: IntArray = np.zeros(num_nodes + 1, dtype=np.int64)
        np.cumsum(np.bincount(target, minlength=num_nodes), out=self.first[1:])
        self.fan_out = fan_out
        # place of a node in the sample, −1 outside of it; reset after each call, never rebuilt
        self._place: IntArray = np.full(num_nodes, -1, dtype=np.int64)

    def sample(self, seeds: Tensor) -> Data:
        """Draw the neighbourhood of ``seeds`` (int64 ``[B]``, distinct).

        Draws come from PyTorch's generator.

        Returns:
            ``n_id`` ``[n]``: the nodes drawn, seeds first; ``edge_index`` ``[2, e]`` among them,
            from neighbour to node; ``batch_size`` ``B``.
        """
        seed = int(torch.randint(2**31 - 1, ()))
        nodes, source, target = _sample(
            self.first,
            self.neighbors,
            seeds.numpy(),
            np.asarray(self.fan_out, dtype=np.int64),
            self._place,
            seed,
        )
        return Data(
            n_id=torch.from_numpy(nodes),
            edge_index=torch.from_numpy(np.stack([source, target])),
            batch_size=len(seeds),
            num_nodes=len(nodes),
        )


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _sample(
    first: IntArray,
    neighbors: IntArray,
    seeds: IntArray,
    fan_out: IntArray,
    place: IntArray,
    seed: int,
) -> tuple[IntArray, IntArray, IntArray]:  # pragma: no cover - compiled
    np.random.seed(seed)
    nodes = [np.int64(node) for node in seeds]
    for i in range(len(nodes)):
        place[nodes[i]] = i
    source = [np.int64(0) for _ in range(0)]
    target = [np.int64(0) for _ in range(0)]
    begin, end = 0, len(nodes)
    for hop in range(len(fan_out)):
        for i in range(begin, end):
            start = first[nodes[i]]
            degree = first[nodes[i] + 1] - start
            take = degree if fan_out[hop] < 0 else min(degree, fan_out[hop])
            chosen = np.empty(take, dtype=np.int64)
            for j in range(take):
                if take == degree:
                    pick = np.int64(j)
                else:
                    # Floyd's draw: `take` distinct numbers below `degree`, no table of them all
                    bound = degree - take + j
                    pick = np.int64(np.random.randint(0, bound + 1))
                    for k in range(j):
                        if chosen[k] == pick:
                            pick = np.int64(bound)
                            break
                chosen[j] = pick
                neighbor = neighbors[start + pick]
                if place[neighbor] < 0:
                    place[neighbor] = len(nodes)
                    nodes.append(neighbor)
                source.append(place[neighbor])
                target.append(np.int64(i))
        begin, end = end, len(nodes)
    for node in nodes:
        place[node] = -1
    return np.array(nodes), np.array(source), np.array(target)
