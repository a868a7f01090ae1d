"""Figures of routing on students whose routing is known by construction."""

import json
import math

import pytest
import torch
import torch.nn.functional as F

from limbeck.errors import OptionError
from limbeck.evaluation.distill import distill
from limbeck.evaluation.routing import (
    RoutingTrace,
    control_accuracies,
    describe_experts,
    describe_routing,
    forced_logits,
    layer_accuracies,
    linear_cka,
    mean_cosine,
    moved,
    routes,
    routing_diagnostics,
)
from limbeck.graphs.sparse import to_csr
from limbeck.graphs.view import make_view
from limbeck.methods.moe import MixtureOfExperts
from limbeck.methods.rbm import RoutingByMemory
from limbeck.students import NodeInputs
from limbeck.students.experts import Routing
from limbeck.students.moe import MoE
from limbeck.students.rbm import RbM
from limbeck.teachers import Teacher, knowledge_from
from limbeck.teachers.sage import SAGE
from limbeck.testing import small_graph
from limbeck.training.loop import seeded

SMALL = {"hidden_channels": 16, "max_epochs": 4, "pretrain_epochs": 2, "patience": 50}
OUR_OWN = {
    "input_gain": True,
    "expert_rank": 2,
}
LABELS = torch.arange(3).repeat_interleave(20)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def specialists() -> tuple[RbM, NodeInputs]:
    """One layer with an expert per class, which says that class whatever it reads.

    The memories are the classes' directions and k is 1, so each node finds its expert.
    """
    student = RbM(3, 8, 3, num_layers=1, num_experts=3, top_k=1)
    layer = student.layers[0]
    layer.routed = True
    with torch.no_grad():
        layer.memory.copy_(torch.eye(3))
        for e, expert in enumerate(layer.experts):
            expert.weight.zero_()
            expert.bias.copy_(F.one_hot(torch.tensor(e), 3))
    return student.eval(), NodeInputs(F.one_hot(LABELS, 3).float())


def random_student(kind: type = RbM, **options: object) -> tuple[RbM | MoE, NodeInputs]:
    """A student of three layers with random weights, past pretraining."""
    student = kind(6, 10, 3, 3, num_experts=5, top_k=2, norm="layer", **options)
    for layer in student.layers:
        layer.routed = True
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return student.eval(), NodeInputs(torch.randn(60, 6))


def run_of(method=None, setting: str = "inductive", **options: object):
    graph = small_graph(**options)
    view = make_view(graph, setting, 0)
    with seeded(7):
        teacher = Teacher(SAGE(view.num_features, 8, view.num_classes))
    return distill(view, teacher, method or RoutingByMemory(**SMALL), 0)


# -- what the choice is worth --------------------------------------------------------------


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(
    ("kind", "options"), [(RbM, {}), (RbM, {"input_gain": True}), (RbM, OUR_OWN), (MoE, {})]
)
def test_the_gates_of_its_own_give_the_students_own_answer(kind, options, sparse: bool) -> None:
    student, inputs = random_student(kind, **options)
    if sparse:
        inputs = NodeInputs(to_csr(torch.relu(inputs.x)))
    trace = student.trace(inputs)
    own = [routing.gates for routing in trace.routings]
    for given in (own, [None] * 3, [None, own[1], None]):
        torch.testing.assert_close(forced_logits(student, inputs, given), trace.logits)
    others = [own[0].flip(1), own[1], own[2]]
    assert not torch.allclose(forced_logits(student, inputs, others), trace.logits)


