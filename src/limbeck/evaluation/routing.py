r"""What the routing of a student of experts does: its load, its sharpness, what it is good for.

The figures are those by which `"Graph Knowledge Distillation to Mixture of Experts"
<https://arxiv.org/abs/2406.11919>`_ can be judged: whether the experts differ, whether it matters
which of them a node is sent to, whether all of them work, and whether a node stays where it is.
:func:`routing_diagnostics` describes a finished student; :class:`RoutingTrace` follows one in
training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, cast

import torch
import torch.nn.functional as F
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

from limbeck.errors import OptionError
from limbeck.evaluation.metrics import accuracy
from limbeck.evaluation.protocol import Condition, Run
from limbeck.graphs.sparse import is_csr, with_values
from limbeck.students.experts import (
    ExpertLayer,
    ExpertStudent,
    Routing,
    bounded_exp,
    largest,
    squared_variation,
    unit,
)
from limbeck.students.inputs import NodeInputs
from limbeck.students.mlp import input_dropout
from limbeck.students.moe import MoELayer
from limbeck.students.rbm import RbMLayer, spherical_kmeans
from limbeck.training.loop import seeded

MAX_NODES = 20_000
"""Nodes of a kind that are looked at; of more, as many are drawn."""

COMPARED_ROWS = 1_000
"""Rows on which the answers of experts are compared; memory grows with their number squared."""

DRAWS = 5
"""Draws over which an accuracy under drawn experts, or a random assignment, is averaged."""

DROPPED = 0.1
"""Share of the features that is dropped to see which nodes go elsewhere."""

NOISE = 0.1
r"""Standard deviation :math:`\sigma` of :math:`x \leftarrow x (1 + \sigma \epsilon)`, likewise."""

TRACED_NODES = 2_000
"""Nodes that are followed in training."""

ROUTINGS = ("own", "shuffled", "random", "average")
"""What :func:`control_accuracies` compares."""

Report = dict[str, Any]
"""What JSON can hold: numbers, ``None``, lists, and dictionaries of them."""


def routing_diagnostics(run: Run, *, seed: int = 0, max_nodes: int = MAX_NODES) -> Report:
    r"""Describe where a student sends the nodes of its view, and what depends on it.

    The report holds

    ``"test"``
        Test accuracy of the run's setting for each of :data:`ROUTINGS`.
    ``"layers"``
        Per layer what :func:`describe_experts` says of its experts.
    ``"observed"``; where nodes are unseen, ``"unseen"`` and ``"isolated"``
        Of the nodes of that kind: ``num_nodes``; ``num_test_nodes``; ``accuracy`` on the test
        nodes among them, for each of :data:`ROUTINGS`; and ``layers``, per layer what
        :func:`describe_routing` and :func:`layer_accuracies` say of it, with ``moved_dropout``
        and ``moved_noise``, the share of nodes that use other experts once a tenth of their
        features is dropped, or each feature is multiplied with a factor drawn from
        :math:`\mathcal{N}(1, 0.1^2)`, and ``moved_random``, that of nodes whose experts are not
        those of a random other node.

    Labels of all nodes are read, but enter these figures only. Random numbers are those of
    ``seed``; the student and PyTorch's generator are left as they were.

    Args:
        run: A finished run whose student is made of experts and past pretraining.
        seed: Seed of everything that is drawn.
        max_nodes: Nodes, and test nodes, of each kind to look at; of more, as many are drawn.

    Returns:
        Shares between 0 and 1, unless said otherwise; ``None`` for a figure that is not defined.

    Raises:
        OptionError: The run's student does not route.
    """
    if not routes(run.student):
        raise OptionError(
            f"the student of method {run.method.name!r} sends no node to experts: routing can be "
            "described of a student of experts past pretraining, such as that of method 'rbm'."
        )
    student = cast(ExpertStudent, run.student)
    was_training = student.training
    student.eval()
    with seeded(seed), torch.no_grad():
        observed = _nodes_of(run, "observed", max_nodes)
        report: Report = {
            "layers": describe_experts(student, observed.inputs),
            "observed": _describe(student, observed),
        }
        if run.view.has_unseen:
            report["unseen"] = _describe(student, _nodes_of(run, "unseen", max_nodes))
            report["isolated"] = report["unseen"]
            if run.inputs.isolated is not run.inputs.unseen:
                report["isolated"] = _describe(student, _nodes_of(run, "isolated", max_nodes))
    student.train(was_training)
    report["test"] = {
        name: sum(
            part.share * report[_condition(run, part.nodes)]["accuracy"][name] for part in run.parts
        )
        for name in ROUTINGS
    }
    return report


def routes(student: torch.nn.Module) -> bool:
    """Whether a student is made of experts and past pretraining."""
    return isinstance(student, ExpertStudent) and all(
        cast(ExpertLayer, layer).routed for layer in student.layers
    )


# -- what the nodes do ---------------------------------------------------------------------


@torch.no_grad()
def describe_routing(routing: Routing, labels: Tensor, embedding: Tensor | None = None) -> Report:
    r"""Figures of one layer's routing of ``B`` nodes.

    With the gates :math:`a_{be}`, the load :math:`\ell_e = \sum_b a_{be}` and its share
    :math:`p_e = \ell_e / \sum_{e'} \ell_{e'}`:

    * ``load_entropy``: :math:`-\sum_e p_e \ln p_e / \ln E`, 1 for an even load. A node uses ``k``
      experts, so it is :math:`\ln k / \ln E` or more as long as gates are even;
    * ``min_share``: :math:`\min_e p_e`; ``load_cv2``: the load's squared coefficient of variation;
    * ``num_sets``: how many different sets of experts occur;
    * ``gate_entropy``: mean over nodes of the entropy of the chosen gates, made to sum to one,
      over :math:`\ln k`; ``None`` for :math:`k = 1`;
    * ``gap_05``, ``gap_50``, ``gap_95``: quantiles of :math:`s_{(1)} - s_{(k)}`, the largest
      similarity less the smallest chosen one;
    * ``nmi_class``: normalised mutual information (arithmetic mean) of a node's first expert and
      its class, over labelled nodes; ``nmi_teacher``: the same with the teacher's view, which is
      the nearest of ``E`` directions among its embeddings, found by spherical k-means; each with
      ``..._random`` beside it, where first experts are dealt anew among the nodes.

    Args:
        routing: Similarities and gates ``[B, E]``.
        labels: int64 ``[B]``, −1 where there is none.
        embedding: The teacher's ``[B, H]``, ``None`` if there is none: no ``nmi_teacher`` then.
    """
    gates = routing.gates
    num_experts = gates.shape[1]
    chosen = gates > 0
    top_k = int(chosen.sum(1).amax())
    load = gates.sum(0)
    weights = gates / gates.sum(1, keepdim=True)
    ranked = routing.similarity.masked_fill(~chosen, -math.inf).sort(1, descending=True).values
    gaps = torch.quantile(ranked[:, 0] - ranked[:, top_k - 1], torch.tensor([0.05, 0.5, 0.95]))
    first, labelled = gates.argmax(1), labels >= 0
    nearest = None
    if embedding is not None and len(embedding) >= num_experts:
        centers = spherical_kmeans(embedding, num_experts)  # [E, H]
        nearest = (unit(embedding) @ centers.t()).argmax(1)
    return {
        "load_entropy": load_entropy(gates),
        "min_share": float(load.amin() / load.sum()),
        "load_cv2": float(squared_variation(load)),
        "num_sets": len(torch.unique(chosen, dim=0)),
        "gate_entropy": float(_entropy(weights).mean() / math.log(top_k)) if top_k > 1 else None,
        "gap_05": float(gaps[0]),
        "gap_50": float(gaps[1]),
        "gap_95": float(gaps[2]),
        **_alignment("class", first[labelled], labels[labelled]),
        **_alignment("teacher", first, nearest),
    }


def load_entropy(gates: Tensor) -> float:
    """Entropy of the experts' shares of the load of gates ``[B, E]``, over its maximum."""
    load = gates.sum(0)
    return float(_entropy(load / load.sum()) / math.log(len(load)))


