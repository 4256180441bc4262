"""Images in memory: which are trained on, which are held out for validation and test, and the order of a run's batches."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from goalgen import rng
from goalgen.config import DataConfig
from goalgen.errors import GoalgenError


@dataclass(frozen=True)
class ImageSet:
    """Images in memory.

    Raises:
        GoalgenError: the tensors do not fit together.
    """

    images: Tensor
    """(N, C, height, width) uint8, grey levels 0..levels-1."""
    levels: int
    """Number of grey levels: 256 normally, 17 for the digits, 2 when binarised."""
    labels: Tensor | None = None
    """(N,) int64, or None."""
    names: tuple[str, ...] | None = None
    """N relative paths without extension, where the images came from a folder."""
    digests: Tensor | None = None
    """(N,) int64, see :func:`image_digests`, where they are of other images: those that black and white were drawn from."""

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise GoalgenError(
                f"images must be uint8 (N, C, height, width), not {self.images.dtype} {tuple(self.images.shape)}"
            )
        if not 2 <= self.levels <= 256:
            raise GoalgenError(f"levels must be 2 to 256, not {self.levels}")
        if self.levels < 256 and len(self) and int(self.images.max()) >= self.levels:
            raise GoalgenError(f"images of {self.levels} levels hold the level {int(self.images.max())}")
        if self.labels is not None and (self.labels.shape != (len(self),) or self.labels.dtype != torch.int64):
            raise GoalgenError(
                f"labels must be int64 ({len(self)},), not {self.labels.dtype} {tuple(self.labels.shape)}"
            )
        if self.names is not None and len(self.names) != len(self):
            raise GoalgenError(f"there are {len(self)} images but {len(self.names)} names")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, height, width)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def subset(self, indices: Tensor | Sequence[int]) -> ImageSet:
        """Return the images at ``indices`` (integers in 0..N-1), in that order; those of a range, from first to last, as a view."""
        if isinstance(indices, range) and indices.step == 1 and 0 <= indices.start < indices.stop <= len(self):
            part = slice(indices.start, indices.stop)
            return ImageSet(
                self.images[part],
                self.levels,
                None if self.labels is None else self.labels[part],
                None if self.names is None else self.names[part],
                None if self.digests is None else self.digests[part],
            )
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return ImageSet(
            self.images[chosen],
            self.levels,
            None if self.labels is None else self.labels[chosen],
            None if self.names is None else tuple(self.names[i] for i in chosen.tolist()),
            None if self.digests is None else self.digests[chosen],
        )

    def digest(self) -> Tensor:
        """Return a number for each image, (N,) int64, the same for the same pixels."""
        return image_digests(self.images) if self.digests is None else self.digests

    def fingerprint(self) -> str:
        """Return a hash of images, labels and levels (32 hexadecimal digits), for the names of caches."""
        digest = hashlib.blake2b(repr((tuple(self.images.shape), self.levels)).encode(), digest_size=16)
        digest.update(self.images.contiguous().numpy().data)
        if self.labels is not None:
            digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()


def image_digests(images: Tensor) -> Tensor:
    """Return a hash of the pixels of each of ``images`` (N, C, height, width) uint8: (N,) int64."""
    rows = images.contiguous().flatten(1).numpy()
    found = b"".join(hashlib.blake2b(row.data, digest_size=8).digest() for row in rows)
    return torch.frombuffer(bytearray(found), dtype=torch.int64) if found else torch.zeros(0, dtype=torch.int64)


@dataclass(frozen=True)
class Splits:
    """The three sets of one source; none is empty and all have one shape."""

    train: ImageSet
    validation: ImageSet
    test: ImageSet
    label_names: tuple[str, ...] | None
    """Name of each label, where the source has them."""
    name: str
    """The source in a word or two, for titles."""
    binarize: bool = False
    """Goals are black and white: ``train`` holds grey levels to draw them from (:func:`binarize_images`), while
    ``validation`` and ``test`` are drawn already and have 2 levels."""


def choose(readable: dict[str, Tensor], config: DataConfig, name: str) -> dict[str, tuple[str, Tensor]]:
    """Return, for train, validation and test, the split of the source and which of its records to take (ascending).

    ``readable`` are the records of each split that can be read, (n,) int64; ``name`` is the source, for messages.

    Raises:
        GoalgenError: a split has no readable image, or too few to hold some out.
    """
    train = readable["train"]
    roles: dict[str, tuple[str, Tensor]] = {}
    # Test first: it must stay the same when the share of the validation set is changed.
    shares = {"test": (config.test_fraction, len(train)), "validation": (config.validation_fraction, 2000)}
    for role, (fraction, most) in shares.items():
        if role in readable:
            roles[role] = (role, readable[role])
        else:
            needed = 2 if role == "test" and "validation" not in readable else 1  # images that must remain
            train, held = _hold_out(train, fraction, most, needed, role, name)
            roles[role] = ("train", held)
        if not len(roles[role][1]):
            raise GoalgenError(f"{name} has a {role} split without a readable image; mend it or remove it")
    if not len(train):
        raise GoalgenError(f"{name} has a train split without a readable image; mend it")
    if config.limit is not None:
        order = torch.randperm(len(train), generator=rng.generator(0, "split limit"))
        train = train[order[: config.limit].sort().values]
    return {"train": ("train", train), **roles}


def _hold_out(indices: Tensor, fraction: float, most: int, needed: int, role: str, name: str) -> tuple[Tensor, Tensor]:
    """Return what remains (at least ``needed``) and what is held out (at least 1, at most ``most``), ascending."""
    count = len(indices)
    if count <= needed:
        raise GoalgenError(f"{name} has too few images to hold some out for {role}; add images (3 at the least)")
    held = min(max(1, round(count * fraction)), count - needed, most)
    # Seed 0, not the run's: every run must be measured on the same images.
    order = torch.randperm(count, generator=rng.generator(0, f"split {role}"))
    return indices[order[held:].sort().values], indices[order[:held].sort().values]


class BatchOrder:
    """Batches drawn from an endless row of epochs, each an independent random permutation of the images.

    Batches run across the ends of epochs, so that every batch is full and no image is dropped. They are a function of
    (seed, step), so that a resumed run needs no replay.
    """

    def __init__(self, size: int, batch_size: int, seed: int) -> None:
        """Order ``size`` images in batches of ``batch_size`` (which may be larger than ``size``)."""
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self._permutations: dict[int, Tensor] = {}

    def indices(self, step: int) -> Tensor:
        """Return the images of the batch of ``step`` (from 0): (batch_size,) int64 in 0..size-1."""
        first, begin = divmod(step * self.batch_size, self.size)  # the epoch in which it begins, and where
        last = first + (begin + self.batch_size - 1) // self.size
        # Only the epochs of this batch are kept: steps are nearly always asked for in order.
        self._permutations = {e: self._permutation(e) for e in range(first, last + 1)}
        return torch.cat(list(self._permutations.values()))[begin : begin + self.batch_size]

    def _permutation(self, epoch: int) -> Tensor:
        if epoch in self._permutations:
            return self._permutations[epoch]
        return torch.randperm(self.size, generator=rng.generator(self.seed, "data order", epoch))
