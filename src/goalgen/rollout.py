"""Episodes: the GC-agent's, told a goal, and the S-agent's, from which new images come.

Trajectories are (H + 1, B, ...) for states and (H, B, ...) for actions. Every function takes its noise, so that the
same noise gives the same episode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent
from torch.distributions.kl import kl_divergence
from torch.utils.checkpoint import checkpoint

from goalgen.agents import Agents, Decision, View
from goalgen.environments import Discrete, Environment, GaussianMixture
from goalgen.errors import GoalgenError


@dataclass
class Trajectory:
    """B episodes of the GC-agent. (Equations 1 and 2)"""

    goals: Tensor
    """(B, C, height, width) in [-1, 1]"""
    states: Tensor
    """x_0 .. x_H: (H + 1, B, *state_shape)"""
    actions: Tensor
    """a_0 .. a_{H-1}: (H, B, *action_shape)"""
    decisions: list[Decision]
    """the S-agent's policy and proposals at x_0 .. x_{H-1}"""
    q: list[Distribution]
    """the GC-agent's policies at x_0 .. x_{H-1}"""
    kl: Tensor
    """KL(q || p) of every step, (H, B) nats"""
    log_ratio: Tensor
    """log p(a_h | x_h) - log q(a_h | x_h, g), (H, B) nats; no importance weight where chain dropout acted"""
    label: Tensor | None = None
    """(B,) int64, of a model that is conditioned on labels"""


def draw_noise(environment: Environment, batch: int, generator: torch.Generator) -> Tensor:
    """Noise of a whole episode, (H, batch, ...), drawn on the CPU."""
    space = environment.action_space
    return torch.stack([space.noise(batch, generator) for _ in range(environment.horizon)])


def steps(h: int, like: Tensor) -> Tensor:
    """The step ``h`` as (B,) int64 for the batch of ``like``."""
    return torch.full((len(like),), h, dtype=torch.int64, device=like.device)


def rollout(
    agents: Agents,
    start: Tensor,
    goals: Tensor,
    noise: Tensor,
    *,
    interrupt: Tensor | None = None,
    keep_proposals: bool = False,
    label: Tensor | None = None,
    recompute: bool = False,
    weigh: bool = True,
) -> Trajectory:
    """Let the GC-agent act from ``start`` towards ``goals``. (Equation 1)

    With gradients enabled they pass through all steps. The GC-agent's own parameters receive one only if it is
    ``pathwise``; otherwise this is the E-step, q held fixed.

    Args:
        start: x_0 as canvases (B, C, height, width).
        goals: (B, C, height, width) in [-1, 1].
        noise: from :func:`draw_noise`.
        interrupt: (H, B, 1 + cells) uniform numbers; where the first is below 0 the action is random (chain dropout).
        keep_proposals: keep every step's proposals in the trajectory (memory H * A images each).
        label: (B,) int64, of a model that is conditioned on labels.
        recompute: keep no step's workings for the gradient but compute them again; the trajectory then has no
            ``decisions`` and no ``q``.
        weigh: compute the ``log_ratio`` of the actions, which (3) itself does not need; zeros otherwise.
    """
    environment = agents.environment
    pathwise = torch.is_grad_enabled() and agents.gc_agent.pathwise
    decisions: list[Decision] = []
    policies: list[Distribution] = []

    def step(h: int, state: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        decision = agents.s_agent(h, state, label)
        with torch.set_grad_enabled(pathwise):
            q = agents.gc_agent.policy(View(h, state, goals, decision, environment, agents.likelihood, label))
            action = environment.action_space.sample(q, noise[h])
            if interrupt is not None:
                random = environment.action_space.uniform(interrupt[h, :, 1:])
                action = torch.where(interrupt[h, :, :1] < 0, random, action)
        if not recompute:
            policies.append(q)
            decisions.append(decision if keep_proposals else Decision(decision.policy, None))
        after = environment.transition(steps(h, state), state, action, decision.proposals)
        kl = kl_divergence(q, decision.policy)
        log_ratio = decision.policy.log_prob(action) - q.log_prob(action) if weigh else torch.zeros_like(kl)
        return after, action, kl, log_ratio

    states, actions, kls, log_ratios = [environment.initial(start)], [], [], []
    for h in range(agents.horizon):
        if recompute:
            after, action, kl, log_ratio = checkpoint(step, h, states[-1], use_reentrant=False)
        else:
            after, action, kl, log_ratio = step(h, states[-1])
        states.append(after)
        actions.append(action)
        kls.append(kl)
        log_ratios.append(log_ratio)
    return Trajectory(
        goals,
        torch.stack(states),
        torch.stack(actions),
        decisions,
        policies,
        torch.stack(kls),
        torch.stack(log_ratios),
        label,
    )


@dataclass
class Samples:
    """B episodes of the S-agent. (Equations 1 and 2)"""

    states: Tensor
    """(H + 1, B, *state_shape), or fewer where steps were skipped"""
    actions: Tensor
    """(H, B, *action_shape), likewise"""
    log_prob: Tensor
    """log p(a_0 .. a_{H-1}), (B,) nats"""


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
    start: Tensor,
    noise: Tensor,
    temperature: float = 1.0,
    *,
    label: Tensor | None = None,
    path: Sequence[int] | None = None,
) -> Samples:
    """Let the S-agent act alone from ``start`` (B, C, height, width); new images are the last canvases. (Equation 1)

    Args:
        noise: from :func:`draw_noise`; with ``path`` its first rows are used.
        temperature: the policy is raised to the power 1 / temperature; 1 is the model itself.
        label: (B,) int64, of a model that is conditioned on labels.
        path: steps to stop at, from 0 to H (see :func:`even_path`); unset: all of them.

    Raises:
        GoalgenError: the temperature is not above 0, or the S-agent cannot skip steps.
    """
    if not temperature > 0:
        raise GoalgenError(f"the temperature must be above 0, not {temperature}")
    environment = agents.environment
    path = range(agents.horizon + 1) if path is None else path
    state = environment.initial(start)
    states, actions = [state], []
    log_prob = torch.zeros(len(start), device=start.device)
    with environment.held():
        for i, (h, to) in enumerate(pairwise(path)):
            decision = agents.s_agent.skip(h, to, state, label)
            policy = decision.policy if temperature == 1.0 else _tempered(environment, decision.policy, temperature)
            action = environment.action_space.sample(policy, noise[i])
            log_prob = log_prob + policy.log_prob(action)
            state = environment.transition(steps(h, state), state, action, decision.proposals)
            states.append(state)
            actions.append(action)
    return Samples(torch.stack(states), torch.stack(actions), log_prob)


def _tempered(environment: Environment, policy: Distribution, temperature: float) -> Distribution:
    space = environment.action_space
    if isinstance(space, Discrete):
        assert isinstance(policy, Independent)
        assert isinstance(policy.base_dist, Categorical)
        return space.policy(policy.base_dist.logits / temperature)
    if isinstance(policy, GaussianMixture):
        return policy.tempered(temperature)
    return space.policy(policy.mean, policy.stddev * temperature**0.5)
