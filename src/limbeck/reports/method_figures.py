"""Figures of what a method makes visible: its experts, gates, bands, curvature and attention."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from limbeck.reports.drawing import PALETTE, TEACHER_COLOR, Figure, empty_plot, percent, short
from limbeck.reports.runs import Row

EXPERTS = {
    "own": "own experts",
    "shuffled": "another node's",
    "random": "random ones",
    "average": "all experts",
}


def inside(method: str, rows: Sequence[Row]) -> list[Figure]:
    """What a method shows of its students in a cell, from the first run that has it.

    Args:
        method: The method.
        rows: Its runs.
    """
    figures: list[Figure | None] = []
    if report := next((r["routing"] for r in rows if r.get("routing")), None):
        figures += [_experts_worth(method, report), _expert_load(method, report)]
    shown: Row = next((r["diagnostics"] for r in rows if r.get("diagnostics")), {})
    if "gates" in shown:
        figures += [_gates(method, shown["gates"]), _gate_histogram(method, shown["gates"])]
    if report := next((r["framelets"] for r in rows if r.get("framelets")), None):
        figures += [_bands(method, report), _energies(method, report)]
    figures.append(_curvature(method, shown.get("curvature")))
    if report := next((r["attention"] for r in rows if r.get("attention")), None):
        figures += [_teachers(method, report), _attention(method, report)]
    if "layer_maps" in shown:
        figures += [_layer_map(method, shown["layer_maps"], when) for when in ("before", "after")]
    return [figure for figure in figures if figure is not None]


def _experts_worth(method: str, report: Row) -> Figure:
    test = report["test"]
    drawn = empty_plot("experts that answer", "test accuracy (%)")
    drawn.add_bar(
        x=list(EXPERTS.values()),
        y=[percent(test[name]) for name in EXPERTS],
        marker={"color": [PALETTE[0], *[TEACHER_COLOR] * 3]},
        showlegend=False,
        hovertemplate="%{x}: %{y:.2f} %<extra></extra>",
    )
    lost = test["own"] - test["shuffled"]
    text = (
        "Every node answered by its own experts, by those of another node, by random ones, and by "
        f"all at once. Sending nodes elsewhere costs {100 * lost:.1f} points: "
        + (
            "the choice of experts matters."
            if lost > 0.01
            else "next to nothing, so the experts are interchangeable here."
        )
    )
    return Figure("experts", f"{method}: what the choice of experts is worth", text, drawn)


def _expert_load(method: str, report: Row) -> Figure:
    drawn = empty_plot("expert", "share of nodes that use it (%)")
    for i, layer in enumerate(report["observed"]["layers"]):
        shares = [expert["share"] for expert in layer["experts"]]
        drawn.add_bar(
            x=[f"{e + 1}" for e in range(len(shares))],
            y=[percent(share) for share in shares],
            name=f"layer {i + 1}",
            marker={"color": PALETTE[i % len(PALETTE)]},
            hovertemplate=f"layer {i + 1}, expert %{{x}}: %{{y:.1f}} %<extra></extra>",
        )
    drawn.update_layout(barmode="group")
    drawn.update_xaxes(type="category")
    nmi = [layer.get("nmi_class") for layer in report["observed"]["layers"]]
    known = [value for value in nmi if value is not None]
    text = "Bars of one height are an even load; an expert that nobody uses is wasted."
    if known:
        text += (
            f" Which expert a node takes tells of its class with {max(known):.2f} of normalised "
            "mutual information in the layer where it tells most (0: nothing, 1: all)."
        )
    return Figure("routing", f"{method}: load of the experts", text, drawn)


def _gates(method: str, report: Row) -> Figure | None:
    filled = {name: f for name, f in report["by_degree"].items() if f["num_nodes"]}
    if not filled:
        return None
    drawn = empty_plot("number of neighbours", "mean (%)")
    lines = (("share", "share of the answer from structure"), ("gate", "gate"))
    for i, (key, label) in enumerate(lines):
        drawn.add_scatter(
            x=list(filled),
            y=[percent(figures[key]) for figures in filled.values()],
            customdata=[figures["num_nodes"] for figures in filled.values()],
            mode="lines+markers",
            name=label,
            line={"color": PALETTE[i], "width": 2},
            hovertemplate="%{x} neighbours: %{y:.1f} % (%{customdata} nodes)<extra></extra>",
        )
    drawn.update_xaxes(type="category")
    drawn.update_yaxes(range=[0, 103])
    text = (
        "How much of a node's answer comes from who its neighbours are rather than from its "
        "features. A line that rises says that the student trusts structure more where there is "
        "more of it. Read the share: either decoder can grow to make up for the gate."
    )
    return Figure("gates", f"{method}: structure and features by degree", text, drawn)


def _gate_histogram(method: str, report: Row) -> Figure:
    counts = report["histogram"]
    drawn = empty_plot("structure's share of the answer (%)", "observed nodes")
    width = 100 / len(counts)
    drawn.add_bar(
        x=[width * (i + 0.5) for i in range(len(counts))],
        y=counts,
        width=[width * 0.95] * len(counts),
        marker={"color": PALETTE[0]},
        showlegend=False,
        hovertemplate="around %{x:.0f} %: %{y} nodes<extra></extra>",
    )
    text = (
        "One hump is a student that treats all nodes alike; two humps are nodes answered from "
        "structure and nodes answered from features."
    )
    return Figure("gate-histogram", f"{method}: shares of the structure", text, drawn)


def _bands(method: str, report: Row) -> Figure | None:
    shares = report.get("shares")
    if not shares:
        return None
    drawn = empty_plot("", "mean share of the answer (%)")
    drawn.add_bar(
        x=list(shares),
        y=[percent(share) for share in shares.values()],
        marker={"color": [PALETTE[i % len(PALETTE)] for i in range(len(shares))]},
        showlegend=False,
        hovertemplate="%{x}: %{y:.1f} %<extra></extra>",
    )
    drawn.update_xaxes(title="framelet band, or the plain features")
    homophily = report.get("edge_homophily")
    text = (
        "The low-pass band is what neighbours have in common, the others are how they differ. A "
        "student that leans on the low band treats the graph as homophilic, one whose bands are "
        "near 0 answers from features alone"
        + (f"; here {100 * homophily:.0f} % of the edges join one class." if homophily else ".")
    )
    return Figure("bands", f"{method}: which bands answer", text, drawn)


def _energies(method: str, report: Row) -> Figure | None:
    drawn = empty_plot("layer", "Rayleigh quotient, 0 to 2")
    for i, (who, layers) in enumerate(
        (("teacher", report["teacher"]), (method, report["student"]))
    ):
        values = {n: f["rayleigh"] for n, f in (layers or {}).items() if f["rayleigh"] is not None}
        if values:
            drawn.add_scatter(
                x=list(values),
                y=[short(value) for value in values.values()],
                mode="lines+markers",
                name=who,
                line={"color": TEACHER_COLOR if i == 0 else PALETTE[0], "width": 2},
                hovertemplate=f"{who}, %{{x}}: %{{y:.3f}}<extra></extra>",
            )
    if not drawn.data:
        return None
    drawn.update_xaxes(type="category")
    text = (
        "How much a layer's outputs differ along edges: near 0 neighbours are alike (smoothing), "
        "large values are differences kept. A teacher's line that falls towards 0 smooths too much."
    )
    return Figure("energies", f"{method}: energy of the layers", text, drawn)


def _curvature(method: str, histogram: Row | None) -> Figure | None:
    if histogram is None:
        return None
    edges, counts = histogram["edges"], histogram["count"]
    drawn = empty_plot("balanced Forman curvature", "edges")
    drawn.add_bar(
        x=[short((a + b) / 2) for a, b in itertools.pairwise(edges)],
        y=counts,
        width=[short(b - a) for a, b in itertools.pairwise(edges)],
        marker={"color": PALETTE[0]},
        showlegend=False,
        hovertemplate="around %{x:.2f}: %{y} edges<extra></extra>",
    )
    text = (
        "Edges far on the left (towards −2) are bottlenecks through which distant nodes must be "
        "heard; graph surgery removes and relieves those. Edges on the right lie in dense parts."
    )
    return Figure("curvature", f"{method}: curvature of the observed graph", text, drawn)


def _teachers(method: str, report: Row) -> Figure:
    drawn = empty_plot("number of neighbours", "accuracy on observed test nodes (%)")
    who = [*report["teachers"], {"name": method, **report["student"]}]
    for i, one in enumerate(who):
        found = {name: v for name, v in one["by_degree"].items() if v is not None}
        drawn.add_scatter(
            x=list(found),
            y=[percent(value) for value in found.values()],
            mode="lines+markers",
            name=one["name"],
            line={
                "color": PALETTE[i % len(PALETTE)],
                "width": 3 if i == len(who) - 1 else 2,
                "dash": "solid" if i == len(who) - 1 else "dash",
            },
            hovertemplate=f"{one['name']}<br>%{{x}} neighbours: %{{y:.1f}} %<extra></extra>",
        )
    drawn.update_xaxes(type="category")
    together = report["together"]
    text = (
        f"Dashed: the teachers, {100 * together['best']:.1f} % for the best; some teacher is right "
        f"on {100 * together['oracle']:.1f} % of the nodes, which bounds what choosing among them "
        "can give. If lines cross, teachers of different depth are right on different nodes."
    )
    return Figure("teachers", f"{method}: teachers by degree", text, drawn)


def _attention(method: str, report: Row) -> Figure | None:
    attention = report.get("attention")
    if attention is None:
        return None
    filled = {name: f["mean"] for name, f in attention["by_degree"].items() if f is not None}
    drawn = empty_plot("number of neighbours", "mean attention (%)")
    for k, teacher in enumerate(report["teachers"]):
        drawn.add_bar(
            x=list(filled),
            y=[percent(means[k]) for means in filled.values()],
            name=teacher["name"],
            marker={"color": PALETTE[k % len(PALETTE)]},
            hovertemplate=f"{teacher['name']}, %{{x}} neighbours: %{{y:.1f}} %<extra></extra>",
        )
    drawn.update_layout(barmode="stack")
    drawn.update_xaxes(type="category")
    held = "holds" if attention["holds"] else "does not hold"
    rho = attention["rho"]
    measured = "" if rho is None else f" (rank correlation of depth and degree {rho:+.2f})"
    text = (
        "Whom a node of that degree listens to. The paper's claim is that nodes of high degree "
        f"turn to deeper teachers: here it {held}{measured}. Bars alike for all degrees are "
        "attention that does not depend on the node."
    )
    return Figure("attention", f"{method}: attention by degree", text, drawn)


def _layer_map(method: str, report: Row, when: str) -> Figure:
    one = report[when]
    weights = one["attention"]
    drawn = empty_plot("student's layer", "teacher's layer")
    drawn.add_heatmap(
        z=[[percent(value) for value in row] for row in weights],
        x=[str(j + 1) for j in range(len(weights[0]))],
        y=[str(i + 1) for i in range(len(weights))],
        zmin=0,
        zmax=100,
        colorscale="Viridis",
        colorbar={"title": {"text": "attention (%)", "side": "right"}, "thickness": 14},
        hovertemplate="teacher %{y} → student %{x}: %{z:.1f} %<extra></extra>",
    )
    drawn.update_xaxes(type="category")
    drawn.update_yaxes(type="category")
    drawn.update_layout(height=max(280, min(900, 140 + 18 * len(weights))))
    text = (
        "Each row is a teacher layer and sums to 100 %: to which of the student's layers it is "
        "held. Before training rows are nearly even."
        if when == "before"
        else "Compare with the map before: bright cells are pairs of layers that training chose to "
        "match. A column that takes every row is attention that went the easiest way."
    )
    title = f"{method}: layers matched {when} training, epoch {one['epoch']}"
    return Figure(f"layer-map-{when}", title, text, drawn)
