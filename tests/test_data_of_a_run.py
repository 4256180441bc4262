"""A run knows its data: others are refused or told, labels are names everywhere, and what was trained on is never a test image."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from runs import digest, tiny_config, tiny_options, write_images
from test_data_sources import png

from goalgen import cli, evaluate, load, load_data
from goalgen.data.provenance import FILE, Provenance, unseen
from goalgen.errors import GoalgenError
from goalgen.training import train
from goalgen.training.preparation import class_names

QUICK = {"num_samples": 6, "iw_images": 1, "iw_k": 1, "features": "pixel-pca"}


def classes(folder: Path, names: tuple[str, ...] = ("cat", "dog"), each: int = 16, seed: int = 0) -> Path:
    """A folder of classes, all images distinct."""
    for i, name in enumerate(names):
        write_images(folder / name, each, seed=seed + i)
    return folder


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the images of two classes, ``data``, and a run that was trained on them and told the labels, ``run``."""
    folder = tmp_path_factory.mktemp("pets")
    classes(folder / "data")
    train(tiny_config(folder / "run", data=str(folder / "data"), condition="label", max_steps=4, test_fraction=0.4))
    return folder


@pytest.fixture
def world(pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of both to change, at the place where the run knows its data."""
    for name in ("data", "run"):
        shutil.copytree(pets / name, tmp_path / name)
    for file in (tmp_path / "run").rglob("config.json"):
        file.write_text(file.read_text().replace(str(pets), str(tmp_path)))
    return tmp_path


def again(world: Path, **changes: object) -> list[str]:
    settings = {"data": world / "data", "condition": "label", "test_fraction": 0.4, "max_steps": 6, **changes}
    return ["train", *tiny_options(world / "run", **settings)]


def rename(world: Path) -> None:
    (world / "data" / "cat").rename(world / "data" / "zebra")


def whiten(world: Path) -> None:
    for file in (world / "data").rglob("*.png"):
        Image.new("L", (8, 8), 255).save(file)


def whiten_one(world: Path) -> None:
    Image.new("L", (8, 8), 255).save(world / "data" / "cat" / "000.png")


def add(world: Path) -> None:
    write_images(world / "data" / "cat" / "..", 0)
    Image.new("L", (8, 8), 200).save(world / "data" / "cat" / "more.png")


def colour(world: Path) -> None:
    for file in (world / "data").rglob("*.png"):
        Image.open(file).convert("RGB").save(file)


def swap(world: Path) -> None:
    a, b = world / "data" / "cat" / "000.png", world / "data" / "dog" / "000.png"
    a.rename(world / "c.png")
    b.rename(a)
    (world / "c.png").rename(b)


CHANGES = {
    "white": (whiten, "other train images"), "one white": (whiten_one, "other .* images"), "added": (add, "images now"),
    "colour": (colour, "images are 3x8x8 now, and were 1x8x8"), "renamed": (rename, "classes dog, zebra now, cat, dog then"),
    "swapped": (swap, "other .* images, labels or order"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.filterwarnings("default::UserWarning")
def test_a_run_does_not_go_on_with_other_images(world: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    change, words = CHANGES[name]
    change(world)
    before = digest(world / "run")
    assert cli.main(again(world)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(
        f"goalgen: error: {world / 'data'}: not the images that the run in {world / 'run'} was begun with ("
    )
    assert error.endswith("put them back, or choose another --out")
    assert re.search(words, error), error
    assert digest(world / "run") == before


def test_a_run_goes_on_with_its_own_images(world: Path) -> None:
    assert cli.main(again(world)) == 0


def test_images_that_turn_up_are_refused_before_settings_are_chosen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where family and network are chosen by the images, others would be chosen now."""
    data = write_images(tmp_path / "data", 24)
    options = ["train", "--data", str(data), "--out", str(tmp_path / "run"), "--max-steps", "1", "--quiet"]
    assert cli.main(options) == 0
    for file in data.glob("*.png"):
        Image.open(file).convert("RGB").resize((16, 16)).save(file)
    capsys.readouterr()
    assert cli.main(options) == 2
    assert "was begun with (images are 3x16x16 now, and were 1x8x8); put them back" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_run_does_not_go_on_from_other_images(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_images(tmp_path / "start", 3)
    image = folder / "000.png"
    options = tiny_options(tmp_path / "run", start=image if kind == "file" else folder, max_steps=1)
    assert cli.main(["train", *options]) == 0
    assert cli.main(["train", *options]) == 0
    before = digest(tmp_path / "run")
    Image.new("L", (8, 8), 77).save(image)
    capsys.readouterr()
    assert cli.main(["train", *options, "--max-steps", "2"]) == 2
    assert "not the images that the run in" in capsys.readouterr().err
    assert digest(tmp_path / "run") == before


def test_what_was_trained_on_is_never_a_test_image(world: Path) -> None:
    """Files that are added move the split: images that were trained on would be held out now."""
    model = load(world / "run")
    old = load_data(model.config.data)
    trained = {x.numpy().tobytes() for part in (old.train, old.validation) for x in part.images}
    classes(world / "data", ("cat", "dog"), each=40, seed=0)  # the first sixteen of each are the same
    new = load_data(model.config.data)
    assert any(x.numpy().tobytes() in trained for x in new.test.images)
    with pytest.warns(UserWarning, match="not the data|left out") as said:
        kept = unseen(new, model.provenance)
    assert not any(x.numpy().tobytes() in trained for x in kept.test.images)
    assert len(kept.test) > 0
    words = [str(w.message) for w in said]
    assert any("not the data that the model was made from" in w for w in words)
    assert any("were trained on, and are left out" in w for w in words)


def test_evaluation_says_whose_data_they_are(world: Path, tmp_path: Path) -> None:
    model = load(world / "run")
    own = load_data(model.config.data)
    assert evaluate(model, own, **QUICK)["data_of_model"] is True
    other = load_data(dataclasses.replace(model.config.data, data=str(classes(tmp_path / "other", seed=50))))
    with pytest.warns(UserWarning, match="not the data that the model was made from"):
        assert evaluate(model, other, **QUICK)["data_of_model"] is False
    turned = dataclasses.replace(own, test=own.train)
    with (
        pytest.warns(UserWarning, match="not the data that the model was made from"),
        pytest.raises(GoalgenError, match="the model was trained on all of the"),
    ):
        evaluate(model, turned, **QUICK)
    moved = load(model.save(tmp_path / "moved"))
    assert moved.provenance is not None
    assert moved.provenance.about == model.provenance.about
    assert torch.equal(moved.provenance.seen, model.provenance.seen)


@pytest.mark.filterwarnings("default::UserWarning")
def test_labels_of_other_data_are_matched_by_name(world: Path, tmp_path: Path) -> None:
    model = load(world / "run")
    assert model.classes == ("cat", "dog")
    config = model.config.data
    own = evaluate(model, load_data(config), **QUICK)
    for name, new in (("cat", "b"), ("dog", "a")):  # the other way round, and then called right again
        shutil.copytree(world / "data" / name, tmp_path / "turned" / new)
    turned = load_data(dataclasses.replace(config, data=str(tmp_path / "turned")))
    with (
        pytest.warns(UserWarning, match="classes a, b now, cat, dog then"),
        pytest.raises(GoalgenError, match="the model knows no class a, b; its classes are: cat, dog"),
    ):
        evaluate(model, turned, **QUICK)
    same = load_data(config)
    swapped = dataclasses.replace(
        same, label_names=("dog", "cat"), test=dataclasses.replace(same.test, labels=1 - same.test.labels)
    )
    with pytest.warns(UserWarning, match="classes dog, cat now"):
        assert evaluate(model, swapped, **QUICK)["bits_per_dim"] == pytest.approx(own["bits_per_dim"])


def test_samples_are_of_the_class_that_is_named(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load(world / "run")
    by_name = model.sample(4, labels="dog")
    assert torch.equal(by_name.images, model.sample(4, labels=1).images)
    assert torch.equal(by_name.images, model.sample(4, labels=["dog"] * 4).images)
    assert torch.equal(by_name.images, model.sample(4, labels=torch.ones(4, dtype=torch.int64)).images)
    with pytest.raises(GoalgenError, match="no class is called 'emu'; there are: cat, dog"):
        model.sample(4, labels="emu")
    assert "classes cat, dog" in repr(model)
    for options, expected in (
        ([], ["cat", "dog", "cat"]),
        (["--label", "dog"], ["dog"] * 3),
        (["--label", "0"], ["cat"] * 3),
    ):
        out = tmp_path / "-".join(["samples", *options])
        assert cli.main(["sample", str(world / "run"), "--num", "3", "--out", str(out), *options]) == 0
        about = json.loads((out / "samples.json").read_text())
        assert list(about["labels"].items()) == [(f"0000{i}.png", name) for i, name in enumerate(expected)]
        assert all((out / name).exists() for name in about["labels"])
    capsys.readouterr()
    assert cli.main(["sample", str(world / "run"), "--label", "emu"]) == 2
    assert capsys.readouterr().err == "goalgen: error: no class is called 'emu'; there are: cat, dog\n"
    assert cli.main(["show", str(world / "run")]) == 0
    shown = capsys.readouterr().out
    assert "--label cat  (number 0)\n--label dog  (number 1)\n" in shown
    assert f"{len(load_data(model.config.data).train)} train images, fingerprint " in shown


def test_classes_called_by_numbers(tmp_path: Path) -> None:
    """Label 2 is the class called 2, not the third folder; ids 5 and 300000 are two classes."""
    rows = [png(v) for v in range(0, 240, 8)]
    table = pa.table({"image": rows, "label": [(2, 10, 300000)[i % 3] for i in range(len(rows))]})
    pq.write_table(table, tmp_path / "a.parquet")
    train(tiny_config(tmp_path / "run", data=str(tmp_path / "a.parquet"), condition="label", max_steps=2))
    model = load(tmp_path / "run")
    assert model.classes == ("2", "10", "300000")
    assert model.family.num_labels == 3
    sampled = model.sample(3, labels=10)
    assert sampled.labels is not None
    assert sampled.labels.tolist() == [1, 1, 1]
    with pytest.raises(GoalgenError, match="no class is called '1'; there are: 2, 10, 300000"):
        model.sample(3, labels=1)


@pytest.mark.parametrize(
    "change",
    [
        {"train": 5}, {"test": {"images": "many", "fingerprint": "a"}}, {"validation": {"images": 3}}, {"shape": "8x8"}, {"shape": [1, None, 8]},
        {"levels": 2.5}, {"classes": "cat"}, {"classes": [1]}, {"name": None},
    ],
)  # fmt: skip
def test_what_a_model_says_of_its_data_is_checked(
    world: Path, change: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    """A model comes from anywhere: what it says is whole, or refused in one line."""
    file = world / "run" / "best" / FILE
    known = Provenance.load(file)
    assert known is not None
    dataclasses.replace(known, about={**known.about, **change}).save(file)
    assert cli.main(["show", str(world / "run")]) == 2
    assert "it does not say what data it is of; restore or delete it" in capsys.readouterr().err
    file.unlink()
    assert cli.main(["show", str(world / "run")]) == 0


def test_classes_of_images_in_memory_are_those_that_occur(tmp_path: Path) -> None:
    """Labels 5 and 300000 are two classes here, too, and keep their names."""
    images = torch.randint(0, 256, (40, 8, 8), generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([5, 300000] * 20)
    config = tiny_config(tmp_path / "run", condition="label", limit=None, max_steps=2)
    train(config, images, labels)
    model = load(tmp_path / "run")
    assert model.classes == ("5", "300000")
    assert evaluate(model, (images, labels), **QUICK)["data_of_model"] is True
    with pytest.raises(GoalgenError, match=r"not the images that the run in .* other .* images, labels or order"):
        train(config, images, labels.flip(0))


def test_classes_without_an_image_to_learn_from_are_refused(tmp_path: Path) -> None:
    classes(tmp_path / "train")
    classes(tmp_path / "test", ("cat", "dog", "emu"), each=4, seed=9)
    data = load_data(tiny_config(tmp_path / "run", data=str(tmp_path)).data)
    with pytest.raises(GoalgenError, match="there is no training image of class emu"):
        class_names(data)


def test_same_images_in_train_and_test_are_said(tmp_path: Path) -> None:
    write_images(tmp_path / "train", 10)
    write_images(tmp_path / "test", 3)
    with pytest.warns(UserWarning, match="3 of the 3 test images are also among those to learn from"):
        load_data(tiny_config(tmp_path / "run", data=str(tmp_path)).data)


@pytest.mark.parametrize("cached", [False, True])
def test_black_and_white_images_are_known_by_what_they_were_drawn_from(tmp_path: Path, cached: bool) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 3), np.uint8)
    folder = tmp_path / "data"
    folder.mkdir()
    if cached:
        buffers = [png(int(v)) for v in images[:, 0, 0]]
        pq.write_table(pa.table({"image": buffers}), folder / "a.parquet")
    else:
        for i, pixels in enumerate(images):
            Image.fromarray(pixels).save(folder / f"{i:02}.png")
    config = tiny_config(tmp_path / "run", data=str(folder)).data
    for _ in range(2):
        grey, drawn = load_data(config), load_data(dataclasses.replace(config, binarize=True))
        assert torch.equal(grey.test.digest(), drawn.test.digest())
        assert not torch.equal(grey.test.images, drawn.test.images)
    known = Provenance.of(grey)
    assert known.differences(Provenance.of(drawn)) == "grey levels 2 now, 256 then"


def test_digits_are_not_enlarged_in_silence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "run"), "--max-steps", "1", "--quiet"]
    for option in (["--image-size", "16", "16"], ["--channels", "3"], ["--fit", "pad"], ["--background", "red"]):
        assert cli.main(["train", *option, *out]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"goalgen: error: {option[0]} is about images of your own, and --data says none")
    assert not (tmp_path / "run").exists()
    said = ["--data", "digits", "--environment", "proposals", "--horizon", "1", "--width", "8"]
    assert cli.main(["train", "--channels", "3", *said, *out]) == 0


@pytest.mark.filterwarnings("default::UserWarning")
def test_names_of_files_do_not_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_images(tmp_path / "data")
    (data / "\x1b[31mred\u202e.png").write_text("no")
    (data / "a\x07\n.heic").write_text("no")
    for name in ("\x1b[2Ja", "b"):
        write_images(data / name, 20, seed=len(name))
        (data / name / "000.png").rename(data / name / "\x1b.png")
    for file in data.glob("*.png"):
        file.rename(data / "b" / f"c{file.name}")
    assert cli.main(["train", *tiny_options(tmp_path / "run", data=data, max_steps=1, condition="label")]) == 0
    error = capsys.readouterr().err
    assert r"\x1b[31mred\u202e.png" in error
    assert r"a\x07" in error
    assert cli.main(["show", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert r"--label \x1b[2Ja" in shown
    assert all(c.isprintable() or c == "\n" for c in error + shown)
