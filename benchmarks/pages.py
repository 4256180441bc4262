"""The pages that are written from result files: docs/benchmarks.md (its text is in page.md) and the table in README.md."""

from __future__ import annotations

import re
import statistics
import sys
from typing import Any

import pages_of_orders
import pages_of_strokes
from likelihood import REVEALS
from report import (
    APART,
    NAMES,
    PICTURED,
    ROOT,
    Rows,
    about,
    by_horizon,
    cell,
    fill,
    of_data,
    read,
    seeds,
    table,
)

FOLDER_TITLES = {
    "icons": "800 icons of our own drawing, 48x32, RGBA", "hills": "300 grey landscapes of our own drawing, 24x40",
    "cifar10": "48,000 of CIFAR-10's training images as loose files, 32x32",
}  # fmt: skip
PUBLISHED = {
    "mnist": "Published, binarised MNIST, nats: BFN 95.21 at 10 steps, 84.4 at 25, 81.06 at 50, 79.46 at 100; PixelCNN 81.3 at 784; full length: "
    "CR-NVAE 76.93, BFN 77.87, NVAE 78.01, IAF-VAE 79.10. MNIST of 256 grey levels, bits/dim: a gated PixelCNN of 0.85 million weights 0.808 "
    "after 150 epochs, flows 0.97 at best.",
    "fashion_mnist": "Published, bits/dim: Glow, of 69 million weights, 3.14.",
    "mnist_cuda": "Published: as above.",
    "cifar10_cuda": "Published, CIFAR-10, bits/dim: VDM trained at 10 steps 4.31, at 100 2.84; full length: NFDM 2.48, "
    "MuLAN 2.55, VDM 2.65, VDVAE 2.87, NVAE 2.91.",
}
LIKELIHOODS = {
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "mnist_cuda": "Binarised MNIST on a GPU",
    "cifar10_cuda": "CIFAR-10 on a GPU",
}
TARGETS = {
    "mnist": ("Binarised MNIST", "nll_bound_nats", "nats", 82.0, "BFN 95.2 at 10 steps; a full-length NVAE 78.0"),
    "cifar10": ("CIFAR-10", "bits_per_dim", "bits/dim", 3.6, "VDM trained at 10 steps, 4.31"),
}

# sections -----------------------------------------------------------------------------------------------------------


def demo() -> str:
    results = read("demo")
    rows = [{**r, "ratio": r["frechet_distance"] / r["frechet_reference"]} for r in results["rows"]]
    return fill("demo", rows, first=rows[0], about=about(results, "demo")) if rows else ""


SET = {"fashion_mnist": {"frechet_distance": 1.2, "precision": 0.8, "recall": 0.75}, "avatars": {"bits_per_dim": 0.2}}
"""What was set for twenty minutes of two cores: of precision and recall at least, of others at most."""


def threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def set_and_met(data: str, row: dict[str, Any]) -> str:
    """Whether a row meets what was set for its data."""
    if data not in SET:
        return ""
    words = []
    for key, bound in SET[data].items():
        met = row[key] >= bound if key in ("precision", "recall") else row[key] <= bound
        words.append(f"{key.replace('_', ' ')} {'met' if met else '**missed**'}, {row[key]:.3g} against {bound:g}")
    return f"Targets: {'; '.join(words)}.\n\n"


def defaults(data: str, title: str) -> str:
    results = read(f"defaults_{data}")
    if not results["rows"]:
        return ""
    first = results["rows"][0]
    steps = " ".join(f"{v:.2f}" for v in first["kl_per_step_nats"])
    stages = ", ".join(f"{name} {nats:.1f}" for name, nats in first.get("kl_by_stage", [])) or "one"
    minded = "bound_is_exact" not in first  # an S-agent of reveals has no image in mind
    film = "Eight of them coming about, canvases" + (
        " and then what the S-agent had in mind, from the draft on:" if minded else ":"
    )
    guesses = f"\n![guesses](pictures/{data}-guesses.png)\n" if minded else ""
    return fill(
        "defaults of data", first=first, threads=threads(first["threads"]), film=film, guesses=guesses, steps=steps, stages=stages, title=title, data=data, minutes=first["seconds"] / 60,
        verdict=set_and_met(data, first), about=about(results, f"defaults --data {data}"),
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
                seeds=seeds(results["rows"]), remark=results.get("remark", "") and results["remark"] + " ",
                about=about(results, f"ablation --data {data}"))  # fmt: skip


