"""The compiled kernels; a checkout builds them with ``python hatch_build.py``."""

import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bundle import BIAS, WEIGHT, X, manifest_fields, tiny_parts

import limbeck
from limbeck.errors import BundleError, RequestError
from limbeck.runtime import loading, native
from limbeck.runtime.kernel import softmax
from limbeck.runtime.native import NativeKernel, layer_name

kernels = pytest.importorskip("limbeck.runtime._kernels", reason="built without a C compiler")

LAYERS = ((WEIGHT, BIAS),)
LOGITS = X @ WEIGHT + BIAS


def random_layers(*widths: int) -> Any:
    rng = np.random.default_rng(len(widths))
    return tuple(
        (
            rng.normal(size=(a, b)).astype(np.float32) / np.float32(a**0.5),
            rng.normal(size=b).astype(np.float32),
        )
        for a, b in itertools.pairwise(widths)
    )


def by_numpy(layers: Any, x: np.ndarray) -> np.ndarray:
    for i, (weight, bias) in enumerate(layers):
        x = (x if i == 0 else np.maximum(x, 0)) @ weight + bias
    return x


def sparse_rows(count: int, width: int, seed: int = 0) -> sp.csr_array:
    """Some rows, of which every third is empty."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, width)) * (rng.random((count, width)) < 0.2)
    x[::3] = 0
    return sp.csr_array(x.astype(np.float32))


WIDTHS = [(3, 2), (1433, 64, 7), (100, 256, 256, 47), (5, 16, 32, 48, 1), (17, 33, 65, 130)]


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("count", [0, 1, 3, 4, 31, 32, 33, 70])
def test_dense_and_sparse_rows_answer_as_numpy(widths: tuple[int, ...], count: int) -> None:
    layers = random_layers(*widths)
    answer = kernels.Network(layers).answer
    x = sparse_rows(count, widths[0])
    expected = by_numpy(layers, x.toarray())
    for request in (
        x.toarray(),
        (x.indptr, x.indices, x.data),
        (x.indptr.astype(np.int64), x.indices, x.data.astype(np.float64)),
        (x.indptr.astype(np.int32), x.indices.astype(np.int64), x.data),
    ):
        logits = answer(request)
        assert logits.shape == (count, widths[-1])
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=1e-5)


def test_values_left_out_are_ones_and_columns_count_as_often_as_they_stand() -> None:
    answer = kernels.Network(LAYERS).answer
    # by hand: no entry; column 2, then 0; column 1 twice
    indptr, indices = np.array([0, 0, 2, 4]), np.array([2, 0, 1, 1])
    expected = [BIAS, BIAS + WEIGHT[2] + WEIGHT[0], BIAS + 2 * WEIGHT[1]]
    np.testing.assert_allclose(answer((indptr, indices)), expected)
    np.testing.assert_allclose(answer((indptr, indices, None)), expected)


@pytest.mark.parametrize(
    "request_",
    [
        (np.array([0, 1]), np.array([3])),  # a column that does not exist
        (np.array([0, 1]), np.array([-1])),
        (np.array([0, 1]), np.array([2**40])),
        (np.array([0, 2]), np.array([1])),  # rows that end behind the entries
        (np.array([0, 2, 1]), np.array([1])),
        (np.array([0, -1, 1]), np.array([1])),
        (np.array([1, 1]), np.array([1])),
        (np.array([0, 1]), np.array([1, 2])),  # or before their end
        (np.array([0]), np.array([1])),
        (np.array([], dtype=np.int64), np.array([], dtype=np.int64)),
        (np.array([0, 1]), np.array([1]), np.array([np.nan], dtype=np.float32)),
        (np.array([0, 1]), np.array([1]), np.array([1e39])),
        (np.array([0, 1]), np.array([1]), np.array([1.0, 2.0])),
        (np.array([0, 1]), np.array([1]), np.array([1])),  # other types go the general way
        (np.array([0, 1]), np.array([1.0])),
        (np.array([[0, 1]]), np.array([1])),
        (np.array([0, 1]), np.arange(8)[::3]),
        ([0, 1], [1]),
        (np.array([0, 1]),),
        (),
        np.zeros((1, 4), dtype=np.float32),
        np.zeros((1, 3)),
        np.zeros((2, 6), dtype=np.float32)[:, ::2],
        np.zeros(3, dtype=np.float32),
        np.array([[0, np.inf, 0]], dtype=np.float32),
        np.array([[3e38, 0, 3e38]], dtype=np.float32),  # an answer that is not finite
        [[0, 0, 0]],
        None,
        "x",
    ],
)
def test_what_is_not_right_is_left_to_the_general_way(request_: Any) -> None:
    assert kernels.Network(LAYERS).answer(request_) is None


def test_numbers_that_overflow_in_a_hidden_layer_do_not_hide_behind_a_relu() -> None:
    one = np.ones((1, 1), dtype=np.float32)
    zero = np.zeros(1, dtype=np.float32)
    layers = ((3e38 * one, zero), (one * 3e38, zero), (0 * one, zero))
    assert kernels.Network(layers).answer(one * 10) is None


def test_layers_that_do_not_fit_are_refused() -> None:
    weight, bias = np.zeros((3, 2), dtype=np.float32), np.zeros(2, dtype=np.float32)
    for wrong in ((), ((weight,),), ((weight.astype(np.float64), bias),), (weight, bias)):
        with pytest.raises(TypeError):
            kernels.Network(wrong)
    for wrong in (((weight, bias[:1]),), ((weight, bias), (weight, bias))):
        with pytest.raises(ValueError, match="do not fit"):
            kernels.Network(wrong)


def test_random_requests_are_answered_right_or_not_at_all() -> None:
    rng = np.random.default_rng(0)
    layers = random_layers(9, 20, 4)
    answer = kernels.Network(layers).answer
    answered = 0
    for _ in range(3000):
        count, entries = rng.integers(0, 5), rng.integers(0, 8)
        indptr = np.sort(rng.integers(0, entries + 1, count + 1))
        if count and rng.random() < 0.8:
            indptr[0], indptr[-1] = 0, entries
        if rng.random() < 0.1:
            rng.shuffle(indptr)
        indices = rng.integers(-1 if rng.random() < 0.2 else 0, 10, entries)
        values = rng.normal(size=entries).astype(np.float32)
        right = (
            indptr[0] == 0
            and indptr[-1] == entries
            and (np.diff(indptr) >= 0).all()
            and ((indices >= 0) & (indices < 9)).all()
        )
        logits = answer((indptr, indices, values))
        assert (logits is not None) == right
        if right:
            answered += 1
            x = np.zeros((count, 9), dtype=np.float32)
            np.add.at(x, (np.repeat(np.arange(count), np.diff(indptr)), indices), values)
            np.testing.assert_allclose(logits, by_numpy(layers, x), atol=1e-5)
    assert 300 < answered < 2700


def test_threads_get_the_answers_of_their_own_requests() -> None:
    layers = random_layers(300, 128, 128, 5)
    answer = kernels.Network(layers).answer
    rng = np.random.default_rng(1)
    requests = [rng.normal(size=(200, 300)).astype(np.float32) for _ in range(4)]
    expected = [answer(x) for x in requests]
    wrong = []

    def ask(i: int) -> None:
        wrong.extend(i for _ in range(20) if not np.array_equal(answer(requests[i]), expected[i]))

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_softmax_in_place() -> None:
    logits = np.array([[1, -2, 3], [1000, 0, -1000], [0, 0, 0]], dtype=np.float32)
    expected = softmax(logits, 0.5)
    found = native.softmax(logits, 0.5)
    assert found is logits
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-30)
    frozen = np.zeros((1, 2), dtype=np.float32)
    frozen.flags.writeable = False
    np.testing.assert_allclose(native.softmax(frozen, 1.0), [[0.5, 0.5]])
    with pytest.raises(TypeError):
        kernels.softmax(logits, 0.0)


@pytest.mark.parametrize(
    ("ids", "unknown"),
    [
        ((0, 1, 2, 3), [4, -1, 2**63 - 1, True, "0", 1.0, 2**70]),
        ((10, 20, 30, 40), [15, 0, 50, None]),
        ((30, 10, 40, 20), [0, 3, 35]),
        (("a", "b", "ç", ""), ["c", 0, None, b"a"]),
    ],
)
def test_known_nodes(write_tiny: Callable[..., Path], ids: Any, unknown: list[Any]) -> None:
    lookup = limbeck.load(write_tiny(ids=ids)).store.lookup
    np.testing.assert_array_equal(lookup(list(ids)), LOGITS)
    np.testing.assert_array_equal(lookup([ids[2], ids[0], ids[2]]), LOGITS[[2, 0, 2]])
    assert lookup([]).shape == (0, 2)
    if isinstance(ids[0], int):
        np.testing.assert_array_equal(lookup(np.array(ids, dtype=np.int32)), LOGITS)
    assert all(lookup([ids[0], node]) is None for node in unknown)
    assert lookup("a") is None
    assert lookup(7) is None


# --- through a bundle -------------------------------------------------------------------------


def folded_parts() -> dict[str, Any]:
    """The tiny bundle with its layer as arrays."""
    arrays = {layer_name("weight", 0): WEIGHT, layer_name("bias", 0): BIAS}
    parts = tiny_parts()
    return {
        "manifest": manifest_fields(folded={"widths": [3, 2]}),
        "store": {**parts["store"], **arrays},
    }


REQUESTS = [X, X.tolist(), sp.csr_matrix(X), ([0, 1, 2, 3, 3], [0, 1, 2], [1, 3, 2])]


@pytest.mark.parametrize("with_kernels", [True, False])
def test_a_bundle_answers_the_same_with_and_without_kernels(
    write_tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, with_kernels: bool
) -> None:
    for module in (native, loading):
        monkeypatch.setattr(module, "HAS_KERNELS", with_kernels)
    student = limbeck.load(write_tiny(**folded_parts()))
    assert isinstance(student.kernel, NativeKernel) == with_kernels
    for x in REQUESTS:
        np.testing.assert_allclose(student.predict_logits(x=x), LOGITS, atol=1e-6)
    np.testing.assert_allclose(student.predict_proba(x=X), softmax(LOGITS, 2.0), rtol=1e-6)
    np.testing.assert_array_equal(student.predict_logits(["ç", "a"]), LOGITS[[2, 0]])
    with pytest.raises(RequestError, match=r"x has the column 3 in row 0: columns are 0 to 2"):
        student.predict(x=(np.array([0, 1]), np.array([3])))
    with pytest.raises(RequestError, match=r"x\[1\] holds numbers so large"):
        student.predict(x=np.array([[0, 0, 0], [3e38, 0, 3e38]], dtype=np.float32))
    with pytest.raises(RequestError, match="unknown node 'd'"):
        student.predict(["d"])
    with pytest.raises(RequestError, match="features alone: leave neighbors"):
        student.predict(x=X, neighbors=[[], [], [], []])


def test_what_is_answered_belongs_to_the_caller(write_tiny: Callable[..., Path]) -> None:
    student = limbeck.load(write_tiny())
    student.predict_proba(["a"])[:] = 7
    np.testing.assert_array_equal(student.predict_logits(["a"]), LOGITS[:1])


def test_missing_kernels_are_told_once(
    write_tiny: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(loading, "HAS_KERNELS", False)
    native.say_that_kernels_are_missing.cache_clear()
    path = write_tiny(**folded_parts())
    for _ in range(2):
        limbeck.load(path).predict(x=X)
    assert [record.message.split(",")[0] for record in caplog.records] == [
        "Limbeck was installed without its compiled kernels"
    ]


def test_an_overlay_answers_changed_nodes_anew(write_tiny: Callable[..., Path]) -> None:
    path = write_tiny(**folded_parts())
    student = limbeck.load(path).with_overlay(path.parent / "tiny.overlay")
    student.upsert(["a", "new"], X[[1, 2]])
    np.testing.assert_allclose(student.predict_logits(["a", "b", "new"]), LOGITS[[1, 1, 2]])
    np.testing.assert_allclose(student.predict_proba(["a"]), softmax(LOGITS[[1]], 2.0), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("folded_weight_0", WEIGHT.astype(np.float64)),
        ("folded_weight_0", WEIGHT.T),
        ("folded_bias_0", BIAS[:1]),
        ("folded_bias_0", None),
    ],
)
def test_arrays_that_do_not_fit_the_manifest(
    write_tiny: Callable[..., Path], name: str, array: np.ndarray | None
) -> None:
    parts = folded_parts()
    if array is None:
        del parts["store"][name]
    else:
        parts["store"][name] = array
    student = limbeck.load(write_tiny(**parts))
    with pytest.raises(BundleError, match=rf"{name}\.npy"):
        student.predict(x=X)


@pytest.mark.parametrize("widths", [[3], [3, 0, 2], [4, 2], [3, 3], [3, True, 2], "3, 2", None])
def test_widths_that_do_not_fit_the_manifest(write_tiny: Callable[..., Path], widths: Any) -> None:
    with pytest.raises(limbeck.errors.OptionError, match=r"folded\.widths"):
        write_tiny(manifest=manifest_fields(folded={"widths": widths}))


# --- experts, positions, neighbours, bands ----------------------------------------------------


def expert_layer(rng: Any, reads: int, answers: int, *, gated: bool) -> native.Layer:
    """Two of three experts, a shift, and a layer norm behind the ReLU or before it."""

    def drawn(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    return native.Layer(
        drawn(3, reads, answers),
        drawn(3, answers),
        relu=True,
        top_k=2,
        chooser=drawn(4 if gated else reads, 3),
        project=drawn(reads, 4) if gated else None,
        project_bias=drawn(4) if gated else None,
        shift=drawn(answers) if gated else None,
        norm=drawn(answers),
        norm_bias=drawn(answers),
        epsilon=1e-5,
        norm_last=gated,
    )


def expert_by_numpy(layer: native.Layer, x: np.ndarray) -> np.ndarray:
    """The same row by row."""
    answers = []
    for row in x:
        compared = row if layer.project is None else row @ layer.project + layer.project_bias
        score = compared @ layer.chooser / max(np.linalg.norm(compared), 1e-12)
        chosen = np.argsort(-score, kind="stable")[: layer.top_k]
        weights = np.exp(score - score[chosen[0]])
        gates = weights[chosen] / (weights if layer.project is not None else weights[chosen]).sum()
        y = sum(
            g * (row @ layer.weight[e] + layer.bias[e]) for g, e in zip(gates, chosen, strict=True)
        )
        y = y if layer.shift is None else y + layer.shift
        y = np.maximum(y, 0) if layer.norm_last else y
        y = (y - y.mean()) / np.sqrt(y.var() + layer.epsilon) * layer.norm + layer.norm_bias
        answers.append(y if layer.norm_last else np.maximum(y, 0))
    return np.array(answers, dtype=np.float32).reshape(len(x), len(layer.norm))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("beside", [0, 3])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("count", [0, 1, 5, 300])
def test_experts_answer_as_numpy(gated: bool, beside: int, scaled: bool, count: int) -> None:
    rng = np.random.default_rng(3)
    layers = (
        expert_layer(rng, 9 + beside, 70, gated=gated),
        expert_layer(rng, 70, 5, gated=gated),
    )
    deviation = rng.uniform(1, 2, 9).astype(np.float32) if scaled else None
    mean = np.zeros(9, dtype=np.float32) if scaled else None
    answer = kernels.Network(layers, beside, mean, deviation).answer
    x, position = sparse_rows(count, 9), rng.normal(size=(count, beside)).astype(np.float32)
    read = x.toarray() if deviation is None else x.toarray() / deviation
    expected = expert_by_numpy(layers[1], expert_by_numpy(layers[0], np.hstack([read, position])))
    others = (position,) if beside else ()
    for request in (x.toarray(), (x.indptr, x.indices, x.data)):
        np.testing.assert_allclose(answer(request, *others), expected, rtol=2e-4, atol=2e-4)
    # a column that comes twice would change the row's length
    assert answer((np.array([0, 2]), np.array([1, 1])), *(p[:1] for p in others)) is None


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_arrays_make_a_network_or_are_refused(data: Any) -> None:
    """Sizes that do not fit are told, whatever they are: nothing is read beyond an array."""
    small = st.integers(0, 4)

    def array(dimensions: int) -> Any:
        if data.draw(st.integers(0, 9)) == 0:
            return data.draw(st.sampled_from([None, 3, "x", np.zeros(2), np.zeros((2, 2, 2, 2))]))
        shape = data.draw(st.tuples(*[small] * dimensions))
        return np.ones(shape, dtype=np.float32)

    def part(dimensions: int) -> Any:
        return array(dimensions) if data.draw(st.booleans()) else None

    experts = data.draw(st.booleans())
    layer = (
        array(2 + experts),
        array(1 + experts),
        data.draw(st.booleans()),
        data.draw(st.integers(-1, 5)) if experts else 0,
        part(2),
        part(2),
        part(1),
        part(1),
        part(1),
        part(1),
        1e-5,
        data.draw(st.booleans()),
    )
    try:
        network = kernels.Network((layer,), data.draw(st.integers(-1, 3)), part(1), part(1))
    except (TypeError, ValueError):
        return
    x = data.draw(st.sampled_from([np.ones((2, n), dtype=np.float32) for n in range(5)]))
    answer = network.answer(x, *([array(2)] if data.draw(st.booleans()) else []))
    assert answer is None or answer.shape == (2, np.shape(layer[0])[-1])  # a bias may be left out


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_neighbors_are_answered_right_or_not_at_all(data: Any) -> None:
    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    column = np.array(data.draw(st.lists(st.integers(-1, 5), min_size=5, max_size=5)))
    observed = np.array(data.draw(st.lists(st.booleans(), min_size=5, max_size=5)))
    one = np.ones((3, 3), dtype=np.float32)
    encoder = (native.Layer(one, np.zeros(3, dtype=np.float32), True),)
    decoder = (native.Layer(np.eye(3, dtype=np.float32), np.zeros(3, dtype=np.float32), False),)
    # either way the answer is the sum of the rows
    if data.draw(st.booleans()):  # a gate that is all the structure's
        gate = np.zeros(6, dtype=np.float32)
        head = (encoder, None, None, None, None, 0.0, gate, 100.0, decoder, decoder)
    else:  # no gate, and features that add nothing
        head = (encoder, None, None, None, None, 0.0, None, 0.0, None, decoder)
    streams = kernels.Streams(
        kernels.Known(np.zeros((5, 2), dtype=np.float32), None, None, None),
        (table, None, column, observed, None),
        (0.0, 0.0, 4, 3),
        np.zeros(3, dtype=np.float32),
        (head,),
        None,
        (False, None, None),
    )
    ids = data.draw(st.lists(st.lists(st.integers(-3, 8), max_size=6), max_size=4))
    count = len(ids) if data.draw(st.booleans()) else data.draw(st.integers(0, 4))
    logits = streams.answer(np.zeros((count, 3), dtype=np.float32), ids)
    named = [{i for i in own if 0 <= i < 5 and observed[i]} for own in ids]
    columns = [[column[i] for i in own if column[i] >= 0] for own in named]
    right = count == len(ids) and all(len(own) <= 4 for own in ids)
    if not right or any(place >= 4 for own in columns for place in own):
        assert logits is None
    else:
        expected = [table[own].sum(0) if own else np.zeros(3) for own in columns]
        np.testing.assert_array_equal(logits, np.array(expected).reshape(count, 3))


@pytest.mark.parametrize(("has_gate", "decoders"), [(True, 1), (False, 2)])
def test_a_gate_weighs_two_decoders(has_gate: bool, decoders: int) -> None:
    one = np.ones((3, 3), dtype=np.float32)
    layers = (native.Layer(one, np.zeros(3, dtype=np.float32), False),)
    gate = np.zeros(6, dtype=np.float32) if has_gate else None
    from_structure = layers if decoders == 2 else None
    head = (layers, None, None, None, None, 0.0, gate, 0.0, from_structure, layers)
    table = (one, None, np.zeros(5, dtype=np.int64), np.ones(5, dtype=np.bool_), None)
    known = kernels.Known(np.zeros((5, 2), dtype=np.float32), None, None, None)
    with pytest.raises(TypeError, match="a gate and two decoders, or none and one"):
        kernels.Streams(known, table, (0.0, 0.0, 4, 3), one[0], (head,), None, (False, None, None))


def test_nodes_alone_have_a_network_of_their_own() -> None:
    """Features times 1 are added to the neighbours' mean; alone they count 100 times."""

    def head(factor: float) -> tuple[Any, ...]:
        encoder = (native.Layer(floats([factor]), floats(0), False),)
        return (
            encoder,
            *(None,) * 4,
            0.0,
            None,
            0.0,
            None,
            (native.Layer(floats([1]), floats(0), False),),
        )

    table = (floats([2], [6]), None, np.arange(2), np.ones(2, dtype=np.bool_), None)
    known = kernels.Known(np.zeros((2, 1), dtype=np.float32), None, None, None)
    heads, plain = (head(1), head(100)), (False, None, None)
    streams = kernels.Streams(known, table, (1.0, 0.0, 4, 1), floats(0), heads, None, plain)
    x = floats([1], [1], [1], [3])
    among = streams.answer(x, [[0, 1], [1], [], [7]])
    np.testing.assert_array_equal(among, [[5], [7], [100], [300]])
    # what is left of a sum is not looked at once the last edge went
    parts, share = floats([4], [6], [np.nan], [np.inf]), floats([1], [1], [0], [0])
    np.testing.assert_array_equal(streams.answer(x, parts, share), among)
    np.testing.assert_array_equal(streams.answer(x), 100 * x)


