"""Folders as a user has them: what `goalgen train --data FOLDER` says and makes of them, with nothing else said."""

from __future__ import annotations

import contextlib
import io
import math
import random
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path

from contenders import Job, Options, Row, data_folder
from PIL import Image, ImageDraw
from report import PICTURES

from goalgen import DataConfig, cli, evaluate, load, load_data
from goalgen.pictures import to_pil
from goalgen.training.log import read_log

SMOOTH = 4
"""Drawings are made so many times larger, and shrunk."""


def icon(order: random.Random) -> Image.Image:
    """A sign of one of four shapes on a disc or a tile, 48x32 (height, width), colours from a small palette, around it nothing."""
    width, height = 32 * SMOOTH, 48 * SMOOTH
    picture = Image.new("RGBA", (width, height), (0, 0, 0, 0))
    draw = ImageDraw.Draw(picture)
    palette = ["#c0392b", "#2471a3", "#1e8449", "#b7950b", "#6c3483", "#17202a"]
    back, front = order.sample(palette, 2)
    middle, size = (width / 2, height * order.uniform(0.35, 0.6)), width * order.uniform(0.3, 0.46)
    box = (middle[0] - size, middle[1] - size, middle[0] + size, middle[1] + size)
    if order.random() < 0.5:
        draw.ellipse(box, fill=back)
    else:
        draw.rounded_rectangle(box, size / 3, fill=back)
    corners = order.choice([3, 4, 5, 10])
    turn = order.choice([0.0, 0.5]) * math.pi - math.pi / 2
    points = []
    for i in range(corners):
        reach = size * (0.35 if corners == 10 and i % 2 else 0.75)
        angle = turn + 2 * math.pi * i / corners
        points.append((middle[0] + reach * math.cos(angle), middle[1] + reach * math.sin(angle)))
    draw.polygon(points, fill=order.choice([front, "#fdfefe"]))
    if order.random() < 0.5:  # a pole to stand on
        draw.rectangle((middle[0] - width / 24, box[3], middle[0] + width / 24, height - 1), fill="#7b7d7d")
    return picture.resize((32, 48), Image.Resampling.LANCZOS)


def hill(order: random.Random) -> Image.Image:
    """A grey landscape, 24x40 (height, width): a sky that darkens, two ridges, a sun or a moon."""
    width, height = 40 * SMOOTH, 24 * SMOOTH
    picture = Image.new("L", (width, height))
    draw = ImageDraw.Draw(picture)
    light = order.randint(110, 230)
    for y in range(height):
        draw.line((0, y, width, y), fill=int(light * (0.6 + 0.4 * y / height)))
    x, y, size = order.uniform(0.1, 0.9) * width, order.uniform(0.1, 0.4) * height, order.uniform(0.05, 0.12) * width
    draw.ellipse((x - size, y - size, x + size, y + size), fill=order.choice([255, 30]))
    for level, shade in ((0.5, 90), (0.75, 40)):
        waves = [(order.uniform(0.03, 0.12), order.uniform(1, 4), order.uniform(0, 6.3)) for _ in range(3)]
        ridge = [
            (x, height * (level + sum(a * math.sin(f * x / width * 6.3 + p) for a, f, p in waves)))
            for x in range(0, width + 1, SMOOTH)
        ]
        draw.polygon([*ridge, (width, height), (0, height)], fill=shade + order.randint(-20, 20))
    return picture.resize((40, 24), Image.Resampling.LANCZOS)


def drawn(make: Callable[[random.Random], Image.Image], count: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for i in range(count):
            make(random.Random(i)).save(folder / f"{i:04d}.png")

    return write


def cifar10(folder: Path) -> None:
    """CIFAR-10's training images as loose files, without those that are kept for validation."""
    images = load_data(DataConfig(data=data_folder("cifar10"))).train.images
    for i, image in enumerate(images):
        to_pil(image).save(folder / f"{i:05d}.png")


FOLDERS: dict[str, tuple[Callable[[Path], None], float]] = {
    "icons": (drawn(icon, 800), 300.0), "hills": (drawn(hill, 300), 300.0), "cifar10": (cifar10, 600.0)
}  # fmt: skip
"""How each is written, and the seconds of its training."""


def folder(job: Job, options: Options, place: Path) -> Row:
    """Write it, train, keep what was said and a picture of samples, and measure."""
    write, seconds = FOLDERS[job["folder"]]
    images, run = place / job["folder"], place / "run"
    if not images.is_dir():
        begun = place / "images-being-written"
        shutil.rmtree(begun, ignore_errors=True)
        begun.mkdir(parents=True)
        write(begun)
        begun.rename(images)
    said = io.StringIO()
    words = ["train", "--data", str(images), "--out", str(run), "--max-seconds", str(options.seconds or seconds)]
    with contextlib.redirect_stderr(said):
        status = cli.main(words)
    if status:
        raise SystemExit(said.getvalue())
    cli.main(["sample", str(run), "--out", str(run / "samples"), "--num", "64", "--grid", "--force"])
    PICTURES.mkdir(parents=True, exist_ok=True)
    shutil.copy(run / "samples" / "grid.png", PICTURES / f"folder-{job['folder']}.png")
    lines = [line.replace(str(place) + "/", "") for line in said.getvalue().splitlines() if line.strip()]
    model = load(run)
    speeds = [row["images_per_second"] for row in read_log(run / "log.jsonl") if "images_per_second" in row]
    numbers = evaluate(model, load_data(model.config.data))
    return {
        "seconds": options.seconds or seconds,
        "said": lines,
        "images_per_second": statistics.median(speeds),
        **numbers,
    }
