"""Is a run that is killed again and again the run that was never killed? SIGKILL at random moments, for every family.

A tiny run of each kind of model is trained on the digits. The same is begun again, killed at a random moment (while it starts, learns,
measures, draws pictures, writes a checkpoint or a model), looked at, and gone on with by the same command, until it ends. After every
kill all files must be whole, and `goalgen show` must have an answer; in the end weights, checkpoint, best model, log and pictures must be
the same to the last bit, and nothing may be left over.

    python benchmarks/killed.py --out benchmarks/results/killed.json

Most processes are forked from one that has imported everything, and say through a pipe what they are doing, so that it is known what was
cut off; the first kill of a kind hits, and the last start is, a process of its own, as a user's is.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TINY = (
    "--limit 64 --width 16 --depth 1 --head-width 8 --batch-size 4 --warmup-steps 2 --dropout 0.1 --quiet --precision no "
    "--max-steps 78 --log-every 4 --checkpoint-every 3 --eval-every 5 --picture-every 7"
)
KINDS = {
    "proposals": "--environment proposals --num-proposals 6 --horizon 3 --gc-agent value --revive-every 10",
    "proposals, U-Net": "--environment proposals --num-proposals 4 --horizon 2 --network unet --patch 2",
    "latent": "--environment latent --latent-size 3 --horizon 2 --latent-modes 2",
    "latent, U-Net": "--environment latent --latent-size 2 --horizon 2 --network unet --patch 2",
    "bridge, fixed": "--environment bridge --gc-agent fixed --horizon 3",
    "bridge, learned": "--environment bridge --gc-agent learned --horizon 3 --network unet --patch 2",
    "reveal": "--environment reveal --horizon 4",
    "code, then bridge": "--environment code:1+bridge:3 --code-size 4 --network unet --patch 2",
    "strokes": "--environment strokes --start constant:0 --horizon 3 --stroke-candidates 6",
}
STEPS = 78
AIMS = (
    "first second", "beginning", "validation", "pictures", "checkpoint", "any", "pictures", "validation", "checkpoint", "model", "any",
    "beginning",
)  # fmt: skip
"""What the kills of a run aim at, in this order after the first in a random one."""
WATCHED = {
    "validation": "validation_bound", "pictures": "draw_snapshot", "checkpoint": "save_checkpoint", "model": "save_model",
}  # fmt: skip
"""Functions of the training loop that are told of."""


# -- the process that is killed ------------------------------------------------------------------------------------


def child(command: list[str], pipe: int) -> None:
    """Train here, and tell what begins and ends: a letter each, "(name" and ")name"."""
    from goalgen import cli
    from goalgen.training import loop

    def told(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def telling(*arguments: Any, **more: Any) -> Any:
            os.write(pipe, f"({name}\n".encode())
            result = function(*arguments, **more)
            os.write(pipe, f"){name}\n".encode())
            return result

        return telling

    for name, function in WATCHED.items():
        setattr(loop, function, told(name, getattr(loop, function)))
    loop.Trainer._step = told("step", loop.Trainer._step)  # type: ignore[method-assign]
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    status = 1
    try:
        status = cli.main(["train", *command])
    finally:
        os._exit(status)


class Forked:
    """A training process, and what it has told of itself."""

    def __init__(self, command: list[str]) -> None:
        reading, writing = os.pipe()
        self.begun = time.monotonic()
        self.pid = os.fork()
        if not self.pid:
            os.close(reading)
            child(command, writing)
        os.close(writing)
        self.lines: Iterator[bytes] = iter(os.fdopen(reading, "rb", buffering=0).readline, b"")
        self.doing = ["beginning"]  # what is going on, the innermost last
        self.seconds: dict[str, float] = {}  # how long the last of each took
        self.since: dict[str, float] = {}

    def hear(self) -> str | None:
        """The next thing that it tells; None: it has ended."""
        line = next(self.lines, b"").decode().strip()
        if not line:
            return None
        now, name = time.monotonic(), line[1:]
        if line[0] == "(":
            if self.doing == ["beginning"]:
                self.seconds["beginning"] = now - self.begun
                self.doing = []
            self.since[name] = now
            self.doing.append(name)
        else:
            self.seconds[name] = now - self.since[name]
            self.doing.remove(name)
        return line

    def kill(self) -> tuple[bool, str]:
        """Kill it: whether it was still alive, and in the middle of what."""
        os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        while self.hear() is not None:
            pass
        return os.WIFSIGNALED(status), self.doing[-1] if self.doing else "between"

    def end(self) -> int:
        while self.hear() is not None:
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


# -- what is looked at ---------------------------------------------------------------------------------------------


def newest_step(folder: Path) -> int:
    place = folder / "checkpoints"
    names = os.listdir(place) if place.is_dir() else []
    return max((int(name[5:]) for name in names if name.startswith("step-")), default=0)


def broken(folder: Path) -> list[str]:
    """What of a folder of a run is not whole. Hidden files are those that were being written."""
    from PIL import Image
    from safetensors.torch import load_file

    from goalgen import cli

    wrong = []
    if not folder.exists():
        return []
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        if any(part.startswith(".") for part in file.relative_to(folder).parts):
            continue
        try:
            if file.suffix == ".json":
                json.loads(file.read_text())
            elif file.suffix == ".jsonl":
                text = file.read_text()
                assert text.endswith("\n") or not text
                steps = [json.loads(line)["step"] for line in text.splitlines()]
                assert steps == sorted(steps)
            elif file.suffix == ".safetensors":
                load_file(file)
            else:
                Image.open(file).load()
        except Exception as error:
            wrong.append(f"{file.relative_to(folder)}: {type(error).__name__}")
    for place in [*folder.glob("checkpoints/step-*"), *folder.glob("best"), *folder.glob("last")]:
        lacking = {"config.json", "model.safetensors", "model.raw.safetensors", "data.safetensors"} - set(
            os.listdir(place)
        )
        if place.name.startswith("step-"):
            lacking = {"raw.safetensors", "ema.safetensors", "optimizer.safetensors", "progress.json"} - set(
                os.listdir(place)
            )
        wrong += [f"{place.name} lacks {name}" for name in sorted(lacking)]
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            status = cli.main(["show", str(folder)])
    except Exception as error:
        return [*wrong, f"goalgen show ends in a traceback: {type(error).__name__}"]
    if status != 0 and not ((folder / "best").exists() is False and len(said.getvalue().splitlines()) == 1):
        wrong.append(f"goalgen show says {said.getvalue()[:200]!r}")
    return wrong


def content(folder: Path) -> dict[str, Any]:
    """All that a run is, but for what a clock decides and the place where it lies."""
    from goalgen.storage import load_tensors

    found: dict[str, Any] = {}
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = file.relative_to(folder).as_posix()
        if file.suffix == ".safetensors":
            tensors, about = load_tensors(file)
            found |= {
                f"{name}/{key}": (str(t.dtype), tuple(t.shape), t.numpy().tobytes()) for key, t in tensors.items()
            }
            found[name] = about
        elif file.suffix == ".jsonl":
            found[name] = [timeless(json.loads(line)) for line in file.read_text().splitlines()]
        elif file.suffix == ".json":
            found[name] = timeless(json.loads(file.read_text()))
        else:
            found[name] = file.read_bytes()
    return found


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in ("seconds", "images_per_second", "out")}
    return value


# -- a run, killed -------------------------------------------------------------------------------------------------


def own_process(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "goalgen", "train", *command], stdout=subprocess.DEVNULL)


def kill_once(
    command: list[str], aim: str, least: int, usual: dict[str, float], dice: random.Random
) -> tuple[bool, str]:
    """Start the run, kill it once it has got to step ``least`` and does what is aimed at: whether it was killed, and in what."""
    if aim == "first second":
        process = own_process(command)
        time.sleep(dice.uniform(0, 1))
        process.kill()
        return process.wait() == -signal.SIGKILL, aim
    run, folder = Forked(command), Path(command[-1])
    step = newest_step(folder)
    if aim == "beginning":
        time.sleep(dice.uniform(0, usual["beginning"]))
        return run.kill()
    while (line := run.hear()) is not None:
        step += line == ")step"
        if step >= least and (line == f"({aim}" or aim == "any"):
            time.sleep(dice.uniform(0, usual.get(aim, 0.1)))
            return run.kill()
    run.end()
    return False, "ended"


def observe(kind: str, place: Path, seed: int, rounds: int) -> dict[str, Any]:
    """Kill one kind of run as often as there are aims, ``rounds`` times over, each time from the beginning."""
    command = [*TINY.split(), *KINDS[kind].split(), "--out"]
    run = Forked([*command, str(place / "whole")])
    if status := run.end():
        raise SystemExit(f"{kind}: the run that nobody kills ends with {status}")
    usual, whole, moments, wrong = run.seconds, content(place / "whole"), Counter(), []
    for number in range(rounds):
        dice = random.Random(f"{seed} {kind} {number}")
        aims = [AIMS[0], *dice.sample(AIMS[1:], len(AIMS) - 1)]
        folder = place / f"killed-{number}"
        for i, aim in enumerate(aims):
            least = STEPS * i // (len(aims) + 1)
            killed, what = kill_once([*command, str(folder)], aim, least, usual, dice)
            wrong += [f"kill {i} in {what}: {words}" for words in broken(folder)]
            if not killed:  # it had ended meanwhile
                break
            moments[what] += 1
        if status := own_process([*command, str(folder)]).wait():
            wrong.append(f"the last start ends with {status}")
            continue
        now = content(folder)
        wrong += [
            f"{name} is not the same" for name in sorted(whole.keys() | now.keys()) if whole.get(name) != now.get(name)
        ]
    return {"kills": sum(moments.values()), "moments": dict(moments), "compared": len(whole), "wrong": wrong}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=1, help="runs of each kind that are killed")
    parser.add_argument("--out", type=Path, help="file for what was found")
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    import torch
    from PIL import Image

    import goalgen.model
    import goalgen.training.loop  # noqa: F401  so that a fork finds all of it

    torch.set_num_threads(1)
    Image.init()
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])  # imports half a second of torch
    kinds: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.only:
            kinds[kind] = observe(
                kind, Path(folder) / kind.replace(", ", "-").replace(" ", "-"), options.seed, options.rounds
            )
            print(kind, kinds[kind]["kills"], kinds[kind]["moments"], *kinds[kind]["wrong"][:8], sep="  ", flush=True)
    moments = sum((Counter(k["moments"]) for k in kinds.values()), Counter())
    result = {
        "kills": sum(moments.values()),
        "moments": dict(moments.most_common()),
        "seed": options.seed,
        "kinds": kinds,
    }
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    wrong = sum(len(k["wrong"]) for k in kinds.values())
    print(f"{result['kills']} kills, {wrong} faults")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
