"""What the compiled kernels of the runtime read of a student: its layers as arrays."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from limbeck.export.folded import (
    Array,
    Block,
    CorrectedExperts,
    Experts,
    Gate,
    Linear,
    Memories,
    affine,
    as_array,
    feed_forward_blocks,
    fold,
    hidden_block,
    linear_of,
    mlp_layers,
)
from limbeck.export.onnx import (
    ParityError,
    RawStudent,
    Scaling,
    check_parity,
    clearly_routed,
    input_widths,
    random_rows,
)
from limbeck.export.sums import summed
from limbeck.runtime.bundle import (
    BANDS_CHAINS,
    HEAD_CHAINS,
    LONE_CHAINS,
    LONE_SUM_CHAINS,
    MOST_BANDS,
    MOST_EXPERTS,
    PREDICTOR_CHAIN,
    STUDENT_CHAIN,
    SUM_CHAINS,
    FoldedBands,
    FoldedEntry,
    HeadEntry,
    LayerEntry,
)
from limbeck.runtime.native import HAS_KERNELS, answer_of_network, head_name, layer_name
from limbeck.students.fmlp import FMLP, FMLPO, BandEncoders
from limbeck.students.linkx import LINKX
from limbeck.students.neighbor_mlp import NeighborMLP
from limbeck.students.sa_mlp import SAMLP, FeedForward, Head


@dataclass(frozen=True)
class Compiled:
    """A student as the kernels read it.

    Args:
        entry: What the manifest says of it.
        arrays: Its arrays by their names in the store.
    """

    entry: FoldedEntry
    arrays: Mapping[str, Array]

    @property
    def fields(self) -> dict[str, Any]:
        """The manifest's field ``folded``."""
        if self.entry.is_mlp:
            return {"widths": list(self.entry.widths)}
        fields = asdict(self.entry)
        if self.entry.bands is None:
            del fields["bands"]
        return fields


@torch.no_grad()
def compile_student(
    student: torch.nn.Module,
    scaling: Scaling | None = None,
    *,
    probe: tuple[Tensor, ...] | None = None,
) -> Compiled | None:
    """A student of features, or features and positions, as the kernels read it.

    Args:
        student: The student; it is left as it is.
        scaling: What ``x`` was standardised with in training. In an MLP it is folded into the first
            layer, where that costs no accuracy.
        probe: Raw dense inputs to compare with torch on; normal random numbers by default.

    Returns:
        ``None`` for a student that the kernels have no form for: one that Limbeck does not know,
        experts that share a map, or more than 64 of them in a layer.

    Raises:
        OptionError: The student reads something else.
        ParityError: The kernels answer otherwise than torch.
    """
    raw_student = RawStudent(copy.deepcopy(student), scaling).cpu().eval()
    blocks = fold(raw_student.student)
    if blocks is None or any(not _has_form(block) for block in blocks):
        return None
    widths = input_widths(student)
    rows = random_rows(scaling, widths) if probe is None else probe
    rows = clearly_routed(raw_student, rows)
    expected = raw_student(*rows).numpy()
    maps = mlp_layers(blocks, scaling) if len(widths) == 1 else None
    if maps is not None:
        folded = _mlp(maps)
        try:
            check_parity(expected, _by_numpy(maps, rows[0].float().numpy()))
        except ParityError:  # features are too large for their deviation to be folded
            pass
        else:
            return folded
    builder = _Builder()
    builder.add(STUDENT_CHAIN, blocks)
    if scaling is not None:
        builder.add_scaling(scaling)
    compiled = builder.compiled()
    if HAS_KERNELS:
        answer = answer_of_network(compiled.entry, compiled.arrays, sum(widths[1:]))
        found = answer(*(np.ascontiguousarray(part.float().numpy()) for part in rows))
        assert found is not None
        check_parity(expected, found)
    return compiled


