from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bundle import X, tiny_parts

from limbeck.errors import BundleError, OptionError, RequestError
from limbeck.runtime.bundle import open_bundle
from limbeck.runtime.rows import CsrRows
from limbeck.runtime.store import NodeStore, store_arrays


def make_store(ids: Any, x: Any = None) -> NodeStore:
    ids = np.asarray(ids, dtype=object if len(ids) and isinstance(ids[0], str) else np.int64)
    x = np.zeros((len(ids), 3), dtype=np.float32) if x is None else x
    logits = np.arange(2 * len(ids), dtype=np.float32).reshape(-1, 2)
    return NodeStore(store_arrays(ids, x, logits), len(ids), width=3, num_classes=2)


@settings(deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, max_size=30), st.randoms())
def test_integer_ids_are_found(ids: list[int], random: Any) -> None:
    store = make_store(ids)
    wanted = random.choices(range(len(ids)), k=5) if ids else []
    assert store.rows_of([ids[row] for row in wanted]).tolist() == wanted
    unknown = next(n for n in range(len(ids) + 1) if n not in ids)
    with pytest.raises(RequestError, match=f"unknown node {unknown}: .*{len(ids)} nodes"):
        store.rows_of([*ids[:1], unknown])


# no surrogates: they have no UTF-8 form
@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), unique=True, max_size=20))
def test_text_ids_are_found(ids: list[str]) -> None:
    store = make_store(ids)
    assert store.rows_of(ids[::-1]).tolist() == list(range(len(ids)))[::-1]
    assert store.ids.tolist() == ids


def test_unknown_text_names_the_nearest() -> None:
    store = make_store(["paper-17", "paper-4", "書"])
    with pytest.raises(RequestError, match="unknown node 'papre-17': did you mean 'paper-17'"):
        store.rows_of(["papre-17"])
    assert store.rows_of(np.array(["書"])).tolist() == [2]


@pytest.mark.parametrize(
    ("ids", "asked", "message"),
    [
        ([5, 3], "5", "nodes is the text '5'"),
        ([5, 3], ["5"], "must be a list of integers"),
        ([5, 3], [5.0], "must be a list of integers"),
        ([5, 3], [[5]], "must be a list of integers"),
        ([5, 3], [[]], "must be a list of integers"),
        ([5, 3], [5, None], "must be a list of integers"),
        ([5, 3], [True], "must be a list of integers"),
        ([5, 3], 5, "must be a list of integers"),
        ([5, 3], [[5], 3], "must be a list of integers"),
        ([5, -1], np.array([2**64 - 1], np.uint64), "unknown node 18446744073709551615"),
        (["a"], "a", "nodes is the text 'a'"),
        (["a"], [1], "the node 1 is given as int"),
        (["a"], [b"a"], "given as bytes"),
        (["a"], [["a"]], "must be a list of strings"),
        (["a"], 7, "must be a list of strings"),
    ],
)
def test_wrong_requests(ids: list[Any], asked: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        make_store(ids).rows_of(asked)


def test_sparse_features_equal_dense_ones() -> None:
    csr = CsrRows(
        np.array([0, 1, 2, 3, 3]),
        np.array([0, 1, 2]),
        np.array([1, 3, 2], dtype=np.float32),
        width=3,
    )
    rows = np.array([3, 1, 1, 0])
    sparse = make_store([0, 1, 2, 3], csr).features(rows)
    assert isinstance(sparse, CsrRows)
    np.testing.assert_array_equal(sparse.dense(), X[rows])
    np.testing.assert_array_equal(make_store([0, 1, 2, 3], X).features(rows), X[rows])


@pytest.mark.parametrize(
    "ids", [np.array([1, 1]), np.array(["a", "a"]), np.array([1.5, 2]), np.array([1, "a"], object)]
)
def test_ids_that_cannot_be_stored(ids: np.ndarray) -> None:
    with pytest.raises(OptionError, match="ids of a node store"):
        store_arrays(ids, X[:2], X[:2, :2])


def test_lengths_must_agree() -> None:
    with pytest.raises(OptionError, match="2, 3 and 4"):
        store_arrays(np.arange(2), X[:3], X[:4])


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("logits", np.zeros((4, 3), np.float32)),
        ("logits", np.zeros((4, 2), np.float64)),
        ("logits", None),
        ("ids_offsets", np.zeros(3, np.int64)),
        ("ids", np.zeros(3, np.int32)),
        ("x", np.zeros((4, 2), np.float32)),
        ("x", np.zeros(12, np.float32)),
        ("x_indptr", np.zeros(5, np.int64)),
    ],
)
def test_arrays_that_do_not_fit_are_named(
    write_tiny: Callable[..., Path], name: str, array: np.ndarray | None
) -> None:
    arrays = tiny_parts()["store"] | {name: array}
    if array is None:
        del arrays[name]
    bundle = open_bundle(write_tiny(store=arrays))
    with pytest.raises(BundleError, match=r"x_indices\.npy" if "indptr" in name else name):
        NodeStore.open(bundle)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        b"garbage" * 20,
        b"\x93NUMPY\x01\x00\x20\x00" + b"{'descr': (".ljust(32),  # not closed
        b"\x93NUMPY\x02\x00\x00\x40\x00\x00" + b" " * 2**14,  # a head that is too long
    ],
)
def test_a_file_that_is_no_array(write_tiny: Callable[..., Path], content: bytes) -> None:
    bundle = write_tiny()
    opened = open_bundle(bundle)
    (bundle / "store" / "logits.npy").write_bytes(content)  # after the check, so nothing saw it
    with pytest.raises(BundleError, match=r"logits\.npy is not a readable"):
        NodeStore.open(opened)


def test_values_that_start_in_the_wrong_place(write_tiny: Callable[..., Path]) -> None:
    bundle = write_tiny()
    opened = open_bundle(bundle)
    file = bundle / "store" / "logits.npy"
    content = bytearray(file.read_bytes())
    content[8] -= 1  # the length of the head; the byte that it loses is one of its spaces
    content.pop(content.index(b"  "))
    file.write_bytes(bytes(content))
    with pytest.raises(BundleError, match=r"logits\.npy is damaged: its head has a wrong length"):
        NodeStore.open(opened)


@pytest.mark.parametrize(
    ("offsets", "named"),
    [
        ([0, 1, 2, 9, 9], "ids_offsets"),
        ([0, 3, 2, 4, 4], "ids_offsets"),
        ([0, 1, 3, 4, 4], "UTF-8"),
    ],
)
def test_text_ids_that_do_not_fit(
    write_tiny: Callable[..., Path], offsets: list[int], named: str
) -> None:
    arrays = tiny_parts()["store"] | {"ids_offsets": np.array(offsets)}
    store = NodeStore.open(open_bundle(write_tiny(store=arrays)))
    with pytest.raises(BundleError, match=named):
        store.rows_of(["a"])


def test_stored_csr_rows_are_checked_where_they_are_read() -> None:
    csr = CsrRows(np.array([0, 1, 1]), np.array([7]), np.ones(1, dtype=np.float32), width=3)
    store = make_store([0, 1], csr)
    with pytest.raises(BundleError, match="x_indices"):
        store.features(np.array([0]))
    csr.indptr[1] = 9
    with pytest.raises(BundleError, match="x_indptr"):
        store.features(np.array([0]))
