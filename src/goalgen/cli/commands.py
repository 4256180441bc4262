"""What every command does with its options."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

from goalgen.cli.options import (
    DemoOptions,
    EvaluateOptions,
    ModelOptions,
    PlotOptions,
    SampleOptions,
    VectorizeOptions,
    parse,
    parse_config,
)
from goalgen.errors import GoalgenError


def run_train(arguments: Sequence[str]) -> int:
    """goalgen train"""
    from accelerate import PartialState

    from goalgen.settings import load_preset, preset_names
    from goalgen.training import train

    preset, rest = _take_preset(list(arguments))
    if any(a in ("-h", "--help") for a in rest):
        print(f"presets (--preset NAME, before the options that it sets): {', '.join(preset_names())}\n")
    outcome = train(parse_config(rest, None if preset is None else load_preset(preset)))
    given = f" given {' and '.join(outcome.conditional_on)}" if outcome.conditional_on else ""
    best = "not measured yet" if outcome.best_bits is None else f"{outcome.best_bits:.4f} bits/dim{given}"
    done = "stopped; the same command goes on from here" if outcome.interrupted else "done"
    if PartialState().is_main_process:
        print(
            f"{done}: step {outcome.step}, {outcome.seconds:.0f} s, best held-out bound {best}; run in {outcome.folder}"
        )
    return 130 if outcome.interrupted else 0


def _take_preset(arguments: list[str]) -> tuple[str | None, list[str]]:
    """Take --preset NAME out of the arguments: it chooses the defaults of the others."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", nargs="?", const="")
    found, rest = parser.parse_known_args(arguments)
    return found.preset, rest


