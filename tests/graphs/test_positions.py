"""Positional encodings: what they see, what they separate, and that a seed fixes them."""

import importlib.metadata
import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Data
from torch_geometric.utils import contains_self_loops, stochastic_blockmodel_graph, to_undirected

from limbeck.errors import GraphError, MissingExtraError, OptionError, OutputError
from limbeck.graphs import positions
from limbeck.graphs.positions import (
    PositionOptions,
    deepwalk,
    extend,
    positions_of,
    random_walks,
    spectral,
)
from limbeck.graphs.view import View, make_view
from limbeck.testing import small_graph

SHORT = {"walk_length": 10, "walks_per_node": 2, "window": 2, "epochs": 1}
SPECTRAL = PositionOptions(dim=8)
DEEPWALK = PositionOptions("deepwalk", dim=8, **SHORT)
BOTH = pytest.mark.parametrize("options", [SPECTRAL, DEEPWALK], ids=["spectral", "deepwalk"])


@pytest.fixture(autouse=True)
def cold_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "positions"


def encode(edge_index, num_nodes, options, seed=0):
    if options.encoding == "spectral":
        return spectral(edge_index, num_nodes, dim=options.dim, seed=seed)
    return deepwalk(edge_index, num_nodes, dim=options.dim, seed=seed, **SHORT)


