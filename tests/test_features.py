import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import BundleError, GraphError
from limbeck.features import MAX_DENSE_CATEGORIES, FeatureEncoder, SparseRows


def fit(
    table: pa.Table, categorical: tuple[str, ...] = (), columns: list[str] | None = None
) -> FeatureEncoder:
    return FeatureEncoder.fit(
        table, columns or table.column_names, categorical=categorical, where="nodes.csv"
    )


def dense(encoder: FeatureEncoder, table: pa.Table) -> Any:
    rows = encoder.encode(table, "nodes.csv")
    return rows.to_dense() if isinstance(rows, SparseRows) else rows


def test_dense_row_by_hand() -> None:
    table = pa.table(
        {
            "age": [3, 5],
            "weight": [0.5, -1.5],
            "open": [True, False],
            "colour": ["red", "blue"],
            "place": pa.array([[1.0, 2.0], [3.0, 4.0]], type=pa.list_(pa.float64())),
        }
    )
    encoder = fit(table, ("colour",))
    rows = encoder.encode(table)
    assert isinstance(rows, np.ndarray)
    assert rows.dtype == np.float32
    # age, weight, open, blue, red, place
    assert rows.tolist() == [[3, 0.5, 1, 0, 1, 1, 2], [5, -1.5, 0, 1, 0, 3, 4]]
    assert encoder.width == 7
    assert encoder.numeric_columns.tolist() == [0, 1, 2]


def test_sparse_rows_by_hand() -> None:
    table = pa.table(
        {
            "words": [["b", "a", "b"], [], ["c"]],
            "age": [0, 5, 6],
            "colour": ["red", "blue", "red"],
        }
    )
    rows = fit(table, ("colour",)).encode(table)
    assert isinstance(rows, SparseRows)
    # words a b c, age (its zero is kept as an entry), blue, red
    assert rows.indptr.tolist() == [0, 4, 6, 9]
    assert rows.indices.tolist() == [0, 1, 3, 5, 3, 4, 2, 3, 5]
    assert rows.values.tolist() == [1, 1, 0, 1, 5, 1, 1, 6, 1]
    assert (rows.indptr.dtype, rows.indices.dtype, rows.values.dtype) == (
        np.int64,
        np.int64,
        np.float32,
    )
    assert rows.shape == (3, 6)


def test_dictionary_column_needs_no_declaration() -> None:
    table = pa.table({"colour": pa.array(["red", "blue"]).dictionary_encode()})
    assert fit(table).columns[0].vocabulary == ("blue", "red")
    assert dense(fit(table), table).tolist() == [[0, 1], [1, 0]]


def test_integer_categories_sort_as_numbers() -> None:
    table = pa.table({"year": [10, 9, 10]})
    assert fit(table, ("year",)).columns[0].vocabulary == (9, 10)


def test_many_categories_make_rows_sparse() -> None:
    few = pa.table({"c": [str(i) for i in range(MAX_DENSE_CATEGORIES)]})
    many = pa.table({"c": [str(i) for i in range(MAX_DENSE_CATEGORIES + 1)]})
    assert not fit(few, ("c",)).sparse
    assert fit(many, ("c",)).sparse
    assert np.array_equal(dense(fit(many, ("c",)), many).sum(1), np.ones(len(many)))


def test_unseen_words_are_zeros_and_counted() -> None:
    seen = pa.table({"colour": ["red", "blue"], "ids": [[1, 2], [3]], "age": [1, 2]})
    encoder = fit(seen, ("colour",))
    new = pa.table({"colour": ["green", "red"], "ids": [[9, 3, 8], [1]], "age": [1, 2]})
    encoded = encoder.encode_with_report(new)
    assert encoded.unknown == {"colour": 1, "ids": 2}
    assert isinstance(encoded.rows, SparseRows)
    # blue red 1 2 3 age
    assert encoded.rows.to_dense().tolist() == [[0, 0, 0, 0, 1, 1], [0, 1, 1, 0, 0, 2]]
    assert encoder.encode_with_report(seen).unknown == {}


