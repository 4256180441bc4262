"""Sections of docs/benchmarks.md about the number of steps: the curve, its plots, the cost, and the large runs."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from common import read

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"
NAMES = {
    "digits": "Digits (8x8, 17 grey levels)", "mnist": "MNIST (28x28, 256 grey levels)",
    "fashion_mnist": "Fashion-MNIST (28x28, 256 grey levels)",
}  # fmt: skip
FAMILIES = ["fixed bridge", "learned bridge", "latent", "proposals"]
COLOURS = {"fixed bridge": "#777777", "learned bridge": "#0072B2", "latent": "#D55E00", "proposals": "#E69F00"}
TARGETS = {
    "mnist": ("Binarised MNIST", "nll_bound_nats", "nats", 82.0, "BFN 95.2 at 10 steps; a full-length NVAE 78.0"),
    "cifar10": ("CIFAR-10", "bits_per_dim", "bits/dim", 3.6, "VDM trained at 10 steps, 4.31"),
}

Rows = list[dict[str, Any]]


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def of(rows: Rows, family: str, horizon: int, key: str) -> list[float]:
    """One number of all seeds."""
    return [row[key] for row in rows if row["family"] == family and row["horizon"] == horizon]


def cell(values: list[float], digits: int) -> str:
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def against_fixed(rows: Rows, horizon: int, key: str) -> str:
    """The best learned GC-agent's mean, as a share of the fixed one's."""
    fixed = of(rows, "fixed bridge", horizon, key)
    learned = {f: statistics.mean(v) for f in FAMILIES[1:] if (v := of(rows, f, horizon, key))}
    if not fixed or not learned:
        return ""
    best = min(learned, key=lambda family: learned[family])
    return f"{learned[best] / statistics.mean(fixed):.2f} ({best})"


def share(rows: Rows, horizon: int, key: str) -> float:
    """The best learned GC-agent's mean over the fixed one's."""
    fixed = statistics.mean(of(rows, "fixed bridge", horizon, key))
    return min(statistics.mean(v) for f in FAMILIES[1:] if (v := of(rows, f, horizon, key))) / fixed


def verdict(rows: Rows, horizons: list[int]) -> str:
    """Where the target is missed, first."""
    missed, met = [], []
    for h in horizons:
        for key, label, most in (
            ("bits_per_dim", "bits/dim", 0.9 if h <= 4 else 1.0),
            ("frechet_distance", "Frechet", 0.5 if h <= 4 else None),
        ):
            if most is not None:
                value = share(rows, h, key)
                (met if value <= most else missed).append(f"H = {h} {label} {value:.2f} (at most {most})")
    parts = [f"**Missed**: {'; '.join(missed)}." if missed else "", f"Met: {'; '.join(met)}." if met else ""]
    return "Target, as a share of the fixed bridge's:\n\n" + "\n\n".join(p for p in parts if p)


def curve() -> str:
    parts = []
    for data, title in NAMES.items():
        results = read(f"curve_{data}")
        rows: Rows = results["rows"]
        if not rows:
            continue
        horizons = sorted({row["horizon"] for row in rows})
        tables = []
        for key, label, digits in (("bits_per_dim", "Bound, bits/dim", 3), ("frechet_distance", "Frechet distance", 2)):
            body = [
                [str(h), *(cell(of(rows, f, h, key), digits) for f in FAMILIES), against_fixed(rows, h, key)]
                for h in horizons
            ]
            tables.append(f"{label}:\n\n{table(['H', *FAMILIES, 'best learned / fixed'], body)}")
        body = [[str(h), *(cell(of(rows, f, h, "trained_steps"), 0) for f in FAMILIES)] for h in horizons]
        tables.append(
            f"Steps of training in these seconds. {results.get('remark', '')}\n\n{table(['H', *FAMILIES], body)}"
        )
        weights = [sum(row["parameters"].values()) for row in rows]
        seeds = len({row["seed"] for row in rows})
        first = rows[0]
        about = results["machine"]
        versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
        parts.append(f"""### {title}

{results["seconds"]:.0f} s each on one thread, two runs at a time, {f"{seeds} seeds (mean ± standard deviation)" if seeds > 1 else "one seed"}, {min(weights):,} to
{max(weights):,} weights with the GC-agent's; {first["num_test"]} test images, {first["num_samples"]} samples; Frechet reference
{first["frechet_reference"]:.2f}, features: {first["features"]}. Every step is one network evaluation.

