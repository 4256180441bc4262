"""The numbers of an evaluation as a table on the screen."""

from __future__ import annotations

import sys
from typing import Any


def print_table(numbers: dict[str, Any]) -> None:
    """The numbers, each with its held-out reference and what it means."""
    from rich.console import Console
    from rich.table import Table

    from goalgen.evaluation import MEANING, OF_MODEL, reference_key

    features, sampler = numbers["features"], numbers["sampler"]
    other = sampler != "model"  # samples are not of the model that the bound is of
    table = Table(title=f"{numbers['data']}: {numbers['num_test']} test images, {numbers['num_samples']} samples")
    table.add_column("number", no_wrap=True)
    if other:
        table.add_column("of", no_wrap=True)
    table.add_column("value" if other else "model", justify="right", no_wrap=True)
    table.add_column("test images", justify="right", no_wrap=True)
    table.add_column("meaning")
    for key, meaning in MEANING.items():
        reference = numbers.get(reference_key(key))
        name = key + (f" (K={numbers['iw_k']})" if key == "iw_bound_nats" else "")
        of = ["model" if key in OF_MODEL else "sampler"] if other else []
        table.add_row(name, *of, f"{numbers[key]:.3f}", "" if reference is None else f"{reference:.3f}", meaning)
    # Off a terminal rich would cut the table at 80 columns.
    console = Console(highlight=False) if sys.stdout.isatty() else Console(width=140, highlight=False)
    console.print(table)
    if numbers["conditional_on"]:
        given = " and ".join(numbers["conditional_on"])
        console.print(f"bits_per_dim given {given}: every bound here is one on -log p(image given {given})")
    if other:
        console.print(f"sampler: {sampler}; it is not the model of the bound")
    steps = " ".join(f"{v:.2f}" for v in numbers["kl_per_step_nats"])
    note = ", of choosing a mode, then acting: an upper bound on KL(q || p)" if numbers["kl_is_upper_bound"] else ""
    console.print(f"KL by step (nats{note}): {steps}")
    for key, values in numbers.items():  # what the family reports of every step
        if key.endswith("_per_step") and isinstance(values, list):
            name = key.removesuffix("_per_step").replace("_", " ")
            console.print(f"{name} by step: {' '.join(str(n) for n in values)}")
    weights, operations = numbers["parameters"], numbers["operations"]
    console.print(
        f"for one sample: {numbers['network_evaluations']} network evaluations, {operations['sample'] / 1e6:.1f} million "
        f"operations; weights: {weights['generative']:,} for sampling, {weights['gc_agent']:,} in the GC-agent"
    )
    console.print(f"feature space: {features}; start: {numbers['start']}; pixels: {numbers['pixels']}")
