"""What is left to do when another process of a run has died: keep the last whole step, say so in one line, end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from goalgen.errors import GoalgenError
from goalgen.processes import is_first, lost
from goalgen.storage import locked
from goalgen.training.checkpoints import list_checkpoints


@contextmanager
def surviving(processes: int, folder: Path, keep: Callable[[], None]) -> Iterator[None]:
    """Context in which the death of one of the ``processes`` of the run in ``folder`` ends the others.

    Args:
        keep: writes a checkpoint. Of several that are left one does so: the first process, if it lives, else the first to come.

    Raises:
        GoalgenError: another process died, in the one that has written the checkpoint.
        SystemExit: ... in the others, which say nothing.
    """
    try:
        yield
    except RuntimeError as error:
        if processes == 1 or not lost(error):
            raise
    else:
        return
    if (
        threading.current_thread() is threading.main_thread()
    ):  # the launcher, which ends those that are left, may wait a little
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with nullcontext() if is_first() else locked(folder, "a run"):
            keep()
    except GoalgenError:
        if not is_first():  # the first process lives, or another has come before
            raise SystemExit(2) from None
        raise
    kept = list_checkpoints(folder)
    where = (
        f"{kept[-1].name} is kept, and the same command goes on from it" if kept else "no checkpoint had been written"
    )
    raise GoalgenError(f"another process of the run died; {where}")
