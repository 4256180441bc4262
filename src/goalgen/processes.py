"""Several processes of one command, as `accelerate launch` starts them: who is first, and work that they share."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from goalgen.errors import GoalgenError

T = TypeVar("T")
R = TypeVar("R")

PATIENCE = timedelta(hours=12)
"""How long processes wait for one that does what only one does, such as training a classifier to measure by."""

_joined: list[PartialState] = []


def launched() -> int:
    """How many processes were started together."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def is_first() -> bool:
    """Whether this is the process that writes and speaks."""
    return os.environ.get("RANK", "0") == "0"


def assists() -> bool:
    """Whether this process only does its share: it has joined others, and is not the first."""
    return bool(_joined) and not is_first()


def join(device: str) -> None:
    """Let the processes that were started together share what :func:`shared` is given; a single one needs nothing.

    Only whoever runs in all of them calls it: what one of several did alone would wait for the others for ever.

    Args:
        device: cpu, cuda or mps.

    Raises:
        GoalgenError: they do not find each other.
    """
    if launched() == 1 or _joined:
        return
    try:
        state = PartialState(cpu=device == "cpu", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise GoalgenError(f"{launched()} processes were started and do not find each other: {reason}") from None
    if state.num_processes < launched():
        raise GoalgenError(
            f"{launched()} processes were started and do not see each other: there is no GPU for each; add --device cpu"
        )
    _joined.append(state)


def hold_group() -> None:
    """Keep the group of processes, which is about to be left, as long as this process lives.

    It ends by waiting for a thread of its own, while nobody else may touch a Python object; and just after an exchange that thread
    may be about to, to let go of what was exchanged. A run that was done then hung for ever (torch 2.13, Gloo).
    """
    if torch.distributed.is_initialized():
        # A reference that nothing takes back, not even the interpreter at its end.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(torch.distributed.group.WORLD))


def leave() -> None:
    """End what :func:`join` began."""
    if _joined:
        hold_group()
        _joined.pop().destroy_process_group()


def shared(items: Sequence[T], make: Callable[[T], R]) -> Iterator[R]:
    """Yield ``make(item)`` of every item, in order: processes that have joined make them by turns, and each gets all."""
    if not _joined:
        yield from map(make, items)
        return
    rank, world = _joined[0].process_index, _joined[0].num_processes
    for first in range(0, len(items), world):
        mine = [make(item) for item in items[first + rank : first + rank + 1]]
        yield from gather_object(mine)


def agreed(value: T) -> T:
    """What the first process says, for all that have joined."""
    if not _joined:
        return value
    said = [value]
    broadcast_object_list(said)
    return said[0]


def lost(error: BaseException) -> bool:
    """Whether an error says that another process of the run is gone, or cannot be reached."""
    if isinstance(error, torch.distributed.DistError):
        return True
    words = ("gloo/", "Gloo", "NCCL", "ncclSystemError", "Connection closed by peer", "Connection reset by peer")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)
