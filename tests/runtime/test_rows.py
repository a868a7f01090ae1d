import warnings

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from limbeck.errors import RequestError
from limbeck.runtime.rows import CsrRows, check_rows

DENSE = [[1, 0, 0], [0, 3, 0.5]]


@pytest.mark.parametrize(
    "x",
    [
        DENSE,
        np.array(DENSE),
        np.asfortranarray(np.array(DENSE, dtype=np.float16)),
        torch.tensor(DENSE),
        np.array([[1, 9, 0, 9, 0, 9], [0, 9, 3, 9, 0.5, 9]])[:, ::2],
    ],
)
def test_dense_forms(x: object) -> None:
    rows = check_rows(x, 3)
    assert isinstance(rows, np.ndarray)
    assert rows.dtype == np.float32
    assert rows.flags.c_contiguous
    np.testing.assert_array_equal(rows, np.array(DENSE, dtype=np.float32))


@pytest.mark.parametrize(
    "x",
    [
        sp.csr_matrix(DENSE),
        sp.csr_array(np.array(DENSE)),
        ([0, 1, 3], [0, 1, 2], [1, 3, 0.5]),
        (np.array([0, 1, 3], np.uint8), np.array([0, 2, 1], np.int32), np.array([1, 0.5, 3])),
        ([0, 1, 4], [0, 1, 2, 1], [1, 2.5, 0.5, 0.5]),  # a column twice adds up
    ],
)
def test_sparse_forms(x: object) -> None:
    rows = check_rows(x, 3)
    assert isinstance(rows, CsrRows)
    np.testing.assert_array_equal(rows.dense(), np.array(DENSE, dtype=np.float32))
    taken = rows.take(np.array([1, 1]))
    np.testing.assert_array_equal(taken.dense(), np.array([DENSE[1]] * 2, dtype=np.float32))


def test_bags_have_ones() -> None:
    rows = check_rows(([0, 2, 2], [2, 0]), 3)
    np.testing.assert_array_equal(rows.dense(), [[1, 0, 1], [0, 0, 0]])


@pytest.mark.parametrize("x", [[], np.empty((0, 3)), ([0], []), sp.csr_matrix((0, 3))])
def test_empty_batches(x: object) -> None:
    assert len(check_rows(x, 3)) == 0


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([1, 2, 3], "1 dimensions and must have 2: one node is"),
        ([[[1, 2, 3]]], "3 dimensions"),
        ([[1, 2]], r"shape \(1, 2\): the student reads 3 features"),
        ([[1, 2, 3, 4]], "the student reads 3 features"),
        (np.empty((2, 0)), "the student reads 3 features"),
        ([[1, 2], [3]], "x is not an array of numbers"),
        ([["a", "b", "c"]], "x must hold numbers"),
        ([[1, None, 3]], "x must hold numbers"),
        ([[1j, 0, 0]], "x must hold numbers"),
        ([[0, 0, 0], [0, float("nan"), 0]], r"x\[1, 1\] is nan"),
        ([[0, 0, -np.inf]], r"x\[0, 2\] is -inf"),
        ([[1e39, 0, 0]], r"x\[0, 0\] is 1e\+39"),
        (torch.zeros(1, 3, requires_grad=True), "x is not an array of numbers"),
        (sp.csc_matrix(DENSE), "format 'csc': give"),
        (sp.coo_matrix(DENSE), "x must hold numbers"),
        (sp.csr_matrix((2, 4)), "the student reads 3 features"),
        (([0, 1],), "tuple of 1"),
        (([0, 1], [0], [1], 3), "tuple of 4"),
        (([], []), r"x\.indptr must start with 0"),
        (([1, 1], [0]), r"x\.indptr must start with 0"),
        (([0, 2], [0]), r"end with the number of indices, 1"),
        (([0, 2, 1, 3], [0, 1, 2]), r"x\.indptr falls at row 1"),
        (([0, 1, 2], [0, 3]), r"column 3 in row 1: columns are 0 to 2"),
        (([0, 1, 2], [-1, 0]), r"column -1 in row 0"),
        (([0, 0, 1], np.array([2**64 - 1], np.uint64)), "column 18446744073709551615 in row 1"),
        (([0, 1], [0.5]), r"x\.indices must hold integers"),
        (([0, 1], [[0]]), r"x\.indices has 2 dimensions"),
        (([0, 1], [0], [1, 2]), "2 values for 1 indices"),
        (([0, 1], [0], [np.inf]), r"x\.values\[0\] is inf"),
        (None, "x must hold numbers"),
        ("abc", "x must hold numbers"),
        ({"x": 1}, "x must hold numbers"),
    ],
)
def test_refused(x: object, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        check_rows(x, 3)


@settings(deadline=None)
@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=6),
        elements=st.sampled_from([0.0, 0.0, 1.0, -2.5]),
    )
)
def test_dense_and_csr_say_the_same(x: np.ndarray) -> None:
    rows = check_rows(sp.csr_matrix(x), x.shape[1])
    np.testing.assert_array_equal(rows.dense(), x)


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner),
        max_leaves=20,
    )
)
def test_anything_is_read_or_refused_in_our_words(x: object) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            rows = check_rows(x, 2)
        except RequestError:
            return
    dense = rows.dense() if isinstance(rows, CsrRows) else rows
    assert dense.shape == (len(rows), 2)
