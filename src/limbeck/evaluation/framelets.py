r"""What a framelet student makes of its bands, and how far a node is heard.

:func:`framelet_diagnostics` describes a finished run: gates per band, shares of the answer, and how
energetic each layer is of the teacher and of the student. The Jacobian functions measure
over-squashing: how much the answer for a node depends on the features of nodes that are far away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from scipy.sparse.csgraph import shortest_path
from torch import Tensor

from limbeck.errors import InputError
from limbeck.evaluation.protocol import Run
from limbeck.graphs.curvature import simple_csr, to_scipy
from limbeck.graphs.energy import band_shares, gain_curve, rayleigh_quotient
from limbeck.graphs.framelets import FrameletOptions, Framelets
from limbeck.graphs.profile import edge_homophily
from limbeck.students.fmlp import FMLP
from limbeck.teachers.framelet import FrameletConv, OriginalFramelet, SimplifiedFramelet

Report = dict[str, Any]

GATE_BINS = 10
"""Bins of a gate's histogram over [0, 1]."""

GAIN_POINTS = 41
"""Eigenvalues at which a gain curve is taken."""


def framelet_diagnostics(run: Run, options: FrameletOptions | None = None) -> Report:
    """Describe a run on its observed nodes.

    Args:
        run: Any run; gates and shares are those of a student that reads bands.
        options: The transform that energies are split by; the method's own if it has one, else
            Haar.

    Returns:
        - ``edge_homophily``: of the observed graph, over training and validation nodes; ``None``
          where no edge joins two of them.
        - ``teacher`` and ``student``: for each of their layers ``rayleigh``, the Rayleigh
          quotient, and ``band_shares`` by the band's name; ``None`` for a layer without energy.
        - ``gates``, of a framelet student: for each layer and band the ``mean`` over nodes of the
          weight of the graph, beside the features, and its ``histogram`` in :data:`GATE_BINS`
          equal bins; and ``shares``: the mean share of the answer by band and of the ``features``.
        - ``weights``, of an original or simplified framelet teacher: the Frobenius norm of each
          band's weight, layer by layer; of a simplified one also ``gain``: the gain curve over
          :data:`GAIN_POINTS` eigenvalues from 0 to 2, and its ``peak``.
    """
    view = run.view
    if options is None:
        options = getattr(run.method, "framelets", FrameletOptions())
    framelets = Framelets(view.observed.edge_index, view.num_observed, options)
    report: Report = {
        "edge_homophily": edge_homophily(view.observed.edge_index, view.observed.y),
        "teacher": None,
        "student": {},
    }

    def described(layers: Mapping[str, Tensor]) -> Report:
        return {
            name: _energies(h, view.observed.edge_index, framelets) for name, h in layers.items()
        }

    if run.teacher is not None:
        knowledge = run.teacher.knowledge
        report["teacher"] = described({**knowledge.hidden, "logits": knowledge.logits})
        report |= _weights(run.teacher.module)
    student, inputs = run.student.eval(), run.inputs.observed
    with torch.no_grad():
        asked = getattr(student, "layers", None)  # a module of a user's own may not have it
        layers = {"logits": run.answers.observed} if asked is None else asked(inputs)
    report["student"] = described(layers)
    if isinstance(student, FMLP) and inputs.bands is not None:
        names = [band.name for band in framelets.bands]
        explained = student.explain(inputs)
        report["gates"] = [_gates(layer, names) for layer in explained.gates.unbind(1)]
        shares = explained.shares.mean(0).tolist()
        report["shares"] = dict(zip([*names, "features"], shares, strict=True))
    return report


def _energies(h: Tensor, edge_index: Tensor, framelets: Framelets) -> Report:
    names = [band.name for band in framelets.bands]
    try:
        shares = band_shares(h, framelets).tolist()
        return {
            "rayleigh": rayleigh_quotient(h, edge_index),
            "band_shares": dict(zip(names, shares, strict=True)),
        }
    except InputError:  # a layer that died, or is the same for all
        return {"rayleigh": None, "band_shares": None}


def _weights(module: torch.nn.Module | None) -> Report:
    if isinstance(module, OriginalFramelet):
        layers = [list(cast(FrameletConv, conv).weights) for conv in module.convs]
    elif isinstance(module, SimplifiedFramelet):
        layers = [list(module.weights)]
    else:
        return {}
    names = [band.name for band in module.transform.bands]
    report: Report = {
        "weights": [
            {name: float(w.detach().norm()) for name, w in zip(names, weights, strict=True)}
            for weights in layers
        ]
    }
    if isinstance(module, SimplifiedFramelet):
        eigenvalues = torch.linspace(0, 2, GAIN_POINTS, dtype=torch.float64)
        curve = gain_curve(module.transform, list(module.weights), eigenvalues, module.power)
        peak = float(eigenvalues[int(curve.argmax())])
        report["gain"] = {"peak": peak, "curve": curve.tolist()}
    return report


def _gates(gates: Tensor, names: Sequence[str]) -> Report:
    return {
        name: {
            "mean": float(gate.mean()),
            "histogram": torch.histc(gate, GATE_BINS, 0, 1).int().tolist(),
        }
        for name, gate in zip(names, gates.unbind(1), strict=True)
    }


