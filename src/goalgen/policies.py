"""What an agent says at a state: a distribution of its action.

The distributions themselves are torch's. A policy adds what goalgen asks of one: it acts on noise that is given to it, knows
its divergence from another policy of its kind, and can be narrowed or widened. All of B states at once, one number a state.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, distributions
from torch.distributions import Independent, Normal, kl_divergence

NEAREST = 16
"""Modes of a mixture of many that its divergence is summed over."""


class Policy(ABC):
    """A distribution of actions at B states. A policy of your own writes the four methods without a body."""

    kl_is_upper_bound = False
    """Whether the divergence *from* a policy of another kind to this one is of more than the action, and so an upper bound."""

    @abstractmethod
    def sample(self, noise: Tensor) -> Tensor:
        """The actions (B, ...) at this noise, which the action space has drawn. The same noise gives the same action."""

    @abstractmethod
    def log_prob(self, action: Tensor) -> Tensor:
        """log p(a), (B,) nats."""

    @abstractmethod
    def kl(self, other: Policy) -> Tensor:
        """KL(self || other), (B,) nats; other is the S-agent's policy, self the GC-agent's. An upper bound is allowed and said."""

    def kl_along(self, other: Policy, action: Tensor) -> Tensor:
        """KL(self || other), (B,) nats, given actions (B, ...) that were drawn from self; they are of use only where the
        divergence is not known, but its mean over them is."""
        return self.kl(other)

    def sample_many(self, noise: Tensor) -> Tensor:
        """K actions at each state, (K, B, ...), at noise (K, B, ...)."""
        return torch.stack([self.sample(each) for each in noise])

    def log_prob_many(self, actions: Tensor) -> Tensor:
        """log p of K actions at each state, (K, B) nats."""
        return torch.stack([self.log_prob(each) for each in actions])

    @abstractmethod
    def tempered(self, temperature: float) -> Policy:
        """The policy to the power 1 / temperature, as nearly as its kind allows: below 1 it keeps to likelier actions."""

    def correlated(self, share: float) -> Policy:
        """A policy of the same marginals along an episode that draws less: ``share`` of its noise is taken from what is on the
        canvas already. At 1 it draws nothing. Where there is no noise on the canvas nothing changes."""
        return self


class Categorical(Policy):
    """Independent choices: (B, cells) int64, each among A.

    Args:
        logits: (B, cells, A); they need no normalisation, and may be -inf where it never acts.
    """

    def __init__(self, logits: Tensor) -> None:
        base = distributions.Categorical(logits=logits, validate_args=False)
        self.distribution = Independent(base, 1, validate_args=False)

    @property
    def log_probs(self) -> Tensor:
        """Log-probabilities (B, cells, A)."""
        logits: Tensor = self.distribution.base_dist.logits
        return logits

    @property
    def probs(self) -> Tensor:
        """Probabilities (B, cells, A)."""
        probs: Tensor = self.distribution.base_dist.probs
        return probs

    def sample(self, noise: Tensor) -> Tensor:
        """(B, cells) at uniform noise (B, cells)."""
        # Inverse of the cumulative distribution: one uniform number a choice, so that the same noise gives nearby
        # policies the same action.
        cumulative = self.probs.cumsum(-1)
        below = cumulative <= noise.unsqueeze(-1) * cumulative[..., -1:]
        return below.sum(-1).clamp(max=cumulative.shape[-1] - 1)

    def log_prob(self, action: Tensor) -> Tensor:
        return self.distribution.log_prob(action)

    def kl(self, other: Policy) -> Tensor:
        assert isinstance(other, Categorical)
        return kl_divergence(self.distribution, other.distribution)

    def tempered(self, temperature: float) -> Categorical:
        return Categorical(self.log_probs / temperature)


class Gaussian(Policy):
    """Independent normals. Actions are reparameterised: a gradient passes through them.

    Args:
        mean: (B, ...).
        std: likewise, above 0.
    """

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        self.distribution = Independent(Normal(mean, std, validate_args=False), mean.ndim - 1, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """(B, ...)."""
        return self.distribution.mean

    @property
    def std(self) -> Tensor:
        """(B, ...)."""
        return self.distribution.stddev

    center, scale = mean, std

    def sample(self, noise: Tensor) -> Tensor:
        """Actions at standard normal noise; numbers beyond the width of an action, meant for a mixture, are not read."""
        return self.mean + self.std * noise[..., : self.mean.shape[-1]]

    def log_prob(self, action: Tensor) -> Tensor:
        return self.distribution.log_prob(action)

    def kl(self, other: Policy) -> Tensor:
        if isinstance(other, Mixture):
            return _kl_to_mixture(self, other)
        assert isinstance(other, Gaussian)
        return kl_divergence(self.distribution, other.distribution)

    def tempered(self, temperature: float) -> Gaussian:
        return Gaussian(self.mean, self.std * temperature**0.5)


class Mixture(Policy):
    """At every position one of M Gaussians, z = center + scale * (mean_c + std_c * noise). (Equation 27)

    Args:
        center: (B, P, k), where the mixture is placed.
        scale: (B, P, k), and how wide.
        logits: (B, P, M), weights of the modes; they need no normalisation.
        mode_mean: (M, k), of the modes as placed by ``center`` and ``scale``.
        mode_std: (M, k), likewise.
    """

    kl_is_upper_bound = True

    def __init__(self, center: Tensor, scale: Tensor, logits: Tensor, mode_mean: Tensor, mode_std: Tensor) -> None:
        self.center, self.scale = center, scale
        self.log_weight = logits.log_softmax(-1)
        self.mode_mean, self.mode_std = mode_mean, mode_std

    def sample(self, noise: Tensor) -> Tensor:
        """The action (B, P, k) at standard normal noise (B, P, k + 1), whose last number chooses the mode."""
        cumulative = self.log_weight.exp().cumsum(-1)
        chance = torch.special.ndtr(noise[..., -1:]) * cumulative[..., -1:]
        mode = (cumulative <= chance).sum(-1).clamp(max=len(self.mode_mean) - 1)
        return self.center + self.scale * (self.mode_mean[mode] + self.mode_std[mode] * noise[..., :-1])

    def log_prob(self, action: Tensor) -> Tensor:
        placed = (action - self.center) / self.scale
        each = self.costs(placed, torch.zeros_like(placed)) + 0.5 * math.log(2 * math.pi) * placed.shape[-1]
        return (torch.logsumexp(self.log_weight - each, -1) - self.scale.log().sum(-1)).sum(-1)

    def costs(self, mean: Tensor, variance: Tensor) -> Tensor:
        """-E[log N] of every mode but for its constant, over a Gaussian placed as the modes are, (B, P, M) nats.

        Two products of matrices, whose cost hardly grows with the number of modes. They are in double precision, as the
        distance to a narrow mode is a small difference of large numbers.
        """
        exact = torch.float32 if mean.device.type == "mps" else torch.float64
        m, v, places = mean.to(exact), variance.to(exact), self.mode_mean.to(exact)
        inverse = self.mode_std.to(exact).square().reciprocal()
        with torch.autocast(mean.device.type, enabled=False):
            square = (m.square() + v) @ inverse.T - 2 * m @ (places * inverse).T + (places.square() * inverse).sum(-1)
        return (0.5 * square).to(mean.dtype) + self.mode_std.log().sum(-1)

    @torch.no_grad()
    def nearest(self, mean: Tensor, variance: Tensor) -> Tensor:
        """NEAREST modes that a Gaussian placed as they are is likeliest from, (B, P, NEAREST) int64.

        By one product of matrices in single precision, which suffices to choose them.
        """
        inverse = self.mode_std.square().reciprocal()
        own = self.log_weight - self.mode_std.log().sum(-1) - 0.5 * (self.mode_mean.square() * inverse).sum(-1)
        numbers = torch.cat([mean.square() + variance, -2 * mean], -1)
        with torch.autocast(mean.device.type, enabled=False):
            score = own - 0.5 * numbers @ torch.cat([inverse, self.mode_mean * inverse], -1).T
        return score.topk(NEAREST, -1, sorted=False).indices

    def of_nearest(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Log-weights and :meth:`costs` of the :meth:`nearest` modes alone, each (B, P, NEAREST)."""
        nearest = self.nearest(mean.detach(), variance.detach())
        places, spread = F.embedding(nearest, torch.cat([self.mode_mean, self.mode_std], -1)).chunk(2, -1)
        squares = ((mean.unsqueeze(-2) - places).square() + variance.unsqueeze(-2)) / spread.square()
        return self.log_weight.gather(-1, nearest), 0.5 * squares.sum(-1) + spread.log().sum(-1)

    def kl(self, other: Policy) -> Tensor:
        raise NotImplementedError(
            "a mixture has no divergence in closed form; it is the S-agent's policy, not the GC-agent's"
        )

    def tempered(self, temperature: float) -> Mixture:
        """p to the power 1 / temperature, mode by mode; that of the sum, as far as modes do not overlap.

        A mode's variance becomes the temperature times as large; and as the integral of (w N(s))^(1/T) is w^(1/T) s^(1 - 1/T)
        but for a constant, narrow modes gain weight below 1, and wide ones above it.
        """
        size = (1 - 1 / temperature) * self.mode_std.log().sum(-1)  # (M,)
        std = self.mode_std * temperature**0.5
        return Mixture(self.center, self.scale, self.log_weight / temperature + size, self.mode_mean, std)


def _kl_to_mixture(q: Gaussian, p: Mixture) -> Tensor:
    """Divergence from a Gaussian q of choosing a mode, then acting in it: -log sum_c w_c exp(-KL(q || p_c)), (B,) nats.

    The GC-agent chooses the mode with the probability that makes the sum of both divergences least, which is what
    remains. No less than the divergence of the actions alone (Hershey and Olsen 2007, section 7). Of many modes only the
    nearest are summed: a larger bound, by next to nothing. (Equation 27)
    """
    mean, variance = (q.mean - p.center) / p.scale, q.distribution.variance / p.scale.square()
    entropy = 0.5 * (variance.log() + 1).sum(-1, keepdim=True)  # but for the constant that the modes lack too
    many = len(p.mode_mean) > 4 * NEAREST
    log_weight, costs = p.of_nearest(mean, variance) if many else (p.log_weight, p.costs(mean, variance))
    return -torch.logsumexp(log_weight - costs + entropy, -1).sum(-1)
