"""Episodes as Gymnasium environments: many at once, or one."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from torch import Tensor

from goalgen.data import from_unit, to_bytes
from goalgen.family import Family
from goalgen.gym.episodes import Episodes, Given, Observation
from goalgen.model import Model
from goalgen.rng import generator


class _Resets:
    """Seeds: the goals and starts of episode n depend on the seed of the last seeded reset and on n."""

    episodes: Episodes

    def _begin(self, seed: int | None, options: dict[str, Any] | None) -> Observation:
        if seed is not None or not hasattr(self, "_seed"):
            self._seed, self._count = self.episodes.given.seed if seed is None else seed, 0
        source = generator(self._seed, "gymnasium", self._count)
        self._count += 1
        return self.episodes.begin(source, (options or {}).get("goals"))

    def compute_reward(self, achieved_goal: np.ndarray, desired_goal: np.ndarray, info: Any) -> Any:
        """What steps pay, one or a batch; see :meth:`goalgen.gym.episodes.Episodes.compute_reward`."""
        return self.episodes.compute_reward(achieved_goal, desired_goal, info)


class GoalVectorEnv(_Resets, gymnasium.vector.VectorEnv[Observation, Any, np.ndarray]):
    """``num_envs`` episodes at once, computed as one batch. They all end after H steps, and begin again at the next one.

    ``reset(options={"goals": [3, 0, ...]})`` names the goal of each episode.

    Args:
        model: a model, or a family (trained or not).
        goals: (G, C, height, width) uint8 grey levels.
        num_envs: how many.
        given: see :class:`goalgen.gym.episodes.Given`.

    Raises:
        GoalgenError: goals, labels or start do not fit the model.
    """

    def __init__(self, model: Model | Family, goals: Tensor, num_envs: int = 64, given: Given | None = None) -> None:
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP, "render_modes": []}
        self.episodes = Episodes(model, goals, num_envs, given or Given())
        self.num_envs = num_envs
        self.single_observation_space = self.episodes.observation_space
        self.single_action_space = self.episodes.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin anew. With the same seed the same goals and starts follow."""
        super().reset(seed=seed)
        return self._begin(seed, options), {}

    def step(self, actions: Any) -> tuple[Observation, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Act; in the step after the last one of an episode actions are not read, and the next begins."""
        never = np.zeros(self.num_envs, dtype=bool)
        if self.episodes.over:
            return self._begin(None, None), np.zeros(self.num_envs), never, never.copy(), {}
        observation, rewards, infos = self.episodes.act(actions)
        told: dict[str, Any] = dict(infos)
        told.update({f"_{key}": ~never for key in infos})
        return observation, rewards, np.full(self.num_envs, self.episodes.over), never, told


class GoalEnv(_Resets, gymnasium.Env[Observation, Any]):
    """One episode at a time; see :class:`GoalVectorEnv`, which is much faster for many."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012 # as in the class above

    def __init__(
        self, model: Model | Family, goals: Tensor, given: Given | None = None, render_mode: str | None = None
    ) -> None:
        self.episodes, self.render_mode = Episodes(model, goals, 1, given or Given()), render_mode
        self.observation_space, self.action_space = self.episodes.observation_space, self.episodes.action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin anew. With the same seed the same goals and starts follow."""
        super().reset(seed=seed)
        return _row(self._begin(seed, options)), {}

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Act."""
        observation, rewards, infos = self.episodes.act(np.asarray(action)[None])
        return _row(observation), float(rewards[0]), self.episodes.over, False, _row(infos)

    def render(self) -> np.ndarray | None:
        """The canvas, (height, width, 3) uint8."""
        if self.render_mode != "rgb_array":
            return None
        family = self.episodes.family
        canvas = family.environment.canvas(self.episodes.state).cpu()
        picture = to_bytes(from_unit(canvas, family.levels), family.levels)[0]
        picture = picture if len(picture) == 3 else picture[:1].expand(3, -1, -1)
        return picture.permute(1, 2, 0).contiguous().numpy()


def _row(batch: dict[str, np.ndarray]) -> dict[str, Any]:
    return {key: value[0] for key, value in batch.items()}
