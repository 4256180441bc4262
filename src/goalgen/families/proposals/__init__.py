"""Proposals, the paper's world: the S-agent draws images, one is chosen and added to the canvas."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from goalgen import config
from goalgen.agents import Agents
from goalgen.bound import Bound, bound
from goalgen.environment import Discrete
from goalgen.families.proposals.environment import ProposalsEnvironment
from goalgen.families.proposals.gc_agents import (
    GreedyGCAgent,
    LookaheadGCAgent,
    PosteriorGCAgent,
    Potential,
    ValueGCAgent,
)
from goalgen.families.proposals.revival import dead_proposals, revive
from goalgen.families.proposals.s_agent import ProposalsSAgent
from goalgen.family import (
    AfterStep,
    Draws,
    Family,
    LearningGCAgent,
    Plan,
    Streams,
    check_above_zero,
    check_least,
    check_share,
)
from goalgen.learning import Clock, Learned, log_probs
from goalgen.likelihoods import PixelLikelihood
from goalgen.networks import make_torso
from goalgen.policies import Categorical
from goalgen.rollout import Trajectory, rollout
from goalgen.task import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "GreedyGCAgent",
    "LookaheadGCAgent",
    "PosteriorGCAgent",
    "Potential",
    "Proposals",
    "ProposalsEnvironment",
    "ProposalsSAgent",
    "ProposalsSettings",
    "ValueGCAgent",
    "dead_proposals",
    "replay",
    "revive",
]


@dataclass(frozen=True)
class ProposalsSettings(config.Settings):
    """Choose among images to add."""

    num_proposals: int = 32
    """A, the number of proposals at every step."""
    grid: int = 1
    """Independent choices: each of GRID x GRID cells of the canvas chooses its own proposal."""
    step_size: float | None = None
    """alpha_h in x + alpha_h * y, the same at every step unless --learn-step-size is set; unset: 1 for latents, 0.3 for
    proposals."""
    learn_step_size: bool = False
    """Learn alpha_h, one for every step, starting from --step-size."""
    backprop: Literal["chosen", "full"] = config.of_training("chosen")
    """Path of the gradient to the first step: "chosen" through the sum of chosen proposals; "full" also through what
    the networks see of the canvases (the exact gradient; slower, noisier)."""
    chain_dropout: float = config.of_training(0.0)
    """Chance that a step takes a random action while training, so that the agents see states off their policy."""
    revive_every: int = config.of_training(500)
    """Steps between revivals of proposals that are never chosen (0: never)."""
    revive_below: float = config.of_training(0.05)
    """A proposal is dead when chosen less often than this fraction of an equal share."""


def replay(agents: Agents, trajectory: Trajectory) -> Bound:
    """The bound again, at the visited states, with gradients: only chosen proposals are drawn, all steps at once.
    (Equation 3)

    The gradient reaches every chosen proposal through the sum that the last canvas is, and every policy at
    its state; it does not pass through the networks' view of canvases (see ``backprop`` in the settings).
    """
    environment, s_agent = agents.environment, agents.s_agent
    assert isinstance(environment, ProposalsEnvironment)
    assert isinstance(s_agent, ProposalsSAgent)
    horizon, batch = trajectory.actions.shape[:2]
    h = torch.arange(horizon, device=trajectory.goals.device).repeat_interleave(batch)  # (H B,)
    label = None if trajectory.task.label is None else trajectory.task.label.repeat(horizon)
    memory = None if trajectory.task.memory is None else trajectory.task.memory.repeat(horizon, 1)
    seen = agents.see(h, trajectory.states[:-1].flatten(0, 1).detach(), label, memory=memory)
    decision = s_agent.replay(seen, trajectory.actions.flatten(0, 1))
    last = environment.replay(trajectory.states[0], decision.offer.unflatten(0, (horizon, batch)))
    q = Categorical(log_probs(trajectory.q).flatten(0, 1))
    kl = q.kl(decision.policy).unflatten(0, (horizon, batch))
    return Bound(-agents.likelihood.log_prob(trajectory.goals, last, hold_scale=True), kl)


class Proposals(Family):
    """The S-agent learns by imitation and through the chosen actions, with the GC-agent fixed.

    With the GC-agent's choices held, the gradient of J in everything generative (policy, proposals,
    step sizes, likelihood) needs no score function. How the GC-agent learns is its own affair.
    """

    name = "proposals"
    Settings = ProposalsSettings
    gc_agents = {"posterior": PosteriorGCAgent, "value": ValueGCAgent, "greedy": GreedyGCAgent}  # noqa: RUF012 - more may be put in
    settings: ProposalsSettings
    s_agent: ProposalsSAgent

    def __init__(self, plan: Plan) -> None:
        settings: ProposalsSettings = plan.settings
        environment = ProposalsEnvironment(
            plan.shape, plan.horizon, settings.num_proposals, settings.grid, settings.step_size or 0.3, settings.learn_step_size
        )  # fmt: skip
        space: Discrete = environment.action_space
        s_agent = ProposalsSAgent(make_torso(plan.network), plan.shape, plan.horizon, space)
        likelihood = PixelLikelihood(plan.shape, plan.levels)
        super().__init__(plan, environment, s_agent, self.make_gc_agent(plan, environment), likelihood)
        # Share of each action at each step, a running average over training (H, cells, A).
        usage = torch.full((plan.horizon, space.cells, space.num_actions), 1.0 / space.num_actions)
        self.register_buffer("usage", usage)
        self.usage: Tensor

    @classmethod
    def check(cls, plan: Plan) -> None:
        settings: ProposalsSettings = plan.settings
        check_least(settings, num_proposals=2, grid=1, revive_every=0)
        check_share(settings, "chain_dropout", "revive_below")
        check_above_zero(settings, "step_size")

    def draw(self, batch: int, streams: Streams) -> Draws:
        """Noise of an episode (H, batch, cells), and where it takes random actions (H, batch, 1 + cells)."""
        draws, chance = super().draw(batch, streams), self.settings.chain_dropout
        if chance > 0:
            cells = self.environment.action_space.shape[0]
            interrupt = torch.rand(self.horizon, batch, 1 + cells, generator=streams("chain dropout"))
            interrupt[:, :, 0] -= chance
            draws["interrupt"] = interrupt
        return draws

    def learn(self, task: Task, draws: Draws, clock: Clock) -> Learned:
        noise, interrupt = draws["noise"], draws.get("interrupt")
        if self.settings.backprop == "full":
            trajectory = rollout(self, task, noise, interrupt=interrupt)
            terms = bound(self, trajectory)
        else:
            training = self.training
            self.eval()  # episodes without dropout: the states the agents will meet
            with torch.no_grad():
                trajectory = rollout(self, task, noise, interrupt=interrupt)
            self.train(training)
            terms = replay(self, trajectory)
        loss = terms.total.mean()
        info: dict[str, Tensor] = {}
        if isinstance(self.gc_agent, LearningGCAgent):
            own, info = self.gc_agent.loss(self, trajectory, terms)
            loss = loss + own
        usage = torch.stack([q.probs.mean(0) for q in trajectory.q if isinstance(q, Categorical)]).detach()
        return Learned(loss, terms.detach(), info, {"usage": usage})

    def after_step(self, after: AfterStep) -> dict[str, int]:
        """Count how often each proposal is chosen, and give those that never are a second life."""
        averaged = after.averaged
        assert isinstance(averaged, Proposals)
        if "usage" not in after.seen:  # a stage before others, whose choices are not counted
            return {}
        self.usage.lerp_(after.seen["usage"], 0.01)
        count, every = 0, self.settings.revive_every
        if every and after.step % every == 0:
            count = revive(
                self.s_agent, averaged.s_agent, self.usage, after.optimizer, after.streams("revival"), self.settings.revive_below
            )  # fmt: skip
        averaged.usage.copy_(self.usage)
        return {"revived": count}

    def report(self, trajectory: Trajectory) -> dict[str, Any]:
        """How many proposals the GC-agent uses at every step: the exponential of the entropy of their shares."""
        shares = log_probs(trajectory.q).exp().mean(1)  # (H, cells, A)
        used = torch.special.entr(shares.double()).sum(-1).exp().mean(1)
        return {
            "proposals_used_per_step": [round(n, 2) for n in used.tolist()],
            "proposals": math.prod(shares.shape[2:]),
        }

    def figures(self, tensors: dict[str, Tensor]) -> dict[str, Figure]:
        from goalgen.families.proposals.picture import draw_usage

        return {"usage.png": draw_usage(tensors["usage"], self.settings.revive_below)}