def moved(before: Routing, after: Routing) -> float:
    """Share of nodes that are sent to another set of experts than before."""
    return float(((before.gates > 0) != (after.gates > 0)).any(1).float().mean())


def _alignment(name: str, first: Tensor, other: Tensor | None) -> Report:
    """Mutual information of the first experts with another partition, and what chance gives."""
    if other is None or len(other) == 0:
        return {f"nmi_{name}": None, f"nmi_{name}_random": None}

    def information(experts: Tensor) -> float:
        return float(normalized_mutual_info_score(other.numpy(), experts.numpy()))

    dealt = [information(first[torch.randperm(len(first))]) for _ in range(DRAWS)]
    return {f"nmi_{name}": information(first), f"nmi_{name}_random": fmean(dealt)}


def _entropy(shares: Tensor) -> Tensor:
    """Entropy over the last dimension, in nats."""
    entropy: Tensor = torch.special.entr(shares).sum(-1)
    return entropy


# -- what the experts are ------------------------------------------------------------------


@torch.no_grad()
def describe_experts(student: ExpertStudent, inputs: NodeInputs) -> list[Report]:
    r"""Per layer, how far its experts are apart.

    * ``memory_cosine``: mean cosine of two memories, of two columns where a trained gate has
      them, ``None`` where a layer has neither. ``E`` directions have at least
      :math:`-1 / (E - 1)`;
    * ``weight_distance``: mean over experts of :math:`\lVert \mathbf{W}_e - \bar{\mathbf{W}}
      \rVert_F / \lVert \bar{\mathbf{W}} \rVert_F`; ``weight_cosine``: mean cosine of two
      experts' weights. Biases and input gains do not count;
    * ``output_cka``: mean linear CKA of two experts' answers to the same rows, those that the
      nodes bring to the layer, as many as :data:`COMPARED_ROWS`. See :func:`linear_cka`;
    * ``scale``: the factor on the layer's answer.

    Args:
        student: The student, in eval mode.
        inputs: Inputs of the nodes.
    """
    inputs = inputs.take(_draw(len(inputs), COMPARED_ROWS))
    reports = []
    h = student.read(inputs)
    for i, module in enumerate(student.layers):
        layer = cast(ExpertLayer, module)
        weights = layer.written_out()[0]  # [E, out, in]
        mean = weights.mean(0)
        direction = _directions(layer)
        reports.append(
            {
                "memory_cosine": None if direction is None else mean_cosine(direction),
                "weight_distance": float(
                    ((weights - mean).flatten(1).norm(dim=1) / mean.norm()).mean()
                ),
                "weight_cosine": mean_cosine(weights.flatten(1)),
                "output_cka": linear_cka(_answers_of_each(layer, h)),
                "scale": float(bounded_exp(layer.log_scale)),
            }
        )
        h = student.activate(layer(h)[0], i)
    return reports


