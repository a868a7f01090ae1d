r"""The filters of a framelet transform, as functions of the eigenvalues of a graph.

A bank holds one low-pass :math:`g_0` and :math:`R` high-passes :math:`g_1, \dots, g_R` on
:math:`\xi \in [0, \pi]` with :math:`\sum_r g_r(\xi)^2 = 1`; dilation and levels make a tight frame
of it (`"How Framelets Enhance Graph Neural Networks" <https://arxiv.org/abs/2102.06986>`_). Here
are numbers only; :mod:`limbeck.graphs.framelets` applies them to a graph.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import numpy as np
import numpy.typing as npt
from numpy.polynomial import chebyshev

from limbeck.errors import OptionError, unknown_name

Bank = Literal["haar", "linear", "quadratic", "sigmoid", "entropy"]
Mode = Literal["matfree", "sparse", "eigh"]
Fidelity = Literal["project", "released"]
Array = npt.NDArray[np.float64]

NUM_HIGH: dict[Bank, int] = {"haar": 1, "linear": 2, "quadratic": 3, "sigmoid": 1, "entropy": 2}
"""Number of high-passes ``R`` of each bank."""

DEGREES: dict[Bank, int] = {
    "haar": 8,
    "linear": 10,
    "quadratic": 12,
    "sigmoid": 40,
    "entropy": 20,
}
"""Degree of the polynomials if none is asked for."""

RELEASED_DEGREE = 1
SIGMOID_SLOPE = 20.0
ENTROPY_WEIGHT = 0.5
QUADRATURE_POINTS = 1024
MAX_EIGENVALUE = 2.0
"""Bound on the eigenvalues of a normalised Laplacian: the filters span all of it."""


@dataclass(frozen=True)
class FrameletOptions:
    """What makes a framelet transform.

    Args:
        bank: Filters: ``"haar"``, ``"linear"``, ``"quadratic"``, ``"sigmoid"`` or ``"entropy"``.
            The last jumps in the middle of the spectrum, which no polynomial follows: use it with
            ``mode="eigh"``.
        levels: Number of levels ``J``, at least 1.
        dilation: Factor ``s`` between the arguments of two levels, above 1.
        degree: Degree ``p`` of the polynomials that stand for the filters, at least 1; ``None``
            for :data:`DEGREES`, which is tight to rounding for the first three banks.
        mode: ``"matfree"``: products with the graph, any size; ``"sparse"``: the operators as
            sparse matrices, for small graphs; ``"eigh"``: exact filters from all eigenvectors,
            for up to 5,000 nodes.
        fused: Build the filters on ``I − Â`` instead of the Laplacian without self-loops. All
            operators then commute, and powers of a band are one polynomial.
        epsilon: Weight of what is taken from the diagonal of ``Â`` in the low band and added in
            the others, at least 0.
        fidelity: ``"released"`` takes degree 1, as the released code does, whose frame is 27 %
            from tight.

    Raises:
        OptionError: A value out of range, or two that exclude each other.
    """

    bank: Bank = "haar"
    levels: int = 1
    dilation: float = 2.0
    degree: int | None = None
    mode: Mode = "matfree"
    fused: bool = False
    epsilon: float = 0.0
    fidelity: Fidelity = "project"

    def __post_init__(self) -> None:
        for name, allowed in (("bank", Bank), ("mode", Mode), ("fidelity", Fidelity)):
            if getattr(self, name) not in get_args(allowed):
                raise unknown_name(name, str(getattr(self, name)), get_args(allowed))
        if self.levels < 1:
            raise OptionError(f"option 'levels' is {self.levels}: it must be at least 1.")
        if not 1 < self.dilation < np.inf:
            raise OptionError(f"option 'dilation' is {self.dilation}: it must be above 1.")
        if self.degree is not None and self.degree < 1:
            raise OptionError(f"option 'degree' is {self.degree}: it must be at least 1.")
        if not 0 <= self.epsilon < np.inf:
            raise OptionError(f"option 'epsilon' is {self.epsilon}: it must be 0 or above.")
        if self.fused and self.epsilon > 0:
            raise OptionError(
                "options 'fused' and 'epsilon' exclude each other: with epsilon above 0 the "
                "aggregation is no function of the Laplacian."
            )
        if self.fidelity == "released" and self.degree not in (None, RELEASED_DEGREE):
            raise OptionError(
                f"option 'degree' is {self.degree}, but fidelity='released' means degree "
                f"{RELEASED_DEGREE}: leave one of them out."
            )

    def replace(self, **changes: Any) -> Self:
        """A copy with some options changed, validated anew."""
        return dataclasses.replace(self, **changes)

    @property
    def num_high(self) -> int:
        """Number of high-passes ``R`` per level."""
        return NUM_HIGH[self.bank]

    @property
    def effective_degree(self) -> int:
        """Degree ``p`` of the polynomials."""
        if self.degree is not None:
            return self.degree
        return RELEASED_DEGREE if self.fidelity == "released" else DEGREES[self.bank]

    @property
    def bands(self) -> tuple[Band, ...]:
        """The ``1 + R J`` bands: the low one, then the high ones, finest level first."""
        low = Band("low", 0, self.levels - 1)
        high = [
            Band(self._name(r, level), r, level)
            for level in range(self.levels)
            for r in range(1, self.num_high + 1)
        ]
        return (low, *high)

    def _name(self, r: int, level: int) -> str:
        number = str(r) if self.num_high > 1 else ""
        return f"high{number}@{level}" if self.levels > 1 else f"high{number}"


@dataclass(frozen=True)
class Band:
    """One band of a transform.

    Args:
        name: ``"low"``, ``"high"``; with the number of the filter if there are several, and with
            ``@`` and the level if there are several.
        filter: Number ``r`` of its filter, 0 for the low-pass.
        level: Its level ``l``, 0 the finest; of the low band the last.
    """

    name: str
    filter: int
    level: int

    @property
    def is_low(self) -> bool:
        """Whether it is the low band."""
        return self.filter == 0


def filters(bank: Bank, xi: Array) -> Array:
    r"""The filters of a bank.

    Args:
        bank: Its name.
        xi: Arguments :math:`\xi \in [0, \pi]`, float64 ``[n]``.

    Returns:
        :math:`g_0(\xi), \dots, g_R(\xi)`, float64 ``[R + 1, n]``.
    """
    cos, sin = np.cos(xi / 2), np.sin(xi / 2)
    if bank == "haar":
        return np.stack([cos, sin])
    if bank == "linear":
        return np.stack([cos**2, np.sqrt(2) * sin * cos, sin**2])
    if bank == "quadratic":
        root = np.sqrt(3)
        return np.stack([cos**3, root * sin * cos**2, root * sin**2 * cos, sin**3])
    u = xi / np.pi
    if bank == "sigmoid":
        high = 1 / (1 + np.exp(-SIGMOID_SLOPE * (u - 0.5)))
        return np.sqrt([1 - high, high])
    middle = 4 * ENTROPY_WEIGHT * u * (1 - u)
    outer = np.sqrt(1 - middle)
    return np.stack([outer * (u <= 0.5), np.sqrt(middle), outer * (u > 0.5)])


def coefficients(bank: Bank, degree: int) -> Array:
    r"""Chebyshev coefficients of the filters in :math:`t = 2\xi/\pi - 1`.

    .. math:: g_r(\xi) \approx \sum_{k=0}^{p} c_{r,k} T_k(t)

    Computed by the midpoint rule in the angle, which is exact to rounding for smooth filters. The
    first coefficient is already halved.

    Args:
        bank: Its name.
        degree: Degree ``p``.

    Returns:
        float64 ``[R + 1, p + 1]``.
    """
    points = max(QUADRATURE_POINTS, 4 * (degree + 1))
    angle = np.pi * (np.arange(points) + 0.5) / points
    values = filters(bank, np.pi / 2 * (1 + np.cos(angle)))
    waves = np.cos(np.outer(np.arange(degree + 1), angle))
    series: Array = 2 / points * values @ waves.T
    series[:, 0] /= 2
    return series


def response(options: FrameletOptions, eigenvalues: Array) -> Array:
    r"""What each band makes of an eigenvector: the scalar :math:`w_b(\lambda)`.

    .. math::
        w_{r,l} = g_r(\xi_l) \prod_{m<l} g_0(\xi_m), \quad
        w_0 = \prod_{m<J} g_0(\xi_m), \quad \xi_l = \tfrac{\pi}{2} s^{-l} \lambda

    with the filters themselves for ``mode="eigh"``, and their polynomials otherwise.

    Args:
        options: What makes the transform.
        eigenvalues: :math:`\lambda \in [0, 2]`, float64 ``[n]``.

    Returns:
        float64 ``[B, n]``, in the order of :attr:`FrameletOptions.bands`.
    """
    series = coefficients(options.bank, options.effective_degree)
    low = np.ones_like(eigenvalues)
    high: list[Array] = []
    for level in range(options.levels):
        # the dilated eigenvalue; rounding must not leave the interval of the filters
        dilated = np.clip(eigenvalues * options.dilation**-level, 0, MAX_EIGENVALUE)
        if options.mode == "eigh":
            values = filters(options.bank, np.pi / MAX_EIGENVALUE * dilated)
        else:
            values = chebyshev.chebval(dilated - 1, series.T).astype(np.float64, copy=False)
        high.extend(low * values[1:])
        low = low * values[0]
    return np.stack([low, *high])


def power_series(options: FrameletOptions, band: int, power: int, tolerance: float) -> Array:
    r"""One polynomial for a power of a band in fused mode.

    .. math:: \left( w_b(\lambda)^2 (1 - \lambda) \right)^k \approx \sum_j c_j T_j(\lambda - 1)

    Args:
        options: What makes the transform.
        band: Number ``b`` of the band.
        power: The power ``k``, at least 1.
        tolerance: Largest error on :math:`[0, 2]` against the same polynomial in full.

    Returns:
        float64 ``[n]``: as few coefficients as the tolerance allows.
    """
    levels = options.bands[band].level + 1
    degree = power * (2 * options.effective_degree * levels + 1)

    nodes = chebyshev.chebpts1(degree + 1)
    values = (response(options, nodes + 1)[band] ** 2 * -nodes) ** power
    whole = np.linalg.solve(chebyshev.chebvander(nodes, degree), values)
    grid = np.cos(np.linspace(0, np.pi, 4 * degree + 1))
    # the error of cutting before term n, for all n at once: what the terms from n on add up to
    terms = whole[:, None] * chebyshev.chebvander(grid, degree).T
    left_out = np.abs(np.cumsum(terms[::-1], axis=0)[::-1]).max(axis=1)
    needed = np.nonzero(left_out > tolerance)[0]
    return whole[: max(2, int(needed[-1]) + 1 if len(needed) else 0)]


def tight_defect(options: FrameletOptions) -> float:
    r"""How far the frame is from tight: the largest :math:`|\sum_b w_b(\lambda)^2 - 1|`."""
    grid = np.linspace(0, MAX_EIGENVALUE, 4001)
    return float(np.abs((response(options, grid) ** 2).sum(0) - 1).max())


__all__ = [
    "DEGREES",
    "NUM_HIGH",
    "Band",
    "Bank",
    "Fidelity",
    "FrameletOptions",
    "Mode",
    "coefficients",
    "filters",
    "power_series",
    "response",
    "tight_defect",
]
