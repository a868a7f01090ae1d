"""The linear map of sparse rows."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.graphs.sparse import linear, take_rows, to_csr, weighted_sums, with_values


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 9), st.integers(1, 12), st.integers(1, 7), st.integers(0, 10_000))
def test_csr_rows_are_mapped_as_dense_ones(rows, width, out, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator)
    x[torch.rand(x.shape, generator=generator) < 0.6] = 0
    weight = torch.randn(out, width + 2, generator=generator).requires_grad_()
    bias = torch.randn(out, generator=generator).requires_grad_()
    upstream = torch.randn(rows, out, generator=generator)
    found = []
    for given_rows, mapped in ((x, F.linear), (to_csr(x), linear)):
        y = mapped(given_rows, weight[:, :width], bias)  # a slice is not contiguous
        gradients = torch.autograd.grad(y, (weight, bias), upstream)
        found.append((y.detach(), *gradients))
    for dense, sparse in zip(*found, strict=True):
        torch.testing.assert_close(dense, sparse, rtol=1e-4, atol=1e-5)


def test_no_gradient_is_kept_where_none_is_asked_for():
    x = to_csr(torch.eye(4))
    with torch.no_grad():
        assert not linear(x, torch.ones(2, 4, requires_grad=True)).requires_grad
    assert torch.equal(linear(x, torch.ones(2, 4)), torch.ones(4, 2))
    assert linear(take_rows(x, torch.tensor([], dtype=torch.int64)), torch.ones(2, 4)).shape == (
        0,
        2,
    )


def test_values_with_a_gradient_get_one():
    values = torch.ones(3, requires_grad=True)
    linear(with_values(to_csr(torch.eye(3)), values), torch.full((2, 3), 5.0)).sum().backward()
    torch.testing.assert_close(values.grad, torch.full((3,), 10.0))


@pytest.mark.parametrize("sparse", [False, True])
def test_weighted_sums_of_rows(sparse):
    x = (torch.rand(30, 11) < 0.3).float() * torch.randn(30, 11)
    weight = torch.rand(30, 4)
    sums = weighted_sums(to_csr(x) if sparse else x, weight)
    torch.testing.assert_close(sums, weight.t() @ x)


def test_half_precision_is_left_to_torch():
    x = torch.eye(3, dtype=torch.float64)
    with pytest.raises(RuntimeError):
        linear(to_csr(x), torch.ones(2, 3))  # mixed types are refused, as torch does
    assert linear(to_csr(x), torch.ones(2, 3, dtype=torch.float64)).dtype == torch.float64
