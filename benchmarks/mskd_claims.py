"""Answers to the three claims of MSKD's paper from finished tables.

    limbeck bench --config benchmarks/mskd.yaml --out runs/mskd
    limbeck bench --config benchmarks/mskd_large.yaml --out runs/mskd_large
    python benchmarks/mskd_claims.py runs/mskd runs/mskd_large

(a) deep teachers are better on nodes of high degree, shallow ones on nodes of low degree;
(b) attention per node is better than one teacher (LSP), than equal weights, than the released
    code's weights, and than no teacher;
(c) attention follows degree, and the teacher that a node follows is right more often than chance.

Figures of (a) and (c) are those of ``limbeck.evaluation.teachers_by_degree``, which the table keeps
in its column ``attention`` (``diagnostics: true``). A claim holds on a graph where it holds in more
than half of the seeds, or, for (b), where the interval of the paired difference excludes zero. The
page is written to benchmarks/results/mskd_claims.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.stats import wilcoxon

from limbeck.evaluation.compare import paired_differences
from limbeck.evaluation.teachers_by_degree import DEGREES, UNIFORM

RESULT = Path(__file__).parent / "results" / "mskd_claims.md"
RESAMPLES = 10_000
Rows = list[dict[str, Any]]
Reports = dict[str, list[dict[str, Any]]]
"""What the diagnostics say of each seed, by graph."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    tables = [pq.read_table(folder / "runs.parquet") for folder in arguments.runs]
    rows: Rows = pa.concat_tables(tables).to_pylist()
    parts = ["# MSKD: what its paper claims, and what was measured", depth_and_degree(rows)]
    for student in ("gnn", "mlp"):
        if any(row["method"].startswith(f"{student}-") for row in rows):
            parts.append(attention_against_others(rows, student))
    parts.append(attention_and_degree(rows))
    arguments.out.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print(arguments.out)


def reports(rows: Rows, method: str) -> Reports:
    """The diagnostics of a method's rows, seed by seed."""
    found: Reports = defaultdict(list)
    for row in rows:
        if row["method"] == method and row["attention"] is not None:
            found[row["graph"]].append(json.loads(row["attention"]))
    return dict(found)


# --- (a) ------------------------------------------------------------------------------------------


def depth_and_degree(rows: Rows) -> str:
    """Teachers by depth, what they know together, and the deepest one's gain by degree."""
    by_graph = reports(rows, "gnn-node")
    accuracy, gain, holds = [], [], 0
    for graph, seeds in by_graph.items():
        names = [f"{teacher['depth']} layers" for teacher in seeds[0]["teachers"]]
        figures = [
            mean_std([100 * seed["teachers"][k]["accuracy"] for seed in seeds])
            for k in range(len(names))
        ]
        together = [
            mean_std([100 * seed["together"][name] for seed in seeds])
            for name in ("best", "average", "oracle")
        ]
        accuracy.append([graph, str(len(seeds)), *figures, *together])
        buckets = [
            over_seeds([100 * b["gain"] for s in seeds if (b := s["depth"]["by_degree"][name])])
            for name in DEGREES
        ]
        depth = [seed["depth"] for seed in seeds]
        clear = sum(d["p"] < 0.01 for d in depth)
        held = sum(d["holds"] for d in depth)
        holds += held > len(seeds) / 2
        rhos = [d["rho"] for d in depth if d["rho"] is not None]
        gain.append([graph, *buckets, mean_std(rhos), f"{clear}", f"{held} of {len(seeds)}"])
    first = next(iter(by_graph.values()))[0]
    depths = [f"{teacher['depth']} layers" for teacher in first["teachers"]]
    return "\n\n".join(
        [
            "## (a) Do deep teachers gain with degree?",
            f"**It holds on {holds} of {len(by_graph)} graphs.** Accuracy of the teachers, of the "
            "mean of their probabilities, and of an oracle that is right where any of them is "
            "(test nodes, %, mean ± standard deviation over seeds):",
            table(
                ["graph", "seeds", *depths, "best of a seed", "average", "oracle"],
                accuracy,
            ),
            "Gain of the deepest teacher over the shallowest by degree, in points, with a "
            "bootstrap interval of 95 % over seeds; Spearman's ρ of a node's gain with its degree, "
            "in how many seeds p < 0.01, and in how many the claim holds (that, and a gain below "
            "zero in the lowest bucket and above zero in the highest):",
            table(["graph", *DEGREES, "ρ", "p < 0.01", "holds"], gain),
        ]
    )


# --- (b) ------------------------------------------------------------------------------------------


