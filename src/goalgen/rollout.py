"""Episodes: the GC-agent's, told a goal, and the S-agent's, from which new images come.

Trajectories are (H + 1, B, ...) for states and (H, B, ...) for actions. Every function takes its noise, so that the
same noise gives the same episode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from goalgen.agents import Agents, Decision, Seen
from goalgen.environment import Environment
from goalgen.errors import GoalgenError
from goalgen.policies import Policy
from goalgen.task import Task


@dataclass
class Trajectory:
    """B episodes of the GC-agent. (Equations 1 and 2)"""

    task: Task
    """what they were given"""
    states: Tensor
    """x_0 .. x_H: (H + 1, B, *state_shape)"""
    actions: Tensor
    """a_0 .. a_{H-1}: (H, B, *action_shape)"""
    decisions: list[Decision]
    """the S-agent's policy (and offer, if kept) at x_0 .. x_{H-1}"""
    q: list[Policy]
    """the GC-agent's policies at x_0 .. x_{H-1}"""
    kl: Tensor
    """KL(q || p) of every step, (H, B) nats"""
    log_ratio: Tensor
    """log p(a_h | x_h) - log q(a_h | x_h, g), (H, B) nats; no importance weight where chain dropout acted"""

    @property
    def goals(self) -> Tensor:
        """(B, C, height, width) in [-1, 1]."""
        return self.task.goal


def draw_noise(environment: Environment, batch: int, generator: torch.Generator) -> Tensor:
    """Noise of a whole episode, (H, batch, ...), drawn on the CPU."""
    space = environment.action_space
    return torch.stack([space.noise(batch, generator) for _ in range(environment.horizon)])


def advance(seen: Seen, action: Tensor, offer: Any) -> Tensor:
    """x_{h+1} = f_h(x_h, a_h), (B, *state_shape); out of a black box comes no gradient. (Equation 1)"""
    with torch.set_grad_enabled(torch.is_grad_enabled() and not seen.environment.black_box):
        return seen.environment.transition(seen.rows, seen.state, action, offer)


