"""A Gymnasium goal environment as a world of goalgen: goals from a data set, no gradient, every state a function of the actions.

A Gymnasium environment keeps its state to itself. So a state of goalgen holds what is seen *and* the actions that led there: an
environment that has taken them goes on, or else one is reset to the same seed and takes them again. What is not decided by
seed and actions cannot be a world of goalgen.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from goalgen.environment import Continuous, Discrete, Environment
from goalgen.errors import GoalgenError
from goalgen.families.world import WorldFamily
from goalgen.family import Plan
from goalgen.likelihoods import PixelLikelihood

POOL = 256
"""Environments that are kept where they stand, to go on from there."""

KNOWN = 100_000
"""Steps whose outcome is remembered, the first so many."""

REACHED = 0.25
"""Scale of the likelihood of goals, of half the distance between two of their levels: a goal that is reached has 0.96 a number."""


class GymEnvironment(Environment):
    """A Gymnasium environment with goals, seen as a stateless world of H steps.

    A canvas (d, 1, 1) is the achieved goal, its bounds scaled to [-1, 1]. A state is a row: achieved goal, observation, whether
    the episode is over, how many actions were taken, and these. Its own desired goal, rewards and initial canvas play no part.

    Args:
        make: makes one such environment.
        horizon: H.
        seed: of every reset.
        markov: what is seen (observation and achieved goal) and the step decide what follows, however one came there. Outcomes
            are then remembered by these, not by all actions so far, and few steps are taken twice.

    Raises:
        GoalgenError: it has no goals, or spaces that are not known here, or does otherwise when it is asked again.
    """

    black_box = True

    def __init__(
        self, make: Callable[[], gymnasium.Env[Any, Any]], horizon: int, seed: int = 0, markov: bool = False
    ) -> None:
        super().__init__()
        self.make, self.horizon, self.seed, self.markov = make, horizon, seed, markov
        env = make()
        space = env.observation_space
        wanted = {"observation", "achieved_goal", "desired_goal"}
        if not isinstance(space, spaces.Dict) or not wanted <= set(space.spaces):
            raise GoalgenError(f"a goal environment observes a Dict with {', '.join(sorted(wanted))}, not {space}")
        goal = space["achieved_goal"]
        if not isinstance(goal, spaces.Box) or not (
            np.isfinite([goal.low, goal.high]).all() and (goal.low < goal.high).all()
        ):
            raise GoalgenError(f"achieved goals must be a Box with bounds, not {goal}; wrap it to say what they are")
        self.low, self.high = (bound.astype(np.float64).reshape(-1) for bound in (goal.low, goal.high))
        self.seen_space, self.gym_actions = space["observation"], env.action_space
        self.action_space = _actions(env.action_space)
        self.goal_size, self.seen_size = len(self.low), spaces.flatdim(self.seen_space)
        self.action_size = int(np.prod(self.action_space.shape))
        self.state_shape = (self.goal_size + self.seen_size + 2 + horizon * self.action_size,)
        self._standing: OrderedDict[bytes, gymnasium.Env[Any, Any]] = OrderedDict()
        _check_repeats(env, horizon, seed)
        self._free = [env]
        self._known: dict[bytes, np.ndarray] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> GymEnvironment:
        # An average of the weights copies the family, and not every Gymnasium environment can be copied.
        return GymEnvironment(self.make, self.horizon, self.seed, self.markov)

    @property
    def canvas_shape(self) -> tuple[int, ...]:
        return (self.goal_size, 1, 1)

    def canvas(self, state: Tensor) -> Tensor:
        return state[:, : self.goal_size, None, None]

    def sight(self, state: Tensor) -> Tensor:
        """Observation and whether it is over; not the actions."""
        return state[:, self.goal_size : self.goal_size + self.seen_size + 1]

    def ended(self, state: Tensor) -> Tensor:
        return state[:, self.goal_size + self.seen_size] > 0

    def initial(self, canvas: Tensor) -> Tensor:
        env = self._free.pop() if self._free else self.make()
        observation, _ = env.reset(seed=self.seed)
        self._free.append(env)
        row = self._row(observation, False, np.zeros((0, self.action_size), np.float32))
        return torch.as_tensor(row).to(canvas).repeat(len(canvas), 1)

    @torch.no_grad()
    def transition(self, h: Tensor, state: Tensor, action: Tensor, offer: Any) -> Tensor:
        rows = state.cpu().numpy()
        taken = action.reshape(len(action), -1).float().cpu().numpy()
        after = [self._step(row, own) for row, own in zip(rows, taken, strict=True)]
        return torch.as_tensor(np.stack(after)).to(state)

    def goals(self, achieved: np.ndarray, levels: int) -> Tensor:
        """Goals (N, d) in the environment's own units as a data set has them, (N, d, 1, 1) uint8 levels.

        Raises:
            GoalgenError: they lie outside of the space of goals.
        """
        achieved = np.asarray(achieved, np.float64).reshape(len(achieved), -1)
        if achieved.shape[1] != self.goal_size or not ((achieved >= self.low) & (achieved <= self.high)).all():
            raise GoalgenError(
                f"goals must be (N, {self.goal_size}) within {self.low.tolist()} and {self.high.tolist()}"
            )
        share = (achieved - self.low) / (self.high - self.low)
        return torch.as_tensor(np.rint(share * (levels - 1)).astype(np.uint8))[:, :, None, None]

    def achieved(self, canvases: Tensor) -> np.ndarray:
        """What canvases (N, d, 1, 1) in [-1, 1] are in the environment's own units, (N, d), to six decimals: a canvas has no more."""
        share = (canvases.flatten(1).double().cpu().numpy() + 1) / 2
        return np.round(share * (self.high - self.low) + self.low, 6)

    def _row(self, observation: dict[str, Any], over: bool, history: np.ndarray) -> np.ndarray:
        achieved = np.asarray(observation["achieved_goal"], np.float64).reshape(-1)
        scaled = (achieved - self.low) / (self.high - self.low) * 2 - 1
        seen = spaces.flatten(self.seen_space, observation["observation"])
        past = np.zeros(self.horizon * self.action_size, np.float32)
        past[: history.size] = history.reshape(-1)
        return np.concatenate([scaled, np.asarray(seen), [over, len(history)], past]).astype(np.float32)

    def _step(self, row: np.ndarray, action: np.ndarray) -> np.ndarray:
        start = self.goal_size + self.seen_size
        over, count = row[start] > 0, int(row[start + 1])
        if over:
            return row.copy()
        history = row[start + 2 : start + 2 + count * self.action_size].reshape(count, self.action_size)
        step = (row[: start + 2].tobytes() if self.markov else history.tobytes()) + action.tobytes()
        if (known := self._known.get(step)) is not None:
            after = known.copy()
            after[start + 2 : start + 2 + history.size] = row[start + 2 : start + 2 + history.size]
            return after
        env = self._standing.pop(history.tobytes(), None) or self._again(history)
        observation, _, terminated, truncated, _ = env.step(self._given(action))
        history = np.concatenate([history, action[None]])
        if terminated or truncated:
            self._free.append(env)
        else:
            self._standing[history.tobytes()] = env
        after = self._row(observation, terminated or truncated, history)
        if len(self._known) < KNOWN:
            self._known[step] = after
        return after.copy()

    def _again(self, history: np.ndarray) -> gymnasium.Env[Any, Any]:
        """An environment that has taken these actions."""
        if self._free:
            env = self._free.pop()
        elif len(self._standing) >= POOL:
            _, env = self._standing.popitem(last=False)
        else:
            env = self.make()
        env.reset(seed=self.seed)
        for action in history:
            env.step(self._given(action))
        return env

    def _given(self, action: np.ndarray) -> Any:
        """An action as the environment has it."""
        space = self.gym_actions
        if isinstance(space, spaces.Discrete):
            return int(action[0]) + int(space.start)
        if isinstance(space, spaces.MultiDiscrete):
            return action.astype(space.dtype).reshape(space.shape)
        assert isinstance(space, spaces.Box)
        middle, half = (space.high + space.low) / 2, (space.high - space.low) / 2
        return np.clip(middle + half * action.reshape(space.shape), space.low, space.high).astype(space.dtype)


