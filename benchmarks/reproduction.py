"""Our tables beside what papers print: how far each mean is from the published one.

limbeck bench --config benchmarks/cpf.yaml --workers 2 --out runs/cpf
limbeck bench --config benchmarks/nosmog.yaml --workers 2 --out runs/nosmog
limbeck bench --config benchmarks/core.yaml --workers 2 --out runs/core
limbeck bench --config benchmarks/full.yaml --workers 2 --out runs/full
limbeck bench --config benchmarks/full_imdb.yaml --workers 2 --out runs/full_imdb
limbeck bench --config benchmarks/large.yaml --workers 2 --out runs/large
python benchmarks/reproduction.py runs/cpf runs/nosmog runs/core runs/full runs/full_imdb \
    runs/large --out benchmarks/results/reproduction.md

Of tables that have the same graph, setting, teacher and method, the first one given counts. A gap
is ours minus theirs in points, beside it the same in standard errors of the difference of two
means, from both standard deviations and numbers of seeds; theirs is taken to have ten seeds, which
is what these papers say. What is beyond two of them, ``docs/reproduction.md`` explains.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq

from limbeck.evaluation.compare import compare
from limbeck.evaluation.published import Beside, Published, beside

THEIR_SEEDS = 10
FAR = 2.0


class Pair(NamedTuple):
    """A published number, ours, and the table that ours is from."""

    number: Published
    mean: float
    std: float
    num_seeds: int
    table: str

    @property
    def gap(self) -> float:
        """Ours minus theirs, in points."""
        return self.mean - self.number.mean

    @property
    def errors(self) -> float | None:
        """The gap in standard errors; ``None`` where they print no deviation."""
        if self.number.std is None:
            return None
        ours = self.std**2 / max(self.num_seeds - 1, 1)  # of the population's deviation
        return self.gap / math.sqrt(ours + self.number.std**2 / THEIR_SEEDS)


def pairs_of(folders: list[Path]) -> list[Pair]:
    """All numbers that papers and we have, in the papers' order."""
    found: dict[Published, Pair] = {}
    for folder in folders:
        every: list[Beside] = beside(compare(pq.read_table(folder / "runs.parquet")))
        for number, mean, std, seeds in every:
            if mean is not None and std is not None and number not in found:
                found[number] = Pair(number, mean, std, seeds, folder.name)
    order = list(dict.fromkeys(pair.number.source for pair in found.values()))
    return sorted(found.values(), key=lambda pair: order.index(pair.number.source))


def page(pairs: list[Pair]) -> Iterator[str]:
    """The lines of the page."""
    told = [pair for pair in pairs if pair.errors is not None]
    far = [pair for pair in told if abs(pair.errors or 0) > FAR]
    yield "# Our tables beside the papers'\n"
    higher = sum(pair.gap > 0 for pair in far)
    yield f"{len(pairs)} published numbers have one of ours beside them, {len(told)} with a"
    yield f"deviation. Of those, {len(told) - len(far)} lie within two standard errors of ours"
    yield f"and {len(far)} beyond (bold): {higher} of ours higher, {len(far) - higher} lower."
    source = ""
    for pair in pairs:
        number = pair.number
        if number.source != source:
            source = number.source
            yield f"\n## {source}\n"
            yield f"{number.protocol} Quoted from our {number.line}; {number.read}.\n"
            yield "| graph | setting | method | published | ours | seeds | gap | errors | table |"
            yield "|---" * 9 + "|"
        theirs = f"{number.mean:.2f}" + ("" if number.std is None else f" ± {number.std:.2f}")
        ours = f"{pair.mean:.2f} ± {pair.std:.2f}"
        errors = "–" if pair.errors is None else f"{pair.errors:+.1f}"
        if pair in far:
            errors = f"**{errors}**"
        cells = [number.graph, number.setting, number.method, theirs, ours, str(pair.num_seeds)]
        yield "| " + " | ".join([*cells, f"{pair.gap:+.2f}", errors, pair.table]) + " |"


def main() -> None:
    """Compare, and print or write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="+", type=Path, help="folders of finished tables")
    parser.add_argument("--out", type=Path, help="file to write instead of printing")
    arguments = parser.parse_args()
    names = " ".join(f"runs/{folder.name}" for folder in arguments.tables)
    text = "\n".join(page(pairs_of(arguments.tables)))
    text += f"\n\n`python benchmarks/reproduction.py {names}`\n"
    if arguments.out is None:
        print(text)
    else:
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
