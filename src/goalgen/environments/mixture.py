"""A policy with several modes: a Gaussian mixture, with a divergence in closed form."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal
from torch.distributions.kl import register_kl


class GaussianMixture(Distribution):
    """At every position one of M Gaussians, z = center + scale * (mean_c + std_c * noise). (Equation 27)

    Args:
        center: (B, P, k), where the mixture is placed.
        scale: (B, P, k), and how wide.
        logits: (B, P, M), weights of the modes; they need no normalisation.
        mean: (M, k), of the modes as placed by ``center`` and ``scale``.
        std: (M, k), likewise.
    """

    arg_constraints = {}  # noqa: RUF012 - torch's own name and form
    has_rsample = False

    def __init__(self, center: Tensor, scale: Tensor, logits: Tensor, mean: Tensor, std: Tensor) -> None:
        super().__init__(center.shape[:1], center.shape[1:], validate_args=False)
        self.center, self.scale = center, scale
        self.log_weight = logits.log_softmax(-1)
        self.mode_mean, self.mode_std = mean, std

    @property
    def mean(self) -> Tensor:
        """(B, P, k)."""
        return self.center + self.scale * (self.log_weight.exp() @ self.mode_mean)

    @property
    def variance(self) -> Tensor:
        """(B, P, k)."""
        weight = self.log_weight.exp()
        spread = weight @ (self.mode_mean.square() + self.mode_std.square()) - (weight @ self.mode_mean).square()
        return self.scale.square() * spread

    def log_prob(self, value: Tensor) -> Tensor:
        """(B,) nats of actions (B, P, k)."""
        placed = ((value - self.center) / self.scale).unsqueeze(-2)  # (B, P, 1, k)
        each = Normal(self.mode_mean, self.mode_std, validate_args=False).log_prob(placed).sum(-1)
        return (torch.logsumexp(self.log_weight + each, -1) - self.scale.log().sum(-1)).sum(-1)

    def take(self, noise: Tensor) -> Tensor:
        """The action (B, P, k) at standard normal noise (B, P, k + 1), whose last number chooses the mode."""
        cumulative = self.log_weight.exp().cumsum(-1)
        chance = torch.special.ndtr(noise[..., -1:]) * cumulative[..., -1:]
        mode = (cumulative <= chance).sum(-1).clamp(max=len(self.mode_mean) - 1)
        return self.center + self.scale * (self.mode_mean[mode] + self.mode_std[mode] * noise[..., :-1])

    def tempered(self, temperature: float) -> GaussianMixture:
        """Weights to the power 1 / temperature, and every mode's variance times the temperature."""
        return GaussianMixture(
            self.center, self.scale, self.log_weight / temperature, self.mode_mean, self.mode_std * temperature**0.5
        )


@register_kl(Independent, GaussianMixture)
def _kl_gaussian_mixture(q: Independent, p: GaussianMixture) -> Tensor:
    """Divergence from a Gaussian q of choosing a mode, then acting in it: -log sum_c w_c exp(-KL(q || p_c)), (B,) nats.

    The GC-agent chooses the mode with the probability that makes the sum of both divergences least, which is what
    remains. No less than the divergence of the actions alone (Hershey and Olsen 2007, section 7). (Equation 27)
    """
    mean = ((q.mean - p.center) / p.scale).unsqueeze(-2)  # (B, P, 1, k)
    variance = (q.variance / p.scale.square()).unsqueeze(-2)
    inverse = p.mode_std.square().reciprocal()
    square = ((mean - p.mode_mean).square() + variance) * inverse
    constant = p.mode_std.log().sum(-1) - 0.5 * mean.shape[-1]
    each = 0.5 * square.sum(-1) + constant - 0.5 * variance.log().sum(-1)
    return -torch.logsumexp(p.log_weight - each, -1).sum(-1)
