"""One update of the weights: gradient, checks, clipping, optimiser."""

from __future__ import annotations

import math

import torch
from accelerate import Accelerator
from torch import Tensor

from goalgen.bound import Bound
from goalgen.family import Family
from goalgen.training.optimiser import first_bad_tensor


class NotFiniteError(Exception):
    """A loss, a gradient or a weight is NaN or infinite; the text names the first."""


class Updates:
    """Moves the weights of a family down the gradient of losses.

    Args:
        optimizer: as Accelerate has prepared it; each group has a "peak".
        longest: norm to which the gradients of either agent are shortened.
    """

    def __init__(
        self, accelerator: Accelerator, optimizer: torch.optim.Optimizer, family: Family, longest: float
    ) -> None:
        self.accelerator, self.optimizer, self.family, self.longest = accelerator, optimizer, family, longest
        self.parameters = [group for group in (family.generative_parameters(), family.gc_parameters()) if group]

    def gradient(self, loss: Tensor, terms: Bound) -> None:
        """The gradient of a loss, checked, and shortened where it is too long.

        Raises:
            NotFiniteError: loss or gradient.
        """
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        self.shorten(loss, terms)

    def shorten(self, loss: Tensor, terms: Bound) -> None:
        """Stop at a loss or gradient that is not finite; shorten what is too long, S-agent's and GC-agent's apart.

        One synchronisation for all; gradients that are short enough, as nearly all are, are not written again.

        Raises:
            NotFiniteError: loss or gradient.
        """
        gradients = [[p.grad for p in group if p.grad is not None] for group in self.parameters]
        norms = [torch.nn.utils.get_total_norm(part) for part in gradients]
        known, *lengths = torch.stack([loss.detach().float(), *norms]).tolist()
        if not math.isfinite(known + sum(lengths)):
            raise NotFiniteError(first_bad_tensor(terms, self.family))
        for group, norm, length in zip(self.parameters, norms, lengths, strict=True):
            if length > self.longest:
                torch.nn.utils.clip_grads_with_norm_(group, self.longest, norm)

    def move(self, factor: float) -> None:
        """A step of the optimiser, at so much of the peak learning rates."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        self.optimizer.step()

    def check_weights(self) -> None:
        """Refuse weights that the last update has spoilt, and no loss has seen yet.

        Raises:
            NotFiniteError: one of them is not finite.
        """
        for name, parameter in self.family.named_parameters():
            if not torch.isfinite(parameter).all():
                raise NotFiniteError(f"{name} is not finite")
