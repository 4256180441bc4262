"""Damaged images restored: `goalgen restore`, and Model.restore."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import Png
from PIL import Image
from runs import digest, tiny_config, write_images
from scipy.ndimage import gaussian_filter
from torch import Tensor

from goalgen import GoalgenError, cli, load, load_data
from goalgen.config import DataConfig
from goalgen.data import to_bytes, to_unit
from goalgen.metrics.fidelity import fidelity
from goalgen.model import Model
from goalgen.restoration.drawing import Drawing
from goalgen.sampling import BLOCK
from goalgen.starts import downsample
from goalgen.training import train

RANDOM = np.random.default_rng(0)


def tiny_model(folder: Path, **changes: Any) -> Path:
    return train(tiny_config(folder / "run", max_steps=3, picture_every=0, **changes)).folder


@pytest.fixture(scope="module")
def upscaler(tmp_path_factory) -> Path:
    """Of grey images of 8x8 in 17 levels, from blocks of 4x4."""
    return tiny_model(tmp_path_factory.mktemp("upscaler"), start="downsample:4")


@pytest.fixture(scope="module")
def grey_inpainter(tmp_path_factory) -> Path:
    """Of grey images of 8x8 in 256 levels."""
    folder = tmp_path_factory.mktemp("grey")
    return tiny_model(folder, data=write_images(folder / "images", 24).as_posix(), start="mask:0.5")


@pytest.fixture(scope="module")
def colour_inpainter(tmp_path_factory) -> Path:
    """Of colour images of 8x8 in 256 levels."""
    folder = tmp_path_factory.mktemp("colour")
    images = write_images(folder / "images", 24, mode="RGB")
    return tiny_model(folder, data=images.as_posix(), start="mask:0.25")


def restore(run: Path, *arguments: object) -> int:
    return cli.main(["restore", str(run), *map(str, arguments)])


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def saved(array: np.ndarray, path: Path, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def noise(*shape: int) -> np.ndarray:
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "restore.json").read_text())


def a_mask(height: int, width: int) -> np.ndarray:
    """White, 255, in a rectangle off the middle; black elsewhere."""
    found = np.zeros((height, width), np.uint8)
    found[height // 4 : height // 2 + 1, width // 3 : width - 2] = 255
    return found


def error_of(capsys) -> str:
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert error.startswith("goalgen: error: ")
    return error


# Each file once, in order, under its own name


def test_each_file_once_in_order_under_its_own_name(upscaler, tmp_path, capsys):
    names = ["10.png", "2.png", "1.png"]
    for i, name in enumerate(names):
        saved(np.full((8, 8), 40 * i + 20, np.uint8), tmp_path / "mine" / name)
    single = saved(noise(8, 8), tmp_path / "photo.bmp")
    arguments = (single, tmp_path / "mine", tmp_path / "mine" / "2.png", "--out", tmp_path / "out")
    assert restore(upscaler, *arguments) == 0
    about = record(tmp_path / "out")
    assert [Path(each["file"]).name for each in about["restored"]] == ["photo.bmp", "1.png", "2.png", "10.png"]
    assert [each["written"] for each in about["restored"]] == ["photo.png", "1.png", "2.png", "10.png"]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "photo.png", "1.png", "2.png", "10.png", "contact-sheet.png", "restore.json"
    }  # fmt: skip
    assert about["files"] == ["photo.png", "1.png", "2.png", "10.png", "contact-sheet.png"]
    assert about["complete"]
    assert (about["start"], about["seed"], about["num"]) == ("downsample:4", 0, 1)
    # Each is what the model makes of that very image.
    alone = load(upscaler).restore(tmp_path / "mine" / "10.png").draws[0]
    assert np.array_equal(pixels(tmp_path / "out" / "10.png"), alone[0, 0])
    assert "4 files restored in" in capsys.readouterr().out


def test_files_of_one_name_do_not_replace_each_other(upscaler, tmp_path):
    places = ["a/x.png", "b/x.png", "b/x.bmp", "b/y.png", "b/y.bmp", "z.png", "z.2.png", "contact-sheet.png"]
    files = [saved(noise(8, 8), tmp_path / place) for place in places]
    assert restore(upscaler, *files, "--num", "2", "--out", tmp_path / "out") == 0
    written = [each["written"] for each in record(tmp_path / "out")["restored"]]
    assert written == [
        "a-x.png.png", "b-x.png.png", "b-x.bmp.png", "y.png.png", "y.bmp.png", "z.png", "z.2-2.png", "contact-sheet-2.png"
    ]  # fmt: skip
    ends = (".png", ".2.png", ".mean.png", ".spread.png")
    expected = {name.removesuffix(".png") + end for name in written for end in ends}
    assert {p.name for p in (tmp_path / "out").iterdir()} == expected | {"contact-sheet.png", "restore.json"}
    model = load(upscaler)
    for file, name in zip(files, written, strict=True):
        assert np.array_equal(pixels(tmp_path / "out" / name), model.restore(file).draws[0][0, 0])


def test_restorations_inside_the_folder_are_not_restored_again(upscaler, tmp_path):
    write_images(tmp_path / "mine", 2)
    out = tmp_path / "mine" / "restored"
    assert restore(upscaler, tmp_path / "mine", "--out", out) == 0
    assert restore(upscaler, tmp_path / "mine", "--out", out, "--force") == 0
    assert len(record(out)["restored"]) == 2


def test_a_draw_depends_on_image_and_seed_alone(upscaler, tmp_path):
    files = sorted(write_images(tmp_path / "mine", 70).iterdir())
    model = load(upscaler)
    many = model.restore([*files], num=2)
    few = model.restore([files[69], files[3]], num=3)
    assert torch.equal(many.draws[69], few.draws[0][:2])
    assert torch.equal(many.draws[3], few.draws[1][:2])
    other = model.restore(files[3], num=2, seed=1).draws[0]
    assert not torch.equal(other, many.draws[3])
    assert not torch.equal(few.draws[0][0], few.draws[0][1])
    restore(upscaler, files[69], files[3], "--num", "3", "--out", tmp_path / "out")
    for name, draws in (("069", few.draws[0]), ("003", few.draws[1])):
        for end, draw in zip(("", ".2", ".3"), draws, strict=True):
            assert np.array_equal(pixels(tmp_path / "out" / f"{name}{end}.png"), draw[0])


# Any size and mode


def test_sizes_and_modes_are_read_as_training_images_are_and_said(upscaler, tmp_path, capsys):
    grey = noise(30, 40)
    alpha = np.dstack([noise(16, 8, 3), np.full((16, 8), 255, np.uint8)])
    saved(grey, tmp_path / "in" / "grey.png")
    saved((grey.astype(np.uint16) * 257), tmp_path / "in" / "deep.png")
    saved(alpha, tmp_path / "in" / "rgba.png")
    Image.fromarray(noise(8, 8, 3)).quantize(16).save(tmp_path / "in" / "palette.png")
    saved(noise(8, 8), tmp_path / "in" / "same.png")
    saved(noise(2, 2), tmp_path / "in" / "small.png")
    assert restore(upscaler, tmp_path / "in", "--out", tmp_path / "out") == 0
    lines = capsys.readouterr().out.splitlines()
    said = {Path(file).name: note for file, _, note in (line.partition(": ") for line in lines[:-1])}
    assert said == {
        "grey.png": "30x40 resized to 8x8 and back",
        "deep.png": "30x40 resized to 8x8 and back",
        "rgba.png": "colour read as grey, 16x8 resized to 8x8 and back",
        "palette.png": "colour read as grey",
        "small.png": "2x2 enlarged to 8x8",
    }
    sizes = {"grey": (30, 40), "deep": (30, 40), "rgba": (16, 8), "palette": (8, 8), "same": (8, 8), "small": (8, 8)}
    for name, size in sizes.items():
        assert pixels(tmp_path / "out" / f"{name}.png").shape == size
    assert np.array_equal(pixels(tmp_path / "out" / "grey.png"), pixels(tmp_path / "out" / "deep.png"))
    assert {each["written"]: each["note"] for each in record(tmp_path / "out")["restored"]}["same.png"] == ""


def test_a_resized_image_is_what_the_model_draws_enlarged(upscaler):
    flat = Image.fromarray(np.full((24, 16), 90, np.uint8))
    near = load(upscaler).restore(flat).draws[0][0, 0].numpy()
    at_size = load(upscaler).restore(flat.resize((8, 8))).draws[0][0, 0].numpy()
    assert np.array_equal(near, np.array(Image.fromarray(at_size).resize((16, 24), Image.Resampling.LANCZOS)))


def test_many_files_to_resize_are_said_in_few_lines(upscaler, tmp_path, capsys):
    assert restore(upscaler, write_images(tmp_path / "mine", 12, (9, 9)), "--out", tmp_path / "out") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert lines[8] == f"... and 4 more, see {tmp_path / 'out' / 'restore.json'}"


def test_an_upscaler_begins_from_blocks_as_in_training(upscaler):
    model = load(upscaler)
    goals = load_data(DataConfig()).test.images[:3]
    blocks = downsample(to_unit(goals, 17), 4.0)
    reading = model.restorer().reading
    small = torch.nn.functional.interpolate(blocks, size=(2, 2), mode="nearest")
    bytes_of = ((small + 1) * 127.5).round().to(torch.uint8)[:, 0].numpy()
    for i, two in enumerate(bytes_of):
        exact = Image.fromarray(two)
        repeated, smooth = (
            exact.resize((8, 8), method) for method in (Image.Resampling.NEAREST, Image.Resampling.BILINEAR)
        )
        for image in (exact, repeated):
            state = reading.read(image, "it", None).state
            assert (state - blocks[i]).abs().max() < 1 / 127
        state = reading.read(smooth, "it", None).state  # enlarged by another method, it is blocks again
        assert all(len(state[0, r : r + 4, c : c + 4].unique()) == 1 for r in (0, 4) for c in (0, 4))
    # What the model draws is what sample draws from the same canvas, of the same kind.
    assert model.sample(3, start=blocks).images.shape == torch.cat(model.restore(goals).draws).shape


# Known pixels


@pytest.mark.parametrize("size", [(8, 8), (31, 20), (5, 4)])
@pytest.mark.parametrize("kind", ["L", "RGB", "RGBA", "LA", "I;16", "P"])
@pytest.mark.parametrize("name", ["grey_inpainter", "colour_inpainter"])
def test_known_pixels_are_kept_to_the_last_bit(name, kind, size, tmp_path, request):
    """At the model's size and at others, in the bits, colours and transparency of the file."""
    run, mask, file = request.getfixturevalue(name), a_mask(*size), tmp_path / "photo.png"
    channels = {"L": (), "RGB": (3,), "RGBA": (4,), "LA": (2,), "I;16": (), "P": (3,)}[kind]
    array = RANDOM.integers(0, 65536, size, dtype=np.uint16) if kind == "I;16" else noise(*size, *channels)
    image = Image.fromarray(array)
    (image.quantize(32) if kind == "P" else image).save(file)
    saved(mask, tmp_path / "mask.png")
    assert restore(run, file, "--mask", tmp_path / "mask.png", "--num", "3", "--out", tmp_path / "out") == 0
    before = np.array(Image.open(file).convert("RGB")) if kind == "P" else array
    known = mask == 0
    for end in (".png", ".2.png", ".3.png", ".mean.png"):
        after = pixels(tmp_path / "out" / f"photo{end}")
        assert after.shape[:2] == size
        if kind == "I;16" and name == "colour_inpainter":  # filled in colour, grey of 16 bits has 8
            assert after.dtype == np.uint8
            assert (np.abs(after[known].astype(int) * 257 - before[known][:, None]) <= 129).all()
        elif after.ndim > before.ndim or (after.ndim == before.ndim == 3 and after.shape[2] > before.shape[2]):
            assert name == "colour_inpainter"  # grey filled in colour: the same grey in every channel
            assert (after[known][:, :3] == before[known].reshape(known.sum(), -1)[:, :1]).all()
            if kind == "LA":
                assert (after[known][:, 3] == before[known][:, 1]).all()
        else:
            assert after.dtype == before.dtype
            assert np.array_equal(after[known], before[known])
        if kind in ("RGBA", "LA"):
            assert (after[~known][:, -1] == 255).all()
    spread = pixels(tmp_path / "out" / "photo.spread.png")
    assert not spread[known].any()
    # Two draws of a tiny model may agree to the grey level, more so at few pixels.
    draws = [pixels(tmp_path / "out" / f"photo{end}")[~known].astype(int) for end in (".png", ".2.png", ".3.png")]
    assert np.ptp(draws, axis=0).max() > 0 or (~known).sum() < 4


