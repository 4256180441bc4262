"""Gymnasium, both ways: goalgen's worlds for other libraries of reinforcement learning, and their worlds for goalgen.

Needs Gymnasium, the extra ``gym``; nothing else in goalgen imports this package. See docs/environments.md.
"""

from __future__ import annotations

from goalgen.errors import GoalgenError

try:
    import gymnasium  # noqa: F401
except ImportError as _error:
    raise GoalgenError("goalgen.gym needs Gymnasium: pip install gymnasium") from _error

from goalgen.gym.episodes import Episodes, Given, GymGCAgent
from goalgen.gym.views import GoalEnv, GoalVectorEnv

__all__ = ["Episodes", "Given", "GoalEnv", "GoalVectorEnv", "GymGCAgent"]
