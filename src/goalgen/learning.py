"""How agents learn: functions that families call. Each says what it needs of a world.

Through the whole episode (:func:`learn_pathwise`); from closed-form marginals (:func:`spread_steps`); of agents that look one
step ahead, the scales of their potential and the temperature (:func:`potential_loss`, :func:`temperature_loss`); soft values
(:func:`value_loss`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from goalgen.agents import Agents
from goalgen.bound import Bound, bound
from goalgen.environment import Environment
from goalgen.policies import Policy
from goalgen.rollout import Trajectory, rollout
from goalgen.task import Task

LAMBDA = 0.9
"""Weight of the sampled return against the one-step soft Bellman value in the targets of V."""


@dataclass(frozen=True)
class Clock:
    """Where a run stands."""

    step: int = 0
    """steps taken, each of one batch"""
    done: float = 0.0
    """share of the run that lies behind, 0 to 1"""


@dataclass
class Learned:
    """What is learned from one batch."""

    loss: Tensor
    """Scalar to minimise, nats an image."""
    bound: Bound
    """J of the batch, split by term, without gradients."""
    info: dict[str, Tensor] = field(default_factory=dict)
    """Scalars worth a line in the log."""
    seen: dict[str, Tensor] = field(default_factory=dict)
    """What the family's ``after_step`` wants to know of the batch; averaged over processes."""
    again: Sequence[Callable[[], Tensor]] = ()
    """Losses of further updates from the same batch, each to be asked for once the weights have moved by the one before; as
    many at every batch, and in every process."""
    rows: Tensor | None = None
    """Rows of the batch, bool (B,), that the bound is of; None: all."""


def learn_pathwise(
    agents: Agents, task: Task, noise: Tensor, kl_weight: float = 1.0, recompute: bool = False
) -> Learned:
    """J differentiated through actions and states (Kingma and Welling 2014; stochastic value gradients, Heess et al. 2015).

    For Gaussian actions in a differentiable world: with the noise held, an episode is a function of all weights. So its
    gradient is that of (3) itself, in both agents at once, without a score function and without a critic.

    Args:
        noise: (H, B, ...), see :func:`goalgen.rollout.draw_noise`.
        kl_weight: weight of the KL in the loss, for a run that warms it up.
        recompute: see :func:`goalgen.rollout.rollout`.
    """
    trajectory = rollout(agents, task, noise, through_q=True, through_actions=True, recompute=recompute, weigh=False)
    terms = bound(agents, trajectory, hold_scale=True)
    loss = (terms.reconstruction + kl_weight * terms.kl.sum(0)).mean()
    return Learned(loss, terms.detach())


@torch.no_grad()
def active_units(trajectory: Trajectory, threshold: float = 0.01) -> Tensor:
    """Numbers of every step's action that tell goals apart, (H,) int64: how much of a latent is in use.

    A number is active when its posterior mean, in standard deviations of the prior and measured from the prior's mean (scale
    and center of a mixture), varies over the goals by more than ``threshold`` (variance; after Burda et al. 2016, section 4).
    Both policies must have a ``center`` and a ``scale``, as :class:`goalgen.policies.Gaussian` has.
    """
    counts = []
    for q, decision in zip(trajectory.q, trajectory.decisions, strict=True):
        p = decision.policy
        offset = (q.center - p.center) / p.scale  # type: ignore[attr-defined]
        counts.append((offset.flatten(1).var(0, correction=0) > threshold).sum())
    return torch.stack(counts)


def spread_steps(batch: int, horizon: int, generator: torch.Generator) -> Tensor:
    """One step in 0..H-1 for each of ``batch`` examples, (batch,) int64: uniform each, and evenly spread together.

    Example i takes floor(H ((u + i / batch) mod 1)) with one uniform u for the batch, in a random order (Kingma et al. 2021, appendix I.1).
    (Equation 26)
    """
    place = (torch.rand(1, generator=generator, dtype=torch.float64) + torch.arange(batch) / batch) % 1
    steps = (place * horizon).long().clamp(max=horizon - 1)
    return steps[torch.randperm(batch, generator=generator)]


def of_all_processes(rows: Tensor) -> Tensor:
    """Rows (B, ...) of every process of a distributed run, one after the other."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return rows
    found = [torch.empty_like(rows) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(found, rows.contiguous())
    return torch.cat(found)


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
    if len(trajectory.q) == 1:
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
    canvases = environment.canvases(trajectory.states.detach())
    level = (canvases - trajectory.goals).square().flatten(2).sum(-1)[:-2]  # squared distance of x_h from the goal
    level = level - level.mean(1, keepdim=True)
    slope = (cost * level).sum(1, keepdim=True) / (level * level).sum(1, keepdim=True).clamp(min=1e-12)
    advantage = cost - slope * level
    return (kl + advantage * taken).sum(0).mean()


def soft_returns(log_ratio: Tensor, values: Tensor, terminal: Tensor, weight: float = LAMBDA) -> Tensor:
    """Targets of V_1 .. V_{H-1}, (H - 1, B) nats. (Equation 16)

    For a policy q proportional to p exp V the one-step soft value, log sum_a p exp V (equation 5), is
    V(x_{h+1}) + log p(a) - log q(a) at *any* action: the sampled action gives it exactly. ``weight`` 0 is that
    value; 1 is the whole sampled soft return, log p(g, tau) - log q(tau | g) from the state on; between, their
    geometric mixture as in TD(lambda).

    Args:
        log_ratio: log p(a_h | x_h) - log q(a_h | x_h, g), (H, B).
        values: V_1(x_1) .. V_{H-1}(x_{H-1}), (H - 1, B).
        terminal: V_H = log p(g | x_H), (B,).
    """
    target, ahead, targets = terminal, terminal, []
    for h in range(len(log_ratio) - 1, 0, -1):
        target = log_ratio[h] + (1 - weight) * ahead + weight * target
        targets.append(target)
        ahead = values[h - 1]
    return torch.stack(targets[::-1]) if targets else values


def within_goals(error: Tensor, episodes: int) -> Tensor:
    """Errors (H - 1, B) less their mean over the episodes of the same goal. (Equation 20)

    What all episodes of a goal have in common, how hard it is to reach, is most of the variance of the returns, and no
    policy depends on it: q compares the next states of one goal. So with several episodes a goal only their
    differences are learned from, and V is right up to a constant for each goal and step.
    """
    if episodes == 1:
        return error
    grouped = error.unflatten(1, (-1, episodes))
    return (grouped - grouped.mean(-1, keepdim=True)).flatten(1) * (episodes / (episodes - 1)) ** 0.5


def value_loss(values: Tensor, log_ratio: Tensor, terminal: Tensor, episodes: int) -> tuple[Tensor, Tensor]:
    """Regression of V_1 .. V_{H-1} on the soft returns of the episodes they were asked in, and its error, nats (scalars).

    Args:
        values: (H - 1, B), with gradient; H is at least 2.
        log_ratio: (H, B).
        terminal: (B,).
        episodes: consecutive rows that share their goal.
    """
    targets = soft_returns(log_ratio.detach(), values.detach(), terminal.detach())
    error = within_goals(values - targets, episodes)
    loss = F.huber_loss(error, torch.zeros_like(error), delta=5.0)
    return loss, error.detach().square().mean().sqrt()
