"""The training loop and what it keeps on disk."""

from goalgen.training.entry import train
from goalgen.training.loop import Outcome

__all__ = ["Outcome", "train"]
