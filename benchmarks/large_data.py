"""Data larger than the memory: 500,000 images of 32x32 in colour (1.5 GB decoded) under a limit of 1 GB, and how fast.

    python benchmarks/large_data.py make     # the images, as PNGs in ten parquet files
    python benchmarks/large_data.py limit    # goalgen train on them, whose memory the system limits
    python benchmarks/large_data.py speed    # images a second, mapped beside in memory
    python benchmarks/large_data.py page     # the table in docs/scale.md

writes results/large_data.json. The limit is RLIMIT_DATA of the process (`ulimit -d`): all memory that it can write to, heap and
anonymous mappings, whether touched or not; the kernel refuses what is beyond. Pages of the mapped file are not among it: they
are the page cache's, which gives them up when memory is needed. What is resident is read from /proc twenty times a second.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from report import ROOT, machine, read, write

from goalgen import configure, load_data, train
from goalgen.config import DataConfig
from goalgen.data import ImageSet, Splits
from goalgen.training.log import read_log

COUNT, SHARDS, SIDE = 500_000, 10, 32
BEGIN, END = "<!-- large: written by benchmarks/large_data.py -->\n", "\n<!-- /large -->"
LIMIT = 10**9
"""Bytes."""
MODEL = {
    "environment": "latent",
    "horizon": 1,
    "network": "mlp",
    "width": 64,
    "depth": 1,
    "head_width": 32,
    "batch_size": 64,
}
"""A small one, so that there is little for the reading of images to hide behind; most of a step is the likelihood of 3,072 pixels."""
ROUNDS, STEPS = 20, 24


def drawing(order: np.random.Generator) -> bytes:
    """The PNG of two rectangles on a gradient."""
    down, across = np.mgrid[0:SIDE, 0:SIDE]
    base, slope = order.integers(0, 120, 3), order.integers(0, 4, (2, 3))
    pixels = base + down[..., None] * slope[0] + across[..., None] * slope[1]
    for _ in range(2):
        top, left = order.integers(0, SIDE - 8, 2)
        high, wide = order.integers(4, 16, 2)
        pixels[top : top + high, left : left + wide] = order.integers(0, 256, 3)
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def make(folder: Path, count: int) -> None:
    """Write the images, file by file; those that are there stay."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(SHARDS):
        path = folder / f"images-{shard}.parquet"
        if path.exists():
            continue
        order, each = np.random.default_rng(shard), count // SHARDS
        with pq.ParquetWriter(path.with_suffix(".tmp"), pa.schema([("image", pa.binary())])) as writer:
            for _ in range(0, each, 1000):
                writer.write_table(pa.table({"image": [drawing(order) for _ in range(1000)]}))
        path.with_suffix(".tmp").rename(path)
        print(path, flush=True)


