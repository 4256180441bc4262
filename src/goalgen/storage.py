"""Files that are either whole or not there: atomic writes, and tensors without pickle."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from goalgen.errors import GoalgenError

LOCK = ".lock"
"""File in a folder that is locked while a process writes there. The lock is the system's, and ends with the process."""


@contextmanager
def one_line() -> Iterator[None]:
    """Turn what the system says of a file inside the block into one line.

    Raises:
        GoalgenError: a file could not be read or written.
    """
    try:
        yield
    except BrokenPipeError:  # whoever reads the output has had enough: no file of ours
        raise
    except OSError as error:
        path = f"{error.filename}: " if error.filename else ""
        raise GoalgenError(f"{path}{error.strerror or str(error) or type(error).__name__}") from None


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Keep other processes from writing into ``folder`` while the block runs.

    Raises:
        GoalgenError: another process, or another thread, is writing there.
    """
    lock = FileLock(folder / LOCK, is_singleton=False, thread_local=False)
    try:
        lock.acquire(timeout=0.2, poll_interval=0.05)
    except Timeout:
        raise GoalgenError(
            f"{folder} is in use: another process is writing {what} there; wait for it, or choose another --out"
        ) from None
    except NotImplementedError:  # a file system without locks
        warnings.warn(f"{folder} lies where files cannot be locked; start no second process on it", stacklevel=3)
    except OSError as error:
        raise GoalgenError(f"{folder} cannot be written: {error.strerror or error}") from None
    try:
        yield
    finally:
        if os.name != "nt":  # still locked: who waits for it finds that the file is gone, and makes a new one
            _remove(folder / LOCK)
        lock.release()


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it into place.

    Raises:
        GoalgenError: the folder cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            _sync(temporary)
            os.chmod(temporary, 0o666 & ~_umask())  # mkstemp lets nobody else read
            os.replace(temporary, path)
        finally:
            _remove(temporary)
    except (OSError, SafetensorError) as error:
        raise _unwritten(path, error) from None


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Let ``fill`` write into a temporary folder, then put it in the place of ``path``.

    A crash leaves the old folder, the new one, or (between two renames) the old one under a ".old" name
    that the next call or :func:`recover_folder` puts back; never a mixture.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        recover_folder(path)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
        try:
            fill(temporary)
            for file in temporary.iterdir():
                _sync(file)
                os.chmod(file, 0o666 & ~_umask())  # safetensors lets nobody else read
            os.chmod(temporary, 0o777 & ~_umask())
            old = old_folder(path)
            if path.exists():
                os.replace(path, old)
            try:
                os.replace(temporary, path)
            except OSError:
                if old.exists():
                    os.replace(old, path)
                raise
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise _unwritten(path, error) from None


def _unwritten(path: Path, error: Exception) -> GoalgenError:
    """What to say of a file that could not be written; safetensors wraps the words of the system."""
    reason = (isinstance(error, OSError) and error.strerror) or str(error)
    return GoalgenError(f"{path} cannot be written: {reason}; what was there before is whole")


def _remove(temporary: Path) -> None:
    with suppress(OSError):  # the error that led here has more to say
        temporary.unlink(missing_ok=True)


def append_text(path: Path, text: str) -> None:
    """Add to the end of a file.

    Raises:
        GoalgenError: it cannot be written.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise GoalgenError(f"{path} cannot be written: {error.strerror or error}") from None


def old_folder(path: Path) -> Path:
    """Where :func:`write_folder` keeps the old folder while it puts the new one in its place."""
    return path.with_name(f".{path.name}.old")


def recover_folder(path: Path) -> None:
    """Put back what :func:`write_folder` had moved aside when it was cut off, and remove its leavings."""
    old = old_folder(path)
    if old.is_dir():
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(old, path)
    for leaving in path.parent.glob(f".{path.name}.*.tmp"):
        shutil.rmtree(leaving, ignore_errors=True)


def recover_all(*folders: Path) -> None:
    """Put back and remove, in each folder, what a killed process left of files and folders that it was writing.

    The caller has them locked, so that no other process is writing now.
    """
    for folder in folders:
        for old in folder.glob(".*.old"):
            recover_folder(old.with_name(old.name[1:].removesuffix(".old")))
        for leaving in folder.glob(".*.*.tmp"):
            if leaving.is_dir():
                shutil.rmtree(leaving, ignore_errors=True)
            else:
                _remove(leaving)


def remove_folder(path: Path) -> None:
    """Remove a folder so that, if that is cut off, no part of it stays under its name."""
    gone = path.with_name(f".{path.name}.gone.tmp")
    with suppress(OSError):
        shutil.rmtree(gone, ignore_errors=True)
        os.replace(path, gone)
        shutil.rmtree(gone, ignore_errors=True)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors (the caller makes it atomic)."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(plain, path, metadata={"format": "pt", **(metadata or {})})


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: tensors and metadata.

    Raises:
        GoalgenError: the file is missing or damaged.
    """
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def load_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a safetensors file, by its header alone.

    Raises:
        GoalgenError: the file is missing or damaged.
    """
    with _opened(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with path.open("rb"):  # safetensors has no words for a file that may not be read
            pass
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise GoalgenError(f"{path} does not exist; is its folder a goalgen run or a saved model?") from None
    except OSError as error:
        raise GoalgenError(f"{path} cannot be read: {error.strerror or error}") from None
    except (SafetensorError, ValueError, OverflowError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise GoalgenError(
            f"{path} is damaged and cannot be read as safetensors ({reason}); restore or delete it"
        ) from None


def load_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        GoalgenError: the file is missing or damaged.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_float=_finite, parse_constant=_finite)
    except FileNotFoundError:
        raise GoalgenError(f"{path} does not exist; is its folder a goalgen run or a saved model?") from None
    except OSError as error:
        raise GoalgenError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise GoalgenError(f"{path} is damaged and cannot be read as JSON ({error}); restore or delete it") from None
    if not isinstance(value, dict):
        raise GoalgenError(f"{path} is damaged: it should hold a JSON object; restore or delete it")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is no finite number")
    return value
