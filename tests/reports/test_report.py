"""The report: what is read, what is drawn, and that nothing of it comes from outside."""

import base64
import gzip
import html.parser
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from report_runs import METHODS, row, some_rows, table_of

pytest.importorskip("plotly", reason="the extra 'report' is not installed")

from limbeck.cli import run
from limbeck.errors import InputError, OutputError
from limbeck.evaluation.compare import compare
from limbeck.reports.drawing import Colors
from limbeck.reports.method_figures import inside
from limbeck.reports.pareto import Point, front
from limbeck.reports.report import MAX_BYTES, render_report, write_report
from limbeck.reports.runs import read_runs
from limbeck.reports.tables import to_markdown


@pytest.fixture
def runs(tmp_path):
    return table_of(tmp_path / "runs", some_rows())


class Structure(html.parser.HTMLParser):
    """Elements that were opened and not closed, and every address in them."""

    VOID = frozenset({"meta", "link", "input", "br", "line"})

    def __init__(self):
        super().__init__()
        self.open, self.wrong, self.addresses, self.ids = [], [], [], []

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.addresses += [named[a] for a in ("src", "href", "action") if named.get(a)]
        self.ids += [named["id"]] if "id" in named else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def parsed(page):
    structure = Structure()
    structure.feed(page)
    return structure


def data_of(page):
    packed = re.search(r'id="data">(.*?)</script>', page, re.S)[1]
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def test_one_file_that_needs_nothing_else(runs, tmp_path):
    out = write_report([runs], tmp_path / "report.html", title="A <b> & c")
    page = out.read_text(encoding="utf-8")
    assert out.stat().st_size <= MAX_BYTES / 3  # plotly's script is packed: plain it is 4.8 MB
    structure = parsed(page)
    assert structure.wrong == []
    assert structure.open == []
    assert len(set(structure.ids)) == len(structure.ids)
    assert all(a.startswith(("#", "data:")) for a in structure.addresses), structure.addresses
    assert "A &lt;b&gt; &amp; c" in page
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["report.html"]


def test_every_figure_has_a_title_axes_and_text(runs):
    data = data_of(render_report(read_runs([runs]), "t"))
    assert list(data["cells"]) == [
        "cpf-cora / transductive / sage",
        "cpf-citeseer / transductive / sage",
    ]
    drawn = [f for cell in data["cells"].values() for f in cell["figures"]] + data["overall"]
    kinds = {figure["kind"] for figure in drawn}
    assert {
        "pareto-latency_us_b1",
        "pareto-parameters",
        "difference-teacher",
        "difference-glnn",
        "accuracy-degree",
        "accuracy-homophily",
        "accuracy-class",
        "calibration-student",
        "calibration-calibrated",
        "calibration-error",
        "agreement",
        "agreement-degree",
        "training-val_score",
        "training-loss",
    } <= kinds
    for figure in drawn:
        layout = figure["figure"]["layout"]
        assert figure["title"]
        assert len(figure["text"]) > 40
        assert layout["xaxis"]["title"]["text"], figure["kind"]
        horizontal = {"difference-teacher", "difference-glnn", "calibration-error"}
        if figure["kind"] not in horizontal:  # names of methods say what they are
            assert layout["yaxis"]["title"]["text"], figure["kind"]


def test_the_front_holds_what_nothing_beats():
    cheap, twin, good, beaten, dear = (
        Point("cheap", 1, 0.5),
        Point("twin", 1, 0.4),
        Point("good", 2, 0.7),
        Point("beaten", 3, 0.7),
        Point("dear", 9, 0.9),
    )
    assert front([dear, beaten, twin, good, cheap]) == [cheap, good, dear]


def test_missing_parts_are_said(tmp_path):
    bare = {"curve": None, "reliability": None, "latency_us_b1": None}
    rows = [r for r in some_rows(**bare) if r["method"] != "rbm" and r["seed"] == 0]
    rows = [{k: v for k, v in r.items() if k not in {"routing", "diagnostics"}} for r in rows]
    page = render_report(read_runs([table_of(tmp_path / "old", rows)]), "t")
    said = data_of(page)["cells"]["cpf-cora / transductive / sage"]["missing"]
    assert [s.split(":")[0] for s in said] == [
        "Latency was not measured here; 'limbeck bench --latency' on the same folder does it "
        "without computing the cells again.",
        "There are no calibration curves",
        "There are no training curves",
        "Nothing is shown of what goes on inside the methods",
    ]
    assert "There is no diagram of ranks" in page
    assert "Latency was not measured in these runs" in page


