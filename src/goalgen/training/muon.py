"""Muon: the weights of layers move by orthogonal matrices (Jordan et al. 2024), everything else as AdamW moves it.

torch.optim.Muon (of torch 2.9 and later) takes nothing but matrices, where convolutions have kernels, and shares no state with
AdamW, where a run has one file of it. Here both are one optimiser, and all matrices of one shape are made orthogonal at once.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
ROUNDS = 5
QUINTIC = (3.4445, -4.7750, 2.0315)
"""a x + b x^3 + c x^5 takes singular values in (0, 1] near to 1 in few rounds, not quite to it: what the authors chose."""
SIZE = 0.2
"""Root mean square of an update, over the learning rate: about that of AdamW's, so that one rate serves both (Liu et al. 2025)."""


def orthogonal(matrices: Tensor) -> Tensor:
    """Near to U V^T of every matrix U S V^T, (matrices, rows, columns); in bfloat16 where a GPU computes, which suffices."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    x = x.bfloat16() if x.is_cuda else x
    a, b, c = QUINTIC
    for _ in range(ROUNDS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.AdamW):
    """AdamW, but for groups with "orthogonal": their momentum, looked ahead (Nesterov), is made orthogonal. (Equation 35)

    Args:
        groups: of parameters, as AdamW takes them.
        layers: parameters that are moved so, see :meth:`goalgen.family.Family.layers`: matrices, where every kernel counts as columns.
        given: of AdamW.
    """

    def __init__(self, groups: list[dict[str, Any]], layers: list[nn.Parameter], **given: Any) -> None:
        chosen, parts = {id(layer) for layer in layers}, []
        for group in groups:
            for matrices in (True, False):
                some = [p for p in group["params"] if (id(p) in chosen) == matrices]
                parts += [{**group, "params": some, "orthogonal": matrices}] if some else []
        super().__init__(parts, **given)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for p in group["params"] if group["orthogonal"] else ():
                if p.grad is not None:
                    by_shape.setdefault(p.flatten(1).shape, []).append(p)
            for alike in by_shape.values():
                self._move(alike, group["lr"], group["weight_decay"])
        return super().step(closure)

    def _move(self, parameters: list[nn.Parameter], rate: float, decay: float) -> None:
        """Parameters that are matrices of one shape; their gradients are used up, so that AdamW passes them over."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        for p in parameters:
            state = self.state[p]
            if not state:
                state |= {"step": torch.tensor(0.0), "momentum": torch.zeros_like(p)}
            state["step"] += 1  # AdamW looks for it wherever there is a state
        momenta = [self.state[p]["momentum"] for p in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        ahead = torch.stack([g.lerp(m, MOMENTUM).flatten(1) for g, m in zip(gradients, momenta, strict=True)])
        moves = orthogonal(ahead) * (SIZE * math.sqrt(max(ahead.shape[1:])))
        for p, move in zip(parameters, moves, strict=True):
            p.mul_(1 - rate * decay).add_(move.view_as(p), alpha=-rate)
            p.grad = None