def two_communities(per_side=60, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        edges = stochastic_blockmodel_graph(
            [per_side] * 2, torch.tensor([[0.2, 0.01], [0.01, 0.2]])
        )
    return edges, torch.arange(2).repeat_interleave(per_side)


def with_edges_of_unseen(graph: Data, view: View, seed: int) -> Data:
    """The graph with the edges that touch unseen nodes drawn anew, and their features."""
    unseen = torch.zeros(graph.num_nodes, dtype=torch.bool)
    unseen[view.nodes[view.num_observed :]] = True
    kept = graph.edge_index[:, ~unseen[graph.edge_index].any(0)]
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randint(graph.num_nodes, (2, 200), generator=generator)
    drawn = to_undirected(ends[:, unseen[ends].any(0)])
    other = graph.clone()
    other.edge_index = torch.cat([kept, drawn], 1)
    other.x = torch.where(unseen[:, None], torch.zeros(()), graph.x)
    return other


# what an encoding sees


@BOTH
def test_unseen_nodes_leave_observed_positions_bit_identical(options, cold_cache):
    graph = small_graph()
    view = make_view(graph, "inductive", seed=1)
    first = positions_of(view, options)
    for file in cold_cache.iterdir():
        file.unlink()  # the second answer is computed, not read
    other = make_view(with_edges_of_unseen(graph, view, seed=5), "inductive", seed=1)
    assert other.evaluation_fingerprint != view.evaluation_fingerprint
    second = positions_of(other, options)
    assert torch.equal(first.observed, second.observed)
    assert not torch.equal(first.unseen, second.unseen)


@BOTH
def test_positions_of_a_view_fit_its_nodes(options):
    view = make_view(small_graph(), "inductive", seed=0)
    result = positions_of(view, options)
    num_unseen = view.everything.num_nodes - view.num_observed
    assert result.observed.shape == (view.num_observed, 8)
    assert result.unseen.shape == result.isolated.shape == (num_unseen, 8)
    for part in (result.observed, result.unseen, result.isolated):
        assert part.dtype == torch.float32
        assert part.isfinite().all()
    assert (result.isolated == 0).all()
    assert (result.unseen != 0).any()
    expected = encode(view.observed.edge_index, view.num_observed, options)
    assert torch.equal(result.observed, expected)


def test_a_transductive_view_has_no_unseen_positions():
    result = positions_of(make_view(small_graph(), "transductive", seed=0), SPECTRAL)
    assert result.observed.shape == (120, 8)
    assert result.unseen.shape == result.isolated.shape == (0, 8)


@BOTH
def test_a_node_without_neighbours_is_at_zero_and_moves_nobody(options):
    edges, _ = two_communities()
    alone = encode(edges, 120, options)
    # 120 has no edge at all, 121 only its self-loop
    wider = encode(torch.cat([edges, torch.tensor([[121], [121]])], 1), 122, options)
    assert (wider[120:] == 0).all()
    assert torch.equal(wider[:120], alone)
    assert (alone != 0).any(1).all()


@BOTH
def test_a_graph_without_edges_is_all_zero(options):
    nothing = torch.empty(2, 0, dtype=torch.int64)
    assert torch.equal(encode(nothing, 5, options), torch.zeros(5, 8))


@pytest.mark.filterwarnings("ignore::scipy.sparse.SparseEfficiencyWarning")
@BOTH
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_the_order_of_edges_does_not_matter(options, seed):
    edges, _ = two_communities(per_side=15)
    shuffled = edges[
        :, torch.randperm(edges.shape[1], generator=torch.Generator().manual_seed(seed))
    ]
    assert torch.equal(encode(edges, 30, options), encode(shuffled, 30, options))


# what an encoding says


@pytest.mark.parametrize("encoding", ["spectral", "deepwalk"])
def test_two_communities_are_told_apart(encoding):
    edges, side = two_communities()
    if encoding == "spectral":
        place = spectral(edges, 120, dim=8, seed=0).double()
    else:
        walks = {"walk_length": 40, "walks_per_node": 10, "window": 5, "epochs": 3}
        place = deepwalk(edges, 120, dim=8, seed=0, **walks).double()
    place = place / place.norm(dim=1, keepdim=True)
    likeness = place @ place.T
    same = side[:, None] == side
    off_diagonal = ~torch.eye(120, dtype=torch.bool)
    # each node lies closer to its own side, on average, than to the other one
    own = (likeness * (same & off_diagonal)).sum(1) / (same & off_diagonal).sum(1)
    other = (likeness * ~same).sum(1) / (~same).sum(1)
    assert (own > other).float().mean() > 0.95


def test_spectral_second_column_is_the_cut():
    edges, side = two_communities()
    column = spectral(edges, 120, dim=2, seed=0)[:, 1]
    agreement = ((column > 0).long() == side).float().mean()
    assert max(agreement, 1 - agreement) > 0.95


# determinism

ACROSS = """
import sys
import numpy as np
from limbeck.graphs.positions import deepwalk, spectral
from limbeck.testing import small_graph
edges = small_graph().edge_index
place = spectral(edges, 120, dim=8, seed=3)
walked = deepwalk(edges, 120, walk_length=10, walks_per_node=2, window=2, epochs=2, dim=8, seed=3)
np.savez(sys.argv[1], spectral=place.numpy(), deepwalk=walked.numpy())
"""


def test_processes_agree_whatever_their_hashes(tmp_path):
    hash_seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"  # not this process's
    environment = {
        **os.environ,
        "PYTHONHASHSEED": hash_seed,
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, "-c", ACROSS, str(tmp_path / "there.npz")]
    subprocess.run(command, env=environment, check=True)
    there = np.load(tmp_path / "there.npz")
    edges = small_graph().edge_index
    assert (spectral(edges, 120, dim=8, seed=3).numpy() == there["spectral"]).all()
    here = deepwalk(edges, 120, dim=8, seed=3, **{**SHORT, "epochs": 2})
    assert (here.numpy() == there["deepwalk"]).all()


def test_the_seed_draws_the_walks_and_leaves_the_generators_alone():
    edges, _ = two_communities(per_side=20)
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    one, two = (encode(edges, 40, DEEPWALK, seed) for seed in (1, 2))
    assert not torch.equal(one, two)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()


def test_repeated_eigenvalues_are_split_alike_every_time():
    # sixty cliques of ten have two eigenvalues: ARPACK's space is exhausted after two steps
    clique = torch.ones(10, 10).fill_diagonal_(0).nonzero().t()
    edges = torch.cat([clique + 10 * k for k in range(60)], 1)
    assert edges.max() >= positions.DENSE_UP_TO
    assert torch.equal(*(spectral(edges, 600, dim=16, seed=0) for _ in range(2)))


# walks


def test_walks_follow_out_edges_and_stop_where_none_leaves():
    path = torch.tensor([[0, 1, 2], [1, 2, 3]])
    walks = random_walks(path, 4, walk_length=3, walks_per_node=2, seed=0)
    assert walks.shape == (8, 3)
    by_start = {0: [0, 1, 2], 1: [1, 2, 3], 2: [2, 3, -1], 3: [3, -1, -1]}
    assert all(walk == by_start[walk[0]] for walk in walks.tolist())
    for start in (walks[:4, 0], walks[4:, 0]):  # each round starts once at every node
        assert sorted(start) == [0, 1, 2, 3]


def test_a_step_is_uniform_over_out_edges():
    star = torch.tensor([[0, 0, 0, 0], [1, 2, 3, 3]])  # 3 counts twice
    walks = random_walks(star, 4, walk_length=2, walks_per_node=8000, seed=0)
    counts = np.bincount(walks[walks[:, 0] == 0, 1], minlength=4)
    assert counts[0] == 0
    assert counts[1:] / 8000 == pytest.approx([0.25, 0.25, 0.5], abs=0.03)  # 5 deviations


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(1, 6), st.integers(1, 3))
def test_every_step_is_an_edge(seed, walk_length, walks_per_node):
    generator = torch.Generator().manual_seed(seed)
    edges = torch.randint(9, (2, 14), generator=generator)
    walks = random_walks(
        edges, 9, walk_length=walk_length, walks_per_node=walks_per_node, seed=seed
    )
    assert walks.shape == (9 * walks_per_node, walk_length)
    known = set(map(tuple, edges.t().tolist()))
    leaves = set(edges[0].tolist())
    for walk in walks.tolist():
        for here, there in itertools.pairwise(walk):
            assert (here, there) in known if there >= 0 else here not in leaves


