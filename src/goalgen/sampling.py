"""Samples as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from goalgen.model import Sampled
from goalgen.pictures import columns_for, film_strip, save_gif, save_png, tile, to_pil
from goalgen.storage import write_text


def write_samples(sampled: Sampled, out: Path, *, grid: bool, trajectory: bool, facts: dict[str, Any]) -> list[Path]:
    """Write PNGs 00000.png, ... and, as asked, grid.png, trajectories.png and trajectories.gif, into ``out``."""
    written = []
    for i, image in enumerate(sampled.images, facts.get("first", 0)):
        written.append(out / f"{i:05d}.png")
        save_png(to_pil(image), written[-1])
    if grid:
        written.append(out / "grid.png")
        save_png(tile(sampled.images, columns_for(len(sampled.images))), written[-1])
    if trajectory:
        written += [out / "trajectories.png", out / "trajectories.gif"]
        save_png(film_strip(sampled.states[:, :8]), written[-2])
        save_gif(sampled.states[:, :64], written[-1])
    about = {**facts, "start": sampled.start, "network_evaluations": sampled.network_evaluations}
    write_text(out / "samples.json", json.dumps(about, indent=2) + "\n")
    return written