# -- how far a node is heard ----------------------------------------------------------------


class Reach(NamedTuple):
    """Influence on some nodes by the distance it comes from.

    Args:
        distance: Hops, 0 first, int64 ``[D]``.
        norm: Mean over pairs of nodes of the Jacobian's norm, float64 ``[D]``.
        share: Mean over nodes of the part of its influences that comes from there; sums to the
            part that comes from its own component, float64 ``[D]``.
        pairs: Number of pairs, int64 ``[D]``.
    """

    distance: Tensor
    norm: Tensor
    share: Tensor
    pairs: Tensor


def jacobian(answer: Callable[[Tensor], Tensor], x: Tensor, nodes: Tensor) -> Tensor:
    r"""How much the answers for some nodes depend on the features of each node.

    .. math:: J_{vu} = \left\| \partial \mathbf{y}_v / \partial \mathbf{x}_u \right\|_F

    One backward pass per node and output.

    Args:
        answer: From dense features ``[N, F]`` to outputs ``[N, C]``, without randomness.
        x: ``[N, F]``, dense or CSR.
        nodes: The nodes ``v``, int64 ``[n]``.

    Returns:
        float64 ``[n, N]``.
    """
    x = (x.to_dense() if x.layout != torch.strided else x).detach().clone().requires_grad_()
    outputs = answer(x)
    squares = torch.zeros(len(nodes), len(x), dtype=torch.float64)
    for row, node in enumerate(nodes.tolist()):
        for output in outputs[node]:
            (gradient,) = torch.autograd.grad(output, x, retain_graph=True)
            squares[row] += gradient.double().square().sum(1)
    return squares.sqrt()


def linear_jacobian(
    framelets: Framelets, weights: Sequence[Tensor], power: int, nodes: Tensor
) -> Tensor:
    r"""The Jacobian's norms of a linear framelet model, in closed form.

    The model is :math:`\mathbf{Y} = \sum_b \mathbf{P}_b^n \mathbf{X} \boldsymbol{\Theta}_b +
    \mathbf{1} \boldsymbol{\beta}^\top`, so
    :math:`\partial \mathbf{y}_v / \partial \mathbf{x}_u = \sum_b (\mathbf{P}_b^n)_{vu}
    \boldsymbol{\Theta}_b^\top`.

    Args:
        framelets: The transform of the graph.
        weights: :math:`\boldsymbol{\Theta}_b` of each band, ``[F, C]``.
        power: The power ``n``.
        nodes: The nodes ``v``, int64 ``[n]``.

    Returns:
        float64 ``[n, N]``.
    """
    flat = torch.stack([weight.detach().double().flatten() for weight in weights])
    inner = flat @ flat.t()  # of the weights of each two bands
    rows = torch.stack(framelets.rows(nodes, power)).double()
    return torch.einsum("bvu,cvu,bc->vu", rows, rows, inner).clamp_min(0).sqrt()


def influence_bound(framelets: Framelets, power: int) -> Tensor:
    r"""Upper bound on the influences in an n-layer framelet network with ReLU in its bands.

    .. math:: \Big[ \big( \textstyle\sum_b |\mathbf{W}_b| |\hat{\mathbf{A}}_b| |\mathbf{W}_b|
        \big)^n \Big]_{vu}

    with entrywise absolute values, to be multiplied by each layer's largest spectral norm of a
    weight: ReLU never stretches. It bounds the Jacobian's spectral norm.

    Args:
        framelets: The transform of a small graph.
        power: Number of layers ``n``.

    Returns:
        float64 ``[N, N]``.
    """
    unit = torch.eye(framelets.num_nodes, dtype=torch.float64)
    step = torch.zeros_like(unit)
    for band in range(len(framelets.bands)):
        filters = framelets.filter(band, unit).abs()
        step += filters @ framelets.aggregate(unit, band).abs() @ filters
    bound: Tensor = torch.linalg.matrix_power(step, power)
    return bound


def reach(influence: Tensor, edge_index: Tensor, nodes: Tensor) -> Reach:
    """Sort influences by the distance that they come from.

    Args:
        influence: From :func:`jacobian`, ``[n, N]``.
        edge_index: Edges that count hops, int64 ``[2, E]``: those of the *original* graph, also
            where the answers come from a rewired one.
        nodes: The nodes that ``influence`` has rows of, int64 ``[n]``.
    """
    num_nodes = influence.shape[1]
    adjacency = to_scipy(*simple_csr(edge_index, num_nodes))
    hops = torch.from_numpy(shortest_path(adjacency, unweighted=True, indices=nodes.numpy()))
    parts = influence / influence.sum(1, keepdim=True).clamp_min(1e-300)
    reachable = hops.isfinite()
    steps = hops[reachable].long()
    pairs = torch.bincount(steps)
    norm = torch.bincount(steps, influence[reachable]) / pairs.clamp_min(1)
    share = torch.bincount(steps, parts[reachable]) / len(nodes)
    return Reach(torch.arange(len(pairs)), norm, share, pairs)
