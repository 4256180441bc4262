"""Drawings as SVG files, against an independent rasteriser, and the commands that write them."""

from __future__ import annotations

import io
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import resvg_py
import torch
from PIL import Image
from runs import tiny_config, write_images
from torch import Tensor

from goalgen import cli
from goalgen.families.strokes import StrokesEnvironment, paint
from goalgen.families.strokes.environment import DEFAULT_INKS, read_inks
from goalgen.families.strokes.svg import to_svg
from goalgen.model import load
from goalgen.training import train

NAMESPACE = "{http://www.w3.org/2000/svg}"


def world(channels: int = 1, size: tuple[int, int] = (28, 28), inks: str | None = None) -> StrokesEnvironment:
    found = read_inks(inks or DEFAULT_INKS[channels], channels)
    return StrokesEnvironment((channels, *size), 10, (14, 14), 9, [1.26, 2.0, 3.0, 4.5], found)


def actions(environment: StrokesEnvironment, count: int, seed: int = 0) -> Tensor:
    """Random drawings, (H, count, 5); every second one stops in the middle."""
    noise = torch.rand(10, count, 5, generator=torch.Generator().manual_seed(seed))
    noise[..., 0] *= 0.99
    drawn = torch.stack([environment.action_space.uniform(n) for n in noise])
    drawn[4, ::2] = torch.tensor([environment.positions, 0, 0, 0, 0])
    return drawn


def painted(environment: StrokesEnvironment, start: Tensor, drawn: Tensor) -> Tensor:
    """Last canvases of these actions, (count, C, height, width)."""
    state = environment.initial(start)
    for h, action in enumerate(drawn):
        state = environment.transition(torch.full((len(start),), h), state, action)
    return environment.canvas(state)


def rasterised(svg: str, width: int) -> Tensor:
    """An SVG as the independent renderer has it, (3, height, width) in [-1, 1]."""
    with Image.open(io.BytesIO(resvg_py.svg_to_bytes(svg_string=svg, width=width))) as picture:
        return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1) / 127.5 - 1


@pytest.mark.parametrize(
    ("channels", "size", "inks"), [(1, (28, 28), None), (3, (28, 28), None), (3, (28, 42), "red/0.4 #08f black/0.7")]
)
def test_an_independent_renderer_draws_the_canvas(channels, size, inks):
    """Mean absolute difference under 2% of full scale, at the size of the canvas and at five times that."""
    environment = world(channels, size, inks)
    start = -torch.ones(12, channels, *size) if inks is None else torch.ones(12, channels, *size) * 0.6
    drawn = actions(environment, 12)
    last = painted(environment, start, drawn)
    for i in range(12):
        svg = to_svg(environment, start[i], drawn[:, i])
        small = rasterised(svg, size[1])
        assert small.shape == (3, *size)
        assert (small - last[i]).abs().mean() < 0.02 * 2
        strokes = [environment.strokes(a[i : i + 1]) for a in (drawn[:4] if i % 2 == 0 else drawn)]
        large = paint(torch.nn.functional.interpolate(start[i : i + 1], scale_factor=5), strokes, 5.0)
        assert (rasterised(svg, 5 * size[1]) - large[0]).abs().mean() < 0.02 * 2


def test_a_picture_to_start_from_is_in_the_file():
    environment = world()
    start = torch.linspace(-1, 1, 28 * 28).view(1, 1, 28, 28)
    drawn = actions(environment, 1)
    svg = to_svg(environment, start[0], drawn[:, 0])
    assert "data:image/png;base64," in svg
    assert (rasterised(svg, 28) - painted(environment, start, drawn)[0]).abs().mean() < 0.02 * 2


def test_one_path_a_stroke_in_order_and_nothing_to_spare():
    environment = world()
    drawn = actions(environment, 2)
    for i, count in ((0, 4), (1, 10)):
        svg = to_svg(environment, -torch.ones(1, 28, 28), drawn[:, i])
        root = ElementTree.fromstring(svg)
        assert root.tag == f"{NAMESPACE}svg"
        assert root.get("viewBox") == "0 0 28 28"
        found = root.findall(f".//{NAMESPACE}path")
        assert len(found) == count
        for path, action in zip(found, drawn[:, i], strict=False):
            x, y = environment.places[action[0]].tolist()
            assert path.get("d").startswith(f"M{x:g} {y:g}")
            assert set(path.keys()) <= {"d", "stroke", "stroke-width", "stroke-opacity"}
        assert len(svg) < 250 + 90 * count
    empty = to_svg(environment, -torch.ones(1, 28, 28), torch.tensor([[environment.positions, 0, 0, 0, 0]]))
    assert (rasterised(empty, 28) == -1).all()


def test_a_stroke_that_goes_nowhere_is_a_dot():
    environment = world()
    dot = torch.tensor([[105, 105, 40, 3, 0]])  # the middle way to bend
    svg = to_svg(environment, -torch.ones(1, 28, 28), dot)
    last = painted(environment, -torch.ones(1, 1, 28, 28), dot.unsqueeze(1))
    assert (last > 0).sum() > 4
    assert (rasterised(svg, 28) - last[0]).abs().mean() < 0.01


