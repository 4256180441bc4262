"""A black box small enough to sum over: two marks of two parts each at most, or a stop, on images of two pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from goalgen.agents import Agents, Decision, GCAgent, SAgent, Seen
from goalgen.composite import Autoregressive, Composite
from goalgen.environment import Environment
from goalgen.likelihoods import PixelLikelihood

SPACE = Composite((3, 2), stop=2)
GOALS = torch.tensor([[-1.0, 0.5], [1.0, -0.5], [0.5, 0.5]]).view(3, 1, 1, 2)


class Marks(Environment):
    """A mark moves one of two pixels up or down. A state: canvas, whether it is over, and which marks were made (0 to 5)."""

    horizon, state_shape, action_space, black_box = 2, (4,), SPACE, True

    @property
    def canvas_shape(self) -> tuple[int, ...]:
        return (1, 1, 2)

    def initial(self, canvas: Tensor) -> Tensor:
        return torch.cat([canvas.flatten(1), canvas.new_zeros(len(canvas), 2)], 1)

    def canvas(self, state: Tensor) -> Tensor:
        return state[:, :2].view(-1, 1, 1, 2)

    def ended(self, state: Tensor) -> Tensor:
        return state[:, 2] > 0

    def transition(self, h: Tensor, state: Tensor, action: Tensor, offer: Any) -> Tensor:
        over = self.ended(state) | (action[:, 0] == SPACE.stop)
        pixel = torch.nn.functional.one_hot(action[:, 0].clamp(max=1), 2) * (action[:, 1:] * 2 - 1)
        moved = torch.cat([state[:, :2] + 0.6 * pixel, state[:, 2:3], 1 + action[:, :1] * 2 + action[:, 1:]], 1)
        return torch.where(
            over[:, None], torch.cat([state[:, :2], torch.ones_like(state[:, :1]), state[:, 3:]], 1), moved
        )


class Tables(nn.Module):
    """Logits of both parts, for every step and every mark made before (and every goal)."""

    def __init__(self, *lead: int, spread: float, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = nn.Parameter(torch.randn(*lead, 2, 6, 3, generator=generator) * spread)
        self.second = nn.Parameter(torch.randn(*lead, 2, 6, 3, 2, generator=generator) * spread)

    def policy(self, seen: Seen, *lead: Tensor) -> Autoregressive:
        at = (*lead, seen.rows, seen.state[:, 3].long())
        first, second = self.first[at], self.second[at]

        def conditional(part: int, before: Tensor) -> Tensor:
            if part == 0:
                return first.unsqueeze(1).expand(-1, before.shape[1], -1)
            return second.gather(1, before[..., :1].expand(-1, -1, 2))

        return Autoregressive(SPACE, seen.environment.ended(seen.state), conditional)


class MarksSAgent(SAgent):
    def __init__(self) -> None:
        super().__init__()
        self.tables = Tables(spread=1.0, seed=1)

    def decide(self, seen: Seen) -> Decision:
        return Decision(self.tables.policy(seen))


class MarksGCAgent(GCAgent):
    def __init__(self, spread: float = 1.0) -> None:
        super().__init__()
        self.tables = Tables(len(GOALS), spread=spread, seed=2)

    def policy(self, seen: Seen, goal: Tensor, decision: Decision) -> Autoregressive:
        return self.tables.policy(seen, which(goal))


def which(goal: Tensor) -> Tensor:
    """Index of goals, (B,)."""
    return (goal.flatten(1)[:, None] - GOALS.flatten(1)).abs().sum(-1).argmin(1)


def tiny_marks(spread: float = 1.0) -> Agents:
    """Agents whose policies are tables, so that each can be whatever it likes."""
    environment = Marks()
    likelihood = PixelLikelihood((1, 1, 2), 5, hidden=0, canvas=environment.canvas)
    return Agents(environment, MarksSAgent(), MarksGCAgent(spread), likelihood, (1, 1, 2), 5)
