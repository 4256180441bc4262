"""Grids, film strips and GIFs: every pixel where it belongs, every file whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from goalgen.errors import GoalgenError
from goalgen.pictures import columns_for, film_strip, save_gif, save_png, tile, to_pil

GAP_GREY = 128


def plain(values: list[int], shape: tuple[int, int, int] = (1, 2, 3)) -> torch.Tensor:
    """Images of one grey level each."""
    return torch.stack([torch.full(shape, v, dtype=torch.uint8) for v in values])


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture)


def test_one_image_keeps_its_pixels() -> None:
    grey = torch.arange(6, dtype=torch.uint8).reshape(1, 2, 3)
    rgb = torch.arange(18, dtype=torch.uint8).reshape(3, 2, 3)
    assert to_pil(grey).mode == "L"
    assert to_pil(rgb).mode == "RGB"
    assert (pixels(to_pil(grey)) == grey[0].numpy()).all()
    assert (pixels(to_pil(rgb)) == rgb.permute(1, 2, 0).numpy()).all()


def test_tile_puts_images_in_rows_with_a_gap_around_each() -> None:
    g = GAP_GREY
    expected = [
        [g, g, g, g, g, g, g, g, g],
        [g, 1, 1, 1, g, 2, 2, 2, g],
        [g, 1, 1, 1, g, 2, 2, 2, g],
        [g, g, g, g, g, g, g, g, g],
        [g, 3, 3, 3, g, g, g, g, g],
        [g, 3, 3, 3, g, g, g, g, g],
        [g, g, g, g, g, g, g, g, g],
    ]
    assert pixels(tile(plain([1, 2, 3]), columns=2, scale=1)).tolist() == expected


@pytest.mark.parametrize("gap", [0, 1, 3])
@pytest.mark.parametrize("scale", [1, 2, 5])
@pytest.mark.parametrize("channels", [1, 3])
def test_tile_finds_every_image_at_any_gap_scale_and_number_of_channels(gap: int, scale: int, channels: int) -> None:
    images = torch.randint(0, 256, (5, channels, 4, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    picture = tile(images, columns=3, gap=gap, scale=scale)
    assert picture.mode == ("L" if channels == 1 else "RGB")
    assert picture.size == (scale * (3 * (3 + gap) + gap), scale * (2 * (4 + gap) + gap))
    found = torch.from_numpy(pixels(picture).copy()).reshape(picture.height, picture.width, channels).permute(2, 0, 1)
    inside = torch.zeros(picture.height, picture.width, dtype=torch.bool)
    for i, image in enumerate(images):
        top, left = scale * ((i // 3) * (4 + gap) + gap), scale * ((i % 3) * (3 + gap) + gap)
        part = (slice(top, top + scale * 4), slice(left, left + scale * 3))
        large = image.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
        assert (found[:, *part] == large).all()
        inside[part] = True
    assert (found[:, ~inside] == GAP_GREY).all()


@pytest.mark.parametrize(("height", "factor"), [(8, 7), (28, 2), (56, 1), (200, 1)])
def test_small_images_are_enlarged_to_about_56_pixels(height: int, factor: int) -> None:
    assert tile(plain([0], (1, height, 4)), columns=1, gap=0).size == (4 * factor, height * factor)


def test_film_strip_has_a_row_for_every_episode_and_time_runs_to_the_right() -> None:
    episodes, steps = 3, 4
    frames = torch.tensor([[10 * e + t for e in range(episodes)] for t in range(steps)], dtype=torch.uint8)
    strip = pixels(film_strip(frames[:, :, None, None, None].expand(-1, -1, 1, 2, 2), scale=1))
    assert strip.shape == (episodes * 3 + 1, steps * 3 + 1)
    assert strip[1::3, 1::3].tolist() == [[10 * e + t for t in range(steps)] for e in range(episodes)]


@pytest.mark.parametrize("channels", [1, 3])
def test_gif_shows_every_canvas_as_it_is_and_rests_on_the_last(tmp_path: Path, channels: int) -> None:
    frames = torch.randint(
        0, 256, (5, 6, channels, 3, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    save_gif(frames, tmp_path / "a.gif", columns=3, milliseconds=120)
    durations = []
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.info["loop"] == 0  # for ever
        assert gif.n_frames == len(frames)
        for i, frame in enumerate(frames):
            gif.seek(i)
            durations.append(gif.info["duration"])
            # At most 6 * 9 colours and the grey between: a palette holds them all.
            assert (pixels(gif.convert("RGB")) == pixels(tile(frame, 3).convert("RGB"))).all()
    assert durations[:-1] == [120] * 4
    assert durations[-1] > 5 * durations[0]


def test_gif_of_canvases_that_do_not_change_takes_as_long(tmp_path: Path) -> None:
    save_gif(torch.full((4, 1, 1, 8, 8), 7, dtype=torch.uint8), tmp_path / "still.gif", milliseconds=100)
    with Image.open(tmp_path / "still.gif") as gif:
        assert (gif.n_frames, gif.info["duration"]) == (1, 3 * 100 + 1500)


def test_png_holds_the_picture_and_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.png"
    for level in (3, 200):
        picture = tile(plain([level]), columns=1)
        save_png(picture, path)
        with Image.open(path) as found:
            assert found.format == "PNG"
            assert (pixels(found) == pixels(picture)).all()
        assert [p.name for p in path.parent.iterdir()] == ["a.png"]


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = torch.zeros(2, 1, 1, 8, 8, dtype=torch.uint8)
    save_png(tile(frames[0], 1), tmp_path / "a.png")
    save_gif(frames, tmp_path / "a.gif")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(self: Image.Image, path: Path, **options: object) -> None:
        Path(path).write_bytes(b"half a pic")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(GoalgenError, match=r"a\.png cannot be written: No space left"):
        save_png(tile(frames[0], 1), tmp_path / "a.png")
    with pytest.raises(GoalgenError, match=r"a\.gif cannot be written: No space left"):
        save_gif(frames, tmp_path / "a.gif")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 2), (4, 2), (5, 3), (64, 8), (100, 10)])
def test_grids_are_about_square(count: int, columns: int) -> None:
    assert columns_for(count) == columns
