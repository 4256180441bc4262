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

from goalgen import cli, configure
from goalgen.families import make
from goalgen.families.strokes import StrokesEnvironment, paint
from goalgen.families.strokes.environment import DEFAULT_INKS, read_inks
from goalgen.families.strokes.svg import to_svg
from goalgen.model import load
from goalgen.rollout import Samples
from goalgen.training import train
from goalgen.vectorizing import read_picture

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


def test_strokes_that_nobody_would_see_are_not_written():
    """A dot inside of what is white already changes nothing; a stroke in half strength does, a second time, too."""
    family = make(
        configure(environment="strokes", horizon=4, start="constant:0", width=8, head_width=8), (1, 28, 28), 256
    )
    wide, dot, half = (torch.tensor(a) for a in ([30, 36, 40, 3, 0], [33, 33, 40, 0, 0], [100, 150, 40, 3, 1]))
    drawn = torch.stack([wide, dot, half, half]).unsqueeze(1)
    states = [family.environment.initial(-torch.ones(1, 1, 28, 28))]
    for action in drawn:
        states.append(family.environment.transition(torch.zeros(1).long(), states[-1], action))
    (files,) = family.files(Samples(torch.stack(states), drawn, []))
    for text in files.values():
        found = ElementTree.fromstring(text).iter(f"{NAMESPACE}path")
        assert [path.get("stroke-opacity") for path in found] == [None, "0.5", "0.5"]
    last = family.environment.canvas(states[-1])[0]
    assert (rasterised(files[".svg"].decode(), 28).mean(0) - last[0]).abs().mean() < 0.02


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
    assert (
        cli.main(["sample", str(run), "--out", str(tmp_path / "s"), "--num", "5", "--svg", "--grid", "--seed", "2"])
        == 0
    )
    names = sorted(p.name for p in (tmp_path / "s").iterdir())
    assert names == sorted(
        [f"{i:05d}{e}" for i in range(5) for e in (".png", ".svg", ".drawing.svg")]
        + ["samples.json", "grid.png", "grid.svg"]
    )
    for i in range(5):
        with Image.open(tmp_path / "s" / f"{i:05d}.png") as picture:
            canvas = torch.from_numpy(np.array(picture)) / 127.5 - 1
        svg = (tmp_path / "s" / f"{i:05d}.svg").read_text()
        assert (rasterised(svg, 24)[0] - canvas).abs().mean() < 0.02 * 2
    sheet = (tmp_path / "s" / "grid.svg").read_text()
    inner = ElementTree.fromstring(sheet).findall(f"{NAMESPACE}svg")
    assert len(inner) == 5
    still = re.sub(r"<style>.*?</style>", "", sheet)
    with Image.open(tmp_path / "s" / "00003.png") as picture:  # first of the second row of three
        canvas = torch.from_numpy(np.array(picture)) / 127.5 - 1
    assert (rasterised(still, 76)[0, 26:50, 1:25] - canvas).abs().mean() < 0.02 * 2
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
    assert {p.name for p in out.iterdir()} == {"drawings.json"} | {
        f"{i:03d}{e}" for i in range(3) for e in (".png", ".svg", ".drawing.svg")
    }
    for file in out.glob("*.svg"):
        assert len(ElementTree.parse(file).getroot().findall(f".//{NAMESPACE}path")) <= 2
    model = load(run)
    again = tmp_path / "w"
    assert cli.main(["vectorize", str(run), str(images / "001.png"), str(images / "000.png"), "--out", str(again)]) == 0
    assert len(list(again.glob("*.png"))) == 2
    assert model.horizon == 3


