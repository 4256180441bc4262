"""Episodes: the GC-agent's, told a goal, and the S-agent's, from which new images come.

Trajectories are (H + 1, B, ...) for states and (H, B, ...) for actions. Every function takes its noise, so that the
same noise gives the same episode.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent
from torch.distributions.kl import kl_divergence

from goalgen.agents import Agents, Decision, View
from goalgen.environments import Discrete, Environment
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
) -> Trajectory:
    """Let the GC-agent act from ``start`` towards ``goals``. (Equation 1)

    The GC-agent's own parameters receive no gradient here (it is the E-step, q held fixed); with gradients enabled
    everything else does, through all steps.

    Args:
        start: x_0 as canvases (B, C, height, width).
        goals: (B, C, height, width) in [-1, 1].
        noise: from :func:`draw_noise`.
        interrupt: (H, B, 1 + cells) uniform numbers; where the first is below 0 the action is random (chain dropout).
        keep_proposals: keep every step's proposals in the trajectory (memory H * A images each).
    """
    environment = agents.environment
    state = environment.initial(start)
    states, actions, decisions, policies, kl, log_ratio = [state], [], [], [], [], []
    for h in range(agents.horizon):
        decision = agents.s_agent(h, state)
        with torch.no_grad():
            q = agents.gc_agent.policy(View(h, state, goals, decision, environment, agents.likelihood))
            action = environment.action_space.sample(q, noise[h])
            if interrupt is not None:
                random = environment.action_space.uniform(interrupt[h, :, 1:])
                action = torch.where(interrupt[h, :, :1] < 0, random, action)
        state = environment.transition(steps(h, state), state, action, decision.proposals)
        kl.append(kl_divergence(q, decision.policy))
        log_ratio.append(decision.policy.log_prob(action) - q.log_prob(action))
        states.append(state)
        actions.append(action)
        policies.append(q)
        decisions.append(decision if keep_proposals else Decision(decision.policy, None))
    return Trajectory(
        goals,
        torch.stack(states),
        torch.stack(actions),
        decisions,
        policies,
        torch.stack(kl),
        torch.stack(log_ratio),
    )


@dataclass
class Samples:
    """B episodes of the S-agent. (Equations 1 and 2)"""

    states: Tensor
    """(H + 1, B, *state_shape)"""
    actions: Tensor
    """(H, B, *action_shape)"""
    log_prob: Tensor
    """log p(a_0 .. a_{H-1}), (B,) nats"""


@torch.no_grad()
def sample_rollout(agents: Agents, start: Tensor, noise: Tensor, temperature: float = 1.0) -> Samples:
    """Let the S-agent act alone from ``start`` (B, C, height, width); new images are the last canvases. (Equation 1)

    Args:
        temperature: the policy is raised to the power 1 / temperature; 1 is the model itself.

    Raises:
        GoalgenError: the temperature is not above 0.
    """
    if not temperature > 0:
        raise GoalgenError(f"the temperature must be above 0, not {temperature}")
    environment = agents.environment
    state = environment.initial(start)
    states, actions = [state], []
    log_prob = torch.zeros(len(start), device=start.device)
    for h in range(agents.horizon):
        decision = agents.s_agent(h, state)
        policy = decision.policy if temperature == 1.0 else _sharpen(environment, decision.policy, temperature)
        action = environment.action_space.sample(policy, noise[h])
        log_prob = log_prob + policy.log_prob(action)
        state = environment.transition(steps(h, state), state, action, decision.proposals)
        states.append(state)
        actions.append(action)
    return Samples(torch.stack(states), torch.stack(actions), log_prob)


def _sharpen(environment: Environment, policy: Distribution, temperature: float) -> Distribution:
    space = environment.action_space
    if isinstance(space, Discrete):
        assert isinstance(policy, Independent)
        assert isinstance(policy.base_dist, Categorical)
        return space.policy(policy.base_dist.logits / temperature)
    return space.policy(policy.mean, policy.stddev * temperature**0.5)
