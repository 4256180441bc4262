"""Finding the images in a folder, and saying which of its files are left unread."""

from __future__ import annotations

import os
import stat
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from goalgen.data.formats import EXTENSIONS
from goalgen.errors import GoalgenError

_COMPANIONS = frozenset(
    [".txt", ".md", ".rst", ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".toml", ".html", ".htm", ".css", ".js", ".log", ".ini", ".db", ".cfg", ".py", ".ipynb", ".sh", ".bib", ".license", ".md5", ".sha1", ".sha256", ".url", ".torrent"]
)  # fmt: skip
"""Names of files that tell of images, and are none: nobody misses them."""
_WRITINGS = ("readme", "license", "licence", "copying", "makefile", "notice", "authors", "thumbs", "desktop")


@dataclass
class Listing:
    """What lies in a folder and below it, hidden files and folders left out."""

    files: list[Path] = field(default_factory=list)
    """files, sorted by relative path"""
    odd: list[Path] = field(default_factory=list)
    """pipes, devices, links that lead nowhere, folders that may not be read"""
    repeated: list[Path] = field(default_factory=list)
    """links to folders that are read already"""


def list_files(folder: Path) -> Listing:
    """Return what lies in ``folder`` and below.

    Links to folders are followed, each folder once: where it lies, if that is below ``folder``.

    Raises:
        GoalgenError: ``folder`` itself cannot be read.
    """
    found = Listing()
    seen: set[str] = set()
    links = [folder]
    while links:  # links of a round are followed when all that lies in its folders has been seen
        further: list[Path] = []
        for link in links:
            if link is not folder and os.path.realpath(link) in seen:
                found.repeated.append(link)
            else:
                _walk(link, found, seen, further)
        links = further
    if folder in found.odd and folder.is_dir():
        raise GoalgenError(f"{folder} cannot be read; you need the right to read and enter it")
    found.files.sort(key=lambda p: p.relative_to(folder).as_posix())
    return found


def _walk(folder: Path, found: Listing, seen: set[str], links: list[Path]) -> None:
    def unreadable(error: OSError) -> None:
        found.odd.append(Path(error.filename or folder))

    for root, folders, files in os.walk(folder, onerror=unreadable):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        # __MACOSX holds the resource forks ("._a.png") that a Mac adds to a zip file: no images, whatever their names.
        visible = sorted(f for f in folders if not f.startswith(".") and f != "__MACOSX")
        links += [Path(root, f) for f in visible if Path(root, f).is_symlink()]
        folders[:] = [f for f in visible if not Path(root, f).is_symlink()]
        for name in files:
            if not name.startswith("."):
                path = Path(root, name)
                (found.files if _is_file(path) else found.odd).append(path)


def _is_file(path: Path) -> bool:
    """Whether there is a file that can be read to its end."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def find_images(folder: Path) -> list[Path]:
    """Return the image files (see ``EXTENSIONS``) in ``folder`` and below, sorted by relative path.

    Warns:
        UserWarning: other files lie there that one might take for images; they are counted and named.
    """
    found = list_files(folder)
    images = [p for p in found.files if p.suffix.lower() in EXTENSIONS]
    say_unread(folder, found, images)
    return images


def say_unread(folder: Path, found: Listing, read: Iterable[Path]) -> None:
    """Warn of what lies in ``folder``, is not among the files ``read``, and is no mere companion of images."""
    taken = set(read)
    unread = [p for p in found.files if p not in taken and not _is_companion(p)]
    parts = [_counted(unread)] if unread else []
    if found.odd:
        parts.append(
            f"{len(found.odd):,} that cannot be read as a file is (pipes, devices, lost links), such as {found.odd[0]}"
        )
    if found.repeated:
        parts.append(f"{len(found.repeated):,} linked to folders that are read already, such as {found.repeated[0]}")
    if parts:
        warnings.warn(f"{folder}: not read: {'; '.join(parts)}", stacklevel=3)


def skipped(corrupt: dict[str, str]) -> str:
    """One line on images that could not be read, by their names, and why the first could not."""
    count, first = len(corrupt), ", ".join([*corrupt][:5])
    named = f"skipped {count} unreadable image{'s' if count > 1 else ''}: {first}{', ...' if count > 5 else ''}"
    name, reason = next(iter(corrupt.items()))
    reason = reason.removeprefix(f"{name} ") if reason.startswith(f"{name} ") else f"says: {reason}"
    return f"{named} (the first {reason})"


def _is_companion(path: Path) -> bool:
    return path.suffix.lower() in _COMPANIONS or path.name.lower().startswith(_WRITINGS)


def _counted(paths: list[Path]) -> str:
    """Files by their extensions, the most frequent first, and one of them."""
    counts = Counter(p.suffix.lower() or "without extension" for p in paths)
    named = ", ".join(f"{count:,} {suffix}" for suffix, count in counts.most_common(6))
    more = ", ..." if len(counts) > 6 else ""
    hint = "; save those that are images as PNG or JPEG" if not any(s in EXTENSIONS for s in counts) else ""
    return f"{len(paths):,} file{'s' if len(paths) > 1 else ''} ({named}{more}), such as {paths[0]}{hint}"
