"""Draws strokes: quadratic Bezier curves with round ends, antialiased, each only within its own box of pixels.

No exponential and no square of a large number is taken anywhere, so nothing can overflow or slow down by underflow. Coverage
is that of a box filter across the edge, as of a pixel crossed by a straight edge along it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

SEGMENTS = 6
"""Straight pieces of a curve on a canvas of the size that strokes are told in; more on larger ones."""

CACHED_NUMBERS = 1 << 16
"""Pixels of boxes that are worked on at once on a CPU, so that what lies in between stays in the cache."""


@dataclass(frozen=True)
class Brush:
    """N strokes, in pixels of the canvas they are told for: x to the right and y down from its top left corner."""

    points: Tensor
    """start, control point and end of each curve, (N, 3, 2) x and y"""
    width: Tensor
    """(N,)"""
    colour: Tensor
    """(N, C) in [-1, 1]"""
    opacity: Tensor
    """(N,) from 0 to 1"""

    def __len__(self) -> int:
        return len(self.width)

    def __getitem__(self, rows: Tensor | slice) -> Brush:
        return Brush(self.points[rows], self.width[rows], self.colour[rows], self.opacity[rows])

    def like(self, other: Tensor) -> Brush:
        """The same numbers in the kind of those of ``other``."""
        return Brush(self.points.to(other), self.width.to(other), self.colour.to(other), self.opacity.to(other))

    def scaled(self, factor: float) -> Brush:
        """The same drawing on a canvas ``factor`` times as large."""
        return Brush(self.points * factor, self.width * factor, self.colour, self.opacity)


@dataclass(frozen=True)
class Box:
    """Some of the strokes, and what of the canvas each may change."""

    rows: Tensor
    """which strokes, (n,)"""
    index: Tensor
    """pixels of each one's box, (n, side * side), each a row times the width of the canvas plus a column"""
    alpha: Tensor
    """how much of each pixel takes the stroke's colour, (n, side * side) from 0 to 1"""


def flattened(points: Tensor, segments: int) -> Tensor:
    """Points on curves (N, 3, 2), evenly spaced in their parameter: (N, segments + 1, 2)."""
    t = torch.linspace(0, 1, segments + 1, dtype=points.dtype, device=points.device)[:, None]
    begin, control, end = points[:, :, None].unbind(1)  # (N, 1, 2)
    return (
        (1 - t) ** 2 * begin + 2 * t * (1 - t) * control + t**2 * end
    )  # no product of matrices: autocast would round it


def coverage(line: Tensor, radius: Tensor, top: Tensor, left: Tensor, side: int) -> Tensor:
    """Share of each pixel of square boxes that lies within ``radius`` (N,) of a line, (N, side, side).

    Args:
        line: (N, points, 2), x and y.
        top: first row of each box, (N,).
        left: first column, (N,).
    """
    steps = torch.arange(side, device=line.device)
    y = (top[:, None] + steps).to(line.dtype) + 0.5  # (N, side)
    x = (left[:, None] + steps).to(line.dtype) + 0.5
    begin, way = line[:, :-1], line.diff(dim=1)
    length = way.norm(dim=-1)
    dot = torch.tensor([1.0, 0.0], dtype=line.dtype, device=line.device)  # whatever way: it has no length
    unit = torch.where(length.unsqueeze(-1) > 1e-6, way / length.clamp(min=1e-6).unsqueeze(-1), dot)
    nearest: Tensor | None = None
    for i in range(way.shape[1]):
        (dx, dy), (ux, uy) = (begin[:, i, None].unbind(-1), unit[:, i, None].unbind(-1))  # (N, 1)
        along = ((y - dy) * uy).unsqueeze(2) + ((x - dx) * ux).unsqueeze(1)  # how far along the piece
        aside = ((y - dy) * ux).unsqueeze(2) - ((x - dx) * uy).unsqueeze(1)
        beyond = along - torch.minimum(along.clamp(min=0), length[:, i, None, None])
        square = torch.addcmul(aside * aside, beyond, beyond)
        nearest = square if nearest is None else torch.minimum(nearest, square)
    assert nearest is not None
    distance, r = nearest.sqrt(), radius[:, None, None]
    return ((distance + r).clamp(max=0.5) + (r - distance).clamp(max=0.5)).clamp(min=0)


