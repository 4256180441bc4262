"""Sections of docs/benchmarks.md that set goalgen beside its peers: quality, speed, likelihood, and the zoo."""

from __future__ import annotations

import statistics
from itertools import cycle
from typing import Any

from common import read
from report_steps import NAMES, PICTURES, Rows, cell, table

EVALUATIONS = ("1", "2", "4", "8", "16", "50")
METRICS = [
    ("kernel_distance", "kernel distance", 3), ("precision", "precision", 2), ("recall", "recall", 2), ("density", "density", 2),
    ("coverage", "coverage", 2), ("nearest_train_distance", "nearest training image", 3),
]  # fmt: skip
PUBLISHED = {
    "likelihood_mnist": "Published, binarised MNIST, nats: BFN 95.21 at 10 steps, 84.4 at 25, 81.06 at 50, 79.46 at 100; full length: "
    "CR-NVAE 76.93, BFN 77.87, NVAE 78.01, IAF-VAE 79.10.",
    "likelihood_mnist_cuda": "Published: as above.",
    "likelihood_cifar10_cuda": "Published, CIFAR-10, bits/dim: VDM trained at 10 steps 4.31, at 100 2.84; full length: NFDM 2.48, "
    "MuLAN 2.55, VDM 2.65, VDVAE 2.87, NVAE 2.91.",
}


