"""Sparse matrices in one layout: ``torch.sparse_csr``, float32 values, int64 indices."""

from __future__ import annotations

import warnings
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

# Below this share of non-zeros a product with the CSR form is faster than the dense one on a
# CPU (measured: 9 times at 1.3 %, level at about a tenth), and the matrix is smaller.
SPARSE_BELOW = 0.1


def csr_tensor(indptr: Tensor, indices: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    """Build a CSR matrix from its three arrays.

    PyTorch warns once per process that CSR support is in beta; a user of Limbeck cannot act
    on that, so exactly this warning is kept from them, here and nowhere else.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        # the arrays come from our own code; checking them would cost more than the products do
        return torch.sparse_csr_tensor(indptr, indices, values, size=size, check_invariants=False)


def to_csr(dense: Tensor) -> Tensor:
    """Convert a dense ``[N, F]`` matrix to CSR."""
    row, column = dense.nonzero(as_tuple=True)
    indptr = torch.zeros(dense.shape[0] + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(row, minlength=dense.shape[0]), 0, out=indptr[1:])
    return csr_tensor(indptr, column, dense[row, column], (dense.shape[0], dense.shape[1]))


def is_csr(x: Tensor) -> bool:
    """Whether ``x`` is stored in CSR form."""
    return x.layout == torch.sparse_csr


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` (int64 ``[B]``) of a dense or CSR matrix, in the same layout.

    All rows in their order are the matrix itself, not a copy. The CSR case gathers the rows'
    entries with a handful of vector operations, no Python work per row.
    """
    if len(index) == len(x) and torch.equal(index, torch.arange(len(x))):
        return x
    if not is_csr(x):
        return x.index_select(0, index)
    row_start, columns, values = x.crow_indices(), x.col_indices(), x.values()
    first = row_start[index]
    lengths = row_start[index + 1] - first
    new_start = torch.zeros(len(index) + 1, dtype=row_start.dtype, device=x.device)
    torch.cumsum(lengths, 0, out=new_start[1:])
    # position of each entry in the source: its row's first entry plus its place in the row
    shift = torch.repeat_interleave(first - new_start[:-1], lengths)
    position = shift + torch.arange(len(shift), dtype=row_start.dtype, device=x.device)
    size = (len(index), int(x.shape[1]))
    return csr_tensor(new_start, columns[position], values[position], size)


def append_columns(x: Tensor, columns: Tensor) -> Tensor:
    """The matrix ``[x | columns]``, in the layout of ``x``.

    Args:
        x: ``[N, F]``, dense or CSR.
        columns: Dense ``[N, d]``; in the CSR case every entry of them is stored, zeros too.
    """
    if not is_csr(x):
        return torch.cat([x, columns], dim=1)
    num_rows, width = int(x.shape[0]), int(x.shape[1])
    added = int(columns.shape[1])
    lengths = x.crow_indices().diff()
    start = x.crow_indices() + added * torch.arange(num_rows + 1, device=x.device)
    row = torch.repeat_interleave(torch.arange(num_rows, device=x.device), lengths)
    # an entry moves back by what was added to the rows before its own
    place = torch.arange(len(row), device=x.device) + added * row
    behind = (start[:-1] + lengths).unsqueeze(1) + torch.arange(added, device=x.device)
    indices = x.col_indices().new_empty(int(start[-1]))
    indices[place] = x.col_indices()
    indices[behind] = width + torch.arange(added, device=x.device)
    values = torch.empty(len(indices), dtype=columns.dtype, device=x.device)
    values = values.index_copy(0, place, x.values())
    values = values.index_copy(0, behind.flatten(), columns.flatten())
    return csr_tensor(start, indices, values, (num_rows, width + added))


def with_values(x: Tensor, values: Tensor) -> Tensor:
    """The CSR matrix ``x`` with other values at the same places."""
    return csr_tensor(x.crow_indices(), x.col_indices(), values, (int(x.shape[0]), int(x.shape[1])))


def product(matrix: Tensor, dense: Tensor) -> Tensor:
    """The product of a CSR matrix with dense rows, for one that is multiplied with many times.

    PyTorch's gradient of it transposes the matrix anew in every step, which takes up to ten times
    as long as the product itself; this one keeps the transpose as long as there is the matrix.

    Args:
        matrix: CSR ``[B, N]``, of values that need no gradient.
        dense: ``[N, d]``.

    Returns:
        Dense ``[B, d]``.
    """
    result: Tensor
    if not dense.requires_grad or not torch.is_grad_enabled():
        result = torch.sparse.mm(matrix, dense)
    else:
        result = _Product.apply(matrix, dense)  # type: ignore[no-untyped-call]
    return result


# by the matrix: it goes when the matrix goes
_TRANSPOSES: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: Tensor, dense: Tensor) -> Tensor:
        ctx.matrix = matrix
        result: Tensor = torch.sparse.mm(matrix, dense)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        if ctx.matrix not in _TRANSPOSES:
            _TRANSPOSES[ctx.matrix] = _transposed(ctx.matrix)
        transpose = _TRANSPOSES[ctx.matrix]
        return None, torch.sparse.mm(transpose, gradient)