def test_what_no_run_knows_has_no_column(runs, tmp_path):
    def headings(page):
        return re.findall(r"<th>([^<]*)</th>", page[page.index('id="runs"') :].split("<tbody>")[0])

    assert headings(render_report(read_runs([runs]), "t")) == [
        "method",
        "graph",
        "setting",
        "accuracy (%)",
        "to teacher (points)",
        "to glnn (points)",
        "agreement (%)",
        "ECE (%)",
        "µs, 1 node",
        "parameters",
        "training (s)",
        "peak memory (MB)",
        "seeds",
    ]
    more = [{**r, "teacher": "gcn", "latency_us_b1": None} for r in some_rows()]
    both = [runs, table_of(tmp_path / "gcn", more)]
    assert "teacher model" in headings(render_report(read_runs(both), "t"))
    assert "µs, 1 node" not in headings(render_report(read_runs(both[1:]), "t"))


def test_ranks_are_of_cells_that_hold_the_same_methods(runs, tmp_path):
    other = [{**r, "graph": r["graph"][4:]} for r in some_rows() if r["method"] != "rbm"]
    more = table_of(tmp_path / "more", [*other, {**other[0], "graph": "alone", "method": "mlp"}])
    page = render_report(read_runs([runs, more]), "t")
    names = re.findall(r"<h3>(\d students .*)</h3>", page)
    assert names == [
        "3 students in 2 cells of cpf-cora, cpf-citeseer",
        "2 students in 2 cells of cora, citeseer",
    ]
    titles = [f["title"] for f in data_of(page)["overall"] if f["kind"] == "pareto-parameters"]
    assert titles == [
        "Accuracy against parameters, mean of 2 cells of cpf-cora, cpf-citeseer",
        "Accuracy against parameters, mean of 2 cells of cora, citeseer",
    ]
    assert "Not ranked: 1 of the 5 cells" in page
    # one diagram, of three students; two are too few
    assert page.count('role="img"') == page.count("test over 2 cells") == 1


def test_published_numbers_stand_apart(runs):
    page = render_report(read_runs([runs]), "t")
    apart = page[page.index('<section id="published">') : page.index('<section id="notes">')]
    # GLNN's own table: Cora, transductive
    assert "80.54 <small>± 1.35" in apart
    assert "GLNN paper" in apart
    before = page[: page.index('<section id="published">')]
    assert "80.54" not in before
    assert "80.54" not in json.dumps(data_of(page))


def test_a_page_that_is_too_large_says_what_it_leaves_out(runs, monkeypatch):
    whole = render_report(read_runs([runs]), "t")
    import limbeck.reports.report as module

    monkeypatch.setattr(module, "MAX_BYTES", len(whole.encode()) - 1)
    page = render_report(read_runs([runs]), "t")
    kinds = {f["kind"] for f in data_of(page)["cells"]["cpf-cora / transductive / sage"]["figures"]}
    assert not any(kind.startswith("training") for kind in kinds)
    assert "accuracy-degree" in kinds
    assert "these were left out: training curves;" in page


def test_names_are_text_and_never_code(tmp_path):
    evil = "</script><script>alert(1)</script>"
    rows = [{**r, "graph": evil} if r["graph"] == "cpf-cora" else r for r in some_rows()]
    page = render_report(read_runs([table_of(tmp_path / "evil", rows)]), "t")
    assert "alert(1)</script>" not in page
    assert f"{evil} / transductive / sage" in data_of(page)["cells"]


# -- several folders -----------------------------------------------------------------------


def test_the_same_run_counts_once_and_another_one_is_renamed(runs, tmp_path):
    other = [
        r if r["method"] != "rbm" else {**r, "test_accuracy": r["test_accuracy"] - 0.1}
        for r in some_rows()
    ]
    more = table_of(tmp_path / "more", other)
    read = read_runs([runs, more])
    assert len(read.rows) == 16 + 4
    names = {r["method"] for r in read.rows}
    assert names == {*METHODS, "rbm @more"}
    assert read.notes == (
        "rbm of more has other figures or options than in an earlier folder: it is called "
        "rbm @more.",
    )
    assert [f.num_runs for f in read.folders] == [16, 16]


