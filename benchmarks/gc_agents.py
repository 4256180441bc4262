"""Greedy, posterior and value GC-agents: the same network, data and seconds, several seeds.

python benchmarks/gc_agents.py digits --seconds 60
GOALGEN_DATA=... python benchmarks/gc_agents.py fashion_mnist --seconds 180
"""

from __future__ import annotations

import argparse
import json
import sys

from common import RUNS, data_folder, goalgen, public, read, write

PRESETS = {"digits": "digits-proposals", "fashion_mnist": "mnist-proposals", "mnist": "mnist-proposals"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", choices=sorted(PRESETS))
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--agents", nargs="+", default=["greedy", "posterior", "value"])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    options = parser.parse_args()
    name = f"gc_agents_{options.data}"
    results = read(name)
    done = {(row["gc_agent"], row["seed"]) for row in results["rows"]}
    waiting = [(a, s) for s in options.seeds for a in options.agents if (a, s) not in done]
    while waiting:
        batch, waiting = waiting[: options.jobs], waiting[options.jobs :]
        commands, processes = [], []
        for agent, seed in batch:
            out = RUNS / name / f"{agent}-{seed}"
            command = [
                "train", "--preset", PRESETS[options.data], "--data", data_folder(options.data), "--out", str(out),
                "--gc-agent", agent, "--seed", str(seed), "--max-seconds", str(options.seconds), "--quiet",
            ]  # fmt: skip
            commands.append(command)
            processes.append(goalgen(command, threads=1))
        if any(p.wait() for p in processes):
            sys.exit("a training run failed")
        folders = [RUNS / name / f"{agent}-{seed}" for agent, seed in batch]
        processes = [
            goalgen(
                [
                    "evaluate",
                    str(out),
                    "--json",
                    str(out / "evaluation.json"),
                    "--iw-images",
                    "200",
                    "--num-test",
                    "2000",
                ],
                threads=1,
            )
            for out in folders
        ]
        if any(p.wait() for p in processes):
            sys.exit("an evaluation failed")
        for (agent, seed), out, command in zip(batch, folders, commands, strict=True):
            file = out / "evaluation.json"
            progress = json.loads(sorted((out / "checkpoints").glob("step-*/progress.json"))[-1].read_text())
            row = {"gc_agent": agent, "seed": seed, "steps": progress["step"], "seconds": progress["seconds"]}
            results["rows"].append({**row, **json.loads(file.read_text()), "command": public(command)})
            write(name, {**results, "seconds": options.seconds, "threads": 1})


if __name__ == "__main__":
    main()
