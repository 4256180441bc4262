"""What the commands do with their options, but for those that draw (samples.py)."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

from goalgen.cli.options import DemoOptions, EvaluateOptions, PlotOptions, ShowOptions, data_of
from goalgen.cli.parsing import parse, parse_config
from goalgen.cli.samples import run_sample
from goalgen.errors import as_line


def run_train(arguments: Sequence[str]) -> int:
    """goalgen train"""
    from accelerate import PartialState

    from goalgen.settings import load_preset
    from goalgen.training import train
    from goalgen.training.checkpoints import list_checkpoints

    preset, rest = _take_preset(list(arguments))
    if any(a in ("-h", "--help") for a in rest):
        print(first_help())
    config = parse_config(rest, None if preset is None else load_preset(preset))
    before = list_checkpoints(config.out)[-1:]
    outcome = train(config)
    given = f" given {' and '.join(outcome.conditional_on)}" if outcome.conditional_on else ""
    best = "not measured yet" if outcome.best_bits is None else f"{outcome.best_bits:.4f} bits/dim{given}"
    done = "stopped; the same command goes on from here" if outcome.interrupted else "done"
    if not outcome.interrupted and [path.name for path in before] == [f"step-{outcome.step:08d}"]:
        done = "done already; a larger --max-steps or --max-seconds goes on"
    if PartialState().is_main_process:
        print(
            f"{done}: step {outcome.step}, {outcome.seconds:.0f} s, best held-out bound {best}; run in {outcome.folder}"
        )
    return 130 if outcome.interrupted else 0


def first_help() -> str:
    """The options that one needs, and the presets, before the list of all options."""
    from goalgen.settings import preset_words

    presets = "\n".join(f"  {name:<18} {words}" for name, words in preset_words().items())
    return f"""{NEEDED}

presets (--preset NAME; the other options override what it sets):
{presets}
"""


NEEDED = """the six options one needs:
  --data SRC         a folder of images, a parquet file, a hub name owner/name, or digits (the default)
  --out DIR          folder of the run; the same command again resumes
  --image-size H W   resize the images (needed where they differ in size); 32 means 32x32
  --max-seconds S    how long to train (or --epochs N, --max-steps N); 600 where nothing is said
  --start WHAT       what an image begins from: mean, noise, blur, downsample:4, mask:0.5, a picture, ...
  --preset NAME      settings that are known to work

With these alone, family, network and sizes are chosen by the images. Everything else is optional and follows below."""


def _take_preset(arguments: list[str]) -> tuple[str | None, list[str]]:
    """Take --preset NAME out of the arguments: it chooses the defaults of the others."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", nargs="?", const="")
    found, rest = parser.parse_known_args(arguments)
    return found.preset, rest


def run_evaluate(arguments: Sequence[str]) -> int:
    """goalgen evaluate"""
    options = parse(EvaluateOptions, "evaluate", arguments)

    from goalgen.data import load_data
    from goalgen.evaluation import evaluate
    from goalgen.outputs import check_file
    from goalgen.processes import is_first, join, leave
    from goalgen.storage import write_text

    if options.json is not None and is_first():
        check_file(options.json, "nll_bound_nats", "numbers", options.force)
    join(options.device)
    model = options.load()
    if options.data is None:
        source = data_of(model, "--data")
    else:
        source = dataclasses.replace(model.config.data, data=options.data)
    numbers = evaluate(model, load_data(source), **dataclasses.asdict(options.how))
    leave()
    if not is_first():
        return 0
    if options.json is not None:
        write_text(options.json, json.dumps(numbers, indent=2) + "\n")
    _print_table(numbers)
    return 0


def _print_table(numbers: dict[str, Any]) -> None:
    """The numbers, each with its held-out reference and what it means."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from goalgen.evaluation import MEANING, OF_MODEL

    other = numbers["sampler"] != "model"  # samples are not of the model that the bound is of
    table = Table(
        title=f"{escape(as_line(numbers['data']))}: {numbers['num_test']} test images, {numbers['num_samples']} samples"
    )
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
    if numbers["quick"]:
        console.print("quick: a first answer on few images; without --quick it is measured on all")
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


def run_show(arguments: Sequence[str]) -> int:
    """goalgen show"""
    options = parse(ShowOptions, "show", arguments)

    from goalgen.model import load

    model = load(options.model)
    print(as_line(str(model).removeprefix("<goalgen.Model: ").removesuffix(">")))
    print(as_line(f"start: {model.config.model.start}; data: {model.config.data.data}"))
    about = {} if model.provenance is None else model.provenance.about
    for role in ("train", "validation", "test"):
        if role in about:
            print(f"{about[role]['images']:>9,} {role} images, fingerprint {about[role]['fingerprint']}")
    for number, name in enumerate(model.classes):
        print(f"--label {as_line(name)}" + ("" if name == str(number) else f"  (number {number})"))
    return 0


def run_plot(arguments: Sequence[str]) -> int:
    """goalgen plot"""
    options = parse(PlotOptions, "plot", arguments)

    from goalgen.plots import plot_run

    for path in plot_run(options.model, options.out, seed=options.seed, force=options.force):
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
    run_sample([out, "--out", str(samples), "--num", "100", "--grid", "--trajectory", "--force"])
    run_evaluate([out, "--json", str(options.out / "evaluation.json"), "--force"])
    print(
        f"\nlook at: {samples / 'grid.png'} (new digits)\n         {samples / 'trajectories.png'} (how each was drawn)"
    )
    return 0
