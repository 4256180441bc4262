"""Sections of docs/benchmarks.md, and plots, that set contenders beside each other: goalgen and its peers, and H against H."""

from __future__ import annotations

import re
import statistics
from itertools import cycle
from typing import Any

from matplotlib.figure import Figure
from report import MUON, NAMES, PICTURED, PICTURES, RESULTS, Rows, about, cell, fill, of, read, seeds, table

EVALUATIONS = ("1", "2", "4", "8", "16", "50")
METRICS = {
    "kernel_distance": ("kernel distance", 3), "precision": ("precision", 2), "recall": ("recall", 2), "density": ("density", 2),
    "coverage": ("coverage", 2), "nearest_train_distance": ("nearest training image", 3),
}  # fmt: skip
"""Of the comparison, beside the Frechet distance: words and digits."""

FAMILIES = {"fixed bridge": "#777777", "learned bridge": "#0072B2", "latent": "#D55E00", "proposals": "#E69F00"}
"""Colours of the curves; in the comparison grey is for the peers."""

COMPARED = {"goalgen code, bridge": "#D55E00", "goalgen latent": "#CC79A7", "goalgen proposals": "#E69F00",
            "goalgen learned bridge": "#56B4E9", "goalgen fixed bridge": "#0072B2", "goalgen reveal": "#009E73"}  # fmt: skip

TITLES = {**PICTURED, "digits": NAMES["digits"]}
"""Data sets of the comparison, in the order of the page."""


def parts() -> dict[str, str]:
    """Result files of the comparison that are there, without what they have in common, and their titles."""
    found = {}
    for data, title in TITLES.items():
        for file in sorted(RESULTS.glob(f"compare_{data}*.json")):
            words = re.fullmatch(
                rf"{data}(?:_(operations|weights))?(?:_(\d+)s)?(_cuda)?", file.stem.removeprefix("compare_")
            )
            if words:
                equal, seconds, gpu = words.groups()
                more = [f"equal {equal}"] if equal else []
                more += [f"{seconds} s"] if seconds else []
                more += ["on a GPU"] if gpu else []
                found[words[0]] = ", ".join([title, *more])
    return found


def remark(results: dict[str, Any]) -> str:
    """What else must be known of how the rows were measured."""
    elsewhere = [row["contender"] for row in results["rows"] if row.get("measured_on", "cpu") != "cpu"]
    names = ", ".join(dict.fromkeys(elsewhere))
    said = (
        f"Trained and timed on that thread, but the samples that were measured were drawn on a GPU: {names}."
        if names
        else ""
    )
    return " ".join(filter(None, [results.get("remark", ""), said]))


def command_of(data: str) -> str:
    """What measured a result file."""
    name = re.sub(r"_(operations|weights)", r" --equal \1", re.sub(r"_\d+s", "", data))
    return f"compare --data {re.sub('_cuda', ' --device cuda', name)}"


# beside the peers -----------------------------------------------------------------------------------------------------

Lines = dict[str, dict[str, Rows]]
"""Name in the table -> evaluations -> numbers of every seed."""


def sampler_name(contender: str, sampler: str, evaluations: str) -> str:
    """Whose numbers these are. What is not sampled as it was trained, every step at temperature 1, is another sampler."""
    method, *other = re.split(r", (?=temperature|correlation)", sampler)
    muon = MUON if contender.endswith(MUON) else ""
    name = contender if method == "goalgen" else method + muon  # a peer is called as its sampler
    how = [f"at {what}" for what in other]
    steps = re.search(r"H=(\d+)", name)
    how += ["of fewer steps"] if steps and steps[1] != evaluations else []
    return f"{name}, sampler {', '.join(how)}" if how else name


def lines_of(rows: Rows) -> Lines:
    found: Lines = {}
    for row in rows:
        if row["contender"].startswith("goalgen"):
            found.setdefault(row["contender"], {})  # the model itself comes first
        for evaluations, samplers in row["evaluations"].items():
            for sampler, numbers in samplers.items():
                name = sampler_name(row["contender"], sampler, evaluations)
                found.setdefault(name, {}).setdefault(evaluations, []).append(numbers)
    return found


def of_the_model(found: Lines) -> Lines:
    """Without samplers at another temperature."""
    return {name: values for name, values in found.items() if "at temperature" not in name}


def mean(numbers: Rows, key: str = "frechet_distance") -> float:
    return statistics.mean(n[key] for n in numbers)