def test_another_teacher_makes_another_cell(runs, tmp_path):
    other = [{**r, "test_accuracy": r["test_accuracy"] - 0.1} for r in some_rows()]
    read = read_runs([runs, table_of(tmp_path / "more", other)])
    assert len(read.rows) == 32
    assert {r["teacher"] for r in read.rows} == {"sage", "sage @more"}
    assert {r["method"] for r in read.rows} == set(METHODS)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [([30.2], "30 s"), ([400.0, 500.0], "15 min"), ([7200.0, 1800.0], "2.5 h"), ([], None)],
)
def test_the_time_that_a_table_took_is_said(tmp_path, seconds, words):
    spent = [{"seconds": each, "workers": 2, "cells": 8} for each in seconds]
    folder = table_of(tmp_path / "runs", some_rows(), {"spent": spent})
    page = render_report(read_runs([folder]), "t")
    assert (f"computed in {words}." in page) if words else ("computed in" not in page)


def test_runs_of_other_options_are_not_averaged(tmp_path):
    # other seeds, so no run is there twice
    folders = []
    for number, rate in enumerate((0.01, 0.5)):
        made = {"options": json.dumps({"lr": rate})}
        rows = [
            {**each, **(made if each["method"] == "glnn" else {"options": json.dumps({})})}
            for each in some_rows()
        ]
        rows = [{**each, "seed": each["seed"] + 2 * number} for each in rows]
        folders.append(table_of(tmp_path / f"lr{number}", rows))
    read = read_runs(folders)
    seeds = {}
    for each in read.rows:
        seeds.setdefault(each["method"], set()).add(each["seed"])
    assert seeds["glnn"] == {0, 1}
    assert seeds["glnn @lr1"] == {2, 3}
    assert seeds["mlp"] == seeds["teacher"] == {0, 1, 2, 3}


def test_the_best_of_a_committee_may_be_another_one_for_each_seed(tmp_path):
    members = [
        [row("teacher", s, 0.8, options=json.dumps({"best": s})) for s in (0, 1)],
        [row("teacher", s, 0.8, options=json.dumps({"best": s})) for s in (2, 3)],
    ]
    folders = []
    for number, rows in enumerate(members):
        each = [{**r, "method": "teacher:sage", "options": json.dumps({})} for r in rows]
        each += [row("mlp", s["seed"], 0.6, options=None) for s in rows]
        folders.append(table_of(tmp_path / f"m{number}", [*rows, *each]))
    assert {r["teacher"] for r in read_runs(folders).rows} == {"sage"}


@pytest.mark.parametrize("changed", [{"ece": 0.5}, {"parameters": 9}, {"val_accuracy": 0.1}])
def test_runs_that_score_alike_by_chance_are_told_apart(runs, tmp_path, changed):
    other = [{**r, **changed} if r["method"] == "rbm" else r for r in some_rows()]
    read = read_runs([runs, table_of(tmp_path / "more", other)])
    assert {r["method"] for r in read.rows} == {*METHODS, "rbm @more"}
    empty = [{**r, "test_accuracy": None} if r["method"] == "rbm" else r for r in some_rows()]
    assert len(read_runs([runs, table_of(tmp_path / "empty", empty)]).rows) == 16


def test_settings_of_one_cut_share_their_teacher(tmp_path):
    # the teachers' figures tie in one setting, by chance
    def rows(accuracy):
        settings = {"inductive": 0.8, "production": accuracy}
        return [
            row(method, 0, figure if method == "teacher" else accuracy, setting=setting)
            for setting, figure in settings.items()
            for method in ("teacher", "mlp")
        ]

    folders = [table_of(tmp_path / "one", rows(0.7)), table_of(tmp_path / "two", rows(0.6))]
    read = read_runs(folders)
    assert len(read.rows) == 8
    assert {(r["teacher"], r["method"]) for r in read.rows} == {
        (teacher, method) for teacher in ("sage", "sage @two") for method in ("teacher", "mlp")
    }


def test_several_labels_are_scored_by_micro_f1_and_the_page_says_so(tmp_path):
    rows = [{**r, "metric": "micro-F1"} for r in some_rows()]
    read = read_runs([table_of(tmp_path / "runs", rows)])
    sentence = "Nodes of cpf-cora, cpf-citeseer have several labels: accuracy there is micro-F1."
    assert sentence in render_report(read, "t")
    assert sentence in to_markdown(compare(read.rows))


