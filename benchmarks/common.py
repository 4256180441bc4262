"""What the benchmark scripts share: result files, versions, and runs as separate processes."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
RUNS = Path("runs/benchmarks")


def data_folder(name: str) -> str:
    """``digits``, or the folder of a data set in $GOALGEN_DATA."""
    if name == "digits":
        return name
    root = os.environ.get("GOALGEN_DATA")
    if not root or not (Path(root) / name).is_dir():
        sys.exit(f"set GOALGEN_DATA to a folder that holds {name}/train.parquet and {name}/test.parquet")
    return str(Path(root) / name)


def fit_width(weights: Callable[[int], int], target: int, what: str, multiple: int = 2, tolerance: float = 0.05) -> int:
    """The width, a multiple of ``multiple``, at which ``weights(width)`` comes nearest to the target; exit where none does.

    Args:
        what: the network, for the message.
        tolerance: largest share by which the weights may be off.
    """
    low, high = 8, 4096
    while high - low > multiple:
        middle = (low + high) // (2 * multiple) * multiple
        low, high = (middle, high) if weights(middle) <= target else (low, middle)
    best = min((low, high), key=lambda width: abs(weights(width) - target))
    if abs(weights(best) / target - 1) > tolerance:
        sys.exit(f"{what}: {weights(best):,} weights are more than {tolerance:.0%} off {target:,}")
    return best


def machine() -> dict[str, Any]:
    """Versions and hardware, for the head of a result file."""
    packages = ("goalgen", "torch", "numpy", "accelerate")
    return {
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "python": platform.python_version(),
        "processor": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def read(name: str) -> dict[str, Any]:
    """A result file, or an empty one."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {"machine": machine(), "rows": []}


def write(name: str, values: dict[str, Any]) -> None:
    """Replace a result file."""
    RESULTS.mkdir(exist_ok=True)
    temporary = RESULTS / f".{name}.tmp"
    temporary.write_text(json.dumps(values, indent=1) + "\n")
    temporary.replace(RESULTS / f"{name}.json")


def goalgen(arguments: list[str], threads: int) -> subprocess.Popen[bytes]:
    """Start ``goalgen ARGUMENTS`` as a process of its own with so many threads."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    return subprocess.Popen([sys.executable, "-m", "goalgen", *arguments], env=environment)


def run(arguments: list[str], threads: int) -> None:
    """Run ``goalgen ARGUMENTS`` to its end; stop the benchmark if it fails."""
    if goalgen(arguments, threads).wait() != 0:
        sys.exit(f"goalgen {' '.join(arguments)} failed")


def public(command: list[str]) -> str:
    """A command as the report prints it: without the place of the data on this machine."""
    root = os.environ.get("GOALGEN_DATA", "")
    return " ".join(["goalgen", *command]).replace(root, "DATA") if root else " ".join(["goalgen", *command])
