"""Randomness derived from (seed, stream, step, index), never stored.

Every random number in goalgen comes from a generator made here, so that a run can be resumed, a
sample regenerated and two machines compared without saving the state of any generator.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def derive_seed(seed: int, stream: str, *index: int) -> int:
    """Return a 63-bit seed, a hash of ``(seed, stream, *index)``.

    ``stream`` names what the numbers are for ("data order", "actions", ...), so that two uses never
    share numbers even at the same step.
    """
    text = "/".join([str(int(seed)), stream, *(str(int(i)) for i in index)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, stream: str, *index: int) -> torch.Generator:
    """Return a CPU ``torch.Generator`` for ``(seed, stream, *index)``.

    Numbers are drawn on the CPU and then moved, so that every device sees the same ones.
    """
    return torch.Generator().manual_seed(derive_seed(seed, stream, *index))


def numpy_generator(seed: int, stream: str, *index: int) -> np.random.Generator:
    """Return a NumPy generator for ``(seed, stream, *index)``."""
    return np.random.default_rng(derive_seed(seed, stream, *index))