def test_a_norm_of_the_encoder_is_taken_of_the_sum() -> None:
    zero, one = np.zeros(2, dtype=np.float32), np.ones(2, dtype=np.float32)
    encoder = (native.Layer(np.eye(2, dtype=np.float32), zero, False),)
    decoder = (native.Layer(np.eye(2, dtype=np.float32), zero, False),)
    head = (encoder, None, None, 3 * one, one, 0.0, None, 0.0, None, decoder)
    table = (floats([0, 4]), None, np.zeros(1, dtype=np.int64), np.ones(1, dtype=np.bool_), None)
    known = kernels.Known(np.zeros((1, 2), dtype=np.float32), None, None, None)
    numbers, plain = (1.0, 0.0, 4, 2), (False, None, None)
    streams = kernels.Streams(known, table, numbers, zero, (head,), None, plain)
    # (1, 4) normalised is (-1, 1): times 3 and plus 1 (-2, 4), of which ReLU leaves (0, 4)
    np.testing.assert_allclose(streams.answer(floats([1, 0]), [[0]]), [[0, 4]], atol=1e-6)


def floats(*rows: Any) -> np.ndarray:
    return np.array(rows, dtype=np.float32)


def make_bands(*, released: bool = False, maps: Any = None, predictor: Any = None) -> Any:
    """One layer, two bands of one value that the heads take times 1 and 10, features times 100.

    The gate is that of what a band says: a half at 0, all of the graph at 100.
    """

    def times(factor: float) -> Any:
        return ((floats([factor]), floats(0)),)

    return kernels.Bands(
        (1, 2, False, released),
        times(1),
        None,
        (times(1), times(10)),
        times(100),
        predictor,
        (floats(1, 0), floats(0)),
        maps,
        (None, None),
    )