def test_specialists_need_their_own_nodes() -> None:
    student, inputs = specialists()
    figures = control_accuracies(student, inputs, LABELS)
    assert figures["own"] == 1
    # a node meets one of its class in a third of the cases, and k = 1 expert drawn likewise
    assert figures["shuffled"] == pytest.approx(1 / 3, abs=0.12)
    assert figures["random"] == pytest.approx(1 / 3, abs=0.12)
    assert figures["average"] == pytest.approx(1 / 3)  # equal logits: the first class
    layer = layer_accuracies(student, inputs, LABELS, 0)
    assert layer["accuracy_shuffled"] == pytest.approx(1 / 3, abs=0.12)
    assert (layer["accuracy_used"], layer["accuracy_unused"]) == (1, 0)
    for expert in layer["experts"]:
        assert expert == {
            "share": pytest.approx(1 / 3),
            "accuracy_used": 1,
            "accuracy_unused": 0,
        }


def test_clones_lose_nothing_under_any_routing() -> None:
    student = RbM(6, 10, 3, 2)
    inputs = NodeInputs(torch.randn(60, 6))
    student.convert(inputs)
    labels = student.eval()(inputs).argmax(1)
    assert control_accuracies(student, inputs, labels) == {
        "own": 1,
        "shuffled": 1,
        "random": 1,
        "average": 1,
    }
    for i in range(2):
        figures = layer_accuracies(student, inputs, labels, i)
        assert {figures[f"accuracy_{name}"] for name in ("shuffled", "used", "unused")} == {1}
    for layer in describe_experts(student, inputs):
        assert layer["weight_distance"] == pytest.approx(0, abs=1e-6)
        assert layer["weight_cosine"] == pytest.approx(1, abs=1e-5)
        assert layer["output_cka"] == pytest.approx(1, abs=1e-5)
        assert layer["scale"] == pytest.approx(2)


def test_an_expert_that_all_nodes_use_has_no_others() -> None:
    student, inputs = specialists()
    inputs = NodeInputs(inputs.x[:20])  # one class
    experts = layer_accuracies(student, inputs, LABELS[:20], 0)["experts"]
    assert experts[0] == {"share": 1, "accuracy_used": 1, "accuracy_unused": None}
    assert experts[1] == {"share": 0, "accuracy_used": None, "accuracy_unused": 0}


def test_drawn_experts_weigh_what_the_own_ones_do(monkeypatch) -> None:
    # the gates of a trained gate sum to less than one: with other sums the scale would change
    student, inputs = random_student(MoE)
    own = [routing.gates for routing in student.trace(inputs).routings]
    given = []

    def spy(student, inputs, gates):
        given.append(gates)
        return forced_logits(student, inputs, gates)

    monkeypatch.setattr("limbeck.evaluation.routing.forced_logits", spy)
    control_accuracies(student, inputs, torch.zeros(60, dtype=torch.int64))
    shuffled, random, average = given[:5], given[5:10], given[10]
    for gates in [*random, average]:
        for mine, theirs in zip(own, gates, strict=True):
            torch.testing.assert_close(theirs.sum(1), mine.sum(1))
    assert all((gates > 0).sum(1).eq(2).all() for draw in random for gates in draw)
    for draw in shuffled:
        # all layers' gates come from the same other node
        order = [(draw[0][b] == own[0]).all(1).nonzero().item() for b in range(60)]
        assert sorted(order) == list(range(60))
        assert all(torch.equal(a, b[order]) for a, b in zip(draw, own, strict=True))


# -- figures by hand -----------------------------------------------------------------------


def test_load_and_gates_by_hand() -> None:
    gates = torch.tensor([[0.75, 0.25, 0.0], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0], [0.75, 0.0, 0.25]])
    similarity = torch.tensor([[0.9, 0.4, 0.1], [0.5, 0.2, 0.5], [0.3, 0.1, 0.0], [0.8, 0.0, 0.6]])
    figures = describe_routing(Routing(similarity, gates), torch.tensor([0, 1, 0, -1]))
    # loads 2.5, 0.75, 0.75 of 4
    shares = [0.625, 0.1875, 0.1875]
    entropy = -sum(p * math.log(p) for p in shares)
    assert figures["load_entropy"] == pytest.approx(entropy / math.log(3))
    assert figures["min_share"] == pytest.approx(0.1875)
    mean = 4 / 3
    variance = ((2.5 - mean) ** 2 + 2 * (0.75 - mean) ** 2) / 2
    assert figures["load_cv2"] == pytest.approx(variance / mean**2)
    assert figures["num_sets"] == 2
    quarter = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(2)
    assert figures["gate_entropy"] == pytest.approx((2 * quarter + 2) / 4)
    # gaps 0.5, 0, 0.2, 0.2
    assert figures["gap_50"] == pytest.approx(0.2)
    assert figures["gap_95"] == pytest.approx(0.2 + 0.85 * 0.3)  # between the third and the fourth
    assert (figures["nmi_teacher"], figures["nmi_teacher_random"]) == (None, None)


