"""One image file to one uint8 tensor, and the conversions between grey levels, [-1, 1] and bytes.

Images are uint8 tensors (N, C, height, width) that hold grey levels 0..levels-1; networks see
float32 in [-1, 1]. Files always decode to 256 levels.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError
from torch import Tensor

from goalgen.errors import GoalgenError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Names of files that are taken for images when a folder is read."""

# Named to PIL, so that it neither tries its 40 other formats on every file (slow for WebP, tried last) nor runs
# Ghostscript on an .eps that calls itself .png.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")

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
_GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N")
_ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")


# 1. Finding files


def walk(folder: Path) -> Iterator[Path]:
    """Yield the files in ``folder`` and below, hidden ones left out, sorted by relative path.

    Links to folders are followed, each folder once.

    Raises:
        GoalgenError: a folder cannot be read.
    """
    found: list[Path] = []
    seen: set[str] = set()
    for root, folders, files in os.walk(folder, followlinks=True, onerror=_unreadable):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        # __MACOSX holds the resource forks ("._a.png") that a Mac adds to a zip file: no images, whatever their names.
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f != "__MACOSX")
        found += [Path(root, f) for f in files if not f.startswith(".")]
    yield from sorted(found, key=lambda p: p.relative_to(folder).as_posix())


def _unreadable(error: OSError) -> None:
    raise GoalgenError(f"{error.filename} cannot be read: {error.strerror or error}; mend or remove it") from None


def find_images(folder: Path) -> list[Path]:
    """Return the image files (see ``EXTENSIONS``) in ``folder`` and below, in the order of :func:`walk`."""
    return [p for p in walk(folder) if p.suffix.lower() in EXTENSIONS]


# 2. Decoding


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
    with _reading(source, name) as image:
        size = image.size if _orientation(image) >= 5 else (image.height, image.width)
        return *size, _is_grey(image)


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

    Of an animation the first frame is read; 16-bit grey is scaled to 8 bits; the EXIF orientation is
    applied; transparent pixels show ``background``.

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
    with _reading(source, name) as image:
        # Read before the pixels are: a PNG may carry a second EXIF block after them, which inspect_image never sees.
        orientation = _orientation(image)
        grey = channels == 1 or (channels is None and _is_grey(image))
        image.load()
        flat = _flatten(image, colour)
        if orientation in _TRANSPOSE:
            flat = flat.transpose(_TRANSPOSE[orientation])
        flat = flat.convert("L" if grey else "RGB")
        if image_size is not None and (flat.height, flat.width) != tuple(image_size):
            flat = _resize(flat, image_size, fit, colour)
        array = np.array(flat)
    return torch.from_numpy(array[None] if grey else array.transpose(2, 0, 1).copy())


@contextlib.contextmanager
def _reading(source: ImageLike, name: str | None) -> Iterator[Image.Image]:
    """Context in which PIL reads one image: whatever goes wrong inside becomes one GoalgenError with its name."""
    name = name or (str(source) if isinstance(source, (str, Path)) else "the image")
    try:
        with warnings.catch_warnings():
            # PIL warns of damaged metadata, about which a user of the pixels can do nothing.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if isinstance(source, Image.Image):
                yield source
            else:
                file = io.BytesIO(source) if isinstance(source, bytes) else source
                with Image.open(file, formats=_FORMATS) as opened:
                    yield opened
    except (GoalgenError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = f"the limit is {Image.MAX_IMAGE_PIXELS:,}"
        raise GoalgenError(f"{name} has too many pixels ({limit}); make it smaller first") from None
    except FileNotFoundError:
        raise GoalgenError(f"{name} does not exist; check the path") from None
    # Decoders of damaged files raise nearly anything: OSError, SyntaxError, struct.error, IndexError, zlib.error.
    except Exception as error:
        reason = str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = f"it is in none of the formats {', '.join(_FORMATS)}"
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


def _is_grey(image: Image.Image) -> bool:
    if image.mode == "P":
        colours = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)  # this decodes the image
        return bool((colours == colours[:, :1]).all())
    return image.mode in _GREY_MODES


def _flatten(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Return the image in mode L or RGB, 8 bits, opaque."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.float64)
        return Image.fromarray(np.rint(values * (255 / 65535)).clip(0, 255).astype(np.uint8))
    if image.mode == "F":
        raise GoalgenError("floating-point pixels have no known range; save the image with 8 or 16 bits")
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        front = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", front.size, (*background, 255)), front).convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


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


# 3. Grey levels, [-1, 1] and bytes


def _check_levels(levels: int) -> None:
    if not 2 <= levels <= 256:
        raise GoalgenError(f"levels must be 2 to 256, not {levels}")


def to_unit(images: Tensor, levels: int) -> Tensor:
    """Return grey levels 0..levels-1 (uint8, any shape) as float32 in [-1, 1]."""
    _check_levels(levels)
    return images.to(torch.float32) / (levels - 1) * 2 - 1


def from_unit(x: Tensor, levels: int) -> Tensor:
    """Return the nearest grey levels 0..levels-1 (uint8) of values in [-1, 1]; values outside are clamped."""
    _check_levels(levels)
    return ((x.float() + 1) / 2 * (levels - 1)).round().clamp(0, levels - 1).to(torch.uint8)


def to_bytes(images: Tensor, levels: int) -> Tensor:
    """Return grey levels 0..levels-1 (uint8, any shape) stretched to 0..255 (uint8), for pictures."""
    _check_levels(levels)
    return (images.to(torch.float32) * (255 / (levels - 1))).round().clamp(0, 255).to(torch.uint8)


def binarize_images(images: Tensor, levels: int, generator: torch.Generator) -> Tensor:
    """Return 0 or 1 (uint8, same shape) for every pixel: 1 with probability level / (levels - 1)."""
    _check_levels(levels)
    chance = torch.rand(images.shape, generator=generator, device=generator.device)
    # rand is in [0, 1): level 0 is never drawn as 1, the last level always is.
    return (chance.to(images.device) < images.to(torch.float32) / (levels - 1)).to(torch.uint8)


def augment_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return images (N, C, height, width) of which each is mirrored left to right with a chance of one half."""
    mirrored = torch.rand(len(images), generator=generator, device=generator.device).to(images.device) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def augment_shift(images: Tensor, generator: torch.Generator, pixels: int = 1) -> Tensor:
    """Return every image (N, C, height, width) shifted by its own whole number of pixels.

    Both shifts are uniform in -pixels..pixels; what comes in over the edge repeats the edge.
    """
    n, channels, height, width = images.shape
    shift = torch.randint(-pixels, pixels + 1, (n, 2), generator=generator, device=generator.device).to(images.device)
    rows = (torch.arange(height, device=images.device) - shift[:, :1]).clamp(0, height - 1)  # (N, height)
    columns = (torch.arange(width, device=images.device) - shift[:, 1:]).clamp(0, width - 1)  # (N, width)
    image = torch.arange(n, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[None, :, None, None]
    return images[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
