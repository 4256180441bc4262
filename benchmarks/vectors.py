"""Pictures that no model has seen, painted by `goalgen vectorize`: letters, digits and icons of our own drawing, of many sizes."""

from __future__ import annotations

import io
import math
import random
from pathlib import Path

import numpy as np
import resvg_py
import torch
from contenders import RUNS, Job, Options, Row
from fitting import train_goalgen
from painting import STROKES, greedy
from PIL import Image, ImageDraw
from report import PICTURES

from goalgen import cli
from goalgen.data import to_unit
from goalgen.families.strokes.environment import START, StrokesEnvironment
from goalgen.model import Model, load
from goalgen.rollout import Samples
from goalgen.vectorizing import Picture, as_the_picture, goals_of, plain_ground, read_picture

SMOOTH = 4
"""Pictures are drawn so many times larger, and shrunk."""

TRIES, SEARCH, SEED = 16, 16, 0

Point = tuple[float, float]

# in units of the shorter side, from the middle, x to the right and y down ----------------------------------------------


def arc(x: float, y: float, across: float, down: float, begin: float, end: float) -> list[Point]:
    """Points along an ellipse, angles in degrees, clockwise from the right."""
    turns = np.linspace(math.radians(begin), math.radians(end), 24)
    return [(x + across * math.cos(turn), y + down * math.sin(turn)) for turn in turns]


HEART = [
    (0.023 * 16 * math.sin(t) ** 3,
     -0.023 * (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) - 0.03)
    for t in np.linspace(0, 2 * math.pi, 60)
]  # fmt: skip
STAR = [
    ((0.36 if i % 2 == 0 else 0.15) * math.sin(math.pi * i / 5), -(0.36 if i % 2 == 0 else 0.15) * math.cos(math.pi * i / 5))
    for i in range(11)
]  # fmt: skip

WRITTEN: dict[str, list[list[Point]]] = {
    "two": [[*arc(0, -0.16, 0.2, 0.17, 190, 390), (-0.2, 0.33), (0.22, 0.33)]],
    "three": [arc(0, -0.17, 0.18, 0.16, 210, 450) + arc(0, 0.17, 0.2, 0.18, 270, 510)],
    "five": [[(0.2, -0.33), (-0.14, -0.33), (-0.17, -0.02), *arc(0, 0.13, 0.2, 0.2, 230, 510)]],
    "seven": [[(-0.2, -0.32), (0.2, -0.32), (-0.06, 0.34)]],
    "eight": [arc(0, -0.17, 0.15, 0.16, 90, 450) + arc(0, 0.17, 0.19, 0.18, -90, 270)],
    "a": [[(-0.24, 0.34), (0.0, -0.34), (0.24, 0.34)], [(-0.15, 0.1), (0.15, 0.1)]],
    "b": [[(-0.17, -0.34), (-0.17, 0.34)], [(-0.17, -0.34), *arc(-0.02, -0.17, 0.17, 0.17, -90, 90), (-0.17, 0.0)],
          [(-0.17, 0.0), *arc(0.0, 0.17, 0.2, 0.17, -90, 90), (-0.17, 0.34)]],
    "s": [arc(0, -0.17, 0.19, 0.16, -20, -270) + arc(0, 0.17, 0.2, 0.17, -90, 160)],
    "e": [[(-0.2, 0.02), (0.2, 0.02), *arc(0, 0.02, 0.21, 0.24, 0, -320)]],
    "k": [[(-0.17, -0.34), (-0.17, 0.34)], [(0.2, -0.33), (-0.16, 0.03)], [(-0.04, -0.08), (0.22, 0.34)]],
}  # fmt: skip
"""Letters and digits as lines; drawn with a jitter of their points."""

ICONS: dict[str, list[list[Point]]] = {
    "arrow": [[(-0.35, 0.0), (0.33, 0.0)], [(0.1, -0.22), (0.34, 0.0), (0.1, 0.22)]],
    "turn": [arc(0, 0.05, 0.26, 0.26, 150, 360), [(0.14, -0.06), (0.26, 0.08), (0.38, -0.06)]],
    "heart": [HEART],
    "house": [[(-0.34, -0.02), (0.0, -0.34), (0.34, -0.02)], [(-0.24, -0.08), (-0.24, 0.34), (0.24, 0.34), (0.24, -0.08)]],
    "star": [STAR],
    "smiley": [arc(0, 0, 0.35, 0.35, 0, 365), arc(0, 0.03, 0.18, 0.15, 20, 160), [(-0.12, -0.12), (-0.12, -0.08)], [(0.12, -0.12), (0.12, -0.08)]],
    "check": [[(-0.3, 0.02), (-0.08, 0.24), (0.32, -0.24)]],
    "cross": [[(-0.26, -0.26), (0.26, 0.26)], [(0.26, -0.26), (-0.26, 0.26)]],
    "bolt": [[(0.1, -0.36), (-0.18, 0.06), (0.14, 0.0), (-0.1, 0.36)]],
    "glass": [arc(-0.06, -0.06, 0.22, 0.22, 0, 365), [(0.1, 0.1), (0.32, 0.32)]],
}  # fmt: skip

