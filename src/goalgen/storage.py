"""Files that are either whole or not there: atomic writes, and tensors without pickle."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from goalgen.errors import GoalgenError


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
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise GoalgenError(f"{path} cannot be written: {error.strerror or error}") from None


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
            old = _old(path)
            if path.exists():
                os.replace(path, old)
            os.replace(temporary, path)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise GoalgenError(f"{path} cannot be written: {error.strerror or error}") from None


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def recover_folder(path: Path) -> None:
    """Put back what :func:`write_folder` had moved aside when it was cut off, and remove its leavings."""
    old = _old(path)
    if old.is_dir():
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(old, path)
    for leaving in path.parent.glob(f".{path.name}.*.tmp"):
        shutil.rmtree(leaving, ignore_errors=True)


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
    if not path.is_file():
        raise GoalgenError(f"{path} does not exist; is its folder a goalgen run or a saved model?")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise GoalgenError(
            f"{path} is damaged and cannot be read as safetensors ({error}); restore or delete it"
        ) from None


def load_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        GoalgenError: the file is missing or damaged.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise GoalgenError(f"{path} does not exist; is its folder a goalgen run or a saved model?") from None
    except (OSError, ValueError) as error:
        raise GoalgenError(f"{path} is damaged and cannot be read as JSON ({error}); restore or delete it") from None
    if not isinstance(value, dict):
        raise GoalgenError(f"{path} is damaged: it should hold a JSON object; restore or delete it")
    return value
