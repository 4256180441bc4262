"""Strokes, then a bridge: a drawing that is worked out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from contenders import Job, Options, Row
from fitting import train_goalgen
from painting import ON
from report import PICTURES

from goalgen import evaluate
from goalgen.model import Model
from goalgen.pictures import film_strip, save_png

STROKES, BRIDGE = 6, 3
SETTINGS: dict[str, Any] = {
    "environment": f"strokes:{STROKES}+bridge:{BRIDGE}",
    "start": "constant:0",
    "gc_agent": "fixed",
    "first_look": True,
    "discount": 2.0,
    "log_snr": (-1.0, 4.0),
    "batch_size": 32,
    "learning_rate": 3e-3,
}
SHOWN = 10
"""Samples of the picture."""
KEEP = ("bits_per_dim", "kl_nats_per_step", "frechet_distance", "frechet_reference", "precision", "recall", "network_evaluations",
        "strokes_per_image", "squared_error", "parameters", "operations", "num_test", "num_samples")  # fmt: skip


def shaded(job: Job, options: Options, folder: Path) -> Row:
    """Both stages trained under one bound: bits/dim, Frechet distance, and a strip from the empty canvas to the images."""
    settings = {**SETTINGS, **ON.get(options.data, {})}
    model, splits, went = train_goalgen(folder / "run", options, job["seed"], settings)
    numbers = evaluate(model, splits)
    if not options.trial and job["seed"] == 0:
        PICTURES.mkdir(parents=True, exist_ok=True)
        save_png(film_strip(frames(model)), PICTURES / f"{options.data}-shaded.png")
    return {**went, **{key: numbers[key] for key in KEEP if key in numbers}}


def frames(model: Model) -> torch.Tensor:
    """What samples look like after every step, (STROKES + BRIDGE + 2, SHOWN, C, height, width) in grey levels: canvases while it
    draws, then what the bridge has in mind (its canvases are noisy), and the images."""
    drawn = model.sample(SHOWN, guesses=True)
    assert drawn.guesses is not None
    return torch.cat([drawn.states[: STROKES + 1], drawn.guesses])