SIZES = ((60, 40), (96, 128), (200, 200), (64, 64), (128, 96))
"""(height, width), in turn."""
SHADES = ((255, 0), (0, 255), (215, 0), (60, 245))
"""Of the ink and of what it is on, in turn: white on black, black on white, and grey of either."""


def drawing(number: int, lines: list[list[Point]], jitter: float) -> Image.Image:
    """One picture; its size, shade, pen and jitter follow from its number."""
    order = random.Random(number)
    height, width = SIZES[number % len(SIZES)]
    ink, ground = SHADES[number % len(SHADES)]
    side, pen = SMOOTH * min(height, width), order.uniform(0.06, 0.1)
    turn = order.uniform(-0.12, 0.12) if jitter else 0.0
    picture = Image.new("L", (SMOOTH * width, SMOOTH * height), ground)
    draw = ImageDraw.Draw(picture)
    for line in lines:
        points, drift = [], (0.0, 0.0)
        for x, y in line:
            drift = tuple(0.8 * d + order.gauss(0, jitter) for d in drift)  # a hand strays, and comes back
            x, y = x + drift[0] - turn * y, y + drift[1] + turn * x
            points.append((SMOOTH * width / 2 + side * x, SMOOTH * height / 2 + side * y))
        radius = pen * side / 2
        draw.line(points, fill=ink, width=round(2 * radius), joint="curve")
        for x, y in (points[0], points[-1]):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ink)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def write_pictures(folder: Path) -> list[Path]:
    """The twenty pictures, as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    every = [(name, lines, 0.008) for name, lines in WRITTEN.items()] + [(n, lines, 0.0) for n, lines in ICONS.items()]
    for number, (name, lines, jitter) in enumerate(every):
        paths.append(folder / f"{name}.png")
        drawing(number, lines, jitter).save(paths[-1])
    return paths


# judging ------------------------------------------------------------------------------------------------------------


def rendered(svg: str, size: tuple[int, int]) -> np.ndarray:
    """An SVG at a size (height, width) by resvg, (height, width) in [0, 1]."""
    file = resvg_py.svg_to_bytes(svg_string=svg, width=size[1], height=size[0])
    with Image.open(io.BytesIO(bytes(file))) as picture:
        return np.asarray(picture.convert("L").resize(size[::-1]), np.float32) / 255


def pixels(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """A picture, at its own size or another, in [0, 1]."""
    with Image.open(path) as picture:
        grey = picture.convert("L")
        grey = grey if size is None else grey.resize(size[::-1], Image.Resampling.LANCZOS)
        return np.asarray(grey, np.float32) / 255


def judged(path: Path, svg: str, side: int) -> Row:
    """Squared errors of a drawing, small and at its picture's own size (black to white is 1), its bytes and its strokes."""
    own = pixels(path)
    small = tuple(max(1, round(side * n / max(own.shape))) for n in own.shape)
    errors = {size: float(np.square(rendered(svg, size) - pixels(path, size)).mean()) for size in (small, own.shape)}
    blank = float(np.square(own - np.median(own)).mean())
    return {"small": errors[small], "own_size": errors[own.shape], "bytes": len(svg.encode()), "strokes": svg.count("<path"),
            "blank": blank}  # fmt: skip


def by_greedy_search(model: Model, pictures: list[Picture], strokes: list[int]) -> list[str]:
    """Drawings by greedy search, each of as many strokes as it is told: no network at all."""
    family = model.family
    goals = to_unit(goals_of(model, pictures), model.levels)
    start = model.start()(len(goals))
    states, actions = greedy(model, start, goals, max(strokes), SEED)
    environment = family.environment
    assert isinstance(environment, StrokesEnvironment)
    stop = torch.tensor([environment.positions, 0, 0, 0, 0])
    for i, count in enumerate(strokes):
        drawn = actions[actions[:, i, START] != environment.positions, i][
            :count
        ]  # it may have found nothing for a while
        actions[:, i] = torch.cat([drawn, stop.expand(len(actions) - len(drawn), -1)])
    files = family.files(Samples(states, actions, []))
    return [
        as_the_picture(each[".svg"], picture, False).decode() for each, picture in zip(files, pictures, strict=True)
    ]