def test_a_palette_of_greys_is_filled_in(grey_inpainter, tmp_path):
    """Stored in colours, read as grey: its known pixels come back as they were."""
    picture = Image.fromarray(noise(8, 8, 1)[:, :, 0] // 16).convert("P")
    picture.putpalette([level for i in range(16) for level in (17 * i,) * 3])
    picture.save(tmp_path / "p.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[2:6, 2:6] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert restore(grey_inpainter, tmp_path / "p.png", "--mask", tmp_path / "mask.png", "--out", tmp_path / "out") == 0
    out = np.asarray(Image.open(tmp_path / "out" / "p.png").convert("RGB"))
    assert np.array_equal(out[mask == 0], np.asarray(picture.convert("RGB"))[mask == 0])


def test_what_is_transparent_is_missing(grey_inpainter, tmp_path, capsys):
    array = noise(8, 8, 2)
    array[:, :, 1] = np.where(a_mask(8, 8) > 0, 0, 255)
    file = saved(array, tmp_path / "photo.png")
    assert restore(grey_inpainter, file, "--out", tmp_path / "out") == 0
    after = pixels(tmp_path / "out" / "photo.png")
    assert after.shape == (8, 8)  # nothing is transparent any more
    assert np.array_equal(after[array[:, :, 1] == 255], array[array[:, :, 1] == 255, 0])
    state = load(grey_inpainter).restorer().reading.read(file, "it", None).state
    assert bool((state[0].numpy()[array[:, :, 1] == 0] == 0).all())
    # A colour said to be transparent, in 16 bits.
    deep = RANDOM.integers(0, 65536, (8, 8, 1))
    deep[2:5, 2:5] = 777
    (tmp_path / "deep.png").write_bytes(Png(deep, 16, clear=(777,)).content())
    assert restore(grey_inpainter, tmp_path / "deep.png", "--out", tmp_path / "deep") == 0
    assert pixels(tmp_path / "deep" / "deep.png").shape == (8, 8)


def test_the_orientation_of_a_photo_is_applied_before_its_mask(grey_inpainter, tmp_path):
    stored = RANDOM.integers(0, 256, (6, 9, 1))
    photo = Png(stored, orientation=6)
    (tmp_path / "photo.png").write_bytes(photo.content())
    seen = photo.pixels((255, 255, 255))[:, :, 0]
    mask = a_mask(9, 6)
    saved(mask, tmp_path / "mask.png")
    arguments = (tmp_path / "photo.png", "--mask", tmp_path / "mask.png", "--out", tmp_path / "out")
    assert restore(grey_inpainter, *arguments) == 0
    assert np.array_equal(pixels(tmp_path / "out" / "photo.png")[mask == 0], seen[mask == 0])


def test_the_middle_is_what_was_hidden_in_training(grey_inpainter, tmp_path, capsys):
    array = noise(8, 8)
    assert restore(grey_inpainter, saved(array, tmp_path / "a.png"), "--mask", "middle", "--out", tmp_path / "out") == 0
    assert "missing elsewhere" not in capsys.readouterr().out
    changed = np.argwhere(pixels(tmp_path / "out" / "a.png") != array)
    assert changed.min() >= 1
    assert changed.max() <= 6  # 6 of 8 rows and columns: half of the area
    large = saved(noise(16, 24), tmp_path / "b.png")
    assert restore(grey_inpainter, large, "--mask", "middle", "--out", tmp_path / "large") == 0
    changed = np.argwhere(pixels(tmp_path / "large" / "b.png") != pixels(large))
    assert (changed.min(0) >= (2, 3)).all()
    assert (changed.max(0) < (14, 21)).all()
    mask = saved(a_mask(8, 8), tmp_path / "mask.png")
    assert restore(grey_inpainter, tmp_path / "a.png", "--mask", mask, "--out", tmp_path / "other") == 0
    assert "a.png: missing elsewhere than in training (--start mask:0.5)" in capsys.readouterr().out


def test_a_model_pixel_is_the_mean_of_the_known_ones_below_it(grey_inpainter):
    array, missing = np.full((16, 16), 200, np.uint8), np.zeros((16, 16), bool)
    array[:, 0], missing[:, 0] = 0, True  # half of a model's pixel: it is known by the other half
    array[4:6, 4:6], missing[4:6, 4:6] = 0, True
    array[8, 8], missing[8, 8] = 0, True
    state = load(grey_inpainter).restorer().reading.read(Image.fromarray(array), "it", missing).state[0]
    expected = torch.full((8, 8), 200 / 255 * 2 - 1)
    expected[2, 2] = 0
    assert torch.allclose(state, expected, atol=1e-5)


def test_masks_that_do_not_fit_are_refused_in_one_line(grey_inpainter, upscaler, tmp_path, capsys):
    photo = saved(noise(10, 12), tmp_path / "photo.png")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "folder").mkdir()
    black, white = (saved(np.full((10, 12), level, np.uint8), tmp_path / f"{level}.png") for level in (1, 255))
    cases = [
        (["--mask", saved(a_mask(8, 8), tmp_path / "small.png")], "the mask is 8x8 and"),
        (["--mask", tmp_path / "text.png"], "text.png cannot be read as an image"),
        (["--mask", tmp_path / "nowhere.png"], "nowhere.png does not exist"),
        (["--mask", tmp_path / "folder"], "folder cannot be read"),
        (["--mask", black], "1.png marks nothing: what is missing must be white in it"),
        (["--mask", white], "photo.png is missing"),
        ([], "what is missing of"),
    ]
    for options, message in cases:
        assert restore(grey_inpainter, photo, *options, "--out", tmp_path / "out") == 2
        assert message in error_of(capsys)
        assert not (tmp_path / "out").exists()
    assert restore(upscaler, photo, "--mask", white, "--out", tmp_path / "out") == 2
    assert "--mask is for a model that fills in what is missing" in error_of(capsys)


# Draws, mean and spread


@pytest.mark.parametrize("size", [(8, 8), (13, 9)])
def test_mean_and_spread_are_those_of_the_draws(upscaler, tmp_path, capsys, size):
    file = saved(noise(*size), tmp_path / "photo.png")
    assert restore(upscaler, file, "--num", "5", "--seed", "3", "--out", tmp_path / "out") == 0
    draws = np.stack([pixels(tmp_path / "out" / f"photo{end}.png") for end in ("", ".2", ".3", ".4", ".5")]).astype(
        float
    )
    assert np.array_equal(pixels(tmp_path / "out" / "photo.mean.png"), np.rint(draws.mean(0)))
    spread = pixels(tmp_path / "out" / "photo.spread.png").astype(float)
    assert np.abs(spread - 2 * draws.std(0)).max() <= 0.5 + 1e-9
    assert spread.max() > 0
    restored = load(upscaler).restore(file, num=5, seed=3)
    assert np.array_equal(restored.draws[0][:, 0], draws)
    assert np.allclose(restored.mean[0][0], draws.mean(0), atol=1e-4)
    assert np.allclose(restored.spread[0][0], draws.std(0), atol=1e-4)
    assert "5 draws of each with their mean and spread" in capsys.readouterr().out


def test_more_draws_than_are_drawn_together(upscaler):
    model = load(upscaler)
    goals = load_data(DataConfig()).test.images[:2]
    restored = model.restore(goals, num=BLOCK + 3)
    assert [len(draws) for draws in restored.draws] == [BLOCK + 3] * 2
    assert torch.equal(restored.draws[1][:2], model.restore(goals[1:], num=2).draws[0])
    assert len(restored.draws[0].unique(dim=0)) > BLOCK // 2


def test_few_images_are_held_at_a_time(upscaler):
    """Files are read as they are drawn, however many there are."""
    restorer, ahead = load(upscaler).restorer(), 0

    def reading():
        nonlocal ahead
        for i in range(1000):
            ahead = i
            yield restorer.reading.read(Image.fromarray(np.full((8, 8), i % 256, np.uint8)), "it", None)

    for done, _ in enumerate(restorer.draw(reading(), 1000, Drawing())):
        assert ahead - done < BLOCK
        if done == 200:
            break


# The truth


def psnr_by_hand(image: np.ndarray, truth: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((image.astype(float) - truth.astype(float)) ** 2)))


