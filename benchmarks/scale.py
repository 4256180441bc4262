"""What 64x64 ImageNet would take on 8 and on 64 GPUs: the table of docs/scale.md, by counting and by measured shares of the ceiling.

    python benchmarks/scale.py            # print it
    python benchmarks/scale.py --write    # ... into the page
    python benchmarks/scale.py --check    # fail if the page says anything else

Weights, operations and bytes are those of models that are built here, on the CPU. Hours are an extrapolation: operations, divided
by what share of its ceiling one GPU was seen to reach with a smaller model. No cluster was asked.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from typing import Any

import torch
from report import ROOT

from goalgen import configure
from goalgen.families import make
from goalgen.families.suited import suited
from goalgen.family import Family
from goalgen.learning import Clock
from goalgen.size import count_operations, count_parameters
from goalgen.task import Task

TRAIN, HELD_OUT, SHAPE = 1_281_167, 50_000, (3, 64, 64)
"""ImageNet (ILSVRC 2012)."""
PER_GPU, EPOCHS = 256, 100
CEILING = 989e12
"""Of an NVIDIA H100 (SXM), dense bfloat16 products with float32 sums, operations a second: its data sheet."""
SEEN_SHAPE, SEEN_BATCH, SEEN_STEP, SEEN_BUSY = (3, 32, 32), 256, 0.064, 0.014
"""Measured on one H100: a step of what `goalgen train` chooses for 32x32 in colour took 64 ms, of which the GPU worked 14."""
SIZES: dict[str, dict[str, Any]] = {
    "as chosen": {},
    "wide": {"width": 192, "depth": 3, "head_width": 128},
    "large": {"width": 512, "depth": 3, "head_width": 256},
}


@dataclass
class Counted:
    weights: int
    learned: int
    """... with those of the GC-agent"""
    train: int
    """operations to learn from an image, pass forward"""
    sample: int
    kept: int
    """bytes that the pass forward keeps for the gradient, an image, in float32"""


def build(shape: tuple[int, int, int], images: int, **settings: Any) -> Family:
    """What `goalgen train` chooses for such images on a GPU, with changes."""
    chosen, _ = suited(shape, images, gpu=True)
    return make(configure(out="unused", **{**chosen, **settings}), shape, 256)


def count(family: Family) -> Counted:
    weights, operations = count_parameters(family), count_operations(family)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    number = 4
    image = torch.zeros(number, *family.shape)
    draws = family.draw(number, lambda _: torch.Generator().manual_seed(0))
    own = {p.untyped_storage().data_ptr() for p in family.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        learned = family.learn(Task(image, image), draws, Clock())
    total = sum(size for place, size in kept.items() if place not in own)
    del learned
    return Counted(
        weights["generative"], sum(weights.values()), operations["train"], operations["sample"], total // number
    )


def shares() -> dict[str, tuple[float, int]]:
    """Shares of the ceiling that were seen, and the operations of the model that was."""
    seen = count_operations(build(SEEN_SHAPE, 50_000))["train"]
    done = 3 * seen * SEEN_BATCH
    return {"step": (done / SEEN_STEP / CEILING, seen), "busy": (done / SEEN_BUSY / CEILING, seen)}


def table() -> str:
    """The lines of the page."""
    seen = shares()
    (step, operations), (busy, _) = seen["step"], seen["busy"]
    lines = [
        f"The share that was seen: {SEEN_BATCH} images x 3 x {operations / 1e6:,.0f} million operations in {1000 * SEEN_STEP:.0f} ms are "
        f"{step * CEILING / 1e12:.1f} TFLOP/s, {100 * step:.2f}% of {CEILING / 1e12:.0f}; in the {1000 * SEEN_BUSY:.0f} ms that the GPU worked, "
        f"{busy * CEILING / 1e12:.0f} TFLOP/s, {100 * busy:.1f}%.",
        "",
        f"Decoded, the {(TRAIN + HELD_OUT):,} images take {(TRAIN + HELD_OUT) * 3 * 64 * 64 / 1e9:.1f} GB of disk, once for each machine.",
        "",
        "| | " + " | ".join(SIZES) + " |",
        "|---|" + "---|" * len(SIZES),
    ]
    found = [count(build(SHAPE, TRAIN, **settings)) for settings in SIZES.values()]

    def row(title: str, *values: str) -> None:
        lines.append(f"| {title} | {' | '.join(values)} |")

    names = [" ".join(f"--{k.replace('_', '-')} {v}" for k, v in settings.items()) for settings in SIZES.values()]
    row("settings beside those chosen", *(f"`{name}`" if name else "none" for name in names))
    row("weights for sampling, millions", *(f"{c.weights / 1e6:.1f}" for c in found))
    row("weights that are trained, millions", *(f"{c.learned / 1e6:.1f}" for c in found))
    row("operations to learn from an image (forward), millions", *(f"{c.train / 1e6:,.0f}" for c in found))
    row("... with the gradient (x 3)", *(f"{3 * c.train / 1e6:,.0f}" for c in found))
    row("operations to draw an image, millions", *(f"{c.sample / 1e6:,.0f}" for c in found))
    # Weights, their average, gradient, and two moments, float32 each.
    row("weights, average, gradient, moments, GB a GPU", *(f"{20 * c.learned / 1e9:.2f}" for c in found))
    row(
        f"kept for the gradient, {PER_GPU} images, GB a GPU (float32)",
        *(f"{PER_GPU * c.kept / 1e9:.1f}" for c in found),
    )
    row("gradients sent and received by a GPU a step, GB", *(f"{2 * 4 * c.learned / 1e9:.2f}" for c in found))
    for gpus in (8, 64):
        images = gpus * PER_GPU
        row(
            f"**{gpus} GPUs**, `--batch-size {images}`: steps of {EPOCHS} epochs",
            *(f"{EPOCHS * TRAIN / images:,.0f}" for _ in found),
        )
        work = [3 * c.train * EPOCHS * TRAIN / gpus / CEILING / 3600 for c in found]
        row(
            f"hours of {EPOCHS} epochs at {100 * step:.2f}% of the ceiling", *(f"{hours / step:,.2g}" for hours in work)
        )
        row(f"... at {100 * busy:.1f}%", *(f"{hours / busy:,.2g}" for hours in work))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    page, begin, end = (
        ROOT / "docs" / "scale.md",
        "<!-- scale: written by benchmarks/scale.py -->\n",
        "\n<!-- /scale -->",
    )
    lines = table()
    if not (given.write or given.check):
        print(lines)
        return
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(begin)
    new = before + begin + lines + end + rest.split(end)[1]
    if given.check and new != text:
        sys.exit(f"{page.name} is not what benchmarks/scale.py says; run it with --write")
    page.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
