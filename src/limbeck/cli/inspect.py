"""``limbeck inspect``: what a bundle is and what it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from limbeck.cli.output import show_json, show_table

if TYPE_CHECKING:
    from limbeck.runtime.bundle import RoutingEntry


def inspect(bundle: Path, *, json: bool = False) -> None:
    """Check a bundle's files and print what it was made from and how well it does.

    Args:
        bundle: Folder of the bundle.
        json: Print limbeck.json.
    """
    import json as json_module

    from limbeck.runtime.bundle import MANIFEST, open_bundle

    opened = open_bundle(bundle)
    if json:
        show_json(json_module.loads((opened.path / MANIFEST).read_text(encoding="utf-8")))
        return
    manifest = opened.manifest
    scores = {who: figures for who, figures in manifest.scores.items() if figures}
    rows = [
        ("method", manifest.method),
        ("student", manifest.student),
        ("teacher", manifest.teacher.get("name")),
        ("setting", manifest.setting),
        ("graph", f"{manifest.graph.name} ({manifest.graph.source})"),
        ("known nodes", manifest.graph.counts.get("nodes")),
        ("labels, any of" if manifest.several_labels else "classes", ", ".join(manifest.classes)),
        ("reads", ", ".join(f"{i.name} [{i.width}] {i.dtype}" for i in manifest.inputs)),
        ("experts", _experts(manifest.routing)),
        ("temperature", f"{manifest.temperature:.4f}"),
        ("files", f"{len(manifest.files)}, all checksums right"),
    ]
    show_table(str(bundle), ("", "value"), rows)
    names = [n for n in next(iter(scores.values()), {}) if n != "slices"]
    table = [[n, *[_figure(figures.get(n)) for figures in scores.values()]] for n in names]
    show_table("scores", ("", *scores), table)


def _experts(layers: Sequence[RoutingEntry]) -> str:
    """How many experts a node uses in each layer, and of how many."""
    return ", ".join(f"{layer.top_k} of {layer.experts}" for layer in layers) or "none"


def _figure(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "–" if value is None else str(value)
