"""From a trained student to the folder that answers: ONNX, the card, the bundle."""

from limbeck.export.bundle import export_bundle
from limbeck.export.card import make_card
from limbeck.export.onnx import ParityError, known_logits, to_onnx, to_sparse_onnx

__all__ = ["ParityError", "export_bundle", "known_logits", "make_card", "to_onnx", "to_sparse_onnx"]
