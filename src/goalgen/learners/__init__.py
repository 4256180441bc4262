"""How the agents learn: one learner for each kind of GC-agent."""

from goalgen.learners.base import Learned, Learner, make_learner, register_learner, replay
from goalgen.learners.marginals import MarginalLearner, spread_steps
from goalgen.learners.pathwise import PathwiseLearner, active_units
from goalgen.learners.potential import PotentialLearner, potential_loss, temperature_loss
from goalgen.learners.soft_value import SoftValueLearner, soft_returns, within_goals

register_learner("marginals", MarginalLearner)
register_learner("pathwise", PathwiseLearner)
register_learner("potential", PotentialLearner)
register_learner("soft_value", SoftValueLearner)

__all__ = [
    "Learned",
    "Learner",
    "MarginalLearner",
    "PathwiseLearner",
    "PotentialLearner",
    "SoftValueLearner",
    "active_units",
    "make_learner",
    "potential_loss",
    "register_learner",
    "replay",
    "soft_returns",
    "spread_steps",
    "temperature_loss",
    "within_goals",
]
