"""How the agents learn: one learner for each kind of GC-agent."""

from goalgen.learners.base import Learned, Learner, make_learner, register_learner, replay
from goalgen.learners.potential import PotentialLearner, potential_loss, temperature_loss
from goalgen.learners.soft_value import SoftValueLearner, soft_returns, within_goals

register_learner("potential", PotentialLearner)
register_learner("soft_value", SoftValueLearner)

__all__ = [
    "Learned",
    "Learner",
    "PotentialLearner",
    "SoftValueLearner",
    "make_learner",
    "potential_loss",
    "register_learner",
    "replay",
    "soft_returns",
    "temperature_loss",
    "within_goals",
]