def _check_repeats(env: gymnasium.Env[Any, Any], horizon: int, seed: int) -> None:
    """Refuse an environment that seed and actions do not decide, as far as one episode shows."""

    def episode() -> list[np.ndarray]:
        observation, _ = env.reset(seed=seed)
        env.action_space.seed(seed)
        found = [observation]
        for _ in range(horizon):
            observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
            found.append(observation)
            if terminated or truncated:
                break
        space = env.observation_space
        return [np.array(spaces.flatten(space, one)) for one in found]

    first, again = episode(), episode()
    if len(first) != len(again) or any(not np.array_equal(a, b) for a, b in zip(first, again, strict=True)):
        raise GoalgenError(
            f"{type(env.unwrapped).__name__} does not do the same again with the same seed and actions; a world of goalgen is "
            "decided by them: take all chance from self.np_random"
        )


def _actions(space: spaces.Space[Any]) -> Discrete | Continuous:
    if isinstance(space, spaces.Discrete):
        return Discrete(int(space.n))
    if isinstance(space, spaces.MultiDiscrete) and len(np.unique(space.nvec)) == 1:
        return Discrete(int(space.nvec.flat[0]), int(space.nvec.size))
    if isinstance(space, spaces.Box) and np.isfinite([space.low, space.high]).all():
        return Continuous((int(np.prod(space.shape)),))
    raise GoalgenError(f"actions must be Discrete, MultiDiscrete of one size, or a Box with bounds, not {space}")


class GymFamily(WorldFamily):
    """Both agents in a Gymnasium goal environment: a subclass has a ``name`` and :meth:`make_gym`. Goals are numbers (d, 1, 1).

    Goals are there to be reached, so how near counts as reached is not learned: the scale of p(g | x_H) is :data:`REACHED`.
    """

    markov = False
    """whether what is seen and the step decide what follows, see :class:`GymEnvironment`"""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        assert isinstance(self.likelihood, PixelLikelihood)
        # A scale that were learned would grow as long as goals are missed, and they would then be missed for good.
        scale = self.likelihood.log_scale_bias.requires_grad_(False)
        scale.fill_(math.log(REACHED / (plan.levels - 1)))

    @classmethod
    @abstractmethod
    def make_gym(cls) -> gymnasium.Env[Any, Any]:
        """One environment."""

    @classmethod
    def world(cls, plan: Plan) -> GymEnvironment:
        return GymEnvironment(cls.make_gym, plan.horizon, markov=cls.markov)
