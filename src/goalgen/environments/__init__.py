"""Worlds in which actions build a canvas."""

from goalgen.environments.base import (
    ActionSpace,
    ChoiceEnvironment,
    Continuous,
    Discrete,
    Environment,
    action_log_probs,
    action_probs,
)
from goalgen.environments.checker import check_environment
from goalgen.environments.proposals import ProposalsEnvironment

__all__ = [
    "ActionSpace",
    "ChoiceEnvironment",
    "Continuous",
    "Discrete",
    "Environment",
    "ProposalsEnvironment",
    "action_log_probs",
    "action_probs",
    "check_environment",
]
