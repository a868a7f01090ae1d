"""Published numbers: each with its source, and beside ours only where names agree."""

from limbeck.evaluation.compare import compare
from limbeck.evaluation.published import beside, published
from limbeck.graphs.view import SETTINGS


def test_every_number_says_where_it_is_from():
    numbers = published()
    assert len(numbers) > 200
    for number in numbers:
        assert 0 < number.mean < 100
        assert number.std is None or 0 <= number.std < 10
        assert number.source
        assert number.protocol
        assert number.line.startswith("card ")
        assert number.read.startswith("in the ")
        assert number.setting in SETTINGS
    keys = [(n.source, n.protocol, n.graph, n.setting, n.method) for n in numbers]
    assert len(set(keys)) == len(keys)


def test_numbers_by_setting():
    # GLNN's table 3, its row of Cora
    cora = {
        (n.setting, n.method): n.mean
        for n in published()
        if "Table 3" in n.source and n.graph == "cpf-cora"
    }
    assert cora["production", "glnn"] == 78.28
    assert cora["inductive", "glnn"] == 73.82
    assert cora["inductive", "teacher"] == 81.33


def test_beside_ours():
    def row(method, accuracy, graph):
        names = {"graph": graph, "setting": "transductive", "teacher": "sage", "seed": 0}
        return {**names, "method": method, "test_accuracy": accuracy}

    ours = compare([row("glnn", 0.81, "cpf-cora"), row("glnn", 0.5, "texas")])
    pairs = beside(ours)
    assert {p.published.graph for p in pairs} == {"cpf-cora"}
    first = next(p for p in pairs if p.published.method == "glnn")
    assert (first.published.mean, first.mean, first.num_seeds) == (80.54, 81.0, 1)
    assert next(p for p in pairs if p.published.method == "mlp").mean is None


def test_a_committee_stands_for_its_member():
    def row(method, accuracy, teacher):
        names = {"graph": "cpf-cora", "setting": "transductive", "teacher": teacher, "seed": 0}
        return {**names, "method": method, "test_accuracy": accuracy}

    among = [
        row("teacher", 0.83, "depths"),  # the best member, which need not be the paper's
        row("teacher:sage", 0.82, "depths"),
        row("teacher:gcnii", 0.83, "depths"),
        row("glnn", 0.81, "depths"),
    ]
    others = [{**each, "teacher": "others"} for each in among if each["method"] != "teacher:sage"]

    def first(rows, method):
        return next(p.mean for p in beside(compare(rows)) if p.published.method == method)

    assert first(among, "teacher") == 82.0
    assert first(among, "glnn") == 81.0
    assert first([*among, row("glnn", 0.7, "sage")], "glnn") == 70.0
    assert beside(compare(others)) == []
