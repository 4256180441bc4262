"""The S-agent of the proposals: it also draws the images that there are to choose from."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from goalgen.agents import Decision, SAgent, Seen
from goalgen.environment import Discrete
from goalgen.likelihoods import full_precision
from goalgen.networks import Torso, draw
from goalgen.policies import Categorical

UNIFORM_SHARE = 1e-3
"""Part of every discrete policy that is uniform: it bounds each KL by log(A / UNIFORM_SHARE) nats a choice.
(Equation 17)"""


class ProposalsSAgent(SAgent):
    """Proposal network and policy p(a | x_h) on one torso (the paper's S-agent).

    Every proposal is a linear map of the features, plus an image of its own at every step: the latter gives
    the first step, whose canvas may be the same for all goals, its variety.

    Args:
        torso: network (see :mod:`goalgen.agents.networks`).
        shape: (C, height, width).
        horizon: H.
        action_space: number of proposals and cells.
        spread: standard deviation of the proposals when training begins.
    """

    matrices = ("weight", "logit_weight")

    def __init__(
        self,
        torso: Torso,
        shape: tuple[int, int, int],
        horizon: int,
        action_space: Discrete,
        spread: float = 0.1,
    ) -> None:
        super().__init__()
        self.torso = torso
        self.shape = shape
        self.action_space = action_space
        count, cells = action_space.num_actions, action_space.cells
        scale = 0.3 / math.sqrt(torso.num_features)
        self.weight = nn.Parameter(torch.randn(count, torso.position_pixels, torso.num_features) * scale)
        self.bias = nn.Parameter(torch.randn(horizon, count, *shape) * spread)
        self.logit_weight = nn.Parameter(torch.zeros(count, cells, torso.num_context))
        self.logit_bias = nn.Parameter(torch.zeros(count, horizon, cells))

    def decide(self, seen: Seen) -> Decision:
        """Policy and all proposals (B, A, C, height, width)."""
        features, context = self.torso(seen.h, seen.state, seen.label, seen.memory)  # (B, F, P), (B, width)
        pixels = draw(features, self.weight)  # (B, A, D, P)
        images = full_precision(self.torso.assemble(pixels, self.shape)) + self.bias[seen.h]
        return Decision(self._policy(seen.h, context), images)

    def replay(self, seen: Seen, action: Tensor) -> Decision:
        """Policy and only the chosen proposals (B, cells, C, height, width), of actions (B, cells) at steps (B,).

        Equal to choosing from :meth:`decide`, at a fraction of its cost and memory.
        """
        features, context = self.torso(seen.h, seen.state, seen.label, seen.memory)
        pixels = self._chosen(features, action)  # (B, cells, D, P)
        images = full_precision(self.torso.assemble(pixels, self.shape)) + self.bias[seen.h.unsqueeze(1), action]
        return Decision(self._policy(seen.h, context), images)

    def _chosen(self, features: Tensor, action: Tensor) -> Tensor:
        """weight[action] @ features, (B, cells, D, P), with the rows sorted so that each weight is used once."""
        flat = action.flatten()
        order = flat.argsort()
        counts = torch.bincount(flat, minlength=self.action_space.num_actions).tolist()
        rows = features[order // action.shape[1]].transpose(1, 2)  # (B cells, P, F), rows of one action together
        parts = [part @ weight.T for part, weight in zip(rows.split(counts), self.weight, strict=True) if len(part)]
        return torch.cat(parts)[order.argsort()].transpose(1, 2).unflatten(0, action.shape)

    def _policy(self, h: Tensor, context: Tensor) -> Categorical:
        """p(. | x_h), mixed with a uniform share. (Equation 17)"""
        weight = self.logit_weight.flatten(0, 1)  # (A cells, width)
        logits = full_precision(context @ weight.T).unflatten(1, self.logit_weight.shape[:2])  # (B, A, cells)
        logits = (logits + self.logit_bias[:, h].transpose(0, 1)).transpose(1, 2)  # h (B,) or (1,)
        uniform = math.log(UNIFORM_SHARE / self.action_space.num_actions)
        mixed = torch.logaddexp(logits.log_softmax(-1) + math.log1p(-UNIFORM_SHARE), torch.full_like(logits, uniform))
        return Categorical(mixed)

    def rows(self) -> dict[str, int]:
        """Parameters with one row per proposal: name -> dimension that counts the proposals."""
        return {"weight": 0, "bias": 1, "logit_weight": 0, "logit_bias": 0}
