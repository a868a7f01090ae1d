"""What a setting lets training see: the single place where leakage is prevented.

The four settings are those of the GLNN family:

``transductive``
    The whole graph is observed; only the labels of test nodes are hidden.
``inductive``
    A fifth of the test nodes is unseen: they and every edge that touches them are cut away
    before anything is trained. They are scored with the full graph restored.
``production``
    The same cut; the score is 80 % observed test nodes and 20 % unseen ones.
``cold-start``
    The same cut; unseen nodes arrive without any edge.

A graph may be several without an edge between them, each wholly of one part, as PPI's are;
``graph.batch`` (int64 ``[N]``, PyG's name) then numbers them. In all settings but the first, all of
its test graphs are unseen, as published, and there is no ``production``: no test node is observed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor
from torch_geometric.data import Data, HeteroData
from torch_geometric.utils import subgraph

from limbeck.errors import GraphError, OptionError, SplitError, unknown_name
from limbeck.graphs.checks import check_kind
from limbeck.graphs.hetero import labelled_graph, reordered, tensors_of, without_edges_of
from limbeck.graphs.info import GraphInfo
from limbeck.graphs.rewire import SurgeryOptions, rewire
from limbeck.graphs.sparse import is_csr, take_rows, with_values
from limbeck.graphs.splits import split_nodes

Setting = Literal["transductive", "inductive", "production", "cold-start"]
SETTINGS: tuple[str, ...] = get_args(Setting)

HIDDEN_LABEL = -1


@dataclass(frozen=True, eq=False)
class Scaling:
    """Standardisation of the features, learnt from observed nodes only.

    Args:
        mean: Value subtracted from each column, ``[F]``; zero for columns left alone, and for
            all columns of sparse features, which must stay sparse.
        deviation: Value each column is divided by, ``[F]``; one for columns left alone.
    """

    mean: Tensor
    deviation: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """Standardise raw features ``[B, F]``, dense or CSR."""
        if is_csr(x):
            return with_values(x, x.values() / self.deviation[x.col_indices()])
        return (x - self.mean) / self.deviation


@dataclass(frozen=True, eq=False)
class View:
    """One setting of one graph for one seed.

    Methods and teachers train on :attr:`observed` and nothing else. Nodes of
    :attr:`everything` are reordered so that the observed ones come first, in the order of
    :attr:`observed`; all indices below count in that order.

    Of a graph with several types of nodes they show the labelled type, each with ``hetero``: all
    types, the labelled one in this view's order; see :mod:`limbeck.graphs.hetero`.

    Args:
        setting: One of :data:`SETTINGS`.
        seed: The seed that picked the split and the cut.
        graph: The graph as it was given, features raw.
        observed: The observed graph: ``x``, ``edge_index``, and ``y`` with the labels of all but
            training and validation nodes replaced by −1, all of several labels.
        everything: The full graph with its labels, for evaluation only.
        nodes: For each node of ``everything`` its row in ``graph``, int64 ``[N]``.
        train: Training nodes, int64.
        val: Validation nodes, int64.
        test_observed: Test nodes inside the observed graph, int64.
        test_unseen: Test nodes outside of it, int64; empty if transductive.
        unseen_share: Share of the test nodes that was asked to be cut away.
        scaling: Standardisation already applied to both graphs, or ``None``.
    """

    setting: Setting
    seed: int
    graph: Data
    observed: Data
    everything: Data
    nodes: Tensor
    train: Tensor
    val: Tensor
    test_observed: Tensor
    test_unseen: Tensor
    unseen_share: float = 0.2
    scaling: Scaling | None = None

    @property
    def info(self) -> GraphInfo:
        """Facts about the graph."""
        info: GraphInfo = self.graph.info
        return info

    @property
    def num_observed(self) -> int:
        """Number of observed nodes."""
        return int(self.observed.num_nodes or 0)

    @property
    def num_features(self) -> int:
        """Number of features ``F``."""
        return int(self.observed.x.shape[1])

    @property
    def num_classes(self) -> int:
        """Number of classes ``C``."""
        return self.info.num_classes

    @property
    def has_unseen(self) -> bool:
        """Whether some nodes were cut away before training."""
        return len(self.test_unseen) > 0

    @cached_property
    def without_new_edges(self) -> Data:
        """The full graph in which unseen nodes arrive alone, each keeping only its self-loop."""
        source, target = self.everything.edge_index
        keep = ((source < self.num_observed) & (target < self.num_observed)) | (source == target)
        isolated = self.everything.clone()
        isolated.edge_index = self.everything.edge_index[:, keep]
        if "hetero" in self.everything:
            hetero = self.everything.hetero
            isolated.hetero = without_edges_of(hetero, self.num_observed, isolated.x)
        return isolated

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that training may see; equal for views that train alike."""
        return fingerprint(self.observed, self.train, self.val)

    @cached_property
    def evaluation_fingerprint(self) -> str:
        """Hash of the whole graph and of who is unseen in it, on which scores depend."""
        return fingerprint(self.everything, self.test_observed, self.test_unseen)

    @cached_property
    def cut_fingerprint(self) -> str:
        """Hash of which nodes are seen, in which order, and trained on; not of their labels.

        A teacher's answers belong to views that share it, whatever the setting.
        """
        digest = hashlib.blake2b(digest_size=16)
        for part in (self.nodes, self.observed.edge_index, self.train, self.val):
            digest.update(f"{tuple(part.shape)}".encode())
            digest.update(part.contiguous().numpy().data)
        return digest.hexdigest()

    def with_setting(self, setting: str) -> View:
        """The same view scored in another setting that shares its cut.

        Raises:
            OptionError: One setting cuts nodes away and the other does not.
        """
        setting = _known_setting(setting)
        if setting == "production" and "batch" in self.graph:
            raise _no_production(self.info)
        if (setting == "transductive") != (self.setting == "transductive"):
            raise OptionError(
                f"a view for the setting {self.setting!r} cannot be scored as {setting!r}: "
                "one cuts unseen nodes away before training and the other does not."
            )
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return View(**{**fields, "setting": setting})


