"""Image files written byte by byte from known samples, and the pixels that they must become: independent of Pillow."""

from __future__ import annotations

import dataclasses
import struct
import zlib
from dataclasses import dataclass

import numpy as np


def bits_packed(samples: np.ndarray, bits: int, order: str) -> bytes:
    """Rows of samples (rows, n), each row filled up to whole bytes, high bits first; 16 and 32 bits in ``order``."""
    if bits in (8, 16, 32):
        return samples.astype(f"{order}u{bits // 8}").tobytes()
    wide = np.unpackbits(samples.astype(">u2").view(np.uint8).reshape(*samples.shape, 2), axis=-1)[..., -bits:]
    return np.packbits(wide.reshape(len(samples), -1), axis=1).tobytes()


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Stored pixels (height, width, ...) as they are to be seen. (EXIF 2.3, tag 274)"""
    side = pixels.swapaxes(0, 1)
    return {
        1: pixels, 2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1], 5: side, 6: side[:, ::-1],
        7: side[::-1, ::-1], 8: side[::-1],
    }[orientation]  # fmt: skip


def laid_over(
    colour: np.ndarray, alpha: np.ndarray, background: tuple[int, int, int], premultiplied: bool
) -> np.ndarray:
    """Colours 0..255 (..., 1 or 3) with alpha 0..1 (..., 1) over a background, (..., 3)."""
    return (colour if premultiplied else colour * alpha) + (1 - alpha) * np.array(background, float)


@dataclass(frozen=True)
class Tiff:
    """A TIFF of one image. (TIFF 6.0)"""

    samples: np.ndarray  # (height, width, channels)
    bits: int = 8
    photometric: int = 1  # 0 white is zero, 1 black is zero, 2 RGB, 3 palette, 5 CMYK
    order: str = "<"
    big: bool = False
    planar: int = 1
    fill: int = 1
    deflate: bool = False
    rows: int = 0  # of a strip; 0: all
    orientation: int = 1
    extra: int | None = None  # 0 unspecified, 1 premultiplied alpha, 2 alpha
    kind: int = 1  # of a sample: 1 unsigned, 2 signed, 3 floating-point
    palette: np.ndarray | None = None  # (3, 2**bits) of 16 bits

    def content(self) -> bytes:
        height, width, channels = self.samples.shape
        planes = [self.samples] if self.planar == 1 else [self.samples[..., c : c + 1] for c in range(channels)]
        step, strips = self.rows or height, []
        for plane in planes:
            for top in range(0, height, step):
                part = plane[top : top + step]
                data = bits_packed(part.reshape(len(part), -1), self.bits, self.order)
                data = zlib.compress(data) if self.deflate else data
                if self.fill == 2:
                    data = np.packbits(np.unpackbits(np.frombuffer(data, np.uint8)).reshape(-1, 8)[:, ::-1]).tobytes()
                strips.append(data)
        header = 16 if self.big else 8
        offsets, at = [], header
        for strip in strips:
            offsets.append(at)
            at += len(strip) + len(strip) % 2
        tags = {
            256: ("I", [width]), 257: ("I", [height]), 258: ("H", [self.bits] * channels),
            259: ("H", [8 if self.deflate else 1]), 262: ("H", [self.photometric]), 266: ("H", [self.fill]),
            273: ("I", offsets), 274: ("H", [self.orientation]), 277: ("H", [channels]), 278: ("I", [step]),
            279: ("I", [len(s) for s in strips]), 284: ("H", [self.planar]), 339: ("H", [self.kind] * channels),
        }  # fmt: skip
        if self.palette is not None:
            tags[320] = ("H", self.palette.flatten().tolist())
        if self.extra is not None:
            tags[338] = ("H", [self.extra])
        body = b"".join(s + b"\0" * (len(s) % 2) for s in strips)
        return self._head(at) + body + self._directory(tags, at)

    def _head(self, at: int) -> bytes:
        mark = b"II" if self.order == "<" else b"MM"
        if self.big:
            return mark + struct.pack(f"{self.order}HHHQ", 43, 8, 0, at)
        return mark + struct.pack(f"{self.order}HI", 42, at)

    def _directory(self, tags: dict[int, tuple[str, list[int]]], at: int) -> bytes:
        count, number, word = ("Q", "Q", 8) if self.big else ("H", "I", 4)
        end = at + struct.calcsize(count) + len(tags) * (4 + 2 * word) + word
        entries, beyond = b"", b""
        for tag, (letter, values) in sorted(tags.items()):
            data = struct.pack(f"{self.order}{len(values)}{letter}", *values)
            kind = {"H": 3, "I": 4}[letter]
            if len(data) > word:
                place, beyond = end + len(beyond), beyond + data + b"\0" * (len(data) % 2)
                data = struct.pack(f"{self.order}{number}", place)
            entries += struct.pack(f"{self.order}HH{number}", tag, kind, len(values)) + data.ljust(word, b"\0")
        return struct.pack(f"{self.order}{count}", len(tags)) + entries + b"\0" * word + beyond

    def pixels(self, background: tuple[int, int, int]) -> np.ndarray:
        """(height, width, 1 or 3) as floats 0..255."""
        most = 2**self.bits - 1
        values = self.samples.astype(float)
        alpha = None
        if self.extra is not None:
            values, alpha = values[..., :-1], values[..., -1:] / most
        if self.palette is not None:
            colour = self.palette.T[self.samples[..., 0]] / 257.0
        else:
            colour = values * 255 / most
            if self.photometric == 0:
                colour = 255 - colour
            if self.photometric == 5:
                colour = (255 - colour[..., :3]) * (255 - colour[..., 3:]) / 255
        if alpha is not None and self.extra:
            colour = laid_over(colour, alpha, background, premultiplied=self.extra == 1)
        return turned(colour, self.orientation)


@dataclass(frozen=True)
class Png:
    """A PNG. (ISO/IEC 15948)"""

    samples: np.ndarray  # (height, width, channels)
    bits: int = 8
    colour: int = 0  # 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGB and alpha
    clear: tuple[int, ...] | None = None  # tRNS: the transparent sample, or the alpha of the palette's entries
    palette: np.ndarray | None = None  # (n, 3)
    orientation: int = 1
    before: bytes = b""  # further chunks
    after: bytes = b""

    def content(self) -> bytes:
        height, width, _ = self.samples.shape
        data = bits_packed(self.samples.reshape(height, -1), self.bits, ">")
        rows = np.frombuffer(data, np.uint8).reshape(height, -1)
        filtered = np.concatenate([np.zeros((height, 1), np.uint8), rows], 1).tobytes()
        parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, self.bits, self.colour, 0, 0, 0)), self.before]
        if self.palette is not None:
            parts.append(chunk(b"PLTE", self.palette.astype(np.uint8).tobytes()))
        if self.clear is not None:
            letter = "B" if self.colour == 3 else "H"
            parts.append(chunk(b"tRNS", struct.pack(f">{len(self.clear)}{letter}", *self.clear)))
        if self.orientation != 1:
            tiff = dataclasses.replace(Tiff(np.zeros((1, 1, 1), int)), orientation=self.orientation)
            tags = {274: ("H", [self.orientation])}
            parts.append(chunk(b"eXIf", tiff._head(8) + tiff._directory(tags, 8)))
        parts += [chunk(b"IDAT", zlib.compress(filtered)), self.after, chunk(b"IEND", b"")]
        return b"\x89PNG\r\n\x1a\n" + b"".join(parts)

    def pixels(self, background: tuple[int, int, int]) -> np.ndarray:
        """(height, width, 1 or 3) as floats 0..255."""
        most = 2**self.bits - 1
        alpha = None
        if self.colour == 3:
            assert self.palette is not None
            chosen = self.samples[..., 0]
            colour = self.palette[chosen].astype(float)
            if self.clear is not None:
                opacity = np.array([*self.clear, *[255] * (len(self.palette) - len(self.clear))])
                alpha = opacity[chosen][..., None] / 255
        else:
            colour = self.samples * 255 / most
            if self.colour in (4, 6):
                colour, alpha = colour[..., :-1], colour[..., -1:] / 255
            elif self.clear is not None:
                alpha = (self.samples != np.array(self.clear)).any(-1, keepdims=True).astype(float)
        if alpha is not None:
            colour = laid_over(colour, alpha, background, premultiplied=False)
        return turned(colour, self.orientation)


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