def best(found: Lines, evaluations: str, ours: bool) -> tuple[float, str] | None:
    """Mean Frechet distance and name of the best of goalgen's contenders, or of the peers."""
    mine = {name: values for name, values in found.items() if name.startswith("goalgen") == ours}
    return min(((mean(v[evaluations]), name) for name, v in mine.items() if evaluations in v), default=None)


def ratios(found: Lines) -> dict[str, tuple[float, str]]:
    """By evaluations: goalgen's best Frechet distance over the best peer's, and both in words."""
    texts = {}
    for evaluations in EVALUATIONS:
        mine, peer = best(found, evaluations, True), best(found, evaluations, False)
        if mine and peer:
            ratio = mine[0] / peer[0]
            words = f"at {evaluations}: {mine[0]:.2f} ({mine[1]}) against {peer[0]:.2f} ({peer[1]}), {ratio:.2f} of it"
            texts[evaluations] = (ratio, words)
    return texts


SHARES = {"1": 0.3, "2": 0.3, "4": 0.5, "8": 0.75, "16": 1.0, "50": 1.0}
"""The target: goalgen's Frechet distance over the best peer's, at most, by network evaluations."""


def verdict(found: Lines, set_here: bool) -> str:
    """Where the models are worse than the target, first; then where they are not; then what other samplers reach.

    Args:
        set_here: whether the target was set for these data.
    """
    missed, met = [], []
    models = of_the_model(found)
    for evaluations, (ratio, words) in ratios(models).items():
        (met if ratio <= SHARES[evaluations] else missed).append(words)
    four, peer = best(models, "4", True), min(b for e in EVALUATIONS if (b := best(models, e, False)))
    if four:
        words = f"at 4: {four[0]:.2f} against {peer[0]:.2f}, the best of any peer at any number ({peer[1]})"
        (met if four[0] <= peer[0] else missed).append(words)
    shares = ", ".join(f"{share} at {evaluations}" for evaluations, share in SHARES.items())
    rule = (
        f"of the best peer's Frechet distance at the same number of network evaluations at most: {shares}; and at 4 no more than "
        "the best peer's at any: at temperature 1, of all steps that a model was trained with or fewer, at any correlation (1 draws no "
        "noise but the first, as the peers' samplers). What is not the model whose bound is given below is called a sampler."
    )
    parts = [
        f"The target is, {rule}" if set_here else f"The target was set for Fashion-MNIST; by the same rule, {rule}"
    ]
    parts += [f"**Missed** {'; '.join(missed)}."] if missed else []
    parts += [f"Met {'; '.join(met)}."] if met else []
    others = [words for _, words in ratios(found).values() if "at temperature" in words]
    if others:
        parts.append(f"With other temperatures let in (which is no verdict): {'; '.join(others)}.")
    return "\n\n".join(parts)


def headline(data: str) -> str:
    """For README: goalgen at four evaluations, the model itself, and the best peer at four and at any number."""
    rows: Rows = read(f"compare_{data}")["rows"]
    if not rows:
        return ""
    models = {name: values for name, values in lines_of(rows).items() if ", sampler" not in name}
    numbers = {e: (best(models, e, True), best(models, e, False)) for e in EVALUATIONS}
    mine, peer = numbers["4"]
    any_peer = min((b, e) for e, (_, b) in numbers.items() if b)
    if not mine or not peer:
        return ""
    results = read(f"compare_{data}")
    return (
        f"Frechet distances (lower is better) on {NAMES[data].partition(' (')[0]} after {results['seconds']:.0f} s of one thread, "
        f"convolutional networks, as many operations for a training image, {seeds(rows)}: goalgen at 4 evaluations {mine[0]:.2f} ({mine[1].removeprefix('goalgen ')}); the best peer at 4 "
        f"{peer[0]:.2f} ({peer[1]}), the best peer at any number {any_peer[0][0]:.2f} ({any_peer[0][1]}, {any_peer[1]} evaluations)."
    )


def same_quality(found: Lines) -> tuple[float, str]:
    """What every peer can reach, and how fast each samples at the fewest evaluations at which it reaches that."""
    peers = [values for name, values in found.items() if not name.startswith("goalgen")]
    level = max(min(mean(n) for n in values.values()) for values in peers)
    body = []
    for name, values in found.items():
        reached = [e for e in EVALUATIONS if e in values and mean(values[e]) <= level]
        if reached:
            fewest = values[reached[0]]
            speed = f"{mean(fewest, 'sampled_images_per_second'):,.0f}"
            body.append([name, reached[0], f"{mean(fewest):.2f}", speed])
    return level, table(["", "evaluations", "Frechet distance", "sampled images/s"], body)


