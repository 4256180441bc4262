"""Strokes: do paintings keep what their goals show, and what does the S-agent draw by itself?

Everything is drawn at temperature 1, from the policies alone: nothing is searched for.
"""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from contenders import Job, Options, Row
from fitting import train_goalgen
from quality import quality
from report import PICTURES
from torch import Tensor

from goalgen import configure, rng
from goalgen.bound import bound
from goalgen.data import Splits, from_unit, to_unit
from goalgen.families import make
from goalgen.families.strokes import Missing, draw
from goalgen.families.strokes.svg import to_svg
from goalgen.learning import Clock
from goalgen.metrics.features import ClassifierFeatures
from goalgen.model import Model
from goalgen.pictures import save_png, tile
from goalgen.settings import complete
from goalgen.task import Task

SURE = 0.9
"""Probability of a class from which on the judge counts as confident."""

STROKES: dict[str, Any] = {
    "environment": "strokes",
    "horizon": 10,
    "start": "constant:0",
    "batch_size": 48,
    "learning_rate": 3e-3,
}
AVATARS = ("#c0aede #ffdfbf #ffd5dc #d1d4f9 #b6e3f4 #99673b #ab7c51 #bd9267 #d0a87d #e3bd93 #ecc99e #f6d4aa #ffdeb4 #ffffff #28150a "
           "#603a14 #bd1700 #91cb15 #009bbd #ffc425 #428bca #00b159 #d11141 #03396c #88d8b0 #ff6f69")  # fmt: skip
ON: dict[str, dict[str, Any]] = {
    "mnist": {},
    "fashion_mnist": {
        "stroke_widths": 5,
        "stroke_thickest": 0.5,
        "stroke_sigma": 0.15,
        "stroke_inks": "white silver gray #404040 black white/0.5 black/0.5",
    },
    # One stroke of the widest pen fills the background; inks are colours that are common among the avatars.
    "avatars": {
        "horizon": 16,
        "start": "constant:1",
        "patch": 2,
        "stroke_widths": 5,
        "stroke_thinnest": 0.07,
        "stroke_thickest": 1.2,
        "stroke_sigma": 0.12,
        "stroke_inks": AVATARS,
    },
}
"""What differs by data set."""


VARIANTS: dict[str, dict[str, Any]] = {
    "improved": {},
    "gradient": {"stroke_learner": "gradient", "episodes_per_goal": 8},
    "greedy": {"stroke_ahead": False},
    "no S-agent": {"stroke_prior": 0.0},
    "corrected": {"stroke_correction": True},
    "hindsight": {"stroke_hindsight": 0.3},
    "wide": {"stroke_sigma": 0.25},
}
"""Ways to learn: the improved policy, the policy gradient, without a look ahead, without the S-agent in the return, with
the correction for proposals, with
reached canvases as goals; and one that is content with less closeness."""

LEARNERS = tuple(name for name in VARIANTS if name != "wide")
"""Those that are compared with each other."""
PAINTERS = {"mnist": ("improved", "wide"), "fashion_mnist": ("improved",), "avatars": ("improved",)}
"""Those that are shown."""

COUNTS = (1, 2, 4, 8, 16)
"""Strokes after which paintings are judged."""
AT_ONCE, BLOCK = 250, 256
FINENESS = (4.0, 2.0, 1.0, 0.75, 0.5, 0.36, 0.25, 0.18, 0.14, 0.1)
"""Sizes, over that of the image, at which outlines are traced."""
SEARCHED, FEW = 256, 500
"""Strokes that a greedy search chooses from, and images that it, and potrace, are tried on."""


class Judge:
    """The classifier whose features measure distances, asked for classes."""

    def __init__(self, splits: Splits) -> None:
        train = splits.train
        assert train.labels is not None
        self.features = ClassifierFeatures(train.images, train.labels, train.levels, splits.name, train.fingerprint())
        self.levels = train.levels

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Probabilities of classes, (N, classes), of images in grey levels."""
        network = self.features._network
        return torch.cat(
            [network.out(torch.relu(network.raw(to_unit(part, self.levels)))).softmax(1) for part in images.split(500)]
        )


def judged(probabilities: Tensor) -> Row:
    """Share of images of which the judge is sure, and entropy of the classes it sees, nats."""
    sure, classes = probabilities.max(1)
    share = classes.bincount(minlength=probabilities.shape[1]).double() / len(classes)
    return {"confident": (sure > SURE).double().mean().item(), "class_entropy_nats": torch.special.entr(share).sum().item(),
            "class_entropy_most_nats": math.log(probabilities.shape[1])}  # fmt: skip


@torch.no_grad()
def paintings(model: Model, splits: Splits) -> tuple[Tensor, Row]:
    """The GC-agent's canvases of the test images after every step, (H + 1, N, C, height, width) in [-1, 1] on the CPU, and J."""
    family, parts, bounds = model.family, [], []
    for first in range(0, len(splits.test), AT_ONCE):
        went = model.rollout(splits.test.images[first : first + AT_ONCE], seed=first)
        bounds.append(bound(family, went).total)
        parts.append(torch.stack([family.environment.canvas(state).cpu() for state in went.states]))
    return torch.cat(parts, 1), {"nll_bound_nats": float(torch.cat(bounds).mean())}


