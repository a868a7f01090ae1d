"""What must always hold of RbM, item by item, and where each is tested.

Without a file the test is below; "students" is ``tests/students/test_experts.py``, "rbm"
``tests/methods/test_rbm.py``, "krd" ``tests/methods/test_krd.py``, "positions"
``tests/graphs/test_positions.py``.

The layer

1.  Routed output is the dense sum over experts with zeroed gates, in any order of rows
    -> students: test_a_row_is_the_weighted_sum_of_its_nearest_experts,
    test_order_of_rows_does_not_matter
2.  Gates: k of them, positive, summing to one, blind to lengths
    -> students: test_gates_are_weights_over_the_chosen_and_depend_on_directions_alone
3.  Clones answer alike wherever a row goes -> test_clones_answer_alike_wherever_a_row_goes;
    after the conversion the network is the MLP times scale and gain
    -> students: test_conversion_multiplies_the_mlp_by_scale_and_gain
4.  Pretraining is the MLP of the first experts, and nothing else learns
    -> students: test_in_pretraining_it_is_the_mlp_of_the_first_experts
5.  Who gets which gradient -> test_the_task_sees_frozen_gates,
    test_self_similarity_does_not_reach_rows;
    students: test_the_task_reaches_rows_through_experts_only,
    test_experts_that_are_not_chosen_learn_nothing, test_routing_losses_reach_rows_and_not_memories,
    test_self_similarity_turns_memories_and_does_not_lengthen_them
6.  Differences agree with the gradients of the routing's losses
    -> students: test_routing_losses_reach_rows_and_not_memories
7.  Losses by hand -> students: test_losses_by_hand
8.  The moving average -> students: test_memories_move_to_their_rows_by_hand,
    test_rows_weigh_by_a_softmax_of_their_gates_over_the_batch,
    test_an_expert_without_rows_keeps_its_direction, test_a_momentum_of_one_leaves_directions,
    test_memories_move_in_training_only, test_memories_stay_float32_under_autocast
9.  Edges: a batch of one -> students: test_a_batch_of_one_row_trains; rows of zeros and ties
    -> students: test_ties_go_to_the_first_expert_also_for_a_row_without_features, and
    test_ties_go_the_same_way_on_every_device; half precision
    -> test_half_precision_routes_alike_and_stays_finite
10. The scale is held at 100 -> students: test_a_scale_is_held_at_100_and_gets_no_gradient_there

The model and its training

11. The conversion -> students: test_conversion_clusters_each_layer_behind_the_converted_ones,
    test_spherical_kmeans_finds_directions_and_ignores_lengths
12. State dicts -> students: test_a_state_dict_carries_whether_the_student_routes, and
    test_a_state_dict_restores_a_trained_student_to_the_bit
13. The distillation loss -> rbm: test_sharpened_target_loss_is_the_divergence_at_temperature_one,
    test_sharpened_target_loss_has_the_gradient_of_the_card
14. Pairs -> test_pairs_of_a_directed_graph;
    krd: test_the_neighbour_decides_whether_a_pair_is_drawn,
    test_pairs_are_drawn_with_the_stated_probability
15. Leakage -> test_nothing_unseen_reaches_what_is_learnt, test_test_labels_change_the_report_alone,
    test_what_is_seen_does_reach_what_is_learnt; rbm: test_conforms
16. Positions -> positions: test_the_seed_draws_the_walks_and_leaves_the_generators_alone,
    test_a_new_node_takes_the_mean_of_its_neighbours,
    test_a_node_without_neighbours_is_at_zero_and_moves_nobody
17. Selection -> test_the_epoch_is_chosen_on_validation_nodes. There is no oracle-epoch figure to be
    kept apart: we report none.
18. Accumulation -> test_gradients_add_up_over_batches_of_means;
    rbm: test_an_epoch_is_one_step_on_the_sum_over_its_batches
19. Options -> rbm: test_options_are_checked, test_a_small_coefficient_of_a_file_is_a_number
20. Smoke accuracy -> test_on_cora_it_keeps_up_with_its_teacher,
    test_on_cora_a_shuffled_teacher_fails
21. Parity -> test_on_cora_the_exported_model_answers_alike
"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.evaluation.distill import distill
from limbeck.evaluation.metrics import accuracy
from limbeck.evaluation.protocol import Run
from limbeck.export.onnx import to_onnx
from limbeck.graphs.load import load_graph
from limbeck.graphs.sparse import to_csr
from limbeck.graphs.view import View, make_view
from limbeck.methods.edges import neighbor_pairs
from limbeck.methods.experts import ExpertLessons
from limbeck.methods.rbm import RoutingByMemory
from limbeck.methods.reliability import Reliability
from limbeck.runtime.kernel import OnnxKernel
from limbeck.students import inputs_of
from limbeck.students.experts import largest
from limbeck.students.rbm import RbM, RbMLayer, self_similarity_loss
from limbeck.teachers import fit_teacher, knowledge_from
from limbeck.testing import small_graph
from limbeck.testing.methods import with_noise_on_unseen, with_other_test_labels

SMALL = {"hidden_channels": 16, "max_epochs": 4, "pretrain_epochs": 2, "dropout": 0.2}

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is at hand")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def routed_layer(top_k: int = 3, **options: object) -> RbMLayer:
    layer = RbMLayer(6, 5, 4, top_k, **options)
    layer.routed = True
    torch.nn.init.normal_(layer.memory)
    return layer.eval()


# -- the layer -----------------------------------------------------------------------------


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_clones_answer_alike_wherever_a_row_goes(top_k: int) -> None:
    layer, h = routed_layer(top_k, init_scale=3.0), torch.randn(20, 6)
    first = layer.experts[0]
    for expert in layer.experts:
        expert.load_state_dict(first.state_dict())
    for _ in range(3):
        torch.nn.init.normal_(layer.memory)
        torch.testing.assert_close(layer(h)[0], 3 * first(h))


def test_the_task_sees_frozen_gates() -> None:
    layer = routed_layer(2).double()
    h = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    y, routing = layer(h)
    (mine,) = torch.autograd.grad(y.square().sum(), h)
    gates, step = routing.gates.detach(), 1e-6

    def frozen(rows: Tensor) -> Tensor:
        return (2 * layer.mix(rows, gates)).square().sum()

    def whole(rows: Tensor) -> Tensor:
        return layer(rows)[0].square().sum()

    def differences(loss) -> Tensor:
        found = torch.zeros_like(mine)
        for i in np.ndindex(*h.shape):
            nudge = torch.zeros_like(mine)
            nudge[i] = step
            found[i] = (loss(h + nudge) - loss(h - nudge)) / (2 * step)
        return found

    with torch.no_grad():
        torch.testing.assert_close(mine, differences(frozen), rtol=1e-5, atol=1e-6)
        # the gates do depend on the rows: what is left out is not nothing
        assert float((mine - differences(whole)).abs().max()) > 1e-3


def test_self_similarity_does_not_reach_rows() -> None:
    layer = routed_layer().train()
    h = torch.randn(7, 6, requires_grad=True)
    layer(h)  # moves the memories towards these rows
    loss = self_similarity_loss(layer.memory)
    assert torch.autograd.grad(loss, h, allow_unused=True, retain_graph=True) == (None,)
    loss.backward()
    assert bool(layer.memory.grad.any())


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])
def test_ties_go_the_same_way_on_every_device(device: str) -> None:
    scores = torch.randint(3, (500, 7)).float()
    expected = torch.zeros(500, 7, dtype=torch.bool)
    for b, row in enumerate(scores.tolist()):
        for e in sorted(range(7), key=lambda e: -row[e])[:3]:  # sorting is stable
            expected[b, e] = True
    assert torch.equal(largest(scores.to(device), 3).cpu(), expected)
    layer = routed_layer().to(device)
    for h in (torch.zeros(3, 6), to_csr(torch.zeros(3, 6))):
        gates = layer(h.to(device))[1].gates.cpu()
        torch.testing.assert_close(gates, torch.tensor([[1 / 3, 1 / 3, 1 / 3, 0]]).expand(3, 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_routes_alike_and_stays_finite(dtype: torch.dtype, autocast: bool) -> None:
    layer = routed_layer(input_gain=True)
    before = torch.randn(50, 6)  # what the layer in front answers, and a ReLU cuts
    before[:10] *= 1e-4  # its squares are below what half precision can hold
    before[10] = -1.0
    exact, routing = layer(torch.relu(before.to(dtype).float()))
    if not autocast:
        layer.to(dtype)
        before = before.to(dtype)
    with torch.autocast("cpu", dtype, enabled=autocast):
        y, there = layer(torch.relu(before))
        same = ((there.gates > 0) == (routing.gates > 0)).all(1)
        assert float(same.float().mean()) >= 0.9  # rows between two memories may differ
        torch.testing.assert_close(y[same].float(), exact[same], rtol=0.05, atol=0.05)
        layer.train()
        before.requires_grad_()
        y, there = layer(torch.relu(before))
        (y.float().square().mean() - (there.gates * there.similarity).sum(1).mean()).backward()
    assert bool(torch.isfinite(y).all())
    assert bool(torch.isfinite(before.grad).all())
    assert all(bool(torch.isfinite(p.grad).all()) for p in layer.parameters() if p.grad is not None)
    assert bool(torch.isfinite(layer.memory).all())


# -- the state -----------------------------------------------------------------------------


def test_a_state_dict_restores_a_trained_student_to_the_bit(tmp_path: Path) -> None:
    view = make_view(small_graph(), "transductive", 0)
    run = distill(view, knowledge_from(torch.randn(120, 3)), RoutingByMemory(**SMALL))
    torch.save(run.student.state_dict(), tmp_path / "state.pt")
    fresh = RbM(view.num_features, 16, 3)
    assert not fresh.layers[0].routed
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert all(layer.routed for layer in fresh.layers)
    for mine, theirs in zip(fresh.layers, run.student.layers, strict=True):
        assert torch.equal(mine.memory, theirs.memory)
    known = run.inputs.observed
    assert torch.equal(fresh.eval()(known), run.student(known))


# -- pairs ---------------------------------------------------------------------------------


def reliability_with(change: Tensor) -> Reliability:
    """Two classes, clean predictions even, and noise that takes away this share of the entropy."""
    noisy = torch.where(change > 0, 100.0, 0.0)  # all of it, or nothing
    return Reliability(
        torch.zeros(len(change), 2), torch.stack([noisy, torch.zeros_like(noisy)], 1)
    )


def test_pairs_of_a_directed_graph() -> None:
    graph = small_graph()
    graph.edge_index = torch.tensor([[0, 1, 2], [1, 2, 0]])  # a directed triangle
    view = make_view(graph, "transductive", 0)
    pairs = neighbor_pairs(view, self_loops=True)
    itself = torch.eye(120)
    # all are drawn from a teacher that noise does not move: row the student, column the teacher
    everything = reliability_with(torch.zeros(120)).draw(pairs).to_dense()
    expected = itself.clone()
    expected[[1, 2, 0], [0, 1, 2]] = 1
    assert torch.equal(everything, expected)
    # none from one that noise moves as far as it can everywhere, but the node itself
    assert torch.equal(reliability_with(torch.ones(120)).draw(pairs).to_dense(), itself)
    # without sampling a node is its own teacher, once: the same loss as these 120 pairs
    log_teacher, logits = F.log_softmax(torch.randn(120, 3), dim=1), torch.randn(120, 3)
    nodes = torch.arange(120)
    for mode in ("official", "tempered"):
        method = RoutingByMemory(kd_mode=mode, temperature=1.4)
        off = method.soft_loss(logits, nodes, log_teacher, None)
        torch.testing.assert_close(
            off, method.soft_loss(logits, nodes, log_teacher, to_csr(itself))
        )
        on = method.soft_loss(logits, nodes, log_teacher, to_csr(everything))
        assert not torch.isclose(on, off)


# -- leakage -------------------------------------------------------------------------------


EVERYTHING = RoutingByMemory(
    **SMALL,
    encoding="spectral",
    dim=4,
    label_inputs=True,
    similarity_weight=0.1,
    adversarial_weight=0.1,
    adversarial_steps=2,
    reliable_sampling=True,
    reliability_epochs=3,
    label_weight=0.2,
)
"""RbM with every part that looks at the graph, the labels or the teacher."""


def learnt_from(view: View) -> tuple[Run, dict[str, Tensor]]:
    """A student and its teacher, and everything in them and behind them that was learnt."""
    teacher = fit_teacher(view, "sage", 0, max_epochs=15, hidden_channels=8)
    run = distill(view, teacher, EVERYTHING, 0)
    knowledge = teacher.knowledge
    assert knowledge.noisy_logits is not None
    return run, {
        "teacher's logits": knowledge.logits,
        "teacher's logits under noise": knowledge.noisy_logits,
        **{f"teacher's {name}": layer for name, layer in knowledge.hidden.items()},
        **{f"teacher.{name}": value for name, value in teacher.module.state_dict().items()},
        "positions": run.inputs.observed.position,
        "pairs": neighbor_pairs(view, self_loops=True).to_dense(),
        "reliability": Reliability.of(knowledge, "rbm").delta,
        **{f"student.{name}": value for name, value in run.student.state_dict().items()},
    }


def different(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    return [name for name, value in one.items() if not torch.equal(value, other[name])]


@pytest.mark.parametrize("sparse", [False, True])
def test_nothing_unseen_reaches_what_is_learnt(sparse: bool) -> None:
    graph = small_graph(sparse=sparse)
    view = make_view(graph, "inductive", 0)
    _, before = learnt_from(view)
    assert sum("memory" in name for name in before) == 2
    changed = with_noise_on_unseen(graph, view)  # features and edges
    unseen = view.nodes[view.test_unseen]
    changed.y = graph.y.clone()
    changed.y[unseen] = (changed.y[unseen] + 1) % 3
    _, after = learnt_from(make_view(changed, "inductive", 0))
    assert different(before, after) == []


@pytest.mark.parametrize("setting", ["transductive", "inductive"])
def test_test_labels_change_the_report_alone(setting: str) -> None:
    graph = small_graph()
    view = make_view(graph, setting, 0)
    one, before = learnt_from(view)
    other, after = learnt_from(make_view(with_other_test_labels(graph, view), setting, 0))
    assert different(before, after) == []
    assert torch.equal(one.answers.observed, other.answers.observed)
    assert torch.equal(one.answers.unseen, other.answers.unseen)
    mine, theirs = one.scores["student"], other.scores["student"]
    assert mine["val_accuracy"] == theirs["val_accuracy"]
    assert mine["temperature"] == theirs["temperature"]
    assert mine["test_accuracy"] != theirs["test_accuracy"]


def test_what_is_seen_does_reach_what_is_learnt() -> None:
    # or else the two tests above could not fail
    graph = small_graph()
    view = make_view(graph, "inductive", 0)
    _, before = learnt_from(view)
    changed = graph.clone()
    node = int(view.nodes[view.test_observed[0]])
    changed.x = graph.x.clone()
    changed.x[node] += 1
    changed.edge_index = torch.cat([graph.edge_index, torch.tensor([[0, node], [node, 0]])], dim=1)
    _, after = learnt_from(make_view(changed, "inductive", 0))
    names = different(before, after)
    assert {"teacher's logits", "positions", "pairs", "reliability"} <= set(names)
    assert any("memory" in name for name in names)


# -- selection and accumulation ------------------------------------------------------------


def test_the_epoch_is_chosen_on_validation_nodes() -> None:
    graph = small_graph()
    view = make_view(graph, "inductive", 0)
    labels, test = view.everything.y, view.test_unseen
    per_epoch = []

    class Watched(RoutingByMemory):
        def fit(self, module, losses, validate, **rest):
            unseen = inputs_of(view).unseen

            def watched() -> float:
                per_epoch.append(accuracy(module.student(unseen), labels[test]))
                return validate()

            return super().fit(module, losses, watched, **rest)

    method = Watched(**{**SMALL, "max_epochs": 25, "lr": 0.03})
    teacher = knowledge_from(2.0 * torch.randn(120, 3) + 3.0 * F.one_hot(graph.y, 3))
    run = distill(view, teacher, method)
    scores = torch.tensor(run.history.val_score[2:])
    last_best = 2 + int((scores == scores.max()).nonzero().max())  # ties go to the later epoch
    assert run.history.best_epoch == last_best
    student = run.scores["student"]
    assert student["test_accuracy"] == pytest.approx(per_epoch[last_best])
    assert student["val_accuracy"] == pytest.approx(float(scores.max()))
    # choosing by test nodes would have given more here, and is reported nowhere
    assert max(per_epoch) > student["test_accuracy"]
    assert {name for name in student if name.startswith("test_")} == {
        "test_accuracy",
        "test_macro_f1",
        "test_roc_auc",
    }


def test_gradients_add_up_over_batches_of_means() -> None:
    view = make_view(small_graph(), "transductive", 0)
    knowledge = knowledge_from(torch.randn(120, 3)).fitted(view).knowledge
    known = inputs_of(view).observed
    student = RbM(view.num_features, 16, 3, momentum=1.0)  # memories that stay
    student.convert(known)
    with torch.no_grad():
        for parameter in student.layers.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))

    def gradients(batch_size: int | None) -> list[Tensor]:
        options = RoutingByMemory(**{**SMALL, "dropout": 0.0, "batch_size": batch_size})
        lessons = ExpertLessons(
            options, student.train(), known, view, knowledge, lambda routings: torch.zeros(())
        )
        student.zero_grad()
        (loss,) = lessons.epoch(5)
        loss.backward()
        return [p.grad.clone() for p in student.parameters() if p.grad is not None]

    whole = gradients(None)
    # three batches of 40 nodes: three means over a third of the nodes each
    for mine, theirs in zip(gradients(40), whole, strict=True):
        torch.testing.assert_close(mine, 3 * theirs, rtol=1e-4, atol=1e-6)


# -- a real graph --------------------------------------------------------------------------


QUICK = {"hidden_channels": 64, "num_layers": 2, "max_epochs": 100}


@pytest.fixture(scope="module")
def cora(data_root: Path) -> Run:
    view = make_view(load_graph("cpf-cora", data_root=data_root), "transductive", 0)
    return distill(view, fit_teacher(view, "sage", 0), "rbm", 0, **QUICK)


def test_on_cora_it_keeps_up_with_its_teacher(cora: Run) -> None:
    scores = cora.scores
    assert scores["teacher"]["test_accuracy"] > 0.75
    assert scores["student"]["test_accuracy"] > scores["teacher"]["test_accuracy"] - 0.03


def test_on_cora_a_shuffled_teacher_fails(cora: Run) -> None:
    logits = cora.teacher.knowledge.logits
    shuffled = knowledge_from(logits[torch.randperm(len(logits))])
    run = distill(cora.view, shuffled, "rbm", 0, **QUICK)
    assert run.scores["student"]["test_accuracy"] < cora.scores["student"]["test_accuracy"] - 0.2


def test_on_cora_the_exported_model_answers_alike(cora: Run) -> None:
    known = cora.inputs.observed
    kernel = OnnxKernel(to_onnx(cora.student, None), known.x.shape[1], 7, "the exported model")
    answer = torch.from_numpy(np.asarray(kernel(known.x.to_dense().numpy())))
    expected = cora.answers.observed
    assert float((answer.softmax(1) - expected.softmax(1)).abs().max()) <= 1e-5
    assert float((answer.argmax(1) == expected.argmax(1)).float().mean()) >= 0.999
    assert math.isfinite(float(answer.sum()))
