"""Binarised MNIST in nats at H = 1, 5, 10, 25, 50, beside published values; with --device cuda CIFAR-10 in bits/dim.

Goals are drawn anew from the grey levels at every visit; the test images are drawn once, with a fixed seed. Rows already in
the result file are not run again.

    GOALGEN_DATA=... python benchmarks/likelihood.py mnist --seconds 60
    GOALGEN_DATA=... python benchmarks/likelihood.py cifar10 --device cuda --seconds 540
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from typing import Any

from common import RUNS, data_folder, goalgen, public, read, write
from curve import FAMILIES, FASTER, as_options, model_options, width_for

HORIZONS = (1, 5, 10, 25, 50)
MEASURED = ("latent", "learned bridge")
GPU: dict[str, Any] = {"network": "unet", "patch": 2, "width": 48, "head_width": 32, "depth": 2, "batch_size": 256,
                       "learning_rate": 1e-3, "ema": 0.999}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=["mnist", "cifar10"])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--horizons", type=int, nargs="+", default=list(HORIZONS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--num-test", type=int, default=2000, help="measure on the first so many test images")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time on a CPU, one thread each")
    options = parser.parse_args()
    if options.data == "cifar10" and options.device == "cpu":
        sys.exit("cifar10 is for a GPU: give --device cuda")
    name = f"likelihood_{options.data}{'_cuda' if options.device == 'cuda' else ''}"
    jobs = 1 if options.device == "cuda" else options.jobs
    results = read(name)
    done = {(row["family"], row["horizon"], row["seed"]) for row in results["rows"]}
    waiting = [(f, h, s) for s in options.seeds for h in options.horizons for f in MEASURED if (f, h, s) not in done]
    while waiting:
        batch, waiting = waiting[:jobs], waiting[jobs:]
        commands, folders = [], []
        for family, horizon, seed in batch:
            out = RUNS / name / f"{family.replace(' ', '-')}-{horizon}-{seed}"
            shutil.rmtree(out, ignore_errors=True)
            folders.append(out)
            command = [
                "train",
                "--data",
                data_folder(options.data),
                "--out",
                str(out),
                "--quiet",
                "--picture-every",
                "0",
            ]
            if options.device == "cuda":
                values: dict[str, Any] = {**FAMILIES[family], **GPU, "horizon": horizon}
            else:  # as in curve.py: 3 million weights in all, at every number of steps
                width = width_for(options.data, family, horizon)
                values = {**model_options(options.data, family, horizon), "width": width, "head_width": width // 2}
                values |= {"batch_size": 64, "learning_rate": FASTER}
            command += as_options({**values, "seed": seed, "max_seconds": options.seconds})
            commands.append([*command, *(["--binarize"] if options.data == "mnist" else [])])
        threads = 8 if options.device == "cuda" else 1
        if any(p.wait() for p in [goalgen(command, threads) for command in commands]):
            sys.exit("a training run failed")
        measure = ["--num-test", str(options.num_test), "--num-samples", "6", "--iw-images", "100", "--iw-k", "16",
                   "--features", "pixel-pca", "--device", options.device]  # fmt: skip
        evaluations = [
            goalgen(["evaluate", str(f), "--json", str(f / "evaluation.json"), *measure], threads) for f in folders
        ]
        if any(p.wait() for p in evaluations):
            sys.exit("an evaluation failed")
        for (family, horizon, seed), out, command in zip(batch, folders, commands, strict=True):
            numbers = json.loads((out / "evaluation.json").read_text())
            keep = ("nll_bound_nats", "nll_bound_standard_error", "bits_per_dim", "iw_bound_nats", "nll_bound_nats_on_iw_images",
                    "iw_k", "iw_images", "num_test", "parameters", "network_evaluations", "step")  # fmt: skip
            row = {"family": family, "horizon": horizon, "seed": seed, "seconds": options.seconds}
            row |= {key: numbers[key] for key in keep if key in numbers}
            results["rows"].append({**row, "command": public(command)})
            shutil.rmtree(out)
        write(name, {**results, "seconds": options.seconds})


if __name__ == "__main__":
    main()