@torch.no_grad()
def greedy(model: Model, start: Tensor, goal: Tensor, strokes: int, seed: int) -> tuple[Tensor, Tensor]:
    """States after 0 .. ``strokes`` strokes, each the best of many that lie at random on missing ink, and these: no network at all.

    The actions are (strokes, B, 5); where no stroke would help, a stop.
    """
    agents, environment = model.family, model.family.environment
    state = environment.initial(start)
    states, strokes_drawn, order = [state], [], rng.generator(seed, "greedy search")
    stop = torch.tensor([environment.positions, 0, 0, 0, 0], device=start.device)
    for h in range(strokes):
        seen = agents.see(min(h, agents.horizon - 1), state)
        (proposer, _), _ = Missing(SEARCHED)(seen, goal, None)  # type: ignore[arg-type]
        noise = environment.action_space.noise(SEARCHED * len(goal), order).unflatten(0, (SEARCHED, len(goal)))
        actions = proposer.sample_many(noise.to(start.device))
        change, _ = environment.error_changes(state, goal, actions)
        best, which = change.min(0)
        action = actions[which, torch.arange(len(goal))]
        after = environment.transition(seen.h, state, action)
        helps = (best < 0)[:, None]
        state = torch.where(helps, after, state)
        states.append(state)
        strokes_drawn.append(torch.where(helps, action, stop))
    return torch.stack(states), torch.stack(strokes_drawn)


def traced(goal: Tensor, points: int) -> tuple[Tensor, float]:
    """Outlines by potrace, filled in, as canvases, and how many points they have in the mean.

    potrace has no bound on points: the image is made coarser before it is traced until at most so many are left (or no less can be had).
    """
    import io

    import numpy as np
    import potrace
    import resvg_py
    from PIL import Image

    height, width = goal.shape[-2:]
    drawn, used = [], []
    for image in (goal.mean(1) + 1).mul(127.5).round().to(torch.uint8).numpy():
        for scale in FINENESS:
            size = max(2, round(width * scale)), max(2, round(height * scale))
            small = np.asarray(
                Image.fromarray(image).resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC)
            )
            curves = list(potrace.Bitmap(small <= 127).trace(turdsize=1 if scale < 1 else 8, opttolerance=1.0))
            count = sum(1 + sum(2 if part.is_corner else 3 for part in curve.segments) for curve in curves)
            if count <= points:
                break
        used.append(count)
        path = []
        for curve in curves:
            path.append(f"M{curve.start_point.x},{curve.start_point.y}")
            for part in curve.segments:
                ends = (part.c, part.end_point) if part.is_corner else (part.c1, part.c2, part.end_point)
                path.append(("L" if part.is_corner else "C") + " ".join(f"{at.x},{at.y}" for at in ends))
            path.append("Z")
        svg = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}" width="{width}" height="{height}" preserveAspectRatio="none">'
               f'<rect width="100%" height="100%" fill="#000"/><path d="{"".join(path)}" fill="#fff" fill-rule="evenodd"/></svg>')  # fmt: skip
        picture = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("L")
        drawn.append(torch.from_numpy(np.asarray(picture).copy()))
    return torch.stack(drawn).unsqueeze(1).float() / 127.5 - 1, statistics.mean(used)


@dataclass
class Painted:
    """A painter, and what it did."""

    model: Model
    splits: Splits
    judge: Judge
    canvases: Tensor
    """the GC-agent's of the test images after every step, (H + 1, N, C, height, width) in [-1, 1]"""
    drawn: Tensor
    """the S-agent's samples, in grey levels"""
    row: Row

    def numbers(self, canvases: Tensor) -> Row:
        """How near the first of the test images, and whether they are recognised: of canvases (N, ...)."""
        test, count = self.splits.test, len(canvases)
        goal = to_unit(test.images[:count], test.levels)
        assert test.labels is not None
        right = self.judge(from_unit(canvases, test.levels)).argmax(1) == test.labels[:count]
        error = (canvases - goal).square().mean() / 4
        return {"squared_error": error.item(), "labels_kept": right.double().mean().item()}


