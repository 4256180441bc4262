"""Initial states: known pixels for every kind, and one clear line for every mistake."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from goalgen import rng
from goalgen.config import DataConfig
from goalgen.errors import GoalgenError
from goalgen.starts import FolderStart, Start, TensorStart, make_start

GREY = (1, 8, 6)
RGB = (3, 8, 6)


def random_goals(shape: tuple[int, int, int], batch: int = 4) -> torch.Tensor:
    return torch.rand(batch, *shape, generator=rng.generator(0, "goals")) * 2 - 1


def fails(match: str, spec: str, shape: tuple[int, int, int] = GREY, data: DataConfig | None = None) -> None:
    with pytest.raises(GoalgenError, match=match) as error:
        make_start(spec, shape, data=data)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [GREY, RGB, (1, 1, 3), (3, 5, 9)])
@pytest.mark.parametrize(
    "spec", ["mean", "constant", "noise", "grey", "blur", "blur:0.5", "downsample", "downsample:3", "mask", "edges"]
)
def test_every_kind_gives_states_of_the_right_shape(spec: str, shape: tuple[int, int, int]) -> None:
    if spec == "grey" and shape[0] == 1:
        fails("nothing to colourise", spec, shape)
        return
    goals = random_goals(shape)
    untouched = goals.clone()
    start = make_start(spec, shape, torch.zeros(shape))
    states = start(4, goals=goals, generator=rng.generator(0, "start"))
    assert start.spec == spec
    assert states.shape == (4, *shape)
    assert states.dtype == torch.float32
    assert (goals == untouched).all()
    if spec != "noise":
        assert states.abs().max() <= 1 + 1e-5
    states.zero_()  # the caller's to write into
    assert start.needs_goal == (spec.partition(":")[0] in ("grey", "blur", "downsample", "mask", "edges"))
    if start.needs_goal:
        with pytest.raises(GoalgenError, match="is a function of the goal: pass goals"):
            start(4)
    again = pickle.loads(pickle.dumps(start))
    assert again.spec == spec


def test_mean() -> None:
    mean = random_goals(GREY)[0]
    assert (make_start("mean", GREY, mean)(3) == mean).all()
    fails("needs the mean of the training images", "mean")
    with pytest.raises(GoalgenError, match="must be"):
        make_start("mean", RGB, mean)


def test_constant() -> None:
    assert (make_start("constant", GREY)(2) == 0).all()
    assert (make_start("constant:0", GREY)(2) == -1).all()
    assert (make_start("constant:1", GREY)(2) == 1).all()
    assert (make_start("constant:0.25", GREY)(2) == -0.5).all()


def test_noise() -> None:
    start = make_start("noise:0.5", (1, 32, 32))
    states = start(64, generator=rng.generator(0, "start"))
    assert abs(float(states.mean())) < 0.01
    assert float(states.std()) == pytest.approx(0.5, abs=0.01)
    assert (states == start(64, generator=rng.generator(0, "start"))).all()
    assert (states != start(64, generator=rng.generator(1, "start"))).any()
    with pytest.raises(GoalgenError, match=r"is random: pass a torch\.Generator"):
        start(1)


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("fog", r"no start is called 'fog'; there are: mean, constant\[:LEVEL\], noise"),
        ("", "no start is called ''"),
        ("fog:3", "no start is called"),
        ("mean:2", "takes no parameter"),
        ("edges:2", "takes no parameter"),
        ("blur:", "lacks its parameter"),
        ("blur:wide", "needs a number after the colon, not 'wide'"),
        ("blur:nan", "needs a number more than 0"),
        ("blur:0", "more than 0 and at most 8"),
        ("blur:-1", "more than 0"),
        ("constant:1.5", "at least 0 and at most 1"),
        ("mask:0", "more than 0 and at most 1"),
        ("downsample:1", "more than 1"),
        ("noise:inf", "more than 0"),
        (r"C:\pictures\x.png", "does not exist"),
        ("C:/pictures", "does not exist"),
        ("./mean", "does not exist"),
        ("~/no-such-folder", "does not exist"),
        ("x.png", "does not exist"),
    ],
)
def test_bad_specs(spec: str, match: str) -> None:
    fails(match, spec)


def test_grey_is_luma() -> None:
    goals = random_goals(RGB)
    states = make_start("grey", RGB)(4, goals=goals)
    luma = 0.299 * goals[:, 0] + 0.587 * goals[:, 1] + 0.114 * goals[:, 2]
    for channel in range(3):
        assert torch.allclose(states[:, channel], luma, atol=1e-6)


def test_blur_of_a_point_is_a_gaussian() -> None:
    goals = torch.zeros(1, 1, 21, 21)
    goals[..., 10, 10] = 1
    states = make_start("blur:1.5", (1, 21, 21))(1, goals=goals)[0, 0]
    assert float(states.sum()) == pytest.approx(1, abs=1e-5)
    offset = torch.arange(21) - 10.0
    for axis in (0, 1):
        variance = float((states.sum(axis) * offset.square()).sum())
        assert math.sqrt(variance) == pytest.approx(1.5, abs=0.05)
    assert torch.allclose(states, states.T)
    flat = torch.full((1, 3, 8, 6), 0.7)
    assert torch.allclose(make_start("blur", RGB)(1, goals=flat), flat, atol=1e-6)


def test_downsample() -> None:
    goals = random_goals(GREY)
    states = make_start("downsample", GREY)(4, goals=goals)
    blocks = goals.reshape(4, 1, 4, 2, 3, 2).mean((3, 5))
    assert torch.allclose(states, blocks.repeat_interleave(2, 2).repeat_interleave(2, 3), atol=1e-6)
    whole = make_start("downsample:8", GREY)(4, goals=goals)
    assert torch.allclose(whole, goals.mean((2, 3), keepdim=True).expand_as(goals), atol=1e-6)


@given(st.integers(1, 30), st.integers(1, 30), st.floats(0.01, 1))
def test_mask_covers_its_share(height: int, width: int, fraction: float) -> None:
    shape = (1, height, width)
    hole = make_start(f"mask:{fraction}", shape)(1, goals=torch.ones(1, *shape))[0, 0] == 0
    side = math.sqrt(fraction)
    assert abs(int(hole.any(1).sum()) - height * side) <= 1
    assert abs(int(hole.any(0).sum()) - width * side) <= 1
    assert int(hole.sum()) == int(hole.any(1).sum()) * int(hole.any(0).sum()) > 0
    # Centred to the pixel.
    for axis in (0, 1):
        inside = hole.any(axis).nonzero().flatten()
        before, after = int(inside[0]), hole.shape[1 - axis] - 1 - int(inside[-1])
        assert abs(before - after) <= 1


def test_edges() -> None:
    goals = torch.full((1, 1, 8, 6), -1.0)
    goals[..., 3:] = 1
    states = make_start("edges", GREY)(1, goals=goals)[0, 0]
    assert torch.allclose(states[:, 2:4], torch.ones(8, 2))
    assert torch.allclose(states[:, :2], -torch.ones(8, 2))
    assert torch.allclose(states[:, 4:], -torch.ones(8, 2))
    turned = make_start("edges", (1, 6, 8))(1, goals=goals.transpose(2, 3).contiguous())[0, 0]
    assert torch.allclose(turned, states.T)


def test_image_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("L", (6, 8), 51).save(path)
    assert torch.allclose(make_start(str(path), GREY)(2), torch.full((2, *GREY), -0.6))
    assert make_start(str(path), RGB)(2).shape == (2, *RGB)
    fails(
        r"start of the wrong size: .*a.png is 8x6 and the model's images are 6x8 .*resize it to 6x8",
        str(path),
        (1, 6, 8),
    )
    path.write_text("no")
    fails("cannot be read as an image", str(path))


def test_background_of_an_image_file(tmp_path: Path) -> None:
    Image.new("RGBA", (6, 8), (0, 0, 0, 0)).save(tmp_path / "a.png")
    start = make_start(str(tmp_path / "a.png"), RGB, data=DataConfig(background="red"))
    assert start(1)[0, :, 0, 0].tolist() == [1, -1, -1]


def test_the_name_of_a_kind_wins_over_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path / "constant", {"a.png": 255})
    monkeypatch.chdir(tmp_path)
    assert (make_start("constant", GREY)(1) == 0).all()
    assert (make_start("./constant", GREY)(1, generator=rng.generator(0, "start")) == 1).all()


def folder(path: Path, levels: dict[str, int], size: tuple[int, int] = (8, 6)) -> Path:
    for name, level in levels.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", size[::-1], level).save(path / name)
    return path


def test_folder_paired_by_name(tmp_path: Path) -> None:
    start = make_start(str(folder(tmp_path, {"a.png": 0, "x/b.bmp": 255})), GREY)
    assert isinstance(start, FolderStart)
    assert not start.needs_goal
    states = start(3, names=["x/b", "a", "x/b"])
    assert states[:, 0, 0, 0].tolist() == [1, -1, 1]
    assert (states == states[:, :, :1, :1]).all()
    with pytest.raises(GoalgenError, match="3 initial states need 3 names, not 2"):
        start(3, names=["a", "a"])


def test_folder_sampled(tmp_path: Path) -> None:
    start = make_start(str(folder(tmp_path, {"a.png": 0, "b.png": 255})), GREY)
    assert isinstance(start, FolderStart)
    states = start(2000, generator=rng.generator(0, "start"))
    assert abs(float(states.mean())) < 0.12  # over 5 standard deviations
    assert (start(2000, generator=rng.generator(0, "start")) == states).all()
    unpaired = start(50, names=["other"] * 50, generator=rng.generator(0, "start"))
    assert set(unpaired.flatten().tolist()) == {-1, 1}
    assert not start.pairs_with(None)
    assert not start.pairs_with(["other"])
    assert start.pairs_with(["b", "a"])
    with pytest.warns(UserWarning, match="only some goals have a partner"):
        states = start(60, names=["a"] * 59 + ["other"], generator=rng.generator(0, "start"))
    assert set(states[:59].flatten().tolist()) == {-1, 1}
    with pytest.raises(GoalgenError, match=r"pass a torch\.Generator"):
        start(1)


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    fails("holds no images; looked for", str(tmp_path / "empty"))
    fails("start of the wrong size: .*b.png is 5x5", str(folder(tmp_path / "size", {"b.png": 0}, (5, 5))))
    fails("two images called a;", str(folder(tmp_path / "twice", {"a.png": 0, "a.bmp": 1})))
    mixed = folder(tmp_path / "mixed", {"a.png": 255})
    (mixed / "bad.png").write_text("no")
    with pytest.warns(UserWarning, match="skipped 1 unreadable; the first: .*bad.png"):
        start = make_start(str(mixed), GREY)
    assert (start(2, generator=rng.generator(0, "start")) == 1).all()
    fails("bad.png cannot be read", str(mixed), data=DataConfig(corrupt="refuse"))
    (mixed / "a.png").unlink()
    fails("none of its images can be read", str(mixed))


def test_tensor_start() -> None:
    images = random_goals(GREY)
    assert (TensorStart(images, GREY)(4) == images).all()
    assert (TensorStart(images[0], GREY)(3) == images[0]).all()
    assert (TensorStart(images[:1], GREY)(3) == images[0]).all()
    assert TensorStart(images.double(), GREY)(4).dtype == torch.float32
    with pytest.raises(GoalgenError, match="4 initial states were given for a batch of 3; give 1 or 3"):
        TensorStart(images, GREY)(3)
    nan = images.clone()
    nan[0, 0, 0, 0] = math.nan
    for match, tensor in {
        "wrong size": images.transpose(2, 3),
        "NaN": nan,
        "must be float": images.to(torch.uint8),
        "must be \\(C, height": images[0, 0],
        "up to 255; states are in": torch.full(GREY, 255.0),
    }.items():
        with pytest.raises(GoalgenError, match=match):
            TensorStart(tensor, GREY)


def test_bad_calls() -> None:
    start: Start = make_start("blur", GREY)
    with pytest.raises(GoalgenError, match=r"goals must be \(4, 1, 8, 6\), not \(4, 3, 8, 6\)"):
        start(4, goals=random_goals(RGB))
    with pytest.raises(GoalgenError, match="at least 1"):
        start(0)
