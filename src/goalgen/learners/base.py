"""Turn a batch of goals into a loss: roll out (E-step), then the exact gradient of the bound (M-step)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributions.kl import kl_divergence

from goalgen.agents import Agents, ProposalsSAgent
from goalgen.bound import Bound, bound
from goalgen.environments import ChoiceEnvironment, Discrete, ProposalsEnvironment, action_log_probs, action_probs
from goalgen.errors import GoalgenError
from goalgen.rollout import Trajectory, rollout

Backprop = Literal["chosen", "full"]


@dataclass
class Learned:
    """What a learner says of one batch."""

    loss: Tensor
    """Scalar to minimise, nats an image."""
    bound: Bound
    """J of the batch, split by term."""
    extra: dict[str, Tensor]
    """Scalars worth a line in the log."""
    usage: Tensor | None
    """Share of each action at each step in this batch, (H, cells, A)."""


def replay(agents: Agents, trajectory: Trajectory) -> Bound:
    """The bound again, at the visited states, with gradients: only chosen proposals are drawn, all steps at once.
    (Equation 3)

    The gradient reaches every chosen proposal through the sum that the last canvas is, and every policy at
    its state; it does not pass through the networks' view of canvases (see ``backprop`` in the configuration).
    """
    environment, s_agent = agents.environment, agents.s_agent
    assert isinstance(environment, ProposalsEnvironment)
    assert isinstance(s_agent, ProposalsSAgent)
    horizon, batch = trajectory.actions.shape[:2]
    h = torch.arange(horizon, device=trajectory.goals.device).repeat_interleave(batch)  # (H B,)
    states = trajectory.states[:-1].flatten(0, 1).detach()
    label = None if trajectory.label is None else trajectory.label.repeat(horizon)
    decision = s_agent.replay(h, states, trajectory.actions.flatten(0, 1), label)
    last = environment.replay(trajectory.states[0], decision.proposals.unflatten(0, (horizon, batch)))
    q = environment.action_space.policy(torch.cat([action_log_probs(policy) for policy in trajectory.q]))
    kl = kl_divergence(q, decision.policy).unflatten(0, (horizon, batch))
    log_prob = agents.likelihood.log_prob(trajectory.goals, environment.canvas(last), hold_scale=True)
    return Bound(-log_prob, kl)


class Learner(nn.Module):
    """The S-agent's learning, by imitation and through the chosen actions, with the GC-agent fixed.

    With the GC-agent's choices held, the gradient of J in everything generative (policy, proposals,
    step sizes, likelihood) needs no score function (design: M-step). Subclasses add how their
    GC-agent learns in :meth:`gc_loss`.

    A module, so that distributed training wraps it whole.

    Args:
        agents: the agents that learn.
        backprop: path of the gradient, see the configuration.
        episodes: how many consecutive rows of a batch share their goal and start.
    """

    def __init__(self, agents: Agents, backprop: Backprop = "chosen", episodes: int = 1) -> None:
        super().__init__()
        self.agents = agents
        self.backprop = backprop
        self.episodes = episodes

    def forward(
        self,
        start: Tensor,
        goals: Tensor,
        noise: Tensor,
        interrupt: Tensor | None = None,
        label: Tensor | None = None,
        steps: Tensor | None = None,
        kl_weight: float = 1.0,
    ) -> Learned:
        """Loss of one batch.

        Args:
            start: x_0 as canvases (B, C, height, width).
            goals: (B, C, height, width) in [-1, 1].
            noise: (H, B, ...), see :func:`goalgen.rollout.draw_noise`.
            interrupt: see :func:`goalgen.rollout.rollout`.
            label: (B,) int64, of a model that is conditioned on labels.
            steps: (B,) int64, for a learner that visits one step of each episode.
            kl_weight: weight of the KL in the loss, for a learner that warms it up.
        """
        if self.backprop == "full" or not isinstance(self.agents.environment, ProposalsEnvironment):
            trajectory = rollout(self.agents, start, goals, noise, interrupt=interrupt, label=label)
            terms = bound(self.agents, trajectory)
        else:
            training = self.training
            self.eval()  # episodes without dropout: the states the agents will meet
            with torch.no_grad():
                trajectory = rollout(self.agents, start, goals, noise, interrupt=interrupt, label=label)
            self.train(training)
            terms = replay(self.agents, trajectory)
        gc_loss, extra = self.gc_loss(trajectory, terms)
        loss = terms.total.mean() + gc_loss
        measured = Bound(terms.reconstruction.detach(), terms.kl.detach())
        return Learned(loss, measured, extra, usage(trajectory, self.agents))

    def gc_loss(self, trajectory: Trajectory, terms: Bound) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the GC-agent on its return -J, and scalars for the log."""
        return terms.reconstruction.new_zeros(()), {}


def usage(trajectory: Trajectory, agents: Agents) -> Tensor | None:
    """Mean probability with which q takes each action at each step, (H, cells, A); None where actions are continuous."""
    if not isinstance(agents.environment.action_space, Discrete):
        return None
    return torch.stack([action_probs(q).mean(0) for q in trajectory.q]).detach()


def canvases(agents: Agents, trajectory: Trajectory) -> Tensor:
    """Canvases x_1 .. x_{H-1} of a trajectory, without gradient: (H - 1, B, C, height, width)."""
    states = trajectory.states[1:-1].detach()
    if not len(states):
        return trajectory.goals.new_zeros(0, *trajectory.goals.shape)
    return agents.environment.canvas(states.flatten(0, 1)).unflatten(0, states.shape[:2])


LearnerFactory = Callable[[Agents, Backprop, int], Learner]

_LEARNERS: dict[str, LearnerFactory] = {"imitation": Learner}


def register_learner(name: str, factory: LearnerFactory) -> None:
    """Make ``name`` a value of ``GCAgent.learner``."""
    _LEARNERS[name] = factory


def make_learner(agents: Agents, backprop: Backprop = "chosen", episodes: int = 1) -> Learner:
    """The learner that the GC-agent names.

    Raises:
        GoalgenError: no learner has this name.
    """
    name = agents.gc_agent.learner
    if name not in _LEARNERS:
        raise GoalgenError(f"no learner is called {name!r}; there are: {', '.join(sorted(_LEARNERS))}")
    return _LEARNERS[name](agents, backprop, episodes)


def choice_environment(agents: Agents) -> ChoiceEnvironment:
    """The environment, which must have few actions."""
    assert isinstance(agents.environment, ChoiceEnvironment)
    return agents.environment
