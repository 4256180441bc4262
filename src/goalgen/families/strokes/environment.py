"""The world of strokes: a canvas, a pen, so many strokes left. What an action says, and what it does. (Equation 31)"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import ImageColor
from torch import Tensor

from goalgen.composite import Composite
from goalgen.environment import Environment
from goalgen.errors import GoalgenError
from goalgen.families.strokes.render import Brush, Reach, draw, error_changes

START, END, BEND, WIDTH, INK = range(5)
"""The parts of an action."""

DEFAULT_INKS = {1: "#ffffff #ffffff/0.5", 3: " ".join(f"#{r}{g}{b}" for r in ("00", "80", "ff") for g in ("00", "80", "ff") for b in ("00", "80", "ff"))}  # fmt: skip
"""By number of channels: white in two strengths, which only adds light; and 27 colours that cover."""


@dataclass(frozen=True)
class Ink:
    """A colour, and how much it covers."""

    colour: tuple[float, ...]
    """one number a channel, in [-1, 1]"""
    opacity: float


def read_inks(text: str, channels: int) -> list[Ink]:
    """Inks from their names: colours as HTML has them, each with an opacity after a slash if it is below 1.

    Raises:
        GoalgenError: one of them is no colour, or its opacity not above 0 and at most 1.
    """
    inks = []
    for word in text.replace(",", " ").split():
        name, _, strength = word.partition("/")
        try:
            colour = ImageColor.getcolor(name, "L" if channels == 1 else "RGB")
            opacity = float(strength) if strength else 1.0
        except ValueError:
            raise GoalgenError(
                f"--stroke-inks {word!r} is no colour; give some such as white or #ff8800, with a strength as in white/0.5"
            ) from None
        if not 0 < opacity <= 1:
            raise GoalgenError(f"--stroke-inks {word!r}: the strength must be above 0 and at most 1")
        levels = (colour,) if isinstance(colour, int) else colour[:3]
        inks.append(Ink(tuple(level / 255 * 2 - 1 for level in levels), opacity))
    if not inks:
        raise GoalgenError("--stroke-inks names no colour; give some such as white, black or #ff8800")
    return inks


class StrokesEnvironment(Environment):
    """An action draws one stroke over the canvas, or says that the drawing is done. (Equation 31)

    A black box: nothing is differentiated through it. A state is a row of numbers: the canvas, whether the drawing is done, and
    where the pen is (0 before the first stroke, else one more than the position at which the last one ended).

    Args:
        shape: (C, height, width) of a canvas.
        horizon: strokes at most.
        grid: rows and columns of the positions at which strokes begin and end, evenly spread.
        bends: rows and columns of the ways to bend, an odd number: steps of one position each, for the middle of the stroke.
        widths: from thinnest to thickest, in pixels.
        inks: to choose from.
    """

    action_space: Composite
    black_box = True

    def __init__(
        self,
        shape: tuple[int, int, int],
        horizon: int,
        grid: tuple[int, int],
        bends: int,
        widths: Sequence[float],
        inks: Sequence[Ink],
    ) -> None:
        super().__init__()
        self.shape, self.horizon, self.grid, self.bends = shape, horizon, grid, bends
        self.positions = grid[0] * grid[1]
        self.state_shape = (math.prod(shape) + 2,)
        sizes = (self.positions + 1, self.positions, bends**2, len(widths), len(inks))
        self.action_space = Composite(sizes, stop=self.positions)
        pitch = (shape[2] / grid[1], shape[1] / grid[0])  # x, y: pixels from one position to the next
        where = torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1])).flip(1)  # (positions, 2): x, y
        ways = torch.cartesian_prod(torch.arange(bends), torch.arange(bends)).flip(1) - bends // 2
        tables = {
            "places": (where + 0.5) * torch.tensor(pitch), "bend": ways * torch.tensor(pitch), "thickness": torch.tensor(widths),
            "colours": torch.tensor([ink.colour for ink in inks]), "opacities": torch.tensor([ink.opacity for ink in inks]),
        }  # fmt: skip
        # Known here, once: to ask a GPU at every step would wait for it.
        self.black, self.white = (
            all(side(ink.colour[c] for ink in inks) == end for c in range(shape[0]))
            for side, end in ((min, -1), (max, 1))
        )
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)
        self.places: Tensor
        self.bend: Tensor
        self.thickness: Tensor
        self.colours: Tensor
        self.opacities: Tensor

    @property
    def canvas_shape(self) -> tuple[int, ...]:
        return self.shape

    def initial(self, canvas: Tensor) -> Tensor:
        return torch.cat([canvas.flatten(1), canvas.new_zeros(len(canvas), 2)], 1)

    def canvas(self, state: Tensor) -> Tensor:
        return state[:, :-2].unflatten(1, self.shape)

    def ended(self, state: Tensor) -> Tensor:
        return state[:, -2] > 0

    def pen(self, state: Tensor) -> Tensor:
        """0 before the first stroke, else one more than the position at which the last one ended: (B,) int64."""
        return state[:, -1].long()

    def strokes(self, action: Tensor) -> Brush:
        """What actions (N, 5) draw; of a stop, anything."""
        start = self.places[action[:, START].clamp(max=self.positions - 1)]
        end = self.places[action[:, END]]
        # The curve passes through the middle, as bent, at half of its parameter.
        control = (start + end) / 2 + 2 * self.bend[action[:, BEND]]
        points, ink = torch.stack([start, control, end], 1), action[:, INK]
        return Brush(points, self.thickness[action[:, WIDTH]], self.colours[ink], self.opacities[ink])

    def transition(self, h: Tensor, state: Tensor, action: Tensor, offer: Any = None) -> Tensor:
        stops = self.ended(state) | (action[:, START] == self.positions)
        goes_on = (~stops).nonzero()[:, 0]
        after = state.clone()
        after[stops, -2] = 1.0
        canvas = draw(self.canvas(state)[goes_on], self.strokes(action[goes_on]).like(state))
        after[goes_on] = torch.cat([canvas.flatten(1), state[goes_on, -2:-1], action[goes_on, END, None] + 1.0], 1).to(
            state
        )
        return after

    @property
    def reach(self) -> Reach | None:
        """Of the inks; None where they can mend whatever there is."""
        if self.black and self.white:
            return None
        return Reach(None if self.black else self.colours.amin(0), None if self.white else self.colours.amax(0))

    def lost(self, state: Tensor, goal: Tensor) -> Tensor:
        """What of the squared distance of the canvas from the goal no stroke could mend, (B,)."""
        reach = self.reach
        if reach is None:
            return goal.new_zeros(len(goal))
        return reach.beyond(self.canvas(state).movedim(1, -1), goal.movedim(1, -1)).flatten(1).sum(1)

    def error_changes(self, state: Tensor, goal: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """How much each of K actions would change the squared distance of the canvas from the goal, (K, B), and what of it
        could not be mended, likewise; 0 for a stop.

        Args:
            state: (B, ...), none of them done.
            goal: (B, C, height, width).
            actions: (K, B, 5).
        """
        found = error_changes(self.canvas(state), goal, self.strokes(actions.flatten(0, 1)), self.reach)
        change, lost = (torch.where(actions[..., START] == self.positions, 0.0, x) for x in found)
        return change, lost
