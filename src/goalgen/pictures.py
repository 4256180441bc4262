"""Pictures of images and trajectories: grids, film strips and GIFs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from goalgen.storage import write_atomically

SVG = "http://www.w3.org/2000/svg"
"""Namespace of SVG."""


def to_pil(image: Tensor) -> Image.Image:
    """One uint8 image (C, height, width), C 1 or 3, as a PIL image."""
    array = image.permute(1, 2, 0).numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def tile(images: Tensor, columns: int, gap: int = 1, scale: int | None = None) -> Image.Image:
    """uint8 images (N, C, height, width) in rows of ``columns``, on grey, enlarged by a whole factor.

    Args:
        scale: enlargement; unset makes small images about 56 pixels high.
    """
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    canvas = torch.full((channels, rows * (height + gap) + gap, columns * (width + gap) + gap), 128, dtype=torch.uint8)
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + gap) + gap, (i % columns) * (width + gap) + gap
        canvas[:, top : top + height, left : left + width] = image
    picture = to_pil(canvas)
    scale = scale or max(1, round(56 / height))
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def film_strip(frames: Tensor, scale: int | None = None) -> Image.Image:
    """Trajectories (H + 1, N, C, height, width) uint8: one row an episode, time from left to right."""
    return tile(frames.transpose(0, 1).flatten(0, 1), columns=len(frames), scale=scale)


def save_png(picture: Image.Image, path: Path) -> None:
    """Write a PNG atomically."""
    write_atomically(path, lambda p: picture.save(p, format="PNG"))


def save_gif(frames: Tensor, path: Path, columns: int = 8, milliseconds: int = 150) -> None:
    """Trajectories (H + 1, N, C, height, width) uint8 as a GIF of grids that rests on the last frame."""
    # Pillow gives every colour frame a palette of its own; convert("P") would dither it to 216 fixed colours.
    pictures = [tile(frame, columns) for frame in frames]
    durations = [milliseconds] * (len(pictures) - 1) + [1500]
    first, rest = pictures[0], pictures[1:]
    write_atomically(
        path,
        lambda p: first.save(p, format="GIF", save_all=True, append_images=rest, duration=durations, loop=0),
    )


def tile_svg(drawings: Sequence[bytes], columns: int, gap: float = 1.0, side: int = 96) -> bytes:
    """SVG files of one size in rows of ``columns``, on grey, as one file.

    Args:
        gap: between them, in units of the drawings.
        side: height of each where nobody says otherwise, in pixels of the screen.
    """
    parts = [ElementTree.fromstring(drawing) for drawing in drawings]
    width, height = (float(number) for number in parts[0].attrib["viewBox"].split()[2:])
    rows, across, down = -(-len(parts) // columns), width + gap, height + gap
    whole = (columns * across + gap, rows * down + gap)
    scale = side / height
    sheet = ElementTree.Element(
        f"{{{SVG}}}svg", width=f"{whole[0] * scale:.0f}", height=f"{whole[1] * scale:.0f}", viewBox=f"0 0 {whole[0]:g} {whole[1]:g}"
    )  # fmt: skip
    ElementTree.SubElement(sheet, f"{{{SVG}}}rect", width="100%", height="100%", fill="#808080")
    for i, part in enumerate(parts):
        place = {"x": gap + (i % columns) * across, "y": gap + (i // columns) * down, "width": width, "height": height}
        part.attrib |= {name: f"{value:g}" for name, value in place.items()}
        sheet.append(part)
    ElementTree.register_namespace("", SVG)
    return ElementTree.tostring(sheet) + b"\n"


def columns_for(count: int) -> int:
    """Columns that make a grid of ``count`` images about square."""
    return max(1, int(np.ceil(np.sqrt(count))))