def zoo() -> str:
    results = read("zoo")
    rows = [{**r, "megabytes": r["bytes"] / 1e6} for r in results["rows"]]
    return fill("zoo", rows, about=about(results, "zoo")) if rows else ""


WITHIN = 0.05
"""Share of -log p by which the bound of a maze may be above it."""


def maze() -> str:
    """A maze a row: the bound beside the exact value, PPO's, and how the goals are covered."""
    results = read("maze")
    if not results["rows"]:
        return ""
    digits = {"entropy_nats": 3, "exact_nats": 3, "bound_nats": 3, "ppo_bound_nats": 3, "total_variation": 3, "kl_data_to_reached_nats": 3,
              "processor_seconds": 0}  # fmt: skip
    rows, verdicts = [], []
    for name in dict.fromkeys(row["maze"] for row in results["rows"]):
        mine = [row for row in results["rows"] if row["maze"] == name]
        numbers = {key: cell((row[key] for row in mine), count) for key, count in digits.items()}
        shares = {
            key: f"{statistics.mean(row[key] for row in mine):.1%}"
            for key in ("share_above", "ppo_share_above", "goals_reached", "samples_on_goals")
        }
        rows.append({**mine[0], **numbers, **shares})
        worst = max(row["share_above"] for row in mine)
        verdicts.append(f"{name} {'met' if worst <= WITHIN else '**missed**'} (at most {worst:.1%})")
    return fill(
        "maze",
        rows,
        first=rows[0],
        verdict="; ".join(verdicts),
        within=WITHIN,
        seeds=seeds(results["rows"]),
        about=about(results, "maze"),
    )


def likelihood(name: str, title: str) -> str:
    results = read(f"likelihood_{name}")
    rows: Rows = results["rows"]
    if not rows:
        return ""
    data = name.removesuffix("_cuda")
    if "reveal" in rows[0]:
        return reveals(name, title, results)
    unit, key, digits = ("bits/dim", "bits_per_dim", 3) if data == "cifar10" else ("nats an image", "nll_bound_nats", 2)
    return fill(
        "likelihood of data", title=title, unit=unit, first=rows[0], seconds=results["seconds"],
        bounds=by_horizon(rows, key, digits), published=PUBLISHED[name],
        about=about(results, f"likelihood --data {data} --device cuda"),
    )  # fmt: skip


def reveals(data: str, title: str, results: dict[str, Any]) -> str:
    """What was asked for, and what came out."""
    rows = []
    for row in results["rows"]:
        asked = REVEALS[data][row["reveal"]]
        value = row["nll_bound_nats" if asked.unit == "nats" else "bits_per_dim"]
        met = "met" if value <= asked.target else "**missed**"
        rows.append({
            **row, "value": f"{value:.2f} nats" if asked.unit == "nats" else f"{value:.3f} bits/dim", "target": f"{asked.target:g}, {met}",
            "weights": row["parameters"]["generative"], "train": row["operations"]["train"] / 1e6,
        })  # fmt: skip
    return fill(
        "likelihood of reveals", rows, title=title, first=rows[0], seconds=results["seconds"], how=threads(results["threads"]), published=PUBLISHED[data],
        remark=results.get("remark", "") and results["remark"] + " ", about=about(results, f"likelihood --data {data}"),
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
        fill("page"), demo(), of_data("defaults", PICTURED, defaults), folders(), compare, of_data("ablation", NAMES, ablation), curve, of_data("order", NAMES, pages_of_orders.order), zoo(), of_data("strokes", PICTURED, pages_of_strokes.strokes), of_data("learners", PICTURED, pages_of_strokes.learners), of_data("shaded", NAMES, pages_of_strokes.shaded), pages_of_strokes.vectorize(), pages_of_strokes.strokes_speed(), maze(), of_data("likelihood", LIKELIHOODS, likelihood),
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
            threads = {1: "one thread", 2: "two threads"}.get(row["threads"], f"{row['threads']} threads")
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
