"""What `goalgen demo` reaches in two minutes, for several seeds; the pictures of the README come from the first.

python benchmarks/demo.py
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from common import RUNS, read, run, write

PICTURES = Path("docs/pictures")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    results = read("demo")
    for seed in options.seeds:
        if any(row["seed"] == seed for row in results["rows"]):
            continue
        out = RUNS / f"demo-{seed}"
        run(["demo", "--out", str(out), "--seed", str(seed), "--quiet"], options.threads)
        progress = json.loads(sorted((out / "checkpoints").glob("step-*/progress.json"))[-1].read_text())
        row = {"seed": seed, "steps": progress["step"], "seconds": progress["seconds"], "threads": options.threads}
        results["rows"].append({**row, **json.loads((out / "evaluation.json").read_text())})
        write("demo", results)
        if seed == options.seeds[0]:
            PICTURES.mkdir(parents=True, exist_ok=True)
            for name in ("grid", "trajectories"):
                shutil.copy(out / "samples" / f"{name}.png", PICTURES / f"digits-{name}.png")


if __name__ == "__main__":
    main()
