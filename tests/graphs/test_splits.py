"""Splits: the rules by hand, the CPF draw against its own text, and every refusal."""

import logging
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Data, HeteroData

from limbeck.errors import OptionError, SplitError
from limbeck.graphs.datasets import load_dataset
from limbeck.graphs.info import GraphInfo
from limbeck.graphs.splits import Split, split_nodes


def make_graph(labels, split, notes=None, **masks):
    y = torch.tensor(labels)
    num_classes = int(y.max()) + 1 if y.dim() == 1 else y.shape[1]
    info = GraphInfo(
        name="g",
        source="hand",
        split=split,
        class_names=tuple("abcdefghijklmnopqrstuvwxyz"[:num_classes]),
        node_ids=np.array([f"n{i}" for i in range(len(y))], dtype=object),
        notes=notes or {},
    )
    masks = {f"{part}_mask": torch.tensor(mask).bool() for part, mask in masks.items()}
    return Data(x=torch.ones(len(y), 1), y=y, info=info, **masks)


def parts(split: Split):
    return split.train.tolist(), split.val.tolist(), split.test.tolist()


# --- fixed and columns


def test_fixed_masks_are_the_split_for_every_seed():
    graph = make_graph(
        [0, 1, 0, 1, -1], "fixed", train=[1, 1, 0, 0, 0], val=[0, 0, 1, 0, 0], test=[0, 0, 0, 1, 0]
    )
    assert parts(split_nodes(graph, 0)) == ([0, 1], [2], [3])
    assert parts(split_nodes(graph, 7)) == ([0, 1], [2], [3])
    assert split_nodes(graph, 0).train.dtype == torch.int64


def test_columns_are_picked_by_the_seed_modulo_their_number():
    train = [[1, 0], [1, 0], [0, 1], [0, 1]]
    val = [[0, 1], [0, 0], [1, 0], [0, 0]]
    test = [[0, 0], [0, 1], [0, 0], [1, 0]]
    graph = make_graph([0, 1, 0, 1], "columns", train=train, val=val, test=test)
    assert parts(split_nodes(graph, 0)) == ([0, 1], [2], [3])
    assert parts(split_nodes(graph, 1)) == ([2, 3], [0], [1])
    assert parts(split_nodes(graph, 6)) == parts(split_nodes(graph, 0))


def test_the_target_type_of_a_heterogeneous_graph_is_split():
    flat = make_graph([0, 1, 0, 1], "fixed", {"target": "movie"})
    graph = HeteroData()
    graph["movie"].y = flat.y
    for part, mask in {"train": [1, 1, 0, 0], "val": [0, 0, 1, 0], "test": [0, 0, 0, 1]}.items():
        graph["movie"][f"{part}_mask"] = torch.tensor(mask).bool()
    graph.info = flat.info
    assert parts(split_nodes(graph, 0)) == ([0, 1], [2], [3])


def test_several_labels_per_node_need_no_node_of_each_class():
    masks = {"train": [1, 0, 0], "val": [0, 1, 0], "test": [0, 0, 1]}
    graph = make_graph([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]], "fixed", **masks)
    assert parts(split_nodes(graph, 0)) == ([0], [1], [2])
    with pytest.raises(SplitError, match="several labels per node"):
        split_nodes(make_graph([[0.0, 0.0], [1.0, 0.0]], "random"), 0)


# --- per class (CPF)


def cpf_split(labels, seed):
    """``sample_per_class`` of CPF and GLNN, as its text reads, without arrays."""
    random, num_classes = np.random.RandomState(seed), max(labels) + 1

    def sample(count, forbidden):
        chosen = []
        for label in range(num_classes):
            candidates = [i for i, y in enumerate(labels) if y == label and i not in forbidden]
            chosen += random.choice(candidates, count, replace=False).tolist()
        return chosen

    train = sample(20, set())
    val = sample(30, set(train))
    used = set(train) | set(val)
    return sorted(train), sorted(val), [i for i in range(len(labels)) if i not in used]


