"""How quick training is: one GLNN on cpf-cora, and our loop beside a plain PyTorch one.

    LIMBECK_DATA=... python benchmarks/train_speed.py

The plain loop is what a person would write in a notebook: the same network, loss, optimiser and
validation, all nodes in one batch, nothing recorded and nothing checked. It is timed with the
features dense, as a notebook has them, and in CSR form, as ours are. Loops alternate epoch by epoch
of one process, and the ratio of medians over ``ROUNDS`` rounds is printed.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import limbeck
from limbeck.graphs.sparse import is_csr
from limbeck.methods import make_method
from limbeck.training import seeded

ROUNDS = 7
EPOCHS = 200


def plain_loop(x: torch.Tensor, view: limbeck.View, soft: torch.Tensor) -> float:
    """Seconds that a hand-written full-batch loop takes for ``EPOCHS`` epochs of GLNN."""
    options = make_method("glnn", view.info.dataset)
    model = torch.nn.Sequential(
        torch.nn.Linear(view.num_features, 128),
        torch.nn.ReLU(),
        torch.nn.Dropout(options.dropout),
        torch.nn.Linear(128, view.num_classes),
    )
    adam = torch.optim.Adam(
        model.parameters(), lr=options.lr, weight_decay=options.weight_decay, fused=True
    )
    target = soft.log_softmax(1)
    x_val = x.to_dense()[view.val].to_sparse_csr() if is_csr(x) else x[view.val]
    y_val = view.observed.y[view.val]
    best, state = -1.0, None
    start = time.perf_counter()
    for _ in range(EPOCHS):
        model.train()
        adam.zero_grad()
        log_student = model(x).log_softmax(1)
        loss = F.kl_div(log_student, target, reduction="batchmean", log_target=True)
        loss.backward()
        adam.step()
        model.eval()
        with torch.no_grad():
            accuracy = float((model(x_val).argmax(1) == y_val).float().mean())
        if accuracy >= best:
            best, state = accuracy, {k: v.clone() for k, v in model.state_dict().items()}
    seconds = time.perf_counter() - start
    assert state is not None
    return seconds


def our_loop(view: limbeck.View, teacher: object, **options: object) -> float:
    """Seconds that ``fit`` takes for the same."""
    method = make_method("glnn", view.info.dataset, patience=EPOCHS, **options)
    with seeded(0):
        history = method.distill(view, teacher.knowledge).history
    assert len(history.val_score) == EPOCHS
    return history.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graph", default="cpf-cora")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    view = limbeck.view(limbeck.load_graph(arguments.graph), "transductive", 0)
    teacher = limbeck.fit_teacher(view, "sage", 0)
    soft, x = teacher.knowledge.logits, view.observed.x
    dense = x.to_dense() if is_csr(x) else x

    start = time.perf_counter()
    run = limbeck.distill(view, teacher, "glnn", 0, patience=EPOCHS)
    whole = time.perf_counter() - start
    epochs = len(run.history.val_score)

    times: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for label, seconds in (
            ("ours, full batch", our_loop(view, teacher, batch_size=None)),
            ("plain, full batch, features as ours", plain_loop(x, view, soft)),
            ("plain, full batch, dense features", plain_loop(dense, view, soft)),
            ("ours, batches of 512", our_loop(view, teacher)),
        ):
            times.setdefault(label, []).append(1000 * seconds / EPOCHS)
    ours = times["ours, full batch"]
    lines = [
        "# Training speed",
        "",
        f"One GLNN distillation on {arguments.graph}, teacher cached, {epochs} epochs in batches "
        f"of 512, scoring included: **{whole:.2f} s** on {arguments.threads} threads.",
        "",
        "| loop | ms per epoch, median | min | max | ours / it, median of rounds |",
        "|---|---|---|---|---|",
    ]
    for label, values in times.items():
        ratio = statistics.median(a / b for a, b in zip(ours, values, strict=True))
        lines.append(
            f"| {label} | {statistics.median(values):.2f} | {min(values):.2f} | {max(values):.2f} "
            f"| {ratio:.2f} |"
        )
    lines += [
        "",
        f"`python benchmarks/train_speed.py --graph {arguments.graph} --threads "
        f"{arguments.threads}`, {ROUNDS} rounds in turn, {EPOCHS} epochs each; Python "
        f"{platform.python_version()}, torch {torch.__version__}, {platform.machine()}.",
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    Path(__file__).with_name("results").joinpath("train_speed.md").write_text(text)


if __name__ == "__main__":
    main()
