"""Episodes of any family as another library of reinforcement learning sees them, and an agent of such a library as the GC-agent.

An observation is a dict: ``observation``, the state and how much of the episode is over (with labels: the label, one-hot);
``achieved_goal``, the canvas; ``desired_goal``, the goal: rows of float32. All episodes are in the same step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from goalgen.agents import Agents, Decision, GCAgent, Seen
from goalgen.composite import Autoregressive, Composite
from goalgen.data import to_unit
from goalgen.environment import ActionSpace, Discrete
from goalgen.errors import GoalgenError
from goalgen.family import Family
from goalgen.model import Model
from goalgen.policies import Categorical, Gaussian, Policy
from goalgen.rng import generator
from goalgen.rollout import advance
from goalgen.starts import ImageStart, Start

ROWS = 32
"""Rewards are computed in blocks of so many rows, the last one filled up: arithmetic on another number of rows may round
otherwise, and the reward of a step must be the same number when it is asked for again, alone or in a batch."""

Observation = dict[str, Any]
"""``observation``, ``achieved_goal`` and ``desired_goal``, (N, ...) each."""

Phi = Callable[[Seen, Tensor], Tensor]
"""Phi_h(x, g), (B,) nats, of what is seen and goals (B, C, height, width)."""


@dataclass(frozen=True)
class Given:
    """What episodes are made of beside the model and its goals."""

    labels: Tensor | Sequence[int] | None = None
    """a label for each goal, (N,), of a model that is conditioned on labels"""
    start: str | Tensor | Start | None = None
    """initial state: of a :class:`goalgen.model.Model` see :meth:`goalgen.model.Model.start`; of a family a start or a canvas
    (C, height, width) in [-1, 1]. Unset: what the model was trained with, or the mean of the goals"""
    pay_prior: bool = False
    """an action also costs -log p(a | x_h) nats. With its own entropy as a bonus of weight 1, as maximum-entropy learners have
    it, a GC-agent's return is then -J: E_q[log p - log q] is -KL. Unset: only the goal is paid for"""
    shaping: bool | Phi = False
    """pay the progress of a potential step by step, which leaves the best policy as it is where nothing is discounted
    (Ng et al. 1999; equation 8); True: the potential is log p(g | x_h)"""
    reach: float | None = None
    """numbers of an action are given in [-1, 1] and multiplied by this; unset: 3 (standard deviations, as a rule), or 1 where
    actions are values of pixels"""
    see_offer: bool = False
    """the observation also holds what the S-agent offers, where that is a tensor: the images of a proposal to choose from"""
    worst: float = -1e6
    """least that the goal pays, nats: some worlds (reveals) call a canvas that is not the goal impossible, and no learner
    takes an infinite reward"""
    seed: int = 0
    """of goals and starts, where a reset names none"""


def action_space(space: ActionSpace) -> spaces.Space[Any]:
    """The Gymnasium space of a goalgen action space: Discrete, MultiDiscrete, or Box in [-1, 1]."""
    if isinstance(space, Discrete):
        single = space.cells == 1
        return spaces.Discrete(space.num_actions) if single else spaces.MultiDiscrete([space.num_actions] * space.cells)
    if isinstance(space, Composite):
        return spaces.MultiDiscrete(list(space.sizes))
    return spaces.Box(-1.0, 1.0, (math.prod(space.shape),), np.float32)


def to_action(space: ActionSpace, actions: Any, reach: float) -> Tensor:
    """Actions (B, *shape) as goalgen has them, of actions (B, ...) as :func:`action_space` has them."""
    found = torch.as_tensor(np.asarray(actions))
    if isinstance(space, Discrete | Composite):
        found = found.long().reshape(len(found), -1)
        return space.canonical(found) if isinstance(space, Composite) else found
    return (found.float() * reach).reshape(len(found), *space.shape)