@torch.no_grad()
def mean_cosine(rows: Tensor) -> float:
    """Mean cosine of two different rows of ``[E, d]``."""
    directions = unit(rows)
    cosine = directions @ directions.t()
    return float((cosine.sum() - cosine.trace()) / (len(rows) * (len(rows) - 1)))


def linear_cka(answers: Tensor) -> float:
    r"""Mean linear CKA of two of ``E`` representations of the same ``B`` rows.

    .. math::
        \frac{\lVert \mathbf{Y}^\top \mathbf{X} \rVert_F^2}
        {\lVert \mathbf{X}^\top \mathbf{X} \rVert_F \lVert \mathbf{Y}^\top \mathbf{Y} \rVert_F}

    with centred columns: 1 where they are equal up to rotation and size (`"Similarity of Neural
    Network Representations Revisited" <https://arxiv.org/abs/1905.00414>`_, Kornblith et al.,
    ICML 2019). It is the cosine of the two Gram matrices, as which it is computed.

    Args:
        answers: ``[E, B, d]``.
    """
    centered = answers - answers.mean(1, keepdim=True)
    grams = centered @ centered.transpose(1, 2)  # [E, B, B]
    return mean_cosine(grams.flatten(1))


def _directions(layer: ExpertLayer) -> Tensor | None:
    """What rows are compared with, ``[E, d]``."""
    if isinstance(layer, RbMLayer):
        return layer.memory
    return layer.columns if isinstance(layer, MoELayer) else None


def _answers_of_each(layer: ExpertLayer, h: Tensor) -> Tensor:
    """Every expert's answer to all rows, ``[E, B, out]``."""
    one_expert = torch.eye(layer.num_experts).unsqueeze(1).expand(-1, h.shape[0], -1)  # [E, B, E]
    return torch.stack([mixture(layer, h, gates) for gates in one_expert])


# -- what the choice is worth --------------------------------------------------------------


def mixture(layer: ExpertLayer, h: Tensor, gates: Tensor) -> Tensor:
    """A layer's answer ``[B, out]`` to rows ``[B, in]`` under gates ``[B, E]`` of our choice."""
    gain = None
    if isinstance(layer, RbMLayer) and layer.log_gain is not None:
        gain = bounded_exp(layer.log_gain)
    return bounded_exp(layer.log_scale) * layer.mix(h, gates, gain)