def status(process: int) -> dict[str, int]:
    """Bytes of a process by the names of /proc/PID/status."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {
        name: int(fields[name].split()[0]) * 1024
        for name in ("RssAnon", "RssFile", "VmHWM", "VmData")
        if name in fields
    }


def watched(arguments: list[str], limit: int) -> dict[str, Any]:
    """Run goalgen under a limit of its memory, and watch that."""
    command = [sys.executable, "-m", "goalgen", *arguments]

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    begun, seen = time.perf_counter(), []
    with subprocess.Popen(
        command, preexec_fn=limited, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while process.poll() is None:
            if now := status(process.pid):
                seen.append((time.perf_counter() - begun, now))
            time.sleep(0.05)
        assert process.stdout is not None
        assert process.stderr is not None
        out, err = process.stdout.read(), process.stderr.read()
    print(out, err, sep="", flush=True)
    anonymous = [now["RssAnon"] for _, now in seen if "RssAnon" in now]
    return {
        "status": process.returncode,
        "seconds": time.perf_counter() - begun,
        "said": [line for line in (out or err).splitlines() if line][-1],
        "peak_anonymous": max(anonymous),
        "peak_resident": max(now.get("VmHWM", 0) for _, now in seen),
        "peak_data": max(now.get("VmData", 0) for _, now in seen),
        "anonymous": [[round(at, 1), now["RssAnon"]] for at, now in seen if "RssAnon" in now],
    }


def quarter(values: list[list[float]], first: float, last: float) -> int:
    """The median of what was seen between two shares of the time."""
    end = values[-1][0]
    return int(statistics.median(value for at, value in values if first * end <= at <= last * end))


def options(folder: Path, out: Path, **settings: Any) -> list[str]:
    words = [
        "train",
        "--data",
        str(folder),
        "--out",
        str(out),
        "--quiet",
        "--eval-every",
        "100000",
        "--checkpoint-seconds",
        "100000",
    ]
    for name, value in {**MODEL, **settings}.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return words


def measure_limit(folder: Path, work: Path, steps: int) -> dict[str, Any]:
    """Training under the limit: the first time, when images are decoded; again; and with images in memory, which fails."""
    shutil.rmtree(work, ignore_errors=True)
    rows = {}
    for name, settings in (
        ("decodes", {"max_steps": 20}),
        ("trains", {"max_steps": steps}),
        ("memory", {"data_cache": "memory"}),
    ):
        row = watched(options(folder, work / name, **settings), LIMIT)
        seen = row.pop("anonymous")
        if name == "trains":
            row |= {
                "anonymous_second_quarter": quarter(seen, 0.25, 0.5),
                "anonymous_last_quarter": quarter(seen, 0.75, 1.0),
            }
            log = read_log(work / name / "log.jsonl")
            row["images_per_second"] = statistics.median(
                r["images_per_second"] for r in log[1:] if "images_per_second" in r
            )
        rows[name] = row
    return rows


def in_memory(data: Splits) -> Splits:
    """The same images, copied out of the file."""

    def copied(part: ImageSet) -> ImageSet:
        return dataclasses.replace(part, images=part.images.clone())

    parts = {role: copied(getattr(data, role)) for role in ("train", "validation", "test")}
    return dataclasses.replace(data, **parts)


def measure_speed(folder: Path, work: Path) -> dict[str, Any]:
    """Images a second of training, mapped and in memory by turns: the median of the rounds, and of the ratio of each."""
    shutil.rmtree(work, ignore_errors=True)
    mapped = load_data(DataConfig(data=str(folder), data_cache="disk"))
    mapped = dataclasses.replace(mapped, validation=mapped.validation.subset(range(64)))  # not what is timed
    data = {"mapped": mapped, "memory": in_memory(mapped)}
    rates: dict[str, list[float]] = {name: [] for name in data}
    for turn in range(ROUNDS + 1):
        for name in list(data)[:: 1 if turn % 2 else -1]:
            config = configure(out=work / f"{name}-{turn}", seed=turn, quiet=True, max_steps=STEPS, log_every=STEPS // 6,
                               eval_every=10**6, **MODEL)  # fmt: skip
            log = read_log(train(config, data[name]).folder / "log.jsonl")
            rate = [r["images_per_second"] for r in log if "images_per_second" in r]
            if turn:  # the first also warms up, and reads the file into the page cache
                rates[name].append(statistics.median(rate[1:]))
            print(turn, name, [round(r) for r in rate], flush=True)
    medians = {name: statistics.median(found) for name, found in rates.items()}
    # Rounds side by side: other work on the machine slows both.
    ratios = [a / b for a, b in zip(rates["mapped"], rates["memory"], strict=True)]
    return {
        "images_per_second": medians,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "rates": rates,
    }


def table(found: dict[str, Any]) -> str:
    """The lines of docs/scale.md."""
    runs, speed = found["limit"], found["speed"]

    def mega(count: float) -> str:
        return f"{count / 1e6:,.0f} MB"

    lines = [
        "| under the limit | private memory resident, at most | ... that the limit counts | ended |",
        "|---|---|---|---|",
    ]
    titles = {
        "decodes": "decodes, and trains for 20 steps",
        "trains": "trains for 300 steps",
        "memory": "`--data-cache memory`",
    }
    for name, title in titles.items():
        row = runs[name]
        ended = f"after {row['seconds']:.0f} s" if row["status"] == 0 else f"`{row['said'].partition('; ')[0]}`"
        lines.append(f"| {title} | {mega(row['peak_anonymous'])} | {mega(row['peak_data'])} | {ended} |")
    rates, ratios = speed["images_per_second"], speed["ratios"]
    trains, (lower, _, upper) = runs["trains"], statistics.quantiles(ratios)
    lines += [
        "",
        f"While it trains, private memory is {mega(trains['anonymous_second_quarter'])} in the second quarter of the time and "
        f"{mega(trains['anonymous_last_quarter'])} in the last. With the mapped pages that the cache happened to keep, {mega(trains['peak_resident'])} "
        "were resident at most.",
        "",
        f"Images a second of training, {len(ratios)} rounds by turns in one process: {rates['mapped']:,.1f} mapped, {rates['memory']:,.1f} in memory, "
        f"the median of the rounds' ratios **{speed['ratio']:.3f}** (quarters of them: {lower:.3f} to {upper:.3f}; other work ran on the other core). "
        "The file was in the page cache.",
        "",
        f"Machine: {found['machine']['processor']}, one core used; torch {found['machine']['versions']['torch']}, Pillow "
        f"{found['machine']['versions']['pillow']}.",
    ]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", "limit", "speed", "page"])
    parser.add_argument("--data", type=Path, default=Path("runs/large-data"), help="folder of the images")
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--steps", type=int, default=300, help="of the run whose memory is watched")
    given = parser.parse_args()
    folder, work = given.data / f"images-{given.count}", given.data / "runs"
    os.environ.setdefault("GOALGEN_CACHE", str((given.data / "cache").absolute()))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if given.what == "make":
        make(folder, given.count)
        return
    if given.what == "page":
        page = ROOT / "docs" / "scale.md"
        before, rest = page.read_text(encoding="utf-8").split(BEGIN)
        page.write_text(before + BEGIN + table(read("large_data")) + END + rest.split(END)[1], encoding="utf-8")
        return
    found = read("large_data")
    found = {k: v for k, v in found.items() if k != "rows"} | {
        "machine": machine(["pillow", "pyarrow"]), "images": given.count, "model": MODEL, "limit_bytes": LIMIT,
        "bytes_of_parquet": sum(p.stat().st_size for p in folder.glob("*.parquet")),
        "bytes_decoded": given.count * 3 * SIDE * SIDE,
    }  # fmt: skip
    found[given.what] = (
        measure_limit(folder, work, given.steps) if given.what == "limit" else measure_speed(folder, work)
    )
    write("large_data", found)
    print(found[given.what])


if __name__ == "__main__":
    main()
