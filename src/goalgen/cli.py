"""The command line: goalgen train | sample | evaluate | plot | demo."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import tyro

from goalgen.config import Config, load_preset, preset_names
from goalgen.errors import GoalgenError

T = TypeVar("T")

USAGE = """goalgen: generative models learned with goal-conditioned reinforcement learning

  goalgen demo                             train on the digits, sample, evaluate: two minutes and a half
  goalgen train --data SRC --out DIR       train; the same command again resumes
  goalgen sample DIR --out PATH            draw new images
  goalgen evaluate DIR                     bound, quality, diversity, each beside its held-out reference
  goalgen plot DIR                         learning curves, KL by step, action usage, neighbours

`goalgen COMMAND --help` lists the options. DIR is the folder of a run, a saved model, zoo:digits, or a hub name."""


@dataclass(frozen=True)
class SampleOptions:
    """Draw new images with the S-agent alone."""

    model: tyro.conf.Positional[str]
    """Folder of a run or of a saved model, a model of the zoo such as zoo:digits, or a hub name."""
    out: Path = Path("samples")
    """Folder for the PNGs."""
    num: int = 64
    """Number of images."""
    seed: int = 0
    """Image i depends on (seed, i) only, however many are drawn."""
    first: int = 0
    """Index i of the first image."""
    start: str | None = None
    """Another initial state than the one trained with (see `goalgen train --help`)."""
    start_goals: str | None = None
    """Images, as --data, for a start that is a function of the goal; unset: the test images of the run's data."""
    temperature: float = 1.0
    """Below 1 keeps to likelier actions."""
    steps: int | None = None
    """Actions to take, where the model can skip steps (fixed bridge); unset: all it was trained with."""
    label: int | None = None
    """Class of all images, for a model trained with --condition label; unset: the classes in turn."""
    grid: bool = False
    """Also write grid.png, all images in one."""
    trajectory: bool = False
    """Also write trajectories.png (film strip) and trajectories.gif."""
    weights: str = "ema"
    """Which weights of a run: ema (averaged) or raw."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, mps."""


@dataclass(frozen=True)
class EvaluateOptions:
    """Measure a model on held-out images."""

    model: tyro.conf.Positional[str]
    """Folder of a run or of a saved model, a model of the zoo such as zoo:digits, or a hub name."""
    json: Path | None = None
    """File for the numbers."""
    num_samples: int | None = None
    """Samples to draw; unset: as many as there are test images, at most 10,000."""
    num_test: int | None = None
    """Measure on the first so many test images; unset: all."""
    data: str | None = None
    """Data to measure on; unset: those of the run."""
    seed: int = 0
    """Seed of samples and noise."""
    iw_k: int = 16
    """K, trajectories an image for the tighter bound (equation 4)."""
    iw_images: int = 500
    """Test images that the tighter bound is computed on."""
    features: str = "auto"
    """Feature space: auto, classifier, pixel-pca or inception."""
    start: str | None = None
    """Another initial state than the one trained with."""
    temperature: float = 1.0
    """Of the samples; below 1 keeps to likelier actions."""
    steps: int | None = None
    """Actions of a sample, where the model can skip steps (fixed bridge)."""
    weights: str = "ema"
    """Which weights of a run: ema (averaged) or raw."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, mps."""


@dataclass(frozen=True)
class PlotOptions:
    """Draw learning curves, KL by step, action usage, trajectories and nearest training neighbours."""

    model: tyro.conf.Positional[Path]
    """Folder of a run."""
    out: Path | None = None
    """Folder for the pictures; unset: plots/ in the run."""
    seed: int = 0
    """Seed of the samples shown."""


@dataclass(frozen=True)
class DemoOptions:
    """Train on the digits, sample, evaluate, and say where the pictures are."""

    out: Path = Path("runs/demo")
    """Folder of the run."""
    max_seconds: float = 120.0
    """Seconds of training."""
    seed: int = 0
    """Seed of everything."""
    quiet: bool = False
    """No progress bar."""