def fingerprint(graph: Data, *indices: Tensor) -> str:
    """Hash of a graph's features, edges and labels, and of some index tensors."""
    digest = hashlib.blake2b(digest_size=16)
    parts = [graph.x, graph.edge_index, graph.y, *indices]
    if "hetero" in graph:
        parts += tensors_of(graph.hetero)
    for part in parts:
        for array in _arrays(part):
            digest.update(f"{array.dtype}{tuple(array.shape)}".encode())
            digest.update(array.contiguous().numpy().data)
    return digest.hexdigest()


def _arrays(part: Tensor) -> list[Tensor]:
    """The dense tensors that a tensor is stored in."""
    return [part.crow_indices(), part.col_indices(), part.values()] if is_csr(part) else [part]


def _known_setting(setting: str) -> Setting:
    for known in get_args(Setting):
        if setting == known:
            return known  # type: ignore[no-any-return]
    raise unknown_name("setting", setting, SETTINGS)


def make_view(
    graph: Data | HeteroData, setting: str = "transductive", seed: int = 0, *, unseen: float = 0.2
) -> View:
    """Show training only what a setting allows.

    Args:
        graph: A graph from :func:`limbeck.load_graph`.
        setting: One of ``"transductive"``, ``"inductive"``, ``"production"``, ``"cold-start"``.
        seed: Picks the split where the graph's rule leaves it open, and the unseen nodes: the
            first ``⌊unseen · |test|⌋`` of ``torch.randperm`` under this seed.
        unseen: Share of test nodes that training never sees, in every setting but the first; not
            used for a graph that is several.

    Raises:
        OptionError: The setting is unknown or ``unseen`` is not between 0 and 1.
        SplitError: The split is unusable, or too small for the cut.
        GraphError: The graph has types of nodes that cannot be used, or several and asks for graph
            surgery.
    """
    known = _known_setting(setting)
    if isinstance(graph, HeteroData):
        graph = labelled_graph(graph)
    check_kind(graph, f"graph {graph.info.name!r}")
    if not 0 < unseen < 1:
        raise OptionError(f"option 'unseen' is {unseen}: it must lie between 0 and 1.")
    split = split_nodes(graph, seed)
    num_nodes = int(graph.num_nodes or 0)
    order, test, cut = torch.arange(num_nodes), split.test, split.test[:0]
    if known != "transductive" and "batch" in graph:
        _check_test_graphs(graph, split.test, known)
        unseen, cut, test = 1.0, split.test, split.test[:0]
        order = _observed_first(split.train, split.val, test, cut, num_nodes)
    elif known != "transductive":
        generator = torch.Generator().manual_seed(seed)
        shuffled = split.test[torch.randperm(len(split.test), generator=generator)]
        num_unseen = int(unseen * len(shuffled))
        if num_unseen == 0:
            raise SplitError(
                f"graph {graph.info.name!r} has {len(split.test)} test nodes: too few to leave a "
                f"share of {unseen} unseen; use the setting 'transductive'."
            )
        cut, test = shuffled[:num_unseen], shuffled[num_unseen:]
        order = _observed_first(split.train, split.val, test, cut, num_nodes)
    place = torch.empty(num_nodes, dtype=torch.int64)
    place[order] = torch.arange(num_nodes)
    everything = _reorder(graph, order, place)
    num_observed = num_nodes - len(cut)
    train, val = place[split.train], place[split.val]
    observed = _observe(everything, num_observed, torch.cat([train, val]))
    scaling = _fit_scaling(observed.x, graph.info)
    if scaling is not None:
        observed.x = scaling.apply(observed.x)
        everything.x = scaling.apply(everything.x)
    if "hetero" in graph:
        everything.hetero = reordered(graph.hetero, everything.x, place)
        observed.hetero = without_edges_of(everything.hetero, num_observed, observed.x)
    view = View(
        setting=known,
        seed=seed,
        graph=graph,
        observed=observed,
        everything=everything,
        nodes=order,
        train=train,
        val=val,
        test_observed=place[test],
        test_unseen=place[cut],
        unseen_share=unseen,
        scaling=scaling,
    )
    surgery = graph.info.surgery
    if surgery is not None and "hetero" in graph:
        raise GraphError(
            f"graph {graph.info.name!r} has several types of nodes, and surgery knows one: leave "
            "'+sdrf' out."
        )
    return view if surgery is None else rewire_view(view, surgery)


