"""A continuum of proposals: a Gaussian latent decides what is added to the canvas."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from goalgen.environments.base import Continuous, Environment

Decoder = Callable[[Tensor], Tensor]
"""Latents (B, positions, k) to images (B, C, height, width): what the S-agent offers at a state."""


class LatentEnvironment(Environment):
    """x_{h+1} = x_h + alpha_h * y(x_h, z), with y drawn by the S-agent's decoder. (Equation 21)

    Args:
        shape: (C, height, width) of a canvas.
        horizon: H. At 1 this is a variational autoencoder.
        latent_shape: (positions, k) of an action.
        step_size: alpha_h, the same at every step.
        learn_step_size: learn alpha_h (kept positive through its logarithm).
        mixed: whether the S-agent's policy is a mixture of Gaussians.
    """

    action_space: Continuous
    differentiable = True

    def __init__(
        self,
        shape: tuple[int, int, int],
        horizon: int,
        latent_shape: tuple[int, int],
        step_size: float = 1.0,
        learn_step_size: bool = False,
        mixed: bool = False,
    ) -> None:
        super().__init__()
        self.horizon = horizon
        self.state_shape = shape
        self.action_space = Continuous(latent_shape, mixed)
        log_alpha = torch.full((horizon,), float(step_size)).log()
        self.log_alpha = nn.Parameter(log_alpha, requires_grad=learn_step_size)

    def transition(self, h: Tensor, state: Tensor, action: Tensor, proposals: Decoder) -> Tensor:
        """x_h + alpha_h * y(x_h, z), (B, C, height, width)."""
        return state + self.log_alpha[h].exp()[:, None, None, None] * proposals(action)