def painted(job: Job, options: Options, folder: Path) -> Painted:
    """Train one painter; how near its paintings come, with every stroke, and what the S-agent draws."""
    settings = {**STROKES, **ON.get(options.data, {}), **VARIANTS[job["variant"]]}
    model, splits, went = train_goalgen(folder / "run", options, job["seed"], settings)
    model.to(options.device)
    judge, count = Judge(splits), len(splits.test)
    canvases, row = paintings(model, splits)
    parts = [model.sample(BLOCK, first=first).levels.cpu() for first in range(0, count, BLOCK)]
    found = Painted(model, splits, judge, canvases, torch.cat(parts)[:count], row)
    after = [count for count in COUNTS if count < len(canvases)]
    row |= {"paintings": found.numbers(canvases[-1]), "after": {str(n): found.numbers(canvases[n]) for n in after}}
    row |= {"samples": judged(judge(found.drawn)), "held_out": judged(judge(splits.test.images))}
    row["judge_accuracy"] = found.numbers(to_unit(splits.test.images, splits.test.levels))["labels_kept"]
    row |= {"quality": quality(found.drawn.split(BLOCK), count, splits, options.device)}
    steps = torch.stack(list(model.sample(BLOCK, seed=1).states)).flatten(2)
    row["strokes_a_sample"] = (steps.diff(dim=0) != 0).any(-1).double().sum(0).mean().item()  # those that can be seen
    found.row = {**went, "num_test": count, "threads": torch.get_num_threads(), "processes": options.processes, **row}
    return found


def learner(job: Job, options: Options, folder: Path) -> Row:
    """One way to learn."""
    return painted(job, options, folder).row


def painting(job: Job, options: Options, folder: Path) -> Row:
    """A painter beside greedy search and outlines by potrace, with pictures of what it paints and of what the S-agent draws."""
    found = painted(job, options, folder)
    row, test, canvases = found.row, found.splits.test, found.canvases
    if (job["variant"], job["seed"]) != ("improved", 0):
        return row
    goal = to_unit(test.images[:FEW], test.levels)
    states, _ = greedy(found.model, canvases[0, :FEW].to(options.device), goal.to(options.device), max(COUNTS), seed=0)
    searched = [found.model.family.environment.canvas(state).cpu() for state in states]
    row["greedy"] = {str(n): found.numbers(searched[n]) for n in COUNTS}
    if goal.shape[1] == 1:
        outlines = {n: traced(goal, 3 * n) for n in COUNTS}  # a stroke has three points
        row["potrace"] = {str(n): found.numbers(drawn) | {"points": used} for n, (drawn, used) in outlines.items()}
    if folder.parent.name == f"strokes_{options.data}":  # of the time and the device that are reported
        PICTURES.mkdir(parents=True, exist_ok=True)
        pairs = torch.stack([test.images[:32], from_unit(canvases[-1, :32], test.levels)], 1).flatten(0, 1)
        save_png(tile(pairs, 8), PICTURES / f"{options.data}-paintings.png")
        save_png(tile(found.drawn[:64], 8), PICTURES / f"{options.data}-strokes.png")
    return row


# how fast -----------------------------------------------------------------------------------------------------------

WORK = ("candidates judged", "strokes drawn", "learner", "resvg, one by one")
CANVASES, KINDS_OF = 64, 36
"""Canvases worked on at once, and strokes for each."""


def strokes_speed(job: Job, options: Options, folder: Path) -> Row:
    """Strokes a second: judged, drawn, learned from; and drawn by resvg, an SVG file each."""
    torch.set_num_threads(job["threads"])
    config = configure(**STROKES, data="digits")
    family = make(complete(config), (1, 28, 28), 256)
    environment, order = family.environment, rng.generator(job["round"], "speed of strokes")
    goal = (
        F.interpolate(torch.rand(CANVASES, 1, 5, 5, generator=order), size=(28, 28), mode="bicubic").clamp(0, 1) * 2 - 1
    )
    state = environment.initial(torch.full_like(goal, -1.0))
    (proposer, _), _ = Missing(KINDS_OF)(family.see(0, state), goal, None)  # type: ignore[arg-type]
    actions = proposer.sample_many(
        environment.action_space.noise(KINDS_OF * CANVASES, order).unflatten(0, (KINDS_OF, CANVASES))
    )
    brush, many = environment.strokes(actions.flatten(0, 1)), environment.canvas(state).repeat(KINDS_OF, 1, 1, 1)
    optimizer = torch.optim.Adam(family.parameters())

    def learn() -> None:
        learned = family.learn(
            Task(environment.canvas(state), goal), family.draw(CANVASES, lambda name: order), Clock()
        )
        for lesson in (lambda: learned.loss, *learned.again):
            optimizer.zero_grad()
            lesson().backward()
            optimizer.step()

    def one_by_one() -> None:
        import resvg_py

        for row in range(CANVASES):
            resvg_py.svg_to_bytes(
                svg_string=to_svg(environment, environment.canvas(state)[0], actions[0, row : row + 1]),
                width=28,
                height=28,
            )

    work, count = {
        "candidates judged": (lambda: environment.error_changes(state, goal, actions), len(brush)),
        "strokes drawn": (lambda: draw(many, brush), len(brush)),
        "learner": (learn, CANVASES * family.search.count * family.horizon),
        "resvg, one by one": (one_by_one, CANVASES),
    }[job["work"]]
    images = CANVASES if job["work"] == "learner" else 0
    work()
    seconds = []
    while len(seconds) < 5 or sum(seconds) < options.seconds:
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    each = statistics.median(seconds)
    return {"strokes_per_second": count / each, **({"images_per_second": images / each} if images else {})}