@pytest.mark.parametrize("seed", [0, 1, 9])
def test_per_class_draws_what_cpf_draws(seed):
    labels = np.random.default_rng(5).permutation([0] * 50 + [1] * 61 + [2] * 90).tolist()
    split = split_nodes(make_graph(labels, "per-class"), seed)
    assert parts(split) == cpf_split(labels, seed)
    assert torch.tensor(labels)[split.train].bincount().tolist() == [20, 20, 20]
    assert torch.tensor(labels)[split.val].bincount().tolist() == [30, 30, 30]


def test_per_class_leaves_out_nodes_without_label():
    labels = [-1, 0] * 60 + [1] * 60
    split = split_nodes(make_graph(labels, "per-class"), 0)
    assert sum(map(len, parts(split))) == 120
    assert all(labels[i] >= 0 for part in parts(split) for i in part)


def test_per_class_refuses_a_class_of_fewer_than_fifty_nodes():
    with pytest.raises(SplitError, match=r"class 'b' of graph 'g'.* has 49 labelled nodes.* 50"):
        split_nodes(make_graph([0] * 60 + [1] * 49, "per-class"), 0)


# --- balanced


def test_balanced_takes_as_many_of_each_class_and_what_a_small_one_has():
    labels = np.random.default_rng(5).permutation([0] * 60 + [1] * 36 + [2] * 3 + [-1] * 9)
    split = split_nodes(make_graph(labels.tolist(), "balanced"), 3)
    # int(0.2 * 99 / 3) = 6 of each class
    assert [np.bincount(labels[part], minlength=3).tolist() for part in parts(split)] == [
        [6, 6, 3],
        [6, 6, 0],
        [48, 24, 0],
    ]
    again, other = (split_nodes(make_graph(labels.tolist(), "balanced"), seed) for seed in (3, 4))
    assert parts(again) == parts(split) != parts(other)


# --- random


def test_random_is_stratified_and_disjoint():
    labels = [0] * 100 + [1] * 50 + [-1] * 25
    split = split_nodes(make_graph(labels, "random"), 3)
    y = torch.tensor(labels)
    assert y[split.train].bincount().tolist() == [60, 30]
    assert y[split.val].bincount().tolist() == [20, 10]
    assert y[split.test].bincount().tolist() == [20, 10]
    assert parts(split) == parts(split_nodes(make_graph(labels, "random"), 3))
    assert parts(split) != parts(split_nodes(make_graph(labels, "random"), 4))


def test_random_takes_its_shares_from_the_notes():
    notes = {"fractions": {"train": 0.1, "val": 0.1}}
    split = split_nodes(make_graph([0] * 100 + [1] * 100, "random", notes), 0)
    assert [len(part) for part in parts(split)] == [20, 20, 160]


@pytest.mark.parametrize("fractions", [(0.0, 0.5), (0.5, 0.5), (0.2, -0.1)])
def test_random_refuses_shares_that_leave_a_part_empty(fractions):
    notes = {"fractions": dict(zip(("train", "val"), fractions, strict=True))}
    with pytest.raises(SplitError, match="sum below 1"):
        split_nodes(make_graph([0] * 50 + [1] * 50, "random", notes), 0)


