"""Bits/dim and Frechet distance against the number of steps, for four kinds of model of one size.

Fixed bridge (Gaussian diffusion), learned bridge, latent and proposals: the same kind of network, widths chosen so that all
weights together agree within 5%, the same data, batch and seconds, several seeds. Rows already in the result file are
not run again.

    python benchmarks/curve.py digits --seconds 40
    GOALGEN_DATA=... python benchmarks/curve.py fashion_mnist --seconds 60
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from functools import cache

from common import RUNS, data_folder, fit_width, goalgen, public, read, write

from goalgen.agents import make_agents
from goalgen.config import ModelConfig
from goalgen.size import count_parameters

FAMILIES = {
    "fixed bridge": {"environment": "bridge", "gc_agent": "fixed"},
    "learned bridge": {"environment": "bridge", "gc_agent": "learned"},
    "latent": {"environment": "latent"},
    "proposals": {"environment": "proposals"},
}

SETUPS = {
    "digits": {
        "shape": (1, 8, 8), "levels": 17, "weights": 250_000,
        "model": {"depth": 4, "dropout": 0.1},
        "training": ["--batch-size", "64", "--ema", "0.9995", "--eval-every", "100"],
        "evaluate": [],
    },
    "fashion_mnist": {
        "shape": (1, 28, 28), "levels": 256, "weights": 3_000_000,
        "model": {"depth": 2},
        "training": ["--batch-size", "64", "--learning-rate", "2e-3", "--eval-every", "200", "--limit", "20000"],
        "evaluate": ["--num-test", "2000", "--iw-images", "2", "--iw-k", "2"],
    },
}  # fmt: skip
SETUPS["mnist"] = SETUPS["fashion_mnist"]

FASTER = 4e-3
"""Learning rate on 28x28 images of the families whose GC-agent learns, which take fewer steps in the same seconds; of 2e-3 and
this the better for each, by trials of one seed."""


def rate_for(data: str, family: str) -> list[str]:
    """The option that sets the learning rate, where it is not the setup's."""
    return [] if data == "digits" or family == "fixed bridge" else ["--learning-rate", str(FASTER)]


def model_options(data: str, family: str, horizon: int) -> dict[str, object]:
    """Fields of :class:`ModelConfig` but for the widths.

    On 28x28 images a latent has more numbers where there are few steps, and every step a network of its own: at the same
    number of weights a training image then costs no more at several steps than at one. (Beyond 32 they would be too narrow.)
    """
    options: dict[str, object] = {**FAMILIES[family], **SETUPS[data]["model"], "horizon": horizon}
    if data != "digits" and family == "latent":
        options |= {"latent_size": 64 if horizon <= 4 else 16, "share_steps": horizon == 1 or horizon > 32}
    return options


def width_of(data: str, options: dict[str, object], name: str) -> int:
    """The even width at which the weights of a model with these options come nearest to the setup's total."""
    setup = SETUPS[data]

    def weights(width: int) -> int:
        config = ModelConfig(**options, width=width, head_width=width // 2)
        return sum(count_parameters(make_agents(config, setup["shape"], setup["levels"])).values())

    return fit_width(weights, setup["weights"], name)


@cache
def width_for(data: str, family: str, horizon: int) -> int:
    """That of a family at H = ``horizon``."""
    return width_of(data, model_options(data, family, horizon), f"{family} at H = {horizon}")


def command(data: str, family: str, horizon: int, seed: int, seconds: float, out: str) -> list[str]:
    """The training command of one run."""
    setup, width = SETUPS[data], width_for(data, family, horizon)
    options = {**model_options(data, family, horizon), "width": width, "head_width": width // 2}
    options |= {"seed": seed, "max_seconds": seconds, "picture_every": 0}
    arguments = ["train", "--data", data_folder(data), "--out", out, "--quiet", *setup["training"]]
    return merged([*arguments, *as_options(options)], rate_for(data, family))


def as_options(fields: dict[str, object]) -> list[str]:
    """Fields of a configuration as options of the command line."""
    arguments = []
    for name, value in fields.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{option}" if value else f"--no-{option}")
        else:
            arguments += [f"--{option}", str(value)]
    return arguments


def merged(arguments: list[str], changes: list[str]) -> list[str]:
    """Arguments with one option and its value, if any, put in the place of the same option's other value."""
    if not changes:
        return arguments
    at = arguments.index(changes[0])
    return [*arguments[:at], *changes, *arguments[at + 2 :]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", choices=sorted(SETUPS))
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--horizons", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--keep", action="store_true", help="keep the folders of the runs")
    options = parser.parse_args()
    name = f"curve_{options.data}"
    results = read(name)
    done = {(row["family"], row["horizon"], row["seed"]) for row in results["rows"]}
    wanted = [(f, h, s) for s in options.seeds for h in options.horizons for f in options.families]
    waiting = [key for key in wanted if key not in done]
    while waiting:
        batch, waiting = waiting[: options.jobs], waiting[options.jobs :]
        folders = [RUNS / name / f"{family.replace(' ', '-')}-{horizon}-{seed}" for family, horizon, seed in batch]
        for folder in folders:  # what an interrupted run left behind
            shutil.rmtree(folder, ignore_errors=True)
        commands = [
            command(options.data, *key, options.seconds, str(folder))
            for key, folder in zip(batch, folders, strict=True)
        ]
        processes = [goalgen(arguments, threads=1) for arguments in commands]
        if any(process.wait() for process in processes):
            sys.exit("a training run failed")
        extra = SETUPS[options.data]["evaluate"]
        processes = [
            goalgen(["evaluate", str(out), "--json", str(out / "evaluation.json"), *extra], threads=1)
            for out in folders
        ]
        if any(process.wait() for process in processes):
            sys.exit("an evaluation failed")
        for (family, horizon, seed), out, arguments in zip(batch, folders, commands, strict=True):
            progress = json.loads(sorted((out / "checkpoints").glob("step-*/progress.json"))[-1].read_text())
            row = {"family": family, "horizon": horizon, "seed": seed, "seconds": progress["seconds"]}
            row |= {"trained_steps": progress["step"], **json.loads((out / "evaluation.json").read_text())}
            results["rows"].append({**row, "command": public(arguments)})
            write(name, {**results, "seconds": options.seconds, "threads": 1})
            if not options.keep:
                shutil.rmtree(out)


if __name__ == "__main__":
    main()