def test_bands_by_hand() -> None:
    bands, x = make_bands(), floats([3])
    np.testing.assert_allclose(bands.answer(x), [[600]])  # closed: the features, once for each band
    np.testing.assert_allclose(bands.answer(x, floats([0, 0])), [[300]])
    np.testing.assert_allclose(bands.answer(x, floats([100, 0])), [[100 + 150]])
    np.testing.assert_allclose(bands.answer(x, floats([100, 200])), [[100 + 2000]])
    np.testing.assert_allclose(make_bands(released=True).answer(x, floats([100, 200])), [[600]])
    # coefficients: 2 of each band, summed, halved or doubled, 0 or 50 on top
    maps = (np.ones((2, 2, 1), dtype=np.float32), floats(0, 50), floats(0.5, 2))
    of_coefficients = make_bands(maps=maps).answer(x, floats([150, 50, 40, 35]))
    np.testing.assert_allclose(of_coefficients, [[100 + 2000]])
    # a predictor that answers 100 and 200 whatever it reads, of bands as they are behind the maps
    predictor = ((floats([0, 0]), floats(100, 200)),)
    guessed = make_bands(maps=maps, predictor=predictor)
    np.testing.assert_allclose(guessed.answer(x), [[100 + 2000]])
    np.testing.assert_allclose(guessed.answer((np.array([0, 0]), np.array([0])[:0])), [[2100]])


