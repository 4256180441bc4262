"""The section of learned orders, for docs/benchmarks.md."""

from __future__ import annotations

import statistics

from report import Rows, about, cell, fill, read, seeds


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
            f"bits/dim, {gain:+.3f} for the learned one.{reason(rows, horizon, best) if word == 'loses to' else ''}"
        )
    return "\n".join(lines)


def reason(rows: Rows, horizon: int, best: str) -> str:
    """What a learned order costs that the best fixed one does not."""
    mine, other = ([r for r in rows if (r["order"], r["horizon"]) == (name, horizon)] for name in ("learned", best))
    steps = [statistics.mean(r["trained_steps"] for r in part) for part in (mine, other)]
    kl, entropy = (statistics.mean(r[key] for r in mine) for key in ("order_kl_nats", "order_entropy_nats"))
    return (f" The orders' own divergence is but {kl:.2f} nats an image; in the same seconds it took {1 - steps[0] / steps[1]:.0%} fewer steps, as every step weighs "
            f"all groups that are left, and its network of values serves orders with an entropy of {entropy:.1f} nats.")  # fmt: skip
