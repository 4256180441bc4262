"""Sections of strokes, for docs/benchmarks.md."""

from __future__ import annotations

import statistics
from typing import Any

from report import Rows, about, cell, fill, read, seeds, table

TARGETS = {
    "squared error": -0.016,
    "labels kept": 0.96,
    "samples of which the judge is sure": 0.8,
    "entropy of classes": 2.25,
}
"""At least, of twenty minutes on MNIST; of an error, less nothing."""

SHORT = 300
"""Seconds of a demonstration."""


def lines_of(rows: Rows) -> Rows:
    """Numbers of painters by how they learned, over their seeds."""
    lines = []
    for variant in dict.fromkeys(row["variant"] for row in rows):
        mine = [row for row in rows if row["variant"] == variant]
        lines.append({
            "variant": variant, "processes": mine[0].get("processes", 1), "steps": cell((r["steps"] for r in mine), 0), "bound": cell((r["nll_bound_nats"] for r in mine), 1),
            "error": cell((r["paintings"]["squared_error"] for r in mine), 4), "kept": cell((r["paintings"]["labels_kept"] for r in mine), 3),
            "sure": cell((r["samples"]["confident"] for r in mine), 3), "entropy": cell((r["samples"]["class_entropy_nats"] for r in mine), 2),
            "distance": cell((r["quality"]["frechet_distance"] for r in mine), 2), "nearest": cell((r["quality"]["nearest_train_distance"] for r in mine), 3),
        })  # fmt: skip
    return lines


def verdict_of(row: dict[str, Any]) -> str:
    """Whether a painter of MNIST meets what was set."""
    paintings, samples = row["paintings"], row["samples"]
    found = (-paintings["squared_error"], paintings["labels_kept"], samples["confident"], samples["class_entropy_nats"])
    return f"{row['variant']}: " + "; ".join(
        f"{what} {'met' if value >= least else '**missed**'}, {abs(value):.3g} against {abs(least):g}"
        for value, (what, least) in zip(found, TARGETS.items(), strict=True)
    )


def verdicts(rows: Rows) -> str:
    """... of all painters, by how they learned."""
    each = "".join(f"\n- {verdict_of(row)}" for row in rows if row["seed"] == 0)
    return f"Targets, set for twenty minutes of two cores:\n{each}"


def wide(rows: Rows) -> str:
    """What the painters were told that are content with less closeness."""
    commands = [row["command"] for row in rows if row["variant"] == "wide"]
    return f" Wide, content with less closeness: `{commands[0]}`." if commands else ""


def strokes(data: str, title: str) -> str:
    """What painters keep of their goals, what is drawn without any, and the curve by strokes."""
    results = read(f"strokes_{data}")
    if not results["rows"]:
        return ""
    short = read(f"strokes_{data}_{SHORT}s")["rows"]
    rows = [{**line, "seconds": SHORT} for line in lines_of(short)]
    rows += [{**line, "seconds": results["seconds"]} for line in lines_of(results["rows"])]
    first = next((row for row in results["rows"] if "greedy" in row), results["rows"][0])
    ways = {"painted": first["after"], "greedy search": first.get("greedy", {}), "potrace": first.get("potrace", {})}
    counts = list(dict.fromkeys(n for way in ways.values() for n in way))
    curve = table(
        ["strokes", *counts],
        [[way, *(f"{at[n]['squared_error']:.4f}, {at[n]['labels_kept']:.3f}" if n in at else "" for n in counts)]
         for way, at in ways.items() if at],
    )  # fmt: skip
    return fill("strokes of data", rows, title=title, data=data, first=first, curve=curve, verdict=verdicts(results["rows"]) if data == "mnist" else "No targets were set.",
                wide=wide(results["rows"]), seeds=seeds(results["rows"]), about=about(results, f"strokes --data {data}"))  # fmt: skip


def learners(data: str, title: str) -> str:
    """What each part of the learner is worth."""
    results = read(f"learners_{data}")
    if not results["rows"]:
        return ""
    lines = {line["variant"]: line for line in lines_of(results["rows"])}
    pays = ""
    if {"improved", "greedy"} <= lines.keys():
        ahead, greedy = lines["improved"], lines["greedy"]
        pays = (f"What learning V is worth at equal seconds: squared error {ahead['error']} with it, {greedy['error']} without; labels kept "
                f"{ahead['kept']} and {greedy['kept']}; bound {ahead['bound']} and {greedy['bound']} nats.\n\n")  # fmt: skip
    return fill("learners of data", lines.values(), title=title, pays=pays, seconds=results["seconds"], threads=results["threads"],
                seeds=seeds(results["rows"]), about=about(results, f"learners --data {data}"))  # fmt: skip


def shaded(data: str, title: str) -> str:
    """Strokes, then a bridge: what both cost and reach."""
    results = read(f"shaded_{data}")
    if not results["rows"]:
        return ""
    rows = results["rows"]
    return fill("shaded of data", rows, title=title, data=data, first=rows[0], seconds=results["seconds"], threads=results["threads"],
                seeds=seeds(rows), about=about(results, f"shaded --data {data}"))  # fmt: skip


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


def vectorize() -> str:
    """Pictures of our own, painted: errors, bytes and strokes, and who came nearest."""
    results = read("vectorize")
    rows, greedy = (
        [],
        {row["way"]: row["each"] for row in results["rows"]}.get("greedy search, as many strokes as once", {}),
    )
    for row in results["rows"]:
        each = row["each"]
        mean = {
            key: statistics.mean(one[key] for one in each.values())
            for key in ("small", "own_size", "bytes", "strokes", "blank")
        }
        nearer = sum(one["own_size"] < greedy[name]["own_size"] for name, one in each.items() if name in greedy)
        told = f" (`{row['options']}`)" if row["options"] else ""
        rows.append(
            {
                **mean,
                "way": row["way"] + told,
                "nearer": f"{nearer} of {len(each)}" if greedy and each is not greedy else "",
            }
        )
    if not rows:
        return ""
    return fill("vectorize", rows, first=results["rows"][0], blank=rows[0]["blank"], about=about(results, "vectorize"))
