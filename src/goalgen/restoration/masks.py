"""What is missing of an image that is to be filled in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from goalgen.data.images import decode_image
from goalgen.errors import GoalgenError
from goalgen.intake import Picture
from goalgen.starts import GoalStart

Size = tuple[int, int]
"""(height, width) in pixels."""

Mask = Tensor | np.ndarray | Picture
"""What is missing of an image: (height, width) bool or numbers, of which all but 0 are missing; or a picture, white there."""

MIDDLE = "middle"
"""The mask that a model was trained with."""
WHITE = 128
"""Grey level from which a picture says that a pixel is missing."""


def read_mask(mask: Mask) -> np.ndarray:
    """What is missing, bool (height, width): where numbers are not 0, or a picture is white (128 of 255, and above).

    Raises:
        GoalgenError: it cannot be read, or is no mask of one image.
    """
    if isinstance(mask, np.ndarray | Tensor):
        missing = np.asarray(mask.cpu() if isinstance(mask, Tensor) else mask) != 0
        if missing.ndim != 2:
            raise GoalgenError(f"a mask must be (height, width), not {missing.shape}")
        return missing
    if not isinstance(mask, str | Path | bytes | Image.Image):
        raise GoalgenError(f"a mask must be a tensor, an array, a PIL image or a file, not {type(mask).__name__}")
    source = Path(mask).expanduser() if isinstance(mask, str) else mask
    # Transparent parts of a mask are not painted, and so not missing.
    return (decode_image(source, channels=1, background="black", name=named(mask, "the mask"))[0] >= WHITE).numpy()


def named(source: object, otherwise: str) -> str:
    """What messages call an image or a mask: its path, if it has one."""
    return str(source) if isinstance(source, str | Path) else otherwise


def in_words(size: Sequence[int]) -> str:
    """A size as messages have it, height x width."""
    return f"{size[0]}x{size[1]}"


def read_masks(mask: Mask | Sequence[Mask] | None, count: int, start: GoalStart) -> list[np.ndarray | str | None]:
    """For each of ``count`` images what is missing, bool (height, width); "middle", or None where its transparency says it.

    Raises:
        GoalgenError: the model fills in nothing; or a mask cannot be read, marks nothing, or they are not so many.
    """
    if mask is None:
        return [None] * count
    if start.hidden is None:
        raise GoalgenError(
            f"--mask is for a model that fills in what is missing, trained with --start mask:0.5 or the like; this one was "
            f"trained with --start {start.spec}: leave it out"
        )
    if isinstance(mask, str) and mask == MIDDLE:
        return [MIDDLE] * count
    if isinstance(mask, list | tuple):
        given: list[Mask] = list(mask)
    elif isinstance(mask, np.ndarray | Tensor) and mask.ndim == 3:
        given = [*np.asarray(mask.cpu() if isinstance(mask, Tensor) else mask)]
    else:
        given = [mask]  # type: ignore[list-item]
    if len(given) not in (1, count):
        raise GoalgenError(f"{len(given)} masks were given for {count} images; give one, or one for each")
    found: list[np.ndarray | str | None] = []
    for one in given:
        found.append(missing := read_mask(one))
        if not missing.any():
            raise GoalgenError(f"{named(one, 'the mask')} marks nothing: what is missing must be white in it")
    return found if len(found) == count else found * count


def middle_of(trained: np.ndarray, size: Size) -> np.ndarray:
    """What was missing in training, bool (height, width), at another size."""
    height, width = size
    return np.asarray(Image.fromarray(trained).resize((width, height), Image.Resampling.NEAREST))
