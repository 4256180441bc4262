"""Result files, and the pages written from them: docs/benchmarks.md (its text is in page.md) and the table in README.md."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import statistics
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = Path(os.environ.get("GOALGEN_RESULTS", HERE / "results"))
"""Another folder keeps apart what is only tried out; runs, pictures and models are then written there too."""

APART = "GOALGEN_RESULTS" in os.environ
PICTURES = RESULTS / "pictures" if APART else ROOT / "docs" / "pictures"

Rows = list[dict[str, Any]]

NAMES = {
    "digits": "Digits (8x8, 17 grey levels)", "mnist": "MNIST (28x28, 256 grey levels)",
    "fashion_mnist": "Fashion-MNIST (28x28, 256 grey levels)",
}  # fmt: skip
PICTURED = {name: NAMES[name] for name in ("fashion_mnist", "mnist")} | {
    "avatars": "Avatars (16x16, colour, CC0)", "cifar10": "CIFAR-10 (32x32, colour)",
}  # fmt: skip
FOLDER_TITLES = {
    "icons": "800 icons of our own drawing, 48x32, RGBA", "hills": "300 grey landscapes of our own drawing, 24x40",
    "cifar10": "CIFAR-10's 50,000 training images as loose files, 32x32",
}  # fmt: skip
PUBLISHED = {
    "mnist": "Published, binarised MNIST, nats: BFN 95.21 at 10 steps, 84.4 at 25, 81.06 at 50, 79.46 at 100; full length: "
    "CR-NVAE 76.93, BFN 77.87, NVAE 78.01, IAF-VAE 79.10.",
    "mnist_cuda": "Published: as above.",
    "cifar10_cuda": "Published, CIFAR-10, bits/dim: VDM trained at 10 steps 4.31, at 100 2.84; full length: NFDM 2.48, "
    "MuLAN 2.55, VDM 2.65, VDVAE 2.87, NVAE 2.91.",
}
LIKELIHOODS = {
    "mnist": "Binarised MNIST on a laptop",
    "mnist_cuda": "Binarised MNIST on a GPU",
    "cifar10_cuda": "CIFAR-10 on a GPU",
}
TARGETS = {
    "mnist": ("Binarised MNIST", "nll_bound_nats", "nats", 82.0, "BFN 95.2 at 10 steps; a full-length NVAE 78.0"),
    "cifar10": ("CIFAR-10", "bits_per_dim", "bits/dim", 3.6, "VDM trained at 10 steps, 4.31"),
}

# files --------------------------------------------------------------------------------------------------------------


def machine(packages: Iterable[str] = ()) -> dict[str, Any]:
    """Versions and hardware, for the head of a result file."""
    names = ("goalgen", "torch", "numpy", "accelerate", *packages)
    return {
        "versions": {name: importlib.metadata.version(name) for name in names},
        "python": platform.python_version(),
        "processor": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def read(name: str) -> dict[str, Any]:
    """A result file, or an empty one."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {"rows": []}


