"""Who paints: two agents that point at a map of the canvas, and what judges, and helps, the one that is told the goal."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from goalgen.agents import Agents, Decision, GCAgent, SAgent, Seen
from goalgen.blackbox import Judge
from goalgen.composite import Autoregressive
from goalgen.environment import Environment
from goalgen.errors import GoalgenError
from goalgen.families.code import coarser
from goalgen.families.strokes.environment import BEND, END, START, WIDTH, StrokesEnvironment
from goalgen.likelihoods import full_precision
from goalgen.networks import NetworkSpec, make_torso
from goalgen.policies import Policy

CROP = 5
"""Side of the crop of the canvas around each position, in positions."""

REACHES = (1, 2, 4)
"""From how far positions hear of each other, one convolution after the other, in positions: a stroke is about as long."""

REACH = 4.0
"""What is proposed at random ends about so many positions from where it starts, and bends by about half as many."""

SHARP = 4.0
"""Logits are so many times what the networks say, so that few steps of learning make a policy sharp."""

CRITIC_RATE = 10.0
"""Two numbers a step learn faster than the weights of a network."""


def world(environment: Environment) -> StrokesEnvironment:
    """The environment, which must be one of strokes."""
    assert isinstance(environment, StrokesEnvironment)
    return environment


class Pointer(nn.Module):
    """A policy over strokes from images: start and end point at positions of the network's map, the rest follows from both.

    The logit of a position is a query times its key. The query of the end knows the start and the images around it, and
    where an end lies seen from the start has weights of its own. How a stroke bends is asked of what lies at both and halfway.

    Args:
        spec: a network with a map of positions.
        channels: of the images that it reads.
        environment: whose positions are those of the map.
    """

    def __init__(self, spec: NetworkSpec, channels: int, environment: StrokesEnvironment) -> None:
        super().__init__()
        self.space, grid = environment.action_space, environment.grid
        self.torso = make_torso(coarser(spec), channels)
        rows, columns = self.torso.top.grid
        self.finer = grid[0] // rows
        if not self.torso.top.patch or grid != (rows * self.finer, columns * self.finer):
            raise GoalgenError("strokes need a network with a map of positions: --network unet or transformer")
        features, width, patch = self.torso.num_features, spec.head_width, spec.patch
        side = CROP * patch
        self.crop = nn.Conv2d(channels, width, side, stride=patch, padding=(side - patch) // 2)
        self.coarse = nn.Linear(features, width * self.finer**2)
        self.fine = nn.ModuleList(nn.Conv2d(width, width, 3, padding=far, dilation=far) for far in REACHES)
        self.start = nn.Linear(width, 1)
        self.stop = nn.Linear(self.torso.num_context, 1)
        self.maps = nn.Linear(width, 4 * width)  # of starts, of ends, of keys, of what lies halfway
        self.query = nn.Linear(width, width)
        places = torch.cartesian_prod(*map(torch.arange, grid))
        halfway = (places[None] + places[:, None] + 1) // 2
        self.register_buffer("halfway", halfway[..., 0] * grid[1] + halfway[..., 1], persistent=False)  # (P, P)
        self.halfway: Tensor
        way = places[None] - places[:, None]
        way = (way[..., 0] + grid[0] - 1) * (2 * grid[1] - 1) + way[..., 1] + grid[1] - 1
        self.register_buffer("way", way, persistent=False)  # (P, P): which of the ways leads from one to the other
        self.way: Tensor
        ways = (2 * grid[0] - 1) * (2 * grid[1] - 1)
        self.from_pen = nn.Parameter(torch.zeros(ways))
        self.compass = nn.Linear(width, ways)  # where to go, seen from the start, wherever that is
        nn.init.zeros_(self.compass.weight)
        self.along = nn.Embedding(ways, width)
        _, _, bends, widths, inks = self.space.sizes
        self.bent, self.wide = nn.Embedding(bends, width), nn.Embedding(widths, width)
        self.heads = nn.ModuleList(nn.Linear(width, size) for size in (bends, widths, inks))
        for table in (self.along, self.bent, self.wide):
            nn.init.normal_(table.weight, std=0.1)

    def policy(self, seen: Seen, images: Tensor) -> Autoregressive:
        """The policy at states (B, ...), from images (B, channels, height, width)."""
        features, context = self.torso(seen.h, images, seen.label, seen.memory)
        fine = self.crop(images) + self.spread(self.coarse(features.transpose(1, 2)))
        for conv in self.fine:
            fine = conv(F.silu(fine)) + fine
        tokens = F.silu(fine).flatten(2).transpose(1, 2)  # (B, P, width)
        here, there, key, between = full_precision(self.maps(tokens)).chunk(4, -1)
        environment = world(seen.environment)
        pen = environment.pen(seen.state)
        drawn = torch.where((pen > 0)[:, None], self.from_pen[self.way[(pen - 1).clamp(min=0)]], 0.0)
        with torch.autocast(images.device.type, enabled=False):
            first = self.start(F.silu(here))[..., 0] + drawn
            first = SHARP * torch.cat([first, self.stop(full_precision(context))], 1)  # (B, P + 1)

        def conditional(part: int, before: Tensor) -> Tensor:
            if part == START:
                return first.unsqueeze(1)
            with torch.autocast(images.device.type, enabled=False):
                start = before[..., START].clamp(max=here.shape[1] - 1)
                x = _at(here, start)  # (B, K, width)
                if part == END:
                    query = F.silu(x)
                    near = self.compass(query).gather(-1, self.way[start])
                    return SHARP * (self.query(query) @ key.transpose(1, 2) * key.shape[-1] ** -0.5 + near)
                end = before[..., END]
                x = x + _at(there, end) + _at(between, self.halfway[start, end]) + self.along(self.way[start, end])
                x = x if part == BEND else x + self.bent(before[..., BEND])
                x = x if part <= WIDTH else x + self.wide(before[..., WIDTH])
                logits: Tensor = SHARP * self.heads[part - BEND](F.silu(x))
                return logits

        return Autoregressive(self.space, environment.ended(seen.state), conditional)

    def spread(self, tokens: Tensor) -> Tensor:
        """Numbers at finer positions, (B, width, rows, columns), from those of the network's, which hold them side by side."""
        finer, (rows, columns) = self.finer, self.torso.top.grid
        parts = tokens.view(len(tokens), rows, columns, finer, finer, -1)
        return parts.permute(0, 5, 1, 3, 2, 4).reshape(len(tokens), -1, rows * finer, columns * finer)


