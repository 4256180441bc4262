"""The paper's environment (Figure 1): add one of A proposed images to the canvas."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from goalgen.environment import ChoiceEnvironment, Discrete
from goalgen.errors import GoalgenError


class ProposalsEnvironment(ChoiceEnvironment):
    """x_{h+1} = x_h + alpha_h * y_h^a, with proposals y_h drawn by the S-agent. (Equation 13)

    Args:
        shape: (C, height, width) of a canvas.
        horizon: H.
        num_proposals: A.
        grid: G; each cell of a G x G grid chooses its own proposal.
        step_size: alpha_h, the same at every step.
        learn_step_size: learn alpha_h (kept positive through its logarithm).
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        horizon: int,
        num_proposals: int,
        grid: int = 1,
        step_size: float = 0.3,
        learn_step_size: bool = False,
    ) -> None:
        super().__init__()
        _, height, width = shape
        if not 1 <= grid <= min(height, width):
            raise GoalgenError(f"grid {grid} does not fit an image of {height}x{width}; use 1 to {min(height, width)}")
        self.horizon = horizon
        self.state_shape = shape
        self.action_space = Discrete(num_proposals, grid * grid)
        log_alpha = torch.full((horizon,), float(step_size)).log()
        self.log_alpha = nn.Parameter(log_alpha, requires_grad=learn_step_size)
        rows = torch.arange(height) * grid // height
        columns = torch.arange(width) * grid // width
        cell = rows[:, None] * grid + columns
        mask = (cell == torch.arange(grid * grid)[:, None, None]).float()
        self.register_buffer("mask", mask.unsqueeze(1), persistent=False)  # (cells, 1, height, width)
        self.mask: Tensor

    def alpha(self, h: Tensor) -> Tensor:
        """Step sizes (B, 1, 1, 1) at steps ``h`` (B,)."""
        return self.log_alpha[h].exp()[:, None, None, None]

    def transition(self, h: Tensor, state: Tensor, action: Tensor, offer: Tensor) -> Tensor:
        """x_h + alpha_h * y_h^a (B, C, height, width); ``offer`` is (B, A, C, height, width)."""
        index = action[:, :, None, None, None].expand(-1, -1, *offer.shape[2:])
        return self.add(h, state, offer.gather(1, index))

    def add(self, h: Tensor, state: Tensor, chosen: Tensor) -> Tensor:
        """The transition, given only the proposal each cell has chosen, (B, cells, C, height, width)."""
        image = chosen[:, 0] if self.action_space.cells == 1 else (chosen * self.mask).sum(1)
        return state + self.alpha(h) * image

    def replay(self, state: Tensor, chosen: Tensor) -> Tensor:
        """x_H from x_0 and the proposals chosen at every step, (H, B, cells, C, height, width)."""
        for h in range(self.horizon):
            state = self.add(torch.full((len(state),), h, device=state.device), state, chosen[h])
        return state

    def candidates(self, h: Tensor, state: Tensor, offer: Tensor) -> Tensor:
        return state.unsqueeze(1) + self.alpha(h).unsqueeze(1) * offer

    def cell_mask(self) -> Tensor:
        return self.mask
