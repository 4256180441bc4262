"""Names: of the files to restore, of what is made of them, and of their truths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from goalgen.errors import GoalgenError
from goalgen.metrics.fidelity import fidelity_library
from goalgen.restoration.reading import listed

SHEET = "contact-sheet.png"


@dataclass(frozen=True)
class Item:
    """One file to restore."""

    path: Path
    key: str
    """path in the folder that was given, without extension: by it the truth is found"""
    name: str
    """what its restorations are called, before ".png", ".2.png", ".mean.png" and so on"""

    def names(self, num: int, true: bool) -> list[str]:
        """The files of ``num`` draws, and of the truth."""
        ends = [".png", *(f".{j}.png" for j in range(2, num + 1))]
        ends += [".mean.png", ".spread.png"] if num > 1 else []
        return [f"{self.name}{end}" for end in ends + [".truth.png"] * true]


def find_items(given: Sequence[Path], out: Path, num: int, true: bool) -> list[Item]:
    """Files, and those of folders in natural order, each once and under a name of its own.

    A file is called as it is; of two that are called alike, both by their extensions, or by the folders that they lie in, too.

    Args:
        out: where restorations go; what lies there is none of the files of a folder.
        num: draws of each.
        true: whether the truth is written, too.

    Raises:
        GoalgenError: a folder holds no images.
    """
    keys: dict[Path, tuple[Path, str]] = {}
    for path in (path.expanduser() for path in given):
        for file in listed(path, out.expanduser()) if path.is_dir() else [path]:
            inside = file.relative_to(path) if path.is_dir() else Path(file.name)
            keys.setdefault(file.resolve(), (file, inside.with_suffix("").as_posix()))
    files = list(keys.values())
    taken, items = {SHEET}, []
    for (file, key), name in zip(files, _told_apart([file for file, _ in files]), strict=True):
        item, number = Item(file, key, name), 1
        while taken & set(spoken := [n.casefold() for n in item.names(num, true)]):
            number += 1
            item = Item(file, key, f"{name}-{number}")
        taken |= set(spoken)
        items.append(item)
    return items


def _told_apart(files: Sequence[Path]) -> list[str]:
    """A name for each file, its own where no other is called so."""
    alike: dict[str, list[int]] = {}
    for i, file in enumerate(files):
        alike.setdefault(file.stem.casefold(), []).append(i)
    names = [file.stem for file in files]
    for group in alike.values():
        parts = [files[i].resolve().parts for i in group]
        for depth in range(1, max(map(len, parts))):
            for suffixed in (False, True):
                ends = [
                    (*p[-depth:-1], p[-1] if suffixed else files[i].stem) for i, p in zip(group, parts, strict=True)
                ]
                tried = ["-".join(end).replace("/", "").replace("\\", "") for end in ends]
                if len({name.casefold() for name in tried}) == len(group):
                    break
            else:
                continue
            for i, name in zip(group, tried, strict=True):
                names[i] = name
            break
    return names


class Truths:
    """The undamaged images of a folder, by name."""

    def __init__(self, folder: Path) -> None:
        """Find them.

        Raises:
            GoalgenError: it is no folder, or holds no images; or what measures is not installed.
        """
        self.folder = folder.expanduser()
        if not self.folder.is_dir():
            raise GoalgenError(
                f"--truth {folder} is no folder; give the one with the undamaged images, under the same names"
            )
        fidelity_library()
        self.by_key: dict[str, Path] = {}
        self.by_stem: dict[str, list[Path]] = {}
        for path in listed(self.folder):
            self.by_key.setdefault(path.relative_to(self.folder).with_suffix("").as_posix(), path)
            self.by_stem.setdefault(path.stem, []).append(path)

    def of(self, item: Item) -> Path | None:
        """The truth of a file: of the same path in the folder, or the only one of the same name; None if there is none."""
        named = self.by_stem.get(item.path.stem, [])
        return self.by_key.get(item.key) or (named[0] if len(named) == 1 else None)

    def matched(self, items: Sequence[Item]) -> dict[str, Path]:
        """The truth of each item that has one, by the item's name.

        Raises:
            GoalgenError: none has one.
        """
        found = {item.name: path for item in items if (path := self.of(item)) is not None}
        if not found:
            raise GoalgenError(
                f"--truth {self.folder} holds no image of the name of any of the {len(items):,} files, such as {items[0].path.stem}"
            )
        return found
