"""Names of what can be chosen, ours and those that other packages add.

Each kind has one table of ``name → "module:attribute"``; nothing is imported before it is
asked for. Another package adds a name through an entry point in the group
``limbeck.methods`` or ``limbeck.teachers``.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from limbeck.errors import unknown_name

METHODS = {
    "mlp": "limbeck.methods.mlp:PlainMLP",
    "glnn": "limbeck.methods.glnn:GLNN",
    "nosmog": "limbeck.methods.nosmog:NOSMOG",
    "krd": "limbeck.methods.krd:KRD",
    "ff-g2m": "limbeck.methods.ff_g2m:FFG2M",
    "rbm": "limbeck.methods.rbm:RoutingByMemory",
    "moe": "limbeck.methods.moe:MixtureOfExperts",
    "sa-mlp": "limbeck.methods.sa_mlp:StructureAwareMLP",
    "sa-mlp-labels": "limbeck.methods.sa_mlp:StructureAwareLabels",
    "limbeck": "limbeck.methods.limbeck:Limbeck",
    "linkx": "limbeck.methods.linkx:LINKXOnLabels",
    "ensemble": "limbeck.methods.ensemble:EnsembleOfGLNNs",
    "plain": "limbeck.methods.plain:PlainStudent",
    "kd": "limbeck.methods.kd:KD",
    "fitnet": "limbeck.methods.fitnet:FitNet",
    "at": "limbeck.methods.at:AttentionTransfer",
    "lsp": "limbeck.methods.lsp:LSP",
    "mskd": "limbeck.methods.mskd:MSKD",
    "gsp": "limbeck.methods.gsp:GSP",
    "g-crd": "limbeck.methods.g_crd:GCRD",
    "abkd": "limbeck.methods.abkd:ABKD",
    "fmlp-o": "limbeck.methods.fmlp:FMLPOriginal",
    "fmlp-s": "limbeck.methods.fmlp:FMLPSimplified",
    "fmlp-x": "limbeck.methods.fmlp:FMLPFeatures",
}

TEACHERS = {
    "sage": "limbeck.teachers.sage:SAGEOptions",
    "gcn": "limbeck.teachers.gcn:GCNOptions",
    "gat": "limbeck.teachers.gat:GATOptions",
    "appnp": "limbeck.teachers.appnp:APPNPOptions",
    "sgc": "limbeck.teachers.sgc:SGCOptions",
    "gcnii": "limbeck.teachers.gcnii:GCNIIOptions",
    "gpr-gnn": "limbeck.teachers.gpr_gnn:GPRGNNOptions",
    "linkx": "limbeck.teachers.linkx:LINKXOptions",
    "rgcn": "limbeck.teachers.rgcn:RGCNOptions",
    "framelet-original": "limbeck.teachers.framelet:OriginalFrameletOptions",
    "framelet-simplified": "limbeck.teachers.framelet:SimplifiedFrameletOptions",
    "framelet-spectral": "limbeck.teachers.framelet:SpectralFrameletOptions",
}


@cache
def names(kind: str) -> dict[str, str]:
    """All names of a kind (``"method"`` or ``"teacher"``) and where each is defined."""
    ours = {"method": METHODS, "teacher": TEACHERS}[kind]
    theirs = {point.name: point.value for point in entry_points(group=f"limbeck.{kind}s")}
    return {**theirs, **ours}


def resolve(kind: str, name: str) -> Any:
    """Import what a name stands for.

    Raises:
        OptionError: There is no such name; the nearest one is given.
    """
    if name not in names(kind):
        raise unknown_name(kind, name, names(kind))
    module, _, attribute = names(kind)[name].partition(":")
    return getattr(import_module(module), attribute)
