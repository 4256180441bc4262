"""Fashion-MNIST for 20 minutes on two cores: the bound, the metrics, a grid and trajectories.

GOALGEN_DATA=... python benchmarks/fashion.py
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from common import RUNS, data_folder, public, read, run, write

PICTURES = Path("docs/pictures")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1200.0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    out = RUNS / "fashion"
    command = [
        "train", "--preset", "mnist-cpu", "--data", data_folder("fashion_mnist"), "--out", str(out),
        "--max-seconds", str(options.seconds), "--quiet",
    ]  # fmt: skip
    run(command, options.threads)
    run(["sample", str(out), "--out", str(out / "samples"), "--num", "100", "--grid", "--trajectory"], options.threads)
    run(["evaluate", str(out), "--json", str(out / "evaluation.json")], options.threads)
    run(["plot", str(out)], options.threads)
    PICTURES.mkdir(parents=True, exist_ok=True)
    shutil.copy(out / "samples" / "grid.png", PICTURES / "fashion-samples.png")
    shutil.copy(out / "samples" / "trajectories.png", PICTURES / "fashion-trajectories.png")
    progress = json.loads(sorted((out / "checkpoints").glob("step-*/progress.json"))[-1].read_text())
    row = {"steps": progress["step"], "seconds": progress["seconds"], "threads": options.threads}
    row |= json.loads((out / "evaluation.json").read_text())
    write("fashion", {**read("fashion"), "rows": [{**row, "command": public(command)}]})


if __name__ == "__main__":
    main()