def forced_logits(
    student: ExpertStudent, inputs: NodeInputs, gates: Sequence[Tensor | None]
) -> Tensor:
    """A student's logits ``[B, C]`` where some layers' gates are given.

    Args:
        student: The student, in eval mode.
        inputs: Inputs of the nodes.
        gates: Per layer ``[B, E]``, or ``None`` where the layer chooses itself.
    """
    h = student.read(inputs)
    for i, (module, given) in enumerate(zip(student.layers, gates, strict=True)):
        layer = cast(ExpertLayer, module)
        h = student.activate(layer(h)[0] if given is None else mixture(layer, h, given), i)
    return h


@torch.no_grad()
def control_accuracies(student: ExpertStudent, inputs: NodeInputs, labels: Tensor) -> Report:
    """Accuracy under other experts than a node's own.

    * ``own``: the student as it is;
    * ``shuffled``: each node has the gates of another one, drawn once for all layers;
    * ``random``: ``k`` experts drawn for each node and layer;
    * ``average``: all ``E`` experts.

    Experts of the last two weigh alike, together what the node's own gates weigh together.

    Args:
        student: The student, in eval mode.
        inputs: Inputs of ``B`` nodes.
        labels: int64 ``[B]``.
    """
    logits, routings, _ = student.trace(inputs)
    own = [routing.gates for routing in routings]

    def shuffled() -> list[Tensor]:
        order = torch.randperm(len(inputs))
        return [gates[order] for gates in own]

    def random() -> list[Tensor]:
        return [_evenly(largest(torch.rand_like(g), int((g > 0).sum(1).amax())), g) for g in own]

    def mean_accuracy(draw: Callable[[], list[Tensor]]) -> float:
        return fmean(accuracy(forced_logits(student, inputs, draw()), labels) for _ in range(DRAWS))

    average = [_evenly(torch.ones_like(gates), gates) for gates in own]
    return {
        "own": accuracy(logits, labels),
        "shuffled": mean_accuracy(shuffled),
        "random": mean_accuracy(random),
        "average": accuracy(forced_logits(student, inputs, average), labels),
    }


@torch.no_grad()
def layer_accuracies(
    student: ExpertStudent, inputs: NodeInputs, labels: Tensor, layer: int
) -> Report:
    """Accuracy where one layer alone is interfered with.

    * ``accuracy_shuffled``: each node has another one's gates in this layer;
    * ``accuracy_used``: a single expert answers in this layer, for the nodes that use it, and
      ``accuracy_unused`` for those that leave it out. Both are means over experts and their
      nodes, in which every node counts alike, so nodes that are easy favour neither;
    * ``experts``: the same for each expert, with the ``share`` of nodes that use it.

    Args:
        student: The student, in eval mode.
        inputs: Inputs of ``B`` nodes.
        labels: int64 ``[B]``.
        layer: Which layer.
    """
    own = student.trace(inputs).routings[layer].gates
    total = own.sum(1, keepdim=True)

    def right(gates: Tensor) -> Tensor:
        given: list[Tensor | None] = [None] * len(student.layers)
        given[layer] = gates
        return forced_logits(student, inputs, given).argmax(1) == labels

    num_experts = own.shape[1]
    used = own > 0  # [B, E]
    alone = torch.stack(
        [right(total * F.one_hot(torch.tensor(e), num_experts)) for e in range(num_experts)], dim=1
    )  # [B, E]
    shuffled = [right(own[torch.randperm(len(inputs))]) for _ in range(DRAWS)]
    return {
        "accuracy_shuffled": _share(torch.cat(shuffled)),
        "accuracy_used": _share(alone[used]),
        "accuracy_unused": _share(alone[~used]),
        "experts": [
            {
                "share": _share(used[:, e]),
                "accuracy_used": _share(alone[used[:, e], e]),
                "accuracy_unused": _share(alone[~used[:, e], e]),
            }
            for e in range(num_experts)
        ],
    }


def _evenly(chosen: Tensor, own: Tensor) -> Tensor:
    """Equal gates ``[B, E]`` for the chosen experts, with the sum of a node's own."""
    return chosen / chosen.sum(1, keepdim=True) * own.sum(1, keepdim=True)


def _share(flags: Tensor) -> float | None:
    return float(flags.float().mean()) if len(flags) > 0 else None


# -- the nodes of a view -------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Nodes:
    """Nodes of one kind, and the test nodes among them.

    Args:
        inputs: Inputs of ``B`` nodes.
        labels: Their classes, int64 ``[B]``, −1 where there is none.
        embedding: The teacher's ``[B, H]``, or ``None``.
        test: Inputs of ``T`` test nodes.
        test_labels: int64 ``[T]``.
    """

    inputs: NodeInputs
    labels: Tensor
    embedding: Tensor | None
    test: NodeInputs
    test_labels: Tensor


