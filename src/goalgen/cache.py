"""What is expensive to compute and depends on data alone, kept on disk by the content of the data.

Files are safetensors with a checksum; a damaged one is made anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor


def cache_folder() -> Path:
    """Return the folder of the cache: $GOALGEN_CACHE, or the platform's place for caches."""
    if chosen := os.environ.get("GOALGEN_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "goalgen" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "goalgen"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "goalgen"


def fingerprint_images(images: Tensor, labels: Tensor | None = None) -> str:
    """Return a hash of images (N, C, height, width), their shape, and their labels (N,) if given."""
    return digest({"images": images, **({} if labels is None else {"labels": labels})}).numpy().tobytes().hex()


def load_or_make(
    kind: str,
    key: str,
    like: dict[str, Tensor],
    make: Callable[[], dict[str, Tensor]],
    cache: Path | None = None,
) -> dict[str, Tensor]:
    """Return the tensors stored under ``key``, or those of ``make()`` after storing them.

    Args:
        kind: first part of the file's name.
        key: identifies everything that the tensors depend on.
        like: tensors of the expected names, shapes and types; their values do not matter.
        make: computes the tensors.
        cache: folder of the cache; :func:`cache_folder` if None.
    """
    found = load_stored(kind, key, like, cache)
    return store(kind, key, make(), cache) if found is None else found


def load_stored(
    kind: str, key: str, like: dict[str, Tensor] | None = None, cache: Path | None = None
) -> dict[str, Tensor] | None:
    """Return the tensors stored under ``key``, or None where there are none.

    A file that is damaged, or whose names, shapes or types are not those of ``like`` (if given), costs a warning and
    counts as none.
    """
    path = _path(kind, key, cache)
    try:
        return _read_checked(path, like)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, SafetensorError, ValueError) as error:
        warnings.warn(f"{path} is damaged ({error}); making it anew", stacklevel=2)
        return None


def store(kind: str, key: str, tensors: dict[str, Tensor], cache: Path | None = None) -> dict[str, Tensor]:
    """Store tensors under ``key`` and return them. A folder that cannot be written to costs a warning."""
    path = _path(kind, key, cache)
    # Cloned because safetensors refuses tensors that share memory.
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    try:
        _write_atomically(path, safetensors.torch.save({**tensors, "digest": digest(tensors)}))
    except OSError as error:
        warnings.warn(f"{path} cannot be written ({error}); set GOALGEN_CACHE to a folder that can", stacklevel=2)
    return tensors


def _path(kind: str, key: str, cache: Path | None) -> Path:
    return (cache or cache_folder()) / f"{kind}-{key}.safetensors"


def _read_checked(path: Path, like: dict[str, Tensor] | None) -> dict[str, Tensor]:
    tensors = safetensors.torch.load(path.read_bytes())
    stored = tensors.pop("digest", None)
    if like is not None and _form(tensors) != _form(like):
        raise ValueError("it holds other tensors than expected")
    if stored is None or not torch.equal(stored, digest(tensors)):
        raise ValueError("its checksum is wrong")
    return tensors


def _form(tensors: dict[str, Tensor]) -> dict[str, tuple[object, ...]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def _write_atomically(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def cache_key(*parts: object) -> str:
    """Return a hash of what cached tensors depend on: numbers, strings and tuples of them."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def digest(tensors: dict[str, Tensor]) -> Tensor:
    """Return a hash of names, types, shapes and values, (16,) uint8."""
    total = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return torch.tensor(list(total.digest()), dtype=torch.uint8)
