"""Every way in which a file may store pixels: the right values, or a refusal that names it; never a traceback, never a gigabyte."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from image_files import Png, Tiff, chunk
from PIL import Image

from goalgen.data.formats import EXTENSIONS
from goalgen.data.images import decode_image, inspect_image
from goalgen.errors import GoalgenError

resource = pytest.importorskip("resource")  # the peak of memory is not told on Windows

BACKGROUND = (10, 200, 90)
LUMA = np.array([0.299, 0.587, 0.114])
GENERATED = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
KINDS = ("path", "bytes", "lazy", "lazy path", "loaded")

USERS = KINDS[2:]
"""... of which the user has opened these."""


def read(content: bytes, folder: Path, suffix: str, how: str) -> np.ndarray | str:
    """What the library makes of a file, (height, width, C); or the words with which it is refused."""
    found = attempt(content, folder, suffix, how)
    assert not isinstance(found, str) or "\n" not in found or found.startswith("Pillow: ")
    return found


def attempt(content: bytes, folder: Path, suffix: str, how: str) -> np.ndarray | str:
    path = folder / f"a{suffix}"
    path.write_bytes(content)
    try:
        if how in ("path", "bytes"):
            source = path if how == "path" else content
            height, width, grey = inspect_image(source)
            image = decode_image(source, background="#0ac85a").permute(1, 2, 0).numpy()
            assert image.shape == (height, width, 1 if grey else 3)
            return image
        try:
            opened = Image.open(path if how == "lazy path" else io.BytesIO(content))
            opened.load() if how == "loaded" else None
        except Exception as error:  # Pillow itself does not give it to the user
            return f"Pillow: {error!r}"
        with opened:
            return decode_image(opened, background="#0ac85a").permute(1, 2, 0).numpy()
    except GoalgenError as error:
        return str(error)


CUT_SHORT = 3
"""Levels that an image of 16 bits may be off: the upper eight are read, of colour and of opacity, each less than a level off; what they
come to is rounded, and once more where colours are stored times their opacity."""


def agree(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    """Compare pixels; a grey image may show a coloured background by its luma."""
    assert found.shape[:2] == expected.shape[:2]
    if found.shape[-1] == 1 and expected.shape[-1] == 3:
        expected = expected @ LUMA[:, None]
        tolerance += 1
    assert np.abs(found - np.broadcast_to(expected, found.shape)).max() <= tolerance


seeds = st.integers(0, 2**32 - 1)
sizes = st.tuples(st.integers(1, 6), st.integers(1, 9))


@st.composite
def tiffs(draw: st.DrawFn) -> Tiff:
    random = np.random.default_rng(draw(seeds))
    photometric, extra = draw(
        st.sampled_from(
            [(0, None), (1, None), (1, 0), (1, 1), (1, 2), (2, None), (2, 0), (2, 1), (2, 2), (3, None), (5, None)]
        )
    )
    bits = draw(
        st.sampled_from(
            [1, 2, 4, 8, 8, 12, 16, 16, 32] if photometric < 2 else [1, 2, 4, 8] if photometric == 3 else [8, 16]
        )
    )
    channels = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4}[photometric] + (extra is not None)
    shape = draw(sizes)
    samples = random.integers(0, 2**bits, (*shape, channels))
    if draw(st.booleans()):  # the ends of the range, where most faults show
        samples = random.choice([0, 1, 2 ** (bits - 1), 2**bits - 1], (*shape, channels))
    if extra == 1:  # premultiplied: no colour is above its alpha
        samples[..., :-1] = np.minimum(samples[..., :-1], samples[..., -1:])
    return Tiff(
        samples, bits, photometric, draw(st.sampled_from("<>")), draw(st.booleans()),
        planar=draw(st.sampled_from([1, 1, 2])) if channels > 1 else 1, fill=draw(st.sampled_from([1, 1, 2])),
        deflate=draw(st.booleans()), rows=draw(st.integers(0, 3)), orientation=draw(st.integers(1, 8)), extra=extra,
        kind=draw(st.sampled_from([1, 1, 1, 1, 2, 3])) if bits in (8, 16, 32) else 1,
        palette=random.integers(0, 256, (3, 2**bits)) * 257 if photometric == 3 else None,
    )  # fmt: skip


def is_common(tiff: Tiff) -> bool:
    """Whether a TIFF must be read, not refused."""
    pillow_opens = not (tiff.big and tiff.order == ">")
    plain = pillow_opens and tiff.kind == 1 and tiff.planar == 1 and tiff.fill == 1
    if tiff.photometric < 2:
        return plain and tiff.bits in (1, 2, 4, 8, 16) and (tiff.extra is None or tiff.bits == 8)
    return plain


@GENERATED
@given(tiffs(), st.sampled_from(KINDS))
def test_tiffs_are_read_right_or_refused(tmp_path: Path, tiff: Tiff, how: str) -> None:
    content = tiff.content()
    if (
        tiff.bits in (8, 16, 32) and tiff.kind == 1 and tiff.fill == 1
    ):  # the writer of these tests is right, says another reader
        stored = tifffile.imread(io.BytesIO(content)).reshape(-1)
        given_ = tiff.samples if tiff.planar == 1 else np.moveaxis(tiff.samples, -1, 0)
        assert (stored == given_.reshape(-1)).all()
    found = read(content, tmp_path, ".tif", how)
    if isinstance(found, str):
        assert not is_common(tiff) or how in USERS, found
        return
    assert tiff.kind == 1
    assert tiff.bits <= 16
    exact = tiff.photometric < 5 and tiff.extra in (None, 0) and (tiff.bits <= 8 or tiff.photometric < 2)
    agree(found, tiff.pixels(BACKGROUND), 0.51 if exact else CUT_SHORT)


@pytest.mark.parametrize("how", KINDS)
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("deflate", [False, True])
def test_white_is_zero_of_sixteen_bits(tmp_path: Path, how: str, order: str, deflate: bool) -> None:
    buffer = io.BytesIO()
    values = np.array([[0, 16384], [49152, 65535]], np.uint16)
    tifffile.imwrite(buffer, values, photometric="miniswhite", byteorder=order, compression="zlib" if deflate else None)
    found = read(buffer.getvalue(), tmp_path, ".tif", how)
    if order == ">" and how in USERS:
        assert isinstance(found, str)  # Pillow refuses its user
        return
    assert not isinstance(found, str)
    assert found.flatten().tolist() == [255, 191, 64, 0]


@pytest.mark.parametrize("how", KINDS)
@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.array([[70000, 5]], np.int32), "no known range|signed"),
        (np.array([[0, 255]], np.int32), "no known range|signed"),
        (np.array([[-5, 5]], np.int16), "signed"),
        (np.array([[-5, 5]], np.int8), "signed"),
        (np.array([[70000, 5]], np.uint32), "no known range"),
        (np.array([[0.5, 1]], np.float32), "floating-point"),
        (np.array([[0.5, 1]], np.float16), "sample format 3"),
        (np.array([[[1, 2, 3]]], np.uint16), "one after the other"),
    ],
)
def test_what_has_no_known_scale_is_refused(tmp_path: Path, how: str, values: np.ndarray, words: str) -> None:
    buffer = io.BytesIO()
    colour = values.ndim == 3
    tifffile.imwrite(
        buffer, np.moveaxis(values, -1, 0) if colour else values, photometric="rgb" if colour else "minisblack",
        planarconfig="separate" if colour else None,
    )  # fmt: skip
    found = read(buffer.getvalue(), tmp_path, ".tif", how)
    assert isinstance(found, str)
    assert found.startswith("Pillow: ") or any(word in found for word in words.split("|")), found


@st.composite
def pngs(draw: st.DrawFn) -> Png:
    random = np.random.default_rng(draw(seeds))
    colour = draw(st.sampled_from([0, 2, 3, 4, 6]))
    bits = draw(st.sampled_from({0: [1, 2, 4, 8, 16], 3: [1, 2, 4, 8]}.get(colour, [8, 16])))
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    shape = draw(sizes)
    samples = random.integers(0, 2**bits, (*shape, channels))
    palette, clear = None, None
    if draw(st.booleans()):
        samples = random.choice([0, 1, 2 ** (bits - 1), 2**bits - 1], (*shape, channels))
    if colour == 3:
        palette = random.integers(0, 256, (2**bits, 3))
        palette = np.repeat(palette[:, :1], 3, 1) if draw(st.booleans()) else palette
        clear = tuple(random.choice([0, 0, 100, 255], draw(st.integers(1, 2**bits))).tolist())
    elif colour in (0, 2):
        clear = tuple(samples[0, 0].tolist())
    long = chunk(b"iTXt", b"note\0\1\0\0\0" + zlib.compress(b"x" * 2_000_000)) if draw(st.integers(0, 9)) == 0 else b""
    return Png(
        samples, bits, colour, clear if draw(st.booleans()) else None, palette, draw(st.integers(1, 8)), before=long
    )  # fmt: skip


@GENERATED
@given(pngs(), st.sampled_from(KINDS))
def test_pngs_are_read_right_or_refused(tmp_path: Path, png: Png, how: str) -> None:
    found = read(png.content(), tmp_path, ".png", how)
    if isinstance(found, str):
        expected = (png.colour == 2 and png.bits == 16 and png.clear) or (how in USERS and png.before)
        assert expected or (how == "loaded" and png.clear and png.bits < 8), found
        return
    assume(
        not (how == "loaded" and png.colour == 2 and png.bits == 16 and png.clear)
    )  # nothing of it is left to be seen
    opaque = png.clear is None and png.colour in (0, 2, 3)
    agree(found, png.pixels(BACKGROUND), 0.51 if opaque and (png.bits <= 8 or png.colour == 0) else CUT_SHORT)


def test_transparent_level_of_grey_pngs(tmp_path: Path) -> None:
    for bits in (2, 4, 16):
        most = 2**bits - 1
        png = Png(np.array([[[0], [1], [most]]]), bits, clear=(1,))
        found = read(png.content(), tmp_path, ".png", "path")
        assert not isinstance(found, str)
        assert found[0, :, 0].tolist() == [0, round(float(np.array(BACKGROUND) @ LUMA)), 255]


@pytest.mark.parametrize("how", ["path", "bytes"])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "iCCP", "tEXt", "many"])
def test_long_texts_of_a_png_do_not_matter(tmp_path: Path, how: str, after: bool, kind: str) -> None:
    long = zlib.compress(b"x" * 3_000_000)
    made = {
        "zTXt": chunk(b"zTXt", b"note\0\0" + long),
        "iTXt": chunk(b"iTXt", b"note\0\1\0\0\0" + long),
        "iCCP": chunk(b"iCCP", b"profile\0\0" + long),
        "tEXt": chunk(b"tEXt", b"note\0" + b"x" * 3_000_000),
        "many": chunk(b"zTXt", b"note\0\0" + zlib.compress(b"x" * 1_000_000)) * 70,
    }[kind]
    png = Png(np.arange(12).reshape(2, 2, 3) * 20, colour=2, orientation=6, **{"after" if after else "before": made})
    found = read(png.content(), tmp_path, ".png", how)
    assert not isinstance(found, str), found
    assert (found == png.pixels(BACKGROUND)).all()


def test_exif_in_a_text_still_turns_the_image(tmp_path: Path) -> None:
    tiff = Tiff(np.zeros((1, 1, 1), int), orientation=6)
    exif = b"Exif\0\0" + tiff._head(8) + tiff._directory({274: ("H", [6])}, 8)
    text = b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n%8d\n" % len(exif) + exif.hex().encode() + b"\n")
    junk = chunk(b"iTXt", b"note\0\1\0\0\0" + zlib.compress(b"x" * 3_000_000))
    png = Png(np.array([[[1], [2]], [[3], [4]]]), before=chunk(b"zTXt", text) + junk)
    found = read(png.content(), tmp_path, ".png", "path")
    assert not isinstance(found, str)
    assert found[..., 0].tolist() == [[3, 1], [4, 2]]


SAVED = {
    ".bmp": ("1", "L", "P", "RGB"), ".dib": ("L", "RGB"), ".gif": ("1", "L", "P"), ".webp": ("L", "RGB", "RGBA"),
    ".tif": ("1", "L", "P", "RGB", "RGBA", "LA", "I;16", "I;16B"), ".jp2": ("L", "RGB", "RGBA", "LA", "I;16"),
    ".pgm": ("L", "I;16"), ".ppm": ("RGB",), ".pbm": ("1",), ".qoi": ("RGB", "RGBA"), ".sgi": ("L", "RGB", "RGBA"),
    ".pcx": ("1", "L", "P", "RGB"), ".tga": ("1", "L", "P", "RGB", "RGBA", "LA"), ".ico": ("RGBA",), ".apng": ("L", "RGB"),
    ".avif": ("RGB", "RGBA"),
}  # fmt: skip


@pytest.mark.parametrize("suffix", SAVED)
@pytest.mark.parametrize("how", KINDS)
def test_formats_that_pillow_writes(tmp_path: Path, suffix: str, how: str) -> None:
    random = np.random.default_rng(0)
    for mode in SAVED[suffix]:
        base = random.integers(0, 256, (16, 16, 4), np.uint8)
        if suffix == ".avif":  # keeps colours only nearly
            base = np.broadcast_to(np.uint8([200, 40, 90, 255]), (16, 16, 4)).copy()
        image = Image.fromarray(base, "RGBA").convert("RGB").convert("L" if mode.startswith("I") else mode)
        if mode.startswith("I"):
            values = random.integers(0, 65536, (16, 16)).astype("<u2" if mode == "I;16" else ">u2")
            image = Image.frombytes(mode, (16, 16), values.tobytes())
            expected = (values.astype(float) / 257)[..., None]
        else:
            if mode in ("RGBA", "LA"):
                image.putalpha(Image.fromarray(base[..., 3]))
            rgba = np.asarray(image.convert("RGBA")).astype(float)
            alpha = rgba[..., 3:] / 255
            expected = rgba[..., :3] * alpha + (1 - alpha) * np.array(BACKGROUND)
        buffer = io.BytesIO()
        options = {".avif": {"quality": 100, "subsampling": "4:4:4"}, ".webp": {"lossless": True, "exact": True}}
        name = {".apng": "PNG", ".jp2": "JPEG2000", ".pgm": "PPM", ".pbm": "PPM", ".tif": "TIFF"}.get(
            suffix, suffix[1:].upper()
        )
        image.save(buffer, name, **{".ico": {"sizes": [(16, 16)]}}.get(suffix, options.get(suffix, {})))
        if how == "bytes" and suffix in (".dib", ".pcx", ".tga"):  # nothing but their names says what these are
            continue
        found = read(buffer.getvalue(), tmp_path, suffix, how)
        assert not isinstance(found, str), (mode, found)
        agree(found, expected, 4 if suffix == ".avif" else 1.6 if mode in ("RGBA", "LA") else 0.51)


@pytest.mark.parametrize("maxval", [1, 100, 255, 1000, 65535])
@pytest.mark.parametrize("kind", ["P2", "P5", "P3", "P6"])
def test_netpbm_of_any_range(tmp_path: Path, maxval: int, kind: str) -> None:
    values = np.linspace(0, maxval, 6).round().astype(int)
    head = f"{kind}\n{6 if kind in ('P2', 'P5') else 2} 1\n{maxval}\n".encode()
    plain = " ".join(map(str, values)).encode() + b"\n"
    body = plain if kind in ("P2", "P3") else values.astype(np.uint8 if maxval < 256 else ">u2").tobytes()
    found = read(head + body, tmp_path, ".pgm", "path")
    assert not isinstance(found, str), found
    assert np.abs(found.reshape(-1) - values * 255 / maxval).max() <= 0.51


@pytest.mark.parametrize(
    "mode",
    [
        "1",
        "L",
        "P",
        "RGB",
        "RGBA",
        "CMYK",
        "YCbCr",
        "LAB",
        "HSV",
        "LA",
        "PA",
        "RGBX",
        "RGBa",
        "La",
        "I;16",
        "I;16L",
        "I;16B",
    ],
)
def test_images_of_every_mode_of_pillow(mode: str) -> None:
    white = {"CMYK": (0, 0, 0, 0), "YCbCr": (255, 128, 128), "LAB": (255, 128, 128), "HSV": (0, 0, 255)}.get(mode)
    if white is None:
        white = 65535 if mode.startswith("I") else (255,) * max(len(Image.new(mode, (1, 1)).getbands()), 1)
    image = Image.new(mode, (2, 3), white if not isinstance(white, tuple) or len(white) > 1 else white[0])
    if mode in ("P", "PA"):
        image.putpalette([v for v in range(256) for _ in range(3)])
    found = decode_image(image)
    assert found.shape[1:] == (3, 2)
    assert found.min() >= 254


@pytest.mark.parametrize("mode", ["I", "F"])
def test_images_of_unknown_range_are_refused(mode: str) -> None:
    with pytest.raises(GoalgenError, match="no known range"):
        decode_image(Image.new(mode, (2, 2)))


def test_names_of_files_that_are_read() -> None:
    assert {".jfif", ".avif", ".jpe", ".jp2", ".pgm", ".tga"} <= set(EXTENSIONS)
    assert not {".eps", ".heic", ".svg", ".pdf"} & set(EXTENSIONS)


def wholes() -> list[tuple[str, bytes]]:
    """A small file of each format."""
    files = []
    noise = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    formats = {
        ".png": "PNG",
        ".jpg": "JPEG",
        ".webp": "WEBP",
        ".gif": "GIF",
        ".bmp": "BMP",
        ".tif": "TIFF",
        ".avif": "AVIF",
    }
    formats |= {
        ".jp2": "JPEG2000",
        ".ppm": "PPM",
        ".qoi": "QOI",
        ".sgi": "SGI",
        ".ico": "ICO",
        ".tga": "TGA",
        ".pcx": "PCX",
    }
    for suffix, name in formats.items():
        buffer = io.BytesIO()
        Image.fromarray(noise).save(buffer, name)
        files.append((suffix, buffer.getvalue()))
    return files


WHOLE = wholes()


@GENERATED
@given(st.sampled_from(WHOLE), seeds, st.integers(0, 6), st.booleans())
def test_damaged_files_end_in_one_line(
    tmp_path: Path, whole: tuple[str, bytes], seed: int, faults: int, cut: bool
) -> None:
    random, (suffix, content), before = np.random.default_rng(seed), whole, peak()
    damaged = bytearray(content)
    for _ in range(faults):  # mostly in the header, where sizes stand
        at = int(random.integers(0, min(len(damaged), 64 if random.random() < 0.8 else len(damaged))))
        damaged[at] = int(random.choice([0, 1, 127, 128, 255, int(random.integers(256))]))
    read(bytes(damaged[: int(random.integers(1, len(damaged)))] if cut else damaged), tmp_path, suffix, "path")
    assert peak() < before + 2**30


def peak() -> int:
    """The most bytes of memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def test_a_large_image_takes_less_than_a_gigabyte(tmp_path: Path) -> None:
    side = 9000  # 81 million pixels, below the limit of Pillow
    packer, parts = zlib.compressobj(1), []
    for _ in range(side):
        parts.append(packer.compress(bytes(1 + side * 4)))
    data = b"".join(parts) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    before = peak()
    image = decode_image(content, background="#0ac85a")
    assert image.shape == (3, side, side)
    assert (image[:, 0, 0].tolist(), image[:, -1, -1].tolist()) == (list(BACKGROUND), list(BACKGROUND))
    del image
    assert peak() < before + 2**30
