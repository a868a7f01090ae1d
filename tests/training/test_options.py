"""Hyper-parameters are checked, and say what would be right."""

from pathlib import Path

import pytest
import yaml

from limbeck.errors import OptionError
from limbeck.methods import make_method
from limbeck.methods.base import PRESETS as METHOD_PRESETS
from limbeck.registry import METHODS, TEACHERS, resolve
from limbeck.teachers.fit import PRESETS as TEACHER_PRESETS
from limbeck.teachers.fit import teacher_options


def test_an_unknown_option_gives_the_nearest_name():
    with pytest.raises(OptionError, match="unknown option 'lable_weight'.*'label_weight'"):
        make_method("glnn", "cora", lable_weight=0.5)


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("dropout", 1.0, "less than 1"),
        ("temperature", 0.0, "greater than 0"),
        ("hidden_channels", 0, "greater than or equal to 1"),
        ("norm", "group", "'none', 'batch' or 'layer'"),
        ("lr", float("inf"), "finite"),
    ],
)
def test_a_value_out_of_range_is_named(option, value, reason):
    with pytest.raises(OptionError, match=f"option '{option}' of GLNN.*{reason}"):
        make_method("glnn", "cora", **{option: value})


def test_unknown_names_give_the_nearest():
    with pytest.raises(OptionError, match="unknown method 'gllnn': did you mean 'glnn'"):
        make_method("gllnn", "cora")
    with pytest.raises(OptionError, match="unknown teacher 'sagee': did you mean 'sage'"):
        teacher_options("sagee", "cora")


def test_heads_must_divide_the_width():
    with pytest.raises(OptionError, match="not a multiple of heads"):
        teacher_options("gat", "cora", hidden_channels=30, heads=8)


@pytest.mark.parametrize(
    ("file", "kind", "names"),
    [(METHOD_PRESETS, "method", METHODS), (TEACHER_PRESETS, "teacher", TEACHERS)],
)
def test_every_preset_is_valid_and_belongs_to_a_name(file: Path, kind, names):
    presets = yaml.safe_load(file.read_text())
    assert set(presets) <= set(names)
    for name, entries in presets.items():
        for graph, values in entries.items():
            options = resolve(kind, name)(**values)
            assert options == resolve(kind, name)(**options.model_dump()), (name, graph)


CPF = ("cpf-cora", "cpf-citeseer", "cpf-pubmed", "a-photo", "a-computer")


def test_published_values_of_glnn():
    published = {  # baselines of the GLNN family: lr, weight decay, dropout
        "cpf-cora": (0.01, 5e-3, 0.6),
        "cpf-citeseer": (0.01, 1e-3, 0.1),
        "cpf-pubmed": (0.005, 0.0, 0.4),
        "a-computer": (0.001, 2e-3, 0.3),
        "a-photo": (0.005, 2e-3, 0.3),
    }
    for graph, values in published.items():
        for name in ("mlp", "glnn"):
            method = make_method(name, graph)
            assert (method.lr, method.weight_decay, method.dropout) == values
            assert (method.num_layers, method.hidden_channels, method.batch_size) == (2, 128, 512)
    sage = teacher_options("sage", "cpf-cora")
    assert (sage.hidden_channels, sage.fan_out, sage.weight_decay) == (128, (5, 5), 5e-4)


def test_a_split_of_a_graph_takes_the_graphs_preset():
    assert make_method("glnn", "cora:geom-gcn/3") == make_method("glnn", "cora")
