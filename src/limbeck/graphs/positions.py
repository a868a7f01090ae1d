"""Positional encodings: where a node stands in the graph, in a few numbers.

Two encodings of the observed graph, and the rule that gives a position to a node which was not
in it:

``deepwalk``
    Uniform random walks read as sentences by a skip-gram model, as NOSMOG and RbM use it. The
    skip-gram comes from gensim, an optional extra: ``pip install 'limbeck[positions]'``.
``spectral``
    Leading eigenvectors of the normalised adjacency. Needs no extra, and is the default.

Both leave a node without any neighbour at zero, which is also what a new node without any
observed neighbour gets. Edges carry no weights here: each one stands for itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, get_args

import numba
import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from scipy import linalg, sparse
from scipy.sparse.linalg import eigsh
from sklearn.utils.extmath import randomized_svd
from torch import Tensor
from torch_geometric.utils import (
    degree,
    remove_isolated_nodes,
    remove_self_loops,
    sort_edge_index,
    to_scipy_sparse_matrix,
    to_undirected,
)

from limbeck.errors import GraphError, OptionError, missing_extra, unknown_name
from limbeck.files import appearing_whole
from limbeck.graphs.cache import MAKE_ROOM, cache_folder, writing_cache
from limbeck.graphs.view import View

Encoding = Literal["spectral", "deepwalk"]
Rule = Literal["mean-observed", "official"]
FloatArray = npt.NDArray[np.float64]

# gensim cuts what is longer than this off a sentence without a word.
LONGEST_WALK = 10_000

# Up to this many nodes LAPACK finds the eigenvectors of the dense matrix in well under a second.
DENSE_UP_TO = 512

# Above this many nodes a randomised range finder: at this size, 64 columns of a graph of mean
# degree 20, it takes 18 s on one core and ARPACK 47 s.
EXACT_UP_TO = 100_000

# Steps of its power iteration on the shifted matrix, whose eigenvalues lie close together.
POWER_ITERATIONS = 20

# Regularisation of the spectral encoding, as a share of the mean degree: of 0, 0.01, 0.03, 0.1, 0.3
# and 1 the best on validation nodes over the graphs of docs/positions.md.
REGULARISATION = 0.1

# Part of every key of the cache: raise it when an encoding changes.
GENERATION = 1


@dataclass(frozen=True)
class PositionOptions:
    """Which positional encoding, and its hyper-parameters.

    Args:
        encoding: ``"spectral"`` or ``"deepwalk"``; the options from ``walk_length`` on are
            DeepWalk's alone.
        dim: Width ``d`` of a position.
        rule: How a new node gets its position, see :func:`extend`.
        walk_length: Nodes in a walk, the first included.
        walks_per_node: Walks that start at each node.
        window: Largest distance within a walk at which one node predicts another.
        epochs: Passes over all walks.
        hierarchical_softmax: Train the hierarchical softmax beside negative sampling.

    Raises:
        OptionError: A value is of the wrong kind or out of range.
    """

    encoding: Encoding = "spectral"
    dim: int = 64
    rule: Rule = "mean-observed"
    walk_length: int = 50
    walks_per_node: int = 5
    window: int = 5
    epochs: int = 1
    hierarchical_softmax: bool = True

    def __post_init__(self) -> None:
        if self.encoding not in get_args(Encoding):
            raise unknown_name("encoding", self.encoding, get_args(Encoding))
        _check_rule(self.rule)
        _check_count("dim", self.dim)
        _check_walks(self.walk_length, self.walks_per_node)
        _check_count("window", self.window)
        _check_count("epochs", self.epochs)
        if not isinstance(self.hierarchical_softmax, bool):
            raise OptionError(
                f"option 'hierarchical_softmax' is {self.hierarchical_softmax!r}: "
                "it must be true or false."
            )

    @property
    def of_encoding(self) -> dict[str, int | str]:
        """The options on which the positions of observed nodes depend."""
        options = asdict(self)
        names = ["encoding", "dim"]
        if self.encoding == "deepwalk":
            names += ["walk_length", "walks_per_node", "window", "epochs", "hierarchical_softmax"]
        return {name: options[name] for name in names}


@dataclass(frozen=True, eq=False)
class Positions:
    """Positions of a view's nodes, float32, in the order of the view.

    Args:
        observed: Of the observed nodes, from the observed graph alone, ``[observed, d]``.
        unseen: Of the unseen nodes when they arrive with their edges, ``[unseen, d]``; no rows
            if the setting is transductive.
        isolated: Of the unseen nodes when they arrive without edges: zeros, ``[unseen, d]``.
    """

    observed: Tensor
    unseen: Tensor
    isolated: Tensor


def positions_of(view: View, options: PositionOptions, *, seed: int | None = None) -> Positions:
    """Positions of all nodes of a view, computed on its observed graph and nothing else.

    Those of the observed nodes are kept on disk, in the folder ``positions`` of Limbeck's cache,
    under the observed edges, the options, the seed and the versions of the libraries.

    Args:
        view: What training sees.
        options: Which encoding.
        seed: Draws the walks and the start of the embedding; ``None`` takes the view's.

    Raises:
        MissingExtraError: The encoding is ``"deepwalk"`` and gensim is not installed.
        OutputError: The cache cannot be written.
    """
    seed = view.seed if seed is None else seed
    edge_index = sort_edge_index(view.observed.edge_index)
    num_nodes = view.num_observed
    observed = _cached(
        _key(edge_index, num_nodes, options, seed),
        (num_nodes, options.dim),
        lambda: _encode(edge_index, num_nodes, options, seed),
    )
    unseen = extend(observed, view, rule=options.rule)
    return Positions(observed=observed, unseen=unseen, isolated=torch.zeros_like(unseen))


def _encode(edge_index: Tensor, num_nodes: int, options: PositionOptions, seed: int) -> Tensor:
    if options.encoding == "spectral":
        return spectral(edge_index, num_nodes, dim=options.dim, seed=seed)
    return deepwalk(
        edge_index,
        num_nodes,
        walk_length=options.walk_length,
        walks_per_node=options.walks_per_node,
        window=options.window,
        epochs=options.epochs,
        dim=options.dim,
        seed=seed,
        hierarchical_softmax=options.hierarchical_softmax,
    )


def extend(positions: Tensor, view: View, *, rule: Rule = "mean-observed") -> Tensor:
    r"""Positions of the nodes that were unobserved, when they arrive with their edges.

    ``"mean-observed"``
        .. math:: p_v = \frac{1}{|O(v)|} \sum_{u \in O(v)} p_u

        over the edges :math:`u \to v` from an observed node, zeros if there are none. This is
        the rule of NOSMOG's paper (Tian et al., ICLR 2023).
    ``"official"``
        The same sum divided by *all* edges into :math:`v`, self-loops and edges from other
        unseen nodes included: the value is smaller by the share that is observed. This is what
        the released code of RbM computes.

    An edge that occurs twice counts twice.

    Args:
        positions: Of the observed nodes, float32 ``[observed, d]``.
        view: The view they were computed on.
        rule: Which mean.

    Returns:
        float32 ``[unseen, d]``.

    Raises:
        OptionError: The rule is unknown.
        GraphError: There is not one position per observed node.
    """
    _check_rule(rule)
    first = view.num_observed
    if positions.dim() != 2 or len(positions) != first:
        raise GraphError(
            f"positions of shape {tuple(positions.shape)} do not fit the view: expected "
            f"[{first}, d], a row for each observed node."
        )
    num_unseen = int(view.everything.num_nodes or 0) - first
    source, target = view.everything.edge_index
    incoming = target >= first
    source, target = source[incoming], target[incoming] - first
    known = source < first
    if rule == "mean-observed":
        source, target, known = source[known], target[known], known[known]
    weight = 1.0 / degree(target, num_unseen)[target]
    # a product, not a scatter: it never holds a position per edge
    mean = sparse.csr_array(
        (weight[known].numpy(), (target[known].numpy(), source[known].numpy())),
        shape=(num_unseen, first),
    )
    return torch.from_numpy(mean @ positions.numpy())


def deepwalk(
    edge_index: Tensor,
    num_nodes: int,
    *,
    walk_length: int,
    walks_per_node: int,
    window: int,
    epochs: int,
    dim: int,
    seed: int,
    hierarchical_softmax: bool = True,
) -> Tensor:
    """DeepWalk: a skip-gram model of uniform random walks (Perozzi et al., KDD 2014).

    What the skip-gram is not told here is gensim's default, as in the code of RbM:
    five negative samples, frequent nodes thinned out at 1e-3, learning rate from 0.025 to 1e-4.
    One worker trains it, so that a seed gives the same numbers in every process.

    Args:
        edge_index: int64 ``[2, E]``; walks go from row 0 to row 1.
        num_nodes: Number of nodes ``N``.
        walk_length: Nodes in a walk, the first included; at most 10,000.
        walks_per_node: Walks that start at each node.
        window: Largest distance within a walk at which one node predicts another; drawn anew
            from 1 to ``window`` for each node of each walk.
        epochs: Passes over all walks.
        dim: Width ``d`` of a position.
        seed: Draws the walks, the start vectors and the negative samples.
        hierarchical_softmax: Train the hierarchical softmax beside negative sampling; ``False``
            leaves negative sampling alone.

    Returns:
        float32 ``[N, d]``, unscaled; zeros for a node without neighbours.

    Raises:
        MissingExtraError: gensim is not installed.
        GraphError: ``edge_index`` is not an edge list of ``num_nodes`` nodes.
        OptionError: A value is out of range.
    """
    for name, value in (("window", window), ("epochs", epochs), ("dim", dim)):
        _check_count(name, value)
    _check_walks(walk_length, walks_per_node)
    edges, connected = _connected_part(edge_index, num_nodes)
    positions = torch.zeros(num_nodes, dim)
    num_connected = int(connected.sum())
    if num_connected > 0:
        walks = random_walks(
            edges,
            num_connected,
            walk_length=walk_length,
            walks_per_node=walks_per_node,
            seed=seed,
        )
        positions[connected] = _skip_gram(walks, window, epochs, dim, seed, hierarchical_softmax)
    return positions


def random_walks(
    edge_index: Tensor, num_nodes: int, *, walk_length: int, walks_per_node: int, seed: int
) -> npt.NDArray[np.int32]:
    """Uniform random walks along the edges, in rounds: one from every node, in random order.

    Args:
        edge_index: int64 ``[2, E]``; a step goes from row 0 to row 1.
        num_nodes: Number of nodes ``N``.
        walk_length: Nodes in a walk, the first included.
        walks_per_node: Number of rounds.
        seed: Draws the orders and the steps.

    Returns:
        int32 ``[walks_per_node · N, walk_length]``. A walk stops at a node that no edge leaves;
        the rest of its row is −1.

    Raises:
        GraphError: ``edge_index`` is not an edge list of ``num_nodes`` nodes.
        OptionError: A value is out of range.
    """
    _check_walks(walk_length, walks_per_node)
    _check_edge_index(edge_index, num_nodes)
    source, target = sort_edge_index(edge_index)
    first = torch.zeros(num_nodes + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(source, minlength=num_nodes), 0, out=first[1:])
    generator = torch.Generator().manual_seed(seed)
    rounds = [torch.randperm(num_nodes, generator=generator) for _ in range(walks_per_node)]
    step_seed = int(torch.randint(2**31 - 1, (), generator=generator))
    walks: npt.NDArray[np.int32] = _walk(
        first.numpy(),
        target.contiguous().numpy(),
        torch.cat(rounds).numpy(),
        walk_length,
        step_seed,
    )
    return walks


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _walk(
    first: npt.NDArray[np.int64],
    neighbors: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int64],
    walk_length: int,
    seed: int,
) -> npt.NDArray[np.int32]:  # pragma: no cover - compiled
    np.random.seed(seed)
    walks = np.full((len(starts), walk_length), -1, dtype=np.int32)
    for i in range(len(starts)):
        node = starts[i]
        walks[i, 0] = node
        for j in range(1, walk_length):
            degree = first[node + 1] - first[node]
            if degree == 0:
                break
            node = neighbors[first[node] + np.random.randint(0, degree)]
            walks[i, j] = node
    return walks


class _Sentences:
    """Walks as gensim reads them: lists of nodes, made one at a time, as often as asked."""

    def __init__(self, walks: npt.NDArray[np.int32]) -> None:
        self.walks = walks

    def __iter__(self) -> Iterator[list[int]]:
        for walk in self.walks:
            yield (walk if walk[-1] >= 0 else walk[walk >= 0]).tolist()


def _skip_gram(
    walks: npt.NDArray[np.int32],
    window: int,
    epochs: int,
    dim: int,
    seed: int,
    hierarchical_softmax: bool,
) -> Tensor:
    """Embed the nodes of some walks, in which each of them occurs: float32 ``[N, dim]``."""
    try:
        from gensim.models import Word2Vec
    except ImportError as error:
        raise missing_extra("gensim", "positions") from error
    # gensim's start vectors come from the seed alone; nodes are counted here, in their order,
    # so that neither its own scan nor Python's hashes have a say in the vocabulary
    counts = np.bincount(walks[walks >= 0])
    generator = torch.Generator().manual_seed(seed)
    model = Word2Vec(
        vector_size=dim,
        window=window,
        min_count=0,
        sg=1,
        hs=int(hierarchical_softmax),
        workers=1,
        seed=int(torch.randint(2**31 - 1, (), generator=generator)),
    )
    model.build_vocab_from_freq(dict(enumerate(counts.tolist())), corpus_count=len(walks))
    model.train(
        _Sentences(walks),
        total_examples=model.corpus_count,
        total_words=int(counts.sum()),
        epochs=epochs,
    )
    vectors = torch.empty(len(counts), dim)
    vectors[torch.tensor(model.wv.index_to_key)] = torch.from_numpy(model.wv.vectors)
    return vectors


def spectral(edge_index: Tensor, num_nodes: int, *, dim: int, seed: int) -> Tensor:
    r"""Leading eigenvectors of the regularised normalised adjacency.

    .. math:: D_\tau^{-1/2} A D_\tau^{-1/2}, \qquad D_\tau = D + \tau I,

    where :math:`A` is 1 between neighbours in either direction and 0 elsewhere, its diagonal
    included, and :math:`\tau` is a tenth of the mean degree (Qin and Rohe, NeurIPS 2013, who take
    all of it). Without :math:`\tau` every connected component has an eigenvector of its own, all
    of the same eigenvalue, and those of many small ones crowd out what the large one is made of.

    Column ``k`` is the eigenvector of the ``k``-th largest eigenvalue (not its absolute value),
    scaled to mean square 1 over the nodes that have neighbours, its largest entry positive. Up
    to 100,000 such nodes the eigenvectors are exact (LAPACK, ARPACK); above that they are those
    of a randomised range finder (Halko et al., SIAM Review 2011).

    Args:
        edge_index: int64 ``[2, E]``; directions, repetitions and self-loops are ignored.
        num_nodes: Number of nodes ``N``.
        dim: Width ``d`` of a position. Where fewer than ``d`` nodes have neighbours there are
            only so many eigenvectors, and the other columns are zero.
        seed: Draws the start vectors, on which nothing but rounding depends as long as the
            eigenvectors are exact and their eigenvalues differ.

    Returns:
        float32 ``[N, d]``; zeros for a node without neighbours.

    Raises:
        GraphError: ``edge_index`` is not an edge list of ``num_nodes`` nodes.
        OptionError: ``dim`` is out of range.
    """
    _check_count("dim", dim)
    edges, connected = _connected_part(edge_index, num_nodes)
    positions = torch.zeros(num_nodes, dim)
    num_connected = int(connected.sum())
    if num_connected > 0:
        adjacency = _regularised_adjacency(edges, num_connected)
        vectors = _leading_eigenvectors(adjacency, min(dim, num_connected), seed)
        vectors *= np.sqrt(num_connected)  # [num_connected, k], columns of mean square 1
        positions[connected, : vectors.shape[1]] = torch.from_numpy(vectors).float()
    return positions


def _regularised_adjacency(edge_index: Tensor, num_nodes: int) -> sparse.csr_array:
    edges, _ = remove_self_loops(edge_index)
    edges = to_undirected(edges, num_nodes=num_nodes)  # repeated edges become one
    degrees = degree(edges[0], num_nodes, dtype=torch.float64)
    scale = (degrees + REGULARISATION * degrees.mean()).rsqrt()
    weight = scale[edges[0]] * scale[edges[1]]
    return sparse.csr_array(to_scipy_sparse_matrix(edges, weight, num_nodes))


def _leading_eigenvectors(matrix: sparse.csr_array, count: int, seed: int) -> FloatArray:
    """Unit eigenvectors of the largest eigenvalues, largest first, ``[N, count]``."""
    num_nodes = matrix.shape[0]
    if num_nodes <= max(DENSE_UP_TO, 2 * count):
        last = num_nodes - 1
        _, vectors = linalg.eigh(matrix.toarray(), subset_by_index=[last - count + 1, last])
        vectors = vectors[:, ::-1]
    elif num_nodes <= EXACT_UP_TO:
        # `rng`: where eigenvalues repeat, ARPACK runs out of directions and draws new ones
        rng = np.random.default_rng(seed)
        start = rng.standard_normal(num_nodes)
        values, vectors = eigsh(matrix, k=count, which="LA", v0=start, rng=rng)
        vectors = vectors[:, np.argsort(-values, kind="stable")]
    else:
        # the largest singular values would also be the smallest eigenvalues; (I + A) / 2 has
        # the same eigenvectors and no negative eigenvalue
        lazy = sparse.csr_array((sparse.eye_array(num_nodes) + matrix) / 2)
        vectors, _, _ = randomized_svd(lazy, count, n_iter=POWER_ITERATIONS, random_state=seed)
    signed: FloatArray = vectors * _signs(vectors)
    return signed


def _signs(vectors: FloatArray) -> FloatArray:
    """The sign per column that makes its largest entry positive; the first one of equal size."""
    size = np.abs(vectors)
    # rounding must not choose between entries that are equal by the graph's symmetry
    largest = np.argmax(size > (1 - 1e-6) * size.max(0), axis=0)
    signs: FloatArray = np.sign(vectors[largest, np.arange(vectors.shape[1])])
    return signs


def _connected_part(edge_index: Tensor, num_nodes: int) -> tuple[Tensor, Tensor]:
    """The graph on the nodes that have a neighbour other than themselves.

    Without the rest, encodings of the others do not depend on it: a node that nothing is known
    of moves nobody.

    Returns:
        Its edges, and which nodes are in it, bool ``[N]``.
    """
    _check_edge_index(edge_index, num_nodes)
    edges, _, connected = remove_isolated_nodes(edge_index, num_nodes=num_nodes)
    return edges, connected


def _check_edge_index(edge_index: Tensor, num_nodes: int) -> None:
    if edge_index.dim() != 2 or edge_index.shape[0] != 2 or edge_index.dtype != torch.int64:
        raise GraphError(
            f"'edge_index' is {edge_index.dtype} of shape {tuple(edge_index.shape)}, expected "
            "torch.int64 [2, E]."
        )
    if edge_index.numel() == 0:
        return
    low, high = (int(end) for end in torch.aminmax(edge_index))
    if low < 0 or high >= num_nodes:
        wrong = low if low < 0 else high
        raise GraphError(f"an edge names node {wrong}, but the graph has {num_nodes} nodes.")


def _check_rule(rule: str) -> None:
    if rule not in get_args(Rule):
        raise unknown_name("rule for new nodes", rule, get_args(Rule))


def _check_walks(walk_length: int, walks_per_node: int) -> None:
    _check_count("walk_length", walk_length, most=LONGEST_WALK)
    _check_count("walks_per_node", walks_per_node)


def _check_count(name: str, value: int, *, most: int | None = None) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < 1 or (most is not None and value > most):
        bound = "at least 1" if most is None else f"from 1 to {most}"
        raise OptionError(f"option {name!r} is {value!r}: it must be a whole number, {bound}.")


def _key(edge_index: Tensor, num_nodes: int, options: PositionOptions, seed: int) -> str:
    """Key of stored positions: the graph's edges in sorted order, what was asked, by whom."""
    libraries = {"spectral": ("scipy", "scikit-learn"), "deepwalk": ("gensim",)}
    try:
        versions = [version(library) for library in libraries[options.encoding]]
    except PackageNotFoundError as error:
        raise missing_extra(str(error.name), "positions") from error
    parts = [GENERATION, versions, num_nodes, options.of_encoding, seed]
    digest = hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16)
    digest.update(edge_index.contiguous().numpy().data)
    return digest.hexdigest()


def _cached(key: str, shape: tuple[int, int], compute: Callable[[], Tensor]) -> Tensor:
    """Read positions from the cache; else compute and store them, whole or not at all.

    Processes that want the same ones wait for each other.
    """
    folder = cache_folder() / "positions"
    path = folder / f"{key}.npy"
    stored = _read(path, shape)
    if stored is not None:
        return stored
    lock = FileLock(path.with_suffix(".lock"))
    with writing_cache(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        stored = _read(path, shape)
        if stored is None:
            stored = compute()
            with appearing_whole(path, MAKE_ROOM) as aside, aside.open("wb") as stream:
                np.save(stream, stored.numpy())
        return stored
    finally:
        lock.release()


def _read(path: Path, shape: tuple[int, int]) -> Tensor | None:
    """Stored positions; a file that is absent, unreadable or damaged holds none."""
    try:
        positions = np.load(path, allow_pickle=False)
    except (OSError, EOFError, ValueError):
        return None
    whole = positions.shape == shape and positions.dtype == np.float32
    return torch.from_numpy(positions) if whole else None