def boxes(strokes: Brush, size: tuple[int, int], scale: float = 1.0) -> Iterator[Box]:
    """What strokes change of a canvas of ``size`` (height, width), those with boxes of about one size together.

    Args:
        scale: size of the canvas over the one that the strokes were told for, for the number of straight pieces.
    """
    height, width = size
    line = flattened(strokes.points, math.ceil(SEGMENTS * math.sqrt(max(scale, 1.0))))
    radius = strokes.width / 2
    low = (line.amin(1) - radius[:, None] - 0.5).floor().long()  # (N, 2): x, y
    high = (line.amax(1) + radius[:, None] + 0.5).ceil().long()
    left, right = low[:, 0].clamp(0, width), high[:, 0].clamp(0, width)
    top, bottom = low[:, 1].clamp(0, height), high[:, 1].clamp(0, height)
    step = max(4, min(size) // 7)
    side = torch.maximum(right - left, bottom - top).add(step - 1).div(step, rounding_mode="floor").mul(step)
    side = side.clamp(max=max(height, width))
    for each in side.unique().tolist():
        if each == 0:  # wholly off the canvas
            continue
        tall, broad = min(each, height), min(each, width)
        every = (side == each).nonzero()[:, 0]
        for rows in every.split(max(1, CACHED_NUMBERS // each**2)):
            first_row = top[rows].clamp(max=height - tall)
            first_column = left[rows].clamp(max=width - broad)
            alpha = coverage(line[rows], radius[rows], first_row, first_column, each)[:, :tall, :broad]
            along = torch.arange(each, device=rows.device)
            index = (first_row[:, None] + along[:tall]).unsqueeze(2) * width
            index = index + (first_column[:, None] + along[:broad]).unsqueeze(1)
            yield Box(rows, index.flatten(1), alpha.flatten(1) * strokes.opacity[rows, None])


def draw(canvas: Tensor, strokes: Brush, scale: float = 1.0) -> Tensor:
    """Canvases (N, C, height, width) with one stroke each drawn over what is there."""
    flat = canvas.flatten(2).clone()
    for box in boxes(strokes, (canvas.shape[-2], canvas.shape[-1]), scale):
        rows, index = box.rows[:, None], box.index
        before = flat[rows, :, index]  # (n, pixels, C)
        colour = strokes.colour[box.rows].unsqueeze(1)
        flat[rows, :, index] = before + box.alpha.unsqueeze(-1) * (colour - before)
    return flat.view_as(canvas)


@dataclass(frozen=True)
class Reach:
    """Between which numbers inks can bring a pixel, whatever it is: towards the darkest of them and the brightest, in every channel."""

    low: Tensor | None
    """(C,); None: black, in every channel"""
    high: Tensor | None
    """(C,); None: white"""

    def beyond(self, canvas: Tensor, goal: Tensor) -> Tensor:
        """Square of how far each goal lies beyond what further strokes can make of the canvas, both (..., C)."""
        sides = []
        if self.low is not None:  # light where there must be none, and no ink that is darker
            sides.append(torch.minimum(canvas, self.low).sub_(goal).clamp_(min=0).square_())
        if self.high is not None:
            sides.append((goal - torch.maximum(canvas, self.high)).clamp_(min=0).square_())
        return sum(sides, start=torch.zeros((), device=canvas.device))


def error_changes(canvas: Tensor, goal: Tensor, strokes: Brush, reach: Reach | None = None) -> tuple[Tensor, Tensor]:
    """How much each of K strokes alone would change the squared distance to the goal, (K, B), and the part of it that no
    further stroke could mend, likewise (0 without ``reach``); nothing is drawn.

    Args:
        canvas: (B, C, height, width).
        goal: likewise.
        strokes: K B of them, those of all canvases first with their first stroke.
        reach: of the inks.
    """
    count = len(canvas)
    flat, missing = canvas.flatten(2), (goal - canvas).flatten(2)
    change, lost = canvas.new_zeros(len(strokes)), canvas.new_zeros(len(strokes))
    for box in boxes(strokes, (canvas.shape[-2], canvas.shape[-1])):
        rows = (box.rows % count)[:, None]
        before, lacks = flat[rows, :, box.index], missing[rows, :, box.index]  # (n, pixels, C)
        move = box.alpha.unsqueeze(-1) * (strokes.colour[box.rows].unsqueeze(1) - before)
        change[box.rows] = (move * (move - 2 * lacks)).sum((1, 2))
        if reach is not None:
            told = before + lacks
            lost[box.rows] = (reach.beyond(before + move, told) - reach.beyond(before, told)).sum((1, 2))
    return change.view(-1, count), lost.view(-1, count)


def paint(canvas: Tensor, strokes: list[Brush], scale: float = 1.0) -> Tensor:
    """Canvases (N, C, height, width) with strokes one after the other: the same drawing at ``scale`` times its size."""
    for each in strokes:
        canvas = draw(canvas, each.scaled(scale), scale)
    return canvas
