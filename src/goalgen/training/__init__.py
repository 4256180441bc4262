"""The training loop and what it keeps on disk."""

from goalgen.training.loop import Outcome, train

__all__ = ["Outcome", "train"]