SHOWN = {"goalgen-4": ("goalgen code, bridge H=4", "4 evaluations"), "flow-matching-4": (f"flow matching (plain){MUON}", "4 evaluations"),
         "flow-matching-50": (f"flow matching (plain){MUON}", "50 evaluations")}  # fmt: skip
"""Ends of pictures' names, and whose first 64 samples of seed 0 they show (contest.py draws them)."""


def samples_beside(data: str, rows: Rows) -> str:
    """A row of pictures, of those that were measured."""
    measured = {row["contender"] for row in rows if row["seed"] == 0}
    there = {end: f"{who}, {how}" for end, (who, how) in SHOWN.items() if who in measured}
    pictures = [f"![{what}](pictures/{data}-{end}.png)" for end, what in there.items()]
    return table(list(there.values()), [pictures]) if there else ""


def compare(data: str, title: str) -> str:
    """The comparison on one data set, once there are both goalgen and a peer."""
    results = read(f"compare_{data}")
    rows: Rows = results["rows"]
    if len({row["contender"].startswith("goalgen") for row in rows}) < 2:
        return ""
    found = lines_of(rows)
    first = next(iter(next(iter(rows[0]["evaluations"].values())).values()))
    distances = [
        [name, *(cell([n["frechet_distance"] for n in values.get(e, [])], 2) for e in EVALUATIONS)]
        for name, values in found.items()
    ]
    references = [
        f"{first[k.replace('_distance', '') + '_reference']:.{digits}f}" for k, (_, digits) in METRICS.items()
    ]
    others = [["held-out images", "", *references]]
    for name, values in found.items():
        for e, numbers in values.items():
            others.append([name, e, *(cell([n[key] for n in numbers], digits) for key, (_, digits) in METRICS.items())])
    trained = []
    for name in dict.fromkeys(row["contender"] for row in rows):
        mine = [row for row in rows if row["contender"] == name]
        bounds = cell([row["bits_per_dim"] for row in mine if "bits_per_dim" in row])
        steps = cell([float(row["trained_steps"]) for row in mine], 0)
        counted = mine[0].get("operations", {})
        operations = " and ".join(f"{counted[kind] / 1e6:.1f}" for kind in ("train", "sample") if kind in counted)
        trained.append({"name": name, "bits_per_dim": bounds, "trained_steps": steps,
                        "weights": f"{mine[0]['parameters']:,}", "operations": operations})  # fmt: skip
    level, reached = same_quality(found)
    return fill(
        "compare of data", trained, title=title, data=data, verdict=verdict(found, data.startswith("fashion")), first=first,
        distances=table(["", *EVALUATIONS], distances), level=level, reached=reached, seconds=results["seconds"],
        remark=remark(results), where="of a GPU" if data.endswith("cuda") else "each on one thread",
        others=table(["", "evaluations", *(words for words, _ in METRICS.values())], others), seeds=seeds(rows),
        about=about(results, command_of(data)), samples=samples_beside(data, rows),
    )  # fmt: skip


def best_of(lines: Lines) -> Lines:
    """One line of the best at every number of evaluations."""
    points = {e: min((v[e] for v in lines.values() if e in v), key=mean) for v in lines.values() for e in v}
    return {"best": points}


def draw_comparison(data: str, title: str) -> None:
    """Write docs/pictures/compare-DATA.png."""
    found = lines_of(rows := read(f"compare_{data}")["rows"])
    if not rows:
        return
    figure = Figure(figsize=(8.5, 4), layout="constrained")
    axes = figure.subplots()

    def points(lines: Lines) -> tuple[list[int], list[float]]:
        means = sorted((int(e), mean(numbers)) for values in lines.values() for e, numbers in values.items())
        return [e for e, _ in means], [value for _, value in means]

    for family, colour in COMPARED.items():
        mine = {name: values for name, values in found.items() if name.startswith(family) and "one mode" not in name}
        for sampler in sorted({name.partition(", sampler")[2] for name in mine}):  # none, the model itself, comes first
            some = {name: values for name, values in mine.items() if name.partition(", sampler")[2] == sampler}
            if sampler and "temperature" not in sampler:  # of the several models of a family the one that takes it best
                some = best_of(some)
            style = "-." if "temperature" in sampler else ":" if sampler else "-"
            label = f"{family}{sampler}" if sampler else family
            axes.plot(*points(some), style, marker="o", color=colour, label=label)
    peers = {name: values for name, values in found.items() if not name.startswith("goalgen")}
    for marker, (name, values) in zip(cycle("sv^Dx*Ph+1"), peers.items(), strict=False):
        axes.plot(*points({name: values}), marker=marker, linestyle="--", color="#777777", label=name)
    first = next(iter(next(iter(rows[0]["evaluations"].values())).values()))
    axes.axhline(first["frechet_reference"], color="black", linestyle=":", linewidth=1, label="held-out images")
    axes.set(xscale="log", yscale="log", xlabel="network evaluations", ylabel="Frechet distance", title=title)
    axes.set_xticks([int(e) for e in EVALUATIONS], list(EVALUATIONS))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=6, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(PICTURES / f"compare-{data}.png", dpi=110)


