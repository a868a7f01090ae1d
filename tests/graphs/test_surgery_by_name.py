"""``NAME+sdrf``: the graph stays as it is, each view rewires what it observes."""

import pytest
import torch

import limbeck
from limbeck.errors import OptionError
from limbeck.graphs.rewire import SurgeryOptions, rewire
from limbeck.teachers.fit import teacher_options


def test_a_view_of_a_named_graph_is_rewired():
    plain, asked = limbeck.load_graph("digits"), limbeck.load_graph("digits+sdrf/5")
    assert torch.equal(plain.edge_index, asked.edge_index)
    assert asked.info.name == "digits+sdrf-5"
    assert asked.info.dataset == "digits+sdrf/5"
    before, after = limbeck.view(plain, "inductive", 1), limbeck.view(asked, "inductive", 1)
    wanted = rewire(before.observed.edge_index, before.num_observed, SurgeryOptions(loops=5), 1)
    assert torch.equal(after.observed.edge_index, wanted.edge_index)
    assert torch.equal(after.test_unseen, before.test_unseen)


def test_presets_are_those_of_the_graph():
    assert teacher_options("sage", "cora+sdrf/20") == teacher_options("sage", "cora")


def test_unknown_surgery():
    with pytest.raises(OptionError, match="unknown suffix"):
        limbeck.load_graph("digits+ricci")


def test_a_folder_may_have_a_plus(tmp_path):
    (tmp_path / "a+b").mkdir()
    with pytest.raises(limbeck.errors.GraphError, match="no table of nodes"):
        limbeck.load_graph(tmp_path / "a+b")


def test_surgery_knows_one_type_of_nodes():
    with pytest.raises(limbeck.errors.GraphError, match="several types of nodes, and surgery"):
        limbeck.view(limbeck.load_graph("minimag-small+sdrf/5"), "transductive", 0)
