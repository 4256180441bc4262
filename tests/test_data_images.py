"""Real files of every kind, with pixels whose values are known."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from goalgen import rng
from goalgen.data.files import find_images
from goalgen.data.images import decode_image, inspect_image, parse_colour
from goalgen.data.levels import binarize_images, from_unit, to_bytes, to_unit
from goalgen.errors import GoalgenError

GREY = np.array([[0, 50, 100], [150, 200, 255]], np.uint8)
COLOUR = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], -1)


def one_line(error: pytest.ExceptionInfo[GoalgenError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "gif", "webp"])
def test_lossless_formats_keep_every_pixel(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(COLOUR).save(path, lossless=True)  # WebP's alone; the others ignore it
    image = decode_image(path)
    assert image.dtype == torch.uint8
    assert image.shape == (3, 2, 3)
    assert (image.permute(1, 2, 0).numpy() == COLOUR).all()
    assert inspect_image(path) == (2, 3, False)


def test_jpeg_is_close(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    smooth = np.tile(np.arange(64, dtype=np.uint8)[None] * 3, (48, 1))
    Image.fromarray(smooth).save(path, quality=95)
    image = decode_image(path)
    assert image.shape == (1, 48, 64)
    assert (image[0].int() - torch.from_numpy(smooth).int()).abs().max() <= 3


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "jpg"])
def test_grey_files_give_one_channel(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.full((4, 5), 77, np.uint8)).save(path)
    assert inspect_image(path)[2]
    assert (decode_image(path) == 77).all()
    assert decode_image(path).shape == (1, 4, 5)
    assert decode_image(path, channels=3).shape == (3, 4, 5)
    assert (decode_image(path, channels=3) == 77).all()


def test_colour_to_grey_is_luma() -> None:
    pixel = Image.new("RGB", (1, 1), (200, 100, 50))
    assert abs(int(decode_image(pixel, channels=1)) - (0.299 * 200 + 0.587 * 100 + 0.114 * 50)) <= 1


def test_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    values = np.array([[0, 257, 128 * 257, 64000, 65535]], np.uint16)
    for suffix in ("png", "tif"):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(values).save(path)
        assert inspect_image(path)[2]
        assert decode_image(path).flatten().tolist() == [0, 1, 128, 249, 255]
    assert decode_image(Image.fromarray(values)).flatten().tolist() == [0, 1, 128, 249, 255]
    with pytest.raises(GoalgenError, match="32-bit pixels have no known range"):
        decode_image(Image.fromarray(values.astype(np.int32)))


def test_one_bit(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.array([[True, False, True]])).save(path)
    assert inspect_image(path)[2]
    assert decode_image(path).flatten().tolist() == [255, 0, 255]


def test_transparency_shows_the_background(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    rgba = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [255, 0, 0, 128]]], np.uint8)
    Image.fromarray(rgba).save(path)
    image = decode_image(path, background="#0000ff")
    assert image[:, 0, 0].tolist() == [255, 0, 0]
    assert image[:, 0, 1].tolist() == [0, 0, 255]
    assert image[:, 0, 2].tolist() == pytest.approx([128, 0, 127], abs=1)
    assert decode_image(path)[:, 0, 1].tolist() == [255, 255, 255]


def test_grey_with_transparency_stays_grey(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.array([[[10, 255], [10, 0]]], np.uint8), "LA").save(path)
    assert inspect_image(path)[2]
    assert decode_image(path).flatten().tolist() == [10, 255]
    assert decode_image(path, background="black").flatten().tolist() == [10, 0]


def test_palettes(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([0, 0, 0, 90, 90, 90, 10, 200, 30])
    image.save(tmp_path / "colour.png")
    assert not inspect_image(tmp_path / "colour.png")[2]
    assert decode_image(tmp_path / "colour.png")[:, 0].T.tolist() == [[0, 0, 0], [90, 90, 90], [10, 200, 30]]
    image.save(tmp_path / "clear.png", transparency=2)
    assert decode_image(tmp_path / "clear.png", background="red")[:, 0, 2].tolist() == [255, 0, 0]
    image.putpalette([0, 0, 0, 90, 90, 90, 200, 200, 200])
    for name in ("grey.png", "grey.bmp", "grey.gif"):
        image.save(tmp_path / name)
        assert inspect_image(tmp_path / name)[2], name
        assert decode_image(tmp_path / name).flatten().tolist() == [0, 90, 200]


def test_cmyk(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.new("CMYK", (2, 2), (255, 0, 0, 0)).save(path)
    assert decode_image(path)[:, 0, 0].tolist() == [0, 255, 255]


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    frames = [Image.new("RGB", (2, 2), c) for c in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert decode_image(path)[:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, suffix: str, orientation: int) -> None:
    # Where row 0 and column 0 of the stored image belong, after the EXIF standard.
    upright = {
        1: GREY,
        2: GREY[:, ::-1],
        3: GREY[::-1, ::-1],
        4: GREY[::-1],
        5: GREY.T,
        6: np.rot90(GREY, -1),
        7: np.rot90(GREY, 2).T,
        8: np.rot90(GREY, 1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(GREY).convert("RGB").save(path, exif=exif, lossless=True)
    image = decode_image(path, channels=1)[0].numpy()
    assert (image == upright).all()
    assert inspect_image(path)[:2] == upright.shape


def test_exif_orientation_of_a_jpeg(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = np.zeros((16, 32), np.uint8)
    picture[:, :16] = 255  # left half white: on top once turned clockwise
    Image.fromarray(picture).save(tmp_path / "a.jpg", exif=exif)
    image = decode_image(tmp_path / "a.jpg")
    assert image.shape == (1, 32, 16)
    assert image[0, :16].min() > 250
    assert image[0, 16:].max() < 5


def test_crop_takes_the_centre() -> None:
    bars = np.zeros((4, 8, 3), np.uint8)
    bars[:, 2:6] = 255
    assert (decode_image(Image.fromarray(bars), image_size=(4, 4)) == 255).all()
    assert (decode_image(Image.fromarray(bars.transpose(1, 0, 2).copy()), image_size=(4, 4)) == 255).all()


def test_pad_adds_background() -> None:
    image = decode_image(Image.new("RGB", (8, 4), "red"), image_size=(8, 8), fit="pad", background="blue")
    assert image.shape == (3, 8, 8)
    assert (image[:, 2:6].amax((1, 2)) == torch.tensor([255, 0, 0])).all()
    for border in (image[:, :2], image[:, 6:]):
        assert (border.amin((1, 2)) == torch.tensor([0, 0, 255])).all()


def test_stretch_keeps_all() -> None:
    halves = np.zeros((4, 8), np.uint8)
    halves[:, 4:] = 255
    image = decode_image(Image.fromarray(halves), image_size=(16, 2), fit="stretch")
    assert image.shape == (1, 16, 2)
    assert image[0, :, 0].max() < 30
    assert image[0, :, 1].min() > 225


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [(1, 1), (7, 13), (64, 3)])
def test_any_size_comes_out_as_asked(fit: str, size: tuple[int, int]) -> None:
    for height, width in ((1, 1), (5, 300), (97, 31)):
        image = decode_image(Image.new("L", (width, height), 128), image_size=size, fit=fit, background="#808080")
        assert image.shape == (1, *size)
        assert (image == 128).all()


def test_downscaling_averages() -> None:
    checks = np.indices((64, 64)).sum(0) % 2 * 255
    image = decode_image(Image.fromarray(checks.astype(np.uint8)), image_size=(8, 8))
    assert (image.float() - 127.5).abs().max() < 10  # without a filter all would be 0 or 255


def test_text_that_calls_itself_png(tmp_path: Path) -> None:
    path = tmp_path / "notes.png"
    path.write_text("hello")
    for read in (decode_image, inspect_image):
        with pytest.raises(GoalgenError, match=r"notes\.png cannot be read as an image") as error:
            read(path)
        one_line(error)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "tif", "webp"])
def test_truncated_files(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(GoalgenError, match=r"cut\.") as error:
        decode_image(path)
    one_line(error)


def test_missing_and_empty(tmp_path: Path) -> None:
    with pytest.raises(GoalgenError, match="does not exist"):
        decode_image(tmp_path / "no.png")
    (tmp_path / "empty.png").touch()
    with pytest.raises(GoalgenError, match=r"empty\.png"):
        decode_image(tmp_path / "empty.png")
    with pytest.raises(GoalgenError, match="the third"):
        decode_image(b"abc", name="the third")


@pytest.mark.parametrize("limit", [50, 80])  # beyond twice the limit PIL raises, below it only warns
def test_decompression_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    path = tmp_path / "bomb.png"
    Image.new("L", (11, 11)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(GoalgenError, match=r"bomb\.png has too many pixels"):
        decode_image(path)


def test_no_warning_filters_are_left_behind(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no")
    before = list(warnings.filters)
    with pytest.raises(GoalgenError):
        inspect_image(tmp_path / "a.png")
    decode_image(Image.new("L", (2, 2)))
    assert warnings.filters == before


def test_float_pixels_are_refused() -> None:
    with pytest.raises(GoalgenError, match="floating-point"):
        decode_image(Image.fromarray(np.zeros((2, 2), np.float32)))


def test_colours() -> None:
    image = Image.new("L", (2, 2))
    with pytest.raises(GoalgenError, match="not a colour"):
        decode_image(image, background="blurple")
    assert parse_colour("#102030") == (16, 32, 48)


def test_bytes_path_and_image_agree(tmp_path: Path) -> None:
    picture = Image.fromarray(COLOUR)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    expected = decode_image(picture)
    assert (decode_image(buffer.getvalue()) == expected).all()
    assert (decode_image(str(tmp_path / "a.png")) == expected).all()


def test_find_images(tmp_path: Path) -> None:
    names = ["b.PNG", "a/z.jpeg", "a/.hidden.png", ".git/x.png", "__MACOSX/y.png", "notes.txt", "a.tiff"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
    with pytest.warns(UserWarning, match="not read: 1 linked to folders that are read already"):
        found = [p.relative_to(tmp_path).as_posix() for p in find_images(tmp_path)]
    assert found == ["a.tiff", "a/z.jpeg", "b.PNG"]


@given(st.integers(2, 256))
def test_levels_round_trip(levels: int) -> None:
    grey = torch.arange(levels, dtype=torch.uint8)
    x = to_unit(grey, levels)
    assert x.dtype == torch.float32
    assert (float(x[0]), float(x[-1])) == (-1, 1)
    assert (from_unit(x, levels) == grey).all()
    # Anything within half a level belongs to the level.
    assert (from_unit(x + 0.98 / (levels - 1), levels) == grey).all()
    pictures = to_bytes(grey, levels)
    assert (int(pictures[0]), int(pictures[-1])) == (0, 255)
    assert (pictures.int().diff() > 0).all()


def test_from_unit_clamps() -> None:
    assert from_unit(torch.tensor([-9.0, 9.0]), 17).tolist() == [0, 16]
    with pytest.raises(GoalgenError, match="levels"):
        to_unit(torch.zeros(1, dtype=torch.uint8), 1)


def test_binarize_draws_with_the_grey_level_as_chance() -> None:
    images = torch.arange(17, dtype=torch.uint8)[:, None].expand(17, 20000)
    drawn = binarize_images(images, 17, rng.generator(0, "test"))
    assert drawn.dtype == torch.uint8
    assert set(drawn.flatten().tolist()) == {0, 1}
    share = drawn.float().mean(1)
    assert share[0] == 0
    assert share[16] == 1
    assert (share - torch.arange(17) / 16).abs().max() < 0.02  # over 5 standard deviations
    assert (drawn == binarize_images(images, 17, rng.generator(0, "test"))).all()