def test_gates_are_compared_as_shares_of_their_sum_and_one_of_them_has_no_entropy() -> None:
    gates = torch.tensor([[0.2, 0.2, 0.0], [0.0, 0.3, 0.3]])
    labels = torch.tensor([-1, -1])
    figures = describe_routing(Routing(gates, gates), labels)
    assert figures["gate_entropy"] == pytest.approx(1)
    assert figures["nmi_class"] is None
    single = torch.eye(3)
    figures = describe_routing(Routing(single, single), torch.arange(3))
    assert figures["gate_entropy"] is None
    assert figures["gap_95"] == 0
    assert figures["load_entropy"] == pytest.approx(1)


def test_experts_that_follow_class_and_teacher() -> None:
    student, inputs = specialists()
    (routing,) = student.trace(inputs).routings
    # a teacher that sees the same classes, in other places
    embedding = F.one_hot(2 - LABELS, 5).float() + 0.01 * torch.rand(60, 5)
    figures = describe_routing(routing, LABELS, embedding)
    assert figures["nmi_class"] == pytest.approx(1)
    assert figures["nmi_teacher"] == pytest.approx(1)
    assert figures["nmi_class_random"] < 0.2
    assert figures["nmi_teacher_random"] < 0.2
    halves = (torch.arange(60) % 2).long()  # says nothing of the class
    assert describe_routing(routing, halves)["nmi_class"] == pytest.approx(0, abs=1e-6)


def test_nodes_without_a_label_are_left_out_of_what_is_said_of_classes() -> None:
    student, inputs = specialists()
    (routing,) = student.trace(inputs).routings
    labels = LABELS.clone()
    labels[::3] = -1
    assert describe_routing(routing, labels)["nmi_class"] == pytest.approx(1)


def test_moved_counts_sets_and_not_weights() -> None:
    def routing(rows: list[list[float]]) -> Routing:
        return Routing(torch.zeros(len(rows), 3), torch.tensor(rows))

    before = routing([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]])
    assert moved(before, routing([[0.9, 0.1, 0.0], [0.4, 0.6, 0.0]])) == 0
    assert moved(before, routing([[0.9, 0.1, 0.0], [0.0, 0.6, 0.4]])) == 0.5


def test_cosines_by_hand() -> None:
    rows = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
    assert mean_cosine(rows) == pytest.approx(-1 / 3)  # 0, 0 and −1
    # E directions cannot be farther apart than the corners of a simplex
    simplex = torch.eye(4) - 0.25
    assert mean_cosine(simplex) == pytest.approx(-1 / 3)