ONCE, GREEDY, GREEDY_MOST = "once", "greedy search, as many strokes as once", "greedy search, as many as there may be"
WAYS: dict[str, list[str]] = {
    ONCE: [],
    f"nearest of {TRIES}": ["--tries", str(TRIES)],
    f"searched among {SEARCH}": ["--search", str(SEARCH)],
    "both, 4 tries": ["--tries", "4", "--search", str(SEARCH)],
    GREEDY: [],
    GREEDY_MOST: [],
}
"""What `goalgen vectorize` is told; the last two are not its own."""
SHOWN = [ONCE, f"nearest of {TRIES}", f"searched among {SEARCH}", GREEDY]
"""Ways on the sheet, from left to right."""


def painter(options: Options) -> Path:
    """The run that paints: that of `strokes`, if it is there, else one of its own."""
    run = RUNS / "strokes_mnist" / "improved-0" / "run"
    if not (run / "best").is_dir():
        run = RUNS / "vectorize" / "run"
        train_goalgen(run, options, 0, STROKES)
    return run


def vectorize(job: Job, options: Options, folder: Path) -> Row:
    """All twenty pictures in one way: errors, bytes and strokes of each; the last way makes the sheet, too."""
    place = RUNS / "vectorize" / "drawings"
    paths, run, way = write_pictures(folder / "pictures"), painter(options), job["way"]
    model = load(run)
    if way in (GREEDY, GREEDY_MOST):
        ground = plain_ground(model.start()(1)[0])
        pictures = [read_picture(path, model.shape, "pad", None, "auto", ground) for path in paths]
        counts = [model.horizon] * len(paths)
        if way == GREEDY:
            counts = [svg.count("<path") for svg in _kept(place, ONCE, paths)]
        svgs = by_greedy_search(model, pictures, counts)
        (place / way).mkdir(parents=True, exist_ok=True)
        for path, svg in zip(paths, svgs, strict=True):
            (place / way / f"{path.stem}.svg").write_text(svg)
    else:
        words = ["--out", str(place / way), "--force", "--seed", str(SEED), *WAYS[way]]
        if cli.main(["vectorize", str(run), str(folder / "pictures"), *words]):
            raise SystemExit(f"vectorize {' '.join(words)} failed")
        svgs = _kept(place, way, paths)
    side = max(model.shape[1:])
    each = {path.stem: judged(path, svg, side) for path, svg in zip(paths, svgs, strict=True)}
    if all((place / other).is_dir() for other in SHOWN):
        PICTURES.mkdir(parents=True, exist_ok=True)
        sheet(paths, [_kept(place, other, paths) for other in SHOWN]).save(PICTURES / "vectorized.png", optimize=True)
    return {"options": " ".join(WAYS[way]), "trained_steps": model.facts.get("step"), "horizon": model.horizon, "side": side, "each": each}  # fmt: skip


def _kept(place: Path, way: str, paths: list[Path]) -> list[str]:
    """The drawings that a way has left."""
    return [(place / way / f"{path.stem}.svg").read_text() for path in paths]


TILE, ACROSS, GAP = 92, 4, 4


def sheet(paths: list[Path], ways: list[list[str]]) -> Image.Image:
    """Originals, each with its drawings beside it, all as large as fits a tile."""
    many = 1 + len(ways)
    wide, high = ACROSS * (many * (TILE + GAP) + 3 * GAP), -(-len(paths) // ACROSS) * (TILE + GAP)
    page = Image.new("L", (wide, high), 128)
    for i, path in enumerate(paths):
        own = pixels(path).shape
        size = tuple(max(1, round(TILE * n / max(own))) for n in own)
        shown = [pixels(path, size), *(rendered(svgs[i], size) for svgs in ways)]
        left, top = (i % ACROSS) * (many * (TILE + GAP) + 3 * GAP), (i // ACROSS) * (TILE + GAP)
        for j, picture in enumerate(shown):
            tile = Image.fromarray((picture * 255).round().astype(np.uint8))
            at = (left + j * (TILE + GAP) + (TILE - size[1]) // 2, top + (TILE - size[0]) // 2)
            page.paste(tile, at)
    return page.quantize(16).convert("P")