def about(results: dict[str, Any], script: str) -> str:
    machine = results["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
    return f"Machine: {machine['processor']}, Python {machine['python']}, {versions}. Script: `benchmarks/{script}`."


def lines(rows: Rows) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Name in the table -> evaluations -> numbers of every seed."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in rows:
        for evaluations, samplers in row["evaluations"].items():
            for sampler, numbers in samplers.items():
                name = sampler.replace("goalgen", row["contender"], 1)  # a peer is called as its sampler
                found.setdefault(name, {}).setdefault(evaluations, []).append(numbers)
    return found


def best(found: dict[str, dict[str, list[dict[str, Any]]]], evaluations: str, ours: bool) -> tuple[str, float] | None:
    """Name and mean Frechet distance of the best of goalgen's contenders, or of the peers."""
    means = {
        name: statistics.mean(n["frechet_distance"] for n in values[evaluations])
        for name, values in found.items()
        if evaluations in values and name.startswith("goalgen") == ours
    }
    return min(means.items(), key=lambda item: item[1]) if means else None


def verdict(found: dict[str, dict[str, list[dict[str, Any]]]], set_here: bool) -> str:
    """Where goalgen is worse than its target, first; then where it is not; then the same at temperature 1 alone.

    Args:
        set_here: whether the target was set for these data.
    """
    missed, met = [], []
    for evaluations in EVALUATIONS:
        mine, peer = best(found, evaluations, True), best(found, evaluations, False)
        if mine is None or peer is None:
            continue
        few = int(evaluations) <= 4
        ratio = mine[1] / peer[1]
        text = f"at {evaluations}: {mine[1]:.2f} ({mine[0]}) against {peer[1]:.2f} ({peer[0]}), {ratio:.2f} of it"
        (met if ratio <= (0.5 if few else 1.0) else missed).append(text)
    rule = "half of the best peer's Frechet distance at 1 to 4 evaluations, and no more than it beyond."
    parts = [f"The target is {rule}" if set_here else f"The target was set for Fashion-MNIST; by the same rule, {rule}"]
    if missed:
        parts.append("\n**Missed** " + "; ".join(missed) + ".")
    if met:
        parts.append("\nMet " + "; ".join(met) + ".")
    plain = {name: values for name, values in found.items() if "temperature" not in name}
    if plain.keys() != found.keys():
        pairs = [(e, best(plain, e, True), best(plain, e, False)) for e in EVALUATIONS]
        parts.append("\nWith every sampler at temperature 1: " + "; ".join(
            f"at {e} {mine[1]:.2f} ({mine[0]}) against {peer[1]:.2f} ({peer[0]}), {mine[1] / peer[1]:.2f} of it"
            for e, mine, peer in pairs if mine and peer) + ".")  # fmt: skip
    return "\n".join(parts)


def same_quality(found: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """How fast each samples at the fewest evaluations at which it reaches what every peer can reach."""

    def mean(numbers: list[dict[str, Any]], key: str) -> float:
        return statistics.mean(n[key] for n in numbers)

    peers = [values for name, values in found.items() if not name.startswith("goalgen")]
    level = max(min(mean(n, "frechet_distance") for n in values.values()) for values in peers)
    body = []
    for name, values in found.items():
        reached = [e for e in EVALUATIONS if e in values and mean(values[e], "frechet_distance") <= level]
        if reached:
            numbers = values[reached[0]]
            body.append([name, reached[0], f"{mean(numbers, 'frechet_distance'):.2f}",
                         f"{mean(numbers, 'sampled_images_per_second'):,.0f}"])  # fmt: skip
    return (
        f"Sampling at the same quality: the fewest evaluations at which the Frechet distance is at most {level:.2f}, which every "
        f"peer reaches at some number of them; images/s on one thread:\n\n"
        f"{table(['', 'evaluations', 'Frechet distance', 'sampled images/s'], body)}"
    )


def compare() -> str:
    parts = []
    for data, title in reversed(NAMES.items()):
        results = read(f"compare_{data}")
        rows: Rows = results["rows"]
        if not rows:
            continue
        found = lines(rows)
        body = [
            [name, *(cell([n["frechet_distance"] for n in values.get(e, [])], 2) for e in EVALUATIONS)]
            for name, values in found.items()
        ]
        first = next(iter(next(iter(rows[0]["evaluations"].values())).values()))
        others = [
            [name, e, *(cell([n[key] for n in numbers], digits) for key, _, digits in METRICS)]
            for name, values in found.items()
            for e, numbers in values.items()
        ]
        reference = ["held-out images", "", *(f"{first[reference_key(key)]:.{digits}f}" for key, _, digits in METRICS)]
        bounds = {}
        for row in rows:
            if "bits_per_dim" in row:
                bounds.setdefault(row["contender"], []).append(row["bits_per_dim"])
        steps = {
            name: [r["trained_steps"] for r in rows if r["contender"] == name]
            for name in dict.fromkeys(r["contender"] for r in rows)
        }
        trained = [
            [name, cell(bounds.get(name, []), 3), cell([float(v) for v in values], 0)] for name, values in steps.items()
        ]
        weights = [row["parameters"] for row in rows]
        seeds = len({row["seed"] for row in rows})
        parts.append(f"""### {title}

{verdict(found, data == "fashion_mnist")}

Frechet distance by network evaluations ({first["frechet_reference"]:.2f} for held-out images):

{table(["", *EVALUATIONS], body)}

![Frechet distance against network evaluations](pictures/compare-{data}.png)

{table(["", "bound, bits/dim", "steps of training"], trained)}

{table(["", "evaluations", *(label for _, label, _ in METRICS)], [reference, *others])}

{same_quality(found)}

{results["seconds"]:.0f} s each on one thread, two runs at a time, {f"{seeds} seeds (mean ± standard deviation)" if seeds > 1 else "one seed"}, {min(weights):,} to
{max(weights):,} weights in all; {first["num_samples"]} samples; features: {first["features"]}. {about(results, f"compare.py {data} --seconds {results['seconds']:.0f}")}
""")
    if not parts:
        return ""
    intro = """## Beside the peers: quality at few evaluations

Diffusion (DDPM and DDIM of diffusers), optimal-transport conditional flow matching (torchcfm) by Euler's and Heun's method, and a
VAE, with the same kind of network, weights (those of the GC-agent counted), batch, optimiser, precision and seconds. A goalgen
model takes as many evaluations as it has steps; the fixed bridge, trained with 50, may skip some. Latents have policies of several
modes (equation 27) but for the row that says otherwise, and for those of more than one step on the digits.

A row with a temperature is the same model, sampled with wider actions (`goalgen sample --temperature`; for the VAE, a wider prior). After so
short a training all samples vary too little, and this mends some of it, at the price of precision. The temperatures
were chosen by trials of one or two seeds on Fashion-MNIST and on the digits themselves, and are those of Fashion-MNIST on MNIST; the schedulers of diffusers and flow matching have no such option.
"""
    return intro + "\n" + "\n".join(parts)


def reference_key(key: str) -> str:
    return key.replace("_distance", "") + "_reference"


def draw_comparison() -> None:
    """Write docs/pictures/compare-DATA.png."""
    from matplotlib.figure import Figure

    for data, title in NAMES.items():
        results = read(f"compare_{data}")
        if not results["rows"]:
            continue
        found = lines(results["rows"])
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        families = {"goalgen latent": "#D55E00", "goalgen proposals": "#E69F00", "goalgen learned bridge": "#56B4E9",
                    "goalgen fixed bridge": "#0072B2"}  # fmt: skip
        for family, colour in families.items():
            for line, word, widened in (("-", "", False), ("-.", ", widened", True)):
                points = {
                    int(e): statistics.mean(n["frechet_distance"] for n in numbers)
                    for name, values in found.items() for e, numbers in values.items()
                    if name.startswith(family) and "one mode" not in name and ("temperature" in name) == widened
                }  # fmt: skip
                if points:
                    xs = sorted(points)
                    axes.plot(xs, [points[x] for x in xs], line, marker="o", color=colour, label=family + word)
        for style, (name, values) in zip(
            cycle("sv^Dx*Ph+1"), [f for f in found.items() if not f[0].startswith("goalgen")], strict=False
        ):
            xs = sorted(int(e) for e in values)
            ys = [statistics.mean(n["frechet_distance"] for n in values[str(x)]) for x in xs]
            axes.plot(xs, ys, marker=style, linestyle="--", color="#777777", label=name)
        first = next(iter(next(iter(results["rows"][0]["evaluations"].values())).values()))
        axes.axhline(first["frechet_reference"], color="black", linestyle=":", linewidth=1, label="held-out images")
        axes.set(xscale="log", yscale="log", xlabel="network evaluations", ylabel="Frechet distance", title=title)
        axes.set_xticks([int(e) for e in EVALUATIONS], list(EVALUATIONS))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, ncols=2)
        figure.savefig(PICTURES / f"compare-{data}.png", dpi=110)


def speed() -> str:
    parts = []
    for name in ("speed_mlp", "speed_unet", "speed_mlp_cuda", "speed_unet_cuda"):
        results = read(name)
        rows: Rows = results["rows"]
        if not rows:
            continue
        body = []
        for row in sorted(rows, key=lambda r: (r["precision"], r["before"] or "", r["contender"])):
            before = f"{row['contender']} at {row['before']}" if row["before"] else row["contender"]
            body.append([before, "bfloat16" if row["precision"] == "bf16" else "float32",
                         f"{row['images_per_second']:,.0f} ± {row['spread']:,.0f}", f"{row['peak_mib']:,.0f}",
                         f"{row['weights']:,}", f"{1 / row['seconds_per_image']:,.0f}"])  # fmt: skip
        head = ["", "precision", "training images/s", "peak memory, MiB", "weights", "sampled images/s"]
        device = "GPU" if name.endswith("cuda") else f"CPU, {results['threads']} threads"
        parts.append(f"""### {results["network"]}, batch {results["batch"]}, {device}

{gains(rows)}

{table(head, body)}

A peer's sampled images are at one network evaluation, goalgen's at all of its steps. Memory is the process's, libraries included. Medians of rounds in which the contenders
take turns; ± half the range. {about(results, "speed.py")}
""")
    return "## Speed\n\n" + "\n".join(parts) if parts else ""


def time_spent() -> str:
    """Where the time goes, and what each saving is worth."""
    parts = []
    for name in ("time_mlp", "time_unet", "time_mlp_cuda", "time_unet_cuda"):
        results = read(name)
        rows: Rows = results["rows"]
        if not rows:
            continue
        whole = [row for row in rows if not row["saving"]]
        kinds = list(dict.fromkeys(kind for row in whole for kind in row["parts_ms"]))
        body = [
            [row["contender"].removeprefix("goalgen "), *(f"{row['parts_ms'].get(kind, 0):.1f}" for kind in kinds),
             f"{row['drawing_ms']:.1f}", f"{row['of_it_policy_ms'] / row['drawing_ms']:.0%}"]
            for row in whole
        ]  # fmt: skip
        savings = [
            [row["saving"], row["contender"].removeprefix("goalgen "), f"{row['without_ms']:.1f}", f"{row['with_ms']:.1f}",
             f"{row['without_ms'] / row['with_ms']:.2f}", f"{row['first_steps_seconds']:.0f}"]
            for row in rows if row["saving"]
        ]  # fmt: skip
        device = "GPU" if name.endswith("cuda") else f"CPU, {results['threads']} threads"
        parts.append(f"""### {results["network"]}, batch {results["batch"]}, {device}

Milliseconds of a training step, and of drawing a batch of images:

{table(["", *kinds, "drawing", "of it in the S-agent"], body)}

Savings, switched on and off in turns (ms a step):

{table(["", "", "without", "with", "ratio", "seconds to the third step"], savings)}

{about(results, f"where_time_goes.py --network {results['network']}")}
""")
    return "## Where the time goes\n\n" + "\n".join(parts) if parts else ""


def gains(rows: Rows) -> str:
    """Ratios that the targets speak of."""
    parts = []
    rate = {(r["contender"], r["precision"], bool(r["before"])): r["images_per_second"] for r in rows}
    for precision, word in (("no", "float32"), ("bf16", "bfloat16")):
        peers = {
            c: v for (c, p, before), v in rate.items() if p == precision and not before and not c.startswith("goalgen")
        }
        mine = rate.get(("goalgen fixed bridge", precision, False))
        if peers and mine:
            fastest = max(peers, key=lambda c: peers[c])
            parts.append(f"In {word} the fixed bridge, which evaluates its network once an image as the peers do, trains at "
                         f"{mine / peers[fastest]:.2f} of the speed of the fastest peer ({fastest}).")  # fmt: skip
    old = {c: v for (c, _, before), v in rate.items() if before}
    if old:
        now = {c: max(v for (d, _, before), v in rate.items() if d == c and not before) for c in old}
        parts.append("Against the earlier commit, in the faster of the two precisions: " + ", ".join(
            f"{c.removeprefix('goalgen ')} {now[c] / old[c]:.2f} times" for c in old) + ".")  # fmt: skip
    return "\n".join(parts)


def likelihood() -> str:
    parts = []
    for name, title, key, digits in (
        ("likelihood_mnist", "Binarised MNIST on a laptop", "nll_bound_nats", 2),
        ("likelihood_mnist_cuda", "Binarised MNIST on a GPU", "nll_bound_nats", 2),
        ("likelihood_cifar10_cuda", "CIFAR-10 on a GPU", "bits_per_dim", 3),
    ):
        results = read(name)
        rows: Rows = results["rows"]
        if not rows:
            continue
        horizons = sorted({r["horizon"] for r in rows})
        families = list(dict.fromkeys(r["family"] for r in rows))
        body = [
            [f, *(cell([r[key] for r in rows if r["family"] == f and r["horizon"] == h], digits) for h in horizons)]
            for f in families
        ]
        parts.append(f"""### {title}

Bound (equation 3), {"nats an image" if digits == 2 else "bits/dim"}, {rows[0]["num_test"]} test images, {results["seconds"]:.0f} s of training each:

{table(["", *(f"H = {h}" for h in horizons)], body)}

{PUBLISHED[name]} {about(results, f"likelihood.py {'cifar10' if 'cifar' in name else 'mnist'} --seconds {results['seconds']:.0f}")}
""")
    return "## Likelihood against the number of steps\n\n" + "\n".join(parts) if parts else ""


def zoo() -> str:
    results = read("zoo")
    if not results["rows"]:
        return ""
    body = [
        [f"`zoo:{r['name']}`", f"`{r['command']}`", f"{r['bytes'] / 1e6:.1f}", str(r["network_evaluations"]), f"{r['bits_per_dim']:.3f}",
         f"{r['frechet_distance']:.2f} ({r['frechet_reference']:.2f})", f"{r['precision']:.2f}", f"{r['recall']:.2f}"]
        for r in results["rows"]
    ]  # fmt: skip
    head = [
        "model",
        "made by",
        "MB",
        "evaluations",
        "bound, bits/dim",
        "Frechet (of held-out images)",
        "precision",
        "recall",
    ]
    return f"""## The zoo: models that come with the package

    goalgen sample zoo:digits --out samples --grid

{table(head, body)}

Measured as shipped, in half precision, on all test images. {about(results, "zoo.py")}
"""