def _load(options: ModelOptions) -> Any:
    import torch

    from goalgen.model import load

    if options.weights not in ("ema", "raw"):
        raise GoalgenError(f"--weights must be ema or raw, not {options.weights!r}")
    try:
        torch.zeros(1, device=options.device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise GoalgenError(f"--device {options.device} is not there on this machine; use --device cpu") from None
    return load(options.model, weights=options.weights, device=options.device)  # type: ignore[arg-type]


def run_sample(arguments: Sequence[str]) -> int:
    """goalgen sample"""
    options = parse(SampleOptions, "sample", arguments)

    from goalgen.sampling import write_samples

    if options.out.is_file():
        raise GoalgenError(f"--out {options.out} is a file; choose a folder")
    model = _load(options)
    goals, names = _start_goals(model, options)
    sampled = model.sample(
        options.num, options.seed, start=options.start, goals=goals, names=names, temperature=options.temperature,
        first=options.first, steps=options.steps, labels=options.label, correlation=options.correlation, draw_pixels=options.draw_pixels,
        guesses=options.trajectory,
    )  # fmt: skip
    _keep_svg(sampled.files, options.svg, options.model)
    facts = {
        "model": options.model, "seed": options.seed, "first": options.first, "num": options.num,
        "temperature": options.temperature, "weights": model.weights, "step": model.facts.get("step"),
    }  # fmt: skip
    written = write_samples(sampled, options.out, grid=options.grid, trajectory=options.trajectory, facts=facts)
    extra = [str(p) for p in written if p.stem in ("grid", "trajectories", "guesses")]
    print(
        f"{options.num} images in {options.out} ({sampled.network_evaluations} network evaluations each, start: "
        f"{sampled.start}){'; ' + ', '.join(extra) if extra else ''}"
    )
    return 0


def _keep_svg(files: list[dict[str, bytes]], wanted: bool, model: str) -> None:
    """Leave out of the further files of images those in SVG, unless they are wanted; then there must be some."""
    if wanted and not any(name.endswith(".svg") for each in files for name in each):
        raise GoalgenError(
            f"{model} draws no strokes, so there is no SVG of what it does: train one with --environment strokes"
        )
    for each in files:
        for name in [name for name in each if name.endswith(".svg") and not wanted]:
            del each[name]


def run_vectorize(arguments: Sequence[str]) -> int:
    """goalgen vectorize"""
    options = parse(VectorizeOptions, "vectorize", arguments)

    from goalgen.data import from_unit, to_bytes
    from goalgen.pictures import save_png, to_pil
    from goalgen.rollout import Samples
    from goalgen.storage import write_bytes

    if options.out.is_file():
        raise GoalgenError(f"--out {options.out} is a file; choose a folder")
    if not options.images:
        raise GoalgenError("no images were given: goalgen vectorize DIR IMAGES...")
    model = _load(options)
    if options.budget is not None and not 1 <= options.budget <= model.horizon:
        raise GoalgenError(
            f"--budget must be 1 to {model.horizon}, the most that this model draws, not {options.budget}"
        )
    names, goals = _read_goals(model, options)
    episodes = model.rollout(goals, options.seed, start=options.start)
    states, actions = episodes.states[: (options.budget or model.horizon) + 1], episodes.actions[: options.budget]
    files = model.family.files(Samples(states, actions, []))
    _keep_svg(files, True, options.model)
    canvases = to_bytes(from_unit(model.family.environment.canvas(states[-1]).cpu(), model.levels), model.levels)
    for name, each, canvas in zip(names, files, canvases, strict=True):
        save_png(to_pil(canvas), options.out / f"{name}.png")
        for extension, content in each.items():
            write_bytes(options.out / f"{name}{extension}", content)
    wrong = (to_bytes(goals, model.levels).float() - canvases).div(255).square().mean()
    print(f"{len(names)} drawings in {options.out} (mean squared error {wrong:.4f} a pixel, black to white is 1)")
    return 0


def _read_goals(model: Any, options: VectorizeOptions) -> tuple[list[str], Any]:
    """Names for the drawings of the images that are given, and these as the model sees them, (N, C, height, width) uint8."""
    import torch

    from goalgen.data import from_unit, to_unit
    from goalgen.data.images import decode_image, find_images

    paths: list[Any] = []
    for path in options.images:
        found = find_images(path) if path.is_dir() else [path]
        if not found:
            raise GoalgenError(f"{path} holds no images")
        paths += found
    channels, height, width = model.shape
    images = torch.stack([
        decode_image(path, channels=channels, image_size=(height, width), fit=options.fit, background=options.background)
        for path in paths
    ])  # fmt: skip
    names = [path.stem for path in paths]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise GoalgenError(f"two images are called {twice[0]!r}, and their drawings would be, too; rename one")
    unit = to_unit(255 - images if options.invert else images, 256)
    return names, from_unit(unit, model.levels)


def _start_goals(model: Any, options: SampleOptions) -> tuple[Any, Sequence[str] | None]:
    """Goals, one a sample, for a start that is a function of the goal; names for a folder that is paired with them."""
    import torch

    from goalgen.data import from_unit, load_data, to_unit
    from goalgen.starts import FolderStart

    start = model.start(options.start)
    if not start.needs_goal and not isinstance(start, FolderStart) and options.start_goals is not None:
        raise GoalgenError(
            f"--start-goals is for a start that is a function of the goal, or a folder; {start.spec!r} reads none: leave it out"
        )
    if not start.needs_goal and options.start_goals is None:
        return None, None

    source = model.config.data
    if options.start_goals is not None:
        _, height, width = model.shape
        source = dataclasses.replace(
            source, data=options.start_goals, image_size=(height, width), channels=model.shape[0]
        )
    splits = load_data(source)
    if splits.train.shape != model.shape:
        raise GoalgenError(f"the goals for the start are {splits.train.shape}, the model's images {model.shape}")
    # A start is seen through the model's own grey levels, whatever those of the goals' files.
    goals = from_unit(to_unit(splits.test.images, splits.test.levels), model.levels)
    index = (torch.arange(options.num) + options.first) % len(goals)
    names = splits.test.subset(index).names if start.pairs_with(splits.test.names) else None
    return goals[index], names


def run_evaluate(arguments: Sequence[str]) -> int:
    """goalgen evaluate"""
    options = parse(EvaluateOptions, "evaluate", arguments)

    from goalgen.data import load_data
    from goalgen.evaluation import evaluate
    from goalgen.storage import write_text

    model = _load(options)
    source = model.config.data if options.data is None else dataclasses.replace(model.config.data, data=options.data)
    numbers = evaluate(model, load_data(source), **dataclasses.asdict(options.how))
    if options.json is not None:
        write_text(options.json, json.dumps(numbers, indent=2) + "\n")
    _print_table(numbers)
    return 0


def _print_table(numbers: dict[str, Any]) -> None:
    """The numbers, each with its held-out reference and what it means."""
    from rich.console import Console
    from rich.table import Table

    from goalgen.evaluation import MEANING, OF_MODEL

    other = numbers["sampler"] != "model"  # samples are not of the model that the bound is of
    table = Table(title=f"{numbers['data']}: {numbers['num_test']} test images, {numbers['num_samples']} samples")
    table.add_column("number", no_wrap=True)
    if other:
        table.add_column("of", no_wrap=True)
    table.add_column("value" if other else "model", justify="right", no_wrap=True)
    table.add_column("test images", justify="right", no_wrap=True)
    table.add_column("meaning")
    for key, meaning in MEANING.items():
        reference = numbers.get(f"{key.replace('_distance', '')}_reference")
        name = key + (f" (K={numbers['iw_k']})" if key == "iw_bound_nats" else "")
        of = ["model" if key in OF_MODEL else "sampler"] if other else []
        table.add_row(name, *of, f"{numbers[key]:.3f}", "" if reference is None else f"{reference:.3f}", meaning)
    # Off a terminal rich would cut the table at 80 columns.
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    console.print(table)
    if numbers["conditional_on"]:
        given = " and ".join(numbers["conditional_on"])
        console.print(f"bits_per_dim given {given}: every bound here is one on -log p(image given {given})")
    if other:
        console.print(f"sampler: {numbers['sampler']}; it is not the model of the bound")
    steps = " ".join(f"{v:.2f}" for v in numbers["kl_per_step_nats"])
    note = ", of choosing a mode, then acting: an upper bound on KL(q || p)" if numbers["kl_is_upper_bound"] else ""
    console.print(f"KL by step (nats{note}): {steps}")
    if "kl_by_stage" in numbers:
        console.print("KL by stage (nats): " + ", ".join(f"{name} {nats:.2f}" for name, nats in numbers["kl_by_stage"]))
    for key, values in numbers.items():  # what the family reports of every step
        if key.endswith("_per_step") and isinstance(values, list):
            name = key.removesuffix("_per_step").replace("_", " ")
            console.print(f"{name} by step: {' '.join(str(n) for n in values)}")
    weights, operations = numbers["parameters"], numbers["operations"]
    console.print(
        f"for one sample: {numbers['network_evaluations']} network evaluations, {operations['sample'] / 1e6:.1f} million "
        f"operations; weights: {weights['generative']:,} for sampling, {weights['gc_agent']:,} in the GC-agent"
    )
    console.print(f"feature space: {numbers['features']}; start: {numbers['start']}; pixels: {numbers['pixels']}")


def run_plot(arguments: Sequence[str]) -> int:
    """goalgen plot"""
    options = parse(PlotOptions, "plot", arguments)

    from goalgen.plots import plot_run

    for path in plot_run(options.model, options.out, seed=options.seed):
        print(path)
    return 0


def run_demo(arguments: Sequence[str]) -> int:
    """goalgen demo"""
    options = parse(DemoOptions, "demo", arguments)

    from goalgen.settings import load_preset
    from goalgen.training import train

    preset = load_preset("digits")
    settings = dataclasses.replace(preset.training, max_seconds=options.max_seconds, quiet=options.quiet)
    config = dataclasses.replace(preset, out=options.out, seed=options.seed, training=settings)
    print(f"training on 8x8 digits for {options.max_seconds:.0f} s; the run is in {options.out}", flush=True)
    outcome = train(config)
    if outcome.interrupted:
        print("stopped; the same command goes on from here")
        return 130
    out, samples = str(options.out), options.out / "samples"
    run_sample([out, "--out", str(samples), "--num", "100", "--grid", "--trajectory"])
    run_evaluate([out, "--json", str(options.out / "evaluation.json")])
    print(
        f"\nlook at: {samples / 'grid.png'} (new digits)\n         {samples / 'trajectories.png'} (how each was drawn)"
    )
    return 0
