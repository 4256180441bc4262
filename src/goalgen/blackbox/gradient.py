"""The policy gradient on the soft return. (Equation 33)"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from goalgen.agents import Agents
from goalgen.blackbox.judging import Judge, fit_values, rows_of
from goalgen.bound import Bound
from goalgen.learning import Learned
from goalgen.rollout import advance
from goalgen.task import Task


@dataclass
class Episodes:
    """Episodes of the GC-agent, to learn from by policy gradients."""

    task: Task
    states: Tensor
    """x_0 .. x_H, (H + 1, B, ...)"""
    actions: Tensor
    """(H, B, ...)"""
    log_q: Tensor
    """of the actions, when they were taken, (H, B)"""
    log_ratio: Tensor
    """log p - log q of them, (H, B)"""
    advantage: Tensor
    """of the actions, (H, B) nats; those of episodes that are over are 0"""
    paid: Tensor
    """(B,)"""
    bound: Bound


@torch.no_grad()
def collect(agents: Agents, judge: Judge, task: Task, noise: Tensor, smoothing: float | None = None) -> Episodes:
    """Let the GC-agent act, and say of every action how much better it was than expected. (Equation 33)

    Args:
        task: several episodes a goal (``task.episodes``), or else give ``smoothing``.
        noise: (H, B, ...).
        smoothing: lambda of generalised advantages (Schulman et al. 2016), which lean on V; unset: the mean of the other episodes
            of the same goal is what was expected.
    """
    environment, horizon = agents.environment, agents.horizon
    state = environment.initial(task.start)
    states, rest, values, over = [state], [], [], []
    for h in range(horizon):
        seen = agents.see(h, state, task.label, memory=task.memory)
        decision = agents.s_agent.decide(seen)
        q = agents.gc_agent.policy(seen, task.goal, decision)
        action = q.sample(noise[h])
        log_q = q.log_prob(action)
        rest.append((action, log_q, decision.policy.log_prob(action) - log_q, q.kl_along(decision.policy, action)))
        values.append(judge.value(seen, task.goal))
        over.append(environment.ended(state))
        state = advance(seen, action, decision.offer)
        states.append(state)
    paid = judge.value(agents.see(horizon, state, task.label, memory=task.memory), task.goal)
    actions, log_q, log_ratio, kl = (torch.stack(part) for part in zip(*rest, strict=True))
    if smoothing is None:
        togo = paid - kl.flip(0).cumsum(0).flip(0)  # (H, B)
        mean = togo.unflatten(1, (-1, task.episodes)).mean(-1, keepdim=True)
        # Less the mean of the others, which is what is left of the mean of all once its own share is taken out.
        assert task.episodes > 1, "with one episode a goal there are no others: give smoothing"
        advantage = (togo.unflatten(1, (-1, task.episodes)) - mean).flatten(1) * task.episodes / (task.episodes - 1)
    else:
        value, ahead = torch.stack(values), torch.stack([*values[1:], paid])
        surprise, advantage = ahead - kl - value, torch.zeros_like(kl)
        for h in reversed(range(horizon)):
            advantage[h] = surprise[h] + (smoothing * advantage[h + 1] if h + 1 < horizon else 0)
    advantage = torch.where(torch.stack(over), 0.0, advantage)
    terms = Bound(-agents.likelihood.log_prob(task.goal, state), kl)
    return Episodes(task, torch.stack(states), actions, log_q, log_ratio, advantage, paid, terms)


def policy_gradient(agents: Agents, judge: Judge, episodes: Episodes, clip: float = 0.2) -> Learned:
    """Loss whose gradient is that of J in both agents, by the policy gradient with clipped ratios. (Equation 33)

    The divergence of every step is differentiated as it stands, in both policies; what it depends on beside them, and what
    follows the step, enter by the score function. May be called again for the same episodes once the agents have moved.
    """
    task, environment = episodes.task, agents.environment
    losses, visits = [], []
    for h in range(agents.horizon):
        live = (~environment.ended(episodes.states[h])).nonzero()[:, 0]
        if not len(live):
            break
        seen, goal = rows_of(agents, h, episodes.states[h], task, live)
        decision = agents.s_agent.decide(seen)
        q = agents.gc_agent.policy(seen, goal, decision)
        action, advantage = episodes.actions[h, live], episodes.advantage[h, live]
        ratio = (q.log_prob(action) - episodes.log_q[h, live]).exp()
        gain = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
        losses.append((q.kl_along(decision.policy, action) - gain).sum())
        visits.append((h, live, judge.value(seen, goal)))
    value_error, error = fit_values(visits, episodes.log_ratio, episodes.paid)
    reconstruction = -agents.likelihood.log_prob(task.goal, episodes.states[-1])
    loss = reconstruction.mean() + torch.stack(losses).sum() / len(task) + value_error
    return Learned(loss, episodes.bound.detach(), {"value_error_nats": error})