def test_linear_cka_knows_rotations_and_independence() -> None:
    x = torch.randn(50, 4, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    assert linear_cka(torch.stack([x, 3 * x @ rotation + 1])) == pytest.approx(1)
    y = torch.randn(50, 4, dtype=torch.float64)
    x, y = x - x.mean(0), y - y.mean(0)
    by_formula = (y.t() @ x).norm() ** 2 / ((x.t() @ x).norm() * (y.t() @ y).norm())
    assert linear_cka(torch.stack([x, y])) == pytest.approx(float(by_formula))
    y = y - x @ torch.linalg.lstsq(x, y).solution  # what x does not explain
    assert linear_cka(torch.stack([x, y])) == pytest.approx(0, abs=1e-8)


def test_experts_by_hand() -> None:
    student, inputs = specialists()
    layer = student.layers[0]
    with torch.no_grad():
        for e, expert in enumerate(layer.experts):
            expert.weight.copy_((1.0 + (e == 0)) * torch.eye(3))  # 2 I, I, I with the mean 4/3 I
    (figures,) = describe_experts(student, inputs)
    assert figures["memory_cosine"] == pytest.approx(0)
    assert figures["weight_distance"] == pytest.approx((2 / 3 + 1 / 3 + 1 / 3) / 3 / (4 / 3))
    assert figures["weight_cosine"] == pytest.approx(1, abs=1e-5)
    assert figures["output_cka"] == pytest.approx(1, abs=1e-5)


# -- the report of a run -------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [RoutingByMemory(**SMALL, num_layers=3), MixtureOfExperts(**SMALL, num_experts=4, top_k=3)],
)
@pytest.mark.parametrize("sparse", [False, True])
def test_a_report_is_json_and_agrees_with_the_runs_scores(method, sparse: bool) -> None:
    run = run_of(method, sparse=sparse)
    for setting in ("inductive", "production", "cold-start"):
        there = run.in_setting(setting)
        report = routing_diagnostics(there)
        assert json.loads(json.dumps(report, allow_nan=False)) == report
        accuracy = there.scores["student"]["test_accuracy"]
        assert report["test"]["own"] == pytest.approx(accuracy, abs=1e-6)
        view = run.view
        assert report["observed"]["num_nodes"] == view.num_observed
        assert report["observed"]["num_test_nodes"] == len(view.test_observed)
        assert report["unseen"]["num_nodes"] == len(view.test_unseen)
        assert report["unseen"] == report["isolated"]  # the student reads features alone
        assert report["observed"]["layers"][0]["nmi_teacher"] is not None
        assert report["unseen"]["layers"][0]["nmi_teacher"] is None
        assert len(report["layers"]) == method.num_layers
        shares = [e["share"] for e in report["observed"]["layers"][0]["experts"]]
        assert sum(shares) == pytest.approx(method.top_k)


def test_new_nodes_with_and_without_edges_differ_where_the_student_reads_positions() -> None:
    run = run_of(RoutingByMemory(**SMALL, **OUR_OWN, encoding="spectral", dim=4))
    report = routing_diagnostics(run)
    assert report["unseen"]["layers"] != report["isolated"]["layers"]
    for setting in ("inductive", "cold-start"):
        there = run.in_setting(setting)
        accuracy = there.scores["student"]["test_accuracy"]
        own = routing_diagnostics(there)["test"]["own"]
        assert own == pytest.approx(accuracy, abs=1e-6)


def test_production_weighs_seen_and_unseen_nodes() -> None:
    report = routing_diagnostics(run_of().in_setting("production"))
    for name, value in report["test"].items():
        seen, unseen = (report[kind]["accuracy"][name] for kind in ("observed", "unseen"))
        assert value == pytest.approx(0.8 * seen + 0.2 * unseen)


def test_a_transductive_report_has_no_unseen_nodes_and_a_teacher_of_logits_no_clusters() -> None:
    view = make_view(small_graph(), "transductive", 0)
    run = distill(view, knowledge_from(torch.randn(120, 3)), RoutingByMemory(**SMALL))
    report = routing_diagnostics(run)
    assert set(report) == {"test", "layers", "observed"}
    assert report["observed"]["layers"][0]["nmi_teacher"] is None


