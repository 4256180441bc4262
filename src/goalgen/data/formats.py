"""Opening an image file: which formats are read, and what a file must be spared or told apart for Pillow to read it right."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageFile, UnidentifiedImageError

from goalgen.errors import GoalgenError

_SIGNED = {  # formats that begin with bytes of their own, and are tried on every file
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "QOI": (".qoi",),
    "SGI": (".sgi",),
    "ICO": (".ico",),
}
_UNSIGNED = {
    "DIB": (".dib",),
    "PCX": (".pcx",),
    "TGA": (".tga",),
}  # ... and others, tried on files of these names alone

EXTENSIONS = tuple(e for extensions in (*_SIGNED.values(), *_UNSIGNED.values()) for e in extensions)
"""Names of files that are taken for images when a folder is read."""

_PNG = b"\x89PNG\r\n\x1a\n"
_TIFF = {
    b"II*\0": ("<", 8),
    b"MM\0*": (">", 8),
    b"II+\0": ("<", 16),
    b"MM\0+": (">", 16),
}  # byte order, bytes of the header
_BITS, _COMPRESSION, _PHOTOMETRIC, _FILL, _PLANAR, _EXTRA, _SAMPLE_FORMAT, _SUBSAMPLING = (
    258,
    259,
    262,
    266,
    284,
    338,
    339,
    530,
)
_SAFE = 1000
"""Bytes of compressed text that cannot become the megabyte at which Pillow refuses a file (deflate: 1,032 times at most)."""


@dataclass(frozen=True)
class Opened:
    """An image that Pillow has opened."""

    image: Image.Image
    white_is_zero: bool = False
    """Pixels of 16 bits are stored as a negative, which Pillow does not undo."""


@cache
def formats() -> tuple[str, ...]:
    """Formats that begin with bytes of their own and that this Pillow reads.

    They are named to Pillow, so that it neither tries its 30 others on every file nor runs Ghostscript on an .eps that
    calls itself .png.
    """
    Image.init()
    return tuple(name for name in _SIGNED if name in Image.OPEN)


@contextlib.contextmanager
def open_file(source: str | Path | bytes) -> Iterator[Opened]:
    """Context in which an image file, or the bytes of one, is open. Its pixels are read when they are asked for.

    Raises:
        GoalgenError: a TIFF whose pixels have no known scale, or are stored in a way that is not read right.
        OSError: the file cannot be read, or is no image; and nearly anything else where it is damaged.
    """
    # Pillow is given the file, not its path: by path it maps a TIFF into memory, and garbles one that lies on its side.
    with _stream(source) as file:
        head = file.read(8)
        if head.startswith(_PNG):
            image, white_is_zero = Image.open(_sound_png(file) or _begin(file), formats=("PNG",)), False
        elif head[:4] in _TIFF:
            image, white_is_zero = _open_tiff(file, head[:2])
        else:
            suffix = "" if isinstance(source, bytes) else Path(source).suffix.lower()
            own = tuple(name for name, extensions in _UNSIGNED.items() if suffix in extensions)
            image, white_is_zero = Image.open(_begin(file), formats=(*formats(), *own)), False
        with image:
            yield Opened(image, white_is_zero)


def _stream(source: str | Path | bytes) -> BinaryIO:
    """What to read a file by, or the bytes of one.

    Raises:
        GoalgenError: it is no file, so that reading it might never end.
    """
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if not stat.S_ISREG(os.stat(source).st_mode):
        raise GoalgenError("it is no file but a folder, a pipe or a device")
    return Path(source).open("rb")


def _begin(file: BinaryIO) -> BinaryIO:
    file.seek(0)
    return file


def _open_tiff(file: BinaryIO, order: bytes) -> tuple[ImageFile.ImageFile, bool]:
    """Return a TIFF, and whether its 16-bit pixels are a negative."""
    tags = dict(_tiff_tags(file))
    negative, place = tags.get(_PHOTOMETRIC, ((), 0))
    turned = negative == (0,) and tags.get(_BITS, ((), 0))[0] == (16,)
    try:
        return Image.open(_patched(file, place, order) if turned else _begin(file), formats=("TIFF",)), turned
    except UnidentifiedImageError:
        values = {tag: " ".join(map(str, found)) for tag, (found, _) in tags.items()}
        kind = f"{values.get(_BITS, '1')} bits, photometric {values.get(_PHOTOMETRIC, 'unknown')}, "
        kind += f"sample format {values.get(_SAMPLE_FORMAT, '1')}, compression {values.get(_COMPRESSION, '1')}"
        raise GoalgenError(f"TIFF of a kind that is not read: {kind}") from None


def is_garbled(image: Image.Image) -> bool:
    """Whether an image that is open, not read, would be garbled: Pillow maps a TIFF at a path that lies on its side."""
    tags = getattr(image, "tag_v2", None)
    unread = bool(getattr(image, "tile", None)) and bool(getattr(image, "filename", ""))
    return image.format == "TIFF" and unread and tags is not None and tags.get(274, 1) >= 5 and image.tell() == 0


def _sound_png(file: BinaryIO) -> BinaryIO | None:
    """A PNG without its colour profile and texts, where those are long; None where the file is well as it is.

    Pillow refuses a file whose texts or profile are larger than a megabyte; what they say is nothing of the pixels.
    """
    kept, dropped, texts = [_PNG], False, 0
    file.seek(0, io.SEEK_END)
    size = file.tell()
    chunks = []
    at = len(_PNG)
    while at + 8 <= size:
        file.seek(at)
        length, kind = struct.unpack(">I4s", file.read(8))
        chunks.append((at, min(length + 12, size - at), kind))
        texts += length if kind in (b"zTXt", b"iTXt", b"iCCP", b"tEXt") else 0
        at += length + 12
    if texts < _SAFE:
        return None
    for at, length, kind in chunks:
        file.seek(at)
        content = file.read(length)
        if kind in (b"iCCP", b"iTXt") or (kind in (b"tEXt", b"zTXt") and not _is_exif(kind, content[8:-4])):
            dropped = True
        else:
            kept.append(content)
    return io.BytesIO(b"".join(kept)) if dropped else None


def _is_exif(kind: bytes, content: bytes) -> bool:
    """Whether a text is EXIF as ImageMagick writes it, which says how the image is turned, and no bomb."""
    if not content.startswith(b"Raw profile type exif\0"):
        return False
    if kind == b"tEXt":
        return len(content) < 2**20
    inflate = zlib.decompressobj()
    try:
        inflate.decompress(content.partition(b"\0")[2][1:], 2**20 - 1)
    except zlib.error:
        return False
    return inflate.eof


def _tiff_tags(file: BinaryIO) -> Iterator[tuple[int, tuple[tuple[int, ...], int]]]:
    """The numbers of the first directory of a TIFF by tag, and where in the file they stand. (TIFF 6.0, section 2)"""
    file.seek(0)
    head = file.read(16)
    order, header = _TIFF[head[:4]]
    big = header == 16
    (at,) = struct.unpack_from(f"{order}{'Q' if big else 'I'}", head, 8 if big else 4)
    file.seek(at)
    size = 20 if big else 12
    first = file.read(8 if big else 2)
    (count,) = struct.unpack(f"{order}{'Q' if big else 'H'}", first) if len(first) == (8 if big else 2) else (0,)
    for i in range(min(count, 4096)):
        start = at + len(first) + i * size
        file.seek(start)
        entry = file.read(size)
        if len(entry) < size:
            return
        tag, kind, number = struct.unpack_from(f"{order}HH{'Q' if big else 'I'}", entry)
        letter = {1: "B", 3: "H", 4: "I", 16: "Q"}.get(kind)
        if letter is None or not 0 < number <= 16:
            continue
        place, length = start + size - (8 if big else 4), struct.calcsize(letter) * number
        if length > (8 if big else 4):
            (place,) = struct.unpack_from(f"{order}{'Q' if big else 'I'}", entry, size - (8 if big else 4))
        file.seek(min(place, 2**62))
        values = file.read(length)
        if len(values) == length:
            yield tag, (struct.unpack(f"{order}{number}{letter}", values), place)


def _patched(file: BinaryIO, place: int, order: bytes) -> BinaryIO:
    """The file with its photometric interpretation, a short number at ``place``, set to black-is-zero.

    Pillow reads 16-bit white-is-zero as if it were black-is-zero, or, of big-endian files, not at all.
    """
    file.seek(0)
    content = bytearray(file.read())
    content[place : place + 2] = b"\1\0" if order == b"II" else b"\0\1"
    return io.BytesIO(content)


def check_tiff(image: Image.Image) -> None:
    """Refuse a TIFF that Pillow opens, but whose pixels it does not give as they are stored.

    Raises:
        GoalgenError: naming the kind.
    """
    tags = getattr(image, "tag_v2", None)
    if image.format != "TIFF" or tags is None:
        return

    def values(tag: int, default: tuple[int, ...]) -> tuple[int, ...]:
        found = tags.get(tag, default)
        return found if isinstance(found, tuple) else (found,)

    bits, raw, photometric = values(_BITS, (1,)), values(_COMPRESSION, (1,)) == (1,), values(_PHOTOMETRIC, (0,))
    if 2 in values(_SAMPLE_FORMAT, (1,)):
        raise GoalgenError("signed pixels have no known range; save the image with 8 or 16 bits, unsigned")
    apart = values(_PLANAR, (1,)) == (2,) and len(bits) > 1
    if apart and (max(bits) > 8 or photometric != (2,) or values(_FILL, (1,)) == (2,) or values(_EXTRA, ()) == (1,)):
        kind = f"{max(bits)} bits, photometric {photometric[0]}"
        raise GoalgenError(
            f"channels stored one after the other (PlanarConfiguration 2) are not read of this kind: {kind}"
        )
    if raw and photometric == (6,) and values(_SUBSAMPLING, (2, 2)) != (1, 1):
        raise GoalgenError("YCbCr with subsampled colour is read only where it is JPEG-compressed")


def grey_range(image: Image.Image) -> tuple[int, bool]:
    """Of 16-bit grey that is open: the value that white, or black, has; and whether it is black, as far as Pillow leaves it so."""
    tags = getattr(image, "tag_v2", None)
    if image.format != "TIFF" or tags is None:
        return 65535, False
    from PIL.TiffImagePlugin import OPEN_INFO

    bits = tags.get(_BITS, (16,))
    left = OPEN_INFO.get((b"II", 0, (1,), 1, (16,), ()), ("", ""))[1] == "I;16"
    return 2 ** (bits[0] if isinstance(bits, tuple) else bits) - 1, left and tags.get(_PHOTOMETRIC, 0) == 0


def rawmode(image: Image.Image) -> str:
    """How the pixels of an image are stored that is open but not read yet, such as "RGB;16B"; "" where that is not known."""
    tile = getattr(image, "tile", None)
    arguments = tile[0][3] if tile else ""
    found = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return found if isinstance(found, str) else ""
