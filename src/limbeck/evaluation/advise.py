"""Will distilling pay on a graph, and what should a student read? Small probes say so beforehand.

Nothing of a method or a teacher is trained. A probe is a small network on inputs that are computed
once: the features reduced to a few hundred columns, their means over the neighbours at one and two
hops, and the leading eigenvectors of the adjacency. The labelled nodes that the split gives to
training and validation are divided anew again and again, as many for training as the split has; the
other ones are held out and scored. Test labels are not looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import sparse, stats
from sklearn.decomposition import TruncatedSVD
from sklearn.model_selection import StratifiedShuffleSplit
from torch import Tensor
from torch_geometric.data import Data, HeteroData

from limbeck.errors import GraphError, OptionError
from limbeck.graphs.adjacency import mean_adjacency
from limbeck.graphs.positions import spectral
from limbeck.graphs.sparse import is_csr
from limbeck.graphs.view import make_view
from limbeck.training.loop import seeded

FloatArray = npt.NDArray[np.float64]

FEATURES = 256
"""Columns that more features are reduced to, by a truncated singular value decomposition."""

POSITIONS = 32
HIDDEN = 64
EPOCHS = 100
MAX_LABELLED = 4000
MAX_UNLABELLED = 2500
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A difference of two accuracies, with its interval.

    Args:
        value: Mean over the divisions of the labelled nodes.
        low: Lower end of the 95 % interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 or −1 where the interval lies on one side of zero, else 0."""
        return (self.low > 0) - (self.high < 0)

    def __str__(self) -> str:
        low, high = (f"{100 * end:+.1f}" for end in (self.low, self.high))
        return f"{100 * self.value:+.1f} points (95 % interval {low} to {high})"


@dataclass(frozen=True)
class Finding:
    """One answer.

    Args:
        name: What it is about.
        estimate: The figure.
        sentence: What it means.
    """

    name: str
    estimate: Estimate
    sentence: str


@dataclass(frozen=True)
class Advice:
    """What the probes say of a graph; made by :func:`advise`.

    Args:
        graph: The graph's name.
        seed: Seed of the split, of the divisions and of the probes.
        num_train: Labelled nodes that each division trains on.
        num_held_out: Labelled nodes that each division scores.
        repeats: Number of divisions.
        accuracy: Mean accuracy of each probe on the nodes held out.
        findings: The answers: ``pays``, ``pays on new nodes``, ``features``, ``neighbours``,
            ``positions``, ``labels around``, and ``gap: SETTING`` for each setting.
    """

    graph: str
    seed: int
    num_train: int
    num_held_out: int
    repeats: int
    accuracy: dict[str, float]
    findings: tuple[Finding, ...]

    def __getitem__(self, name: str) -> Estimate:
        return next(finding.estimate for finding in self.findings if finding.name == name)

    def to_dict(self) -> dict[str, Any]:
        """The advice as plain values."""
        return asdict(self)


