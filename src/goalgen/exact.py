"""Exact answers by summing over every action sequence: for tiny environments, tests and teaching.

The cost is (A^cells)^H network evaluations a goal.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.kl import kl_divergence

from goalgen.agents import Agents, Decision, GCAgent, View
from goalgen.environments import Discrete
from goalgen.errors import GoalgenError
from goalgen.rollout import steps

LIMIT = 2_000_000
"""Most action sequences that are summed over."""


def joint_actions(space: Discrete) -> Tensor:
    """Every joint action of all cells, (A^cells, cells)."""
    return torch.tensor(list(itertools.product(range(space.num_actions), repeat=space.cells)))


def _check(agents: Agents) -> Tensor:
    space = agents.environment.action_space
    if not isinstance(space, Discrete):
        raise GoalgenError("only discrete action sequences can be enumerated")
    count = (space.num_actions**space.cells) ** agents.horizon
    if count > LIMIT:
        raise GoalgenError(f"{count:,} action sequences are too many to enumerate (at most {LIMIT:,})")
    return joint_actions(space).to(agents.device)


def _branch(
    agents: Agents, h: int, state: Tensor, actions: Tensor, label: Tensor | None
) -> tuple[Decision, Tensor, Tensor]:
    """The decision at ``state`` (B, ...), log p of every joint action (B, N), the next states (N B, ...)
    with the action changing slowest."""
    decision = agents.s_agent(h, state, label)
    batch = len(state)
    log_p = torch.stack([decision.policy.log_prob(a.expand(batch, -1)) for a in actions], 1)
    nexts = [
        agents.environment.transition(steps(h, state), state, a.expand(batch, -1), decision.proposals) for a in actions
    ]
    return decision, log_p, torch.cat(nexts)


def soft_value(agents: Agents, h: int, state: Tensor, goal: Tensor, label: Tensor | None = None) -> Tensor:
    """V*_h(x, g), (B,) nats, by the soft Bellman equation; of agents conditioned on labels, with labels (B,).
    (Equation 5)"""
    actions = _check(agents)
    return _soft_value(agents, h, state, goal, actions, label)


def _repeat(label: Tensor | None, times: int) -> Tensor | None:
    return None if label is None else label.repeat(times)


def _soft_value(agents: Agents, h: int, state: Tensor, goal: Tensor, actions: Tensor, label: Tensor | None) -> Tensor:
    if h == agents.horizon:
        return agents.likelihood.log_prob(goal, agents.environment.canvas(state))
    _, log_p, nexts = _branch(agents, h, state, actions, label)
    goals, labels = goal.repeat(len(actions), 1, 1, 1), _repeat(label, len(actions))
    ahead = _soft_value(agents, h + 1, nexts, goals, actions, labels)
    return torch.logsumexp(log_p + ahead.view(len(actions), -1).T, 1)


def log_likelihood(agents: Agents, start: Tensor, goals: Tensor, label: Tensor | None = None) -> Tensor:
    """log p(g | x_0), (B,) nats: the value of the initial state. (Equation 7)"""
    return soft_value(agents, 0, agents.environment.initial(start), goals, label)


def expected_bound(agents: Agents, start: Tensor, goals: Tensor, label: Tensor | None = None) -> Tensor:
    """J(g) with its expectation over the GC-agent's episodes taken exactly, (B,) nats. (Equation 3)"""
    actions = _check(agents)
    return _expected_bound(agents, 0, agents.environment.initial(start), goals, actions, label)


def _expected_bound(
    agents: Agents, h: int, state: Tensor, goal: Tensor, actions: Tensor, label: Tensor | None
) -> Tensor:
    if h == agents.horizon:
        return -agents.likelihood.log_prob(goal, agents.environment.canvas(state))
    decision, _, nexts = _branch(agents, h, state, actions, label)
    q = agents.gc_agent.policy(View(h, state, goal, decision, agents.environment, agents.likelihood, label))
    q_joint = torch.stack([q.log_prob(a.expand(len(state), -1)) for a in actions], 1).exp()
    goals, labels = goal.repeat(len(actions), 1, 1, 1), _repeat(label, len(actions))
    ahead = _expected_bound(agents, h + 1, nexts, goals, actions, labels)
    return kl_divergence(q, decision.policy) + (q_joint * ahead.view(len(actions), -1).T).sum(1)


class OptimalGCAgent(GCAgent):
    """q* itself, from the exact values of all next states; one cell only. (Equation 6)

    It reads the agents it belongs to, so it is attached with :meth:`attach`.
    """

    def attach(self, agents: Agents) -> Agents:
        """Make this the GC-agent of ``agents`` and return them."""
        self._agents = [agents]  # in a list, or the module would contain itself
        agents.gc_agent = self
        return agents

    def policy(self, view: View) -> Distribution:
        agents = self._agents[0]
        actions = _check(agents)
        space = view.environment.action_space
        if not isinstance(space, Discrete) or space.cells != 1:
            raise GoalgenError("the optimal GC-agent is computed for one cell only")
        batch = len(view.state)
        h = steps(view.h, view.state)
        nexts = torch.cat(
            [view.environment.transition(h, view.state, a.expand(batch, -1), view.decision.proposals) for a in actions]
        )
        goals = view.goal.repeat(len(actions), 1, 1, 1)
        label = _repeat(view.label, len(actions))
        values = _soft_value(agents, view.h + 1, nexts, goals, actions, label).view(len(actions), -1).T
        log_p = torch.stack([view.decision.policy.log_prob(a.expand(batch, -1)) for a in actions], 1)
        return space.policy((log_p + values).unsqueeze(1))