def _nodes_of(run: Run, condition: Condition, max_nodes: int) -> _Nodes:
    view, inputs = run.view, getattr(run.inputs, condition)
    first = 0 if condition == "observed" else view.num_observed
    test = view.test_observed if condition == "observed" else view.test_unseen
    nodes = _draw(len(inputs), max_nodes)
    test = test[_draw(len(test), max_nodes)]
    hidden = {} if run.teacher is None else run.teacher.knowledge.hidden
    embedding = None
    if condition == "observed" and hidden:
        embedding = list(hidden.values())[-1][nodes]
    labels = view.everything.y
    return _Nodes(
        inputs.take(nodes),
        labels[first + nodes],
        embedding,
        inputs.take(test - first),
        labels[test],
    )


def _condition(run: Run, nodes: Tensor) -> Condition:
    """As what some test nodes of the run's setting arrive."""
    if int(nodes[0]) < run.view.num_observed:
        return "observed"
    return "isolated" if run.view.setting == "cold-start" else "unseen"


def _describe(student: ExpertStudent, nodes: _Nodes) -> Report:
    routings = student.trace(nodes.inputs).routings
    x = nodes.inputs.x
    dropped = student.trace(replace(nodes.inputs, x=input_dropout(x, DROPPED, True))).routings
    noisy = student.trace(replace(nodes.inputs, x=_with_noise(x))).routings
    order = torch.randperm(len(nodes.inputs))
    layers = [
        {
            **describe_routing(routing, nodes.labels, nodes.embedding),
            "moved_dropout": moved(routing, dropped[i]),
            "moved_noise": moved(routing, noisy[i]),
            "moved_random": moved(routing, Routing(*(part[order] for part in routing))),
            **layer_accuracies(student, nodes.test, nodes.test_labels, i),
        }
        for i, routing in enumerate(routings)
    ]
    return {
        "num_nodes": len(nodes.inputs),
        "num_test_nodes": len(nodes.test),
        "accuracy": control_accuracies(student, nodes.test, nodes.test_labels),
        "layers": layers,
    }


def _with_noise(x: Tensor) -> Tensor:
    if is_csr(x):
        return with_values(x, _with_noise(x.values()))
    return x * (1 + NOISE * torch.randn_like(x))


def _draw(num: int, at_most: int) -> Tensor:
    """All of ``num`` nodes, or as many as are wanted, drawn, in their order."""
    if num <= at_most:
        return torch.arange(num)
    return torch.randperm(num)[:at_most].sort().values


# -- in training ---------------------------------------------------------------------------


class RoutingTrace:
    """Follows the routing through training: call it after each epoch.

    It asks the student in eval mode and draws from a generator of its own, so training goes on as
    if it had not been there. While the student does not route, nothing is noted.

    Args:
        inputs: Inputs of the nodes that may be followed.
        max_nodes: How many to follow; of more, as many are drawn.

    Attributes:
        epochs: One report per epoch: ``epoch``, and ``layers``, for each of them ``moved``, the
            share of the nodes that use other experts than in the report before (``None`` in the
            first); ``memory_cosine``, see :func:`describe_experts`; and ``load_entropy``, see
            :func:`describe_routing`.
    """

    def __init__(self, inputs: NodeInputs, max_nodes: int = TRACED_NODES) -> None:
        with seeded(0):
            self._inputs = inputs.take(_draw(len(inputs), max_nodes))
        self._last: list[Routing] | None = None
        self.epochs: list[Report] = []

    @torch.no_grad()
    def __call__(self, epoch: int, student: ExpertStudent) -> None:
        """Note where the student sends the nodes now.

        Args:
            epoch: The epoch that is over.
            student: The student; its mode is left as it is.
        """
        if not routes(student):
            return
        was_training = student.training
        student.eval()
        routings = student.trace(self._inputs).routings
        student.train(was_training)
        layers: list[Report] = []
        for i, routing in enumerate(routings):
            direction = _directions(cast(ExpertLayer, student.layers[i]))
            layers.append(
                {
                    "moved": None if self._last is None else moved(self._last[i], routing),
                    "memory_cosine": None if direction is None else mean_cosine(direction),
                    "load_entropy": load_entropy(routing.gates),
                }
            )
        self.epochs.append({"epoch": epoch, "layers": layers})
        self._last = routings