def ssim_by_hand(image: np.ndarray, truth: np.ndarray) -> float:
    """Wang et al., 2004, equation 13, with the window of 11x11 and the standard deviation of 1.5 pixels."""

    def smooth(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, 1.5, mode="mirror", truncate=3.5)

    x, y = image.astype(float), truth.astype(float)
    mx, my = smooth(x), smooth(y)
    vx, vy, c = smooth(x * x) - mx**2, smooth(y * y) - my**2, smooth(x * y) - mx * my
    a, b = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return float(np.mean((2 * mx * my + a) * (2 * c + b) / ((mx**2 + my**2 + a) * (vx + vy + b))))


def test_psnr_and_ssim_are_those_of_an_independent_computation(upscaler, tmp_path, capsys):
    truth = write_images(tmp_path / "truth", 4, (14, 11), seed=1)
    damaged = tmp_path / "damaged"
    for file in sorted(truth.iterdir()):
        saved(pixels(file) // 2 + 30, damaged / f"{file.stem}.bmp")
    saved(noise(14, 11), damaged / "other.png")
    saved(noise(14, 11), damaged / "another.png")
    shutil.copy(damaged / "other.png", truth / "unused.png")
    assert restore(upscaler, damaged, "--num", "2", "--truth", truth, "--out", tmp_path / "out") == 0
    about, found = record(tmp_path / "out"), []
    for each in about["restored"]:
        stem = each["written"].removesuffix(".png")
        if stem in ("other", "another"):
            assert "psnr" not in each
            assert not (tmp_path / "out" / f"{stem}.truth.png").exists()
            continue
        true = pixels(truth / f"{stem}.png")
        assert np.array_equal(pixels(tmp_path / "out" / f"{stem}.truth.png"), true)
        draws = [pixels(tmp_path / "out" / f"{stem}{end}.png") for end in ("", ".2")]
        expected = {
            "psnr": np.mean([psnr_by_hand(draw, true) for draw in draws]),
            "ssim": np.mean([ssim_by_hand(draw, true) for draw in draws]),
            "psnr_of_mean": psnr_by_hand(pixels(tmp_path / "out" / f"{stem}.mean.png"), true),
            "ssim_of_mean": ssim_by_hand(pixels(tmp_path / "out" / f"{stem}.mean.png"), true),
            "psnr_damaged": psnr_by_hand(pixels(damaged / f"{stem}.bmp"), true),
            "ssim_damaged": ssim_by_hand(pixels(damaged / f"{stem}.bmp"), true),
        }
        assert {key: each[key] for key in expected} == pytest.approx(expected, abs=1e-6)
        found.append(expected)
    assert len(found) == 4
    for key in found[0]:
        assert about[key] == pytest.approx(np.mean([each[key] for each in found]), abs=1e-6)
    assert about["without_truth"] == ["another.png", "other.png"]
    out = capsys.readouterr().out
    assert "no truth for 2: another.png, other.png" in out
    assert f"of 4 with a truth: restored: PSNR {about['psnr']:.2f} dB, SSIM {about['ssim']:.3f}" in out


def test_truths_are_found_in_subfolders_and_by_name(grey_inpainter, tmp_path):
    for folder in ("cats", "dogs"):
        write_images(tmp_path / "damaged" / folder, 2, seed=len(folder))
        shutil.copytree(tmp_path / "damaged" / folder, tmp_path / "truth" / folder)
    saved(noise(8, 8), tmp_path / "truth" / "dogs" / "own.png")
    own = saved(noise(8, 8), tmp_path / "own.png")
    arguments = (
        tmp_path / "damaged",
        own,
        "--mask",
        "middle",
        "--truth",
        tmp_path / "truth",
        "--out",
        tmp_path / "out",
    )
    assert restore(grey_inpainter, *arguments) == 0
    truths = [Path(each["truth"]).relative_to(tmp_path / "truth") for each in record(tmp_path / "out")["restored"]]
    assert [path.as_posix() for path in truths] == [
        "cats/000.png", "cats/001.png", "dogs/000.png", "dogs/001.png", "dogs/own.png"
    ]  # fmt: skip


def test_a_truth_of_another_size_is_resized_and_said(upscaler, tmp_path, capsys):
    truth = saved(noise(16, 20), tmp_path / "truth" / "a.png")
    small = saved(noise(2, 2), tmp_path / "a.png")
    assert restore(upscaler, small, "--truth", truth.parent, "--out", tmp_path / "out") == 0
    said = "2x2 enlarged to 8x8, truth of 16x20 resized to 8x8"
    assert f"a.png: {said}" in capsys.readouterr().out
    (each,) = record(tmp_path / "out")["restored"]
    assert each["note"] == said
    true = pixels(tmp_path / "out" / "a.truth.png")
    assert each["psnr"] == pytest.approx(psnr_by_hand(pixels(tmp_path / "out" / "a.png"), true), abs=1e-6)
    truth.write_bytes(truth.read_bytes()[:-40])
    assert restore(upscaler, small, "--truth", truth.parent, "--out", tmp_path / "again") == 2
    assert "a.png cannot be read as an image" in error_of(capsys)
    assert not (tmp_path / "again").exists()


def test_what_is_exact_is_infinitely_near_and_small_images_have_no_ssim():
    image = torch.from_numpy(noise(1, 5, 9))
    assert fidelity(image, image) == (None, None)
    whole = torch.from_numpy(noise(3, 12, 9))
    assert fidelity(whole, whole) == (None, 1.0)
    black, white = torch.zeros(1, 8, 8, dtype=torch.uint8), torch.full((1, 8, 8), 255, dtype=torch.uint8)
    assert fidelity(black, white).psnr == pytest.approx(0, abs=1e-5)


def test_truths_that_are_not_there_are_refused_in_one_line(upscaler, tmp_path, capsys, monkeypatch):
    photo = saved(noise(8, 8), tmp_path / "photo.png")
    truth = write_images(tmp_path / "truth", 2)
    (tmp_path / "empty").mkdir()
    cases = [
        (photo, "is no folder; give the one with the undamaged images"),
        (tmp_path / "empty", "holds no images"),
        (truth, "holds no image of the name of any of the 1 files, such as photo"),
    ]
    for given, message in cases:
        assert restore(upscaler, photo, "--truth", given, "--out", tmp_path / "out") == 2
        assert message in error_of(capsys)
    real = importlib.import_module

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("torchmetrics"):
            raise ImportError("No module named 'torchmetrics'")
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    assert restore(upscaler, photo, "--truth", truth, "--out", tmp_path / "out") == 2
    assert "pip install torchmetrics" in error_of(capsys)
    assert not (tmp_path / "out").exists()


# The contact sheet


def cell(sheet: np.ndarray, row: int, column: int, size: tuple[int, int], scale: int) -> np.ndarray:
    """One picture of a sheet, not enlarged."""
    (height, width), small = size, sheet[::scale, ::scale]
    top, left = row * (height + 1) + 1, column * (width + 1) + 1
    return small[top : top + height, left : left + width]


def test_the_contact_sheet_shows_damaged_draws_mean_and_truth(grey_inpainter, tmp_path):
    truth = write_images(tmp_path / "truth", 3)
    shutil.copytree(truth, tmp_path / "damaged")
    arguments = (tmp_path / "damaged", "--mask", "middle", "--num", "6", "--truth", truth, "--out", tmp_path / "out")
    assert restore(grey_inpainter, *arguments) == 0
    sheet = pixels(tmp_path / "out" / "contact-sheet.png")
    assert sheet.shape == (7 * (3 * 9 + 1), 7 * (7 * 9 + 1), 3)  # damaged, four draws, mean, truth
    hidden = load(grey_inpainter).restorer().reading.trained
    for row, name in enumerate(("000", "001", "002")):
        damaged = np.where(hidden, 128, pixels(truth / f"{name}.png"))
        ends = ("", ".2", ".3", ".4", ".mean", ".truth")
        shown = [damaged, *(pixels(tmp_path / "out" / f"{name}{end}.png") for end in ends)]
        for column, picture in enumerate(shown):
            assert np.array_equal(cell(sheet, row, column, (8, 8), 7), np.dstack([picture] * 3))


def test_a_sheet_of_images_of_other_sizes_and_of_many(upscaler, tmp_path):
    files = [saved(noise(300, 200), tmp_path / "large.png"), saved(noise(8, 8), tmp_path / "small.png")]
    assert restore(upscaler, *files, "--out", tmp_path / "out") == 0
    assert pixels(tmp_path / "out" / "contact-sheet.png").shape == (2 * 129 + 1, 2 * 129 + 1, 3)
    assert restore(upscaler, write_images(tmp_path / "many", 40), "--out", tmp_path / "all") == 0
    assert pixels(tmp_path / "all" / "contact-sheet.png").shape == (7 * (32 * 9 + 1), 7 * (2 * 9 + 1), 3)


# What is refused, and what is kept


@pytest.mark.parametrize("start", ["mean", "noise:0.5", "constant:0"])
def test_a_model_that_was_not_trained_to_restore_says_so(start, digits_run, tmp_path, capsys):
    run = digits_run if start == "mean" else tiny_model(tmp_path, start=start)
    photo = saved(noise(8, 8), tmp_path / "photo.png")
    assert restore(run, photo, "--out", tmp_path / "out") == 2
    assert f"this model was not trained to restore images: it begins from '{start}'" in error_of(capsys)
    assert not (tmp_path / "out").exists()
    with pytest.raises(GoalgenError, match="not trained to restore"):
        load(run).restore(photo)


def test_a_model_trained_on_pairs_restores_and_one_of_a_mere_folder_does_not(tmp_path, capsys):
    goals = write_images(tmp_path / "goals", 24)
    damaged = tmp_path / "damaged"
    for file in goals.iterdir():
        saved(pixels(file) // 2, damaged / file.name)
    run = tiny_model(tmp_path / "pairs", data=goals.as_posix(), start=damaged.as_posix())
    photo = damaged / "003.png"
    assert restore(run, photo, "--out", tmp_path / "out") == 0
    assert pixels(tmp_path / "out" / "003.png").shape == (8, 8)
    others = write_images(tmp_path / "others" / "deeper", 5, seed=3)
    mere = tiny_model(tmp_path / "mere", data=goals.as_posix(), start=others.parent.as_posix())
    assert restore(mere, photo, "--out", tmp_path / "mere-out") == 2
    assert "was not trained to restore" in error_of(capsys)


def test_files_that_cannot_be_read_are_refused_before_anything_is_written(upscaler, tmp_path, capsys):
    good = saved(noise(8, 8), tmp_path / "good.png")
    whole = saved(noise(200, 200), tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty").mkdir()
    cases = [
        ([], "no files were given"),
        ([good, tmp_path / "text.png"], "text.png cannot be read as an image"),
        ([good, tmp_path / "cut.png"], "cut.png cannot be read as an image"),
        ([good, tmp_path / "nowhere.png"], "nowhere.png does not exist"),
        ([tmp_path / "empty"], "holds no images"),
        ([good, "--num", "0"], "--num must be at least 1, not 0"),
        ([good, "--temperature", "0"], "the temperature must be above 0"),
        ([good, "--steps", "1"], "this model takes every step"),
        ([good, "--label", "7"], "not conditioned on labels"),
        ([good, "--device", "nonsense"], "--device nonsense is not there"),
    ]
    for arguments, message in cases:
        assert restore(upscaler, *arguments, "--out", tmp_path / "out") == 2
        assert message in error_of(capsys)
        assert not (tmp_path / "out").exists()


def test_nothing_that_restore_did_not_write_is_replaced(upscaler, tmp_path, capsys):
    images = write_images(tmp_path / "images", 2)
    before = digest(images)
    for options in ((), ("--force",)):
        assert restore(upscaler, images, "--out", images, *options) == 2
        assert "is not empty and holds no restorations of goalgen's" in error_of(capsys)
        assert digest(images) == before
    out = tmp_path / "out"
    assert restore(upscaler, images, "--num", "2", "--out", out) == 0
    (out / "mine.txt").write_text("keep me")
    first = digest(out)
    assert restore(upscaler, images / "001.png", "--out", out) == 2
    assert "holds restorations already; add --force to replace them" in error_of(capsys)
    assert digest(out) == first
    (tmp_path / "text.png").write_text("no image")
    assert restore(upscaler, tmp_path / "text.png", "--out", out, "--force") == 2
    assert digest(out) == first
    assert restore(upscaler, images / "001.png", "--out", out, "--force") == 0
    assert digest(out).keys() == {"001.png", "contact-sheet.png", "restore.json", "mine.txt"}


def test_a_model_of_classes_is_told_the_class(tmp_path, capsys):
    run = tiny_model(tmp_path, start="mask:0.5", condition="label")
    photo = saved(noise(8, 8), tmp_path / "photo.png")
    assert restore(run, photo, "--mask", "middle", "--out", tmp_path / "out") == 2
    assert "conditioned on labels: give the label" in error_of(capsys)
    assert restore(run, photo, "--mask", "middle", "--label", "7", "--out", tmp_path / "out") == 0
    model = load(run)
    one = model.restore(photo, "middle", labels=7).draws[0]
    assert np.array_equal(pixels(tmp_path / "out" / "photo.png"), one[0, 0])


# From Python


@pytest.fixture(scope="module")
def model(grey_inpainter) -> Model:
    return load(grey_inpainter)


def test_restore_takes_what_other_methods_take(model, tmp_path):
    array = noise(2, 8, 8)
    for i in range(2):
        saved(array[i], tmp_path / f"{i}.png")
    mask = a_mask(8, 8)
    expected = model.restore(array, mask, num=2)
    assert [draws.shape for draws in expected.draws] == [(2, 1, 8, 8)] * 2
    assert expected.notes == ["missing elsewhere than in training (--start mask:0.5)"] * 2
    missing = torch.from_numpy(mask > 0)
    saved(mask, tmp_path / "masks" / "mask.png")
    images: list[Any] = [
        torch.from_numpy(array), array[:, :, :, None], [*array], [Image.fromarray(each) for each in array],
        [tmp_path / "0.png", str(tmp_path / "1.png")], [(tmp_path / f"{i}.png").read_bytes() for i in range(2)],
    ]  # fmt: skip
    masks: list[Any] = [
        missing, Image.fromarray(mask), tmp_path / "masks" / "mask.png", [mask, missing], missing.expand(2, 8, 8), str(tmp_path / "masks" / "mask.png")
    ]  # fmt: skip
    for given, one in zip(images, masks, strict=True):
        found = model.restore(given, one, num=2)
        assert all(torch.equal(a, b) for a, b in zip(found.draws, expected.draws, strict=True))
    (tmp_path / "two").mkdir()
    for i in range(2):
        shutil.copy(tmp_path / f"{i}.png", tmp_path / "two")
    assert torch.equal(model.restore(tmp_path / "two", mask, num=2).draws[1], expected.draws[1])
    for draws, mean, spread, image in zip(expected.draws, expected.mean, expected.spread, array, strict=True):
        assert (draws[:, 0][:, ~missing] == torch.from_numpy(image)[~missing]).all()
        assert torch.allclose(mean, draws.float().mean(0))
        assert torch.allclose(spread, draws.float().std(0, unbiased=False), atol=1e-4)


def test_known_grey_levels_of_few_are_kept(tmp_path):
    found = load(tiny_model(tmp_path, start="mask:0.25"))  # the digits have 17 levels
    images = load_data(DataConfig()).test.images[:3]
    restored: list[Tensor] = found.restore(images, "middle").draws
    hidden = torch.from_numpy(found.restorer().reading.trained)
    for draws, image in zip(restored, images, strict=True):
        assert torch.equal(draws[0][:, ~hidden], to_bytes(image, 17)[:, ~hidden])


def test_images_and_masks_that_do_not_fit_are_refused(model, upscaler):
    array = noise(2, 8, 8)
    mask = a_mask(8, 8)
    cases: list[tuple[Any, Any, dict[str, Any], str]] = [
        (noise(2, 9, 8), mask, {}, "these are"),
        (array, a_mask(9, 8), {}, "the mask is 9x8 and image 0 is 8x8"),
        (array, [mask] * 3, {}, "3 masks were given for 2 images"),
        (array, np.zeros((8, 8), bool), {}, "the mask marks nothing"),
        (array, np.ones((8, 8), bool), {}, "all of image 0 is missing"),
        (array, np.ones((8,), bool), {}, "a mask must be"),
        (array, 3, {}, "a mask must be a tensor, an array, a PIL image or a file, not int"),
        (array, None, {}, "what is missing of image 0 is not said"),
        (array, mask, {"num": 0}, "the number of draws must be at least 1"),
        ([], mask, {}, "no images were given"),
    ]
    for images, one, options, message in cases:
        with pytest.raises(GoalgenError, match=message):
            model.restore(images, one, **options)
    with pytest.raises(GoalgenError, match="--mask is for a model that fills in"):
        load(upscaler).restore(array // 16, mask)