def test_deepwalk_of_a_directed_path_places_its_end_too():
    path = torch.tensor([[0, 1, 2], [1, 2, 3]])
    assert (deepwalk(path, 4, dim=4, seed=0, **SHORT) != 0).any(1).all()


def test_the_hierarchical_softmax_can_be_left_out():
    edges, _ = two_communities(per_side=20)
    plain = deepwalk(edges, 40, dim=4, seed=0, hierarchical_softmax=False, **SHORT)
    assert not torch.equal(plain, deepwalk(edges, 40, dim=4, seed=0, **SHORT))


def test_training_says_nothing(capfd):
    deepwalk(two_communities(per_side=10)[0], 20, dim=4, seed=0, **SHORT)
    assert capfd.readouterr() == ("", "")


# the spectral encoding against hand-worked and dense numbers


def test_spectral_of_two_nodes_by_hand():
    # A = [[0, 1], [1, 0]], mean degree 1: eigenvectors (1, 1) and (1, -1), of mean square 1
    edge = torch.tensor([[0, 1], [1, 0]])
    expected = torch.tensor([[1.0, 1.0, 0.0], [1.0, -1.0, 0.0]])  # and no third eigenvector
    torch.testing.assert_close(spectral(edge, 2, dim=3, seed=0), expected)


def test_directions_repetitions_and_self_loops_are_ignored():
    edges, _ = two_communities(per_side=10)
    one_way = edges[:, edges[0] < edges[1]]
    loops = torch.arange(20).expand(2, -1)
    other = torch.cat([one_way, one_way, loops], 1)
    assert contains_self_loops(other)
    assert torch.equal(spectral(edges, 20, dim=4, seed=0), spectral(other, 20, dim=4, seed=0))


def dense_definition(edge_index: torch.Tensor, num_nodes: int, dim: int) -> np.ndarray:
    adjacency = np.zeros((num_nodes, num_nodes))
    adjacency[edge_index[0], edge_index[1]] = 1
    degrees = adjacency.sum(1)
    scale = 1 / np.sqrt(degrees + 0.1 * degrees.mean())
    values, vectors = np.linalg.eigh(scale[:, None] * adjacency * scale)
    return vectors[:, np.argsort(-values)[:dim]] * np.sqrt(num_nodes)


