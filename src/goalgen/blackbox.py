"""How agents learn in a world through which no gradient passes: functions that any family calls.

(a) The closed form of the best policy made amortised: candidates are drawn at every visited state, weighed by what they are
worth, and the GC-agent's network is fitted to them (:func:`learn_improved`; MPO, Abdolmaleki et al. 2018; expert iteration,
Anthony et al. 2017). (b) The policy gradient on the soft return (:func:`collect`, :func:`policy_gradient`; PPO, Schulman et al.
2017; leave-one-out baselines, Kool et al. 2019). Both need the next states and what these are worth, and nothing else.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from goalgen.agents import Agents, Decision, Seen
from goalgen.bound import Bound
from goalgen.environment import Environment
from goalgen.learning import LAMBDA, Learned, soft_returns
from goalgen.policies import Policy
from goalgen.rollout import advance
from goalgen.task import Task

ALONE = 8
"""One episode in so many is the GC-agent's own from the first step to the last: of these J is reported, without bias."""

RELABELLED = 4
"""One episode in so many is learned from once more in hindsight, where that is asked for."""

TOLERANCE = 5.0
"""Errors of values up to so many nats count by their square, larger ones by their size."""


class Judge(nn.Module, ABC):
    """V_h(x, g), nats: what a state is worth to the GC-agent. At the last step it is what it is paid: log p(g | x_H)."""

    @abstractmethod
    def value(self, seen: Seen, goal: Tensor) -> Tensor:
        """V_h of what is seen, (B,), with a gradient where it learns; ``seen.step`` may be H."""

    def look(self, agents: Agents, seen: Seen, goal: Tensor, decision: Decision, actions: Tensor) -> Tensor:
        """V_{h+1} of the states that actions (K, B, ...) lead to, (K, B). Override it where there is a quicker way."""
        return torch.stack([self.value(_next(agents, seen, advance(seen, a, decision.offer)), goal) for a in actions])


Proposer = Callable[[Seen, Tensor, Decision], list[tuple[Policy, int]]]
"""What else proposes at states, given goals and what the S-agent says: policies, each with a number of candidates."""


@dataclass(frozen=True)
class Search:
    """How the GC-agent looks for better actions than its own while it learns."""

    own: int = 16
    """candidates that the GC-agent itself draws at every state"""
    others: int = 4
    """... and the S-agent"""
    proposer: Proposer | None = None
    """... and whatever else proposes"""
    more: int = 0
    """candidates of the proposer, all together"""
    fitted: int | None = None
    """of the candidates, so many are drawn by their weights for the agents to be fitted to; unset: all, each by its weight"""
    share: float = 0.85
    """share of the actions that are taken from the improved policy; the rest is the GC-agent's"""
    temperature: float = 1.0
    """of the improvement: 1 is equation 6; near 0 only the best candidate counts"""
    prior: float = 1.0
    """weight of log p in it: 1 is equation 6; at 0 the GC-agent pays no heed to the S-agent"""
    corrected: bool = True
    """whether candidates count by how likely they were drawn, as in equation 6; else what proposes for itself sharpens itself"""
    hindsight: float = 0.0
    """weight of what is learned of episodes told, as their goal, the canvas that they reached; 0: nothing"""

    @property
    def count(self) -> int:
        """K."""
        return self.own + self.others + self.more


def draw_search(environment: Environment, batch: int, search: Search, generator: torch.Generator) -> dict[str, Tensor]:
    """Randomness of :func:`learn_improved`: of candidates (H, batch, K, ...), of what is done and what is learned (H, batch, 3)."""
    count, steps, space = search.count, environment.horizon, environment.action_space
    noise = space.noise(steps * batch * count, generator).unflatten(0, (steps, batch, count))
    return {"candidates": noise, "choice": torch.rand(steps, batch, 3, generator=generator)}


