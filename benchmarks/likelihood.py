"""How much an image costs: the negative log-likelihood of reveals after twenty minutes, and of every family on a GPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contenders import FAMILIES, LARGER, Job, Options, Row
from fitting import train_goalgen

from goalgen import evaluate

CPU = {**LARGER.model, **LARGER.training, "batch_size": 32, "width": 48, "head_width": 96}
BINARY = {"binarize": True}
GPU = {"network": "unet", "patch": 2, "width": 48, "head_width": 32, "depth": 2, "batch_size": 256, "learning_rate": 1e-3,
       "ema": 0.999}  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """A bound that is asked for."""

    horizon: int
    unit: str
    target: float
    """at most, in that unit"""
    settings: dict[str, Any] = field(default_factory=dict)


REVEALS = {
    "mnist": {
        "black and white, 10 groups": Asked(10, "nats", 83.5, BINARY),
        "black and white, 25 groups": Asked(25, "nats", 81.0, BINARY),
        "256 grey levels, a chance for each, 25 groups": Asked(25, "bits/dim", 0.97, {"reveal_values": "levels"}),
    },
    "fashion_mnist": {"256 grey levels, 25 groups": Asked(25, "bits/dim", 2.92)},
}
"""On a CPU, by data set and name."""


def jobs(options: Options) -> list[Job]:
    """What is measured: on a CPU reveals, on a GPU every family at every horizon."""
    if options.device == "cpu":
        return [{"reveal": name, "seed": seed} for name in REVEALS.get(options.data, {}) for seed in options.seeds]
    families = ("latent", "learned bridge", "reveal")
    return [{"family": f, "horizon": h, "seed": s} for h in options.horizons for f in families for s in options.seeds]


def settings_of(job: Job, options: Options) -> Row:
    """Of one row. Binarised goals are drawn anew from the grey levels at every visit; the test images once, with a fixed seed."""
    if options.device != "cpu":
        binary = {"binarize": options.data == "mnist"}
        return {**FAMILIES[job["family"]], **GPU, "horizon": job["horizon"], **binary}
    asked = REVEALS[options.data][job["reveal"]]
    return {**FAMILIES["reveal"], **CPU, "horizon": asked.horizon, **asked.settings}


def likelihood(job: Job, options: Options, folder: Path) -> Row:
    """Train and measure one row."""
    model, splits, went = train_goalgen(folder / "run", options, job["seed"], settings_of(job, options))
    numbers = evaluate(model.to(options.device), splits, num_samples=6, iw_images=100, features="pixel-pca")
    keep = ("nll_bound_nats", "nll_bound_standard_error", "bits_per_dim", "iw_bound_nats", "nll_bound_nats_on_iw_images",
            "iw_k", "iw_images", "num_test", "parameters", "operations", "network_evaluations", "step")  # fmt: skip
    return {"seconds": options.seconds, **{key: numbers[key] for key in keep}, "command": went["command"]}
