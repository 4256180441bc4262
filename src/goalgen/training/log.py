"""log.jsonl: one JSON object a record, written through Accelerate's trackers."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import torch
from accelerate.tracking import GeneralTracker, on_main_process
from torch import Tensor

from goalgen.bound import bits_per_dim
from goalgen.learning import Learned
from goalgen.storage import append_text, one_line, write_text


class JSONLTracker(GeneralTracker):
    """Appends each record to a file, flushed at once."""

    name = "jsonl"
    requires_logging_directory = False

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    @property
    def tracker(self) -> Path:
        return self.path

    @on_main_process
    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """The configuration is in config.json already."""

    @on_main_process
    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        append_text(self.path, json.dumps({"step": step, **values}) + "\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """Records of a log, oldest first; a last line cut short by a crash is left out."""
    records = []
    with one_line():
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for line in text.splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            record = json.loads(line)
            if isinstance(record, dict):
                records.append(record)
    return records


def cut_log(path: Path, step: int) -> None:
    """Drop the records after ``step``: a resumed run writes them again."""
    if path.is_file():
        kept = [r for r in read_log(path) if r.get("step", 0) <= step]
        write_text(path, "".join(json.dumps(r) + "\n" for r in kept))


def bits_of(learned: Learned, shape: tuple[int, int, int]) -> float:
    """The bound of a step in bits/dim."""
    return float(bits_per_dim(learned.bound.total.detach().mean(), shape))


def measured(learned: Learned) -> tuple[list[str], Tensor]:
    """What a step says for the log: names, and (values,) means over the batch."""
    terms = learned.bound
    names = ["reconstruction_nats", *(f"kl_nats_{h}" for h in range(len(terms.kl))), *learned.info]
    extra = [value.detach().reshape(1) for value in learned.info.values()]
    return names, torch.cat([terms.reconstruction.mean().reshape(1), terms.kl.mean(1), *extra])