def test_new_table_may_have_other_physical_types() -> None:
    encoder = fit(
        pa.table({"age": [1.5], "v": pa.array([[1, 2]], type=pa.list_(pa.int8(), 2))}),
    )
    new = pa.table(
        {"v": pa.array([[3.0, 4.0]], type=pa.large_list(pa.float32())), "age": pa.array([7])}
    )
    assert dense(encoder, new).tolist() == [[7, 3, 4]]


def test_chunks_slices_and_empty_tables() -> None:
    part = pa.table(
        {
            "w": [["a"], ["b", "a"], []],
            "v": pa.array([[1.0, 2], [3, 4], [5, 6]], type=pa.list_(pa.float32(), 2)),
            "c": pa.array(["x", "y", "x"]).dictionary_encode(),
        }
    )
    table = pa.concat_tables([part, part.slice(1), part.slice(0, 1)])
    encoder = fit(part)
    whole = dense(encoder, part)
    assert np.array_equal(dense(encoder, table), whole[[0, 1, 2, 1, 2, 0]])
    assert dense(encoder, part.slice(0, 0)).shape == (0, encoder.width)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ([1.0, None, 2.0], "is null"),
        ([1.0, float("nan"), 2.0], r"is not a number \(NaN\)"),
        ([1.0, float("-inf"), 2.0], "is infinite"),
        ([1.0, 1e300, float("nan")], "is 1e[+]300, too large for float32,"),
        ([[1.0, 2.0], None, [1.0, 2.0]], "is null"),
        ([[1.0, 2.0], [1.0], [1.0, 2.0]], "is a list of 1 numbers, expected 2,"),
        ([[1.0, 2.0], [1.0, None], [1.0, 2.0]], "holds a null"),
        ([[1.0, 2.0], [1.0, float("inf")], [1.0, 2.0]], "is infinite"),
        ([["a"], ["b", None], []], "holds a null"),
        ([[1], None, []], "is null"),
        (pa.array(["a", None, "b"]).dictionary_encode(), "is null"),
        (pa.nulls(3), "is null"),
    ],
)
def test_missing_value_names_file_column_and_node(values: Any, problem: str) -> None:
    table = pa.table({"f": values})
    first = "'p1'" if table["f"].type != pa.null() else "'p0'"
    ids = pa.chunked_array([["p0"], ["p1", "p2"]])
    with pytest.raises(GraphError, match=rf"column 'f' of nodes.csv {problem} for node {first}"):
        fit(table).encode(table, "nodes.csv", ids=ids)
    with pytest.raises(GraphError, match=r"for row [01] \(the first is 0\)"):
        fit(table).encode(table, "nodes.csv")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["red", "blue"], r"'f' of nodes.csv holds text \(such as 'red'\).*categorical=\['f'\]"),
        ([[True], [False]], "is list<.*bool>, which is no feature"),
        ([{"a": 1}, {"a": 2}], "which is no feature"),
        (pa.array([0, 1], type=pa.timestamp("s")), "is timestamp.*which is no feature"),
        (pa.array([[], []], type=pa.list_(pa.float32())), "holds empty lists only"),
        (pa.array([[], []], type=pa.list_(pa.string())), "holds no value at all"),
    ],
)
def test_column_that_is_no_feature(values: Any, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        fit(pa.table({"f": values}))


def test_options_of_fit_are_checked() -> None:
    table = pa.table({"age": [1.0], "colour": ["red"]})
    with pytest.raises(GraphError, match=r"nodes.csv has no feature column"):
        FeatureEncoder.fit(table, [], where="nodes.csv")
    with pytest.raises(GraphError, match=r"no column 'agee' in nodes.csv: did you mean 'age'"):
        fit(table, columns=["agee"])
    with pytest.raises(GraphError, match=r"no column 'color'.*did you mean 'colour'"):
        fit(table, ("color",))
    with pytest.raises(GraphError, match=r"'age' of nodes.csv is double, expected text or whole"):
        fit(table, ("age", "colour"))


@pytest.mark.parametrize(
    ("fitted", "given", "message"),
    [
        ([1.0], ["a"], "is string, expected a number"),
        ([[1.0, 2.0]], [1.0], "expected lists of 2 numbers"),
        ([["a"]], ["a"], "expected lists of words or ids"),
        ([[1]], [["a"]], "expected whole numbers"),
        ([[1]], [[1.5]], "is double, expected text or whole numbers"),
    ],
)
def test_new_table_of_another_kind(fitted: Any, given: Any, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        fit(pa.table({"f": fitted})).encode(pa.table({"f": given}), "new.csv")


def test_column_missing_from_a_new_table() -> None:
    encoder = fit(pa.table({"age": [1]}))
    with pytest.raises(GraphError, match=r"no column 'age' in new.csv: There are 'size'"):
        encoder.encode(pa.table({"size": [1]}), "new.csv")


WORDS = st.text(alphabet="abcé", min_size=1, max_size=2)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "number": st.floats(width=32, allow_nan=False, allow_infinity=False),
            "category": WORDS,
            "words": st.lists(WORDS, max_size=5),
            "ids": st.lists(st.integers(-(2**40), 2**40), max_size=3),
            "vector": st.lists(st.integers(-9, 9).map(float), min_size=2, max_size=2),
        }
    ),
    min_size=1,
    max_size=8,
)
SCHEMA = pa.schema(
    {
        "number": pa.float64(),
        "category": pa.string(),
        "words": pa.list_(pa.string()),
        "ids": pa.list_(pa.int64()),
        "vector": pa.list_(pa.float64()),
    }
)


