"""Finding the images in a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from goalgen.data.images import EXTENSIONS


def walk(folder: Path) -> Iterator[Path]:
    """Yield the files in ``folder`` and below, hidden ones left out, sorted by relative path.

    Links to folders are followed, each folder once.
    """
    found: list[Path] = []
    seen: set[str] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        # __MACOSX holds the resource forks ("._a.png") that a Mac adds to a zip file: no images, whatever their names.
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f != "__MACOSX")
        found += [Path(root, f) for f in files if not f.startswith(".")]
    yield from sorted(found, key=lambda p: p.relative_to(folder).as_posix())


def find_images(folder: Path) -> list[Path]:
    """Return the image files (see ``EXTENSIONS``) in ``folder`` and below, in the order of :func:`walk`."""
    return [p for p in walk(folder) if p.suffix.lower() in EXTENSIONS]