def _at(tokens: Tensor, index: Tensor) -> Tensor:
    """Rows (B, K, numbers) of tokens (B, P, numbers) at positions (B, K)."""
    first = torch.arange(len(tokens), device=index.device)[:, None] * tokens.shape[1]
    return tokens.flatten(0, 1).index_select(0, (first + index).flatten()).unflatten(0, index.shape)


class StrokesSAgent(SAgent):
    """Sees the canvas, and where the pen is."""

    def __init__(self, spec: NetworkSpec, environment: StrokesEnvironment) -> None:
        super().__init__()
        self.pointer = Pointer(spec, spec.shape[0] + 1, environment)

    def decide(self, seen: Seen) -> Decision:
        environment = world(seen.environment)
        canvas = environment.canvas(seen.state)
        pen = F.one_hot(environment.pen(seen.state), environment.positions + 1)[:, 1:].to(canvas.dtype)
        spot = F.interpolate(pen.unflatten(1, (1, *environment.grid)), size=canvas.shape[-2:])
        return Decision(self.pointer.policy(seen, torch.cat([canvas, spot], 1)))


class PainterGCAgent(GCAgent):
    """Sees the canvas, and what it lacks of the goal."""

    def __init__(self, plan: object, environment: Environment) -> None:
        super().__init__(plan, environment)
        spec: NetworkSpec = plan.network  # type: ignore[attr-defined]
        self.pointer = Pointer(dataclasses.replace(spec, dropout=0.0), 2 * spec.shape[0], world(environment))
        self.critic = Critic(spec.horizon, plan.settings.stroke_sigma, plan.settings.stroke_ahead)  # type: ignore[attr-defined]

    def policy(self, seen: Seen, goal: Tensor, decision: Decision) -> Policy:
        canvas = world(seen.environment).canvas(seen.state)
        if seen.memory is not None:
            # It knows the goal, so a code is worth what it tells the S-agent, and learns from that alone.
            seen = dataclasses.replace(seen, memory=seen.memory.detach())
        return self.pointer.policy(seen, torch.cat([canvas, goal - canvas], 1))

    def rates(self) -> dict[nn.Parameter, float]:
        return dict.fromkeys(self.critic.parameters(), CRITIC_RATE)


