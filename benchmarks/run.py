"""The benchmarks that fit a laptop, one after the other, in under an hour; then docs/benchmarks.md is written anew.

A run that was cut off goes on where it stopped. At the end every mean is compared with that of the run before.

    python benchmarks/run.py
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import RESULTS, RUNS

SUITE: dict[str, list[str]] = {
    "compare_digits": ["compare.py", "digits", "--seconds", "20"],
    "compare_fashion_mnist": ["compare.py", "fashion_mnist", "--seconds", "30"],
    "speed_mlp": ["speed.py"],
    "likelihood_mnist": ["likelihood.py", "mnist", "--seconds", "20"],
}
"""Result file of each script."""

BEFORE = "b241baf"
"""The commit before goalgen's training loop was made faster; speed.py measures it too, where the git repository has it."""

PLACE = RUNS / "suite"


def spread_of(rows: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """What a table shows: the mean over seeds and their standard deviation, by name."""
    groups: dict[str, list[float]] = {}
    for row in rows:
        who = row.get("contender") or f"{row.get('family')} H={row.get('horizon')}"
        for evaluations, samplers in row.get("evaluations", {}).items():
            for sampler, numbers in samplers.items():
                groups.setdefault(f"{who}, {sampler} at {evaluations}: Frechet", []).append(numbers["frechet_distance"])
        for key in ("bits_per_dim", "nll_bound_nats"):
            if key in row:
                groups.setdefault(f"{who}: {key}", []).append(row[key])
        if "images_per_second" in row:
            name = f"{who}, {row['precision']}, {row['before'] or 'now'}: images/s"
            groups[name] = [row["images_per_second"] - row["spread"], row["images_per_second"] + row["spread"]]
    return {k: (statistics.mean(v), statistics.stdev(v)) for k, v in groups.items() if len(v) > 1}


def compare(before: dict[str, tuple[float, float]], now: dict[str, tuple[float, float]]) -> tuple[int, list[str]]:
    """How many means two runs share, and those that differ by more than three standard deviations of the difference."""
    far = []
    shared = before.keys() & now.keys()
    for key in sorted(shared):
        (old, old_spread), (new, new_spread) = before[key], now[key]
        if abs(new - old) > 3 * max((old_spread**2 + new_spread**2) ** 0.5, 0.02 * abs(old)):
            far.append(f"{key}: {old:.3f} ± {old_spread:.3f}, now {new:.3f} ± {new_spread:.3f}")
    return len(shared), far


def has_commit(name: str) -> bool:
    """Whether this is a git repository that holds a commit."""
    command = ["git", "cat-file", "-e", f"{name}^{{commit}}"]
    try:
        return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, check=False).returncode == 0
    except OSError:  # no git
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SUITE), help="part of the suite")
    options = parser.parse_args()
    here = Path(__file__).parent
    suite = {name: SUITE[name] for name in options.only or SUITE}
    if "speed_mlp" in suite and has_commit(BEFORE):
        suite["speed_mlp"] = [*suite["speed_mlp"], "--before", BEFORE]
    if not os.environ.get("GOALGEN_DATA"):
        left_out = [name for name, command in suite.items() if command[1:2] in (["fashion_mnist"], ["mnist"])]
        suite = {name: command for name, command in suite.items() if name not in left_out}
        print(f"GOALGEN_DATA is not set: without {', '.join(left_out)}" if left_out else "", file=sys.stderr)
    begun = PLACE / "begun.json"
    if begun.exists():
        state = json.loads(begun.read_text())
    else:
        state = {"seconds": {}, "begun": []}
        shutil.rmtree(PLACE, ignore_errors=True)
        (PLACE / "before").mkdir(parents=True)
    for name, command in suite.items():
        if name in state["seconds"]:
            continue
        if name not in state["begun"]:  # the rows of the run before make room, and are kept to be compared with
            if (RESULTS / f"{name}.json").exists():
                shutil.move(RESULTS / f"{name}.json", PLACE / "before" / f"{name}.json")
            state["begun"].append(name)
            begun.write_text(json.dumps(state))
        start = time.monotonic()
        print(f"{name}: {' '.join(command)}", file=sys.stderr)
        if subprocess.run([sys.executable, str(here / command[0]), *command[1:]], check=False).returncode:
            sys.exit(f"{name} failed; the same command goes on from here")
        state["seconds"][name] = time.monotonic() - start
        begun.write_text(json.dumps(state))
    subprocess.run([sys.executable, "report.py"], cwd=here, check=True)
    for name in suite:
        old = PLACE / "before" / f"{name}.json"
        if old.exists():
            now = json.loads((RESULTS / f"{name}.json").read_text())["rows"]
            shared, far = compare(spread_of(json.loads(old.read_text())["rows"]), spread_of(now))
            print(f"{name}: {shared - len(far)} of {shared} means agree with the run before", *far, sep="\n  ")
    begun.unlink()
    total = sum(state["seconds"].values())
    print(f"{total / 60:.0f} minutes: " + ", ".join(f"{name} {s:.0f} s" for name, s in state["seconds"].items()))


if __name__ == "__main__":
    main()