![bits/dim and Frechet distance against the number of steps](pictures/curve-{data}.png)

{verdict(rows, horizons)}

{chr(10).join(t + chr(10) for t in tables)}
Machine: {about["processor"]}, Python {about["python"]}, {versions}. Script: `benchmarks/curve.py {data} --seconds {results["seconds"]:.0f}`.
""")
    if not parts:
        return ""
    intro = """## From a variational autoencoder to diffusion: quality against the number of steps

The same network, weights within 5%, the same data, batch and seconds. The fixed bridge is Gaussian diffusion with learned
signal-to-noise ratios; the other three have a learned GC-agent. On 28x28 images the latents of each step have a network of their
own, smaller by as many times as there are steps, and the learning rate is 4e-3 for the three and 2e-3 for the fixed bridge, each
the better of the two for it (`benchmarks/curve.py`).
"""
    return intro + "\n" + "\n".join(parts)


def draw_curves() -> None:
    """Write docs/pictures/curve-DATA.png."""
    from matplotlib.figure import Figure

    for data, title in NAMES.items():
        rows: Rows = read(f"curve_{data}")["rows"]
        if not rows:
            continue
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        figure.suptitle(title)
        for axes, (key, label) in zip(
            figure.subplots(1, 2),
            (("bits_per_dim", "bound, bits/dim"), ("frechet_distance", "Frechet distance")),
            strict=True,
        ):
            for family in FAMILIES:
                horizons = sorted({row["horizon"] for row in rows if row["family"] == family})
                values = [of(rows, family, h, key) for h in horizons]
                means = [statistics.mean(v) for v in values]
                errors = [statistics.stdev(v) if len(v) > 1 else 0.0 for v in values]
                axes.errorbar(
                    horizons, means, errors, marker="o", markersize=4, capsize=2, label=family, color=COLOURS[family]
                )
            axes.set_xscale("log", base=2)
            axes.set_xticks(horizons, [str(h) for h in horizons])
            axes.set_xlabel("steps = network evaluations")
            axes.set_ylabel(label)
            axes.grid(alpha=0.3)
            if key == "frechet_distance":
                axes.set_yscale("log")
                axes.axhline(
                    rows[0]["frechet_reference"], color="black", linestyle=":", linewidth=1, label="test images"
                )
            axes.legend(fontsize=8)
        figure.savefig(PICTURES / f"curve-{data}.png", dpi=110)


def cost() -> str:
    parts = []
    for name, device in (("cost", "CPU"), ("cost_cuda", "GPU")):
        results = read(name)
        rows: Rows = results["rows"]
        if not rows:
            continue
        horizons = sorted({row["horizon"] for row in rows})
        families = list(dict.fromkeys(row["family"] for row in rows))
        for key, label, digits in (
            ("milliseconds_per_image", "milliseconds", 2),
            ("kib_per_image", "KiB of memory", 0),
        ):
            body = [[family, *(cell(of(rows, family, h, key), digits) for h in horizons)] for family in families]
            parts.append(
                f"{device}, {label} for a training image:\n\n{table(['', *(f'H = {h}' for h in horizons)], body)}\n"
            )
        about = results["machine"]
        versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
        parts.append(f"U-Net of width {results['width']} on 28x28, batch {results['batch']}. Machine: {about['processor']}, "
                     f"Python {about['python']}, {versions}. Script: `benchmarks/cost.py`.\n")  # fmt: skip
    return "## What a training image costs\n\n" + "\n".join(parts) if parts else ""


def large() -> str:
    body = []
    for data, (title, key, unit, target, published) in TARGETS.items():
        rows: Rows = read(f"large_{data}")["rows"]
        measured = f"{rows[0][key]:.2f} {unit} in {rows[0]['seconds'] / 60:.0f} min" if rows else "not run yet"
        body.append([title, f"{target:g} {unit}", measured, published])
    return f"""## Ten steps on a GPU

Targets that stand open until the script has been run: `benchmarks/large.py mnist` and `benchmarks/large.py cifar10`, in pieces of
ten minutes.

{table(["", "target, H = 10", "measured", "published"], body)}
"""
