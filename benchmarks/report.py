"""Result files, and what sections of pages are put together from; their text is in page.md."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
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

MUON = ", Muon"
"""Ends the name of a peer that is trained with the optimiser that goalgen has."""

NAMES = {
    "digits": "Digits (8x8, 17 grey levels)", "mnist": "MNIST (28x28, 256 grey levels)",
    "fashion_mnist": "Fashion-MNIST (28x28, 256 grey levels)",
}  # fmt: skip
PICTURED = {name: NAMES[name] for name in ("fashion_mnist", "mnist")} | {
    "avatars": "Avatars (16x16, colour, CC0)", "cifar10": "CIFAR-10 (32x32, colour)",
}  # fmt: skip

# files --------------------------------------------------------------------------------------------------------------


def machine(packages: Iterable[str] = ()) -> dict[str, Any]:
    """Versions and hardware, for the head of a result file. Leaves with a message where a package is not there."""
    names, versions = ("goalgen", "torch", "numpy", "accelerate", *packages), {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            sys.exit(f"this needs the package {name}, which is not installed: pip install {name}")
    return {
        "versions": versions,
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
