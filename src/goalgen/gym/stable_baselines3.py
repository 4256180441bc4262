"""stable-baselines3: episodes as its vectorised environment, and its agents as GC-agents."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from goalgen.errors import GoalgenError
from goalgen.family import Family
from goalgen.gym.episodes import Episodes, Given, GymGCAgent, Observation
from goalgen.model import Model
from goalgen.rng import generator

try:
    from stable_baselines3.common import distributions
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.policies import ActorCriticPolicy
    from stable_baselines3.common.vec_env import VecEnv
except ImportError as _error:
    raise GoalgenError(
        "goalgen.gym.stable_baselines3 needs stable-baselines3: pip install stable-baselines3"
    ) from _error


class GoalVecEnv(VecEnv):
    """``num_envs`` episodes at once, computed as one batch, for any algorithm of stable-baselines3 (``MultiInputPolicy``).

    Args:
        model, goals, num_envs, given: see :class:`goalgen.gym.GoalVectorEnv`.
    """

    def __init__(self, model: Model | Family, goals: Tensor, num_envs: int = 64, given: Given | None = None) -> None:
        self.render_mode: str | None = None
        self.episodes, self._count = Episodes(model, goals, num_envs, given or Given()), 0
        self._from = self.episodes.given.seed
        super().__init__(num_envs, self.episodes.observation_space, self.episodes.action_space)

    def seed(self, seed: int | None = None) -> list[int | None]:
        """Goals and starts that follow depend on ``seed``."""
        if seed is not None:
            self._from, self._count = seed, 0
        return [seed] * self.num_envs

    def reset(self) -> Any:
        """Begin anew."""
        return self._begin()

    def step_async(self, actions: np.ndarray) -> None:
        """Take note of the actions."""
        self._actions = actions

    def step_wait(self) -> Any:
        """Act; an episode that is over begins again at once, its last observation in its info."""
        observation, rewards, told = self.episodes.act(self._actions)
        over = self.episodes.over
        infos = [{key: value[i] for key, value in told.items()} for i in range(self.num_envs)]
        if over:
            for i, info in enumerate(infos):
                info["terminal_observation"] = {key: value[i] for key, value in observation.items()}
                info["TimeLimit.truncated"] = False
            observation = self._begin()
        return observation, rewards.astype(np.float32), np.full(self.num_envs, over), infos

    def close(self) -> None:
        """There is nothing to close."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The same attribute for every episode."""
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute, for all episodes."""
        setattr(self, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """The answer of a method, such as "compute_reward", for every episode."""
        return [getattr(self.episodes, method_name)(*args, **kwargs) for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """No episode is wrapped."""
        return [False for _ in self._get_indices(indices)]

    def _begin(self) -> Observation:
        self._count += 1
        return self.episodes.begin(generator(self._from, "gymnasium", self._count - 1))


def gc_agent(algorithm: BaseAlgorithm, episodes: Episodes) -> GymGCAgent:
    """The agent that an algorithm has trained, as a GC-agent of goalgen.

    Args:
        algorithm: one with an actor-critic policy, such as PPO or A2C: its distribution of actions is known.
        episodes: of the environment it was trained in, ``GoalVecEnv.episodes`` or ``GoalEnv.episodes``.

    Raises:
        GoalgenError: the algorithm's policy is not known in closed form.
    """
    policy = algorithm.policy
    if not isinstance(policy, ActorCriticPolicy) or policy.use_sde:
        kind = type(algorithm).__name__
        raise GoalgenError(f"J needs the distribution of actions, as PPO and A2C without use_sde have it, not {kind}")

    def heads(observation: dict[str, Tensor]) -> tuple[Tensor, ...]:
        said = policy.get_distribution({key: value.to(policy.device) for key, value in observation.items()})
        if isinstance(said, distributions.CategoricalDistribution):
            parts = [said.distribution.logits]
        elif isinstance(said, distributions.MultiCategoricalDistribution):
            parts = [each.logits for each in said.distribution]
        elif type(said) is distributions.DiagGaussianDistribution:
            parts = [said.distribution.mean, said.distribution.stddev]
        else:
            raise GoalgenError(
                f"a {type(said).__name__} has no divergence in closed form; use a policy without squashing"
            )
        return tuple(part.to(observation["observation"].device) for part in parts)

    return GymGCAgent(heads, episodes)
