"""From whatever an image file stores to 8 bits, opaque, grey or RGB; or a refusal that names what it stores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from goalgen.data.formats import Opened, check_tiff, grey_range, rawmode
from goalgen.errors import GoalgenError

_GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N")
_ALPHA_MODES = ("LA", "PA", "RGBA", "RGBa")
_MOST = 65535
"""White in 16 bits."""
_BAND = 2**22
"""Pixels that are worked on at a time, so that a large image needs little more memory than itself."""

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Stored:
    """What must be known of an image before its pixels are read, as Pillow forgets it then."""

    grey: bool
    bits: str
    """how pixels are stored, see :func:`goalgen.data.formats.rawmode`"""
    most: int
    """largest value of 16-bit grey"""
    negative: bool
    """0 is white in 16-bit grey"""


def look(opened: Opened) -> Stored:
    """What an image stores, before its pixels are read.

    Raises:
        GoalgenError: its pixels have no known scale, or are stored in a way that is not read right.
    """
    image = opened.image
    check_tiff(image)
    if image.mode == "F":
        raise GoalgenError("floating-point pixels have no known range; save the image with 8 or 16 bits")
    if image.mode == "I" and image.format not in ("PNG", "PPM"):  # those are 16-bit grey
        raise GoalgenError("32-bit pixels have no known range; save the image with 8 or 16 bits")
    bits = rawmode(image)
    if image.mode == "RGB" and "transparency" in image.info and (";16" in bits or _beyond_bytes(image)):
        raise GoalgenError("16-bit colour with a transparent colour (tRNS) is not read; save it with an alpha channel")
    most, negative = grey_range(image)
    return Stored(is_grey(image), bits, most, negative or opened.white_is_zero)


def _beyond_bytes(image: Image.Image) -> bool:
    colour = image.info["transparency"]
    return isinstance(colour, tuple) and max(colour) > 255


def is_grey(image: Image.Image) -> bool:
    """Whether an image is grey by its mode, or by its palette (which is read with the pixels)."""
    if image.mode in ("P", "PA"):
        colours = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
        return bool((colours == colours[:, :1]).all())
    return image.mode in _GREY_MODES or rawmode(image) == "LA;16B"


def flatten(image: Image.Image, stored: Stored, background: Colour) -> Image.Image:
    """Return an image in mode L or RGB, 8 bits, opaque: transparent pixels show ``background``.

    16 bits of grey are scaled by 255/65535 and rounded; of colour, the upper 8 are taken.
    """
    image = _in_bytes(image, stored)
    if _has_alpha(image):
        return _over(image, background)
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def as_stored(image: Image.Image, stored: Stored) -> Image.Image:
    """Return an image with its transparency, and in 16 bits where it is grey of 16 bits and opaque: mode L, LA, RGB, RGBA or I;16.

    The pixels are those that :func:`flatten` would lay over a background.
    """
    if image.mode.startswith("I") and stored.most == _MOST and not isinstance(image.info.get("transparency"), int):
        values = np.asarray(image).astype(np.int64).clip(0, _MOST)
        return Image.fromarray((_MOST - values if stored.negative else values).astype(np.uint16))
    image = _in_bytes(image, stored)
    grey = image.mode in ("1", "L", "LA")
    return image.convert(("LA" if grey else "RGBA") if _has_alpha(image) else ("L" if grey else "RGB"))


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in _ALPHA_MODES or "transparency" in image.info


def _in_bytes(image: Image.Image, stored: Stored) -> Image.Image:
    """Return an image in 8 bits; grey that has a transparent level has it as alpha."""
    clear = image.info.get("transparency")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        grey = Image.fromarray(_eight_bits(values, stored.most, stored.negative))
        if not isinstance(clear, int):
            return grey
        image = Image.merge("LA", (grey, Image.fromarray(np.where(values == clear, np.uint8(0), np.uint8(255)))))
    elif image.mode in ("1", "L") and isinstance(clear, int):
        grey = image.convert("L")
        level = _clear_level(grey, clear, stored.bits) if image.mode == "L" else clear
        image = Image.merge("LA", (grey, grey.point([0 if v == level else 255 for v in range(256)])))
    elif image.mode == "La":
        image = image.convert("LA")
    return image


def _eight_bits(values: np.ndarray, most: int, negative: bool) -> np.ndarray:
    """Grey values 0..most, (height, width), as uint8 0..255, rounded."""
    out = np.empty(values.shape, np.uint8)
    rows = max(1, _BAND // max(values.shape[1], 1))
    for top in range(0, len(values), rows):
        part = values[top : top + rows].astype(np.int64).clip(0, most)
        part = most - part if negative else part
        out[top : top + rows] = (part * 255 + most // 2) // most
    return out


def _clear_level(grey: Image.Image, clear: int, bits: str) -> int:
    """The level 0..255 that is transparent in a grey PNG, which says it in 1, 2, 4 or 8 bits.

    Raises:
        GoalgenError: how many bits it has is no longer known, and matters.
    """
    if depth := {"L;2": 2, "L;4": 4, "L": 8}.get(bits):
        return clear * 255 // (2**depth - 1)
    if 0 < clear < 16 and not grey.histogram()[clear]:
        raise GoalgenError(
            "its transparent level is in bits whose number is no longer known; pass the path of its file"
        )
    return clear


def _over(image: Image.Image, background: Colour) -> Image.Image:
    """Lay an image with transparency over a colour."""
    width, height = image.size
    result = Image.new("RGB", image.size)
    rows = max(1, _BAND // max(width, 1))
    for top in range(0, height, rows):
        front = image.crop((0, top, width, min(top + rows, height))).convert("RGBA")
        behind = Image.new("RGBA", front.size, (*background, 255))
        result.paste(Image.alpha_composite(behind, front).convert("RGB"), (0, top))
    return result
