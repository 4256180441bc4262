"""The models that come with the package: train, shrink to half precision, measure what is shipped.

A run that is there already (of demo.py or fashion.py) is taken as it is.

    python benchmarks/zoo.py digits
    GOALGEN_DATA=... python benchmarks/zoo.py fashion_mnist
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import torch
from common import RUNS, data_folder, goalgen, public, read, run, write

from goalgen import load
from goalgen.training.checkpoints import save_model
from goalgen.zoo import FOLDER

MODELS = {
    "digits": (["--preset", "digits"], "demo-0", "digits"),
    "fashion_mnist": (
        ["--preset", "mnist-cpu", "--max-seconds", "1200.0"],
        "fashion",
        "zalando-datasets/fashion_mnist",
    ),
}
"""Options of the training, folder of the run, and where anybody finds the data."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(MODELS))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    extra, folder, source = MODELS[options.name]
    out = RUNS / folder
    command = ["train", *extra, "--data", data_folder(options.name), "--out", str(out), "--quiet"]
    if not (out / "best").is_dir():
        run(command, options.threads)
    model = load(out)
    config = dataclasses.replace(
        model.config, out=Path("runs") / options.name, data=dataclasses.replace(model.config.data, data=source)
    )
    facts = {key: value for key, value in model.facts.items() if key not in ("shape", "levels", "num_labels")}
    state = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in model.agents.state_dict().items()
    }
    model.agents.load_state_dict(state)  # what is measured is what is shipped
    save_model(FOLDER / options.name, config, model.agents.half(), None, model.start_image, facts)
    file = out / "zoo.json"
    measured = ["evaluate", f"zoo:{options.name}", "--data", data_folder(options.name), "--json", str(file)]
    if goalgen(measured, options.threads).wait():
        raise SystemExit("the evaluation failed")
    numbers = json.loads(file.read_text())
    size = (FOLDER / options.name / "model.safetensors").stat().st_size
    row = {
        "name": options.name,
        "bytes": size,
        "command": public(command),
        **numbers,
        "threads": torch.get_num_threads(),
    }
    results = read("zoo")
    rows = [other for other in results["rows"] if other["name"] != options.name]
    write("zoo", {**results, "rows": sorted([*rows, row], key=lambda r: r["name"])})


if __name__ == "__main__":
    main()