def parse(kind: type[T], command: str, arguments: Sequence[str], default: T | None = None) -> T:
    """Read command-line arguments into a dataclass; what cannot be read becomes one line.

    Raises:
        GoalgenError: an unknown option or a value of the wrong type.
        SystemExit: after --help.
    """
    errors = io.StringIO()
    options: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(
                kind, prog=f"goalgen {command}", args=list(arguments), config=(tyro.conf.OmitArgPrefixes,), **options
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
    raise GoalgenError(f"{_one_line(errors.getvalue())} (see goalgen {command} --help)")


def _one_line(message: str) -> str:
    """What tyro says, without the titled box over several lines that it draws around it, or its ASCII stand-in."""
    text = re.sub(r"\x1b\[[0-9;]*m|\[/?bold\]", "", message)
    text = re.sub(r"[╭╮╰╯│─]+|[-+]{3,}|^\||\|$", " ", text, flags=re.MULTILINE)
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and re.fullmatch(r"\w+ \w+", lines[0]):
        lines = lines[1:]  # the title
    return re.sub(r"(Argument helptext:|For full helptext).*", "", " ".join(lines)).strip()


def run_train(arguments: Sequence[str]) -> int:
    """goalgen train"""
    preset, rest = _take_preset(list(arguments))
    default = Config() if preset is None else load_preset(preset)
    if any(a in ("-h", "--help") for a in rest):
        print(f"presets (--preset NAME, before the options that it sets): {', '.join(preset_names())}\n")
    config = parse(Config, "train", rest, default)

    from accelerate import PartialState

    from goalgen.training import train

    outcome = train(config)
    best = "not measured yet" if outcome.best_bits is None else f"{outcome.best_bits:.4f} bits/dim"
    done = "stopped; the same command goes on from here" if outcome.interrupted else "done"
    if PartialState().is_main_process:
        print(
            f"{done}: step {outcome.step}, {outcome.seconds:.0f} s, best held-out bound {best}; run in {outcome.folder}"
        )
    return 130 if outcome.interrupted else 0


def _take_preset(arguments: list[str]) -> tuple[str | None, list[str]]:
    """Take --preset NAME out of the arguments: it chooses the defaults of the others."""
    rest, preset = [], None
    waiting = iter(arguments)
    for argument in waiting:
        if argument == "--preset":
            preset = next(waiting, "")
        elif argument.startswith("--preset="):
            preset = argument.partition("=")[2]
        else:
            rest.append(argument)
    return preset, rest


def _load(model: str, weights: str, device: str) -> Any:
    from goalgen.model import load

    if weights not in ("ema", "raw"):
        raise GoalgenError(f"--weights must be ema or raw, not {weights!r}")
    _check_device(device)
    return load(model, weights=weights, device=device)  # type: ignore[arg-type]


def _check_device(device: str) -> None:
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise GoalgenError(f"--device {device} is not there on this machine; use --device cpu") from None


def run_sample(arguments: Sequence[str]) -> int:
    """goalgen sample"""
    options = parse(SampleOptions, "sample", arguments)

    from goalgen.sampling import write_samples

    if options.out.is_file():
        raise GoalgenError(f"--out {options.out} is a file; choose a folder")
    model = _load(options.model, options.weights, options.device)
    goals, names = _start_goals(model, options)
    sampled = model.sample(
        options.num, options.seed, start=options.start, goals=goals, names=names, temperature=options.temperature,
        first=options.first, steps=options.steps, labels=options.label,
    )  # fmt: skip
    facts = {
        "model": options.model, "seed": options.seed, "first": options.first, "num": options.num,
        "temperature": options.temperature, "weights": model.weights, "step": model.facts.get("step"),
    }  # fmt: skip
    written = write_samples(sampled, options.out, grid=options.grid, trajectory=options.trajectory, facts=facts)
    extra = [str(p) for p in written if p.stem in ("grid", "trajectories")]
    print(
        f"{options.num} images in {options.out} ({sampled.network_evaluations} network evaluations each, start: "
        f"{sampled.start}){'; ' + ', '.join(extra) if extra else ''}"
    )
    return 0


def _start_goals(model: Any, options: SampleOptions) -> tuple[Any, list[str] | None]:
    """Goals, one a sample, for a start that is a function of the goal; names for a folder that is paired with them."""
    import torch

    from goalgen.data import from_unit, load_data, to_unit
    from goalgen.starts import FolderStart
    from goalgen.training.batches import pairing_names

    start = model.start(options.start)
    if not start.needs_goal and not (isinstance(start, FolderStart) and options.start_goals is not None):
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
    names = pairing_names(start, splits.test)
    return goals[index], None if names is None else [names[i] for i in index.tolist()]


def run_evaluate(arguments: Sequence[str]) -> int:
    """goalgen evaluate"""
    options = parse(EvaluateOptions, "evaluate", arguments)

    from goalgen.data import load_data
    from goalgen.evaluation import evaluate
    from goalgen.storage import write_text

    model = _load(options.model, options.weights, options.device)
    source = model.config.data
    if options.data is not None:
        source = dataclasses.replace(source, data=options.data)
    numbers = evaluate(
        model, load_data(source), num_samples=options.num_samples, num_test=options.num_test, seed=options.seed, iw_k=options.iw_k,
        iw_images=options.iw_images, features=options.features, start=options.start, temperature=options.temperature, steps=options.steps,
    )  # fmt: skip
    if options.json is not None:
        write_text(options.json, json.dumps(numbers, indent=2) + "\n")
    print_table(numbers)
    return 0


def print_table(numbers: dict[str, Any]) -> None:
    """The numbers, each with its held-out reference and what it means."""
    from rich.console import Console
    from rich.table import Table

    from goalgen.evaluation import MEANING, reference_key

    features = numbers["features"]
    table = Table(title=f"{numbers['data']}: {numbers['num_test']} test images, {numbers['num_samples']} samples")
    table.add_column("number", no_wrap=True)
    table.add_column("model", justify="right", no_wrap=True)
    table.add_column("test images", justify="right", no_wrap=True)
    table.add_column("meaning")
    for key, meaning in MEANING.items():
        reference = numbers.get(reference_key(key))
        name = key + (f" (K={numbers['iw_k']})" if key == "iw_bound_nats" else "")
        table.add_row(name, f"{numbers[key]:.3f}", "" if reference is None else f"{reference:.3f}", meaning)
    steps = " ".join(f"{v:.2f}" for v in numbers["kl_per_step_nats"])
    # Off a terminal rich would cut the table at 80 columns.
    console = Console() if sys.stdout.isatty() else Console(width=140)
    console.print(table)
    if "active_units_per_step" in numbers:
        used = " ".join(str(n) for n in numbers["active_units_per_step"])
        console.print(f"active units by step, of {numbers['units_per_step']}: {used}", highlight=False)
    weights, operations = numbers["parameters"], numbers["operations"]
    console.print(
        f"for one sample: {numbers['network_evaluations']} network evaluations, {operations['sample'] / 1e6:.1f} million "
        f"operations; weights: {weights['generative']:,} for sampling, {weights['gc_agent']:,} in the GC-agent",
        highlight=False,
    )
    console.print(f"KL by step (nats): {steps}\nfeature space: {features}; start: {numbers['start']}", highlight=False)


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

    from goalgen.training import train

    preset = load_preset("digits")
    settings = dataclasses.replace(preset.training, max_seconds=options.max_seconds, quiet=options.quiet)
    config = dataclasses.replace(preset, out=options.out, seed=options.seed, training=settings)
    print(f"training on 8x8 digits for {options.max_seconds:.0f} s; the run is in {options.out}", flush=True)
    outcome = train(config)
    if outcome.interrupted:
        print("stopped; the same command goes on from here")
        return 130
    out = str(options.out)
    samples = options.out / "samples"
    run_sample([out, "--out", str(samples), "--num", "100", "--grid", "--trajectory"])
    run_evaluate([out, "--json", str(options.out / "evaluation.json")])
    print(
        f"\nlook at: {samples / 'grid.png'} (new digits)\n         {samples / 'trajectories.png'} (how each was drawn)"
    )
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": run_train,
    "sample": run_sample,
    "evaluate": run_evaluate,
    "plot": run_plot,
    "demo": run_demo,
}


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"goalgen: warning: {' '.join(str(message).split())}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit status: 0, 2 for what the user can mend, 130 when interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if given else 2
    if given[0] == "--version":
        from goalgen import __version__

        print(__version__)
        return 0
    try:
        if given[0] not in COMMANDS:
            raise GoalgenError(f"no command is called {given[0]!r}; there are: {', '.join(COMMANDS)}")
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            status = COMMANDS[given[0]](given[1:])
            sys.stdout.flush()
            return status
    except GoalgenError as error:
        print(f"goalgen: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("goalgen: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Who reads the output (head, a pager) has had enough; Python's own flush at the end must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