def test_one_that_draws_itself_shows_the_same_strokes_one_after_the_other():
    environment = world()
    drawn = actions(environment, 1)[:, 0]
    still = ElementTree.fromstring(to_svg(environment, -torch.ones(1, 28, 28), drawn))
    moving = ElementTree.fromstring(to_svg(environment, -torch.ones(1, 28, 28), drawn, draws_itself=True))
    style = moving.find(f"{NAMESPACE}style").text
    assert "@keyframes" in style
    assert "prefers-reduced-motion" in style
    pairs = zip(still.iter(f"{NAMESPACE}path"), moving.iter(f"{NAMESPACE}path"), strict=True)
    delays = []
    for a, b in pairs:
        assert a.get("d") == b.get("d")
        delays.append(float(re.search(r"animation-delay:([\d.]+)s", b.get("style"))[1]))
    assert delays == sorted(delays)
    assert delays[0] == 0 < delays[1]


# The commands


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    images = write_images(tmp_path_factory.mktemp("images") / "images", 24, size=(24, 24))
    settings = {
        "environment": "strokes", "start": "constant:0", "width": 8, "head_width": 8, "horizon": 3, "stroke_candidates": 6, "max_steps": 2,
        "data": images.as_posix(), "picture_every": 0,
    }  # fmt: skip
    return train(tiny_config(tmp_path_factory.mktemp("strokes") / "run", **settings)).folder


def test_sample_writes_each_drawing_beside_its_picture(run, tmp_path, capsys):
    assert cli.main(["sample", str(run), "--out", str(tmp_path / "s"), "--num", "5", "--svg", "--seed", "2"]) == 0
    names = sorted(p.name for p in (tmp_path / "s").iterdir())
    assert names == sorted(
        [f"{i:05d}{e}" for i in range(5) for e in (".png", ".svg", ".drawing.svg")] + ["samples.json"]
    )
    for i in range(5):
        with Image.open(tmp_path / "s" / f"{i:05d}.png") as picture:
            canvas = torch.from_numpy(np.array(picture)) / 127.5 - 1
        svg = (tmp_path / "s" / f"{i:05d}.svg").read_text()
        assert (rasterised(svg, 24)[0] - canvas).abs().mean() < 0.02 * 2
    assert cli.main(["sample", str(run), "--out", str(tmp_path / "plain"), "--num", "2"]) == 0
    assert not list((tmp_path / "plain").glob("*.svg"))


def test_svg_of_what_draws_no_strokes_is_refused(digits_run, tmp_path, capsys):
    assert cli.main(["sample", str(digits_run), "--out", str(tmp_path / "s"), "--num", "2", "--svg"]) == 2
    assert "draws no strokes" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()
    images = write_images(tmp_path / "images", 2)
    assert cli.main(["vectorize", str(digits_run), str(images), "--out", str(tmp_path / "v")]) == 2
    assert "draws no strokes" in capsys.readouterr().err
    assert not (tmp_path / "v").exists()


def test_vectorize_paints_given_images(run, tmp_path, capsys):
    images = write_images(tmp_path / "images", 3, size=(20, 31))
    out = tmp_path / "v"
    assert cli.main(["vectorize", str(run), str(images), "--out", str(out), "--budget", "2"]) == 0
    assert "3 drawings in" in capsys.readouterr().out
    assert {p.name for p in out.iterdir()} == {
        f"{i:03d}{e}" for i in range(3) for e in (".png", ".svg", ".drawing.svg")
    }
    for file in out.glob("*.svg"):
        assert len(ElementTree.parse(file).getroot().findall(f".//{NAMESPACE}path")) <= 2
    model = load(run)
    again = tmp_path / "w"
    assert cli.main(["vectorize", str(run), str(images / "001.png"), str(images / "000.png"), "--out", str(again)]) == 0
    assert len(list(again.glob("*.png"))) == 2
    assert model.horizon == 3


def test_vectorize_refuses_what_it_cannot_do_in_one_line(run, tmp_path, capsys):
    images = write_images(tmp_path / "images", 2)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no image")
    cases = [
        ([], "no images were given"),
        ([str(images), "--budget", "4"], "--budget must be 1 to 3"),
        ([str(tmp_path / "empty")], "holds no images"),
        ([str(tmp_path / "nowhere.png")], "nowhere.png"),
        ([str(tmp_path / "text.png")], "text.png"),
        ([str(images), str(images / "000.png")], "two images are called '000'"),
        ([str(images), "--fit", "squeeze"], "--fit"),
    ]
    for arguments, message in cases:
        assert cli.main(["vectorize", str(run), *arguments, "--out", str(tmp_path / "v")]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1
    assert not (tmp_path / "v").exists()
