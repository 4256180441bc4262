"""Paths that are not there: where was looked, and what is near, at once; and which names are those of the hub."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".parquet", ".json", ".safetensors")
"""Endings of files: a name that ends so is none of the hub's."""


def settled(name: str, words: Sequence[str] = ()) -> str:
    """``name`` as an absolute path, if there is such a file or folder; otherwise, and if it is one of ``words``, as it is.

    A run keeps paths in this way, so that it means the same files wherever it is used from.
    """
    if name.partition(":")[0] in words or not name.strip():
        return name
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() else name


def is_hub_name(name: str) -> bool:
    """Whether a name that is no path here can be one of the hub's: owner/name, where no folder here has something like it."""
    looks_so = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) is not None
    return looks_so and not name.lower().endswith(SUFFIXES) and not _siblings(Path(name))


def looked(name: str, words: Sequence[str] = ()) -> str:
    """Where a path that is not there was looked for, and what is near, for messages: "(looked in /data); did you mean ...?"

    Args:
        words: that were meant as well, such as "digits".
    """
    path = Path(name).expanduser()
    parent = next((p for p in path.absolute().parents if p.is_dir()), Path("/"))
    near = [*difflib.get_close_matches(name, words, n=1), *_siblings(path)]
    return f"(looked in {parent})" + (f"; did you mean {' or '.join(near[:3])}?" if near else "")


def _siblings(path: Path) -> list[str]:
    """Paths that exist and are called nearly so, as they would be typed."""
    known = next((p for p in path.parents if p.is_dir()), None)
    if known is None:
        return []
    first, *rest = path.relative_to(known).parts
    try:
        names = [n for n in os.listdir(known) if not n.startswith(".")]
    except OSError:
        return []
    folded = {n.casefold(): n for n in names}
    near = [folded[n] for n in difflib.get_close_matches(first.casefold(), list(folded), n=3)]
    whole = [known.joinpath(n, *rest) for n in near]
    return [str(p) for p in whole if p.exists()] or [str(known / n) for n in near]
