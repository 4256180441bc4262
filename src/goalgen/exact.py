"""Exact answers by summing over every action sequence: for tiny environments, tests and teaching.

The cost is A^H network evaluations a goal, for A actions at a step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from goalgen.agents import Agents, Decision, GCAgent, Seen
from goalgen.composite import Composite, tabulated
from goalgen.environment import Discrete
from goalgen.errors import GoalgenError
from goalgen.policies import Categorical, Policy
from goalgen.rollout import advance
from goalgen.task import Task

LIMIT = 2_000_000
"""Most action sequences that are summed over."""


def _check(agents: Agents) -> Tensor:
    """Every action, (A, ...)."""
    space = agents.environment.action_space
    if not isinstance(space, Discrete | Composite):
        raise GoalgenError("only discrete action sequences can be enumerated")
    count = space.count**agents.horizon
    if count > LIMIT:
        raise GoalgenError(f"{count:,} action sequences are too many to enumerate (at most {LIMIT:,})")
    return space.every().to(agents.device)


def _branch(seen: Seen, decision: Decision, actions: Tensor) -> tuple[Tensor, Tensor]:
    """log p of every joint action (B, N) at what is seen, and the next states (N B, ...), the action changing slowest."""
    each = [a.expand(len(seen.state), -1) for a in actions]
    log_p = torch.stack([decision.policy.log_prob(a) for a in each], 1)
    return log_p, torch.cat([advance(seen, a, decision.offer) for a in each])


def _after(agents: Agents, seen: Seen, nexts: Tensor, goal: Tensor, count: int) -> tuple[Seen, Tensor]:
    """What is seen one step on, and the goals, where ``count`` actions were taken from each state."""
    label = None if seen.label is None else seen.label.repeat(count)
    return agents.see(seen.step + 1, nexts, label), goal.repeat(count, 1, 1, 1)


def soft_value(agents: Agents, seen: Seen, goal: Tensor) -> Tensor:
    """V*_h(x, g) of what is seen, (B,) nats, by the soft Bellman equation. (Equation 5)"""
    actions = _check(agents)

    def value(seen: Seen, goal: Tensor) -> Tensor:
        if seen.step == agents.horizon:
            return agents.likelihood.log_prob(goal, seen.state)
        log_p, nexts = _branch(seen, agents.s_agent.decide(seen), actions)
        ahead = value(*_after(agents, seen, nexts, goal, len(actions)))
        return torch.logsumexp(log_p + ahead.view(len(actions), -1).T, 1)

    return value(seen, goal)


def log_likelihood(agents: Agents, task: Task) -> Tensor:
    """log p(g | x_0), (B,) nats: the value of the initial state. (Equation 7)"""
    return soft_value(agents, agents.see(0, agents.environment.initial(task.start), task.label), task.goal)


def expected_bound(agents: Agents, task: Task) -> Tensor:
    """J(g) with its expectation over the GC-agent's episodes taken exactly, (B,) nats. (Equation 3)"""
    actions = _check(agents)

    def expected(seen: Seen, goal: Tensor) -> Tensor:
        if seen.step == agents.horizon:
            return -agents.likelihood.log_prob(goal, seen.state)
        decision = agents.s_agent.decide(seen)
        _, nexts = _branch(seen, decision, actions)
        q = agents.gc_agent.policy(seen, goal, decision)
        q_joint = torch.stack([q.log_prob(a.expand(len(seen.state), -1)) for a in actions], 1).exp()
        ahead = expected(*_after(agents, seen, nexts, goal, len(actions)))
        return q.kl(decision.policy) + (q_joint * ahead.view(len(actions), -1).T).sum(1)

    return expected(agents.see(0, agents.environment.initial(task.start), task.label), task.goal)


class OptimalGCAgent(GCAgent):
    """q* itself, from the exact values of all next states; of several cells that choose on their own, only one. (Equation 6)

    It takes the place of the GC-agent of ``agents``, whose S-agent it reads.
    """

    def __init__(self, agents: Agents) -> None:
        super().__init__()
        self._agents = [agents]  # in a list, or the module would contain itself
        agents.gc_agent = self

    def policy(self, seen: Seen, goal: Tensor, decision: Decision) -> Policy:
        (agents,) = self._agents
        actions, space = _check(agents), agents.environment.action_space
        if isinstance(space, Discrete) and space.cells != 1:
            raise GoalgenError("the optimal GC-agent is computed for one cell only")
        log_p, nexts = _branch(seen, decision, actions)
        values = soft_value(agents, *_after(agents, seen, nexts, goal, len(actions))).view(len(actions), -1).T
        if isinstance(space, Composite):
            return tabulated(space, seen.environment.ended(seen.state), log_p + values)
        return Categorical((log_p + values).unsqueeze(1))