@pytest.mark.parametrize("solver", ["dense", "arpack", "randomised"])
def test_every_solver_finds_the_eigenvectors_of_the_definition(solver, monkeypatch):
    edges, _ = two_communities(per_side=100, seed=2)
    if solver != "dense":
        monkeypatch.setattr(positions, "DENSE_UP_TO", 0)
    if solver == "randomised":
        monkeypatch.setattr(positions, "EXACT_UP_TO", 0)
        monkeypatch.setattr(positions, "POWER_ITERATIONS", 200)
    mine = spectral(edges, 200, dim=6, seed=0).numpy()
    expected = dense_definition(edges, 200, 6)
    expected *= np.sign((mine * expected).sum(0))
    np.testing.assert_allclose(mine, expected, atol=1e-3 if solver == "randomised" else 1e-5)
    largest = mine[np.abs(mine).argmax(0), np.arange(6)]
    assert (largest > 0).all()


def test_small_components_do_not_crowd_out_the_large_one():
    edges, side = two_communities()
    pairs = torch.arange(120, 320).view(-1, 2).t()  # a hundred pairs beside it
    crowded = torch.cat([edges, pairs, pairs.flip(0)], 1)
    place = spectral(crowded, 320, dim=2, seed=0)[:120, 1]
    agreement = ((place > 0).long() == side).float().mean()
    assert max(agreement, 1 - agreement) > 0.95


# new nodes


def hand_made_view() -> View:
    """Nodes 0, 1, 2 are observed; 3 hears of 0, 1, 4, 3; 4 of 3; 5 of none; 6 of 2, twice."""
    edges = torch.tensor([[0, 1, 4, 3, 3, 2, 2, 3, 0], [3, 3, 3, 3, 4, 6, 6, 0, 1]])
    empty = torch.empty(0, dtype=torch.int64)
    inside = Data(x=torch.zeros(3, 1), edge_index=torch.tensor([[0], [1]]), num_nodes=3)
    everything = Data(x=torch.zeros(7, 1), edge_index=edges, num_nodes=7)
    return View(
        "inductive", 0, everything, inside, everything, torch.arange(7),
        empty, empty, empty, torch.arange(3, 7),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("mean-observed", [[2.0, 4.0], [0.0, 0.0], [0.0, 0.0], [5.0, 7.0]]),
        ("official", [[1.0, 2.0], [0.0, 0.0], [0.0, 0.0], [5.0, 7.0]]),
    ],
)
def test_a_new_node_takes_the_mean_of_its_neighbours(rule, expected):
    place = torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 7.0]])
    result = extend(place, hand_made_view(), rule=rule)
    assert result.dtype == torch.float32
    assert result.tolist() == expected


def test_the_rule_of_the_options_is_used():
    view = make_view(small_graph(), "inductive", seed=0, unseen=0.9)  # some know each other
    mean = positions_of(view, SPECTRAL)
    official = positions_of(view, PositionOptions(dim=8, rule="official"))
    assert torch.equal(official.observed, mean.observed)
    assert torch.equal(official.unseen, extend(mean.observed, view, rule="official"))
    assert not torch.equal(official.unseen, mean.unseen)


def test_the_mean_lies_within_its_neighbours():
    view = make_view(small_graph(), "inductive", seed=0)
    unseen = extend(torch.ones(view.num_observed, 2), view)
    source, target = view.everything.edge_index
    reached = torch.zeros(view.everything.num_nodes, dtype=torch.bool)
    reached[target[source < view.num_observed]] = True
    expected = reached[view.num_observed :, None].float().expand(-1, 2)
    torch.testing.assert_close(unseen, expected)


# the cache


@BOTH
def test_a_second_call_reads_and_a_damaged_file_is_made_anew(options, cold_cache, monkeypatch):
    view = make_view(small_graph(), "inductive", seed=0)
    first = positions_of(view, options)
    (file,) = cold_cache.glob("*.npy")
    with monkeypatch.context() as patch:
        patch.setattr(positions, "_encode", lambda *_: pytest.fail("computed twice"))
        assert torch.equal(positions_of(view, options).observed, first.observed)
    file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(positions_of(view, options).observed, first.observed)
    assert torch.equal(torch.from_numpy(np.load(file)), first.observed)
    assert {path.suffix for path in cold_cache.iterdir()} <= {".npy", ".lock"}