@torch.no_grad()
def compile_structure(
    student: SAMLP | LINKX | NeighborMLP, scaling: Scaling | None = None
) -> Compiled:
    """A student that reads neighbours as the kernels read it, but for its table.

    Args:
        student: The student, on the CPU and in eval mode; one without a gate folded, see
            :func:`~limbeck.export.sums.fold_sum`.
        scaling: What ``x`` was standardised with in training.
    """
    builder = _Builder()
    if scaling is not None:
        builder.add_scaling(scaling)
    if not isinstance(student, SAMLP):
        form = summed(student)
        networks = {SUM_CHAINS: [form.encoder, *form.rest]}
        if form.lone is not None:
            networks[LONE_SUM_CHAINS] = form.lone
        for (encoder, from_sum), (first, *rest) in networks.items():
            builder.add(encoder, [replace(first, relu=False)])  # that of the sum
            builder.add(from_sum, rest)
        return builder.compiled()
    heads = [student.head]
    if student.routed:
        builder.add(PREDICTOR_CHAIN, _with_scaling(student, feed_forward_blocks(student.predictor)))
        heads += [] if student.lone_head is None else [student.lone_head]
    for i, (head, chains) in enumerate(zip(heads, (HEAD_CHAINS, LONE_CHAINS), strict=False)):
        encoder, from_structure, from_features = chains
        block = hidden_block(linear_of(head.feature_encoder), head.feature_norm)
        builder.add(encoder, _with_scaling(student, [block]))
        builder.add(from_structure, feed_forward_blocks(head.structure_decoder))
        builder.add(from_features, feed_forward_blocks(head.feature_decoder))
        builder.add_head(i, head)
    builder.arrays["folded_structure_bias"] = as_array(student.structure_bias)
    return builder.compiled(unit_sum=student.scaling.kind == "row")


@torch.no_grad()
def compile_bands(student: FMLP, scaling: Scaling | None = None) -> Compiled | None:
    """A student that reads bands as the kernels read it.

    Args:
        student: The student, an FMLP-O, FMLP-S or FMLP-X, on the CPU and in eval mode.
        scaling: What ``x`` was standardised with in training.

    Returns:
        ``None`` for more than 64 bands or layers.
    """
    reader, layers = student.reader, student.reader.num_powers
    if max(reader.num_bands, layers) > MOST_BANDS:
        return None
    coefficients = reader.in_channels if isinstance(reader, BandEncoders) else 0
    released = student.gate_rule == "released"
    bands = FoldedBands(layers, reader.num_bands, coefficients, student.tied, released)
    builder = _Builder()
    encoder, re_encoder, from_features = BANDS_CHAINS
    has_hidden = isinstance(student, FMLPO)
    builder.add(encoder, [Block(linear_of(student.feature_encoder), relu=has_hidden)])
    last_gate = student.gate
    if isinstance(student, FMLPO):
        builder.add(re_encoder, [Block(linear_of(student.re_encoder), relu=True)])
        last_gate = last_gate if student.output_gate is None else student.output_gate
    builder.add(from_features, feed_forward_blocks(student.feature_head))
    for name, head in zip(bands.heads, student.heads, strict=True):
        builder.add(name, feed_forward_blocks(cast(FeedForward, head)))
    if student.fallback == "predictor":
        assert student.predictor is not None
        builder.add(PREDICTOR_CHAIN, feed_forward_blocks(student.predictor))
    if scaling is not None:
        builder.add_scaling(scaling)
    gates = [student.gate] * (layers - 1) + [last_gate]
    builder.arrays["folded_gate"] = as_array(torch.cat([gate.weight for gate in gates]))
    builder.arrays["folded_gate_bias"] = as_array(torch.cat([gate.bias for gate in gates]))
    if isinstance(reader, BandEncoders):
        encoders = [cast(torch.nn.Linear, module) for module in reader.encoders]
        weight = torch.stack([lin.weight.t() for lin in encoders])
        builder.arrays["folded_bands_weight"] = as_array(weight)
        builder.arrays["folded_bands_bias"] = as_array(torch.stack([lin.bias for lin in encoders]))
        builder.arrays["folded_bands_factor"] = as_array(1 / reader.scale)
    return builder.compiled(bands=bands)


