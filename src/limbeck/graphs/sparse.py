"""Sparse matrices in one layout: ``torch.sparse_csr``, float32 values, int64 indices."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

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


def with_values(x: Tensor, values: Tensor) -> Tensor:
    """The CSR matrix ``x`` with other values at the same places."""
    return csr_tensor(x.crow_indices(), x.col_indices(), values, (int(x.shape[0]), int(x.shape[1])))