@pytest.mark.parametrize(
    "given",
    [
        floats([0]),
        floats([0, 0, 0]),
        floats([0, 0], [0, 0]),
        floats(0, 0),
        floats([np.nan, 0]),
        floats([0, np.inf]),
        floats([3e38, 3e38]),  # an answer that is not finite
        np.zeros((1, 2)),
        np.zeros((1, 4), dtype=np.float32)[:, ::2],
        [[0, 0]],
        None,
    ],
)
def test_bands_that_are_not_right_are_left_to_the_general_way(given: Any) -> None:
    assert make_bands().answer(floats([3]), given) is None
    assert make_bands().answer(floats([np.nan])) is None
    assert make_bands().answer(floats([3]), floats([0, 0]), None) is None
    assert make_bands().answer() is None


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_any_arrays_make_bands_or_are_refused(data: Any) -> None:
    """Mostly right sizes, some of them off by one: nothing is read beyond an array."""
    draw = data.draw
    layers, bands, width, features, classes = (draw(st.integers(1, 3)) for _ in range(5))
    coefficients = draw(st.integers(0, 2))
    fits = True

    def array(*shape: int) -> Any:
        nonlocal fits
        if draw(st.integers(0, 60)) > 0:
            return np.ones(shape, dtype=np.float32)
        fits = False
        off = draw(st.integers(0, len(shape) - 1))
        shapes = [(*shape[:off], shape[off] + by, *shape[off + 1 :]) for by in (-1, 1)]
        wrong = [np.ones(of, dtype=np.float32) for of in shapes]
        return draw(st.sampled_from([*wrong, None, "x", np.ones(shape), np.ones((2, 2, 2, 2))]))

    def chain(reads: int, answers: int) -> Any:
        deep = draw(st.booleans())
        middle = [(reads, 2), (2, answers)] if deep else [(reads, answers)]
        return tuple((array(a, b), array(b)) for a, b in middle)

    heads = draw(st.sampled_from([1, bands]))
    arguments: list[Any] = [
        (layers, bands, draw(st.booleans()), draw(st.booleans())),
        chain(features, width),
        chain(width, width) if layers > 1 else None,
        tuple(chain(width, classes) for _ in range(heads)),
        chain(width, classes),
        chain(features, layers * bands * width) if draw(st.booleans()) else None,
        (array(layers * 2 * width), array(layers)),
        (array(bands, coefficients, width), array(bands * width), array(layers * bands))
        if coefficients
        else None,
        (array(features), array(features)) if draw(st.booleans()) else (None, None),
    ]
    try:
        answer = kernels.Bands(*arguments).answer
    except (TypeError, ValueError):
        assert not fits
        return
    x = np.ones((2, features), dtype=np.float32)
    given = array(2, layers * bands * (coefficients or width))
    for asked in ((x,), (x, given)):
        logits = answer(*asked)
        assert logits is None or logits.shape == (2, classes)
        assert logits is not None or not fits


@pytest.mark.parametrize("sizes", [(0, 2), (1, 0), (1, 65), (65, 2), (-1, 2), (1, 2**62)])
def test_sizes_of_bands_that_cannot_be(sizes: tuple[int, int]) -> None:
    chain = ((floats([1]), floats(0)),)
    gates = (floats(1, 0), floats(0))
    with pytest.raises(ValueError, match="do not fit"):
        kernels.Bands(
            (*sizes, False, False), chain, None, (chain,), chain, None, gates, None, (None, None)
        )