@pytest.mark.parametrize(
    ("size", "fit"),
    [((60, 40), "pad"), ((40, 60), "pad"), ((24, 24), "pad"), ((40, 60), "stretch"), ((40, 60), "crop")],
)
def test_a_drawing_has_the_aspect_ratio_of_its_picture(run, tmp_path, size, fit):
    """What the SVG shows is, laid over the picture, what was painted there: the bar of ink lies where the picture has it."""
    height, width = size
    picture = np.zeros(size, np.uint8)
    picture[height // 3 : height // 2, width // 4 :] = 255
    Image.fromarray(picture).save(tmp_path / "bar.png")
    out = tmp_path / "v"
    assert cli.main(["vectorize", str(run), str(tmp_path / "bar.png"), "--out", str(out), "--fit", fit]) == 0
    svg = ElementTree.parse(out / "bar.svg").getroot()
    shown = (height, width) if fit != "crop" else (min(size), min(size))
    assert float(svg.get("width")) / float(svg.get("height")) == pytest.approx(shown[1] / shown[0], abs=0.01)
    read = read_picture(tmp_path / "bar.png", (1, 24, 24), fit, None, "auto", torch.full((1, 1, 1), -1.0))
    assert not read.negative
    x, y, across, down = read.part
    ink = (read.image[0] > 127).nonzero().float() + 0.5
    if fit != "crop":
        top = (ink[:, 0].min() - 0.5 - y) / down * height
        left = (ink[:, 1].min() - 0.5 - x) / across * width
        assert abs(top - height // 3) < 2.5
        assert abs(left - width // 4) < 2.5
    whole = rasterised(re.sub(r'viewBox="[^"]*"', 'viewBox="0 0 24 24"', (out / "bar.svg").read_text()).replace(f'width="{svg.get("width")}"', 'width="280"'), 24)  # fmt: skip
    with Image.open(out / "bar.png") as canvas:
        assert (whole[0] - (torch.from_numpy(np.array(canvas)) / 127.5 - 1)).abs().mean() < 0.02 * 2


def test_dark_on_white_is_painted_as_its_negative_and_turned_back(run, tmp_path, capsys):
    picture = np.zeros((30, 30), np.uint8)
    picture[8:22, 12:18] = 230
    for name, pixels in (("light", picture), ("dark", 255 - picture)):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "same.png")
    drawn = {}
    cases = {"light": ("light", "auto"), "dark": ("dark", "auto"), "told": ("dark", "yes"), "as it is": ("dark", "no")}
    for case, (name, invert) in cases.items():
        out = tmp_path / "drawn" / case
        assert cli.main(["vectorize", str(run), str(tmp_path / name), "--out", str(out), "--invert", invert]) == 0
        said = capsys.readouterr().out
        assert ("1 painted as their negative and turned back" in said) == (case == "dark")
        with Image.open(out / "same.png") as canvas:
            drawn[case] = (rasterised((out / "same.svg").read_text(), 24), np.array(canvas))
    assert (drawn["light"][0] + drawn["dark"][0]).abs().max() < 0.02 * 2
    assert (drawn["light"][1] == 255 - drawn["dark"][1]).all()
    assert torch.equal(drawn["dark"][0], drawn["told"][0])
    assert drawn["dark"][0][0, 0, 0] > 0.9  # white paper


def errors(out: Path, images: Path) -> list[float]:
    """Squared errors of drawings at the model's size."""
    found = []
    for path in sorted(images.iterdir()):
        with Image.open(out / path.name) as drawn, Image.open(path) as given:
            found.append(float(np.square(np.array(drawn, float) - np.array(given, float)).mean()))
    return found


def test_of_several_tries_the_nearest_is_kept(run, tmp_path):
    images = write_images(tmp_path / "images", 4, size=(24, 24))
    found = {}
    for name, words in {
        "0": ["--seed", "0"],
        "1": ["--seed", "1"],
        "2": ["--seed", "2"],
        "best": ["--tries", "3"],
    }.items():
        out = tmp_path / name
        assert cli.main(["vectorize", str(run), str(images), "--out", str(out), "--invert", "no", *words]) == 0
        found[name] = errors(out, images)
    single = np.array([found["0"], found["1"], found["2"]])
    assert found["best"] == pytest.approx(single.min(0).tolist())
    assert (single.min(0) < single.max(0)).any()


def test_searched_strokes_are_nearer_than_those_of_an_agent_that_has_learned_nothing(run, tmp_path):
    images = write_images(tmp_path / "images", 4, size=(24, 24))
    found = {}
    for count in ("0", "64"):
        out = tmp_path / count
        assert (
            cli.main(["vectorize", str(run), str(images), "--out", str(out), "--invert", "no", "--search", count]) == 0
        )
        found[count] = errors(out, images)
    assert np.mean(found["64"]) < 0.9 * np.mean(found["0"])


def test_vectorize_overwrites_nothing_that_it_did_not_write(run, tmp_path, capsys):
    images = write_images(tmp_path / "images", 2, size=(24, 24))
    before = {p.name: p.read_bytes() for p in images.iterdir()}
    assert cli.main(["vectorize", str(run), str(images), "--out", str(images), "--force"]) == 2
    assert "holds no drawings of goalgen's" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in images.iterdir()} == before
    out = ["--out", str(tmp_path / "v")]
    assert cli.main(["vectorize", str(run), str(images), *out]) == 0
    assert cli.main(["vectorize", str(run), str(images / "001.png"), *out]) == 2
    assert "add --force to replace them" in capsys.readouterr().err
    assert cli.main(["vectorize", str(run), str(images / "001.png"), *out, "--force"]) == 0
    assert {p.name for p in (tmp_path / "v").glob("*.png")} == {"001.png"}


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
        ([str(images), "--tries", "0"], "--tries must be at least 1"),
        ([str(images), "--search", "-1"], "--search must be at least 0"),
        ([str(images), "--background", "blurple"], "is not a colour"),
    ]
    for arguments, message in cases:
        assert cli.main(["vectorize", str(run), *arguments, "--out", str(tmp_path / "v")]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1
    assert not (tmp_path / "v").exists()
