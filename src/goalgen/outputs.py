"""Files that commands write for a user: none overwrites what it did not write.

A folder is a command's own by its record, a JSON file that names the files beside it. One that holds anything else is refused,
one of its own is replaced only where that is asked for, and then only the files that the record names.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from goalgen.errors import GoalgenError
from goalgen.storage import load_json, locked, one_line, write_text

STAGING = ".new-"
"""How a folder begins in which what replaces an earlier result is made."""


class OutputFolder:
    """A folder for the files of one command."""

    def __init__(self, folder: Path, record: str, what: str, *, force: bool = False) -> None:
        """
        Args:
            record: name of its record, such as "samples.json".
            what: what it holds, for messages, such as "samples".
            force: replace what is there, if it is the command's own.

        Raises:
            GoalgenError: it is a file, or holds something else, or holds the like and is not to be replaced.
        """
        self.folder, self.record, self.what, self.force = folder.expanduser(), record, what, force
        with one_line():
            self.check()

    def check(self) -> set[str]:
        """Names of the files in it that the command may replace. Raises as ``__init__`` does."""
        folder = self.folder
        if folder.is_file():
            raise GoalgenError(f"--out {folder} is a file; choose a folder")
        found = [p.name for p in folder.iterdir() if not p.name.startswith(".")] if folder.is_dir() else []
        if not found:
            return set()
        if self.record not in found:
            raise GoalgenError(
                f"--out {folder} is not empty and holds no {self.what} of goalgen's, which overwrites nothing that it did "
                f"not write (there is {sorted(found)[0]}); choose another folder"
            )
        if not self.force:
            raise GoalgenError(
                f"--out {folder} holds {self.what} already; add --force to replace them, or choose another folder"
            )
        return {self.record, *self._recorded()} & set(found)

    def _recorded(self) -> list[str]:
        names = load_json(self.folder / self.record).get("files")
        if not isinstance(names, list) or not all(isinstance(n, str) and Path(n).name == n for n in names):
            raise GoalgenError(
                f"{self.folder / self.record} does not name the files that were written with it; choose another folder"
            )
        return names

    @contextmanager
    def filling(self, names: Sequence[str], about: dict[str, Any]) -> Iterator[Path]:
        """The folder to write the files ``names`` into, locked; what was there before is replaced once all are written.

        The record says "complete": false until then, so that what was cut off is known, too.

        Raises:
            GoalgenError: see ``__init__``; or another process is writing there, or a file of another's would be replaced.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise GoalgenError(f"--out {self.folder} cannot be written: {error.strerror or error}") from None
        with locked(self.folder, self.what), one_line():
            old, new = self.check(), {self.record, *names}
            for name in sorted(new - old):
                if os.path.lexists(self.folder / name):
                    raise GoalgenError(
                        f"{self.folder / name} is there and goalgen did not write it; choose another folder"
                    )
            for leaving in self.folder.glob(f"{STAGING}*"):
                shutil.rmtree(leaving, ignore_errors=True)
            if not old:
                self._write_record(names, about, complete=False)
                yield self.folder
            else:
                with tempfile.TemporaryDirectory(dir=self.folder, prefix=STAGING) as temporary:
                    yield Path(temporary)
                    self._write_record(sorted({*names, *old} - {self.record}), about, complete=False)
                    for name in names:
                        os.replace(Path(temporary) / name, self.folder / name)
                    for name in old - new:
                        (self.folder / name).unlink(missing_ok=True)
            self._write_record(names, about, complete=True)

    def _write_record(self, names: Sequence[str], about: dict[str, Any], *, complete: bool) -> None:
        record = {**about, "complete": complete, "files": list(names)}
        write_text(self.folder / self.record, json.dumps(record, indent=2) + "\n")


def check_file(path: Path, mark: str, what: str, force: bool) -> None:
    """Refuse to write a JSON file where there is one already, unless it is one of goalgen's own that is to be replaced.

    Args:
        mark: a key that such files have.
        what: what they hold, for messages.

    Raises:
        GoalgenError: there is something else, or the like that is not to be replaced.
    """
    with one_line():
        if not os.path.lexists(path):
            return
        try:
            own = path.is_file() and mark in json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, TypeError, RecursionError):
            own = False
    if not own:
        raise GoalgenError(f"{path} is there and holds no {what} of goalgen's; choose another name")
    if not force:
        raise GoalgenError(f"{path} holds {what} already; add --force to replace it, or choose another name")