def improve(log_p: Tensor, ahead: Tensor, log_m: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """The improved policy over K candidates, and the value of the state. (Equation 32)

    Returns:
        Log-weights (K, B) that sum to one over the candidates, and log of the mean of p exp(V) / m, (B,) nats: an estimate of V_h
        by (5) that is right in the limit of many candidates.

    Args:
        log_p: log p(a | x) of the candidates, (K, B).
        ahead: V_{h+1} of the states they lead to, (K, B).
        log_m: log-probability with which they were drawn, (K, B).
        temperature: of the improvement.
    """
    count = len(log_p)
    value = torch.logsumexp(log_p + ahead - log_m, 0) - math.log(count)
    best = ahead.amax(0, keepdim=True)
    return (log_p + (ahead - best) / temperature - log_m).log_softmax(0), value


def mixture_log_prob(proposers: list[tuple[Policy, int]], log_probs: list[Tensor]) -> Tensor:
    """log m(a) of candidates (K, B) that so many draws of each proposer make together (Veach and Guibas 1995)."""
    total = sum(count for _, count in proposers)
    shares = [log_prob + math.log(count / total) for (_, count), log_prob in zip(proposers, log_probs, strict=True)]
    return torch.stack(shares).logsumexp(0)


def learn_improved(
    agents: Agents, judge: Judge, task: Task, noise: Tensor, draws: dict[str, Tensor], search: Search
) -> Learned:
    """Both agents fitted to the improved policy at the states of episodes that it acts in. (Equation 32)

    Args:
        noise: (H, B, ...), by which the GC-agent acts where it acts itself.
        draws: from :func:`draw_search`.

    Returns:
        Loss (the S-agent's and the GC-agent's cross-entropies, the likelihood of the last canvases, the error of V), and J of
        the episodes that the GC-agent acted in alone.
    """
    batch, device, horizon = len(task), task.start.device, agents.horizon
    alone = torch.arange(batch, device=device) % ALONE == 0
    state = agents.environment.initial(task.start)
    kl, log_ratio = state.new_zeros(horizon, batch), state.new_zeros(horizon, batch)
    fits, sizes, visits, done = [], [], [], []
    for h in range(horizon):
        live = (~agents.environment.ended(state)).nonzero()[:, 0]
        if not len(live):
            break
        seen, goal = _rows(agents, h, state, task, live)
        decision = agents.s_agent.decide(seen)
        p, q = decision.policy, agents.gc_agent.policy(seen, goal, decision)
        with torch.no_grad():
            actions, log_m, log_p = _candidates(seen, goal, decision, q, search, draws["candidates"][h][live])
            ahead = judge.look(agents, seen, goal, decision, actions)
            log_weight, value = improve(search.prior * log_p, ahead, log_m, search.temperature)
            log_weight = log_weight if search.corrected else (log_weight + log_m).log_softmax(0)
            chosen, worth = _choose(actions, log_weight, ahead, draws["choice"][h][live, 0])
            own = q.sample(noise[h][live])
            searched = ~alone[live] & (draws["choice"][h][live, 1] < search.share)
            action = torch.where(_like(searched, own), chosen, own)
            log_ratio[h, live] = torch.where(searched, value - worth, p.log_prob(own) - q.log_prob(own))
            kl[h, live] = q.kl_along(p, own)
            done.append((h, live, state, action))
            state = state.index_copy(0, live, advance(seen, action, decision.offer))
            sizes.append(1 / log_weight.exp().square().sum(0))
            targets, weight = _targets(actions, log_weight, draws["choice"][h][live, 2], search.fitted)
        fits.append(-(weight * (q.log_prob_many(targets) + p.log_prob_many(targets))).sum())
        visits.append((h, live, judge.value(seen, goal)))
    reconstruction = -agents.likelihood.log_prob(task.goal, state)
    with torch.no_grad():
        paid = judge.value(agents.see(horizon, state, task.label, memory=task.memory), task.goal)
    value_error, error = fit_values(visits, log_ratio, paid)
    loss = reconstruction.mean() + torch.stack(fits).sum() / batch + value_error
    if search.hindsight:
        loss = loss + search.hindsight * hindsight_loss(agents, task, done, agents.environment.canvas(state))
    info = {"candidates_that_count": torch.cat(sizes).mean(), "value_error_nats": error}
    return Learned(loss, Bound(reconstruction[alone].detach(), kl[:, alone].detach()), info, rows=alone)


def hindsight_loss(
    agents: Agents, task: Task, done: list[tuple[int, Tensor, Tensor, Tensor]], reached: Tensor
) -> Tensor:
    """-log q of what was done, told the canvas reached as the goal, nats an episode (Andrychowicz et al. 2017).

    Args:
        done: of every step: h, rows that were not over, the states of all (B, ...), actions of these rows.
        reached: (B, C, height, width).
    """
    chosen = torch.arange(len(task), device=reached.device) % RELABELLED == RELABELLED - 1
    again, losses = replace(task, goals=reached), [reached.new_zeros(())]
    for h, live, state, action in done:
        rows = live[chosen[live]]
        if len(rows):
            seen, goal = _rows(agents, h, state, again, rows)
            with torch.no_grad():
                decision = agents.s_agent.decide(seen)
            losses.append(-agents.gc_agent.policy(seen, goal, decision).log_prob(action[chosen[live]]).sum())
    return torch.stack(losses).sum() / chosen.sum().clamp(min=1)


def _candidates(
    seen: Seen, goal: Tensor, decision: Decision, q: Policy, search: Search, noise: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Candidates (K, B, ...), log of the probability with which they were drawn, and log p of each, both (K, B)."""
    more = search.proposer(seen, goal, decision) if search.proposer is not None else []
    assert sum(count for _, count in more) == search.more, (
        "the proposer has more candidates than the search says, or fewer"
    )
    proposers = [pair for pair in ((q, search.own), (decision.policy, search.others), *more) if pair[1]]
    parts = noise.transpose(0, 1).split([count for _, count in proposers])
    actions = torch.cat([policy.sample_many(part) for (policy, _), part in zip(proposers, parts, strict=True)])
    log_p = decision.policy.log_prob_many(actions)
    each = [log_p if policy is decision.policy else policy.log_prob_many(actions) for policy, _ in proposers]
    return actions, mixture_log_prob(proposers, each), log_p


def _targets(actions: Tensor, log_weight: Tensor, uniform: Tensor, count: int | None) -> tuple[Tensor, Tensor]:
    """What the agents are fitted to: actions (M, B, ...) and weights (M, B). Drawn ones are spread evenly over the weights."""
    if count is None:
        return actions, log_weight.exp()
    places = (uniform + torch.arange(count, device=uniform.device)[:, None]) / count  # (M, B)
    cumulative = log_weight.exp().cumsum(0)
    index = (cumulative.unsqueeze(0) <= places.unsqueeze(1) * cumulative[-1]).sum(1).clamp(max=len(actions) - 1)
    rows = torch.arange(actions.shape[1], device=index.device)
    return actions[index, rows], torch.full_like(places, 1 / count)


def _choose(actions: Tensor, log_weight: Tensor, ahead: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """One of the candidates by their weights, at uniform numbers (B,): actions (B, ...), and what they lead to is worth (B,)."""
    cumulative = log_weight.exp().cumsum(0)
    index = (cumulative <= uniform * cumulative[-1]).sum(0).clamp(max=len(actions) - 1)
    rows = torch.arange(len(index), device=index.device)
    return actions[index, rows], ahead[index, rows]


def fit_values(visits: list[tuple[int, Tensor, Tensor]], log_ratio: Tensor, paid: Tensor) -> tuple[Tensor, Tensor]:
    """Regression of values on the soft returns of the episodes they were asked in, and its error, nats. (Equation 16)

    Args:
        visits: step, rows and values (with gradients) of the states that were not over.
        log_ratio: log p - log q of what was done, or V_h - V_{h+1} where the improved policy did it, (H, B).
        paid: what the episodes were paid at their end, (B,).
    """
    horizon = len(log_ratio)
    values = paid.expand(horizon, -1).clone()
    for h, live, value in visits:
        values[h, live] = value.detach()
    # soft_returns has the targets of V_1 and later; that of V_0 is one step more of the same.
    later = soft_returns(log_ratio, values[1:], paid)
    first = log_ratio[0] + ((1 - LAMBDA) * values[1] + LAMBDA * later[0] if horizon > 1 else paid)
    targets = torch.cat([first.unsqueeze(0), later]) if horizon > 1 else first.unsqueeze(0)
    errors = torch.cat([value - targets[h, live] for h, live, value in visits])
    loss = F.huber_loss(errors, torch.zeros_like(errors), delta=TOLERANCE)
    return loss, errors.detach().square().mean().sqrt()


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
        seen, goal = _rows(agents, h, episodes.states[h], task, live)
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


def _rows(agents: Agents, h: int, state: Tensor, task: Task, rows: Tensor) -> tuple[Seen, Tensor]:
    """What is seen in some of the episodes, and their goals."""
    label, memory = (None if x is None else x[rows] for x in (task.label, task.memory))
    return agents.see(h, state[rows], label, memory=memory), task.goal[rows]


def _next(agents: Agents, seen: Seen, state: Tensor) -> Seen:
    """What is seen one step on."""
    return agents.see(seen.step + 1, state, seen.label, memory=seen.memory)


def _like(flags: Tensor, action: Tensor) -> Tensor:
    """Flags (B,) that broadcast to actions (B, ...)."""
    return flags.view(-1, *(1 for _ in action.shape[1:]))