class Critic(Judge):
    """V = Phi + max(0, c_h m - b_h): of the m nats that are missing and could be mended, what further strokes will bring, less
    their cost.

    Phi = -|x - g|^2 / (2 sigma^2), a Gaussian around the canvas, is what the GC-agent is paid; V has one feature, and cannot take
    a stroke that bridges a gap for one that will help later: ink where there must be none is not mended by more. (Equation 31)

    Args:
        horizon: H.
        sigma: share of the range from black to white.
        ahead: whether it looks ahead at all.
    """

    def __init__(self, horizon: int, sigma: float, ahead: bool = True) -> None:
        super().__init__()
        self.precision, self.ahead = 1 / (2 * (2 * sigma) ** 2), ahead
        self.share = nn.Parameter(torch.zeros(horizon), requires_grad=ahead)
        self.cost = nn.Parameter(torch.zeros(horizon), requires_grad=ahead)

    def more(self, h: int, mendable: Tensor) -> Tensor:
        """What is still to be gained from step h on, of so many nats (any shape)."""
        if not self.ahead or h == len(self.share):
            return torch.zeros_like(mendable)
        return F.relu(torch.sigmoid(self.share[h]) * mendable - 10 * F.softplus(self.cost[h]))

    def missing(self, seen: Seen, goal: Tensor) -> Tensor:
        """-Phi, (B,) nats."""
        return (world(seen.environment).canvas(seen.state) - goal).square().flatten(1).sum(1) * self.precision

    def lost(self, seen: Seen, goal: Tensor) -> Tensor:
        """What of it no stroke could mend, (B,) nats."""
        return world(seen.environment).lost(seen.state, goal) * self.precision

    def value(self, seen: Seen, goal: Tensor) -> Tensor:
        missing = self.missing(seen, goal)
        over = seen.environment.ended(seen.state)
        return torch.where(over, -missing, -missing + self.more(seen.step, missing - self.lost(seen, goal)))

    def look(self, agents: Agents, seen: Seen, goal: Tensor, decision: Decision, actions: Tensor) -> Tensor:
        """... without drawing: only how much each stroke alone changes the error, within its box."""
        environment = world(seen.environment)
        change, lost = environment.error_changes(seen.state, goal, actions)
        missing, lost = (
            self.missing(seen, goal) + change * self.precision,
            self.lost(seen, goal) + lost * self.precision,
        )
        stops = actions[..., START] == environment.positions
        return torch.where(stops, 0.0, self.more(seen.step + 1, missing - lost)) - missing


class Stop(Policy):
    """The drawing is done, whatever the noise."""

    def __init__(self, environment: StrokesEnvironment) -> None:
        self.action = torch.tensor([environment.positions, 0, 0, 0, 0], device=environment.places.device)

    def sample(self, noise: Tensor) -> Tensor:
        return self.action.expand(noise.shape)

    def log_prob(self, action: Tensor) -> Tensor:
        return torch.where((action == self.action).all(-1), 0.0, -torch.inf)

    def sample_many(self, noise: Tensor) -> Tensor:
        return self.sample(noise)

    def log_prob_many(self, actions: Tensor) -> Tensor:
        return self.log_prob(actions)

    def kl(self, other: Policy) -> Tensor:
        raise NotImplementedError("it only proposes")

    def tempered(self, temperature: float) -> Stop:
        return self


class Missing:
    """Proposes strokes at random where ink would help, and to stop.

    Args:
        strokes: candidates of the first kind; there is one of the second.
    """

    def __init__(self, strokes: int) -> None:
        self.strokes = strokes

    def __call__(self, seen: Seen, goal: Tensor, decision: Decision) -> list[tuple[Policy, int]]:
        environment = world(seen.environment)
        space, grid, ended = environment.action_space, environment.grid, environment.ended(seen.state)
        canvas = environment.canvas(seen.state)
        helps = [self.gain(canvas, goal, c, o) for c, o in zip(environment.colours, environment.opacities, strict=True)]
        gain = torch.stack(helps).amax(0)  # (B, height, width): by the best ink
        gain = F.adaptive_avg_pool2d(gain.unsqueeze(1), grid).flatten(1)
        where = (gain + 1e-3 * gain.amax(1, keepdim=True) + 1e-6).log()  # (B, P)
        places = torch.cartesian_prod(*map(torch.arange, grid)).to(canvas)
        far = (places[:, None] - places).square().sum(-1) / (-2 * REACH**2)  # (P, P)
        ways = torch.cartesian_prod(*2 * [torch.arange(environment.bends)]).to(canvas) - environment.bends // 2
        bend = ways.square().sum(-1) / (-2 * (REACH / 2) ** 2)
        never = where.new_full((len(where), 1), -torch.inf)

        def conditional(part: int, before: Tensor) -> Tensor:
            if part == START:
                return torch.cat([where, never], 1).unsqueeze(1)
            if part == END:
                return where.unsqueeze(1) + far[before[..., START].clamp(max=len(far) - 1)]
            if part == BEND:
                return bend.expand(len(before), 1, -1)
            return canvas.new_zeros(len(before), 1, space.sizes[part])

        return [(Autoregressive(space, ended, conditional), self.strokes), (Stop(environment), 1)]

    @staticmethod
    def gain(canvas: Tensor, goal: Tensor, colour: Tensor, opacity: Tensor) -> Tensor:
        """How much nearer to the goal each pixel would be under an ink, at least 0: (B, height, width)."""
        after = canvas + opacity * (colour[:, None, None] - canvas)
        return ((goal - canvas).square() - (goal - after).square()).sum(1).clamp(min=0)
