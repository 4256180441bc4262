"""Actions of several parts, each a choice given those before it: a stroke's start, then its end, its bend, its width.

A policy over them is autoregressive: its log-probability is exact, and so are its divergence and entropy where all actions
can be listed; elsewhere both are exact part by part along the parts that were drawn. (Equation 30)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from goalgen.policies import Policy

Conditional = Callable[[int, Tensor], Tensor]
"""Logits (B, K, sizes[i]) of part i given the parts before it, (B, K, i) int64, of K actions at each of B states. Where they do not
depend on those parts, (B, 1, sizes[i]) will do."""

LIMIT = 100_000
"""Most actions at a state that a divergence or an entropy is summed over."""


@dataclass(frozen=True)
class Composite:
    """Parts that are chosen one after the other. Action: (B, parts) int64.

    Policies are :class:`Autoregressive`.

    Args:
        sizes: how many values each part has.
        stop: value of the first part that leaves nothing else to choose: the other parts are then 0.
    """

    sizes: tuple[int, ...]
    stop: int | None = None
    normal = False

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.sizes),)

    def noise(self, batch: int, generator: torch.Generator) -> Tensor:
        return torch.rand(batch, len(self.sizes), generator=generator)

    def uniform(self, noise: Tensor) -> Tensor:
        sizes = torch.tensor(self.sizes, device=noise.device)
        return self.canonical(torch.minimum((noise * sizes).long(), sizes - 1))

    def canonical(self, action: Tensor) -> Tensor:
        """Actions (..., parts) with 0 for what does not count."""
        if self.stop is None:
            return action
        return torch.where(self.stopped(action[..., :1]), torch.where(self._first(action), action, 0), action)

    def _first(self, action: Tensor) -> Tensor:
        return torch.arange(len(self.sizes), device=action.device) == 0

    def stopped(self, first: Tensor) -> Tensor:
        """Where the first part leaves nothing else to choose, bool of its shape."""
        return torch.zeros_like(first, dtype=torch.bool) if self.stop is None else first == self.stop

    def every(self) -> Tensor:
        """All different actions, (count, parts)."""
        return torch.unique(self.canonical(torch.tensor(list(itertools.product(*map(range, self.sizes))))), dim=0)

    @property
    def count(self) -> int:
        """How many different actions there are."""
        whole = math.prod(self.sizes)
        return whole if self.stop is None else whole - math.prod(self.sizes[1:]) + 1


class Autoregressive(Policy):
    """log p(a) = sum_i log p(a_i | a_0 .. a_{i-1}). (Equation 30)

    Args:
        space: of the actions.
        ended: (B,) bool, episodes that are over: there it stops, with certainty and at no cost, if the space has a ``stop``.
        conditional: see :data:`Conditional`; logits need no normalisation and may be -inf where it never acts.
        temperature: that each conditional is raised to the power 1 over.
    """

    def __init__(self, space: Composite, ended: Tensor, conditional: Conditional, temperature: float = 1.0) -> None:
        self.space, self.ended, self.conditional, self.temperature = space, ended, conditional, temperature

    def logits(self, part: int, before: Tensor) -> Tensor:
        """Logits of a part at the policy's temperature, (B, K or 1, sizes[part]); ``before`` is (B, K, part)."""
        logits = self.conditional(part, before)
        return logits if self.temperature == 1 else logits / self.temperature

    def log_probs(self, part: int, before: Tensor) -> Tensor:
        """log p(. | before) of a part, (B, K or 1, sizes[part])."""
        return self.logits(part, before).log_softmax(-1)

    def chosen(self, part: int, before: Tensor, values: Tensor) -> Tensor:
        """log p(value | before) of one value (B, K) each."""
        logits = self.logits(part, before)
        everywhere = logits.expand(*values.shape, -1)
        return everywhere.gather(-1, values.unsqueeze(-1))[..., 0] - logits.logsumexp(-1)

    def _free(self, part: int, before: Tensor) -> Tensor:
        """Where there is something to choose, bool (B, K)."""
        goes_on = ~self.ended[:, None].expand(before.shape[:2])
        return goes_on & ~self.space.stopped(before[..., 0]) if part else goes_on

    def _rest(self, part: int) -> int:
        """The value of a part where there is nothing to choose."""
        return 0 if part or self.space.stop is None else self.space.stop

    def sample_many(self, noise: Tensor) -> Tensor:
        """Actions (K, B, parts) at uniform noise (K, B, parts), each part by the inverse of its cumulative distribution."""
        noise = noise.transpose(0, 1)
        action = torch.zeros(*noise.shape[:2], 0, dtype=torch.int64, device=noise.device)
        for part in range(len(self.space.sizes)):
            cumulative = self.logits(part, action).softmax(-1).cumsum(-1)
            level = (noise[..., part].to(cumulative.dtype) * cumulative[..., -1]).contiguous()
            if cumulative.shape[1] == 1:
                drawn = torch.searchsorted(cumulative[:, 0].contiguous(), level, right=True)
            else:
                drawn = torch.searchsorted(cumulative.contiguous(), level.unsqueeze(-1), right=True)[..., 0]
            drawn = drawn.clamp(max=self.space.sizes[part] - 1)
            drawn = torch.where(self._free(part, action), drawn, self._rest(part))
            action = torch.cat([action, drawn.unsqueeze(-1)], -1)
        return action.transpose(0, 1)

    def log_prob_many(self, actions: Tensor) -> Tensor:
        actions = actions.transpose(0, 1)
        total = torch.zeros((), device=actions.device)
        for part in range(actions.shape[-1]):
            before = actions[..., :part]
            own = self.chosen(part, before, actions[..., part])
            sure = torch.where(actions[..., part] == self._rest(part), 0.0, -torch.inf)
            total = total + torch.where(self._free(part, before), own, sure)
        return total.transpose(0, 1)

    def sample(self, noise: Tensor) -> Tensor:
        return self.sample_many(noise.unsqueeze(0))[0]

    def log_prob(self, action: Tensor) -> Tensor:
        return self.log_prob_many(action.unsqueeze(0))[0]

    def kl_along_many(self, other: Policy, actions: Tensor) -> Tensor:
        """KL(self || other) of every part given the parts before it, summed: (K, B) nats at actions (K, B, parts).

        Its mean over actions of this policy is the divergence itself, and it varies less than log q - log p does, as each
        part is summed over. (Equation 30)
        """
        assert isinstance(other, Autoregressive)
        actions = actions.transpose(0, 1)
        total = torch.zeros((), device=actions.device)
        for part in range(actions.shape[-1]):
            total = total + self._divergence(other, part, actions[..., :part])
        return total.transpose(0, 1)

    def kl_along(self, other: Policy, action: Tensor) -> Tensor:
        return self.kl_along_many(other, action.unsqueeze(0))[0]

    def _divergence(self, other: Autoregressive, part: int, before: Tensor) -> Tensor:
        """KL of one part's conditionals, (B, K)."""
        log_q, log_p = self.log_probs(part, before), other.log_probs(part, before)
        each = torch.where(log_q.isneginf(), 0.0, log_q.exp() * (log_q - log_p)).sum(-1)
        return torch.where(self._free(part, before), each, 0.0)

    def kl(self, other: Policy) -> Tensor:
        """KL(self || other), (B,) nats, summed over all actions.

        Raises:
            NotImplementedError: they are too many; :meth:`kl_along` a drawn action has the same mean.
        """
        assert isinstance(other, Autoregressive)
        return self._expected(lambda part, before: self._divergence(other, part, before))

    def entropy(self) -> Tensor:
        """(B,) nats, summed over all actions.

        Raises:
            NotImplementedError: they are too many; :meth:`entropy_along` a drawn action has the same mean.
        """
        return self._expected(self._entropy)

    def entropy_along(self, action: Tensor) -> Tensor:
        """Entropy of every part given the parts before it, summed: (B,) nats, whose mean over its actions is its entropy."""
        parts = [self._entropy(part, action[:, None, :part]) for part in range(action.shape[-1])]
        return torch.stack(parts).sum(0)[:, 0]

    def _entropy(self, part: int, before: Tensor) -> Tensor:
        """Entropy of one part's conditionals, (B, K)."""
        each = torch.special.entr(self.log_probs(part, before).exp()).sum(-1)
        return torch.where(self._free(part, before), each, 0.0)

    def _expected(self, of: Callable[[int, Tensor], Tensor]) -> Tensor:
        """Sum over parts of the mean of ``of`` (part, before) over what may come before it."""
        if self.space.count > LIMIT:
            raise NotImplementedError(f"{self.space.count:,} actions are too many to sum over; ask along drawn actions")
        size, device = len(self.ended), self.ended.device
        every, shares = torch.zeros(size, 1, 0, dtype=torch.int64, device=device), torch.ones(size, 1, device=device)
        total = torch.zeros((), device=device)
        for part, values in enumerate(self.space.sizes):
            total = total + (shares * of(part, every)).sum(1)
            chance = self.log_probs(part, every).exp().expand(*every.shape[:2], -1)
            sure = torch.zeros_like(chance)  # where there is nothing to choose
            sure[..., self._rest(part)] = 1
            chance = torch.where(self._free(part, every).unsqueeze(-1), chance, sure)
            shares = (shares.unsqueeze(-1) * chance).flatten(1)
            following = torch.arange(values, device=device).expand(size, every.shape[1], values)
            every = torch.cat([every.unsqueeze(2).expand(-1, -1, values, -1), following.unsqueeze(-1)], -1).flatten(
                1, 2
            )
        return total

    def tempered(self, temperature: float) -> Autoregressive:
        """Each conditional to the power 1 / temperature; that of the whole action, as far as parts are independent."""
        return Autoregressive(self.space, self.ended, self.conditional, self.temperature * temperature)


