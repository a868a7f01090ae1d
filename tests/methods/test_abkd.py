"""ABKD and STRIDE: the invariants of the method, its presets, and the probe."""

import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch_geometric.data import Data

from limbeck.errors import OptionError
from limbeck.evaluation.compare import compare
from limbeck.evaluation.distill import distill
from limbeck.evaluation.probe import Probe, probe, probe_layers
from limbeck.graphs.view import make_view
from limbeck.methods import make_method
from limbeck.methods.abkd import ABKD, layer_sources, start_from_teacher
from limbeck.methods.fitnet import FitNetLoss
from limbeck.methods.g_crd import ContrastiveLoss, contrasts
from limbeck.methods.layers import nodes_in_scope
from limbeck.methods.pair_losses import (
    PAIR_PRESETS,
    FrozenLayers,
    LayerMaps,
    PairLoss,
    PairOptions,
    attention_map,
    correlation_distances,
    fixed_map,
    normalise_map,
    pool,
    reduce_map,
    row_entropy,
    squared_distances,
)
from limbeck.reports.tables import to_markdown
from limbeck.teachers import Teacher
from limbeck.teachers.cache import TeacherCache
from limbeck.teachers.fit import fit_teacher
from limbeck.teachers.gcnii import GCNII
from limbeck.testing import small_graph
from limbeck.testing.methods import same_weights, with_other_test_labels
from limbeck.training.loop import Checkpoint, seeded

SMALL = {"hidden_channels": 8, "max_epochs": 4, "dropout": 0.2, "student": "gcnii"}
T_WIDTHS, S_WIDTHS = [7, 5, 3], [4, 3]


def drawn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def stack(widths, n=30, seed=0, dtype=torch.float32):
    return [drawn(n, width, seed=seed + i, dtype=dtype) for i, width in enumerate(widths)]


def pair_loss(teacher=T_WIDTHS, student=S_WIDTHS, seed=0, **options):
    with seeded(seed):
        return PairLoss(teacher, student, PairOptions(**{"common_channels": 6, **options}))


@pytest.fixture(scope="module")
def view():
    return make_view(small_graph(), "transductive", 0)


@pytest.fixture(scope="module")
def gcnii(view):
    with seeded(7):
        return GCNII(view.num_features, 16, view.num_classes, 5)


# --- 1, 2: maps -------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PAIR_PRESETS)
def test_unequal_depths_and_widths(preset):
    for teacher, student in ((T_WIDTHS, S_WIDTHS), ([5], [4, 4]), (T_WIDTHS, [2]), ([5], [4])):
        loss = pair_loss(teacher, student, preset=preset)
        value = loss(stack(student, seed=9), stack(teacher))
        assert value.shape == ()
        assert torch.isfinite(value)
        weights, distances = loss.last
        last = preset == "last-layer"
        assert weights.shape == ((1, 1) if last else (len(teacher), len(student)))
        assert (distances >= 0).all()
        if len(student) == 1:
            torch.testing.assert_close(weights, torch.ones_like(weights))


def test_attention_is_a_distribution_per_teacher_layer():
    queries, keys = drawn(5, 6), drawn(3, 6, seed=1)
    weights = attention_map(queries, keys)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(5), rtol=0, atol=1e-6)
    extreme = attention_map(100 * queries, 245 * keys)  # logits in the tens of thousands
    assert torch.isfinite(extreme).all()
    torch.testing.assert_close(attention_map(queries, keys, "teacher").sum(0), torch.ones(3))
    torch.testing.assert_close(attention_map(queries, keys, "both").sum(), torch.tensor(1.0))
    by_hand = (queries[2] @ keys.t() / 6**0.5).exp()
    torch.testing.assert_close(weights[2], by_hand / by_hand.sum())


def test_fixed_maps():
    assert fixed_map("diagonal", 3, 2).tolist() == [[1, 0], [0, 1], [0, 1]]
    assert fixed_map("diagonal", 2, 4).tolist() == [[0, 1, 0, 0], [0, 0, 0, 1]]
    assert fixed_map("uniform", 2, 4).tolist() == [[0.25] * 4] * 2
    torch.testing.assert_close(row_entropy(fixed_map("uniform", 2, 4)), torch.ones(2))
    assert row_entropy(fixed_map("diagonal", 3, 2)).abs().max() == 0
    assert row_entropy(torch.ones(3, 1)).tolist() == [0, 0, 0]