# against the number of steps ------------------------------------------------------------------------------------------


def best_learned(rows: Rows, horizon: int, key: str) -> tuple[float, str]:
    """The best learned GC-agent's mean as a share of the fixed one's, and its family."""
    fixed = statistics.mean(of(rows, "fixed bridge", horizon, key))
    means = {f: statistics.mean(v) for f in FAMILIES if f != "fixed bridge" and (v := of(rows, f, horizon, key))}
    family = min(means, key=lambda f: means[f])
    return means[family] / fixed, family


def curve_verdict(rows: Rows, horizons: list[int]) -> str:
    """Where the target is missed, first."""
    missed, met = [], []
    for h in horizons:
        targets = [("bits_per_dim", "bits/dim", 0.9 if h <= 4 else 1.0)]
        targets += [("frechet_distance", "Frechet", 0.5)] if h <= 4 else []
        for key, label, most in targets:
            value = best_learned(rows, h, key)[0]
            (met if value <= most else missed).append(f"H = {h} {label} {value:.2f} (at most {most})")
    parts = [f"**Missed**: {'; '.join(missed)}." if missed else "", f"Met: {'; '.join(met)}." if met else ""]
    return "\n\n".join(p for p in parts if p)


def curve(data: str, title: str) -> str:
    """The curve on one data set."""
    results = read(f"curve_{data}")
    rows: Rows = results["rows"]
    if not rows:
        return ""
    horizons = sorted({row["horizon"] for row in rows})

    def by_family(key: str, digits: int, shares: bool = True) -> str:
        body = [[str(h), *(cell(of(rows, f, h, key), digits) for f in FAMILIES)] for h in horizons]
        for line in body if shares else []:
            line.append("{:.2f} ({})".format(*best_learned(rows, int(line[0]), key)))
        return table(["H", *FAMILIES, *(["best learned / fixed"] if shares else [])], body)

    weights = [sum(row["parameters"].values()) for row in rows]
    return fill(
        "curve of data", title=title, data=data, seconds=results["seconds"], seeds=seeds(rows), least=min(weights),
        most=max(weights), first=rows[0], verdict=curve_verdict(rows, horizons), bounds=by_family("bits_per_dim", 3),
        distances=by_family("frechet_distance", 2), remark=results.get("remark", ""),
        steps=by_family("trained_steps", 0, shares=False), about=about(results, f"curve --data {data}"),
    )  # fmt: skip


def draw_curve(data: str, title: str) -> None:
    """Write docs/pictures/curve-DATA.png."""
    rows: Rows = read(f"curve_{data}")["rows"]
    if not rows:
        return
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    figure.suptitle(title)
    numbers = (("bits_per_dim", "bound, bits/dim"), ("frechet_distance", "Frechet distance"))
    for axes, (key, label) in zip(figure.subplots(1, 2), numbers, strict=True):
        for family, colour in FAMILIES.items():
            horizons = sorted({row["horizon"] for row in rows if row["family"] == family})
            values = [of(rows, family, h, key) for h in horizons]
            errors = [statistics.stdev(v) if len(v) > 1 else 0.0 for v in values]
            axes.errorbar(horizons, [statistics.mean(v) for v in values], errors, marker="o", markersize=4, capsize=2,
                          label=family, color=colour)  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_xticks(horizons, [str(h) for h in horizons])
        axes.set(xlabel="steps = network evaluations", ylabel=label)
        axes.grid(alpha=0.3)
        if key == "frechet_distance":
            axes.set_yscale("log")
            axes.axhline(rows[0]["frechet_reference"], color="black", linestyle=":", linewidth=1, label="test images")
        axes.legend(fontsize=8)
    figure.savefig(PICTURES / f"curve-{data}.png", dpi=110)


def draw() -> None:
    """Write all plots."""
    for data, title in parts().items():
        draw_comparison(data, title)
    for data, title in NAMES.items():
        draw_curve(data, title)
