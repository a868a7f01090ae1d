"""ABKD's table, row by row, and whether our best preset beats the baselines.

    limbeck bench --config benchmarks/abkd_cora.yaml --out runs/abkd_cora
    python benchmarks/abkd_claims.py runs/abkd_cora

One table per student: weights, how many times fewer than the teacher's (without and with tables of
featureless nodes), validation and test accuracy, the difference to the plain student paired by
seed, seconds per epoch, peak memory, what the frozen-student probe leaves of the loss, and the
options that validation chose. Then the ABKD row that does best on validation nodes, controls
aside, minus each baseline. The page is written to benchmarks/results/NAME.md.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from limbeck.evaluation.compare import DEGENERATE_BELOW, TEACHER, Difference, paired_differences

RESULTS = Path(__file__).parent / "results"
RUNG = re.compile(r"-((?:\d+l-)?\d+h)$")
OURS = ("abkd-v1", "e-stride", "s-stride", "stride", "robust")
CONTROLS = ("uniform", "diagonal", "last-layer")
SHOWN = ("beta", "structure_weight", "temperature", "kd_weight", "dropout")
Rows = list[dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    arguments = parser.parse_args()
    rows: Rows = pq.read_table(arguments.runs / "runs.parquet").to_pylist()
    graphs = list(dict.fromkeys(row["graph"] for row in rows))
    parts = [f"# {arguments.runs.name}"]
    for graph in graphs:
        here = [row for row in rows if row["graph"] == graph]
        teacher = [row for row in here if row["method"] == TEACHER]
        rungs = dict.fromkeys(m[1] for row in here if (m := RUNG.search(row["method"])))
        beside = sorted({r["method"] for r in here if not RUNG.search(r["method"])} - {TEACHER})
        parts.append(f"Teacher on {graph}: {described(teacher)}.")
        for name in beside:
            others = [row for row in here if row["method"] == name]
            parts.append(f"Beside it, `{name}`: {described(others)}.")
        for rung in rungs:
            mine = [row for row in here if row["method"].endswith(f"-{rung}")]
            parts += of_rung(mine, teacher, rung)
    target = RESULTS / f"{arguments.runs.name}.md"
    target.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print(target)


def of_rung(rows: Rows, teacher: Rows, rung: str) -> list[str]:
    """The table of all students of one size, and our best row against the others."""
    names = list(dict.fromkeys(row["method"] for row in rows))
    by_name = {name: [row for row in rows if row["method"] == name] for name in names}
    runs = pa.Table.from_pylist(rows)
    to_plain = differences(runs, f"plain-{rung}")
    weights, stored = sizes(teacher[0])
    lines = []
    for name, found in by_name.items():
        mine, mine_stored = sizes(found[0])
        ratios = [row["probe_ratio"] for row in found if row["probe_ratio"] is not None]
        probe = statistics.median(ratios) if ratios else None
        lines.append(
            [
                name.removesuffix(f"-{rung}"),
                f"{mine:,}",
                f"{weights / mine:.1f}",
                f"{stored / mine_stored:.1f}",
                mean_std(found, "val_accuracy"),
                mean_std(found, "test_accuracy"),
                interval(to_plain.get(name)),
                f"{statistics.median(r['train_seconds'] / r['epochs'] for r in found):.3f}",
                f"{max(row['peak_mb'] for row in found):,.0f}",
                "–" if probe is None else f"{probe:.2g}{' †' * (probe < DEGENERATE_BELOW)}",
                chosen(found[0]),
            ]
        )
    header = [
        *("method", "weights", "ratio", "with tables", "val", "test", "minus plain"),
        *("s / epoch", "peak MB", "probe", "chosen"),
    ]
    parts = [f"## {rung}, {len({row['seed'] for row in rows})} seeds", table(header, lines)]
    ours = [name for name in names if is_ours(name, rung)]
    if not ours:
        return parts
    best = max(ours, key=lambda n: statistics.mean(r["val_accuracy"] for r in by_name[n]))
    to_best = differences(runs, best)
    baselines = [name for name in names if not is_ours(name, rung) and not is_control(name, rung)]
    gaps = {name: turned(to_best[name]) for name in baselines if name in to_best}
    clear = [name for name, gap in gaps.items() if gap[1] > 0]
    body = [[name.removesuffix(f"-{rung}"), text(gap)] for name, gap in gaps.items()]
    return [
        *parts,
        f"Best of ours on validation nodes: **{best.removesuffix(f'-{rung}')}**. It is above "
        f"{len(clear)} of {len(gaps)} baselines with an interval that excludes zero.",
        table([f"{best.removesuffix(f'-{rung}')} minus", "points of test accuracy"], body),
    ]


def is_ours(name: str, rung: str) -> bool:
    """Whether a row is one of ABKD's, with logits or without."""
    return name.removesuffix(f"-{rung}").removeprefix("kd+").startswith(OURS)


def is_control(name: str, rung: str) -> bool:
    """Whether a row is a control of the attention."""
    return name.removesuffix(f"-{rung}").removeprefix("kd+") in CONTROLS


def differences(runs: pa.Table, reference: str) -> dict[str, Difference]:
    """Paired differences to a row, by the name of the other."""
    return {found.method: found for found in paired_differences(runs, reference)}


def turned(difference: Difference) -> tuple[float, float, float]:
    """Reference minus method, in points: mean, low, high; the mean thrice with one seed."""
    low = difference.mean if difference.high is None else difference.high
    high = difference.mean if difference.low is None else difference.low
    return 0.0 - 100 * difference.mean, 0.0 - 100 * low, 0.0 - 100 * high


def interval(difference: Difference | None) -> str:
    """A difference with its interval."""
    if difference is None or difference.low is None or difference.high is None:
        return "–"
    return text((100 * difference.mean, 100 * difference.low, 100 * difference.high))


def text(gap: tuple[float, float, float]) -> str:
    """Mean, low and high of a difference."""
    return f"{gap[0]:+.2f} [{gap[1]:+.2f}, {gap[2]:+.2f}]"


def sizes(row: dict[str, Any]) -> tuple[int, int]:
    """Weights without and with tables that grow with the graph."""
    stored = int(row["parameters"])
    return stored - int(row["table_parameters"] or 0), stored


def chosen(row: dict[str, Any]) -> str:
    """The options that validation nodes chose among candidates."""
    options = json.loads(row["options"])
    return ", ".join(f"{name} {options[name]}" for name in SHOWN if name in options)


def described(rows: Rows) -> str:
    """Size and accuracy of what is no student of the ladder."""
    weights, stored = sizes(rows[0])
    tables = "" if weights == stored else f" ({stored:,} with tables)"
    return f"{weights:,} weights{tables}, test {mean_std(rows, 'test_accuracy')} %"


def mean_std(rows: Rows, column: str) -> str:
    """Mean ± population standard deviation over seeds, in percent."""
    values = [100 * row[column] for row in rows]
    return f"{statistics.mean(values):.2f} ± {statistics.pstdev(values):.2f}"


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *lines))


if __name__ == "__main__":
    main()
