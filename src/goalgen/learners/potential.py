"""Learning of the greedy and posterior GC-agents: the scales of their potential, and the temperature."""

from __future__ import annotations

import torch
from torch import Tensor

from goalgen.agents import LookaheadGCAgent, PosteriorGCAgent
from goalgen.bound import Bound
from goalgen.environments import Environment, action_log_probs
from goalgen.learners.base import Learner, canvases
from goalgen.rollout import Trajectory


def potential_loss(agent: LookaheadGCAgent, states: Tensor, goals: Tensor) -> Tensor:
    """-Phi_h at the visited canvases (H - 1, B, ...), summed over steps and pixels, mean over goals (nats).

    Its minimum in sigma is the spread of the goals around the canvases at each step and pixel. (Equation 8)
    """
    log_sigma = agent.potential.log_sigma[1:].unsqueeze(1)
    phi = -0.5 * ((goals - states) * torch.exp(-log_sigma)) ** 2 - log_sigma
    return -phi.sum((0, 2, 3, 4)).mean()


def temperature_loss(agent: PosteriorGCAgent, environment: Environment, trajectory: Trajectory, terms: Bound) -> Tensor:
    """Surrogate whose gradient in the temperatures is that of E_q[J]: the policy gradient. (Equation 15)

    The KL of a step is differentiated as it stands; what follows the step enters by the score function, less a
    baseline that is linear in the canvas's distance from the goal and fitted to the batch.
    """
    horizon = len(trajectory.q)
    if horizon == 1:
        return terms.reconstruction.new_zeros(())
    log_q = torch.stack([action_log_probs(q) for q in trajectory.q[:-1]])  # (H - 1, B, cells, A)
    log_p = torch.stack([action_log_probs(d.policy) for d in trajectory.decisions[:-1]]).detach()
    temperature = agent.log_temperature.exp()[:, None, None, None]
    # log q - log p is Phi / temperature but for a constant of the state, which the softmax does not see.
    phi = (log_q - log_p) * temperature.detach()
    log_q = (log_p + phi / temperature).log_softmax(-1)
    kl = (log_q.exp() * (log_q - log_p)).sum((-2, -1))
    taken = log_q.gather(-1, trajectory.actions[:-1].unsqueeze(-1)).sum((-2, -1))  # (H - 1, B)
    cost = terms.reconstruction.detach() + trajectory.kl.detach().flip(0).cumsum(0).flip(0)[1:]  # after the step
    cost = cost - cost.mean(1, keepdim=True)
    level = canvas_error(trajectory, environment)[:-2]
    level = level - level.mean(1, keepdim=True)
    slope = (cost * level).sum(1, keepdim=True) / (level * level).sum(1, keepdim=True).clamp(min=1e-12)
    advantage = cost - slope * level
    return (kl + advantage * taken).sum(0).mean()


def canvas_error(trajectory: Trajectory, environment: Environment) -> Tensor:
    """Squared distance of every state's canvas from its goal, (H + 1, B)."""
    states = trajectory.states.detach()
    canvases = environment.canvas(states.flatten(0, 1)).unflatten(0, states.shape[:2])
    return (canvases - trajectory.goals).square().flatten(2).sum(-1)


class PotentialLearner(Learner):
    """Fits the potential to the canvases the agent visits, and its temperature, if it has one, to the return."""

    def gc_loss(self, trajectory: Trajectory, terms: Bound) -> tuple[Tensor, dict[str, Tensor]]:
        agent = self.agents.gc_agent
        assert isinstance(agent, LookaheadGCAgent)
        loss = potential_loss(agent, canvases(self.agents, trajectory), trajectory.goals)
        if isinstance(agent, PosteriorGCAgent):
            loss = loss + temperature_loss(agent, self.agents.environment, trajectory, terms)
        return loss, {}
