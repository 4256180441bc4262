"""Is another commit's goalgen the same to the last bit? For changes of structure that are to change nothing else.

Every kind of model is trained for some steps, stopped, resumed, sampled and measured through the command line, by either
commit on this machine; weights, pictures and numbers are compared. What a later commit measures besides is not a difference.

    python benchmarks/same.py --before c8c1ea2
    python benchmarks/same.py --before c8c1ea2 --train --weight-decay 0      # settings for every training, last
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TINY = (
    "--limit 64 --horizon 3 --width 16 --depth 1 --head-width 8 --batch-size 4 --warmup-steps 2 --decay none --quiet \
--dropout 0.1 --eval-every 8 --log-every 5 --max-steps"
)
LATENT = "--environment latent --latent-size 3"
PROPOSALS = "--environment proposals --num-proposals 4"

MODELS = {
    "latent": LATENT,
    "latent, one step": f"{LATENT} --horizon 1",
    "latent, recomputed, warmed up": f"{LATENT} --recompute --kl-warmup-steps 10 --learn-step-size",
    "latent, networks of their own": f"{LATENT} --no-share-steps",
    "latent, mixture, start not read": f"{LATENT} --latent-modes 4 --no-share-steps --no-read-start",
    "latent, map of mixtures": "--environment latent --latent-size 2 --latent-modes 3 --network unet --patch 2",
    "latent, mixture, label, start not read": f"{LATENT} --latent-modes 4 --horizon 1 --no-read-start --condition label",
    "latent, map": "--environment latent --latent-size 2 --network unet --patch 2",
    "latent, label": f"{LATENT} --condition label",
    "fixed bridge": "--environment bridge --gc-agent fixed",
    "fixed bridge, free variance": "--environment bridge --gc-agent fixed --learn-variance True",
    "learned bridge": "--environment bridge",
    "learned bridge, one step": "--environment bridge --horizon 1",
    "bridge, transformer": "--environment bridge --network transformer --patch 4",
    "bridge, given ratios": "--environment bridge --no-learn-snr --log-snr -2.0 3.0",
    "bridge, from a blurred goal": "--environment bridge --start blur:1",
    "bridge, black and white": "--environment bridge --binarize",
    "bridge, label": "--environment bridge --condition label",
    "proposals, greedy": f"{PROPOSALS} --gc-agent greedy",
    "proposals, posterior": PROPOSALS,
    "proposals, value": f"{PROPOSALS} --gc-agent value --batch-size 8",
    "proposals, label": f"{PROPOSALS} --condition label",
    "proposals, cells": f"{PROPOSALS} --grid 2 --learn-step-size --start noise:0.5",
    "proposals, all gradients": f"{PROPOSALS} --backprop full --chain-dropout 0.1",
    "proposals, revived": f"{PROPOSALS} --num-proposals 12 --revive-every 5 --revive-below 0.9 --augment",
    "proposals, bfloat16": f"{PROPOSALS} --precision bf16",
    "latent, bfloat16": f"{LATENT} --precision bf16",
}
ZOO = ("zoo:digits", "zoo:fashion_mnist")


def digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=12).hexdigest()


def weights(folder: Path) -> dict[str, str]:
    """A hash of every tensor that is not empty in a folder's saved models."""
    from safetensors.torch import load_file

    return {
        f"{file.parent.name}/{file.name}/{name}": digest(tensor.numpy().tobytes())
        for file in sorted(folder.glob("*/model*.safetensors"))
        for name, tensor in load_file(file).items()
        if tensor.numel()
    }


def pictures(folder: Path) -> dict[str, str]:
    return {f"{folder.name}/{p.name}": digest(p.read_bytes()) for p in sorted(folder.glob("*.png"))}


def call(command: str, *arguments: str) -> None:
    """Run a command of the goalgen that can be imported here."""
    from goalgen import cli

    with contextlib.redirect_stdout(io.StringIO()):
        status = cli.main([command, *arguments])
    if status:
        raise RuntimeError(f"goalgen {command} {' '.join(arguments)} ends with status {status}")


def numbers(model: str, out: Path, *more: str) -> dict[str, Any]:
    file = out / "numbers.json"
    call("evaluate", model, "--json", str(file), "--features", "pixel-pca", "--iw-k", "2", "--iw-images", "4",
         "--num-test", "20", *more)  # fmt: skip
    return {f"evaluation/{key}": value for key, value in json.loads(file.read_text()).items()}


def observe(name: str, out: Path, extra: list[str]) -> dict[str, Any]:
    """Everything that one kind of model is and does."""
    if name in ZOO:
        call("sample", name, "--out", str(out / "samples"), "--num", "3", "--trajectory")
        digits = numbers(name, out) if name == "zoo:digits" else {}
        return {**pictures(out / "samples"), **digits}
    run = str(out / "run")
    for steps in ("12", "24"):
        call("train", "--out", run, *TINY.split(), steps, *MODELS[name].split(), *extra)
    found = weights(out / "run")
    draws = {"samples": [], "narrow": ["--temperature", "0.7"]}
    if name == "fixed bridge":
        draws["fewer"] = ["--steps", "2"]
    for folder, options in draws.items():
        call("sample", run, "--out", str(out / folder), "--num", "3", "--trajectory", *options)
        found |= pictures(out / folder)
    return {**found, **numbers(run, out)}


def run_all(names: list[str], extra: list[str]) -> dict[str, dict[str, Any]]:
    import torch

    torch.set_num_threads(1)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for i, name in enumerate(names):
            try:
                found[name] = observe(name, Path(folder) / str(i), extra)
            except Exception as error:  # one model that fails must not hide the others
                found[name] = {"error": f"{type(error).__name__}: {error}"}
            print(name, file=sys.stderr)
    return found


def elsewhere(source: Path, arguments: list[str], cache: str) -> dict[str, dict[str, Any]]:
    """The same in a process of its own that imports goalgen from ``source``."""
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "GOALGEN_CACHE": cache}
    command = [sys.executable, __file__, "--here", *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is not the same of one kind of model."""
    return [key for key in (now if "error" in now else before) if key not in now or before.get(key) != now[key]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", help="the commit to compare with")
    parser.add_argument("--kept", type=Path, help="file with what the earlier commit does: written once, then read")
    parser.add_argument("--only", nargs="+", default=[*MODELS, *ZOO], choices=[*MODELS, *ZOO])
    parser.add_argument("--train", nargs=argparse.REMAINDER, default=[], help="settings for every training")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(json.dumps(run_all(options.only, options.train)))
        return
    arguments = ["--only", *options.only, "--train", *options.train]
    root = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as cache:
        if options.kept and options.kept.exists():
            before = json.loads(options.kept.read_text())
        else:
            with tempfile.TemporaryDirectory() as tree:
                git = ["git", "-C", str(root), "worktree"]
                subprocess.run(
                    [*git, "add", "--detach", "--force", tree, options.before], check=True, capture_output=True
                )
                before = elsewhere(Path(tree) / "src", arguments, cache)
                subprocess.run([*git, "remove", "--force", tree], check=True)
            if options.kept:
                options.kept.write_text(json.dumps(before))
        now = elsewhere(root / "src", arguments, cache)
    wrong = {name: found for name in options.only if (found := differences(before[name], now[name]))}
    for name, found in wrong.items():
        print(f"{name}: {len(found)} of {len(before[name])} differ: {', '.join(found[:6])}", now[name].get("error", ""))
    print(f"{len(options.only) - len(wrong)} of {len(options.only)} kinds of model are the same to the last bit")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
