"""Given pictures painted in strokes: how each meets the model's canvas, the nearest of several paintings, SVG as the picture was."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from goalgen.agents import Seen
from goalgen.blackbox import Judge, improve
from goalgen.data import from_unit, to_bytes, to_unit
from goalgen.data.images import decode_image
from goalgen.errors import GoalgenError
from goalgen.model import Model
from goalgen.pictures import to_pil
from goalgen.rng import generator
from goalgen.rollout import Samples, advance

SHOWN = 280
"""Height at which a drawing is shown where nobody says otherwise, in pixels of the screen, as that of a sample."""

BLOCK = 64
"""Pictures that are searched for strokes at once."""


@dataclass(frozen=True)
class Picture:
    """A picture as the model sees it, and how to get back from there."""

    image: Tensor
    """(C, height, width) uint8 of 256 levels, of the model's shape"""
    negative: bool
    """whether it was turned into its negative, and its drawing is to be turned back"""
    size: tuple[float, float]
    """(height, width) of what is shown, in pixels of the file"""
    part: tuple[float, float, float, float]
    """x, y, width and height of the part of the canvas that shows it"""


def plain_ground(canvas: Tensor) -> Tensor | None:
    """The colour of an initial canvas (C, height, width), (C, 1, 1) in [-1, 1], if it has only one."""
    first = canvas[:, :1, :1]
    return first if bool((canvas == first).all()) else None


def read_picture(
    path: Path, shape: tuple[int, int, int], fit: str, background: str | None, invert: str, ground: Tensor | None
) -> Picture:
    """Read a picture of any size for a model's canvas.

    Args:
        path: of its file.
        shape: (C, height, width) of the canvas.
        fit: how another aspect ratio meets it: "pad", "crop" or "stretch".
        background: colour behind transparent pixels and padding; None: white, and padding has the colour of the picture's edge.
        invert: "yes", "no", or "auto": where the edge of the negative is nearer to ``ground``.
        ground: colour of the initial canvas, (C, 1, 1) in [-1, 1]; None where it has several, and then "auto" is "no".

    Raises:
        GoalgenError: the picture cannot be read.
    """
    channels, height, width = shape
    whole = decode_image(path, channels=channels, background=background or "white")
    rows, columns = whole.shape[1:]
    scales = (rows / height, columns / width)
    edge = torch.cat([whole[:, 0], whole[:, -1], whole[:, :, 0], whole[:, :, -1]], 1).float()
    scale = min(scales) if fit == "crop" else max(scales)
    size, part = (float(rows), float(columns)), (0.0, 0.0, float(width), float(height))
    if fit == "pad":
        shown = (columns / scale, rows / scale)
        part = ((width - shown[0]) / 2, (height - shown[1]) / 2, *shown)
        whole = _padded(whole, (round(height * scale), round(width * scale)), edge, background)
    elif fit == "crop":
        size = (height * scale, width * scale)
    fit = "crop" if fit == "crop" else "stretch"  # what was padded has the aspect ratio already, to a pixel
    image = decode_image(to_pil(whole), channels=channels, image_size=(height, width), fit=fit)
    negative = invert == "yes"
    if invert == "auto" and ground is not None:
        colour = edge.median(1).values[:, None, None] / 127.5 - 1
        negative = bool((-colour - ground).square().sum() < (colour - ground).square().sum())
    return Picture(255 - image if negative else image, negative and ground is not None, size, part)


def _padded(image: Tensor, size: tuple[int, int], edge: Tensor, background: str | None) -> Tensor:
    """An image (C, rows, columns) uint8 in the middle of another size, around it a colour of one's own or that of its edge (C, N)."""
    if background is None:
        colour = edge.median(1).values.round().to(torch.uint8)
        canvas = colour[:, None, None].repeat(1, *size)
    else:
        from PIL import Image

        canvas = decode_image(Image.new("RGB", (size[1], size[0]), background), channels=len(image))
    rows, columns = image.shape[1:]
    top, left = (size[0] - rows) // 2, (size[1] - columns) // 2
    canvas[:, top : top + rows, left : left + columns] = image
    return canvas