def rewire_view(view: View, options: SurgeryOptions, seed: int | None = None) -> View:
    """A view whose observed graph is rewired; features, labels and splits are untouched.

    Surgery sees the observed graph alone. Edges that touch an unseen node stay as they are, so
    nothing that training sees depends on them.

    Args:
        view: Any view.
        options: How much surgery.
        seed: Seed of the draws; the view's own by default.
    """
    seed = view.seed if seed is None else seed
    done = rewire(view.observed.edge_index, view.num_observed, options, seed)
    return with_observed_edges(view, done.edge_index)


def with_observed_edges(view: View, edge_index: Tensor) -> View:
    """A view with other edges between its observed nodes, int64 ``[2, E]``."""
    observed, everything = view.observed.clone(), view.everything.clone()
    observed.edge_index = edge_index
    of_unseen = (everything.edge_index >= view.num_observed).any(0)
    everything.edge_index = torch.cat([edge_index, everything.edge_index[:, of_unseen]], dim=1)
    return replace(view, observed=observed, everything=everything)


def _check_test_graphs(graph: Data, test: Tensor, setting: Setting) -> None:
    """Refuse to cut several graphs where that is not done graph by graph."""
    name = graph.info.name
    if tuple(graph.batch.shape) != (graph.num_nodes,):
        raise GraphError(
            f"'batch' of the graph {name!r} has the shape {tuple(graph.batch.shape)}: it must "
            f"number the graph of each of the {graph.num_nodes} nodes."
        )
    if setting == "production":
        raise _no_production(graph.info)
    is_test = torch.zeros(len(graph.batch), dtype=torch.bool).index_fill_(0, test, True)
    mixed = graph.batch[torch.isin(graph.batch, graph.batch[is_test]) & ~is_test]
    if len(mixed) > 0:
        raise SplitError(
            f"graph {int(mixed[0])} of {name!r} has test nodes and others: of several graphs each "
            "must be of one part to be unseen as a whole; without 'batch' single nodes are cut."
        )


def _no_production(info: GraphInfo) -> OptionError:
    return OptionError(
        f"the setting 'production' scores test nodes that training observes, too, and the test "
        f"graphs of {info.name!r} are unseen as a whole: choose 'inductive' or 'cold-start'."
    )


def _observed_first(
    train: Tensor, val: Tensor, test: Tensor, cut: Tensor, num_nodes: int
) -> Tensor:
    """All nodes: training, validation, observed test, those in no split, then unseen ones."""
    in_no_split = torch.ones(num_nodes, dtype=torch.bool)
    in_no_split[torch.cat([train, val, test, cut])] = False
    return torch.cat([train, val, test, in_no_split.nonzero().flatten(), cut])


def _reorder(graph: Data, order: Tensor, place: Tensor) -> Data:
    return Data(
        x=take_rows(graph.x, order),
        edge_index=place[graph.edge_index],
        y=graph.y[order],
        num_nodes=len(order),
    )


def _observe(everything: Data, num_observed: int, labelled: Tensor) -> Data:
    """The node-induced subgraph on the first nodes, with all but some labels hidden."""
    nodes = torch.arange(num_observed)
    num_nodes = int(everything.num_nodes or 0)
    edge_index, _ = subgraph(nodes, everything.edge_index, num_nodes=num_nodes)
    y = torch.full_like(everything.y[:num_observed], HIDDEN_LABEL)
    y[labelled] = everything.y[labelled]
    return Data(
        x=take_rows(everything.x, nodes), edge_index=edge_index, y=y, num_nodes=num_observed
    )


def _fit_scaling(x: Tensor, info: GraphInfo) -> Scaling | None:
    if info.scaled_columns is None or len(info.scaled_columns) == 0:
        return None
    columns = torch.as_tensor(info.scaled_columns)
    mean, deviation = torch.zeros(x.shape[1]), torch.ones(x.shape[1])
    if is_csr(x):
        # centring would fill the matrix, so sparse columns are only brought to unit size
        squares = torch.zeros(x.shape[1]).index_add_(0, x.col_indices(), x.values() ** 2)
        spread = (squares / x.shape[0]).sqrt()
    else:
        spread = x.std(0, unbiased=False)
        mean[columns] = x.mean(0)[columns]
    constant = spread < 1e-12  # such a column says nothing; dividing by one keeps it at zero
    deviation[columns] = torch.where(constant, torch.ones_like(spread), spread)[columns]
    return Scaling(mean, deviation)
