"""Restoring images that are damaged already, with a model whose start is a function of the goal."""

from goalgen.restoration.drawing import Restoration, Restored, Restorer, RestoringModel

__all__ = ["Restoration", "Restored", "Restorer", "RestoringModel"]