@torch.no_grad()
def paint(
    model: Model,
    goals: Tensor,
    seed: int,
    start: str | None,
    budget: int | None = None,
    tries: int = 1,
    search: int = 0,
) -> Samples:
    """Paintings of goals (N, C, height, width) in grey levels: states and actions of at most ``budget`` strokes.

    Args:
        model: that paints.
        goals: what to paint.
        seed: of the first try; the next has the next seed.
        start: another initial state than the one trained with.
        budget: strokes; unset: as many as the model draws. Later stages than that of the strokes do nothing.
        tries: paintings of each goal, of which the one nearest to it is kept.
        search: at every step the best of so many strokes that the GC-agent proposes is taken, see :func:`searched`; 0: what the GC-agent
            does by itself.

    Raises:
        GoalgenError: its GC-agent cannot search.
    """
    unit = to_unit(goals, model.levels).to(model.device)
    best: Samples | None = None
    least = unit.new_full((len(goals),), torch.inf)
    begin, end = model.family.files_steps
    end = end if budget is None else begin + budget
    for number in range(seed, seed + tries):
        went = model.rollout(goals, number, start=start)
        states, actions = (
            (went.states, went.actions) if search < 1 else searched(model, went.states[0], unit, number, search)
        )
        states, actions = states[: end + 1], actions[:end]
        error = (model.family.environment.canvas(states[-1]) - unit).square().flatten(1).mean(1)
        better = error < least
        least = torch.where(better, error, least)
        if best is not None:
            keep = better.view(1, -1, *[1] * (states.dim() - 2))
            states, actions = torch.where(keep, states, best.states), torch.where(keep, actions, best.actions)
        best = Samples(states, actions, [])
    assert best is not None, "tries is at least 1"
    return best


@torch.no_grad()
def searched(model: Model, state: Tensor, goals: Tensor, seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Paintings by the improved policy at its likeliest: the best of ``count`` candidates of the GC-agent at every step. (Equation 32)

    As training looks for better strokes, and no longer what the GC-agent does by itself.

    Args:
        model: whose GC-agent judges states, and proposes.
        state: initial states, (N, ...).
        goals: (N, C, height, width) in [-1, 1].
        seed: of the candidates.
        count: K.

    Returns:
        States (H + 1, N, ...) and actions (H, N, ...).

    Raises:
        GoalgenError: the GC-agent judges no states.
    """
    family, order = model.family, generator(seed, "searched strokes")
    judge, space = getattr(family.gc_agent, "critic", None), family.environment.action_space
    if not isinstance(judge, Judge):
        raise GoalgenError("--search needs a GC-agent that judges states; this model's does not")
    all_states, all_actions = [state], []
    for h in range(family.horizon):
        noise = space.noise(count * len(state), order).to(state.device).unflatten(0, (count, len(state)))
        parts = []
        for rows in torch.arange(len(state)).split(BLOCK):
            seen, goal = family.see(h, state[rows]), goals[rows]
            parts.append(_best(model, judge, seen, goal, noise[:, rows]))
        actions, afters = (torch.cat(each) for each in zip(*parts, strict=True))
        # What is over stays as it is.
        over = family.environment.ended(state)
        state = torch.where(over.view(-1, *[1] * (state.dim() - 1)), state, afters)
        all_states.append(state)
        all_actions.append(actions)
    return torch.stack(all_states), torch.stack(all_actions)


def _best(model: Model, judge: Judge, seen: Seen, goal: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The best candidates at states (B, ...) and the states that they lead to."""
    family = model.family
    decision = family.s_agent.decide(seen)
    actions = family.gc_agent.policy(seen, goal, decision).sample_many(noise)
    log_p, ahead = decision.policy.log_prob_many(actions), judge.look(family, seen, goal, decision, actions)
    weight, _ = improve(log_p, ahead, torch.zeros_like(log_p))
    action = actions[weight.argmax(0), torch.arange(len(goal), device=goal.device)]
    return action, advance(seen, action, decision.offer)


def picture_of(model: Model, canvas: Tensor, negative: bool) -> Tensor:
    """What a canvas (C, height, width) in [-1, 1] looks like, uint8 bytes, turned back where the picture was a negative."""
    seen = to_bytes(from_unit(canvas[None].cpu(), model.levels), model.levels)[0]
    return 255 - seen if negative else seen


def as_the_picture(svg: bytes, picture: Picture, stretched: bool) -> bytes:
    """A drawing as SVG that shows what its picture shows: that part of the canvas, in its aspect ratio, and in its own colours."""
    height, width = picture.size
    box = " ".join(f"{value:.6g}" for value in picture.part)
    size = f'width="{max(1, round(SHOWN * width / height))}" height="{SHOWN}" viewBox="{box}"'
    size += ' preserveAspectRatio="none"' if stretched else ""
    text = re.sub(r'(<svg [^>]*?)width="\d+" height="\d+" viewBox="[^"]*"', rf"\g<1>{size}", svg.decode(), count=1)
    return (re.sub(r'((?:fill|stroke)=")#([0-9a-f]{6})"', _negated, text) if picture.negative else text).encode()


def _negated(found: re.Match[str]) -> str:
    # A stroke over a canvas is a mean of both by its opacity, so the negative of a drawing is the drawing in negative colours.
    return f'{found[1]}#{0xFFFFFF - int(found[2], 16):06x}"'


def goals_of(model: Model, pictures: Sequence[Picture]) -> Tensor:
    """Pictures as the model's goals, (N, C, height, width) uint8 grey levels."""
    return from_unit(to_unit(torch.stack([picture.image for picture in pictures]), 256), model.levels)