# --- 3, 4, 5, 15: distances -------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_gram_form_is_the_naive_loop(dtype, close):
    u, z = drawn(3, 20, 6, dtype=dtype), drawn(2, 20, 6, seed=1, dtype=dtype)
    naive = [
        [sum(float((u[i, v] - z[j, v]).square().sum()) for v in range(20)) / 20 for j in range(2)]
        for i in range(3)
    ]
    found = squared_distances(u, z)
    torch.testing.assert_close(found, torch.tensor(naive, dtype=dtype), rtol=close, atol=close)
    assert (squared_distances(u, u).diagonal() <= 1e-5).all()
    assert (squared_distances(1e3 + u, 1e3 + u) >= 0).all()


def test_pooling_and_projecting_commute():
    maps = LayerMaps(T_WIDTHS, 6).double()
    layers = stack(T_WIDTHS, dtype=torch.float64)
    subspace = drawn(6, 6, dtype=torch.float64)
    for behind in (None, subspace):
        first = maps([mean[None] for mean in pool(layers)], behind)[:, 0]
        torch.testing.assert_close(first, maps(layers, behind).mean(1), rtol=0, atol=1e-10)
    # the map behind is multiplied with the weights, which is the same as with the rows
    torch.testing.assert_close(maps(layers, subspace), maps(layers) @ subspace.t())


def test_reductions_by_hand():
    weights = torch.tensor([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]])
    distances = torch.tensor([[2.0, 4.0, 8.0], [3.0, 5.0, 7.0]])
    assert float(reduce_map(weights, distances, "row-sum-mean")) == (1 + 1 + 2 + 5) / 2
    assert float(reduce_map(weights, distances, "mean-all")) * 3 == (1 + 1 + 2 + 5) / 2
    assert float(reduce_map(weights, distances, "sum")) == 9


def test_normalised_maps():
    distances = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    torch.testing.assert_close(normalise_map(distances, "fro"), distances / 5)
    torch.testing.assert_close(normalise_map(distances, "row")[0], torch.tensor([0.6, 0.8]))
    zero = torch.zeros(2, 2, requires_grad=True)
    for norm in ("fro", "row"):
        (gradient,) = torch.autograd.grad(normalise_map(zero, norm).sum(), zero)
        assert torch.isfinite(gradient).all()


def test_standardised_distance_is_a_correlation():
    teacher, student = (
        stack([5, 3], dtype=torch.float64),
        stack([4, 2, 4], seed=9, dtype=torch.float64),
    )
    with seeded(0):
        maps = LayerMaps([5, 3], 6).double(), LayerMaps([4, 2, 4], 6).double()
    subspace = drawn(6, 6, dtype=torch.float64)
    found = correlation_distances(FrozenLayers(teacher), student, *maps, subspace)
    u, z = maps[0](teacher, subspace), maps[1](student, subspace)
    for i, j in itertools.product(range(2), range(3)):
        both = [torch.corrcoef(torch.stack([u[i, :, k], z[j, :, k]]))[0, 1] for k in range(6)]
        expected = 2 - 2 * float(torch.stack(both).detach().mean())
        assert float(found[i, j].detach()) == pytest.approx(expected, abs=1e-10)
    rows = [(h - h.mean(1, keepdim=True)) / h.std(1, keepdim=True, correction=0) for h in (u, z)]
    torch.testing.assert_close(found, squared_distances(*[h / 6**0.5 for h in rows]))
    assert ((found >= 0) & (found <= 4)).all()
    same = correlation_distances(FrozenLayers(teacher[:1]), [-3 * teacher[0] + 1], maps[0], maps[0])
    torch.testing.assert_close(same, torch.full((1, 1), 4.0, dtype=torch.float64))