def rollout(
    agents: Agents,
    task: Task,
    noise: Tensor,
    *,
    interrupt: Tensor | None = None,
    through_q: bool = False,
    through_actions: bool = False,
    steps: int | None = None,
    keep_offers: bool = False,
    recompute: bool = False,
    weigh: bool = True,
) -> Trajectory:
    """Let the GC-agent act from ``task.start`` towards ``task.goals``. (Equation 1)

    With gradients enabled they pass through what the S-agent says and, unless the environment is a black box, from state
    to state. With the two switches off this is the E-step, q held fixed.

    Args:
        noise: from :func:`draw_noise`.
        interrupt: (H, B, 1 + cells) uniform numbers; where the first is below 0 the action is random (chain dropout).
        through_q: pass gradients into the GC-agent's policies: through their divergence from the S-agent's.
        through_actions: ... and through the actions that were taken, where the policies are reparameterised.
        steps: stop after so many; unset: H.
        keep_offers: keep what the S-agent offered at every step (for proposals, H * A images an episode).
        recompute: keep no step's workings for the gradient but compute them again; the trajectory then has no
            ``decisions`` and no ``q``.
        weigh: compute the ``log_ratio`` of the actions, which (3) itself does not need; zeros otherwise.
    """
    environment, goals = agents.environment, task.goal
    decisions: list[Decision] = []
    policies: list[Policy] = []

    def step(h: int, state: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        seen = agents.see(h, state, task.label, memory=task.memory)
        decision = agents.s_agent.decide(seen)
        with torch.set_grad_enabled(torch.is_grad_enabled() and (through_q or through_actions)):
            q = agents.gc_agent.policy(seen, goals, decision)
            action = drawn = q.sample(noise[h])
            if interrupt is not None:
                random = environment.action_space.uniform(interrupt[h, :, 1:])
                action = torch.where(interrupt[h, :, :1] < 0, random, action)
        if not through_actions:
            action = action.detach()
        if not recompute:
            policies.append(q)
            decisions.append(decision if keep_offers else Decision(decision.policy))
        after = advance(seen, action, decision.offer)
        kl = q.kl_along(decision.policy, drawn.detach())
        log_ratio = decision.policy.log_prob(action) - q.log_prob(action) if weigh else torch.zeros_like(kl)
        return after, action, kl, log_ratio

    states, rest = [environment.initial(task.start)], []
    for h in range(agents.horizon if steps is None else steps):
        after, *found = checkpoint(step, h, states[-1], use_reentrant=False) if recompute else step(h, states[-1])
        states.append(after)
        rest.append(found)
    actions, kl, log_ratio = (torch.stack(part) for part in zip(*rest, strict=True))
    return Trajectory(task, torch.stack(states), actions, decisions, policies, kl, log_ratio)


@dataclass
class Samples:
    """B episodes of the S-agent. (Equations 1 and 2)"""

    states: Tensor
    """(H + 1, B, *state_shape), or fewer where steps were skipped"""
    actions: Tensor
    """(H, B, *action_shape), likewise"""
    guesses: list[Tensor]
    """images (B, C, height, width) that the S-agent had in mind on the way, at the steps at which it had one"""
    draft: Tensor | None = None
    """the image (B, C, height, width) that it had in mind at the end, where the path ends before the last step"""


def even_path(horizon: int, count: int) -> list[int]:
    """Steps to stop at on the way from 0 to ``horizon`` in ``count`` actions, evenly spaced: count + 1 numbers.

    Raises:
        GoalgenError: there are not so many steps.
    """
    if not 1 <= count <= horizon:
        raise GoalgenError(f"the number of sampling steps must be 1 to {horizon}, not {count}")
    return [round(i * horizon / count) for i in range(count + 1)]


@torch.no_grad()
def sample_rollout(
    agents: Agents,
    task: Task,
    noise: Tensor,
    temperature: float = 1.0,
    path: Sequence[int] | None = None,
    correlation: float = 0.0,
) -> Samples:
    """Let the S-agent act alone from ``task.start``; new images are the last canvases. (Equation 1)

    Args:
        noise: from :func:`draw_noise`; with ``path`` its first rows are used.
        temperature: the policy is raised to the power 1 / temperature; 1 is the model itself.
        path: steps to stop at, from 0 to H (see :func:`even_path`), or to an earlier one; unset: all of them.
        correlation: share of the noise of an action that is taken from the canvas (see
            :meth:`goalgen.policies.Policy.correlated`); 0 is the model itself.

    Raises:
        GoalgenError: the temperature is not above 0, or the correlation not from 0 to 1.
    """
    if not temperature > 0:
        raise GoalgenError(f"the temperature must be above 0, not {temperature}")
    if not 0 <= correlation <= 1:
        raise GoalgenError(f"the correlation must be from 0 to 1, not {correlation}")
    state = agents.environment.initial(task.start)
    states, actions, guesses = [state], [], []
    with agents.environment.held():
        for i, (h, to) in enumerate(pairwise(range(agents.horizon + 1) if path is None else path)):
            seen = agents.see(h, state, task.label, to, task.memory)
            decision = agents.s_agent.decide(seen)
            guesses.append(agents.s_agent.in_mind(decision))
            policy = decision.policy if temperature == 1.0 else decision.policy.tempered(temperature)
            policy = policy.correlated(correlation) if correlation else policy
            action = policy.sample(noise[i])
            state = advance(seen, action, decision.offer)
            states.append(state)
            actions.append(action)
        draft = None
        if path is not None and path[-1] < agents.horizon:
            draft = agents.s_agent.in_mind(
                agents.s_agent.decide(agents.see(path[-1], state, task.label, memory=task.memory))
            )
            guesses.append(draft)
    return Samples(torch.stack(states), torch.stack(actions), [guess for guess in guesses if guess is not None], draft)