def _transposed(matrix: Tensor) -> Tensor:
    turned = matrix.t().to_sparse_csr()  # a view in CSC, then the copy
    parts = turned.crow_indices(), turned.col_indices(), turned.values()
    return csr_tensor(*parts, (int(matrix.shape[1]), int(matrix.shape[0])))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The linear map ``x weightᵀ + bias`` of dense or CSR rows.

    PyTorch's gradient of the CSR product transposes the rows anew in every step, which takes
    several times as long as the product itself; this one reads them in place. It is for rows on a
    CPU whose values need no gradient, in float32; for all others it is
    :func:`torch.nn.functional.linear`.

    Args:
        x: ``[B, F]``, dense or CSR.
        weight: ``[H, F]``.
        bias: ``[H]``, or ``None``.

    Returns:
        Dense ``[B, H]``.
    """
    ours = (
        is_csr(x)
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not x.values().requires_grad
        and not torch.is_autocast_enabled("cpu")
    )
    if not ours:
        return F.linear(x, weight, bias)
    product: Tensor = _CsrLinear.apply(  # type: ignore[no-untyped-call]
        x.crow_indices(), x.col_indices(), x.values(), weight
    )
    return product if bias is None else product + bias


def weighted_sums(x: Tensor, weight: Tensor) -> Tensor:
    """Sums of rows, ``weightᵀ x``, without gradient.

    Args:
        x: ``[B, F]``, dense or CSR, float32.
        weight: How much each row counts in each sum, float32 ``[B, E]``.

    Returns:
        Dense ``[E, F]``.
    """
    if not is_csr(x) or x.device.type != "cpu":
        return weight.detach().t() @ x.detach()
    sums = torch.zeros(int(x.shape[1]), weight.shape[1])
    parts = (x.crow_indices(), x.col_indices(), x.values(), weight.contiguous(), sums)
    _scatter(*(_array(part.detach()) for part in parts))
    return sums.t()


class _CsrLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, indptr: Tensor, indices: Tensor, values: Tensor, weight: Tensor
    ) -> Tensor:
        ctx.save_for_backward(indptr, indices, values)
        ctx.width = weight.shape[1]
        product = torch.zeros(len(indptr) - 1, weight.shape[0])
        columns = weight.detach().t().contiguous()  # rows of it are read one after the other
        _gather(*map(_array, (indptr, indices, values, columns, product)))
        return product

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None, Tensor]:
        columns = torch.zeros(ctx.width, gradient.shape[1])
        _scatter(*map(_array, (*ctx.saved_tensors, gradient.contiguous(), columns)))
        return None, None, None, columns.t()


def _array(tensor: Tensor) -> npt.NDArray[Any]:
    return tensor.numpy()


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _gather(
    indptr: IntArray, indices: IntArray, values: FloatArray, columns: FloatArray, out: FloatArray
) -> None:
    """Add to each row of ``out`` the rows of ``columns`` that its entries name."""
    for row in range(len(indptr) - 1):
        for entry in range(indptr[row], indptr[row + 1]):
            column, value = indices[entry], values[entry]
            for j in range(out.shape[1]):
                out[row, j] += value * columns[column, j]


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _scatter(
    indptr: IntArray, indices: IntArray, values: FloatArray, rows: FloatArray, out: FloatArray
) -> None:
    """Add each row of ``rows`` to the rows of ``out`` that its entries name."""
    for row in range(len(indptr) - 1):
        for entry in range(indptr[row], indptr[row + 1]):
            column, value = indices[entry], values[entry]
            for j in range(rows.shape[1]):
                out[column, j] += value * rows[row, j]