def tabulated(space: Composite, ended: Tensor, log_joint: Tensor) -> Autoregressive:
    """The policy with unnormalised log-probabilities (B, count) of all actions, in the order of ``space.every()``."""
    every = space.every().to(log_joint.device)
    strides = torch.tensor([math.prod(space.sizes[i + 1 :]) for i in range(len(space.sizes))], device=log_joint.device)
    table = log_joint.new_full((len(log_joint), math.prod(space.sizes)), -torch.inf)
    table = table.index_copy(1, (every * strides).sum(-1), log_joint).unflatten(1, space.sizes)

    def conditional(part: int, before: Tensor) -> Tensor:
        marginal = (
            table.flatten(part + 1).unflatten(-1, (space.sizes[part], -1)).logsumexp(-1)
        )  # (B, *sizes[: part + 1])
        index = (before * strides[:part] // strides[part - 1]).sum(-1) if part else before.new_zeros(before.shape[:2])
        flat = marginal.reshape(len(table), -1, space.sizes[part])
        chosen = flat.gather(1, index.unsqueeze(-1).expand(-1, -1, space.sizes[part]))
        return torch.where(chosen.isneginf().all(-1, keepdim=True), 0.0, chosen)  # after what is never done, anything

    return Autoregressive(space, ended, conditional)
