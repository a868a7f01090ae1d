"""Time of a training epoch: an MLP, RbM of the same width, and RbM in its reference formulation.

    python benchmarks/rbm_epoch.py

The reference gathers the rows of each expert, multiplies them with PyTorch's own products and
dropout and adds the answers up with ``index_add``, as the released code does. All three take turns,
epoch by epoch, in one process with one thread. The table is written to
benchmarks/results/rbm_epoch.md.
"""

from __future__ import annotations

import math
import statistics
import time
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

import limbeck
from limbeck.graphs.sparse import is_csr, take_rows, with_values
from limbeck.methods.losses import soft_target_loss
from limbeck.students import MLP, NodeInputs
from limbeck.students.experts import Routing, bounded_exp, largest, unit
from limbeck.students.rbm import RbM, RbMLayer

RESULT = Path(__file__).with_name("results") / "rbm_epoch.md"
ROUNDS = 30
CASES = [
    # graph, layers, width, experts, chosen
    ("cpf-cora", 2, 128, 4, 3),
    ("cpf-cora", 3, 512, 4, 3),
    ("a-computer", 2, 128, 5, 3),
]


class ReferenceLayer(RbMLayer):
    """The layer with PyTorch's products, expert by expert."""

    def forward(self, h: Tensor) -> tuple[Tensor, Routing | None]:
        """As :class:`RbMLayer`."""
        rows = unit(h)
        similarity = rows @ unit(self.memory).detach().t()
        chosen = largest(similarity, self.top_k)
        gates = similarity.masked_fill(~chosen, -math.inf).softmax(1)
        out = torch.zeros(h.shape[0], cast(torch.nn.Linear, self.experts[0]).out_features)
        for e, expert in enumerate(self.experts):
            own = gates[:, e].nonzero().squeeze(1)
            mine = take_rows(h, own)
            if is_csr(mine):
                mine = with_values(mine, F.dropout(mine.values(), self.dropout, self.training))
            else:
                mine = F.dropout(mine, self.dropout, self.training)
            out = out.index_add(0, own, gates[own, e].detach().unsqueeze(1) * expert(mine))
        if self.training:
            with torch.no_grad():
                weight = gates.masked_fill(gates == 0, -math.inf).softmax(0).nan_to_num(0.0)
                centers = weight.t() @ rows
                self.memory.copy_(self.momentum * unit(self.memory) + (1 - self.momentum) * centers)
        return bounded_exp(self.log_scale) * out, Routing(similarity, gates)


def main() -> None:
    """Measure all cases and write the table."""
    torch.set_num_threads(1)
    lines = [
        "# Training epoch",
        "",
        "`python benchmarks/rbm_epoch.py`: one epoch is one step of Adam on all nodes, soft labels",
        f"and RbM's three losses; medians of {ROUNDS} epochs that take turns, one thread, torch",
        f"{torch.__version__}.",
        "",
        "| graph | layers × width | E, k | MLP ms | RbM ms | RbM / MLP | reference ms "
        "| RbM / reference |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for graph, layers, width, experts, chosen in CASES:
        mlp, ours, reference = measure(graph, layers, width, experts, chosen)
        lines.append(
            f"| {graph} | {layers} × {width} | {experts}, {chosen} | {1e3 * mlp:.1f} | "
            f"{1e3 * ours:.1f} | {ours / mlp:.2f} | {1e3 * reference:.1f} "
            f"| {ours / reference:.2f} |"
        )
        print(lines[-1], flush=True)
    RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")


def measure(
    graph: str, layers: int, width: int, experts: int, chosen: int
) -> tuple[float, float, float]:
    """Median seconds per epoch of the MLP, of RbM, and of its reference formulation."""
    view = limbeck.view(limbeck.load_graph(graph), "transductive", 0)
    inputs = NodeInputs(view.observed.x)
    target = torch.randn(view.num_observed, view.num_classes)
    shape = (view.num_features, width, view.num_classes, layers)
    torch.manual_seed(0)
    students: list[torch.nn.Module] = [MLP(*shape, dropout=0.3)]
    for layer in (RbMLayer, ReferenceLayer):
        student = RbM(*shape, experts, chosen, dropout=0.3)
        student.convert(inputs)
        for part in student.layers:
            part.__class__ = layer
        students.append(student.train())
    optimizers = [torch.optim.Adam(s.parameters(), lr=0.01, fused=True) for s in students]
    seconds: list[list[float]] = [[], [], []]
    for round_ in range(ROUNDS + 3):
        for student, optimizer, times in zip(students, optimizers, seconds, strict=True):
            started = time.perf_counter()
            if isinstance(student, RbM):
                logits, routings, _ = student.trace(inputs)
                loss = soft_target_loss(logits, target)
                loss = loss + student.auxiliary_loss(routings, 0.05, 0.01, 0.01)
            else:
                loss = soft_target_loss(student(inputs), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if round_ >= 3:
                times.append(time.perf_counter() - started)
    mlp, ours, reference = (statistics.median(times) for times in seconds)
    return mlp, ours, reference


if __name__ == "__main__":
    main()