class _Builder:
    """Collects layers and their arrays."""

    def __init__(self) -> None:
        self.arrays: dict[str, Array] = {}
        self.chains: dict[str, tuple[LayerEntry, ...]] = {}
        self.heads: list[HeadEntry] = []
        self.scaled = False

    def add(self, chain: str, blocks: Sequence[Block]) -> None:
        """Add a chain of layers."""
        layers = []
        for i, block in enumerate(blocks):
            entry, parts = _layer(block)
            layers.append(entry)
            self.arrays |= {layer_name(part, i, chain): array for part, array in parts.items()}
        self.chains[chain] = tuple(layers)

    def add_head(self, i: int, head: Head) -> None:
        """Add the gate of a head, and the norm of the structure's part."""
        self.arrays[head_name("gate", i)] = as_array(head.gate.weight.flatten())
        self.arrays[head_name("gate_bias", i)] = as_array(head.gate.bias)
        norm = head.structure_norm
        kind, epsilon = "none", 0.0
        if isinstance(norm, torch.nn.LayerNorm):
            kind, epsilon = "layer", norm.eps
            weight, bias = as_array(norm.weight), as_array(norm.bias)
        elif isinstance(norm, torch.nn.BatchNorm1d):
            kind = "affine"
            weight, bias = affine(norm)
        if kind != "none":
            self.arrays |= {head_name("norm", i): weight, head_name("norm_bias", i): bias}
        self.heads.append(HeadEntry(kind, epsilon))

    def add_scaling(self, scaling: Scaling) -> None:
        """Add what features are standardised with."""
        self.scaled = True
        mean, deviation = (as_array(vector.cpu()) for vector in scaling)
        self.arrays |= {"folded_mean": mean, "folded_deviation": deviation}

    def compiled(self, *, unit_sum: bool = False, bands: FoldedBands | None = None) -> Compiled:
        """All of it."""
        entry = FoldedEntry(self.chains, tuple(self.heads), self.scaled, unit_sum, bands)
        return Compiled(entry, self.arrays)


def _has_form(block: Block) -> bool:
    if isinstance(block.map, CorrectedExperts):
        return False
    return isinstance(block.map, Linear) or len(block.map.bias) <= MOST_EXPERTS


def _mlp(maps: Sequence[Linear]) -> Compiled:
    builder = _Builder()
    last = len(maps) - 1
    builder.add(STUDENT_CHAIN, [Block(layer, relu=i < last) for i, layer in enumerate(maps)])
    return builder.compiled()


def _by_numpy(maps: Sequence[Linear], rows: Array) -> Array:
    for i, layer in enumerate(maps):
        rows = (rows if i == 0 else np.maximum(rows, 0)) @ layer.weight + layer.bias
    return rows


def _layer(block: Block) -> tuple[LayerEntry, dict[str, Array]]:
    """What the manifest says of a layer, and its arrays by part."""
    layer = block.map
    assert not isinstance(layer, CorrectedExperts)
    parts: dict[str, Array] = {"weight": layer.weight, "bias": layer.bias}
    entry = LayerEntry(layer.weight.shape[-2], layer.weight.shape[-1], block.relu)
    if isinstance(layer, Experts):
        entry = replace(entry, experts=len(layer.bias), top_k=layer.top_k)
        if isinstance(layer.chooser, Memories):
            parts["chooser"] = layer.chooser.directions
        else:
            assert isinstance(layer.chooser, Gate)
            project = layer.chooser.project
            entry = replace(entry, gate=len(project.bias))
            parts |= {
                "chooser": layer.chooser.columns,
                "project": project.weight,
                "project_bias": project.bias,
            }
    if block.shift is not None:
        entry = replace(entry, shift=True)
        parts["shift"] = block.shift
    if block.norm is not None:
        place = "behind relu" if block.norm_last else "before relu"
        entry = replace(entry, norm=place, epsilon=block.norm.epsilon)
        parts |= {"norm": block.norm.weight, "norm_bias": block.norm.bias}
    return entry, parts


def _with_scaling(student: SAMLP, blocks: list[Block]) -> list[Block]:
    """The same on features as they are before the student's own standardisation."""
    if student.scaling.kind != "standard":
        return blocks
    first = cast(Linear, blocks[0].map)
    deviation, mean = as_array(student.scaling.deviation), as_array(student.scaling.mean)
    weight = first.weight / deviation[:, None]
    return [replace(blocks[0], map=Linear(weight, first.bias - mean @ weight)), *blocks[1:]]