def test_columns_that_do_not_vary_have_no_gradient():
    flat = torch.zeros(9, 2, requires_grad=True)
    maps = LayerMaps([2], 3), LayerMaps([2], 3)
    correlation_distances(FrozenLayers([drawn(9, 2)]), [flat], *maps).sum().backward()
    assert torch.isfinite(flat.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in maps[0].parameters() if p.grad is not None)


# --- 6, 7: gradients --------------------------------------------------------------------------


def test_gradients_in_closed_form():
    logits = drawn(4, 3, dtype=torch.float64).requires_grad_()
    distances = drawn(4, 3, seed=1, dtype=torch.float64).abs().requires_grad_()
    weights = logits.softmax(1)
    reduce_map(weights, distances, "row-sum-mean").backward()
    weights, rest = weights.detach(), distances.detach()
    torch.testing.assert_close(distances.grad, weights / 4)
    mean = (weights * rest).sum(1, keepdim=True)
    torch.testing.assert_close(logits.grad, weights * (rest - mean) / 4)


@pytest.mark.parametrize("feat_norm", ["none", "l2", "std"])
@pytest.mark.parametrize("map_norm", ["none", "fro", "row"])
def test_gradients_are_exact(feat_norm, map_norm):
    loss = pair_loss([3, 2], [2, 2], preset="abkd-robust", feat_norm=feat_norm, map_norm=map_norm)
    loss = loss.double()
    teacher = stack([3, 2], 5, dtype=torch.float64)
    student = [h.requires_grad_() for h in stack([2, 2], 5, seed=4, dtype=torch.float64)]
    assert torch.autograd.gradcheck(lambda *layers: loss(layers, teacher), student)


def test_every_teacher_layer_reaches_every_student_layer(view, gcnii):
    method = make_method("abkd:abkd-v1-raw", **{**SMALL, "num_layers": 3})
    knowledge = Teacher(gcnii).fitted(view).knowledge
    with seeded(0):
        student, inputs = method.build(view)
    theirs = method.teacher_layers(knowledge)
    loss = method.auxiliary_beside(student, inputs.observed, theirs)
    convs = [student.gnn.convs[j].weight1 for j in range(3)]

    def gradients(teacher):
        mine = method.student_layers(student.layers(inputs.observed))
        return torch.autograd.grad(loss(mine, teacher), convs)

    before = gradients(theirs)
    for i in range(len(theirs)):
        moved = [layer + 0.5 * (i == k) for k, layer in enumerate(theirs)]
        for old, new in zip(before, gradients(moved), strict=True):
            assert not torch.equal(old, new)


def test_pairs_without_weight_teach_nothing():
    loss = pair_loss([4, 4], [3, 3], preset="diagonal", structure_weight=0.0)
    student = [h.requires_grad_() for h in stack([3, 3], seed=5)]
    teacher = stack([4, 4])
    before = torch.autograd.grad(loss(student, teacher), student)
    after = torch.autograd.grad(loss(student, [teacher[0], teacher[1] + 1]), student)
    assert torch.equal(before[0], after[0])  # layer 2 of the teacher is paired with layer 2
    assert not torch.equal(before[1], after[1])


# --- 8, 16: who sees what ---------------------------------------------------------------------


def test_order_of_nodes():
    student, teacher = (
        stack(S_WIDTHS, seed=5, dtype=torch.float64),
        stack(T_WIDTHS, dtype=torch.float64),
    )
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    moved = [h[order] for h in student]
    for preset in ("abkd-v1", "stride", "abkd-robust"):
        loss = pair_loss(preset=preset).double()
        value = loss(student, teacher)
        torch.testing.assert_close(loss(moved, [h[order] for h in teacher]), value)
        one_side = loss(moved, teacher)
        if preset == "abkd-v1":
            torch.testing.assert_close(one_side, value)  # what version 1 cannot see
        else:
            assert abs(float((one_side - value).detach())) > 1e-4


