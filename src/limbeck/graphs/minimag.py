"""MiniMag: a stand-in for OGBN-Mag that trains in seconds, generated.

It has Mag's schema, four types of nodes and four relations, and planted labels that need both a
wide and a deep network:

* a paper has an area and a school, and its label is a random table of the two, which no linear or
  narrow model represents;
* its features say a little about the area, its fields say more; its school is known only through
  its authors' institutions, two steps away, and more surely through the papers that it cites.

Papers are sorted by year and split by it; the latest drift in their areas.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch_geometric.data import HeteroData

from limbeck.graphs.hetero import with_reverses

Ints: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class MiniMag:
    """Size and difficulty of a MiniMag.

    Args:
        papers: Number of papers; there are 0.75 authors for each.
        institutions: Institutions per paper.
        fields: Fields per paper.
        areas: Number of areas.
        schools: Number of schools.
        classes: Number of classes; each is that of ``areas * schools / classes`` pairs, rounded
            up or down.
        right_school: Probability that an affiliation, or an authorship, joins one school.
        right_area: Probability that a field of a paper is of its area.
        right_citation: Probability that a citation stays within a paper's area and school.
        signal: Weight of the area's prototype in a paper's features.
        named_signal: Weight of their prototype in the features of institutions and fields.
        drift: Share of the latest papers whose area comes from a shifted distribution.
        late: Share of papers that are the latest.
        num_features: Number of features ``F``.
    """

    papers: int
    institutions: float = 0.02
    fields: float = 0.07
    areas: int = 6
    schools: int = 6
    classes: int = 18
    right_school: float = 0.7
    right_area: float = 0.5
    right_citation: float = 0.4
    signal: float = 0.3
    named_signal: float = 0.6
    drift: float = 0.4
    late: float = 0.15
    num_features: int = 32


SIZES = {
    "small": MiniMag(4_000, institutions=0.03),
    "medium": MiniMag(12_000, areas=8, schools=8, classes=32),
    "large": MiniMag(50_000),
}


def make_minimag(size: str | MiniMag, seed: int = 0) -> HeteroData:
    """Generate a MiniMag.

    Args:
        size: ``"small"``, ``"medium"``, ``"large"``, or all the numbers.
        seed: Of the one generator that draws everything.

    Returns:
        Types ``paper`` (with ``y`` and the three masks, 80/10/10 % by time), ``author``,
        ``institution`` and ``field``, all with ``x`` float32 ``[N, F]``; the relations of Mag with
        their reverses, citations undirected.
    """
    plan = SIZES[size] if isinstance(size, str) else size
    rng = np.random.default_rng(seed)
    papers, authors = plan.papers, round(0.75 * plan.papers)
    institutions, fields = round(plan.institutions * papers), round(plan.fields * papers)

    # latents: what each node is really about
    field_area = rng.integers(plan.areas, size=fields)
    institution_school = rng.integers(plan.schools, size=institutions)
    author_school = rng.integers(plan.schools, size=authors)
    paper_area = _areas_over_time(plan, rng)
    paper_school = rng.integers(plan.schools, size=papers)
    pairs = plan.areas * plan.schools
    table = rng.permutation(np.arange(pairs) % plan.classes)  # every class is used
    cell = paper_area * plan.schools + paper_school

    graph = HeteroData()
    prototypes = rng.standard_normal((plan.areas + plan.schools, plan.num_features))
    of_area, of_school = prototypes[: plan.areas], prototypes[plan.areas :]
    for kind, mean in (
        ("paper", plan.signal * of_area[paper_area]),
        ("author", np.zeros((authors, plan.num_features))),
        ("institution", plan.named_signal * of_school[institution_school]),
        ("field", plan.named_signal * of_area[field_area]),
    ):
        noisy = mean + rng.standard_normal(mean.shape)
        graph[kind].x = torch.from_numpy(noisy.astype(np.float32))
    graph["paper"].y = torch.from_numpy(table[cell])
    for mask, (first, last) in zip(
        ("train_mask", "val_mask", "test_mask"), ((0.0, 0.8), (0.8, 0.9), (0.9, 1.0)), strict=True
    ):
        when = torch.arange(papers)
        graph["paper"][mask] = (when >= round(first * papers)) & (when < round(last * papers))

    count = 1 + (rng.random(authors) < 0.4)
    edges = _joined(rng, count, author_school, institution_school, plan.right_school)
    graph["author", "affiliated_with", "institution"].edge_index = edges
    count = 1 + rng.poisson(1.5, papers)
    edges = _joined(rng, count, paper_school, author_school, plan.right_school)
    graph["author", "writes", "paper"].edge_index = edges.flip(0)
    count = 2 + rng.poisson(2, papers)
    edges = _joined(rng, count, paper_area, field_area, plan.right_area)
    graph["paper", "has_topic", "field"].edge_index = edges
    graph["paper", "cites", "paper"].edge_index = _citations(rng, cell, plan.right_citation)
    return with_reverses(graph)


def _areas_over_time(plan: MiniMag, rng: np.random.Generator) -> Ints:
    """Area of each paper, the oldest first: uniform, and of some of the latest ones skewed."""
    area = rng.integers(plan.areas, size=plan.papers)
    late = np.arange(plan.papers) >= round((1 - plan.late) * plan.papers)
    drifts = late & (rng.random(plan.papers) < plan.drift)
    shifted = rng.dirichlet(np.ones(plan.areas))
    area[drifts] = rng.choice(plan.areas, size=int(drifts.sum()), p=shifted)
    return area


def _joined(
    rng: np.random.Generator, count: Ints, mine: Ints, theirs: Ints, right: float
) -> torch.Tensor:
    """Edges from each node to others, with some probability to one with its own latent.

    Args:
        rng: Draws them.
        count: Number of edges of each node.
        mine: Its latent.
        theirs: Latents of the nodes at the other end.
        right: Probability that the latents agree by intent; else the other end is uniform.
    """
    source = np.repeat(np.arange(len(mine)), count)
    goal = rng.integers(len(theirs), size=len(source))
    agrees = rng.random(len(source)) < right
    for latent in np.unique(mine):
        members = np.flatnonzero(theirs == latent)
        chosen = agrees & (mine[source] == latent)
        if len(members):
            goal[chosen] = rng.choice(members, size=int(chosen.sum()))
    return _distinct(source, goal)


def _citations(rng: np.random.Generator, cell: Ints, right: float) -> torch.Tensor:
    """Edges from each paper but the first to older ones, some of them in its own cell."""
    count = 1 + rng.poisson(4, len(cell))
    count[0] = 0
    source = np.repeat(np.arange(len(cell)), count)
    goal = (rng.random(len(source)) * source).astype(np.int64)  # uniform among older papers
    within = rng.random(len(source)) < right
    for each in np.unique(cell):
        members = np.flatnonzero(cell == each)
        chosen = np.flatnonzero(within & (cell[source] == each))
        older = np.searchsorted(members, source[chosen])
        chosen, older = chosen[older > 0], older[older > 0]
        goal[chosen] = members[(rng.random(len(chosen)) * older).astype(np.int64)]
    return _distinct(source, goal)


def _distinct(source: Ints, goal: Ints) -> torch.Tensor:
    edges: Any = np.unique(np.stack([source, goal]), axis=1)
    return torch.from_numpy(edges)
