"""Damaged images as a model begins from them: read, resized to it, and what of them is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from goalgen.data import to_bytes, to_unit
from goalgen.data.files import find_images
from goalgen.data.images import decode_image, inspect_image, stored_pixels
from goalgen.data.labels import natural
from goalgen.errors import GoalgenError
from goalgen.intake import Images, Picture, to_images
from goalgen.restoration.masks import MIDDLE, Size, in_words
from goalgen.starts import HIDDEN, GoalStart, enlarge


def listed(folder: Path, without: Path | None = None) -> list[Path]:
    """The image files in ``folder`` and below in natural order: 2 before 10.

    Args:
        without: a folder whose files are left out.

    Raises:
        GoalgenError: there are none.
    """
    found = [p for p in find_images(folder) if without is None or without.resolve() not in p.resolve().parents]
    if not found:
        raise GoalgenError(f"{folder} holds no images")
    return sorted(found, key=lambda p: natural(p.relative_to(folder).as_posix()))


def sources(given: Images, shape: tuple[int, int, int], levels: int) -> list[Picture | Tensor]:
    """Images one by one, as :func:`goalgen.intake.to_images` takes them; files and PIL images may have any size.

    Returns:
        Files, bytes and PIL images as they are; of tensors and arrays, each image (C, height, width) in grey levels 0..levels-1.

    Raises:
        GoalgenError: they are no images, or a tensor has another size than the model's images.
    """
    if isinstance(given, str | Path) and Path(given).expanduser().is_dir():
        given = listed(Path(given).expanduser())
    if isinstance(given, str | Path | bytes | Image.Image):
        given = [given]
    if not isinstance(given, Sequence) or not len(given):
        return list(to_images(given, shape, levels))
    found: list[Picture | Tensor] = []
    for image in given:
        if isinstance(image, str | Path | bytes | Image.Image):
            found.append(Path(image).expanduser() if isinstance(image, str) else image)
        else:
            found += list(to_images([image], shape, levels))  # type: ignore[list-item]
    return found


@dataclass
class Original:
    """An image before anything is done to it, and what of it is missing."""

    pixels: np.ndarray
    """(height, width, C) as :func:`goalgen.data.images.stored_pixels` has them"""
    seen: np.ndarray
    """(height, width, 1 or 3) uint8, opaque: as a model reads it"""
    missing: np.ndarray
    """(height, width) bool"""

    def filled(self, picture: np.ndarray) -> np.ndarray:
        """``picture`` (height, width, 1 or 3) uint8 where something is missing, and the known pixels elsewhere, likewise."""
        known = np.broadcast_to(self.seen, picture.shape)
        return np.where(self.missing[:, :, None], picture, known)

    def filled_as_stored(self, picture: np.ndarray) -> np.ndarray:
        """The same in the bits of the file and with its transparency, (height, width, C) uint8 or uint16.

        Grey of 16 bits that is filled in colour has 8.
        """
        pixels, missing = self.pixels, self.missing
        colours = picture.shape[2]
        if pixels.dtype == np.uint16 and colours == 3:
            return self.filled(picture)
        alpha = pixels[:, :, -1:] if pixels.shape[2] in (2, 4) else None
        colour = pixels if alpha is None else pixels[:, :, :-1]
        paint = picture.astype(pixels.dtype) * (257 if pixels.dtype == np.uint16 else 1)
        out = np.where(missing[:, :, None], paint, colour)  # a palette of greys is stored in colours, and read as grey
        if alpha is not None:
            alpha = np.where(missing[:, :, None], np.uint8(255), alpha)
            out = out if (alpha == 255).all() else np.concatenate([out, alpha], 2)
        return out


@dataclass
class Damaged:
    """One image to restore. Only what a model begins from is held; of a file, the rest is read again when it is needed."""

    source: Picture | Tensor
    name: str
    """for messages"""
    size: Size
    """of its restoration"""
    state: Tensor
    """what the model begins from, (C, height, width) float32 in [-1, 1]"""
    note: str
    """what was done to it to fit the model, in words; "" if nothing"""
    mask: np.ndarray | None
    """what was said to be missing, bool (height, width)"""
    reading: Reader

    def original(self) -> Original | None:
        """Its own pixels, if the model fills in what is missing and leaves the others."""
        return self.reading.original(self.source, self.name, self.mask) if self.reading.inpaints else None

    def picture(self, original: Original | None) -> np.ndarray:
        """The image as it was given, with mid-grey where something is missing: (height, width, 1 or 3) uint8, 256 grey levels."""
        if original is not None:
            return original.filled(np.full_like(original.seen, 128))
        if isinstance(self.source, Tensor):
            return to_bytes(self.source, self.reading.levels).permute(1, 2, 0).numpy()
        return decode_image(self.source, background=self.reading.background, name=self.name).permute(1, 2, 0).numpy()


@dataclass
class Reader:
    """Reads damaged images for a model."""

    start: GoalStart
    """the initial state that it was trained with"""
    levels: int
    background: str
    """colour behind transparent pixels, as in training"""

    @property
    def inpaints(self) -> bool:
        """Whether the model fills in what is missing of an image, and the rest of it is known."""
        return self.start.hidden is not None

    @cached_property
    def trained(self) -> np.ndarray:
        """What was missing in training, bool (height, width) of the model's images."""
        assert self.start.hidden is not None
        return self.start.hidden.numpy()

    def size(self, source: Picture | Tensor, name: str, mask: np.ndarray | None) -> Size:
        """The size of the restoration of an image, by its header alone.

        Raises:
            GoalgenError: the image cannot be read, or its mask has another size.
        """
        size = source.shape[1:] if isinstance(source, Tensor) else inspect_image(source, name)[:2]
        found = int(size[0]), int(size[1])
        if mask is not None and mask.shape != found:
            raise GoalgenError(
                f"the mask is {in_words(mask.shape)} and {name} is {in_words(found)} (height x width): a mask must have "
                "the size of its image"
            )
        return self.start.shape[1:] if self._is_small(found) else found

    def _is_small(self, size: Size) -> bool:
        return size == self.start.small and size != self.start.shape[1:]

    def read(self, source: Picture | Tensor, name: str, mask: np.ndarray | None) -> Damaged:
        """Read an image.

        Raises:
            GoalgenError: it cannot be read; or nothing of it is missing, or all, where that is to be filled in.
        """
        size = self.size(source, name, mask)
        if self.inpaints:
            state, notes = self._open(self.original(source, name, mask))
        elif isinstance(source, Tensor):
            state, notes = to_unit(source, self.levels), []
        else:
            state, notes = self._decode(source, name)
        return Damaged(source, name, size, self._begun(state), ", ".join(notes), mask, self)

    def _decode(self, source: Picture, name: str) -> tuple[Tensor, list[str]]:
        """An image at the model's size, (C, height, width) in [-1, 1], and what was done for that."""
        channels, *whole = self.start.shape
        *size, grey = inspect_image(source, name)
        small = self._is_small((size[0], size[1]))
        fitted = (size[0], size[1]) if small else (whole[0], whole[1])
        pixels = decode_image(
            source, channels=channels, image_size=fitted, fit="stretch", background=self.background, name=name
        )
        state, notes = to_unit(pixels, 256), self._modes(3 if not grey else 1)
        if small:
            state = enlarge(state[None], self.start.shape[1:])[0]
            notes.append(f"{in_words(size)} enlarged to {in_words(whole)}")
        elif size != whole:
            notes.append(f"{in_words(size)} resized to {in_words(whole)} and back")
        return state, notes

    def _modes(self, channels: int) -> list[str]:
        """What is done to an image of so many channels for a model of grey or of colour."""
        if channels == self.start.shape[0]:
            return []
        return ["colour read as grey"] if channels == 3 else ["grey read as colour"]

    def original(self, source: Picture | Tensor, name: str, mask: np.ndarray | None) -> Original:
        """An image to fill in. What is missing is what ``mask`` says, else what is transparent.

        Raises:
            GoalgenError: nothing is missing, or everything.
        """
        if isinstance(source, Tensor):
            seen = to_bytes(source, self.levels).permute(1, 2, 0).numpy()
            pixels = seen
        else:
            pixels = stored_pixels(source, name)
            seen = decode_image(source, background=self.background, name=name).permute(1, 2, 0).numpy()
        if mask is None:
            missing = pixels[:, :, -1] == 0 if pixels.shape[2] in (2, 4) else np.zeros(pixels.shape[:2], bool)
            if not missing.any():
                raise GoalgenError(
                    f"what is missing of {name} is not said: add --mask FILE, a picture that is white there, or make those "
                    f"pixels transparent; --mask {MIDDLE} is the rectangle in the middle that the model was trained with"
                )
        else:
            missing = mask
        if missing.all():
            raise GoalgenError(f"all of {name} is missing: white or transparent is missing, and the rest is kept")
        return Original(pixels, seen, missing)

    def _open(self, original: Original) -> tuple[Tensor, list[str]]:
        """An image to fill in at the model's size, (C, height, width) in [-1, 1], and what was done for that."""
        channels, *whole = self.start.shape
        seen, missing = original.seen, original.missing
        size, notes = list(missing.shape), self._modes(seen.shape[2])
        flat = Image.fromarray(seen[:, :, 0] if seen.shape[2] == 1 else seen).convert("L" if channels == 1 else "RGB")
        known = (~missing).astype(np.float32)
        pixels: np.ndarray = np.asarray(flat, np.float32).reshape(*size, channels)
        if size != whole:
            notes.append(f"{in_words(size)} resized to {in_words(whole)} and back")
            # A pixel of the model is the mean of the known ones that it covers; less than half of them, and it is missing.
            weighed = _averaged(pixels * known[:, :, None], whole)
            known = _averaged(known[:, :, None], whole)[:, :, 0]
            pixels = weighed / np.maximum(known, np.float32(1e-6))[:, :, None]
        hidden = torch.from_numpy(known < 0.5)
        if not np.array_equal(known < 0.5, self.trained):
            notes.append(f"missing elsewhere than in training (--start {self.start.spec})")
        state = torch.from_numpy(pixels / 255 * 2 - 1).permute(2, 0, 1).clamp(-1, 1)
        return state.masked_fill(hidden, HIDDEN).contiguous(), notes

    def _begun(self, state: Tensor) -> Tensor:
        """What the model begins from: an image that is damaged already, as its start would have made it."""
        start, images = self.start, state[None].to(torch.float32)
        if start.small is not None:
            # Whatever has been made of blocks of pixels since, blurred in enlarging them, is blocks again.
            return images[0] if _in_blocks(images, start) else start(1, goals=images)[0]
        return start(1, goals=images)[0] if start.steady else images[0]


def _in_blocks(images: Tensor, start: GoalStart) -> bool:
    """Whether images (B, C, height, width) are such as a start that enlarges smaller ones has made."""
    assert start.small is not None
    (height, width), (rows, columns) = start.shape[1:], start.small
    tops = [-(-i * height // rows) for i in range(rows)]
    lefts = [-(-i * width // columns) for i in range(columns)]
    return torch.equal(enlarge(images[:, :, tops][:, :, :, lefts], (height, width)), images)


def _averaged(pixels: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Pixels (height, width, C) float32 averaged to ``size``, or repeated where that is larger."""
    height, width = size
    parts = [
        Image.fromarray(pixels[:, :, c]).resize((width, height), Image.Resampling.BOX) for c in range(pixels.shape[2])
    ]
    return np.stack([np.asarray(part) for part in parts], 2)