def test_order_of_the_graphs_nodes(view, gcnii):
    method = make_method("abkd:stride", **SMALL)
    graph = view.observed
    order = torch.randperm(120, generator=torch.Generator().manual_seed(0))
    place = order.argsort()
    x, edges = graph.x[order], place[graph.edge_index]
    values = []
    with seeded(0):
        student, _ = method.build(view)
    for data in (Data(x=graph.x, edge_index=graph.edge_index), Data(x=x, edge_index=edges)):
        with torch.no_grad():
            both = [
                method.compared(net.eval().layers(data.x, net.prepare(data.edge_index, 120)), depth)
                for net, depth in ((gcnii, 5), (student.gnn, 2))
            ]
            with seeded(1):
                loss = method.build_auxiliary([h.shape[1] for h in both[0]], [8, 8])
            values.append(loss(both[1], both[0]))
    torch.testing.assert_close(*values)


def test_a_batch_of_all_nodes_is_the_full_batch(view, gcnii):
    options = {**SMALL, "student": "mlp", "beta": 1.0}
    full = distill(view, Teacher(gcnii), make_method("abkd:e-stride", **options))
    batch = distill(view, Teacher(gcnii), make_method("abkd:e-stride", batch_size=120, **options))
    assert same_weights(full, batch)


def test_nodes_out_of_scope_do_not_move_the_means(view, gcnii):
    method = make_method("abkd:abkd-v1", scope="train", **SMALL)
    knowledge = Teacher(gcnii).fitted(view).knowledge
    noisy = {name: layer.clone() for name, layer in knowledge.hidden.items()}
    outside = torch.ones(120, dtype=torch.bool)
    outside[nodes_in_scope(view, "train")] = False
    for layer in noisy.values():
        layer[outside] += 3.0
    other = dataclasses.replace(knowledge, hidden=noisy)
    runs = []
    for known in (knowledge, other):
        with seeded(0):
            runs.append(method.distill(view, known).student.state_dict())
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_small_batches_take_running_means():
    loss = pair_loss(preset="abkd-v1-raw").train()
    teacher, student = stack(T_WIDTHS), stack(S_WIDTHS, seed=5)
    whole = loss(student, teacher)
    loss.see_all(teacher)
    torch.testing.assert_close(loss(student, [h[:8] for h in teacher]), whole)
    loss([h + 10 for h in student], [h[:8] for h in teacher])
    flat = torch.cat(pool(student))
    torch.testing.assert_close(loss.running, 0.9 * flat + 0.1 * (flat + 10))


# --- 10, 12, 13, 18: limits -------------------------------------------------------------------


def test_the_last_layers_alone_are_fitnet_with_linear_heads():
    loss = pair_loss(
        [5], [4], preset="last-layer", subspace=False, structure_weight=0.0, layers="hidden"
    )
    fitnet = FitNetLoss(5, 4, 6)
    for head, maps in (("teacher_head", loss.teacher_maps), ("student_head", loss.student_maps)):
        (weight,), (bias,) = maps.weights, maps.biases
        linear = torch.nn.Linear(weight.shape[2], 6)
        linear.load_state_dict({"weight": weight[0], "bias": bias[0, 0]})
        setattr(fitnet, head, linear)
    student, teacher = stack([4], seed=5), stack([5])
    torch.testing.assert_close(loss(student, teacher), 6 * fitnet(student, teacher))
    deeper = pair_loss(preset="last-layer")
    deep = deeper(stack(S_WIDTHS, seed=5), stack(T_WIDTHS))
    alone = deeper([stack(S_WIDTHS, seed=5)[-1]], [stack(T_WIDTHS)[-1]])
    assert torch.equal(deep, alone)  # no 1/T, no other pair


def test_one_pair_of_s_stride_is_g_crd():
    loss = pair_loss([5], [4], preset="s-stride", structure_weight=1.0, max_samples=10)
    gcrd = ContrastiveLoss(5, 4, 6, 0.075, max_samples=10)
    gcrd.teacher_head, gcrd.student_head = loss.teacher_heads[0], loss.student_heads[0]
    student, teacher = stack([4], seed=5), stack([5])
    ours = loss(student, teacher, torch.Generator().manual_seed(3))
    assert torch.equal(ours, gcrd(student, teacher, torch.Generator().manual_seed(3)))


