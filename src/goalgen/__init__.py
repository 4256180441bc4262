"""goalgen: generative models learned with goal-conditioned reinforcement learning.

import goalgen

outcome = goalgen.train(goalgen.Config(out="runs/digits"))
model = goalgen.load(outcome.folder)
images = model.sample(16, seed=0).images
"""

from typing import TYPE_CHECKING, Any

from goalgen.config import Config, DataConfig, ModelConfig, TrainingConfig, load_preset
from goalgen.errors import GoalgenError

if TYPE_CHECKING:
    from goalgen.data import load_data
    from goalgen.evaluation import evaluate
    from goalgen.model import Model, load
    from goalgen.training import train

__version__ = "0.1.0"

__all__ = [
    "Config",
    "DataConfig",
    "GoalgenError",
    "Model",
    "ModelConfig",
    "TrainingConfig",
    "evaluate",
    "load",
    "load_data",
    "load_preset",
    "train",
]

_LAZY = {
    "Model": "goalgen.model",
    "load": "goalgen.model",
    "train": "goalgen.training",
    "evaluate": "goalgen.evaluation",
    "load_data": "goalgen.data",
}


def __getattr__(name: str) -> Any:
    # torch is imported when first needed, so that `goalgen --help` answers at once.
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'goalgen' has no attribute {name!r}")
