"""goalgen: generative models learned with goal-conditioned reinforcement learning.

import goalgen

outcome = goalgen.train(goalgen.configure(out="runs/digits", data="digits", max_seconds=120.0))
model = goalgen.load(outcome.folder)
images = model.sample(16, seed=0).images
"""

from typing import TYPE_CHECKING, Any

from goalgen.config import Config, DataConfig, ModelConfig, TrainingConfig
from goalgen.errors import GoalgenError

if TYPE_CHECKING:
    from goalgen.check import check_environment, check_family
    from goalgen.data import load_data
    from goalgen.evaluation import evaluate
    from goalgen.families import register
    from goalgen.family import Family
    from goalgen.model import Model, load
    from goalgen.settings import configure, load_preset
    from goalgen.training import train

__version__ = "0.1.0"

__all__ = [
    "Config",
    "DataConfig",
    "Family",
    "GoalgenError",
    "Model",
    "ModelConfig",
    "TrainingConfig",
    "check_environment",
    "check_family",
    "configure",
    "evaluate",
    "load",
    "load_data",
    "load_preset",
    "register",
    "train",
]

_LAZY = {
    "Family": "goalgen.family",
    "Model": "goalgen.model",
    "check_environment": "goalgen.check",
    "check_family": "goalgen.check",
    "configure": "goalgen.settings",
    "evaluate": "goalgen.evaluation",
    "load": "goalgen.model",
    "load_data": "goalgen.data",
    "load_preset": "goalgen.settings",
    "register": "goalgen.families",
    "train": "goalgen.training",
}


def __getattr__(name: str) -> Any:
    # torch is imported when first needed, so that `goalgen --help` answers at once.
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'goalgen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