def attention_against_others(rows: Rows, student: str) -> str:
    """The attention per node minus every other way, paired by seed."""
    node = f"{student}-node"
    mine = [row for row in rows if row["method"].startswith(f"{student}-")]
    # of a difference "method minus node" the sign is turned
    found = paired_differences(pa.Table.from_pylist(mine), node)
    graphs = list(dict.fromkeys(difference.cell.graph for difference in found))
    methods = [m for m in dict.fromkeys(d.method for d in found) if m != node]
    by_cell = {(d.cell.graph, d.method): d for d in found}
    by_seed = {(row["graph"], row["method"], row["seed"]): row["test_accuracy"] for row in mine}
    lines, verdicts, clear = [], [], {"above": 0, "below": 0, "all": 0}
    for method in methods:
        line, above, below = [method], 0, 0
        for graph in graphs:
            difference = by_cell.get((graph, method))
            if difference is None or difference.low is None or difference.high is None:
                line.append("–")
                continue
            low, high = 0.0 - 100 * difference.high, 0.0 - 100 * difference.low
            above, below = above + (low > 0), below + (high < 0)
            clear["all"] += 1
            p = _wilcoxon(by_seed, graph, node, method)
            line.append(f"{0.0 - 100 * difference.mean:+.2f} [{low:+.2f}, {high:+.2f}], p = {p}")
        lines.append(line)
        verdicts.append(f"{method}: above on {above}, below on {below}")
        clear["above"] += above
        clear["below"] += below
    return "\n\n".join(
        [
            f"## (b) Is attention per node better? Student: {student.upper()}",
            f"**Of {clear['all']} comparisons {clear['above']} are clearly above "
            f"zero and {clear['below']} clearly below.** `{node}` minus each other, in points of "
            "test accuracy: mean over seeds, its bootstrap interval of 95 % (BCa), and "
            "Wilcoxon's signed-rank p. Number of graphs, of "
            f"{len(graphs)}, on which the interval lies above or below zero: "
            + "; ".join(verdicts)
            + ".",
            table(["minus", *graphs], lines),
        ]
    )


def _wilcoxon(figures: dict[tuple[str, str, int], float], graph: str, one: str, other: str) -> str:
    seeds = sorted(s for g, m, s in figures if (g, m) == (graph, one))
    pairs = [
        figures[graph, one, seed] - figures[graph, other, seed]
        for seed in seeds
        if (graph, other, seed) in figures
    ]
    if not any(pairs):
        return "1"
    return f"{wilcoxon(pairs).pvalue:.3f}"


# --- (c) ------------------------------------------------------------------------------------------


def attention_and_degree(rows: Rows) -> str:
    """Whether attention follows degree, and whether it finds the teacher that is right."""
    methods = dict.fromkeys(row["method"] for row in rows if row["attention"] is not None)
    lines, holds, cells = [], 0, 0
    for method in methods:
        for graph, seeds in reports(rows, method).items():
            found = [seed["attention"] for seed in seeds]
            rhos = [f["rho"] for f in found if f["rho"] is not None]
            split = [f for f in found if f["agreement"] is not None]
            held = sum(f["holds"] for f in found)
            holds, cells = holds + (held > len(found) / 2), cells + 1
            lines.append(
                [
                    method,
                    graph,
                    mean_std(rhos),
                    mean_std([f["entropy"] for f in found]),
                    mean_std([100 * f["agreement"] for f in split]),
                    mean_std([100 * f["chance"] for f in split]),
                    over_seeds([100 * (f["agreement"] - f["chance"]) for f in split]),
                    f"{held} of {len(found)}",
                ]
            )
    header = ["method", "graph", "ρ", "entropy", "agreement", "chance", "agreement − chance"]
    return "\n\n".join(
        [
            "## (c) Does attention follow degree?",
            f"**It holds in {holds} of {cells} rows.** Spearman's ρ of the expected depth with the "
            "degree; entropy over its largest value; where teachers disagree, how often the one "
            "that a node follows is right, beside chance, in %, and the difference with its "
            "bootstrap interval over seeds. The claim holds in a seed where ρ > 0 with p < 0.01, "
            f"entropy is at most {UNIFORM}, and agreement is above chance. `equal`, `single` and "
            "`released` attend to all nodes alike.",
            table([*header, "holds"], lines),
        ]
    )


# --- numbers and tables ---------------------------------------------------------------------------


def mean_std(values: Sequence[float]) -> str:
    """Mean ± population standard deviation."""
    if not values:
        return "–"
    return f"{statistics.mean(values):.2f} ± {statistics.pstdev(values):.2f}"


def over_seeds(values: Sequence[float]) -> str:
    """Mean with the percentile bootstrap's interval of 95 %."""
    if not values:
        return "–"
    drawn = np.random.default_rng(0).choice(values, (RESAMPLES, len(values))).mean(1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return f"{statistics.mean(values):+.1f} [{low:+.1f}, {high:+.1f}]"


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *lines))


if __name__ == "__main__":
    main()