def advise(graph: Data | HeteroData, seed: int = 0, *, repeats: int = 10) -> Advice:
    r"""Probe a graph.

    The stand-in of a teacher reads :math:`[\mathbf{X}, \tilde{\mathbf{A}}\mathbf{X},
    \tilde{\mathbf{A}}^2\mathbf{X}]` (as SIGN does, `Frasca et al., 2020
    <https://arxiv.org/abs/2004.11198>`_), that of a student :math:`\mathbf{X}` and learns the
    teacher's probabilities on all sampled nodes. Nodes held out take part in that without their
    labels for the setting ``transductive``, and do not for the others; where a new node has no
    edges its means are its own features. ``production`` weighs both by 80 and 20 %.

    Intervals are those of Nadeau and Bengio ("Inference for the Generalization Error", Machine
    Learning 2003) for repeated divisions: with :math:`R` differences of variance :math:`s^2`, a
    variance of :math:`(1/R + n_\text{held out}/n_\text{train})\, s^2` and :math:`R - 1` degrees of
    freedom.

    Args:
        graph: A graph with one class per node and ``info``.
        seed: Of the split, the divisions and the probes.
        repeats: Number of divisions, at least 2.

    Raises:
        GraphError: Nodes have several labels, or too few have one.
        OptionError: ``repeats`` is below 2.
        SplitError: The split is unusable.
    """
    if repeats < 2:
        raise OptionError(f"option 'repeats' is {repeats}: an interval needs at least 2.")
    view = make_view(graph, "transductive", seed)
    if view.info.task == "labels":
        raise GraphError(
            f"{view.info.name} has several labels per node: probes ask for one class per node."
        )
    with seeded(seed):
        probes = _Probes(view.observed, view.num_classes, view.train, view.val, seed)
        table = [probes.divide_and_score(division) for division in probes.divisions(repeats)]
    accuracy = {name: np.array([row[name] for row in table]) for name in table[0]}
    ratio = probes.num_held_out / probes.num_train
    return Advice(
        view.info.name,
        seed,
        probes.num_train,
        probes.num_held_out,
        repeats,
        {name: float(values.mean()) for name, values in accuracy.items()},
        tuple(_findings(accuracy, lambda differences: interval(differences, ratio))),
    )


def interval(differences: FloatArray, ratio: float) -> Estimate:
    """The corrected interval of repeated divisions.

    Args:
        differences: One per division, ``[R]``.
        ratio: Nodes held out for each node trained on.
    """
    repeats = len(differences)
    error = np.sqrt((1 / repeats + ratio) * differences.var(ddof=1))
    reach = float(stats.t.ppf((1 + LEVEL) / 2, repeats - 1) * error)
    mean = float(differences.mean())
    return Estimate(mean, mean - reach, mean + reach)