def slow_encode(rows: list[dict[str, Any]]) -> list[list[float]]:
    categories = sorted({row["category"] for row in rows})
    words = sorted({word for row in rows for word in row["words"]})
    ids = sorted({i for row in rows for i in row["ids"]})
    return [
        [
            row["number"],
            *(float(c == row["category"]) for c in categories),
            *(float(w in row["words"]) for w in words),
            *(float(i in row["ids"]) for i in ids),
            *row["vector"],
        ]
        for row in rows
    ]


@settings(deadline=None, max_examples=80)
@given(ROWS)
def test_equals_a_slow_reference(rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    used = [name for name in SCHEMA.names if name[-1] != "s" or any(row[name] for row in rows)]
    encoder = fit(table, ("category",), used)
    assert encoder.sparse == ("words" in used or "ids" in used)
    assert dense(encoder, table).tolist() == slow_encode(rows)
    # fitted on the same rows in any order, and after a trip through JSON: the same encoder
    assert fit(pa.Table.from_pylist(rows[::-1], schema=SCHEMA), ("category",), used) == encoder
    assert FeatureEncoder.from_json(json.loads(json.dumps(encoder.to_json()))) == encoder


def test_json_round_trip_encodes_alike() -> None:
    table = pa.table({"c": [3, 1], "w": [["x"], ["y", "x"]], "n": [0.5, 1.0]})
    encoder = fit(table, ("c",))
    again = FeatureEncoder.from_json(json.loads(json.dumps(encoder.to_json())))
    assert np.array_equal(dense(again, table), dense(encoder, table))


GOOD_COLUMN = {"name": "c", "kind": "categorical", "width": 2, "vocabulary": ["a", "b"]}


@pytest.mark.parametrize(
    "document",
    [
        {},
        [],
        {"columns": []},
        {"columns": ["c"]},
        {"columns": [{"name": "c"}]},
        {"columns": [{**GOOD_COLUMN, "kind": "magic"}]},
        {"columns": [{**GOOD_COLUMN, "width": 3}]},
        {"columns": [{**GOOD_COLUMN, "width": "2"}]},
        {"columns": [{**GOOD_COLUMN, "width": True}]},
        {"columns": [{**GOOD_COLUMN, "vocabulary": ["a", 1]}]},
        {"columns": [{**GOOD_COLUMN, "vocabulary": [1.0, 2.0]}]},
        {"columns": [{**GOOD_COLUMN, "kind": "numeric", "width": 2, "vocabulary": []}]},
        {"columns": [{**GOOD_COLUMN, "kind": "vector"}]},
        {"columns": [{**GOOD_COLUMN, "extra": 1}]},
    ],
)
def test_altered_json_is_refused(document: Any) -> None:
    FeatureEncoder.from_json({"columns": [GOOD_COLUMN]})
    with pytest.raises(BundleError, match="feature"):
        FeatureEncoder.from_json(document)