def test_contrast_of_pairs_by_brute_force():
    teacher = F.normalize(drawn(2, 5, 4), dim=2)
    student = F.normalize(drawn(3, 5, 4, seed=1), dim=2).requires_grad_()
    found = contrasts(teacher, student, 0.2)
    anchors = student.detach()
    for i, j in itertools.product(range(2), range(3)):
        total = 0.0
        for v in range(5):
            scores = [float(anchors[j, v] @ teacher[i, w]) / 0.2 for w in range(5)]
            total -= scores[v] - float(torch.tensor(scores).logsumexp(0))
        assert float(found[i, j].detach()) == pytest.approx(total / 5, rel=1e-5)


def test_gradient_of_contrasts_is_exact():
    teacher = drawn(2, 4, 3, dtype=torch.float64).requires_grad_()
    student = drawn(3, 4, 3, seed=1, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda t, s: contrasts(t, s, 0.4), (teacher, student))


def test_a_teacher_is_nearest_to_itself():
    layers = stack([6, 6, 6], 40)
    loss = pair_loss([6] * 3, [6] * 3, preset="e-stride", feat_norm="none", map_bias=False)
    with torch.no_grad():
        for side in (loss.teacher_maps, loss.student_maps):
            side.weights[0].copy_(torch.eye(6).expand(3, 6, 6))
    loss(layers, layers)
    _, distances = loss.last
    assert distances.argmin(1).tolist() == [0, 1, 2]


def test_the_subspace_starts_as_the_identity():
    student, teacher = stack(S_WIDTHS, seed=5), stack(T_WIDTHS)
    for preset in ("abkd-v1", "abkd-robust"):
        with_map = pair_loss(preset=preset)(student, teacher)
        without = pair_loss(preset=preset, subspace=False)(student, teacher)
        torch.testing.assert_close(with_map, without)


def test_frozen_teacher_maps_are_orthogonal_and_stay():
    loss = pair_loss([8, 8], [4, 4], preset="abkd-frozen-t")
    (weight,) = loss.teacher_maps.weights
    eyes = torch.eye(6).expand(2, 6, 6)
    torch.testing.assert_close(weight @ weight.mT, eyes, rtol=0, atol=1e-5)
    names = [name for name, p in loss.named_parameters() if not p.requires_grad]
    assert names == ["subspace", "teacher_maps.weights.0"]


# --- 11: counts -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("features", "classes", "layers", "width", "count"),
    [
        (500, 3, 64, 64, 294_403),
        (500, 3, 4, 4, 2_083),
        (1433, 7, 64, 64, 354_375),
        (1433, 7, 4, 4, 5_835),
        (3703, 6, 64, 64, 499_590),
        (3703, 6, 4, 4, 14_910),
    ],
)
def test_parameter_counts_of_gcnii(features, classes, layers, width, count):
    network = GCNII(features, width, classes, layers)
    assert sum(p.numel() for p in network.parameters()) == count


def test_parameters_of_what_is_trained_beside():
    # two sets of maps and a subspace: 259 times the student that they train
    loss = PairLoss([64] * 64, [4] * 4, PairOptions(preset="abkd-v1", common_channels=64))
    assert sum(p.numel() for p in loss.parameters()) == 539_136
    shared = PairOptions(preset="abkd-v1", common_channels=64, share_maps=True, tied_maps=True)
    loss = PairLoss([64] * 64, [4] * 4, shared)
    assert sum(p.numel() for p in loss.parameters()) == 64 * 65 + 5 * 64 + 64 * 64


# --- 19 and the method itself -----------------------------------------------------------------


def test_layers_of_a_gcnii_are_its_convolutions(view, gcnii):
    knowledge = Teacher(gcnii).fitted(view).knowledge
    knowledge = dataclasses.replace(knowledge, depth=5)
    method = make_method("abkd", **SMALL)
    assert [h.shape[1] for h in method.teacher_layers(knowledge)] == [16] * 5
    sage = make_method("abkd", **{**SMALL, "student": "sage"})
    outputs = {"hidden1": drawn(4, 8), "logits": drawn(4, 3)}
    assert [h.shape[1] for h in sage.student_layers(outputs)] == [8, 3]


