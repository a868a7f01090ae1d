"""KRD: reliability, the pairs that are drawn, and the loss along them."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from limbeck.errors import OptionError, TeacherError
from limbeck.evaluation.distill import distill
from limbeck.graphs.sparse import take_rows
from limbeck.graphs.view import make_view
from limbeck.methods.edges import (
    PairTargets,
    edges_into,
    label_loss,
    neighbor_pairs,
    training_labels,
)
from limbeck.methods.glnn import GLNN
from limbeck.methods.krd import KRD
from limbeck.methods.reliability import BIN_POSITION, BINS, Reliability, entropy, fit_power
from limbeck.teachers import Teacher, TeacherCache, fit_teacher, knowledge_from
from limbeck.teachers.sage import SAGE
from limbeck.testing import check_method, small_graph
from limbeck.testing.methods import with_noise_on_unseen
from limbeck.training.loop import Checkpoint, seeded

SMALL = {"hidden_channels": 16, "max_epochs": 6, "warmup_epochs": 2, "dropout": 0.2}


def view_of(graph=None, setting="transductive"):
    return make_view(small_graph() if graph is None else graph, setting, 0)


def network(view):
    """A network whose answers depend on the features; it need not be trained."""
    with seeded(3):
        return SAGE(view.num_features, 16, view.num_classes)


def without_edges(graph):
    graph.edge_index = graph.edge_index[:, :0]
    return graph


def reliability_of(delta, **arguments):
    """Two classes, the clean prediction even; noise takes its entropy down to 1 - delta of it."""
    noisy = []
    for share in delta:
        low, high = 0.0, 40.0
        for _ in range(60):
            middle = (low + high) / 2
            left = float(entropy(torch.tensor([[middle, 0.0]], dtype=torch.float64)))
            low, high = (middle, high) if left > (1 - share) * math.log(2) else (low, middle)
        noisy.append([low, 0.0])
    return Reliability(torch.zeros(len(delta), 2), torch.tensor(noisy), **arguments)


@pytest.mark.parametrize("changes", [{}, {"label_weight": 0.4, "batch_size": 32, "norm": "batch"}])
def test_conforms(changes):
    check_method(KRD(**{**SMALL, **changes}))


def test_reliability_by_hand():
    # entropies without noise: ln 2 everywhere; with it: ln 2, that of (3/4, 1/4), and 0
    noisy = torch.tensor([[0.0, 0.0], [math.log(3), 0.0], [100.0, 0.0]])
    reliability = Reliability(torch.zeros(3, 2), noisy)
    quarter = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    delta = torch.tensor([0.0, 1 - quarter / math.log(2), 1.0])
    torch.testing.assert_close(reliability.delta, delta)
    torch.testing.assert_close(reliability.probabilities(), 1 - delta)
    reliability.power.fill_(2.0)
    torch.testing.assert_close(reliability.probabilities(), 1 - delta**2)


def test_entropy_of_even_and_certain_predictions():
    logits = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1000.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(entropy(logits), torch.tensor([math.log(4), 0.0]))


def test_a_teacher_that_noise_does_not_move_is_reliable_everywhere():
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    reliability = Reliability(logits, logits)
    assert torch.equal(reliability.probabilities(), torch.ones(4))
    pairs = neighbor_pairs(view_of(), self_loops=True)
    everywhere = Reliability(torch.zeros(120, 3), torch.zeros(120, 3))
    assert torch.equal(everywhere.draw(pairs).values(), pairs.values())


def test_the_neighbour_decides_whether_a_pair_is_drawn():
    graph = small_graph()
    graph.edge_index = torch.tensor([[0], [1]])  # node 1 may learn from node 0, not the reverse
    view = view_of(graph)
    pairs = neighbor_pairs(view, self_loops=True)
    assert pairs.to_dense()[1, 0] == 1
    assert pairs.to_dense()[0, 1] == 0
    delta = torch.zeros(view.num_observed)
    delta[0] = 1.0  # node 0 is not to be trusted: node 1 may not learn from it
    drawn = reliability_of(delta.tolist()).draw(pairs).to_dense()
    assert torch.equal(drawn, torch.eye(view.num_observed))
    delta = torch.zeros(view.num_observed)
    delta[1] = 1.0  # node 1 is not to be trusted, but still learns from node 0 and from itself
    assert torch.equal(reliability_of(delta.tolist()).draw(pairs).to_dense(), pairs.to_dense())


def test_pairs_are_drawn_with_the_stated_probability():
    graph = small_graph()
    graph.edge_index = torch.tensor([[0, 1], [2, 2]])
    view = view_of(graph)
    pairs = neighbor_pairs(view, self_loops=True)
    delta = [0.7, 0.2, 0.0, 1.0] + [0.0] * (view.num_observed - 4)
    reliability = reliability_of(delta)
    with seeded(0):
        mean = sum(reliability.draw(pairs).to_dense()[2, :3] for _ in range(3000)) / 3000
    torch.testing.assert_close(mean, torch.tensor([0.3, 0.8, 1.0]), rtol=0, atol=0.03)


@pytest.mark.parametrize("power", [0.2, 1.0, 3.0])
def test_fit_finds_the_power_of_a_power_law(power):
    x = np.arange(BINS) / BINS + BIN_POSITION
    assert fit_power(1 - x**power) == pytest.approx(power, rel=1e-3)


def test_refit_by_hand():
    # one node per bin; the student agrees on the reliable half, so the shares are a step
    delta = [(i + 0.5) / BINS for i in range(BINS - 1)] + [1.0]
    reliability = reliability_of(delta, momentum=0.9)
    agrees = torch.arange(BINS) < BINS // 2
    reliability.refit(agrees)
    step = agrees.to(torch.float64).numpy()
    assert float(reliability.power) == pytest.approx(0.9 + 0.1 * fit_power(step), rel=1e-5)
    # agreement that reaches further leads to more draws
    farther = reliability_of(delta, momentum=0.9)
    farther.refit(torch.arange(BINS) < 0.9 * BINS)
    assert farther.power > reliability.power


def test_refit_changes_nothing_where_agreement_says_nothing():
    reliability = reliability_of([(i + 0.5) / BINS for i in range(BINS - 1)] + [1.0])
    reliability.refit(torch.ones(BINS, dtype=torch.bool))
    reliability.refit(torch.zeros(BINS, dtype=torch.bool))
    assert float(reliability.power) == 1.0


def test_pair_targets_are_the_mean_divergence_over_pairs():
    generator = torch.Generator().manual_seed(0)
    view = view_of()
    pairs = neighbor_pairs(view, self_loops=True)
    log_teacher = F.log_softmax(torch.randn(120, 3, generator=generator), dim=1)
    log_student = F.log_softmax(torch.randn(120, 3, generator=generator), dim=1)
    with seeded(0):
        drawn = Reliability(log_student, log_teacher).draw(pairs)
    learner, source = drawn.to_dense().nonzero().t()
    assert 120 < len(learner) < pairs.values().sum()
    one_by_one = F.kl_div(
        log_student[learner], log_teacher[source], reduction="batchmean", log_target=True
    )
    value = PairTargets.along(drawn, log_teacher).divergence(log_student)
    torch.testing.assert_close(value, one_by_one)
    # batches of nodes take the pairs apart
    parts = [PairTargets.along(take_rows(drawn, n), log_teacher) for n in view_batches()]
    total = sum(
        part.divergence(log_student[nodes]) * part.num_pairs
        for part, nodes in zip(parts, view_batches(), strict=True)
    )
    torch.testing.assert_close(total / len(learner), one_by_one)
    nothing = take_rows(neighbor_pairs(view, self_loops=False), torch.tensor([119]))  # isolated
    assert float(PairTargets.along(nothing, log_teacher).divergence(log_student[119:])) == 0.0


def view_batches():
    return torch.arange(120).flip(0).split(50)


def test_a_self_loop_of_the_graph_pairs_a_node_with_itself_once():
    graph = small_graph()
    loops = torch.arange(120).expand(2, -1)
    with_loops = small_graph()
    with_loops.edge_index = torch.cat([graph.edge_index, loops], dim=1)
    for self_loops in (True, False):
        pairs = neighbor_pairs(view_of(graph), self_loops=self_loops).to_dense()
        same = neighbor_pairs(view_of(with_loops), self_loops=self_loops).to_dense()
        assert torch.equal(pairs, same)
        assert torch.equal(pairs.diagonal(), torch.full((120,), float(self_loops)))


def test_edges_into_some_nodes():
    view = view_of()
    adj = neighbor_pairs(view, self_loops=False)
    nodes = torch.tensor([7, 3, 90])
    around, edge_index = edges_into(adj, nodes)
    assert torch.equal(around[:3], nodes)
    assert len(around.unique()) == len(around)
    found = {(int(around[i]), int(around[j])) for j, i in edge_index.t()}
    dense = adj.to_dense()
    assert found == {(int(i), int(j)) for i in nodes for j in dense[i].nonzero().flatten()}
    everyone, edges = edges_into(adj, torch.arange(120))
    assert torch.equal(everyone, torch.arange(120))
    assert edges.shape[1] == view.observed.edge_index.shape[1]


def test_label_loss_is_the_mean_over_training_nodes():
    view = view_of()
    y = training_labels(view)
    assert torch.equal((y >= 0).nonzero().flatten(), view.train.sort().values)
    logits = torch.randn(120, 3, generator=torch.Generator().manual_seed(0))
    mean = F.cross_entropy(logits[view.train], view.observed.y[view.train])
    everyone = torch.arange(120)
    torch.testing.assert_close(label_loss(logits, everyone, y, len(view.train)), mean)
    batches = everyone.split(40)  # of equal size, so their losses average to the whole
    parts = [label_loss(logits[nodes], nodes, y, len(view.train)) for nodes in batches]
    torch.testing.assert_close(sum(parts) / len(parts), mean)


def test_without_edges_krd_is_glnn():
    view = view_of(without_edges(small_graph()))
    teacher = network(view)
    options = {"hidden_channels": 16, "max_epochs": 20, "batch_size": None}
    krd = distill(view, teacher, KRD(**options, warmup_epochs=3))
    glnn = distill(view, teacher, GLNN(**options))
    torch.testing.assert_close(krd.answers.observed, glnn.answers.observed, rtol=1e-3, atol=1e-4)


def test_a_neighbour_that_is_never_drawn_teaches_nothing():
    """Only warm-up epochs see the edges of unreliable nodes."""
    view = view_of()
    teacher = Teacher(network(view)).fitted(view)
    options = {"hidden_channels": 16, "max_epochs": 4, "momentum": 1.0}
    early = distill(view, teacher, KRD(**options, warmup_epochs=0))
    late = distill(view, teacher, KRD(**options, warmup_epochs=4))
    assert not torch.equal(early.answers.observed, late.answers.observed)


def test_a_resumed_run_ends_with_the_same_weights(tmp_path, monkeypatch):
    view = view_of()
    knowledge = Teacher(network(view)).fitted(view).knowledge
    method = KRD(**{**SMALL, "max_epochs": 12, "momentum": 0.5})
    with seeded(0):
        whole = method.distill(view, knowledge).student.state_dict()
    checkpoint = Checkpoint(tmp_path / "run", "key", every_seconds=0.0)
    refits = []

    def stop(reliability, agrees, refit=Reliability.refit):
        if len(refits) == 4:
            raise KeyboardInterrupt
        refits.append(reliability.power.clone())
        refit(reliability, agrees)

    with monkeypatch.context() as patch, seeded(0):
        patch.setattr(Reliability, "refit", stop)
        with pytest.raises(KeyboardInterrupt):
            method.distill(view, knowledge, checkpoint=checkpoint)
    assert len({float(power) for power in refits}) > 1, "the power never moved"
    with seeded(0):
        resumed = method.distill(view, knowledge, checkpoint=checkpoint).student.state_dict()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name])


def test_a_teacher_that_is_only_logits_is_refused():
    view = view_of()
    sentence = (
        "method 'krd' asks the teacher again with noise on the features, but 'logits' is only "
        "logits: give the network itself."
    )
    with pytest.raises(TeacherError) as caught:
        distill(view, knowledge_from(torch.zeros(120, 3)), KRD())
    assert str(caught.value) == sentence
    with pytest.raises(TeacherError, match="method 'krd' learns from a teacher: give one"):
        KRD().distill(view, None)


@pytest.mark.parametrize(
    "option", [{"momentum": 1.1}, {"warmup_epochs": -1}, {"refit_every": 0}, {"temperature": 0}]
)
def test_options_out_of_range(option):
    with pytest.raises(OptionError, match=next(iter(option))):
        KRD(**option)


def test_noisy_logits_depend_on_the_observed_graph_alone():
    view = view_of(setting="inductive")
    module = network(view)
    noisy = Teacher(module).fitted(view).knowledge.noisy_logits
    clean = Teacher(module).fitted(view).knowledge.logits
    assert noisy.shape == clean.shape == (view.num_observed, 3)
    assert (noisy - clean).abs().mean() > 0.01
    torch.manual_seed(99)  # the caller's random numbers play no part
    before = torch.get_rng_state()
    again = Teacher(module).fitted(view).knowledge
    assert torch.equal(again.noisy_logits, noisy)
    assert torch.equal(torch.get_rng_state(), before)
    changed = make_view(with_noise_on_unseen(small_graph(), view), "inductive", 0)
    assert torch.equal(Teacher(module).fitted(changed).knowledge.noisy_logits, noisy)


def test_noise_is_added_to_every_feature_and_leaves_the_graph_alone():
    view = view_of(small_graph(sparse=True))
    before = view.observed.x.to_dense().clone()

    class Features(torch.nn.Module):
        """A network that answers with some of the features."""

        def forward(self, x, edge_index):
            self.seen = x
            return x @ torch.eye(12, 3)

    module = Features()
    noisy = Teacher(module).fitted(view).knowledge.noisy_logits
    noise = module.seen - before
    torch.testing.assert_close(noisy, module.seen[:, :3])
    assert bool((noise != 0).all())
    assert abs(float(noise.mean())) < 0.1
    assert float(noise.std()) == pytest.approx(1.0, abs=0.1)
    assert torch.equal(view.observed.x.to_dense(), before)


def test_noisy_logits_of_a_cached_teacher(tmp_path):
    view = view_of()
    cache = TeacherCache(tmp_path)
    fresh = fit_teacher(view, "sage", 0, cache=cache, max_epochs=2)
    stored = fit_teacher(view, "sage", 0, cache=cache, max_epochs=2)
    assert torch.equal(fresh.knowledge.noisy_logits, stored.knowledge.noisy_logits)
    assert knowledge_from(torch.zeros(120, 3)).fitted(view).knowledge.noisy_logits is None