def test_a_report_changes_nothing_and_is_the_same_for_a_seed() -> None:
    run = run_of()
    before = {name: value.clone() for name, value in run.student.state_dict().items()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    report = routing_diagnostics(run)
    assert torch.equal(torch.get_rng_state(), state)
    assert not run.student.training
    for name, value in run.student.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert routing_diagnostics(run) == report
    assert routing_diagnostics(run, seed=1) != report
    run.student.train()
    assert routing_diagnostics(run) == report  # no dropout, and no memory moves
    assert run.student.training


def test_a_large_view_is_sampled() -> None:
    report = routing_diagnostics(run_of(), max_nodes=10)
    assert report["observed"]["num_nodes"] == report["observed"]["num_test_nodes"] == 10


def test_moves_under_noise_lie_between_none_and_those_of_a_random_node() -> None:
    student, inputs = specialists()
    run = run_of()
    layers = routing_diagnostics(run)["observed"]["layers"]
    for layer in layers:
        assert 0 <= layer["moved_noise"] <= layer["moved_random"] <= 1
    # whatever is dropped of it or multiplied, a row along an axis stays there
    (routing,) = student.trace(inputs).routings
    (after,) = student.trace(NodeInputs(inputs.x * (1 + 0.1 * torch.randn(60, 3)))).routings
    assert moved(routing, after) == 0


def test_a_student_that_does_not_route_is_refused() -> None:
    view = make_view(small_graph(), "transductive", 0)
    run = distill(view, None, "mlp", 0, max_epochs=1)
    assert not routes(run.student)
    with pytest.raises(OptionError, match="method 'mlp' sends no node to experts"):
        routing_diagnostics(run)
    assert not routes(RbM(4, 8, 3))  # still in pretraining
    assert routes(specialists()[0])


# -- in training ---------------------------------------------------------------------------


def test_a_trace_follows_training_and_does_not_touch_it() -> None:
    traces = []

    class Traced(RoutingByMemory):
        def fit(self, module, losses, validate, **rest):
            def followed(epoch):
                yield from losses(epoch)
                traces[0](epoch, module.student)  # behind the epoch's last step

            return super().fit(module, followed, validate, **rest)

        def inputs_of(self, view):
            inputs = super().inputs_of(view)
            traces.append(RoutingTrace(inputs.observed, max_nodes=50))
            return inputs

    options = {**SMALL, "dropout": 0.3, "batch_size": 32}
    plain, traced = run_of(RoutingByMemory(**options)), run_of(Traced(**options))
    for name, value in plain.student.state_dict().items():
        assert torch.equal(value, traced.student.state_dict()[name]), name
    (trace,) = traces
    assert [report["epoch"] for report in trace.epochs] == [2, 3, 4, 5]  # after pretraining
    assert json.loads(json.dumps(trace.epochs, allow_nan=False)) == trace.epochs
    for report in trace.epochs:
        assert len(report["layers"]) == 2
    assert trace.epochs[0]["layers"][0]["moved"] is None
    assert 0 <= trace.epochs[1]["layers"][0]["moved"] <= 1


def test_a_trace_by_hand() -> None:
    student, inputs = specialists()
    trace = RoutingTrace(inputs)
    trace(0, student)
    trace(1, student)
    with torch.no_grad():  # two experts change places
        student.layers[0].memory.copy_(torch.eye(3)[[1, 0, 2]])
    student.train()
    memory = student.layers[0].memory.detach().clone()
    trace(2, student)
    assert student.training
    assert torch.equal(student.layers[0].memory, memory)
    layers = [report["layers"][0] for report in trace.epochs]
    assert [layer["moved"] for layer in layers] == [None, 0, pytest.approx(2 / 3)]
    assert [layer["memory_cosine"] for layer in layers] == [0, 0, 0]
    assert layers[0]["load_entropy"] == pytest.approx(1)


def test_a_trace_of_a_trained_gate_follows_its_columns() -> None:
    student, inputs = random_student(MoE)
    trace = RoutingTrace(inputs)
    trace(0, student)
    columns = [mean_cosine(layer.columns) for layer in student.layers]
    assert [layer["memory_cosine"] for layer in trace.epochs[0]["layers"]] == columns
