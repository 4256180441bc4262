"""One row of the comparison: a contender is trained, timed and measured.

What was trained stays in the row's folder until it has been measured. So a row that was cut off goes on, and
``run compare --only-train`` here, then ``run compare --measure-on cuda`` where there is a GPU, gives the same row: the seconds of
training and of sampling are those of the machine that trained.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import contenders
import torch
from contenders import Contender, Job, Options, Row, setup_of, weights_of
from fitting import Stopped, splits_of, train_goalgen
from quality import quality, sampling_speed
from report import MUON, PICTURES
from safetensors.torch import load_model, save_model
from torch import Tensor

from goalgen import configure, load, rng
from goalgen.data import Splits, to_bytes
from goalgen.pictures import save_png, tile

BLOCK = 256
"""Images drawn at once."""

SHOWN = {("goalgen code, bridge H=4", "4", "goalgen"): "goalgen-4", (f"flow matching (plain){MUON}", "4", "flow matching (plain), Euler"): "flow-matching-4",
         (f"flow matching (plain){MUON}", "50", "flow matching (plain), Euler"): "flow-matching-50"}  # fmt: skip
"""Contender, evaluations and sampler of which the documents show 64 samples of seed 0, and the end of the picture's name."""


@dataclass(frozen=True)
class Entry:
    """A trained contender."""

    model: Any
    """a :class:`goalgen.Model` or a peer"""
    went: Row
    """steps and seconds of its training, and the command that does the same"""
    samplers: dict[tuple[str, str], Callable[[int], Tensor]]
    """by evaluations and name: what draws so many images in grey levels, (N, C, height, width)"""
    bound: Callable[[Tensor], float | None]
    """bits/dim of images in grey levels"""


def compare(job: Job, options: Options, folder: Path) -> Row:
    """Train one contender, and measure its samples at every number of evaluations."""
    torch.backends.cudnn.allow_tf32 = False  # a bound is measured in full precision everywhere
    contender, seed = contenders.contenders_on(options.data)[job["contender"]], job["seed"]
    settings = setup_of(options.data, options.device).training
    config = configure(data=contenders.data_folder(options.data), **settings, max_seconds=options.seconds)
    splits = splits_of(config.data, options)
    enter = enter_goalgen if contender.family else enter_peer
    entry = enter(contender, seed, options, folder, splits)
    record = folder / "trained.json"
    if not record.exists():
        speeds = {"/".join(key): sampling_speed(draw, int(key[0])) for key, draw in entry.samplers.items()}
        record.write_text(json.dumps({**entry.went, "speeds": speeds}))
    if options.only_train:
        raise Stopped
    speeds, test, found = json.loads(record.read_text())["speeds"], splits.test, {}
    for (evaluations, name), draw in entry.samplers.items():
        drawn = draw(len(test))
        numbers = quality(drawn.split(BLOCK), len(test), splits, options.measure_on)
        numbers["sampled_images_per_second"] = speeds[f"{evaluations}/{name}"]
        found.setdefault(evaluations, {})[name] = numbers
        if (shown := SHOWN.get((job["contender"], evaluations, name))) and seed == 0:
            PICTURES.mkdir(parents=True, exist_ok=True)
            save_png(
                tile(to_bytes(drawn[:64], splits.train.levels), 8),
                PICTURES / f"{folder.parent.name.removeprefix('compare_')}-{shown}.png",
            )
    module = entry.model.family if contender.family else entry.model
    row = {
        "num_test": len(test), "trained_steps": entry.went["steps"], "trained_seconds": entry.went["seconds"], "evaluations": found,
        "parameters": weights_of(module), "operations": contenders.operations_of(module.cpu()), "measured_on": options.measure_on,
    }  # fmt: skip
    row |= {"command": entry.went["command"]} if "command" in entry.went else {}
    bits = entry.bound(test.images)
    return row if bits is None else {**row, "bits_per_dim": bits}


def named(sampler: str, temperature: float, correlation: float = 0.0) -> str:
    parts = [f"temperature {temperature:g}"] if temperature != 1.0 else []
    return ", ".join([sampler, *parts, *([f"correlation {correlation:g}"] if correlation else [])])


def enter_goalgen(contender: Contender, seed: int, options: Options, folder: Path, splits: Splits) -> Entry:
    """Train it as ``goalgen train`` does, or load what was trained."""
    record = folder / "trained.json"
    if record.exists():
        model, went = load(folder / "run"), json.loads(record.read_text())
    else:
        model, _, went = train_goalgen(folder / "run", options, seed, contenders.sized(contender, options))
    model.to(options.measure_on if record.exists() else options.device)

    def sampler(how: dict[str, Any]) -> Callable[[int], Tensor]:
        def parts(count: int) -> Iterator[Tensor]:
            for first in range(0, count, BLOCK):
                yield model.sample(min(BLOCK, count - first), first=first, **how).levels.cpu()

        return lambda count: torch.cat(list(parts(count)))

    samplers = {}
    temperatures = contenders.temperatures(options.data, contender.family)
    for evaluations, t, c in product(contender.evaluations, temperatures, contender.correlations):
        how = {"temperature": t, "steps": None if evaluations == contender.horizon else evaluations, "correlation": c}
        assert model.sample(1, **how).network_evaluations == evaluations
        samplers[str(evaluations), named("goalgen", t, c)] = sampler(how)
    return Entry(model, went, samplers, lambda images: float(model.bits_per_dim(model.nll_bound(images).total.mean())))


def enter_peer(contender: Contender, seed: int, options: Options, folder: Path, splits: Splits) -> Entry:
    """Train it, or load what was trained."""
    import peers

    setup, record, weights = (
        setup_of(options.data, options.device),
        folder / "trained.json",
        folder / "peer.safetensors",
    )
    torch.manual_seed(rng.derive_seed(seed, "weights"))
    width = contenders.width_of(contender, options.data, options.equal, options.device)
    peer = contenders.build(contender, setup, {}, width)
    if record.exists():
        went = json.loads(record.read_text())
        load_model(peer.eval(), weights)
    else:
        training = configure(
            **setup.training | {"optimizer": contender.optimizer}, max_seconds=options.seconds
        ).training
        fitted = peers.fit(peer, splits.train, training, seed, options.device)
        peer, went = fitted.peer, {"steps": fitted.steps, "seconds": fitted.seconds}
        save_model(peer, str(weights))
    peer.to(options.measure_on if record.exists() else options.device)

    def sampler(name: str, evaluations: int, t: float) -> Callable[[int], Tensor]:
        return lambda count: peers.draw(count, peer, name, evaluations, splits.train, t)

    kinds = product(contender.evaluations, peer.samplers, contenders.temperatures(options.data, contender.peer))
    samplers = {(str(e), named(name, t)): sampler(name, e, t) for e, name, t in kinds if peer.can_draw(name, e)}
    return Entry(peer, went, samplers, lambda images: peers.peer_bound(peer, images, splits.train.levels))