def write(name: str, values: dict[str, Any]) -> None:
    """Replace a result file, all at once."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    temporary = RESULTS / f".{name}.tmp"
    temporary.write_text(json.dumps(values, indent=1) + "\n")
    temporary.replace(RESULTS / f"{name}.json")


# parts of a page ----------------------------------------------------------------------------------------------------


def fill(section: str, rows: Iterable[dict[str, Any]] = (), **values: Any) -> str:
    """A section of page.md with its values; lines of tables are written once for each of ``rows``."""
    text = (HERE / "page.md").read_text(encoding="utf-8")
    template = text.partition(f"=== {section}\n")[2].partition("\n===")[0]
    return "\n".join(
        "\n".join(line.format(r=row, **values) for row in rows) if "{r[" in line else line.format(**values)
        for line in template.split("\n")
    )


def of_data(section: str, parts: dict[str, str], part: Callable[[str, str], str]) -> str:
    """A section with a part for every data set that has results."""
    found = [text for data, title in parts.items() if (text := part(data, title))]
    return "\n".join([fill(section), *found]) if found else ""


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def cell(values: Iterable[float], digits: int = 3) -> str:
    """Mean and sample standard deviation; nothing of nothing."""
    values = list(values)
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}" if values else ""


def about(results: dict[str, Any], command: str) -> str:
    """What made the numbers: the machine, versions, and the command."""
    made = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    seconds = f" --seconds {results['seconds']:.0f}" if "seconds" in results else ""
    return f"Machine: {made['processor']}, Python {made['python']}, {versions}. Command: `benchmarks/bench.py run {command}{seconds}`."


def of(rows: Rows, family: str, horizon: int, key: str) -> list[float]:
    """One number of all seeds."""
    return [row[key] for row in rows if row["family"] == family and row["horizon"] == horizon]


def by_horizon(rows: Rows, key: str, digits: int) -> str:
    """A family a row, a number of steps a column."""
    horizons = sorted({row["horizon"] for row in rows})
    families = dict.fromkeys(row["family"] for row in rows)
    body = [[family, *(cell(of(rows, family, h, key), digits) for h in horizons)] for family in families]
    return table(["", *(f"H = {h}" for h in horizons)], body)


def seeds(rows: Rows) -> str:
    count = len({row["seed"] for row in rows})
    return f"{count} seeds (mean ± standard deviation)" if count > 1 else "one seed"


# sections -----------------------------------------------------------------------------------------------------------


def demo() -> str:
    results = read("demo")
    rows = [{**r, "ratio": r["frechet_distance"] / r["frechet_reference"]} for r in results["rows"]]
    return fill("demo", rows, first=rows[0], about=about(results, "demo")) if rows else ""


def defaults(data: str, title: str) -> str:
    results = read(f"defaults_{data}")
    if not results["rows"]:
        return ""
    first = results["rows"][0]
    steps = " ".join(f"{v:.2f}" for v in first["kl_per_step_nats"])
    stages = ", ".join(f"{name} {nats:.1f}" for name, nats in first.get("kl_by_stage", [])) or "one"
    return fill(
        "defaults of data", first=first, steps=steps, stages=stages, title=title, data=data, minutes=first["seconds"] / 60,
        about=about(results, f"defaults --data {data}"),
    )  # fmt: skip


def folders() -> str:
    results = read("folders")
    if not results["rows"]:
        return ""
    parts = [fill("folders")]
    for row in results["rows"]:
        said = "\n".join("    " + line for line in row["said"])
        parts.append(fill("folders of one", title=FOLDER_TITLES[row["folder"]], first=row, said=said))
    return "\n".join([*parts, about(results, "folders"), ""])


def ablation(data: str, title: str) -> str:
    results = read(f"ablation_{data}")
    if not results["rows"]:
        return ""
    rows, digits = [], {"bits_per_dim": 3, "frechet_distance": 2, "precision": 2, "recall": 2, "trained_steps": 0}
    for variant in dict.fromkeys(row["variant"] for row in results["rows"]):
        mine = [row for row in results["rows"] if row["variant"] == variant]
        told = cell((r["frechet_distance_from_gc_codes"] for r in mine if "frechet_distance_from_gc_codes" in r), 2)
        numbers = {key: cell((float(row[key]) for row in mine), count) for key, count in digits.items()}
        operations = mine[0]["operations"]
        rows.append({**numbers, "variant": variant, "told": told, "train": operations["train"] / 1e6,
                     "sample": operations["sample"] / 1e6, "drawn": cell((r["sampled_images_per_second"] for r in mine), 0)})  # fmt: skip
    return fill("ablation of data", rows, title=title, first=results["rows"][0], seconds=results["seconds"],
                seeds=seeds(results["rows"]), about=about(results, f"ablation --data {data}"))  # fmt: skip


def order(data: str, title: str) -> str:
    """Learned and fixed orders of reveals."""
    results = read(f"order_{data}")
    if not results["rows"]:
        return ""
    rows, digits = [], {"bits_per_dim": 3, "frechet_distance": 2, "trained_steps": 0}
    for key in sorted({(row["horizon"], row["order"]) for row in results["rows"]}):
        mine = [row for row in results["rows"] if (row["horizon"], row["order"]) == key]
        learned = "order_kl_nats" in mine[0]
        rows.append({
            **{name: cell((row[name] for row in mine), count) for name, count in digits.items()}, "horizon": key[0], "order": key[1],
            "error": f"{statistics.mean(row['bits_standard_error'] for row in mine):.3f}", "evaluations": mine[0]["network_evaluations"],
            "kl": cell((r["order_kl_nats"] for r in mine), 2) if learned else "",
            "entropy": cell((r["order_entropy_nats"] for r in mine), 2) if learned else "",
            "train": mine[0]["operations"]["train"] / 1e6, "weights": f"{sum(mine[0]['parameters'].values()):,}",
        })  # fmt: skip
    return fill("order of data", rows, title=title, first=results["rows"][0], seconds=results["seconds"], seeds=seeds(results["rows"]),
                verdict=order_verdict(results["rows"]), about=about(results, f"order --data {data}"))  # fmt: skip


def order_verdict(rows: Rows) -> str:
    """Whether the learned order is ahead of the best fixed one: by more than the standard deviation over seeds, of whichever varies more."""
    lines = []
    for horizon in sorted({row["horizon"] for row in rows}):
        found: dict[str, list[float]] = {}
        for row in rows:
            if row["horizon"] == horizon:
                found.setdefault(row["order"], []).append(row["bits_per_dim"])
        learned = found.pop("learned", [])
        if not learned or not found:
            continue
        best = min(found, key=lambda name: statistics.mean(found[name]))
        gain = statistics.mean(found[best]) - statistics.mean(learned)
        both = [values for values in (learned, found[best]) if len(values) > 1]
        if not both:
            lines.append(f"- {horizon} groups: one seed: {gain:+.3f} bits/dim for the learned order against {best}.")
            continue
        spread = max(statistics.stdev(values) for values in both)
        word = "ties with" if abs(gain) <= spread else "beats" if gain > 0 else "loses to"
        lines.append(
            f"- {horizon} groups: the learned order **{word}** the best fixed one, {best}: {cell(learned)} against {cell(found[best])} "
            f"bits/dim, {gain:+.3f} for the learned one."
        )
    return "\n".join(lines)


def zoo() -> str:
    results = read("zoo")
    rows = [{**r, "megabytes": r["bytes"] / 1e6} for r in results["rows"]]
    return fill("zoo", rows, about=about(results, "zoo")) if rows else ""


def strokes(data: str, title: str) -> str:
    """What painters keep of their goals, what is drawn without any, and the curve by strokes."""
    results = read(f"strokes_{data}")
    if not results["rows"]:
        return ""
    rows = []
    for variant in dict.fromkeys(row["variant"] for row in results["rows"]):
        mine = [row for row in results["rows"] if row["variant"] == variant]
        rows.append({
            "variant": variant, "steps": cell((r["steps"] for r in mine), 0), "bound": cell((r["nll_bound_nats"] for r in mine), 1),
            "error": cell((r["paintings"]["squared_error"] for r in mine), 4), "kept": cell((r["paintings"]["labels_kept"] for r in mine), 3),
            "sure": cell((r["samples"]["confident"] for r in mine), 3), "entropy": cell((r["samples"]["class_entropy_nats"] for r in mine), 2),
            "distance": cell((r["quality"]["frechet_distance"] for r in mine), 2), "nearest": cell((r["quality"]["nearest_train_distance"] for r in mine), 3),
        })  # fmt: skip
    first = next((row for row in results["rows"] if "greedy" in row), results["rows"][0])
    found = {"squared error": (-first["paintings"]["squared_error"], -0.016), "labels kept": (first["paintings"]["labels_kept"], 0.96),
             "samples of which the judge is sure": (first["samples"]["confident"], 0.8), "entropy of classes": (first["samples"]["class_entropy_nats"], 2.25)}  # fmt: skip
    verdict = "; ".join(
        f"{what} {'met' if value >= least else '**missed**'}, {abs(value):.3g} against {abs(least):g}"
        for what, (value, least) in found.items()
    )
    ways = {"painted": first["after"], "greedy search": first.get("greedy", {}), "potrace": first.get("potrace", {})}
    counts = list(dict.fromkeys(n for way in ways.values() for n in way))
    curve = table(
        ["strokes", *counts],
        [[way, *(f"{at[n]['squared_error']:.4f}, {at[n]['labels_kept']:.3f}" if n in at else "" for n in counts)]
         for way, at in ways.items() if at],
    )  # fmt: skip
    return fill("strokes of data", rows, title=title, data=data, first=first, curve=curve, verdict=verdict if data == "mnist" else "none was set", seconds=results["seconds"],
                seeds=seeds(results["rows"]), about=about(results, f"strokes --data {data}"))  # fmt: skip


def strokes_speed() -> str:
    results = read("strokes_speed")
    if not results["rows"]:
        return ""
    threads = sorted({row["threads"] for row in results["rows"]})

    def rate(work: str, count: int) -> str:
        found = [r for r in results["rows"] if (r["work"], r["threads"]) == (work, count)]
        middle = f"{statistics.median(r['strokes_per_second'] for r in found):,.0f}" if found else ""
        images = [r["images_per_second"] for r in found if "images_per_second" in r]
        return middle + (f" ({statistics.median(images):.1f} images/s)" if images else "")

    works = dict.fromkeys(row["work"] for row in results["rows"])
    rows = [[work, *(rate(work, count) for count in threads)] for work in works]
    head = ["strokes a second, 28x28", *(f"{n} thread{'s' if n > 1 else ''}" for n in threads)]
    return fill("strokes_speed", rates=table(head, rows), about=about(results, "strokes_speed"))


def likelihood(name: str, title: str) -> str:
    results = read(f"likelihood_{name}")
    rows: Rows = results["rows"]
    if not rows:
        return ""
    data, _, device = name.partition("_")
    unit, key, digits = ("bits/dim", "bits_per_dim", 3) if data == "cifar10" else ("nats an image", "nll_bound_nats", 2)
    return fill(
        "likelihood of data", title=title, unit=unit, first=rows[0], seconds=results["seconds"],
        bounds=by_horizon(rows, key, digits), published=PUBLISHED[name],
        about=about(results, f"likelihood --data {data}{f' --device {device}' if device else ''}"),
    )  # fmt: skip


def device_of(name: str, results: dict[str, Any]) -> str:
    return "GPU" if name.endswith("cuda") else f"CPU, {results['threads']} threads"


def speed(name: str, _: str) -> str:
    results = read(f"speed_{name}")
    rounds: dict[tuple[str, str], Rows] = {}
    for row in results["rows"]:
        rounds.setdefault((row["precision"], row["contender"]), []).append(row)
    if not rounds:
        return ""
    rows = []
    for (precision, contender), found in sorted(rounds.items()):
        rates = [r["images_per_second"] for r in found]
        middle = {
            k: statistics.median(r[k] for r in found) for k in ("images_per_second", "peak_mib", "seconds_per_image")
        }
        rows.append({
            **found[0], **middle, "who": contender,
            "word": "bfloat16" if precision == "bf16" else "float32", "drawn": 1 / middle["seconds_per_image"],
            "spread": found[0].get("spread", (max(rates) - min(rates)) / 2),  # earlier files hold medians
        })  # fmt: skip
    return fill(
        "speed of data", rows, network=results["network"], batch=results["batch"], device=device_of(name, results),
        gains=gains(rows), about=about(results, f"speed --network {results['network']}"),
    )  # fmt: skip


def gains(rows: Rows) -> str:
    """Ratios that the targets speak of."""
    parts = []
    rate = {(r["contender"], r["precision"]): r["images_per_second"] for r in rows}
    for precision, word in (("no", "float32"), ("bf16", "bfloat16")):
        peers = {c: v for (c, p), v in rate.items() if p == precision and not c.startswith("goalgen")}
        mine = rate.get(("goalgen fixed bridge", precision))
        if peers and mine:
            fastest = max(peers, key=lambda c: peers[c])
            parts.append(f"In {word} the fixed bridge, which evaluates its network once an image as the peers do, trains at "
                         f"{mine / peers[fastest]:.2f} of the speed of the fastest peer ({fastest}).")  # fmt: skip
    return "\n".join(parts)


def time_spent(name: str, _: str) -> str:
    """Where the time goes, and what each saving is worth."""
    results = read(f"time_{name}")
    rows: Rows = [{**r, "who": r["contender"].removeprefix("goalgen ")} for r in results["rows"]]
    if not rows:
        return ""
    whole = [row for row in rows if not row["saving"]]
    kinds = list(dict.fromkeys(kind for row in whole for kind in row["parts_ms"]))
    parts = [
        [row["who"], *(f"{row['parts_ms'].get(kind, 0):.1f}" for kind in kinds), f"{row['drawing_ms']:.1f}",
         f"{row['of_it_policy_ms'] / row['drawing_ms']:.0%}"]
        for row in whole
    ]  # fmt: skip
    savings = [{**row, "ratio": row["without_ms"] / row["with_ms"]} for row in rows if row["saving"]]
    return fill(
        "time of data", savings, network=results["network"], batch=results["batch"], device=device_of(name, results),
        parts=table(["", *kinds, "drawing", "of it in the S-agent"], parts),
        about=about(results, f"time --network {results['network']} --batch {results['batch']}"),
    )  # fmt: skip


def gc_agents(data: str, title: str) -> str:
    results = read(f"gc_agents_{data}")
    if not results["rows"]:
        return ""
    digits = {"bits_per_dim": 3, "iw_bound_nats": 2, "kl_nats": 2, "frechet_distance": 2, "recall": 3, "steps": 0}
    rows = []
    for agent in dict.fromkeys(row["gc_agent"] for row in results["rows"]):
        mine = [row for row in results["rows"] if row["gc_agent"] == agent]
        numbers = {key: cell((row[key] for row in mine), count) for key, count in digits.items()}
        rows.append({**numbers, "gc_agent": agent, "seeds": len(mine)})
    return fill("gc_agents of data", rows, title=title, first=results["rows"][0], seconds=results["seconds"],
                about=about(results, f"gc_agents --data {data}"))  # fmt: skip


def value_gap(data: str, title: str) -> str:
    results = read(f"value_gap_{data}")
    rows = []
    for r in results["rows"]:
        known = r["posterior_nats"] - min(r["posterior_iw_nats"], r["value_iw_nats"])
        rows.append({**r, "share": r["gain_nats"] / known})
    if not rows:
        return ""
    return fill("value_gap of data", rows, title=title, first=rows[0], seconds=results["seconds"],
                episodes=results["episodes"], about=about(results, f"value_gap --data {data}"))  # fmt: skip


def cost(name: str, device: str) -> str:
    results = read(name)
    rows: Rows = results["rows"]
    if not rows:
        return ""
    return fill(
        "cost of data", device=device, width=results["width"], batch=results["batch"], about=about(results, "cost"),
        milliseconds=by_horizon(rows, "milliseconds_per_image", 2), memory=by_horizon(rows, "kib_per_image", 0),
    )  # fmt: skip


def large() -> str:
    rows = []
    for data, (title, key, unit, target, published) in TARGETS.items():
        found: Rows = read(f"large_{data}_cuda")["rows"]
        measured = f"{found[0][key]:.2f} {unit} in {found[0]['seconds'] / 60:.0f} min" if found else "not run yet"
        rows.append({"title": title, "target": target, "unit": unit, "measured": measured, "published": published})
    return fill("large", rows)


# pages --------------------------------------------------------------------------------------------------------------


def page(compare: str, curve: str) -> str:
    """docs/benchmarks.md, around the sections of comparison.py."""
    networks = dict.fromkeys(("mlp", "unet", "mlp_cuda", "unet_cuda"), "")
    sections = [
        fill("page"), demo(), of_data("defaults", PICTURED, defaults), folders(), compare, of_data("ablation", NAMES, ablation), curve, of_data("order", NAMES, order), zoo(), of_data("strokes", NAMES, strokes), strokes_speed(), of_data("likelihood", LIKELIHOODS, likelihood),
        of_data("speed", networks, speed), of_data("time", networks, time_spent), of_data("gc_agents", NAMES, gc_agents),
        of_data("value_gap", NAMES, value_gap), of_data("cost", {"cost": "CPU", "cost_cuda": "GPU"}, cost), large(),
    ]  # fmt: skip
    return "\n".join(section for section in sections if section)


def readme(text: str, headline: str) -> str:
    """README.md with its results replaced: a sentence on how it compares, and a table."""
    rows = []
    results: Rows = read("demo")["rows"]
    if results:
        rows.append(["digits, 120 s of two threads (`make demo`)", cell(r["bits_per_dim"] for r in results),
                     cell((r["frechet_distance"] for r in results), 2), f"{results[0]['frechet_reference']:.2f}"])  # fmt: skip
    for data, title in PICTURED.items():
        for row in read(f"defaults_{data}")["rows"]:
            threads = "one thread" if row["threads"] == 1 else f"{row['threads']} threads"
            rows.append([f"{title.partition(' (')[0]}, {row['seconds'] / 60:.0f} min of {threads}", f"{row['bits_per_dim']:.3f}",
                         f"{row['frechet_distance']:.2f}", f"{row['frechet_reference']:.2f}"])  # fmt: skip
    head = ["held-out images", "bound, bits/dim", "Frechet distance", "of held-out images"]
    note = "Frechet distances in the features of a small classifier, not Inception."
    block = f"\n{table(head, rows)}\n\n{note}\n" if rows else "\n"
    text = re.sub(r"(<!-- results: .*? -->).*?(<!-- /results -->)", rf"\1{block}\2", text, flags=re.S)
    return re.sub(r"(<!-- compared: .*? -->).*?(<!-- /compared -->)", rf"\1\n{headline}\n\2", text, flags=re.S)


def write_pages(compare: str, curve: str, headline: str, check: bool) -> None:
    """Write both pages, or leave with a message if one is not what the result files say."""
    if APART:
        sys.exit("GOALGEN_RESULTS is set: the pages are written from benchmarks/results alone")
    pages = {ROOT / "docs" / "benchmarks.md": page(compare, curve)}
    pages[ROOT / "README.md"] = readme((ROOT / "README.md").read_text(encoding="utf-8"), headline)
    for path, text in pages.items():
        if check and (not path.exists() or path.read_text(encoding="utf-8") != text):
            sys.exit(f"{path.relative_to(ROOT)} is not what the results say; run python benchmarks/bench.py report")
        if not check:
            path.write_text(text, encoding="utf-8")
