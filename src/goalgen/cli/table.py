"""The numbers of an evaluation as a table on the screen."""

from __future__ import annotations

import sys
from typing import Any


def print_table(numbers: dict[str, Any]) -> None:
    """The numbers, each with its held-out reference and what it means."""
    from rich.console import Console
    from rich.table import Table

    from goalgen.evaluation import MEANING, reference_key

    features = numbers["features"]
    table = Table(title=f"{numbers['data']}: {numbers['num_test']} test images, {numbers['num_samples']} samples")
    table.add_column("number", no_wrap=True)
    table.add_column("model", justify="right", no_wrap=True)
    table.add_column("test images", justify="right", no_wrap=True)
    table.add_column("meaning")
    for key, meaning in MEANING.items():
        reference = numbers.get(reference_key(key))
        name = key + (f" (K={numbers['iw_k']})" if key == "iw_bound_nats" else "")
        table.add_row(name, f"{numbers[key]:.3f}", "" if reference is None else f"{reference:.3f}", meaning)
    steps = " ".join(f"{v:.2f}" for v in numbers["kl_per_step_nats"])
    # Off a terminal rich would cut the table at 80 columns.
    console = Console() if sys.stdout.isatty() else Console(width=140)
    console.print(table)
    for key, values in numbers.items():  # what the family reports of every step
        if key.endswith("_per_step") and isinstance(values, list):
            name = key.removesuffix("_per_step").replace("_", " ")
            console.print(f"{name} by step: {' '.join(str(n) for n in values)}", highlight=False)
    weights, operations = numbers["parameters"], numbers["operations"]
    console.print(
        f"for one sample: {numbers['network_evaluations']} network evaluations, {operations['sample'] / 1e6:.1f} million "
        f"operations; weights: {weights['generative']:,} for sampling, {weights['gc_agent']:,} in the GC-agent",
        highlight=False,
    )
    console.print(f"KL by step (nats): {steps}\nfeature space: {features}; start: {numbers['start']}", highlight=False)
