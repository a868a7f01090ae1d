"""The runtime: reads a bundle and answers, with NumPy and ONNX Runtime only."""

from limbeck.runtime.bundle import Bundle, Manifest, open_bundle, write_bundle
from limbeck.runtime.changes import OverlayCounts, bundle_digest
from limbeck.runtime.explain import BandExplanation, Effect, StructureExplanation
from limbeck.runtime.kernel import Routes
from limbeck.runtime.latency import measure_latency
from limbeck.runtime.live import LiveStructure
from limbeck.runtime.loading import load_bundle
from limbeck.runtime.overlaid import OverlaidStudent, Staleness
from limbeck.runtime.overlay import Overlay
from limbeck.runtime.predictor import BundledStudent
from limbeck.runtime.store import NodeStore

__all__ = [
    "BandExplanation",
    "Bundle",
    "BundledStudent",
    "Effect",
    "LiveStructure",
    "Manifest",
    "NodeStore",
    "OverlaidStudent",
    "Overlay",
    "OverlayCounts",
    "Routes",
    "Staleness",
    "StructureExplanation",
    "bundle_digest",
    "load_bundle",
    "measure_latency",
    "open_bundle",
    "write_bundle",
]
