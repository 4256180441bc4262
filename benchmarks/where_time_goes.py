"""Where the time of a training step and of sampling goes, and what each way of saving some of it is worth.

The network and the data are those of speed.py. A saving is switched on and off in turns in one process, and medians are
compared; its ratio says how many times as long a step takes without it.

    python benchmarks/where_time_goes.py
    python benchmarks/where_time_goes.py --device cuda --network unet --weights 20000000 --batch 256
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from common import read, write
from speed import DIMENSIONS, GOALGEN, make_trainer, synchronise

from goalgen.training import ema

Switch = Callable[[Any, bool], None]

FROM = ema.FROM


def fused(trainer: Any, on: bool) -> None:
    """AdamW as one pass over weights and moments, or in torch's own default form."""
    for group in trainer.optimizer.param_groups:
        group["fused"] = on


def channels_last(trainer: Any, on: bool) -> None:
    """Weights of convolutions with the channel as their fastest dimension."""
    for module in trainer.agents.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.to(memory_format=torch.channels_last if on else torch.contiguous_format)


def compiled(trainer: Any, on: bool) -> None:
    """The learner through torch.compile."""
    if not hasattr(trainer, "both"):
        trainer.both = (trainer.learner, torch.compile(trainer.learner))
    trainer.learner = trainer.both[on]


def some_steps(trainer: Any, on: bool) -> None:
    """The average of the weights over every fourth step, or over every one."""
    ema.FROM = FROM if on else 10**9


SAVINGS: dict[str, tuple[Switch, tuple[str, ...], bool]] = {
    "fused AdamW": (fused, ("mlp", "unet"), True),
    "average of some steps": (some_steps, ("mlp", "unet"), True),
    "channels last": (channels_last, ("unet",), False),
    "torch.compile": (compiled, ("mlp", "unet"), False),
}
"""What is switched, the networks it can do anything for, and whether it is on by default."""


def shares(trainer: Any, device: str, repeats: int) -> dict[str, float]:
    """Milliseconds of each part of a training step, and of the whole."""
    spent: dict[str, float] = defaultdict(float)

    def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            synchronise(device)
            start = time.perf_counter()
            result = call(*arguments, **named)
            synchronise(device)
            spent[name] += time.perf_counter() - start
            return result

        return run

    trainer.batches = timed("batch", trainer.batches)
    trainer.learner.forward = timed("forward", trainer.learner.forward)
    trainer.accelerator.backward = timed("backward", trainer.accelerator.backward)
    trainer._check_and_clip = timed("norm of the gradient", trainer._check_and_clip)
    trainer.optimizer.step = timed("optimiser", trainer.optimizer.step)
    trainer.ema.update = timed("average of the weights", trainer.ema.update)
    for _ in range(5):
        trainer._step()
    spent.clear()
    start = time.perf_counter()
    for _ in range(repeats):
        trainer._step()
    whole = time.perf_counter() - start
    spent["the rest"] = whole - sum(spent.values())
    return {name: 1000 * seconds / repeats for name, seconds in {**spent, "whole step": whole}.items()}


def saving(trainer: Any, name: str, device: str, rounds: int, repeats: int) -> dict[str, float]:
    """Milliseconds of a step without and with a saving, and the seconds before its first step was over."""
    switch = SAVINGS[name][0]
    switch(trainer, True)
    start = time.perf_counter()
    for _ in range(3):
        trainer._step()
    synchronise(device)
    first = time.perf_counter() - start
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(rounds):
        for on in (False, True):
            switch(trainer, on)
            for i in range(1 + -(-repeats // ema.EVERY)):
                start = time.perf_counter()
                for _ in range(ema.EVERY):
                    trainer._step()
                synchronise(device)
                if i >= 1:
                    times[on].append((time.perf_counter() - start) / ema.EVERY)
    without, with_it = (1000 * statistics.median(times[on]) for on in (False, True))
    return {"without_ms": without, "with_ms": with_it, "first_steps_seconds": first}


def sampling(trainer: Any, sample: Callable[[int], Any], device: str, batch: int) -> dict[str, float]:
    """Milliseconds to draw ``batch`` images, and the part of it that is spent in the S-agent's network."""
    agents, spent = trainer.ema.module, [0.0]
    inner = agents.s_agent.skip  # which takes a single step as well

    def skip(*arguments: Any, **named: Any) -> Any:
        synchronise(device)
        start = time.perf_counter()
        result = inner(*arguments, **named)
        synchronise(device)
        spent[0] += time.perf_counter() - start
        return result

    agents.s_agent.skip = skip
    for _ in range(2):
        sample(batch)
    spent[0], start = 0.0, time.perf_counter()
    for _ in range(3):
        sample(batch)
    synchronise(device)
    return {"drawing_ms": 1000 * (time.perf_counter() - start) / 3, "of_it_policy_ms": 1000 * spent[0] / 3}


def one(options: argparse.Namespace) -> dict[str, Any]:
    """One contender, in this process."""
    torch.manual_seed(0)
    options.precision = "auto"
    trainer, _, sample = make_trainer(options.one, options)
    if options.saving:
        return saving(trainer, options.saving, options.device, options.rounds, options.repeats)
    drawn = sampling(trainer, sample, options.device, options.batch)
    return {"parts_ms": shares(trainer, options.device, options.repeats), **drawn,
            "precision": trainer.accelerator.mixed_precision}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=list(DIMENSIONS), default="mlp")
    parser.add_argument("--weights", type=int, default=3_000_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--name", help="of the result file; unset: time_NETWORK (time_NETWORK_cuda)")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--saving", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options)))
        return
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: there is no GPU here")
    name = options.name or f"time_{options.network}{'_cuda' if options.device == 'cuda' else ''}"
    rows = []
    for contender in GOALGEN:
        for kind in ("", *(k for k, (_, networks, _) in SAVINGS.items() if options.network in networks)):
            if kind == "torch.compile" and contender != "goalgen fixed bridge":
                continue  # a minute or more each
            command = [sys.executable, __file__, "--one", contender, "--saving", kind]
            for key in ("network", "weights", "batch", "device", "rounds", "repeats"):
                command += [f"--{key}", str(getattr(options, key))]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{contender}, {kind or 'as it is'} failed:\n{done.stderr}")
            found = json.loads(done.stdout.strip().splitlines()[-1])
            rows.append({"contender": contender, "saving": kind, **found})
            print(rows[-1], file=sys.stderr)
    threads = torch.get_num_threads()
    write(name, {**read(name), "rows": rows, "network": options.network, "batch": options.batch, "threads": threads})


if __name__ == "__main__":
    main()