def test_what_positions_depend_on_names_their_file(cold_cache):
    view = make_view(small_graph(), "inductive", seed=0)
    asked = [
        lambda: positions_of(view, SPECTRAL),
        lambda: positions_of(view, PositionOptions(dim=9)),
        lambda: positions_of(view, SPECTRAL, seed=1),
        lambda: positions_of(make_view(small_graph(), "inductive", seed=4), SPECTRAL, seed=0),
        lambda: positions_of(view, DEEPWALK),
        lambda: positions_of(view, PositionOptions("deepwalk", dim=8, **{**SHORT, "window": 3})),
    ]
    for count, ask in enumerate(asked, start=1):
        ask()
        assert len(list(cold_cache.glob("*.npy"))) == count
    # walks are nothing to the spectral encoding, and a new node's rule is applied afterwards
    positions_of(view, PositionOptions(dim=8, walk_length=7, rule="official"), seed=view.seed)
    assert len(list(cold_cache.glob("*.npy"))) == len(asked)


def test_an_interrupted_writer_leaves_nothing(cold_cache, monkeypatch):
    view = make_view(small_graph(), "inductive", seed=0)

    def half(stream, array):
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", half)
        with pytest.raises(OutputError, match="cannot be written"):
            positions_of(view, SPECTRAL)
    assert {path.suffix for path in cold_cache.iterdir()} <= {".lock"}


def test_a_cache_that_is_a_file_is_named(tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "taken"))
    with pytest.raises(OutputError, match="taken"):
        positions_of(make_view(small_graph(), "inductive", seed=0), SPECTRAL)


# bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoding": "deep-walk"}, "did you mean 'deepwalk'"),
        ({"rule": "mean-obs"}, "did you mean 'mean-observed'"),
        ({"dim": 0}, "option 'dim' is 0: it must be a whole number, at least 1"),
        ({"dim": 2.5}, "option 'dim' is 2.5"),
        ({"epochs": True}, "option 'epochs' is True"),
        ({"walk_length": 10_001}, "from 1 to 10000"),
        ({"window": -1}, "option 'window'"),
        ({"walks_per_node": 0}, "option 'walks_per_node'"),
        ({"hierarchical_softmax": 1}, "true or false"),
    ],
)
def test_a_wrong_option_is_named(change, message):
    with pytest.raises(OptionError, match=message):
        PositionOptions(**change)


@BOTH
@pytest.mark.parametrize(
    ("edges", "message"),
    [
        (torch.tensor([[0], [4]]), "names node 4, but the graph has 4 nodes"),
        (torch.tensor([[0], [-1]]), "names node -1"),
        (torch.tensor([[0.0], [1.0]]), r"torch.float32 of shape \(2, 1\)"),
        (torch.tensor([0, 1]), r"expected torch.int64 \[2, E\]"),
    ],
)
def test_wrong_edges_are_refused(options, edges, message):
    with pytest.raises(GraphError, match=message):
        encode(edges, 4, options)


def test_wrong_arguments_of_the_functions_are_refused():
    edge = torch.tensor([[0, 1], [1, 0]])
    with pytest.raises(OptionError, match="'dim'"):
        spectral(edge, 2, dim=0, seed=0)
    with pytest.raises(OptionError, match="'window'"):
        deepwalk(edge, 2, dim=2, seed=0, **{**SHORT, "window": 0})
    view = hand_made_view()
    with pytest.raises(OptionError, match="rule for new nodes"):
        extend(torch.zeros(3, 2), view, rule="max")
    with pytest.raises(GraphError, match=r"expected \[3, d\]"):
        extend(torch.zeros(4, 2), view)


def test_without_gensim_the_extra_is_named(monkeypatch):
    edge = torch.tensor([[0, 1], [1, 0]])
    monkeypatch.setitem(sys.modules, "gensim.models", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'limbeck\[positions\]'"):
        deepwalk(edge, 2, dim=2, seed=0, **SHORT)

    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(positions, "version", absent)
    with pytest.raises(MissingExtraError, match="'gensim'"):
        positions_of(make_view(small_graph(), "inductive", seed=0), DEEPWALK)
