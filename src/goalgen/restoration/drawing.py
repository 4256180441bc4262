"""Restorations: the S-agent draws from damaged images; known pixels are put back, and sizes, too."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypedDict, Unpack

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from goalgen import rng
from goalgen.config import Config
from goalgen.data import from_unit, to_bytes
from goalgen.data.labels import Labels
from goalgen.data.sets import image_digests
from goalgen.errors import GoalgenError
from goalgen.family import Family
from goalgen.intake import Images, Picture, to_labels
from goalgen.restoration.masks import MIDDLE, Mask, Size, middle_of, named, read_masks
from goalgen.restoration.reading import Damaged, Original, Reader, sources
from goalgen.rollout import draw_noise, sample_rollout
from goalgen.sampling import BLOCK
from goalgen.starts import GoalStart, make_start
from goalgen.task import Task


class Moments(NamedTuple):
    """Of the draws of an image."""

    mean: np.ndarray
    """(height, width, C) float64, in grey levels 0..255"""
    spread: np.ndarray
    """their standard deviation, likewise"""


@dataclass
class Restoration:
    """The draws of one image."""

    damaged: Damaged
    small: Tensor
    """(num, C, height, width) uint8, 0..255, at the model's size"""

    def draws(self, original: Original | None) -> Iterator[np.ndarray]:
        """Each draw at the image's own size, (height, width, C) uint8, 0..255, with the known pixels of ``original``.

        C is 3 where the model draws in colour, or known pixels are in colour.
        """
        height, width = self.damaged.size
        for draw in self.small.permute(0, 2, 3, 1).numpy():
            picture = draw
            if draw.shape[:2] != (height, width):
                image = Image.fromarray(draw[:, :, 0] if draw.shape[2] == 1 else draw)
                resized = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))
                picture = resized.reshape(height, width, -1)
            if original is not None:
                channels = max(picture.shape[2], original.seen.shape[2])
                picture = original.filled(np.broadcast_to(picture, (height, width, channels)))
            yield picture


def moments(draws: Iterable[np.ndarray]) -> Moments:
    """Mean and standard deviation of draws (height, width, C) uint8, of which one at a time is held."""
    count, total, squares = 0, np.zeros(1, np.int64), np.zeros(1, np.int64)
    for draw in draws:
        wide = draw.astype(np.int64)
        count, total, squares = count + 1, total + wide, squares + wide**2
    # In whole numbers, so that what never varies has a spread of exactly 0.
    return Moments(total / count, np.sqrt(count * squares - total**2) / count)


@dataclass
class Restored:
    """Images as they were restored, each at its own size."""

    draws: list[Tensor]
    """of each image, (num, C, height, width) uint8, 0..255"""
    mean: list[Tensor]
    """of each image the mean of its draws, (C, height, width) float32, 0..255"""
    spread: list[Tensor]
    """of each image the standard deviation of its draws in grey levels, (C, height, width) float32"""
    notes: list[str]
    """what was done to each image to fit the model, such as "300x400 resized to 28x28 and back"; "" if nothing"""


class How(TypedDict, total=False):
    """What may be said of the drawing."""

    temperature: float
    """below 1 keeps to likelier actions; 1, the default, is the model"""
    steps: int | None
    """actions to take, where the model can skip steps; unset: all it was trained with"""


class Drawing(NamedTuple):
    """How to draw, see :class:`How`."""

    num: int = 1
    """draws of each image"""
    seed: int = 0
    temperature: float = 1.0
    steps: int | None = None


