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
from goalgen.environments.bridge import BridgeEnvironment, Reading, Schedule, even_schedule
from goalgen.environments.checker import check_environment
from goalgen.environments.latent import Decoder, LatentEnvironment
from goalgen.environments.mixture import GaussianMixture
from goalgen.environments.proposals import ProposalsEnvironment

__all__ = [
    "ActionSpace",
    "BridgeEnvironment",
    "ChoiceEnvironment",
    "Continuous",
    "Decoder",
    "Discrete",
    "Environment",
    "GaussianMixture",
    "LatentEnvironment",
    "ProposalsEnvironment",
    "Reading",
    "Schedule",
    "action_log_probs",
    "action_probs",
    "check_environment",
    "even_schedule",
]
