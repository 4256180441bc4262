"""The closed form of the best policy made amortised. (Equation 32)"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial

import torch
from torch import Tensor

from goalgen.agents import Agents, Decision, Seen
from goalgen.blackbox.judging import Judge, fit_values, rows_of
from goalgen.bound import Bound
from goalgen.environment import Environment
from goalgen.learning import Learned
from goalgen.policies import Policy
from goalgen.rollout import advance
from goalgen.task import Task

ALONE = 8
"""One episode in so many is the GC-agent's own from the first step to the last: of these J is reported, without bias."""

RELABELLED = 4
"""One episode in so many is learned from once more in hindsight, where that is asked for."""

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
    passes: int = 1
    """times that the agents are fitted to what was found at a state"""
    states: int | None = None
    """states, about so many, of which an update learns; unset: all of a batch"""
    s_lessons: int = 1
    """times that the S-agent is fitted to what was found at a state, for each time that the GC-agent is; where an update learns of a
    part of the states, the others are those of other updates"""

    @property
    def count(self) -> int:
        """K."""
        return self.own + self.others + self.more


def draw_search(environment: Environment, batch: int, search: Search, generator: torch.Generator) -> dict[str, Tensor]:
    """Randomness of :func:`learn_improved`: of candidates (H, batch, K, ...), of what is done and what is learned (H, batch, 3), and
    which update learns of which states, bool (updates, batch, H): in every pass each state has its turn."""
    count, steps, space = search.count, environment.horizon, environment.action_space
    noise = space.noise(steps * batch * count, generator).unflatten(0, (steps, batch, count))
    choice = torch.rand(steps, batch, 3, generator=generator)
    parts = 1 if search.states is None else max(1, round(batch * steps / search.states))
    turns = []
    for _ in range(search.passes):
        turn = torch.randperm(batch * steps, generator=generator).view(batch, steps) % parts
        turns.append(turn == torch.arange(parts)[:, None, None])
    return {"candidates": noise, "choice": choice, "updates": torch.cat(turns)}


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


@dataclass
class Rows:
    """N states, and what the agents are fitted to there."""

    step: Tensor
    """(N,)"""
    episode: Tensor
    """(N,)"""
    state: Tensor
    """(N, ...)"""
    goal: Tensor
    """(N, C, height, width)"""
    targets: Tensor
    """actions, (N, M, ...)"""
    for_q: Tensor
    """weight of each in what the GC-agent learns, (N, M)"""
    for_p: Tensor
    """... and the S-agent"""


@dataclass
class Found:
    """What a search found in B episodes."""

    agents: Agents
    judge: Judge
    task: Task
    last: Tensor = field(init=False)
    """x_H of every episode, (B, ...)"""
    log_ratio: Tensor = field(init=False)
    """log p - log q of what was done, or V_h - V_{h+1} where the improved policy did it, (H, B)"""
    visits: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)
    """of every step: h, rows of the episodes that were not over, the states of all (B, ...)"""
    rows: list[Rows] = field(default_factory=list)
    """of every step; then, in hindsight, of every step again"""

    def learned_of(self, update: Tensor, more: Tensor | None, parts: int) -> tuple[Tensor, Tensor]:
        """Loss of both agents, nats an episode, and the error of V.

        Args:
            update: which states the agents are fitted to, bool (B, H).
            more: which others the S-agent is fitted to, likewise.
            parts: updates that all states take together.
        """
        agents, task = self.agents, self.task
        share, rows = parts / len(task), self.chosen(update)
        if not len(rows.step):  # of several processes each takes part in every update
            share, rows = 0.0, self.rows[0]
        seen, decision = self.seen(rows)
        q, actions = agents.gc_agent.policy(seen, rows.goal, decision), rows.targets.transpose(0, 1)
        fit = (rows.for_q.T * q.log_prob_many(actions) + rows.for_p.T * decision.policy.log_prob_many(actions)).sum()
        if more is not None and len((others := self.chosen(more)).step):
            p = self.seen(others)[1].policy
            fit = fit + (others.for_p.T * p.log_prob_many(others.targets.transpose(0, 1))).sum()
        values = []
        for h, live, states in self.visits:
            there, told = rows_of(agents, h, states, task, live)
            values.append((h, live, self.judge.value(there, told)))
        with torch.no_grad():
            end = agents.see(agents.horizon, self.last, task.label, memory=task.memory)
            paid = self.judge.value(end, task.goal)
        value_error, error = fit_values(values, self.log_ratio, paid)
        reconstruction = -agents.likelihood.log_prob(task.goal, self.last)
        return reconstruction.mean() - share * fit + value_error, error

    def seen(self, rows: Rows) -> tuple[Seen, Decision]:
        """What the S-agent sees and says there."""
        label, memory = (None if x is None else x[rows.episode] for x in (self.task.label, self.task.memory))
        seen = self.agents.see(rows.step, rows.state, label, memory=memory)
        return seen, self.agents.s_agent.decide(seen)

    def chosen(self, update: Tensor) -> Rows:
        """The states of an update, see :meth:`learned_of`."""
        here = [update[rows.episode, rows.step] for rows in self.rows]
        parts = (
            [getattr(rows, f.name)[some] for rows, some in zip(self.rows, here, strict=True)] for f in fields(Rows)
        )
        return Rows(*map(torch.cat, parts))


