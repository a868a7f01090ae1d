"""Training: the one loop, seeds, checkpoints, validated hyper-parameters."""

from limbeck.training.loop import Checkpoint, History, batches, fit, seeded
from limbeck.training.options import Options

__all__ = ["Checkpoint", "History", "Options", "batches", "fit", "seeded"]