def test_a_small_class_is_dealt_to_training_then_test_then_validation():
    labels = [0] * 50 + [1] * 1 + [2] * 2 + [3] * 4
    split = split_nodes(make_graph(labels, "random"), 0)
    y = torch.tensor(labels)
    count = {part: y[getattr(split, part)].bincount(minlength=4).tolist() for part in vars(split)}
    assert count == {"train": [30, 1, 1, 2], "val": [10, 0, 0, 1], "test": [10, 0, 1, 1]}


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=2, max_size=6),
    unlabelled=st.integers(0, 5),
    seed=st.integers(0, 2**32 - 1),
    fractions=st.sampled_from([(0.6, 0.2), (0.1, 0.1), (0.8, 0.1), (0.3, 0.3)]),
)
def test_random_covers_the_labelled_nodes_once_and_trains_every_class(
    sizes, unlabelled, seed, fractions
):
    labels = [label for label, size in enumerate(sizes) for _ in range(size)] + [-1] * unlabelled
    notes = {"fractions": dict(zip(("train", "val"), fractions, strict=True))}
    graph = make_graph(labels, "random", notes)
    if max(sizes) < 3:  # nobody has a third node, which would be the first for validation
        with pytest.raises(SplitError, match=r"no (validation|test) nodes"):
            split_nodes(graph, seed)
        return
    split = split_nodes(graph, seed)
    assert sorted(chain(*parts(split))) == list(range(sum(sizes)))
    assert set(graph.y[split.train].tolist()) == set(range(len(sizes)))


# --- refusals


def test_an_empty_part_is_named():
    graph = make_graph([0, 1, 0], "fixed", train=[1, 1, 0], val=[0, 0, 0], test=[0, 0, 1])
    with pytest.raises(SplitError, match=r"graph 'g' \(split 'fixed'\) has no validation nodes"):
        split_nodes(graph, 0)


def test_a_node_in_two_parts_is_named():
    graph = make_graph([0, 1, 0], "fixed", train=[1, 1, 0], val=[0, 0, 1], test=[0, 1, 1])
    with pytest.raises(SplitError, match=r"node 'n1' .* both a training and a test node"):
        split_nodes(graph, 0)


def test_a_node_of_a_part_without_label_is_named():
    graph = make_graph(
        [0, 1, -1, 0], "fixed", train=[1, 1, 0, 0], val=[0, 0, 1, 0], test=[0, 0, 0, 1]
    )
    with pytest.raises(SplitError, match=r"node 'n2' .* is a validation node but has no label"):
        split_nodes(graph, 0)


def test_a_class_without_training_node_is_an_error_of_ones_own_graph(caplog):
    masks = {"train": [1, 0, 0], "val": [0, 1, 0], "test": [0, 0, 1]}
    with pytest.raises(SplitError, match=r"class 'b' of graph 'g' .* has no training node"):
        split_nodes(make_graph([0, 1, 1], "fixed", **masks), 0)
    published = make_graph([0, 1, 1], "fixed", {"published_split": True}, **masks)
    with caplog.at_level(logging.WARNING):
        assert parts(split_nodes(published, 0)) == ([0], [1], [2])
    assert "class 'b' of graph 'g'" in caplog.text


@pytest.mark.parametrize("rule", ["fixed", "columns"])
def test_masks_that_are_missing_or_of_another_shape_are_named(rule):
    with pytest.raises(SplitError, match="'train_mask'"):
        split_nodes(make_graph([0, 1], rule), 0)
    wrong = [[1], [0]] if rule == "fixed" else [1, 0]
    with pytest.raises(SplitError, match="'train_mask'"):
        split_nodes(make_graph([0, 1], rule, train=wrong, val=wrong, test=wrong), 0)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(OptionError, match="out of range"):
        split_nodes(make_graph([0, 1], "random"), seed)


# --- the published splits at hand


def test_of_the_published_splits_only_four_of_texas_leave_a_class_untrained(data_root, caplog):
    names = ["texas", "cornell", "wisconsin", "actor", "chameleon", "chameleon-filtered"]
    names += ["cora:geom-gcn", "citeseer:geom-gcn", "pubmed:geom-gcn"]
    warned = []
    for name in names:
        graph = load_dataset(name, data_root)
        for seed in range(10):
            caplog.clear()
            split_nodes(graph, seed)
            warned += [(name, seed) for _ in caplog.records]
    # counted in the raw mask files: the one node of class 1 is a training node in the other six
    assert warned == [("texas", seed) for seed in (0, 1, 2, 7)]