class _Probes:
    """Inputs of the sampled nodes, and the networks that are trained on them."""

    def __init__(
        self, graph: Data, num_classes: int, train: Tensor, val: Tensor, seed: int
    ) -> None:
        num_nodes = int(graph.num_nodes or 0)
        draw = np.random.default_rng(seed)
        labelled = _at_most(torch.cat([train, val]).numpy(), MAX_LABELLED, draw)
        is_labelled = np.isin(np.arange(num_nodes), torch.cat([train, val]).numpy())
        others = _at_most(np.flatnonzero(~is_labelled), MAX_UNLABELLED, draw)
        share = len(train) / (len(train) + len(val))
        self.num_classes, self.seed = num_classes, seed
        self.nodes = torch.from_numpy(np.concatenate([labelled, others]))  # labelled ones first
        self.y = graph.y[self.nodes[: len(labelled)]].numpy()
        self.num_train = round(share * len(labelled))
        self.num_held_out = len(labelled) - self.num_train
        if min(self.num_train, self.num_held_out) < num_classes:
            raise GraphError(
                f"{len(labelled)} nodes outside of the test part have a label: too few to divide "
                f"them into two parts with {num_classes} classes each."
            )
        self.adjacency = mean_adjacency(graph.edge_index, num_nodes)
        x = _reduced(graph.x, seed)
        once = torch.sparse.mm(self.adjacency, x)
        twice = torch.sparse.mm(self.adjacency, once)
        own, *around = [_scaled(part[self.nodes]) for part in (x, once, twice)]
        place = _scaled(spectral(graph.edge_index, num_nodes, dim=POSITIONS, seed=seed)[self.nodes])
        self.features, self.positions = own, place
        self.surroundings = torch.cat([own, *around], dim=1)
        self.alone = torch.cat([own] * 3, dim=1)

    def divisions(self, repeats: int) -> list[tuple[Tensor, Tensor]]:
        """Labelled nodes to train on and to hold out, as places in ``nodes``."""
        _, counts = np.unique(self.y, return_counts=True)
        if counts.min() < 2:  # such a class cannot be in both parts
            draw = np.random.default_rng(self.seed)
            orders = [torch.from_numpy(draw.permutation(len(self.y))) for _ in range(repeats)]
            return [(order[: self.num_train], order[self.num_train :]) for order in orders]
        splitter = StratifiedShuffleSplit(
            repeats, train_size=self.num_train, random_state=self.seed
        )
        return [
            (torch.from_numpy(train), torch.from_numpy(held_out))
            for train, held_out in splitter.split(self.y, self.y)
        ]

    def divide_and_score(self, division: tuple[Tensor, Tensor]) -> dict[str, float]:
        """Accuracy of every probe on the nodes held out."""
        train, held_out = division
        y = torch.from_numpy(self.y)
        truth = F.one_hot(y, self.num_classes).float()[train]
        everyone = torch.arange(len(self.nodes))
        others = everyone[~torch.isin(everyone, held_out)]

        def learn(x: Tensor, rows: Tensor, target: Tensor) -> torch.nn.Module:
            return _train(x[rows], target, self.num_classes)

        def right(logits: Tensor) -> float:
            return float((logits.argmax(1) == y[held_out]).float().mean())

        both = torch.cat([self.features, self.positions], dim=1)
        teacher = learn(self.surroundings, train, truth)
        soft = teacher(self.surroundings).softmax(1)
        largest = int(torch.bincount(y[train]).argmax())
        found = {
            "largest class": float((y[held_out] == largest).float().mean()),
            "labels around": right(self._propagated(train, truth)[self.nodes[held_out]]),
            "teacher": right(teacher(self.surroundings[held_out])),
            "teacher without edges": right(teacher(self.alone[held_out])),
        }
        for name, x in (("mlp", self.features), ("mlp, positions", both)):
            found[name] = right(learn(x, train, truth)(x[held_out]))
        found["positions alone"] = right(
            learn(self.positions, train, truth)(self.positions[held_out])
        )
        for name, x, rows in (
            ("student", self.features, everyone),
            ("student, positions", both, everyone),
            ("student, new nodes", self.features, others),
        ):
            found[name] = right(learn(x, rows, soft[rows])(x[held_out]))
        return found

    def _propagated(self, train: Tensor, truth: Tensor) -> Tensor:
        """Training labels spread over ten hops, a tenth of them held at their place."""
        start = torch.zeros(self.adjacency.shape[0], self.num_classes)
        start[self.nodes[train]] = truth
        spread = start
        for _ in range(10):
            spread = 0.9 * torch.sparse.mm(self.adjacency, spread) + 0.1 * start
        return spread


def _train(x: Tensor, target: Tensor, num_classes: int) -> torch.nn.Module:
    """A network with one hidden layer that learns probabilities ``[n, C]``, in eval mode."""
    network = torch.nn.Sequential(
        torch.nn.Linear(x.shape[1], HIDDEN),
        torch.nn.ReLU(),
        torch.nn.Dropout(0.5),
        torch.nn.Linear(HIDDEN, num_classes),
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01, weight_decay=5e-4, fused=True)
    for _ in range(EPOCHS):
        optimizer.zero_grad()
        F.cross_entropy(network(x), target).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return network.eval().requires_grad_(False)


def _at_most(nodes: npt.NDArray[np.int64], most: int, draw: np.random.Generator) -> Any:
    return nodes if len(nodes) <= most else np.sort(draw.choice(nodes, most, replace=False))


def _reduced(x: Tensor, seed: int) -> Tensor:
    """Features with at most :data:`FEATURES` columns, dense."""
    if x.shape[1] <= FEATURES:
        return x.to_dense() if is_csr(x) else x
    matrix: Any = x.numpy() if not is_csr(x) else None
    if matrix is None:
        parts = (x.values().numpy(), x.col_indices().numpy(), x.crow_indices().numpy())
        matrix = sparse.csr_matrix(parts, shape=(x.shape[0], x.shape[1]))
    width = min(FEATURES, x.shape[0] - 1)
    scores = TruncatedSVD(width, random_state=seed).fit_transform(matrix)
    return torch.from_numpy(np.ascontiguousarray(scores, dtype=np.float32))


