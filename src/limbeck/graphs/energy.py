r"""Energies of a signal on a graph: does it vary along edges, and which band says so?

.. math::
    E(\mathbf{H}) = \operatorname{tr}(\mathbf{H}^\top \tilde{\mathbf{L}} \mathbf{H}) =
    \tfrac{1}{2} \sum_{i,j} a_{ij} \left\| \frac{\mathbf{h}_i}{\sqrt{\tilde d_i}} -
    \frac{\mathbf{h}_j}{\sqrt{\tilde d_j}} \right\|^2, \qquad
    R(\mathbf{H}) = \frac{E(\mathbf{H})}{\|\mathbf{H}\|_F^2}

with :math:`\tilde{\mathbf{L}} = \mathbf{I} - \hat{\mathbf{A}}` and :math:`\tilde d = d + 1`. Layers
whose Rayleigh quotient :math:`R` falls towards 0 smooth (low-frequency dominant), those where it
rises towards the largest eigenvalue sharpen (high-frequency dominant); Han et al., `"Generalized
energy and gradient flow via graph framelets" <https://arxiv.org/abs/2210.04124>`_, 2022.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from limbeck.errors import InputError
from limbeck.graphs import framelet_banks as banks
from limbeck.graphs.curvature import csr_edges, simple_csr
from limbeck.graphs.framelets import FrameletOptions, Framelets
from limbeck.graphs.sparse import is_csr

EDGE_BLOCK = 1 << 22
"""Differences along edges that are held at a time, float64 values."""


def dirichlet_energy(h: Tensor, edge_index: Tensor) -> float:
    r"""The energy :math:`E(\mathbf{H})`, in float64.

    Args:
        h: ``[N, q]``, dense or CSR.
        edge_index: int64 ``[2, E]``; directions, repetitions and self-loops do not count.
    """
    h = _dense(h)
    indptr, indices = simple_csr(edge_index, len(h))
    edges = csr_edges(indptr, indices)
    edges = edges[:, edges[0] < edges[1]]
    degrees = torch.from_numpy(indptr).diff() + 1
    scaled = h * degrees.double().pow(-0.5).unsqueeze(1)
    energy = 0.0
    for source, target in torch.split(edges, max(1, EDGE_BLOCK // h.shape[1]), dim=1):
        energy += float((scaled[source] - scaled[target]).square().sum())
    return energy


def rayleigh_quotient(h: Tensor, edge_index: Tensor) -> float:
    r"""The quotient :math:`R(\mathbf{H})`, between 0 and the largest eigenvalue, below 2.

    Args:
        h: ``[N, q]``, dense or CSR.
        edge_index: int64 ``[2, E]``; directions, repetitions and self-loops do not count.

    Raises:
        InputError: ``h`` is zero.
    """
    size = float(_dense(h).square().sum())
    if size == 0:
        raise InputError("a signal that is zero everywhere has no Rayleigh quotient.")
    return dirichlet_energy(h, edge_index) / size


def band_shares(h: Tensor, framelets: Framelets) -> Tensor:
    r"""Each band's share of the energy along edges.

    .. math:: \varsigma_b = \frac{\operatorname{tr}(\mathbf{C}_b^\top \mathbf{L} \mathbf{C}_b)}
        {\operatorname{tr}(\mathbf{H}^\top \mathbf{L} \mathbf{H})}, \quad
        \mathbf{C}_b = \mathbf{W}_b \mathbf{H}

    Taken with the Laplacian whose functions the filters are, without self-loops unless the
    transform is fused: so the shares sum to one, as far as the frame is tight.

    Args:
        h: ``[N, q]``, dense or CSR.
        framelets: The transform of the graph.

    Returns:
        float64 ``[B]``, the low band first.

    Raises:
        InputError: ``h`` has no energy: it is constant along edges but for the degrees' scale.
    """
    h = _dense(h)
    total = float((h * framelets.laplacian(h)).sum())
    if total <= 1e-12 * float(h.square().sum()):
        raise InputError("a signal without energy along edges has no shares of it.")
    parts = [float((c * framelets.laplacian(c)).sum()) for c in framelets.decompose(h)]
    return torch.tensor(parts, dtype=torch.float64) / total


def band_gains(options: FrameletOptions, eigenvalues: Tensor, power: int = 1) -> Tensor:
    r"""How much each band's operator strengthens an eigenvector.

    .. math:: m_b(\lambda) = \left(w_b(\lambda)^2 (1 - \lambda)\right)^k

    This is :math:`\mathbf{P}_b^k` itself where the transform is fused. Elsewhere it is an
    approximation: on a graph of one degree :math:`d` the last factor is
    :math:`1 - \lambda d / (d + 1)`, and otherwise :math:`\mathbf{L}` and :math:`\hat{\mathbf{A}}`
    have different eigenvectors. That factor silences :math:`\lambda \approx 1` in every band.

    Args:
        options: What makes the transform.
        eigenvalues: In :math:`[0, 2]`, ``[n]``.
        power: The power ``k``.

    Returns:
        float64 ``[B, n]``.
    """
    response = torch.from_numpy(banks.response(options, eigenvalues.double().numpy()))
    return (response.square() * (1 - eigenvalues.double())).pow(power)


def gain_curve(
    options: FrameletOptions, weights: Sequence[Tensor], eigenvalues: Tensor, power: int = 1
) -> Tensor:
    r"""How much a linear framelet model strengthens each frequency.

    .. math:: G(\lambda) = \Big\| \sum_b m_b(\lambda) \boldsymbol{\Theta}_b \Big\|_2

    with :math:`m_b` from :func:`band_gains`. Its maximum says which frequencies the model lives on.

    Args:
        options: What makes the transform.
        weights: :math:`\boldsymbol{\Theta}_b` of each band, ``[F, C]`` or ``[C, F]``.
        eigenvalues: In :math:`[0, 2]`, ``[n]``.
        power: The power ``k``.

    Returns:
        float64 ``[n]``.

    Raises:
        InputError: There is not one weight per band.
    """
    if len(weights) != len(options.bands):
        raise InputError(
            f"{len(weights)} weights were given for {len(options.bands)} bands: give one each."
        )
    gains = band_gains(options, eigenvalues, power)
    stacked = torch.stack([weight.detach().double() for weight in weights])
    curve: Tensor = torch.linalg.matrix_norm(torch.einsum("bn,bij->nij", gains, stacked), ord=2)
    return curve


def _dense(h: Tensor) -> Tensor:
    h = h.detach()
    return (h.to_dense() if is_csr(h) else h).double()
