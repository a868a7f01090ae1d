"""Time and peak memory of the structure loss against the form that writes E x d matrices down.

Each figure is of a process of its own, on a graph of random edges: one forward and backward pass
of the loss of one student layer, after one that compiles and warms up.

    python benchmarks/structure_loss.py
    python benchmarks/structure_loss.py --widths 128 --repeats 1

The first of these writes benchmarks/results/structure_loss.md, too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import median

import psutil
import torch

from limbeck.methods.local_structure import (
    Neighborhoods,
    edge_log_softmax,
    local_divergence,
    local_log_probs,
)

RESULT = Path(__file__).parent / "results" / "structure_loss.md"
SIGMA = 100.0


def naive(hidden: torch.Tensor, theirs: torch.Tensor, edges: Neighborhoods) -> torch.Tensor:
    """The same loss with plain tensor operations: differences are an ``[E, d]`` matrix."""
    distance = (hidden[edges.senders] - hidden[edges.receivers]).abs().sum(1)
    ours = edge_log_softmax(torch.exp(-distance / SIGMA), edges)
    per_edge = theirs.exp() * (theirs - ours)
    return per_edge.new_zeros(edges.num_receivers).index_add(0, edges.receivers, per_edge)


FORMS = {"ours": local_divergence, "naive": naive}


class PeakMemory:
    """The process's memory beyond what it was, watched while a block runs, in MB."""

    def __enter__(self) -> PeakMemory:
        self.process, self.running = psutil.Process(), True
        self.before = self.most = self.process.memory_info().rss
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while self.running:
            self.most = max(self.most, self.process.memory_info().rss)
            time.sleep(0.002)

    def __exit__(self, *_: object) -> None:
        self.running = False
        self.thread.join()

    @property
    def extra_mb(self) -> float:
        return (self.most - self.before) / 1e6


def measure(form: str, nodes: int, num_edges: int, width: int, repeats: int) -> dict[str, float]:
    torch.manual_seed(0)
    edges = Neighborhoods.of(torch.randint(nodes, (2, num_edges)), nodes)
    theirs = local_log_probs(torch.randn(nodes, width), edges)
    hidden = torch.randn(nodes, width, requires_grad=True)
    edges.receivers  # noqa: B018  computed once per graph, not per step

    def step() -> torch.Tensor:
        hidden.grad = None
        loss = FORMS[form](hidden, theirs, edges).mean()
        loss.backward()
        return loss.detach()

    with PeakMemory() as peak:
        loss = step()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    assert hidden.grad is not None
    return {
        "seconds": median(seconds),
        "extra_mb": peak.extra_mb,
        "loss": float(loss),
        "gradient": float(hidden.grad.norm()),
        "edges": edges.num_edges,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=100_000)
    parser.add_argument("--edges", type=int, default=1_000_000)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 128, 512])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--form", choices=FORMS, help="measure this one, here, for one width")
    arguments = parser.parse_args()
    shape = (arguments.nodes, arguments.edges)
    if arguments.form:
        found = measure(arguments.form, *shape, arguments.widths[0], arguments.repeats)
        print(json.dumps(found))
        return
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    say("# The structure loss and the form that writes E × d matrices down")
    say("")
    say(
        f"{shape[0]:,} nodes, {shape[1]:,} edges and self-loops, one forward and backward pass, "
        f"{torch.get_num_threads()} threads:"
    )
    say("")
    say("| width d | form | seconds | extra memory (MB) | loss | gradient norm |")
    say("|---|---|---|---|---|---|")
    for width in arguments.widths:
        for form in FORMS:
            command = [sys.executable, __file__, "--form", form, "--widths", str(width)]
            command += ["--nodes", str(shape[0]), "--edges", str(shape[1])]
            command += ["--repeats", str(arguments.repeats)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                say(f"| {width} | {form} | out of memory | | | |")
                continue
            found = json.loads(done.stdout)
            say(
                f"| {width} | {form} | {found['seconds']:.2f} | {found['extra_mb']:.0f} | "
                f"{found['loss']:.6f} | {found['gradient']:.3e} |"
            )
    if len(sys.argv) == 1:
        RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
