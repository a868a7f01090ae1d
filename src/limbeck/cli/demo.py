"""``limbeck demo``: the whole path on a graph that travels with the package."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from limbeck.cli.output import console, percent, say, show_json, show_table

ASK = """
import json, sys, time
start = time.perf_counter()
import limbeck
student = limbeck.load(sys.argv[1])
answer = student.predict(nodes=sys.argv[2:])
seconds = time.perf_counter() - start
assert "torch" not in sys.modules and "torch_geometric" not in sys.modules
print(json.dumps({"classes": answer.tolist(), "seconds": seconds}))
"""


def demo(
    *, out: Path = Path("demo-run"), seed: int = 0, json: bool = False, quiet: bool = False
) -> None:
    """Distil a GNN on WordNet's nouns and compare teacher, MLP and student on unseen nodes.

    Args:
        out: Folder of the bundle.
        seed: Seed of the split, the teacher and the students.
        json: Print JSON.
        quiet: Show no progress.
    """
    import json as json_module

    import limbeck
    from limbeck.evaluation.memory import keep_freed_memory
    from limbeck.runtime.bundle import check_target
    from limbeck.runtime.latency import measure_latency

    check_target(out)
    started = time.monotonic()
    progress = not quiet
    if progress:
        say("wordnet: 82,115 nouns; node = sense, edge = pointer, class = lexicographer file")
    keep_freed_memory()
    view = limbeck.view(limbeck.load_graph("wordnet"), "inductive", seed)
    teacher = limbeck.fit_teacher(view, "sage", seed, progress=progress)
    if progress:
        say(f"teacher sage: {teacher.train_seconds:.0f} s of training")
    runs = {}
    for name in ("mlp", "glnn"):
        runs[name] = limbeck.distill(view, teacher, name, seed, progress=progress, resume=True)
        if progress:
            say(f"student {name}: {runs[name].history.seconds:.0f} s of training")
    bundle = runs["glnn"].save(out, latency=measure_latency)
    examples = [str(view.info.node_ids[i]) for i in view.nodes[view.test_unseen[:3]].tolist()]
    answer = subprocess.run(
        [sys.executable, "-c", ASK, str(bundle), *examples],
        check=True,
        capture_output=True,
        text=True,
    )
    said = json_module.loads(answer.stdout)
    document = {
        "bundle": str(bundle),
        "test_accuracy": {
            "teacher": runs["glnn"].scores["teacher"]["test_accuracy"],
            "mlp": runs["mlp"].scores["student"]["test_accuracy"],
            "glnn": runs["glnn"].scores["student"]["test_accuracy"],
        },
        "cold_start_accuracy": {
            "teacher": runs["glnn"].in_setting("cold-start").scores["teacher"]["test_accuracy"],
            "mlp": runs["mlp"].in_setting("cold-start").scores["student"]["test_accuracy"],
            "glnn": runs["glnn"].in_setting("cold-start").scores["student"]["test_accuracy"],
        },
        "unseen_nodes": len(view.test_unseen),
        "answers": dict(zip(examples, said["classes"], strict=True)),
        "seconds_to_first_answer": said["seconds"],
        "seconds": time.monotonic() - started,
    }
    if json:
        show_json(document)
        return
    figures = limbeck.load(bundle).manifest.latency or {}
    rows = [
        (
            who,
            percent(document["test_accuracy"][who]),
            percent(document["cold_start_accuracy"][who]),
        )
        for who in ("teacher", "mlp", "glnn")
    ]
    show_table(
        f"wordnet, {document['unseen_nodes']:,} nodes never seen in training, accuracy in %",
        ("", "with their edges", "without edges"),
        rows,
    )
    out_console = console()
    one = figures["x"]["1"]
    out_console.print(
        f"\nbundle {bundle}: one new node in {one['p50_us']:.0f} µs (p99 {one['p99_us']:.0f}), "
        f"first answer of a fresh process without torch after {said['seconds']:.2f} s:"
    )
    for node, answer_class in document["answers"].items():
        out_console.print(f"  {node} → {answer_class}")
    out_console.print(f"\nall of it took {document['seconds']:.0f} s. Ask it yourself:")
    out_console.print(f"  limbeck predict {bundle} --nodes {' '.join(examples)}")
