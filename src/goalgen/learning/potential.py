"""Learning of agents that look one step ahead: the scales of their potential, and the temperature."""

from __future__ import annotations

import torch
from torch import Tensor

from goalgen.bound import Bound
from goalgen.environment import Environment
from goalgen.policies import Policy
from goalgen.rollout import Trajectory


def log_probs(policies: list[Policy]) -> Tensor:
    """Log-probabilities of categorical policies at T steps, (T, B, cells, A)."""
    return torch.stack([policy.log_probs for policy in policies])  # type: ignore[attr-defined]


def middle_canvases(trajectory: Trajectory, environment: Environment) -> Tensor:
    """Canvases x_1 .. x_{H-1} of a trajectory, without gradient: (H - 1, B, C, height, width)."""
    states = trajectory.states[1:-1].detach()
    return environment.canvases(states) if len(states) else trajectory.goals.new_zeros(0, *trajectory.goals.shape)


def potential_loss(log_sigma: Tensor, canvases: Tensor, goals: Tensor) -> Tensor:
    """-Phi_h at the visited canvases (H - 1, B, ...), summed over steps and pixels, mean over goals (nats).

    Its minimum in sigma is the spread of the goals around the canvases at each step and pixel. (Equation 8)

    Args:
        log_sigma: (H, C, height, width).
    """
    log_sigma = log_sigma[1:].unsqueeze(1)
    phi = -0.5 * ((goals - canvases) * torch.exp(-log_sigma)) ** 2 - log_sigma
    return -phi.sum((0, 2, 3, 4)).mean()


def temperature_loss(log_temperature: Tensor, environment: Environment, trajectory: Trajectory, terms: Bound) -> Tensor:
    """Surrogate whose gradient in the temperatures is that of E_q[J]: the policy gradient. (Equation 15)

    The KL of a step is differentiated as it stands; what follows the step enters by the score function, less a
    baseline that is linear in the canvas's distance from the goal and fitted to the batch.

    Args:
        log_temperature: (H - 1,), of the policies of all steps but the last.
    """
    horizon = len(trajectory.q)
    if horizon == 1:
        return terms.reconstruction.new_zeros(())
    log_q = log_probs(trajectory.q[:-1])  # (H - 1, B, cells, A)
    log_p = log_probs([d.policy for d in trajectory.decisions[:-1]]).detach()
    temperature = log_temperature.exp()[:, None, None, None]
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
    canvases = environment.canvases(trajectory.states.detach())
    return (canvases - trajectory.goals).square().flatten(2).sum(-1)