def test_equal_seeds_and_hidden_labels(view, gcnii):
    method = make_method("abkd:stride", max_samples=50, **SMALL)
    run = distill(view, Teacher(gcnii), method, 1)
    assert same_weights(run, distill(view, Teacher(gcnii), method, 1))
    changed = make_view(with_other_test_labels(small_graph(), view), "transductive", 0)
    assert torch.equal(changed.train, view.train)
    assert same_weights(run, distill(changed, Teacher(gcnii), method, 1))


def test_an_interrupted_run_ends_as_it_would_have(view, gcnii, tmp_path):
    method = make_method("abkd:stride", max_samples=50, **SMALL)
    knowledge = Teacher(gcnii).fitted(view).knowledge

    class Stop(Exception):
        pass

    with seeded(2):
        whole = method.distill(view, knowledge).student.state_dict()
    checkpoint = Checkpoint(tmp_path / "state", "key", every_seconds=0)
    calls = []

    class Interrupted(ABKD):
        def supervised(self, *arguments):
            calls.append(None)
            if len(calls) == 3:
                raise Stop
            return super().supervised(*arguments)

    with seeded(2), pytest.raises(Stop):
        Interrupted(**method.model_dump()).distill(view, knowledge, checkpoint=checkpoint)
    with seeded(2):
        resumed = method.distill(view, knowledge, checkpoint=checkpoint).student.state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_the_record_holds_the_maps(view, gcnii):
    run = distill(view, Teacher(gcnii), make_method("abkd:stride", log_every=3, **SMALL))
    first, last = run.history.notes
    assert (first["epoch"], last["epoch"]) == (0, 3)
    # the depth of a module that is not ours is not known, so its logits count as a layer
    assert len(first["attention"]) == 6
    assert all(sum(row) == pytest.approx(1, abs=1e-5) for row in first["attention"])
    assert 0.8 <= first["entropy"] <= 1
    assert first["gradient_ratio"] > 0
    assert first["subspace_norm"] == pytest.approx(8.0)  # the identity of 64 columns


def test_presets_and_what_goes_on_top():
    stride = make_method("abkd:stride")
    assert stride == make_method("abkd")
    assert (stride.granularity, stride.structure_weight) == ("node", 0.1)
    v1 = make_method("abkd:abkd-v1", map_norm="row")
    assert (v1.granularity, v1.map_norm, v1.structure_weight) == ("pooled", "row", 0.0)
    assert ABKD(**v1.model_dump()) == v1
    robust = v1.replace(preset="abkd-robust")
    assert (robust.granularity, robust.feat_norm, robust.map_norm) == ("node", "std", "row")
    assert robust.replace(beta=3.0).beta == 3.0
    for name in PAIR_PRESETS:
        assert make_method(f"abkd:{name}").preset == name


def test_what_is_refused():
    with pytest.raises(OptionError, match="option 'preset' of ABKD is 'abkd-v3'"):
        make_method("abkd:abkd-v3")
    with pytest.raises(OptionError, match="standardises over nodes"):
        ABKD(preset="abkd-v1", feat_norm="std")
    with pytest.raises(OptionError, match="it or embedding_weight must be positive"):
        ABKD(preset="s-stride", structure_weight=0)


# --- 14: the probe ----------------------------------------------------------------------------


def views_of(latent, widths, generator):
    """Noisy random features of a latent vector per node."""
    return [
        torch.relu(
            latent @ torch.randn(latent.shape[1], width, generator=generator) / 8**0.5
            + 0.3 * torch.randn(len(latent), width, generator=generator)
        )
        for width in widths
    ]


@pytest.mark.parametrize(
    ("preset", "related", "low", "high"),
    [
        ("abkd-v1-raw", False, 0, 0.01),
        ("abkd-v1", False, 0, 0.01),
        ("abkd-robust", False, 0.3, 1),
        ("abkd-robust", True, 0, 0.3),
    ],
)
def test_frozen_student_probe(preset, related, low, high):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 400, 8, generator=generator)
    teacher = views_of(latents[0], [32] * 6, generator)
    student = views_of(latents[0 if related else 1], [8] * 3, generator)
    loss = pair_loss([32] * 6, [8] * 3, preset=preset, common_channels=16)
    start, end = probe_layers(loss, teacher, student, steps=250)
    assert low <= end / start < high


