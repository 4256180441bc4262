"""Write docs/benchmarks.md, and the table in README.md, from the files in results/.

python benchmarks/report.py           # write
python benchmarks/report.py --check   # fail if a page is not what the results say
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from pathlib import Path
from typing import Any

from common import read
from report_peers import compare, draw_comparison, likelihood, speed, time_spent, zoo
from report_steps import NAMES, cost, curve, draw_curves, large, table

ROOT = Path(__file__).parent.parent
TERMS = [
    ("bits_per_dim", "bound, bits/dim", 3), ("nll_bound_nats", "bound, nats", 2),
    ("reconstruction_nats", "reconstruction, nats", 2), ("kl_nats", "KL, nats", 2),
]  # fmt: skip
QUALITY = [
    ("frechet_distance", "frechet_reference", "Frechet distance"),
    ("kernel_distance", "kernel_reference", "kernel distance"),
    ("precision", "precision_reference", "precision"), ("recall", "recall_reference", "recall"),
    ("density", "density_reference", "density"), ("coverage", "coverage_reference", "coverage"),
    ("nearest_train_distance", "nearest_train_reference", "nearest training image (RMS)"),
]  # fmt: skip


def spread(values: list[float], digits: int = 3) -> str:
    """Mean and sample standard deviation."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def head_of(results: dict[str, Any]) -> str:
    about = results["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    return f"Machine: {about['processor']}, Python {about['python']}, {versions}."


def demo() -> str:
    results = read("demo")
    rows = results["rows"]
    if not rows:
        return ""
    body = [
        [str(r["seed"]), f"{r['bits_per_dim']:.3f}", f"{r['iw_bound_nats']:.2f}", f"{r['nll_bound_nats']:.2f}",
         f"{r['frechet_distance']:.2f}", f"{r['frechet_reference']:.2f}",
         f"{r['frechet_distance'] / r['frechet_reference']:.2f}", f"{r['precision']:.2f}", f"{r['recall']:.2f}",
         f"{r['nearest_train_distance']:.3f} ({r['nearest_train_reference']:.3f})", str(r["steps"])]
        for r in rows
    ]  # fmt: skip
    head = [
        "seed", "bits/dim", f"nats, K={rows[0]['iw_k']}", "nats, bound", "Frechet", "its reference", "ratio", "precision",
        "recall", "nearest training image (test images)", "steps",
    ]  # fmt: skip
    return f"""## The demo: digits in two minutes

`goalgen demo --seed SEED`, {rows[0]["threads"]} threads, {rows[0]["seconds"]:.0f} s of training; {rows[0]["num_test"]}
held-out digits, {rows[0]["num_samples"]} samples, features: {rows[0]["features"]}. Target: at most 1.88 bits/dim and a
Frechet distance at most twice its reference.

{table(head, body)}

![samples](pictures/digits-grid.png)

{head_of(results)} Script: `benchmarks/demo.py`.
"""


def fashion() -> str:
    results = read("fashion")
    if not results["rows"]:
        return ""
    row = results["rows"][0]
    terms = [[label, f"{row[key]:.{digits}f}", ""] for key, label, digits in TERMS]
    terms.append([f"tighter bound, K={row['iw_k']}, first {row['iw_images']} test images, nats",
                  f"{row['iw_bound_nats']:.2f}", f"bound on the same images {row['nll_bound_nats_on_iw_images']:.2f}"])  # fmt: skip
    quality = [[label, f"{row[key]:.3f}", f"{row[reference]:.3f}"] for key, reference, label in QUALITY]
    steps = " ".join(f"{v:.2f}" for v in row["kl_per_step_nats"])
    return f"""## Fashion-MNIST: twenty minutes on two cores

    {row["command"]}

{row["steps"]} steps in {row["seconds"]:.0f} s; {row["num_test"]} test images, {row["num_samples"]} samples,
{row["network_evaluations"]} network evaluations an image, features: {row["features"]}.

{table(["", "model", "test images"], terms + quality)}

KL by step, nats: {steps}

![samples](pictures/fashion-samples.png)

![trajectories](pictures/fashion-trajectories.png)

{head_of(results)} Script: `benchmarks/fashion.py`.
"""


def gc_agents() -> str:
    parts = []
    for data, title in NAMES.items():
        results = read(f"gc_agents_{data}")
        rows = results["rows"]
        if not rows:
            continue
        body = []
        for agent in ("greedy", "posterior", "value"):
            mine = [r for r in rows if r["gc_agent"] == agent]
            if mine:
                keys = [
                    ("bits_per_dim", 3),
                    ("iw_bound_nats", 2),
                    ("kl_nats", 2),
                    ("frechet_distance", 2),
                    ("recall", 3),
                ]
                values = [spread([r[key] for r in mine], digits) for key, digits in keys]
                body.append([agent, *values, spread([r["steps"] for r in mine], 0), str(len(mine))])
        reference = rows[0]
        head = [
            "GC-agent", "bits/dim", f"nats, K={reference['iw_k']}", "KL, nats", "Frechet distance", "recall", "steps", "seeds",
        ]  # fmt: skip
        parts.append(f"""### {title}

{results["seconds"]:.0f} s each on one thread, two runs at a time; {reference["num_test"]} test images,
{reference["num_samples"]} samples; Frechet reference {reference["frechet_reference"]:.2f}, recall reference
{reference["recall_reference"]:.3f}; features: {reference["features"]}. Mean ± standard deviation over seeds.

{table(head, body)}

{head_of(results)} Script: `benchmarks/gc_agents.py {data} --seconds {results["seconds"]:.0f}`.
""")
    intro = """## Greedy, posterior, value: the same seconds of training

A batch of the value agent holds four episodes of each goal, and its network is asked at every candidate: in the same time it
takes fewer steps than the others.
"""
    return intro + "\n" + "\n".join(parts) if parts else ""


def value_gap() -> str:
    parts = []
    for data, title in NAMES.items():
        results = read(f"value_gap_{data}")
        rows = results["rows"]
        if not rows:
            continue
        body = [
            [r["run"], f"{r['posterior_nats']:.3f}", f"{r['value_nats']:.3f}",
             f"{r['gain_nats']:.3f} ± {r['gain_standard_error']:.3f}", f"{r['posterior_iw_nats']:.3f}",
             f"{r['value_iw_nats']:.3f}",
             f"{100 * r['gain_nats'] / (r['posterior_nats'] - min(r['posterior_iw_nats'], r['value_iw_nats'])):.0f}%",
             str(r["images"])]
            for r in rows
        ]  # fmt: skip
        k = rows[0]["k"]
        head = [
            "S-agent of run", "posterior", "value", "gain (paired, ± standard error)", f"posterior, K={k}", f"value, K={k}",
            "share of the known gap", "test images",
        ]  # fmt: skip
        parts.append(f"""### {title}

{table(head, body)}

{results["seconds"]:.0f} s of learning for either side, {results["episodes"]} episodes an image. {head_of(results)} Script:
`benchmarks/value_gap.py --name {data}`.
""")
    if not parts:
        return ""
    intro = """## What reinforcement learning adds at a fixed S-agent

The S-agent, likelihood and potentials of a trained run are held fixed. The posterior agent's temperatures, and the value
agent's V, are then learned for the same time on the training images, and both bounds are measured on the same test
images (nats an image, lower is tighter). The importance-weighted bounds show how much of either gap is known to exist.
"""
    return intro + "\n" + "\n".join(parts)


def page() -> str:
    sections = [
        demo(),
        compare(),
        curve(),
        fashion(),
        zoo(),
        likelihood(),
        speed(),
        time_spent(),
        gc_agents(),
        value_gap(),
        cost(),
        large(),
    ]
    sections = [s for s in sections if s]
    intro = """# Benchmarks

Written by `benchmarks/report.py` from the files in `benchmarks/results`; see `benchmarks/README.md` for the scripts.
Bounds are on held-out images that chose nothing in training. Frechet and the other distances are in the named features,
never Inception unless it says so, and every one stands beside the same number for held-out images.
"""
    return "\n".join([intro, *sections])


def readme(text: str) -> str:
    """README.md with its table of results replaced."""
    rows = []
    results = read("demo")["rows"]
    if results:
        rows.append(["digits, 120 s (`make demo`)", spread([r["bits_per_dim"] for r in results]),
                     spread([r["frechet_distance"] for r in results], 2), f"{results[0]['frechet_reference']:.2f}"])  # fmt: skip
    for row in read("fashion")["rows"]:
        rows.append([f"Fashion-MNIST, {row['seconds'] / 60:.0f} min", f"{row['bits_per_dim']:.3f}",
                     f"{row['frechet_distance']:.2f}", f"{row['frechet_reference']:.2f}"])  # fmt: skip
    head = ["two CPU cores, held-out images", "bound, bits/dim", "Frechet distance", "of held-out images"]
    note = "Frechet distances in the features of a small classifier, not Inception."
    block = f"\n{table(head, rows)}\n\n{note}\n" if rows else "\n"
    return re.sub(r"(<!-- results: .*? -->).*?(<!-- /results -->)", rf"\1{block}\2", text, flags=re.S)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    pages = {
        ROOT / "docs" / "benchmarks.md": page(),
        ROOT / "README.md": readme((ROOT / "README.md").read_text(encoding="utf-8")),
    }
    for path, text in pages.items():
        if check and (not path.exists() or path.read_text(encoding="utf-8") != text):
            sys.exit(f"{path.relative_to(ROOT)} is not what benchmarks/results say; run python benchmarks/report.py")
        if not check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
    if not check:
        draw_curves()
        draw_comparison()


if __name__ == "__main__":
    main()
