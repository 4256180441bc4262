"""One image file to one uint8 tensor (C, height, width) of 256 grey levels."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError
from torch import Tensor

from goalgen.data.formats import EXTENSIONS, Opened, formats, is_garbled, open_file
from goalgen.data.pixels import as_stored, flatten, look
from goalgen.errors import GoalgenError

__all__ = ["EXTENSIONS", "ImageLike", "decode_image", "inspect_image", "parse_colour", "stored_pixels"]

ImageLike = str | Path | bytes | Image.Image

_ORIENTATION = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def parse_colour(colour: str) -> tuple[int, int, int]:
    """Return (red, green, blue) in 0..255 for a colour name or ``#rrggbb``.

    Raises:
        GoalgenError: no colour is called so.
    """
    try:
        red, green, blue = ImageColor.getrgb(colour)[:3]
    except (ValueError, AttributeError):
        raise GoalgenError(f"{colour!r} is not a colour; give a name such as white, or #rrggbb") from None
    return red, green, blue


def inspect_image(source: ImageLike, name: str | None = None) -> tuple[int, int, bool]:
    """Return height and width in pixels (orientation applied) and whether the image is grey, by its header alone.

    Args:
        source: a path, the bytes of a file, or a PIL image.
        name: what error messages call it (default: its path).

    Raises:
        GoalgenError: the file is missing, is no image, or is too large to be one in good faith.
    """
    with _reading(source, name) as opened:
        image, stored = opened.image, look(opened)
        size = image.size if _orientation(image) >= 5 else (image.height, image.width)
        return *size, stored.grey


def decode_image(
    source: ImageLike,
    *,
    channels: int | None = None,
    image_size: tuple[int, int] | None = None,
    fit: str = "crop",
    background: str = "white",
    name: str | None = None,
) -> Tensor:
    """Return an image as a uint8 tensor (C, height, width) of 256 levels.

    Of an animation the first frame is read; 16 bits are scaled to 8; the orientation of TIFF and EXIF is applied;
    transparent pixels show ``background``. What has no known scale, or Pillow does not read right, is refused by name.

    Args:
        source: a path, the bytes of a file, or a PIL image.
        channels: 1 (luma) or 3; None keeps 1 for a grey image and gives 3 otherwise.
        image_size: (height, width) to resize to; None keeps the image's own.
        fit: how another aspect ratio meets ``image_size``: "crop", "pad" (with ``background``) or "stretch".
        background: a colour name or ``#rrggbb``.
        name: what error messages call the image (default: its path).

    Raises:
        GoalgenError: the image cannot be read, or no colour is called so.
    """
    colour = parse_colour(background)
    with _reading(source, name) as opened:
        # Read before the pixels are: a PNG may carry a second EXIF block after them, which inspect_image never sees.
        image, orientation, stored = opened.image, _orientation(opened.image), look(opened)
        grey = channels == 1 or (channels is None and stored.grey)
        image.load()
        flat = flatten(image, stored, colour)
        if image is not source:
            image.close()  # its memory is needed
        if orientation in _TRANSPOSE:
            flat = flat.transpose(_TRANSPOSE[orientation])
        wanted = "L" if grey else "RGB"
        flat = flat if flat.mode == wanted else flat.convert(wanted)
        if image_size is not None and (flat.height, flat.width) != tuple(image_size):
            flat = _resize(flat, image_size, fit, colour)
    return torch.from_numpy(np.array(flat)[None] if grey else _channels_first(flat))


def stored_pixels(source: ImageLike, name: str | None = None) -> np.ndarray:
    """Return the pixels of an image with its transparency, (height, width, C): grey, grey and alpha, RGB, or RGBA.

    They are uint8, and uint16 of opaque grey of 16 bits. The same images are read as by :func:`decode_image`, and turned alike.

    Raises:
        GoalgenError: the image cannot be read.
    """
    with _reading(source, name) as opened:
        image, orientation, stored = opened.image, _orientation(opened.image), look(opened)
        image.load()
        found = as_stored(image, stored)
        if orientation in _TRANSPOSE:
            found = found.transpose(_TRANSPOSE[orientation])
        pixels = np.array(found)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _channels_first(image: Image.Image) -> np.ndarray:
    """The pixels of an RGB image, (3, height, width) uint8."""
    if image.width * image.height <= 2**22:
        return np.array(image).transpose(2, 0, 1).copy()
    pixels = np.empty((3, image.height, image.width), np.uint8)  # a channel at a time takes less memory, and longer
    for channel in range(3):
        pixels[channel] = np.asarray(image.getchannel(channel))
    return pixels


class _Quiet:
    """The filters of warnings belong to all threads: the first that reads sets them, the last puts them back."""

    def __init__(self) -> None:
        self.lock, self.readers, self.before = threading.Lock(), 0, contextlib.ExitStack()

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Context in which PIL says nothing, and refuses what is too large."""
        with self.lock:
            if self.readers == 0:
                self.before.enter_context(warnings.catch_warnings())
                # PIL warns of damaged metadata, about which a user of the pixels can do nothing.
                warnings.simplefilter("ignore")
                warnings.simplefilter("error", Image.DecompressionBombWarning)
            self.readers += 1
        try:
            yield
        finally:
            with self.lock:
                self.readers -= 1
                if self.readers == 0:
                    self.before.close()


quiet = _Quiet()


@contextlib.contextmanager
def _reading(source: ImageLike, name: str | None) -> Iterator[Opened]:
    """Context in which PIL reads one image: whatever goes wrong inside becomes one GoalgenError with its name."""
    name = name or (str(source) if isinstance(source, (str, Path)) else "the image")
    try:
        with quiet():
            if isinstance(source, Image.Image) and not is_garbled(source):
                yield Opened(source)
            else:
                with open_file(source.filename if isinstance(source, Image.Image) else source) as opened:  # type: ignore[attr-defined]
                    yield opened
    except MemoryError:
        raise GoalgenError(f"{name} says that it is larger than there is memory; mend or remove it") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = f"the limit is {Image.MAX_IMAGE_PIXELS:,}"
        raise GoalgenError(f"{name} has too many pixels ({limit}); make it smaller first") from None
    except FileNotFoundError:
        raise GoalgenError(f"{name} does not exist; check the path") from None
    # Decoders of damaged files raise nearly anything: OSError, SyntaxError, struct.error, IndexError, zlib.error.
    except Exception as error:
        reason = str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = f"it is in none of the formats {', '.join(formats())}"
        raise GoalgenError(f"{name} cannot be read as an image ({reason}); mend or remove it") from None


def _orientation(image: Image.Image) -> int:
    # TIFF: PIL turns the image itself. PNG: asking for EXIF that is not in the header would decode all pixels.
    if image.format == "TIFF":
        return 1
    if image.format == "PNG" and not {"exif", "Raw profile type exif"} & image.info.keys():
        return 1
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged metadata of a sound image: show it as it is stored
        return 1


def _resize(image: Image.Image, size: tuple[int, int], fit: str, background: tuple[int, int, int]) -> Image.Image:
    height, width = size
    lanczos = Image.Resampling.LANCZOS
    if fit == "stretch":
        return image.resize((width, height), lanczos)
    if fit == "crop":
        return ImageOps.fit(image, (width, height), lanczos)
    scale = max(image.width / width, image.height / height)
    inner = (max(1, round(image.width / scale)), max(1, round(image.height / scale)))
    canvas = Image.new("RGB", (width, height), background).convert(image.mode)
    canvas.paste(image.resize(inner, lanczos), ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return canvas
