"""How agents learn: functions that families call. Each says what it needs of a world."""

from goalgen.learning.base import Clock, Learned
from goalgen.learning.marginals import spread_steps
from goalgen.learning.pathwise import active_units, learn_pathwise
from goalgen.learning.potential import log_probs, middle_canvases, potential_loss, temperature_loss
from goalgen.learning.soft_value import soft_returns, value_loss, within_goals

__all__ = [
    "Clock",
    "Learned",
    "active_units",
    "learn_pathwise",
    "log_probs",
    "middle_canvases",
    "potential_loss",
    "soft_returns",
    "spread_steps",
    "temperature_loss",
    "value_loss",
    "within_goals",
]
