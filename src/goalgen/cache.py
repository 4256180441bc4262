"""What is expensive to compute and depends on data alone, kept on disk by the content of the data.

Files are safetensors with a checksum; a damaged one is made anew.
"""

from __future__ import annotations

import hashlib
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from goalgen.errors import GoalgenError
from goalgen.storage import write_bytes


def cache_folder() -> Path:
    """Return the folder of the cache: $GOALGEN_CACHE, or the platform's place for caches."""
    if chosen := os.environ.get("GOALGEN_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "goalgen" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "goalgen"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "goalgen"


def load_or_make(kind: str, key: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors stored under ``key``, or those of ``make()`` after storing them.

    The key identifies everything that they depend on, their names and shapes too; ``kind`` begins the file's name.
    """
    found = load_stored(kind, key)
    return store(kind, key, make()) if found is None else found


def load_stored(kind: str, key: str) -> dict[str, Tensor] | None:
    """Return the tensors stored under ``key``, or None where there are none; a damaged file costs a warning."""
    path = _path(kind, key)
    try:
        tensors = safetensors.torch.load(path.read_bytes())
        stored = tensors.pop("digest", None)
        if stored is None or not torch.equal(stored, digest(tensors)):
            raise ValueError("its checksum is wrong")
        return tensors
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, SafetensorError, ValueError) as error:
        warnings.warn(f"{path} is damaged ({error}); making it anew", stacklevel=2)
        return None


def stored_size(kind: str, key: str) -> int:
    """Bytes of what is stored under ``key``, 0 where nothing is."""
    try:
        return _path(kind, key).stat().st_size
    except OSError:
        return 0


def store(kind: str, key: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Store tensors under ``key`` and return them. A folder that cannot be written to costs a warning."""
    # Cloned because safetensors refuses tensors that share memory.
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    try:
        write_bytes(_path(kind, key), safetensors.torch.save({**tensors, "digest": digest(tensors)}))
    except GoalgenError as error:
        warnings.warn(f"{error}; set GOALGEN_CACHE to a folder that can", stacklevel=2)
    return tensors


def _path(kind: str, key: str) -> Path:
    return cache_folder() / f"{kind}-{key}.safetensors"


def cache_key(*parts: object) -> str:
    """Return a hash of what cached tensors depend on: numbers, strings and tuples of them."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """Return :func:`digest` in hexadecimal, for keys."""
    return digest(tensors).numpy().tobytes().hex()


def digest(tensors: dict[str, Tensor]) -> Tensor:
    """Return a hash of names, types, shapes and values, (16,) uint8."""
    total = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return torch.tensor(list(total.digest()), dtype=torch.uint8)