@dataclass
class Restorer:
    """Restores images with a model that was trained to."""

    family: Family
    reading: Reader
    classes: Sequence[str]

    @classmethod
    def of(cls, family: Family, config: Config, classes: Sequence[str], paired: bool) -> Restorer:
        """The restorer that a model is.

        Args:
            paired: it was trained to make each goal from its namesake in a folder.

        Raises:
            GoalgenError: it was not trained to restore.
        """
        spec = config.model.start
        kinds = "grey, blur, downsample, mask or edges"
        if spec.partition(":")[0] in kinds.replace(",", "").split():
            start = make_start(spec, family.shape, data=config.data)
            assert isinstance(start, GoalStart)
        elif paired:
            start = GoalStart(spec, family.shape, lambda goals: goals)  # whatever was done to them, it is done already
        else:
            raise GoalgenError(
                f"this model was not trained to restore images: it begins from {spec!r}, which knows nothing of them; train one "
                f"with --start {kinds}, such as downsample:4 or mask:0.5, or with a folder of damaged namesakes of the images"
            )
        return cls(family, Reader(start, family.levels, config.data.background), classes)

    def restore(
        self, images: Images, mask: Mask | Sequence[Mask] | None, how: Drawing, labels: Labels | None
    ) -> Restored:
        """See :meth:`RestoringModel.restore`."""
        given = sources(images, self.family.shape, self.family.levels)
        names = [named(source, f"image {i}") for i, source in enumerate(given)]
        masks = self.masks(given, names, mask)
        read = (self.reading.read(*each) for each in zip(given, names, masks, strict=True))
        found = Restored([], [], [], [])
        for restoration in self.draw(read, len(given), how, labels):
            draws = list(restoration.draws(restoration.damaged.original()))
            mean, spread = (torch.from_numpy(x).permute(2, 0, 1).float() for x in moments(draws))
            found.draws.append(torch.from_numpy(np.stack(draws)).permute(0, 3, 1, 2))
            found.mean.append(mean)
            found.spread.append(spread)
            found.notes.append(restoration.damaged.note)
        return found

    def masks(
        self, given: Sequence[Picture | Tensor], names: Sequence[str], mask: Mask | Sequence[Mask] | None
    ) -> list[np.ndarray | None]:
        """What is missing of each image, as far as ``mask`` says it, bool (height, width).

        Raises:
            GoalgenError: see :func:`goalgen.restoration.masks.read_masks`; or a mask has another size than its image.
        """
        found: list[np.ndarray | None] = []
        middles: dict[Size, np.ndarray] = {}  # one for all images of a size, however many these are
        for source, name, one in zip(given, names, read_masks(mask, len(given), self.reading.start), strict=True):
            if isinstance(one, str):
                assert one == MIDDLE
                size = self.reading.size(source, name, None)
                found.append(middles.setdefault(size, middle_of(self.reading.trained, size)))
            else:
                self.reading.size(source, name, one)
                found.append(one)
        return found

    def draw(
        self, images: Iterable[Damaged], count: int, how: Drawing, labels: Labels | None = None
    ) -> Iterator[Restoration]:
        """Restore images one after the other; no more of them are held than are drawn together.

        Draw i of an image depends on the seed, on what the model begins from, and on i: neither on the other images nor on
        its place among them, as far as arithmetic rounds alike on every row of a block.

        Args:
            count: how many images there are.
            labels: of a model that is conditioned on labels: one for all images, or one for each.

        Raises:
            GoalgenError: a number is out of range, or labels are missing: at once. Or what was drawn is not finite.
        """
        if how.num < 1:
            raise GoalgenError(f"the number of draws must be at least 1, not {how.num}")
        if not how.temperature > 0:
            raise GoalgenError(f"the temperature must be above 0, not {how.temperature}")
        told, path = to_labels(labels, count, self.classes), self.family.path(how.steps)
        return self._drawn(images, count, how, told, path)

    def _drawn(
        self, images: Iterable[Damaged], count: int, how: Drawing, told: Tensor | None, path: Sequence[int]
    ) -> Iterator[Restoration]:
        """:meth:`draw` with labels (count,) and the steps to stop at."""
        waiting: deque[Damaged] = deque()
        rows: list[_Row] = []
        drawn: list[Tensor] = []
        for i, damaged in enumerate(images):
            waiting.append(damaged)
            key = int(image_digests(_bits(damaged.state[None]))[0])
            rows += [_Row(damaged.state, None if told is None else told[i], key, j) for j in range(how.num)]
            while len(rows) >= BLOCK or (rows and i == count - 1):
                drawn += self._block(rows[:BLOCK], how, path)
                del rows[:BLOCK]
                while len(drawn) >= how.num and waiting:
                    yield Restoration(waiting.popleft(), torch.stack(drawn[: how.num]))
                    del drawn[: how.num]

    @torch.no_grad()
    def _block(self, rows: list[_Row], how: Drawing, path: Sequence[int]) -> list[Tensor]:
        """Draw for rows of one block, which the last of them fills: each (C, height, width) uint8, 0..255."""
        family = self.family
        every = rows + rows[-1:] * (BLOCK - len(rows))
        noise = torch.cat([row.noise(family, how.seed) for row in every], 1)
        label = None if rows[0].label is None else torch.stack([row.label for row in every if row.label is not None])
        task = Task(torch.stack([row.state for row in every]), None, label, None).to(family.device)
        episodes = sample_rollout(family, task, noise.to(family.device), how.temperature, path)
        canvas = family.environment.canvas(episodes.states[-1]) if episodes.draft is None else episodes.draft
        if not bool(torch.isfinite(canvas).all()):
            raise GoalgenError(
                "what was drawn is not finite: the weights are damaged, or the --temperature is too far from 1"
            )
        return list(to_bytes(from_unit(canvas.cpu(), family.levels), family.levels)[: len(rows)])


class _Row(NamedTuple):
    """One draw of one image."""

    state: Tensor
    label: Tensor | None
    key: int
    """a hash of the state"""
    number: int

    def noise(self, family: Family, seed: int) -> Tensor:
        """(H, 1, ...)"""
        return draw_noise(family.environment, 1, rng.generator(seed, "restore", self.key, self.number))


def _bits(state: Tensor) -> Tensor:
    """Numbers as bytes."""
    return state.contiguous().flatten(1).view(torch.uint8)


class RestoringModel:
    """What a model can do with damaged images."""

    @abstractmethod
    def restorer(self) -> Restorer:
        """What restores images."""

    def restore(
        self,
        images: Images,
        mask: Mask | Sequence[Mask] | None = None,
        num: int = 1,
        seed: int = 0,
        *,
        labels: Labels | None = None,
        **how: Unpack[How],
    ) -> Restored:
        """Undo the damage that the model was trained to undo. Draw j of an image depends on the seed, on the image and on j.

        Args:
            images: damaged ones, see :func:`goalgen.intake.to_images`; files and PIL images of any size and mode, which are
                resized to the model's images and back.
            mask: what is missing, where the model fills that in: white in a picture, not 0 in a tensor or an array, one for
                all or one for each; "middle" as in training; unset: what is transparent. All other pixels are put back into
                what was drawn, and so are known to the last bit.
            num: draws of each.
            seed: seed of the noise.
            labels: of a model that is conditioned on labels: one for all, or one for each.
            how: see :class:`How`.

        Raises:
            GoalgenError: the model was not trained to restore; an image or a mask cannot be read, or one does not fit the other.
        """
        return self.restorer().restore(images, mask, Drawing(num, seed, **how), labels)