def learn_improved(
    agents: Agents, judge: Judge, task: Task, noise: Tensor, draws: dict[str, Tensor], search: Search
) -> Learned:
    """Both agents fitted to the improved policy at the states of episodes that it acts in. (Equation 32)

    Nothing is differentiated while it acts. What it has found is then learned from in one update, or in several
    (``search.passes``, ``search.states``): a search takes longer than a lesson. Stages before learn from the first alone.

    Args:
        noise: (H, B, ...), by which the GC-agent acts where it acts itself.
        draws: from :func:`draw_search`.

    Returns:
        Loss (the S-agent's and the GC-agent's cross-entropies, the likelihood of the last canvases, the error of V), and J of
        the episodes that the GC-agent acted in alone.
    """
    found = Found(agents, judge, task)
    terms, counts = look_for_better(found, noise, draws, search)
    updates = draws["updates"].unbind()
    parts = len(updates) // search.passes
    lessons = list(zip(updates, _for_s_agent(draws["updates"], parts, search.s_lessons), strict=True))
    loss, error = found.learned_of(*lessons[0], parts)
    found.task = task.held()  # a gradient passes back to earlier stages once
    again = [partial(_loss_of, found, *lesson, parts) for lesson in lessons[1:]]
    info = {"candidates_that_count": counts, "value_error_nats": error}
    return Learned(loss, terms, info, rows=acts_alone(task), again=again)


def _loss_of(found: Found, update: Tensor, more: Tensor | None, parts: int) -> Tensor:
    return found.learned_of(update, more, parts)[0]


def _for_s_agent(updates: Tensor, parts: int, lessons: int) -> list[Tensor | None]:
    """Which states the S-agent is fitted to besides those of each update: those of updates as far off as may be, of the same pass."""
    lessons = min(lessons, parts)
    if lessons < 2:
        return [None] * len(updates)
    turns = updates.unflatten(0, (-1, parts))
    others = [turns.roll(-(k * parts // lessons), 1) for k in range(1, lessons)]
    return list(torch.stack(others).any(0).flatten(0, 1))


def acts_alone(task: Task) -> Tensor:
    """The episodes in which the GC-agent acts by itself all along, bool (B,)."""
    return torch.arange(len(task), device=task.start.device) % ALONE == 0


@torch.no_grad()
def look_for_better(found: Found, noise: Tensor, draws: dict[str, Tensor], search: Search) -> tuple[Bound, Tensor]:
    """Let the improved policy act, and keep what it finds.

    Args:
        found: nothing so far.

    Returns:
        J of the episodes in which the GC-agent acted alone, and how many candidates count, in the mean.
    """
    agents, judge, task = found.agents, found.judge, found.task
    batch, horizon = len(task), agents.horizon
    alone = acts_alone(task)
    state = agents.environment.initial(task.start)
    kl, log_ratio = state.new_zeros(horizon, batch), state.new_zeros(horizon, batch)
    sizes, done = [], []
    for h in range(horizon):
        live = (~agents.environment.ended(state)).nonzero()[:, 0]
        if not len(live):
            break
        seen, goal = rows_of(agents, h, state, task, live)
        decision = agents.s_agent.decide(seen)
        p, q = decision.policy, agents.gc_agent.policy(seen, goal, decision)
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
        sizes.append(1 / log_weight.exp().square().sum(0))
        targets, weight = (x.transpose(0, 1) for x in _targets(actions, log_weight, draws["choice"][h][live, 2], search.fitted))  # fmt: skip
        found.rows.append(Rows(torch.full_like(live, h), live, seen.state, goal, targets, weight, weight))
        found.visits.append((h, live, state))
        done.append(action)
        state = state.index_copy(0, live, advance(seen, action, decision.offer))
    found.last, found.log_ratio = state, log_ratio
    if search.hindsight:
        found.rows += in_hindsight(found, done, search.hindsight)
    reconstruction = -agents.likelihood.log_prob(task.goal, state)
    return Bound(reconstruction[alone], kl[:, alone]), torch.cat(sizes).mean()


def in_hindsight(found: Found, done: list[Tensor], weight: float) -> list[Rows]:
    """Rows of what was done, told the canvas reached as the goal, for the GC-agent alone (Andrychowicz et al. 2017).

    Args:
        done: actions of every step, of the episodes that were not over.
        weight: of these episodes together, over that of all.
    """
    reached = found.agents.environment.canvas(found.last)
    chosen = torch.arange(len(reached), device=reached.device) % RELABELLED == RELABELLED - 1
    each, again = weight * len(reached) / max(int(chosen.sum()), 1), []
    for rows, action in zip(found.rows, done, strict=True):
        some = chosen[rows.episode]
        same = action[some].unsqueeze(1).expand_as(rows.targets[some])
        share = reached.new_full(same.shape[:2], each / same.shape[1])
        goal = reached[rows.episode[some]]
        again.append(
            Rows(rows.step[some], rows.episode[some], rows.state[some], goal, same, share, torch.zeros_like(share))
        )
    return again


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


def _like(flags: Tensor, action: Tensor) -> Tensor:
    """Flags (B,) that broadcast to actions (B, ...)."""
    return flags.view(-1, *(1 for _ in action.shape[1:]))
