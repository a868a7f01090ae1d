"""Bulk scoring: right answers, bad rows by number and reason, and nothing half done."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from score_files import CASCADE, rows_of, write_rows
from tiny_bundle import BIAS, WEIGHT

import limbeck
from limbeck.errors import InputError, OptionError, OutputError, RequestError
from limbeck.features import FeatureEncoder
from limbeck.runtime.kernel import softmax
from limbeck.scoring import Columns, score_tables
from limbeck.scoring.parts import InputFile, PartsFolder, plan_parts

KEY = Columns(id=("key",))


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(530, 3)).astype(np.float32)


def test_answers_are_those_of_the_student(tiny, tmp_path, x):
    table = write_rows(tmp_path / "in.parquet", x)
    columns = Columns(id=("key",), probabilities=True, logits=True)
    report = score_tables(tiny(), [table], tmp_path / "out.parquet", columns, part_rows=150)
    out = pq.read_table(tmp_path / "out.parquet")
    assert out.column_names == ["key", "prediction", "probability", "probabilities", "logits"]
    assert out["key"].to_pylist() == [f"r{i}" for i in range(530)]
    logits = x @ WEIGHT + BIAS
    np.testing.assert_allclose(np.array(out["logits"].to_pylist()), logits, atol=1e-5)
    probabilities = softmax(logits, 2.0)
    np.testing.assert_allclose(np.array(out["probabilities"].to_pylist()), probabilities, atol=1e-6)
    np.testing.assert_allclose(out["probability"].to_numpy(), probabilities.max(1), atol=1e-6)
    assert out["prediction"].to_pylist() == [("art", "maths")[c] for c in logits.argmax(1)]
    assert json.loads(out.schema.metadata[b"classes"]) == ["art", "maths"]
    assert (report.rows, report.answered, report.bad) == (530, 530, 0)
    assert report.parts == 3  # row groups of 100 rows: 200, 200 and 130
    assert sorted(p.name for p in tmp_path.glob("out*")) == ["out.parquet"]


def test_bad_rows_go_to_the_side_file_with_number_and_reason(tiny, tmp_path, x):
    lists = x[:6].tolist()
    lists[1] = None
    lists[2] = [1.0, 2.0]
    lists[3] = [1.0, float("nan"), 2.0]
    lists[4] = [1.0, None, 2.0]
    table = pa.table({"key": list("abcdef"), "x": pa.array(lists, type=pa.list_(pa.float32()))})
    pq.write_table(table, tmp_path / "in.parquet")
    columns = Columns(id=("key",), features="x")
    report = score_tables(tiny(), [tmp_path / "in.parquet"], tmp_path / "out.parquet", columns)
    assert pq.read_table(tmp_path / "out.parquet")["key"].to_pylist() == ["a", "f"]
    assert report.bad_output == str(tmp_path / "out.bad.parquet")
    bad = pq.read_table(tmp_path / "out.bad.parquet").to_pylist()
    assert [(b["file"], b["row"], b["key"]) for b in bad] == [
        ("in.parquet", 1, "b"),
        ("in.parquet", 2, "c"),
        ("in.parquet", 3, "d"),
        ("in.parquet", 4, "e"),
    ]
    assert [b["reason"] for b in bad] == [
        "column 'x' is null",
        "the list in column 'x' is not 3 long",
        "the list in column 'x' holds what is not a finite float32 number",
        "the list in column 'x' holds a null",
    ]


def test_a_row_whose_answer_is_not_finite_is_bad_alone(tiny, tmp_path, x):
    x[[3, 77]] = 3e38  # finite, but the sum of a row is not
    table = write_rows(tmp_path / "in.parquet", x)
    score_tables(tiny(), [table], tmp_path / "out.parquet", KEY)
    bad = pq.read_table(tmp_path / "out.bad.parquet")
    assert bad["row"].to_pylist() == [3, 77]
    assert "so large that its answer is not finite" in bad["reason"][0].as_py()
    keys = pq.read_table(tmp_path / "out.parquet")["key"].to_pylist()
    assert keys == [f"r{i}" for i in range(530) if i not in (3, 77)]


def test_known_nodes_are_looked_up_and_unknown_ones_are_bad(tiny, tmp_path):
    table = pa.table({"node": ["ç", "nobody", None, "a"]})
    pq.write_table(table, tmp_path / "in.parquet")
    bundle, columns = tiny(), Columns(id=("node",), nodes="node")
    score_tables(bundle, [tmp_path / "in.parquet"], tmp_path / "out.parquet", columns)
    out = pq.read_table(tmp_path / "out.parquet")
    expected = limbeck.load(bundle).predict_proba(nodes=["ç", "a"])
    assert out["node"].to_pylist() == ["ç", "a"]
    np.testing.assert_array_equal(out["probability"].to_numpy(), expected.max(axis=1))
    bad = pq.read_table(tmp_path / "out.bad.parquet")
    assert bad["reason"].to_pylist() == [
        "the bundle does not know this node",
        "column 'node' is null",
    ]


def test_the_cascade_defers_and_asks_the_teacher_about_known_nodes(tiny, tmp_path):
    # the student's probabilities are .56, .82, .95 and .56; the teacher knows the first node
    theirs = np.array([[-9, 0], [0, -9], [np.nan] * 2, [np.nan] * 2], dtype=np.float16)
    bundle = tiny(store={"teacher_logits": theirs}, cascade=CASCADE)
    pq.write_table(pa.table({"node": ["a", "b", "ç", ""]}), tmp_path / "in.parquet")
    columns = Columns(id=("node",), nodes="node", cascade=True)
    report = score_tables(bundle, [tmp_path / "in.parquet"], tmp_path / "out.parquet", columns)
    out = pq.read_table(tmp_path / "out.parquet")
    decided = limbeck.load(bundle).decide(nodes=["a", "b", "ç", ""])
    assert out["prediction"].to_pylist() == decided.prediction.tolist()
    assert out["deferred"].to_pylist() == decided.deferred.tolist()
    assert out["by_teacher"].to_pylist() == decided.by_teacher.tolist()
    assert report.deferred == decided.deferred.sum()


def test_tables_are_read_with_the_encoder_of_the_bundle(tiny, tmp_path):
    trained = pa.table({"age": [1.0, 2.0], "colour": ["red", "blue"]})
    encoder = FeatureEncoder.fit(trained, ["age", "colour"], categorical=["colour"])
    new = {"age": [2.0, None, 5.0], "colour": ["red", "red", "green"], "id": [7, 8, 9]}
    pq.write_table(pa.table(new), tmp_path / "in.parquet")
    bundle = tiny(preprocessing=encoder.to_json())
    columns = Columns(id=("id",), logits=True)
    report = score_tables(bundle, [tmp_path / "in.parquet"], tmp_path / "out.parquet", columns)
    out = pq.read_table(tmp_path / "out.parquet")
    rows = np.array([[2, 0, 1], [5, 0, 0]], dtype=np.float32)
    np.testing.assert_allclose(np.array(out["logits"].to_pylist()), rows @ WEIGHT + BIAS)
    assert out["id"].to_pylist() == [7, 9]
    assert report.unknown == {"colour": 1}


def test_several_files_and_a_folder_come_in_the_order_of_their_names(tiny, tmp_path, x):
    folder = tmp_path / "in"
    folder.mkdir()
    write_rows(folder / "b.parquet", x[:10], first=100)
    write_rows(folder / "a.parquet", x[10:15], first=0)
    single = write_rows(tmp_path / "c.parquet", x[15:17], first=200)
    score_tables(tiny(), [folder, single], tmp_path / "out.parquet")
    out = pq.read_table(tmp_path / "out.parquet")
    assert out["file"].to_pylist() == ["a.parquet"] * 5 + ["b.parquet"] * 10 + ["c.parquet"] * 2
    assert out["row"].to_pylist() == [*range(5), *range(10), *range(2)]


def test_parts_make_no_difference(tiny, tmp_path, x):
    x[[5, 250]] = np.nan
    table, bundle = write_rows(tmp_path / "in.parquet", x), tiny()
    outputs = []
    for part_rows in (1, 10_000):
        out = tmp_path / f"{part_rows}.parquet"
        score_tables(bundle, [table], out, KEY, part_rows=part_rows)
        outputs.append((pq.read_table(out), pq.read_table(out.with_suffix(".bad.parquet"))))
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (Columns(id=("kez",)), "no column 'kez' in .*: did you mean 'key'"),
        (Columns(features="key"), "column 'key' of .* is string, expected lists of 3 numbers"),
        (Columns(nodes="other"), "column 'other' of .* is double: the ids .* are text"),
        (Columns(neighbors="key"), "reads no neighbors"),
        (Columns(cascade=True), "no threshold to defer by"),
        (Columns(nodes="key", features="x"), "--nodes asks for known nodes"),
        (Columns(id=("key", "key")), "names a column twice"),
    ],
)
def test_columns_are_checked_before_the_first_row(tiny, tmp_path, x, columns, message):
    table = write_rows(tmp_path / "in.parquet", x)
    with pytest.raises(InputError, match=message):
        score_tables(tiny(), [table], tmp_path / "out.parquet", columns)
    assert list(tmp_path.glob("out*")) == []


def test_lists_of_another_length_are_refused_at_once(tiny, tmp_path):
    pq.write_table(pa.table({"v": rows_of(np.zeros((4, 5)))}), tmp_path / "in.parquet")
    with pytest.raises(OptionError, match="holds lists of 5 numbers: the student reads 3"):
        score_tables(
            tiny(), [tmp_path / "in.parquet"], tmp_path / "o.parquet", Columns(features="v")
        )
    with pytest.raises(OptionError, match="has 0 columns of fixed-size lists of 3 numbers"):
        score_tables(tiny(), [tmp_path / "in.parquet"], tmp_path / "o.parquet")


def test_files_must_have_the_same_columns(tiny, tmp_path, x):
    one = write_rows(tmp_path / "1.parquet", x[:3])
    pq.write_table(pa.table({"key": [1], "x": rows_of(x[:1])}), tmp_path / "2.parquet")
    with pytest.raises(InputError, match="column 'key' is string in .*1.parquet and int64 in"):
        score_tables(tiny(), [one, tmp_path / "2.parquet"], tmp_path / "out.parquet", KEY)


def test_too_many_bad_rows_end_the_job_without_output(tiny, tmp_path, x):
    x[[5, 6]] = np.nan
    table, bundle = write_rows(tmp_path / "in.parquet", x), tiny()
    with pytest.raises(RequestError, match=r"2 rows so far .* --max-bad allows 1.*row 5 of in"):
        score_tables(bundle, [table], tmp_path / "out.parquet", KEY, max_bad=1)
    assert not (tmp_path / "out.parquet").exists()
    report = score_tables(bundle, [table], tmp_path / "out.parquet", KEY, max_bad=2)
    assert (report.bad, report.resumed_parts) == (2, 1)


def test_another_job_does_not_go_on_in_the_same_folder(tiny, tmp_path, x):
    x[0] = np.nan
    table, bundle, out = write_rows(tmp_path / "in.parquet", x), tiny(), tmp_path / "out.parquet"
    with pytest.raises(RequestError):
        score_tables(bundle, [table], out, KEY, max_bad=0)
    with pytest.raises(OutputError, match=r"another job has done \(columns differ\)"):
        score_tables(bundle, [table], out)
    write_rows(table, x[:100])
    with pytest.raises(OutputError, match=r"another job has done \(files differ\)"):
        score_tables(bundle, [table], out, KEY)


def test_a_job_that_ends_while_it_cleans_up_leaves_no_state_by_half(tiny, tmp_path, x, monkeypatch):
    table, out = write_rows(tmp_path / "in.parquet", x), tmp_path / "out.parquet"
    bundle = tiny()

    def cut_short(folder: Path) -> None:
        (folder / "plan.json").unlink()
        (folder / "part-00001.parquet").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("limbeck.scoring.parts.shutil.rmtree", cut_short)
        with pytest.raises(KeyboardInterrupt):
            score_tables(bundle, [table], out, KEY, part_rows=100)
    wanted = out.read_bytes()
    out.unlink()
    # another job neither fails nor takes over a part of the one before
    score_tables(bundle, [write_rows(tmp_path / "half.parquet", x / 2)], out, KEY, part_rows=100)
    assert out.read_bytes() != wanted
    assert score_tables(bundle, [table], out, KEY, part_rows=100).resumed_parts == 0
    assert out.read_bytes() == wanted
    assert [p.name for p in tmp_path.glob("out*")] == ["out.parquet"]


def test_output_must_be_a_place_of_its_own(tiny, tmp_path, x):
    table = write_rows(tmp_path / "in.parquet", x)
    with pytest.raises(OptionError, match="is both input and output"):
        score_tables(tiny(), [table], table, KEY)
    with pytest.raises(OutputError, match="does not exist; make it first"):
        score_tables(tiny(), [table], tmp_path / "no" / "out.parquet", KEY)
    with pytest.raises(OptionError, match=r"must be called \*.parquet"):
        score_tables(tiny(), [table], tmp_path / "out.csv", KEY)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match="broken.parquet cannot be read as Parquet"):
        score_tables(tiny(), [tmp_path / "broken.parquet"], tmp_path / "out.parquet", KEY)


def test_a_side_file_of_an_earlier_job_does_not_stay(tiny, tmp_path, x):
    bundle, out = tiny(), tmp_path / "out.parquet"
    with_bad = x.copy()
    with_bad[0] = np.inf
    score_tables(bundle, [write_rows(tmp_path / "bad.parquet", with_bad)], out, KEY)
    assert (tmp_path / "out.bad.parquet").exists()
    score_tables(bundle, [write_rows(tmp_path / "good.parquet", x)], out, KEY)
    assert not (tmp_path / "out.bad.parquet").exists()
    assert pq.read_metadata(out).num_rows == len(x)


@given(st.lists(st.lists(st.integers(0, 50), max_size=6), max_size=4), st.integers(1, 80))
def test_parts_cover_every_row_group_once(files, part_rows):
    described = [InputFile(str(i), 1, 1, "", tuple(groups)) for i, groups in enumerate(files)]
    parts = plan_parts(described, part_rows)
    covered = [
        (part.file, group)
        for part in parts
        for group in range(part.first_group, part.first_group + part.num_groups)
    ]
    assert covered == [(i, g) for i, groups in enumerate(files) for g in range(len(groups))]
    for part in parts:
        groups = files[part.file]
        assert part.first_row == sum(groups[: part.first_group])
        assert part.rows == sum(groups[part.first_group : part.first_group + part.num_groups])
        is_last = part.first_group + part.num_groups == len(groups)
        assert part.rows >= part_rows or is_last
    assert [part.number for part in parts] == list(range(len(parts)))


VALUES = st.one_of(st.floats(width=32), st.none())
LISTS = st.one_of(st.none(), st.lists(VALUES, min_size=2, max_size=4))


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(LISTS, min_size=1, max_size=12))
def test_every_row_is_answered_or_bad(tiny, tmp_path, lists):
    bundle = tmp_path / "tiny" if (tmp_path / "tiny").exists() else tiny()
    table = pa.table({"key": range(len(lists)), "x": pa.array(lists, type=pa.list_(pa.float32()))})
    pq.write_table(table, tmp_path / "in.parquet")
    out, columns = tmp_path / "out.parquet", Columns(id=("key",), features="x")
    score_tables(bundle, [tmp_path / "in.parquet"], out, columns)
    answered = pq.read_table(out)["key"].to_pylist()
    bad_file = tmp_path / "out.bad.parquet"
    bad = pq.read_table(bad_file)["row"].to_pylist() if bad_file.exists() else []
    assert sorted(answered + bad) == list(range(len(lists)))
    student = limbeck.load(bundle)
    for row, values in enumerate(lists):
        usable = values is not None and len(values) == 3 and None not in values
        if usable:
            try:
                student.predict(x=[values])
            except RequestError:
                usable = False
        assert (row in answered) == usable


def test_an_altered_result_is_refused(tmp_path):
    folder = PartsFolder(tmp_path / "out.parquet.parts")
    folder.claim({"bundle": "b"})
    (folder.path / "part-00000.json").write_text("{}")
    with pytest.raises(OutputError, match="part-00000.json was altered"):
        folder.finished()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        PartsFolder(tmp_path / "file" / "out.parts").claim({})