def test_an_unfinished_table_is_read_from_its_cells(tmp_path):
    folder = tmp_path / "cut"
    (folder / "cells").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(some_rows()[:2]), folder / "cells" / "a.parquet")
    read = read_runs([folder])
    assert len(read.rows) == 2
    assert not read.folders[0].finished


def test_what_cannot_be_read_is_one_sentence(tmp_path, runs, capsys):
    with pytest.raises(InputError, match="is no folder"):
        read_runs([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no table of runs"):
        read_runs([tmp_path / "empty"])
    other = tmp_path / "other"
    other.mkdir()
    pq.write_table(pa.table({"a": [1]}), other / "runs.parquet")
    with pytest.raises(InputError, match=r"has no column 'graph'"):
        read_runs([other])
    (other / "runs.parquet").write_text("no table")
    with pytest.raises(InputError, match=r"other cannot be read"):
        read_runs([other])
    with pytest.raises(OutputError, match="is a folder"):
        write_report([runs], tmp_path)
    assert run(["report", "--out", str(tmp_path / "r.html")]) == 2
    assert run(["report", str(tmp_path / "nowhere"), "--out", str(tmp_path / "r.html")]) == 2
    error = capsys.readouterr().err
    assert "no folder of runs was given" in error
    assert error.count("\n") == 2


def test_the_command(runs, tmp_path, capsys):
    out = tmp_path / "r.html"
    assert run(["report", str(runs), "--out", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"report": str(out), "bytes": out.stat().st_size}


# -- inside the methods --------------------------------------------------------------------


def test_inside_the_methods():
    layer = {"experts": [{"share": 0.75}, {"share": 0.25}], "nmi_class": 0.3}
    routing = {
        "test": {"own": 0.8, "shuffled": 0.5, "random": 0.6, "average": 0.7},
        "observed": {"layers": [layer]},
    }
    shown = {
        "gates": {
            "by_degree": {
                "0": {"num_nodes": 0, "gate": None, "share": None},
                "1-2": {"num_nodes": 5, "gate": 0.4, "share": 0.25},
            },
            "histogram": [5, *[0] * 9],
        },
        "curvature": {"edges": [-1.0, 0.0, 1.0], "count": [3, 4]},
        "layer_maps": {
            "before": {"epoch": 0, "attention": [[0.5, 0.5]], "distances": [[1, 1]]},
            "after": {"epoch": 9, "attention": [[0.9, 0.1]], "distances": [[1, 1]]},
        },
    }
    framelets = {
        "edge_homophily": 0.8,
        "shares": {"low": 0.7, "features": 0.3},
        "teacher": {"hidden1": {"rayleigh": 0.5}},
        "student": {"logits": {"rayleigh": None}},
    }
    row = {"routing": routing, "framelets": framelets, "diagnostics": shown}
    found = {f.kind: f for f in inside("m", [row])}
    assert list(found) == [
        "experts",
        "routing",
        "gates",
        "gate-histogram",
        "bands",
        "energies",
        "curvature",
        "layer-map-before",
        "layer-map-after",
    ]
    assert "costs 30.0 points: the choice of experts matters" in found["experts"].text
    assert list(found["routing"].figure.data[0].y) == [75, 25]
    assert list(found["gates"].figure.data[0].x) == ["1-2"]  # no node has degree 0
    assert list(found["curvature"].figure.data[0].x) == [-0.5, 0.5]
    assert "epoch 9" in found["layer-map-after"].title
    assert inside("m", [{"routing": None, "diagnostics": None}]) == []


def test_colours_are_those_of_the_method_everywhere():
    colors = Colors(["teacher", "mlp", "glnn"])
    assert colors["mlp"] != colors["glnn"] != colors["teacher"]
    assert colors["teacher:gcn"] == colors["teacher"]
    both = Colors(["teacher", "teacher:gcn", "teacher:sage", "mlp"])
    assert len({both.dash(name) for name in ("teacher", "teacher:gcn", "teacher:sage")}) == 3
    assert len({both.symbol(name) for name in ("teacher", "teacher:gcn", "teacher:sage")}) == 3


def test_no_two_of_many_methods_look_alike():
    names = ["teacher", "teacher:gcn", *(f"student {i}" for i in range(40))]
    colors = Colors(names)
    assert len({(colors[name], colors.symbol(name)) for name in names}) == len(names)
    assert len({(colors[name], colors.dash(name)) for name in names}) == len(names)
