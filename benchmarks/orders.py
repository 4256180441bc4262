"""Does an order that agents learn reveal images better than a fixed one?"""

from __future__ import annotations

import math
from pathlib import Path

import contenders
from contenders import Contender, Job, Options, Row, setup_of, sizes
from fitting import train_goalgen

from goalgen import evaluate

ORDERS = ("learned", "spread", "raster", "random")


def order_settings(job: Job, options: Options) -> Row:
    """Settings of one order; its width is that at which it has as many weights, or operations, as the others: the small networks
    that learn an order count."""
    setup = setup_of(options.data, options.device)
    contender = Contender("reveal", job["horizon"], settled_for="bound")
    settings = {**contenders.settings_of(contender, setup), "reveal_order": job["order"]}
    return {**settings, **sizes(setup, contenders.equal_width(contender, setup, settings, options.equal))}


def order(job: Job, options: Options, folder: Path) -> Row:
    """One order at one number of groups, trained, and measured on test images and by samples."""
    model, splits, went = train_goalgen(folder / "run", options, job["seed"], order_settings(job, options))
    numbers = evaluate(model, splits, **setup_of(options.data, options.device).measured)
    keep = ("bits_per_dim", "iw_bound_nats", "iw_k", "iw_images", "nll_bound_nats_on_iw_images", "bound_is_exact", "order_kl_nats",
            "order_entropy_nats", "values_per_step", "network_evaluations", "frechet_distance", "frechet_reference", "features",
            "num_test", "num_samples", "parameters", "operations")  # fmt: skip
    error = numbers["nll_bound_standard_error"] / (math.prod(model.shape) * math.log(2))
    return {
        **{key: numbers[key] for key in keep if key in numbers}, "bits_standard_error": error, "seconds": went["seconds"],
        "trained_steps": went["steps"], "command": went["command"],
    }  # fmt: skip