def observe(family: Agents, seen: Seen, goal: Tensor, offer: Tensor | None = None) -> dict[str, Tensor]:
    """The observation of B episodes, tensors on the device of the states.

    Args:
        seen: step, states, labels.
        goal: (B, C, height, width) in [-1, 1].
        offer: (B, ...), where it is to be seen.
    """
    state = seen.state
    parts = [family.environment.sight(state), (seen.rows.to(state.dtype) / family.horizon).unsqueeze(1)]
    if seen.label is not None:
        parts.append(torch.nn.functional.one_hot(seen.label, family.num_labels).to(state.dtype))
    if offer is not None:
        parts.append(offer.flatten(1))
    return {
        "observation": torch.cat(parts, 1),
        "achieved_goal": family.environment.canvas(state).flatten(1),
        "desired_goal": goal.flatten(1),
    }


class Episodes:
    """N episodes in the same step, of a family's world, each told a goal.

    Args:
        model: a model, or a family (trained or not).
        goals: (G, C, height, width) uint8 grey levels.
        num: N.
        given: see :class:`Given`.

    Raises:
        GoalgenError: goals, labels or start do not fit the model.
    """

    def __init__(self, model: Model | Family, goals: Tensor, num: int, given: Given) -> None:
        family = self.family = model.family if isinstance(model, Model) else model.eval()
        if num < 1:
            raise GoalgenError(f"the number of environments must be at least 1, not {num}")
        if goals.dtype != torch.uint8 or tuple(goals.shape[1:]) != family.shape or not len(goals):
            shape = f"(N, {', '.join(map(str, family.shape))})"
            raise GoalgenError(f"goals must be uint8 of shape {shape}, not {goals.dtype} of {tuple(goals.shape)}")
        if int(goals.max()) >= family.levels:
            raise GoalgenError(f"goals must hold grey levels 0 to {family.levels - 1}; found {int(goals.max())}")
        self.goals, self.num, self.given = to_unit(goals, family.levels), num, given
        self.labels = _labels(given.labels, len(goals), family.num_labels)
        self.start = _start(model, given.start, self.goals)
        space = family.environment.action_space
        self.reach = given.reach if given.reach is not None else 3.0 if space.normal else 1.0
        self.action_space = action_space(space)
        self.more_state = tuple(family.environment.canvas_shape) != tuple(family.environment.state_shape)
        self.potential = _likelihood if given.shaping is True else given.shaping or None
        self._decision: Decision | None = None
        self._last_offer = torch.zeros(())
        sizes = {key: value.shape[1] for key, value in self.begin(generator(given.seed, "gymnasium")).items()}
        self.observation_space = spaces.Dict(
            {key: spaces.Box(-np.inf, np.inf, (size,), np.float32) for key, size in sizes.items()}
        )

    @property
    def over(self) -> bool:
        """Whether the last step is done."""
        return self.step == self.family.horizon

    def begin(self, source: torch.Generator, which: Sequence[int] | None = None) -> Observation:
        """Start N new episodes.

        Args:
            source: draws goals and starts.
            which: N numbers of goals; unset: drawn.

        Raises:
            GoalgenError: ``which`` is not N numbers of goals.
        """
        drawn = torch.randint(len(self.goals), (self.num,), generator=source)
        rows = drawn if which is None else torch.as_tensor(which, dtype=torch.int64).reshape(-1)
        if len(rows) != self.num or not bool(((rows >= 0) & (rows < len(self.goals))).all()):
            raise GoalgenError(
                f"give {self.num} numbers of goals, each 0 to {len(self.goals) - 1}, not {rows.tolist()}"
            )
        device = self.family.device
        self.which, self.goal = rows, self.goals[rows].to(device)
        canvas = self.start(self.num, goals=self.goals[rows], generator=source).to(device)
        self.label = None if self.labels is None else self.labels[rows].to(device)
        self.step, self.state = 0, self.family.environment.initial(canvas)
        return self._observe()

    @torch.no_grad()
    def act(self, actions: Any) -> tuple[Observation, np.ndarray, dict[str, np.ndarray]]:
        """Take actions (N, ...): the observation, rewards (N,) float64 nats, and what :meth:`compute_reward` needs to know, (N, ...)."""
        family, seen = self.family, self._seen()
        decision = self._decide()
        action = to_action(family.environment.action_space, actions, self.reach).to(family.device)
        infos = {"step": np.full(self.num, self.step)}
        if self.given.pay_prior:
            # Of the numbers as they were given: a density in other units is another number.
            wide = action[0].numel() * math.log(self.reach) if action.is_floating_point() else 0.0
            infos["log_p"] = decision.policy.log_prob(action).double().cpu().numpy() + wide
        if self.potential is not None:
            infos["before"] = _copy(self.state)
        self.state, self.step, self._decision = advance(seen, action, decision.offer), self.step + 1, None
        if self.more_state:
            infos["state"] = _copy(self.state)
        observation = self._observe()
        rewards = self.compute_reward(observation["achieved_goal"], observation["desired_goal"], infos)
        return observation, rewards, infos

    @torch.no_grad()
    def compute_reward(self, achieved_goal: np.ndarray, desired_goal: np.ndarray, info: Any) -> Any:
        """What steps pay for reaching ``desired_goal``, nats: after the last step log p(g | x_H), and as :class:`Given` says.

        Args:
            achieved_goal: canvases (size,) or (B, size).
            desired_goal: goals, likewise; they need not be those the episodes were told.
            info: of the steps: a dict of a step, of a batch, or B of them. They hold the step, and what else there is to
                a state where it is more than a canvas.

        Raises:
            GoalgenError: the infos are not those of steps.
        """
        single = np.ndim(achieved_goal) == 1
        count = 1 if single else len(achieved_goal)
        shape, family = self.family.shape, self.family
        goal, canvas = (
            torch.as_tensor(np.asarray(x, np.float32)).reshape(count, *shape) for x in (desired_goal, achieved_goal)
        )
        after = self._info(info, "state", single) if self.more_state else canvas
        steps = torch.as_tensor(self._info(info, "step", single)).long()
        last = steps == family.horizon - 1
        at_end = torch.full((count,), family.horizon)
        reward = torch.where(last, self._paid(_likelihood, at_end, after, goal), 0.0)
        if self.given.pay_prior:
            reward = reward + torch.as_tensor(self._info(info, "log_p", single))
        if self.potential is not None:
            before = self._paid(self.potential, steps, self._info(info, "before", single), goal)
            reward = reward - before + torch.where(last, 0.0, self._paid(self.potential, steps + 1, after, goal))
        return float(reward[0]) if single else reward.numpy()

    def _paid(self, potential: Phi, steps: Tensor, states: Any, goal: Tensor) -> Tensor:
        """A potential of states, (B,) float64, in blocks of one size, and never below the worst."""
        states, count = torch.as_tensor(states).float(), len(goal)
        rows = torch.arange(-(-count // ROWS) * ROWS).clamp(max=count - 1)
        states = states.reshape(count, *self.family.environment.state_shape)
        parts = []
        for block in rows.split(ROWS):
            device = self.family.device
            seen = self.family.see(steps[block].to(device), states[block].to(device))
            parts.append(potential(seen, goal[block].to(device)).double().cpu())
        return torch.cat(parts)[:count].clamp(min=self.given.worst)

    def _info(self, info: Any, key: str, single: bool) -> np.ndarray:
        """What infos say under a key, (B, ...)."""
        rows = [info] if isinstance(info, Mapping) else info
        if not len(rows) or any(key not in row for row in rows):
            raise GoalgenError(
                f"the reward of a step depends on its info, which lacks {key!r}; pass the infos that the steps gave (a replay "
                "buffer of stable-baselines3 keeps them with copy_info_dict=True)"
            )
        return np.asarray(info[key]) if isinstance(info, Mapping) and not single else np.stack([r[key] for r in rows])

    def _seen(self) -> Seen:
        return self.family.see(self.step, self.state, self.label)

    def _decide(self) -> Decision:
        if self._decision is None:
            self._decision = self.family.s_agent.decide(self._seen())
        return self._decision

    @torch.no_grad()
    def _observe(self) -> Observation:
        offer = None
        if self.given.see_offer:
            # After the last step nothing is offered any more: what was seen there stands for as many zeros.
            offer = self._last_offer * 0 if self.over else _offered(self._decide())
            self._last_offer = offer
        found = observe(self.family, self._seen(), self.goal, offer)
        return {key: _copy(value.float()) for key, value in found.items()}


def _copy(tensor: Tensor) -> np.ndarray:
    """An array of its own: whoever gets it may write into it."""
    return np.array(tensor.cpu())


def _likelihood(seen: Seen, goal: Tensor) -> Tensor:
    return seen.likelihood.log_prob(goal, seen.state)


def _offered(decision: Decision) -> Tensor:
    if not isinstance(decision.offer, Tensor):
        raise GoalgenError(f"see_offer is for S-agents that offer a tensor, not {type(decision.offer).__name__}")
    return decision.offer


def _labels(labels: Tensor | Sequence[int] | None, count: int, classes: int) -> Tensor | None:
    if (labels is None) != (not classes):
        told = "is conditioned on labels: give one for every goal" if classes else "is not conditioned on labels"
        raise GoalgenError(f"this model {told}")
    if labels is None:
        return None
    found = torch.as_tensor(labels).long().reshape(-1)
    if len(found) != count or not bool(((found >= 0) & (found < classes)).all()):
        raise GoalgenError(f"give {count} labels, each 0 to {classes - 1}")
    return found


def _start(model: Model | Family, start: str | Tensor | Start | None, goals: Tensor) -> Start:
    if isinstance(start, Start):
        return start
    if isinstance(model, Model):
        return model.start(start)
    if isinstance(start, str):
        raise GoalgenError("a start by name needs a model; give a family a start of goalgen.starts, or a canvas")
    canvas = goals.mean(0) if start is None else start
    if tuple(canvas.shape) != model.shape:
        raise GoalgenError(f"the start must be a canvas of {model.shape}, not {tuple(canvas.shape)}")
    return ImageStart("a canvas", model.shape, canvas)


Heads = Callable[[dict[str, Tensor]], tuple[Tensor, ...]]
"""What an agent says at observations (B, ...): of discrete actions the logits (B, A) of each part; of others mean and
standard deviation (B, numbers)."""


class GymGCAgent(GCAgent):
    """An agent that was trained in :class:`Episodes`, as the GC-agent: put in the place of a family's, J is measured by the means of goalgen.

    Args:
        heads: see :data:`Heads`.
        episodes: the world it was trained in.
    """

    def __init__(self, heads: Heads, episodes: Episodes) -> None:
        super().__init__()
        self.heads, self.reach, self.see_offer = heads, episodes.reach, episodes.given.see_offer
        self._family = [episodes.family]  # in a list, or the module would contain what contains it

    def policy(self, seen: Seen, goal: Tensor, decision: Decision) -> Policy:
        offer = _offered(decision) if self.see_offer else None
        heads = self.heads(observe(self._family[0], seen, goal, offer))
        space = seen.environment.action_space
        if isinstance(space, Discrete):
            return Categorical(torch.stack(heads, 1))
        if isinstance(space, Composite):
            return Autoregressive(space, seen.environment.ended(seen.state), partial(_part, heads))
        mean, std = (self.reach * head.reshape(len(head), *space.shape) for head in heads)
        return Gaussian(mean, std)


def _part(heads: tuple[Tensor, ...], part: int, before: Tensor) -> Tensor:
    """Logits of a part that does not depend on those before it, (B, K, values)."""
    return heads[part].unsqueeze(1).expand(-1, before.shape[1], -1)