def _scaled(x: Tensor) -> Tensor:
    """Brought to a mean square of 1, all columns by one factor."""
    size = x.square().mean().sqrt()
    return x / size if size > 0 else x


def _findings(
    accuracy: dict[str, FloatArray], estimate: Callable[[FloatArray], Estimate]
) -> Sequence[Finding]:
    """The answers, from the accuracies of the probes in every division."""

    def between(first: str, second: str) -> Estimate:
        return estimate(accuracy[first] - accuracy[second])

    pays, pays_new = between("student", "mlp"), between("student, new nodes", "mlp")
    features, around = between("mlp", "largest class"), between("teacher", "mlp")
    positions = between("student, positions", "student")
    labels = between("labels around", "largest class")
    cold = between("teacher without edges", "student, new nodes")
    seen, unseen = between("teacher", "student"), between("teacher", "student, new nodes")
    mixed = estimate(
        accuracy["teacher"] - 0.8 * accuracy["student"] - 0.2 * accuracy["student, new nodes"]
    )
    return (
        Finding(
            "pays",
            pays,
            _say(
                pays,
                "Distilling will likely pay on nodes that are there in training: a student beats a "
                "plain MLP by {}.",
                "Distilling is likely to harm: {} for a student against a plain MLP.",
                "Whether a student beats a plain MLP is open: {}.",
            ),
        ),
        Finding(
            "pays on new nodes",
            pays_new,
            _say(
                pays_new,
                "It will likely pay on new nodes, too: {}.",
                "It is likely to harm on new nodes: {}.",
                "Whether it pays on new nodes is open: {}.",
            ),
        ),
        Finding(
            "features",
            features,
            _say(
                features,
                "The features matter: alone they beat the largest class by {}.",
                "The features mislead: {} for them alone against the largest class.",
                "Whether the features alone say anything is open: {} over the largest class.",
            ),
        ),
        Finding(
            "neighbours",
            around,
            _say(
                around,
                "The neighbours matter: with theirs the features say more, by {}.",
                "The means over neighbours mislead: {} with them. A plain MLP may be the better "
                "choice, or a teacher made for heterophily.",
                "Whether the neighbours' features add to a node's own is open: {}.",
            ),
        ),
        Finding(
            "positions",
            positions,
            _say(
                positions,
                "Positions matter: a student that reads them as well gains {}; try nosmog.",
                "Positions harm a student that reads them as well: {}.",
                "Whether positions add to the features is open: {}.",
            ),
        ),
        Finding(
            "labels around",
            labels,
            _say(
                labels,
                "Labels of the surroundings alone beat the largest class by {}: structure carries "
                "the classes, so a student that reads neighbours has something to learn from.",
                "Labels of the surroundings mislead: {} against the largest class.",
                "Whether the surroundings' labels say anything is open: {} over the largest class.",
            ),
        ),
        *(
            Finding(
                f"gap: {setting}",
                gap,
                _say(
                    gap,
                    f"In the setting {setting}, expect a student of features alone to lie behind "
                    "its teacher by {}.",
                    f"In the setting {setting}, expect a student of features alone ahead of its "
                    "teacher: the gap is {}.",
                    f"In the setting {setting}, expect no clear gap between a student of features "
                    "alone and its teacher: {}.",
                ),
            )
            for setting, gap in (
                ("transductive", seen),
                ("inductive", unseen),
                ("production", mixed),
                ("cold-start", cold),
            )
        ),
    )


def _say(found: Estimate, above: str, below: str, open_: str) -> str:
    return {1: above, -1: below, 0: open_}[found.sign].format(found)