def test_a_probe_leaves_teacher_and_student_alone(view, gcnii):
    knowledge = Teacher(gcnii).fitted(view).knowledge
    method = make_method("abkd:abkd-v1", **SMALL)
    found = probe(view, knowledge, method, steps=60)
    assert [p.student for p in found] == ["untrained", "trained"]
    assert all(p.method == "abkd:abkd-v1" and p.end < p.start for p in found)
    assert found == probe(view, knowledge, method, steps=60)
    (at,) = probe(view, knowledge, make_method("at", **SMALL), states=("trained",), steps=5)
    assert at.ratio == 1  # it has nothing of its own to train
    with pytest.raises(OptionError, match="method 'glnn' compares no layers"):
        probe(view, knowledge, make_method("glnn"))
    assert Probe("x", "trained", 2.0, 0.01, 9).verdict == "degenerate"
    assert Probe("x", "trained", 0.0, 0.0, 9).verdict == "holds"


def test_tables_mark_what_is_degenerate():
    rows = [
        {
            "graph": "g",
            "setting": "transductive",
            "seed": seed,
            "teacher": "gcnii",
            "method": method,
            "test_accuracy": accuracy,
            "probe_ratio": ratio,
        }
        for seed in range(2)
        for method, accuracy, ratio in (
            ("teacher", 0.9, None),
            ("abkd:abkd-v1", 0.8, 1e-5),
            ("abkd:abkd-robust", 0.7, 0.4),
        )
    ]
    text = to_markdown(compare(rows, resamples=100))
    assert "**80.00 ± 0.00 †**" in text
    assert "70.00 ± 0.00 |" in text
    assert "† degenerate" in text
    unmarked = [{**row, "probe_ratio": None} for row in rows]
    assert "†" not in to_markdown(compare(unmarked, resamples=100))


# --- initialisation from attention, and teachers stored by halves -----------------------------


def test_starting_from_the_layers_that_were_attended_to(view):
    attention = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    assert layer_sources(2, attention, 3, "attention") == [0, 1]
    assert layer_sources(2, None, 3, "last") == [1, 2]
    with seeded(0):
        teacher = GCNII(view.num_features, 8, 3, 3)
        student, _ = make_method("abkd", **SMALL).build(view)
    start_from_teacher(student.gnn, teacher, [2, 0])
    mine, theirs = student.gnn.state_dict(), teacher.state_dict()
    assert torch.equal(mine["convs.0.weight1"], theirs["convs.2.weight1"])
    assert torch.equal(mine["convs.1.weight1"], theirs["convs.0.weight1"])
    assert torch.equal(mine["first.weight"], theirs["first.weight"])
    wide = GCNII(view.num_features, 16, 3, 3)
    with pytest.raises(OptionError, match="GCNIIs of the same width"):
        start_from_teacher(student.gnn, wide, [2, 0])


def test_layers_stored_by_halves(view, tmp_path):
    options = {"max_epochs": 2, "num_layers": 3}
    exact = fit_teacher(view, "gcnii", cache=TeacherCache(tmp_path), **options)
    half = TeacherCache(tmp_path, half_layers=True)
    first = fit_teacher(view, "gcnii", cache=half, **options)
    again = fit_teacher(view, "gcnii", cache=half, **options)
    for name, layer in exact.knowledge.hidden.items():
        rounded = layer.half().float()
        assert torch.equal(first.knowledge.hidden[name], rounded)
        assert torch.equal(again.knowledge.hidden[name], rounded)
        assert again.knowledge.hidden[name].dtype == torch.float32
    assert torch.equal(exact.knowledge.logits, again.knowledge.logits)
    sizes = {f.name.endswith(".half.pt"): f.stat().st_size for f in tmp_path.rglob("*.pt")}
    assert sizes[True] < sizes[False]
