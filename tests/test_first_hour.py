"""What a new user types and hands over: taken, or refused in words that say what to do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import digest, tiny_config, tiny_options, write_images

import goalgen
from goalgen import GoalgenError, cli, evaluate, load, load_data
from goalgen.cli.parsing import with_sizes
from goalgen.config import DataConfig
from goalgen.data import augment_flip, from_unit, to_unit
from goalgen.data.memory import from_memory
from goalgen.model import Model
from goalgen.settings import configure
from goalgen.training import train


@pytest.fixture(scope="module")
def model(digits_run) -> Model:
    return load(digits_run)


# Options


@pytest.mark.parametrize("typed", [["32"], ["32", "32"], ["32x32"], ["32,32"]])
@pytest.mark.parametrize("joined", [False, True])
def test_a_size_is_typed_as_people_do(typed, joined):
    words = [f"--image-size={typed[0]}", *typed[1:]] if joined else ["--image-size", *typed]
    assert with_sizes(["--seed", "3", *words, "--limit", "5"]) == [
        "--seed",
        "3",
        "--image-size",
        "32",
        "32",
        "--limit",
        "5",
    ]


def test_sizes_that_are_none_are_left_to_be_refused(tmp_path, capsys):
    assert with_sizes(["--image-size", "12x16"]) == ["--image-size", "12", "16"]
    assert with_sizes(["--image-size", "None"]) == ["--image-size", "None"]
    assert with_sizes(["--image-size"]) == ["--image-size"]
    assert cli.main(["train", "--out", str(tmp_path / "run"), "--image-size", "large"]) == 2
    assert configure(image_size=12).data.image_size == (12, 12)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["--image-size", "big"], "--image-size takes two whole numbers, not big"),
        (["--image-size"], "--image-size takes two whole numbers, not nothing"),
        (["--limit", "few"], "--limit takes a whole number, not few"),
        (["--max-seconds", "long"], "--max-seconds takes a number, not long"),
    ],
)
def test_a_value_that_cannot_be_is_answered_without_types_of_python(typed, words, capsys):
    assert cli.main(["train", *typed]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error) < 120


@pytest.mark.parametrize(("start", "option"), [("mean", "--data"), ("mask:0.5", "--start-goals")])
def test_images_that_were_moved_are_asked_for(tmp_path, capsys, start, option):
    folder = write_images(tmp_path / "images", 24)
    train(tiny_config(tmp_path / "run", data=folder, start=start, limit=None, max_steps=2))
    folder.rename(tmp_path / "moved")
    use = ["evaluate"] if option == "--data" else ["sample", "--out", str(tmp_path / "samples"), "--num", "2"]
    assert cli.main([use[0], str(tmp_path / "run"), *use[1:]]) == 2
    error = capsys.readouterr().err
    assert f"is not there any more, and the model was made from the images in it; say with {option} where" in error
    if use[0] == "sample":
        assert cli.main([use[0], str(tmp_path / "run"), *use[1:], option, str(tmp_path / "moved")]) == 0


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        (
            ["train", "--lr", "1"],
            "goalgen train has no option --lr; did you mean --learning-rate? (see goalgen train --help)",
        ),
        (["train", "--gpu"], "did you mean --device cuda?"),
        (["train", "--horizn", "3"], "did you mean --horizon?"),
        (["train", "--resume"], "the same command again resumes"),
        (["train", "--steps", "3"], "did you mean --max-steps?"),
        (["train", "--wibble", "3"], "goalgen train has no option --wibble (see"),
        (["sample", "zoo:digits", "--n", "3"], "did you mean --num?"),
        (["sample", "zoo:digits", "--overwrite"], "did you mean --force?"),
    ],
)
def test_an_option_that_does_not_exist_is_answered_by_the_one_that_was_meant(typed, hint, capsys):
    assert cli.main(typed) == 2
    error = capsys.readouterr().err
    assert hint in error
    assert len(error.splitlines()) == 1
    assert len(error) < 150


@pytest.mark.parametrize(
    "said",
    [
        ["--preset", "digits-proposals", "--environment", "latent"],
        ["--preset", "digits-proposals", "--gc-agent", "fixed"],
        ["--preset", "digits", "--gc-agent", "posterior"],
        ["--preset", "mnist-proposals", "--data", "digits", "--environment", "code:1+bridge:2"],
    ],
)
def test_what_a_preset_says_gives_way_to_what_is_said(tmp_path, said):
    small = [
        "--width",
        "16",
        "--head-width",
        "8",
        "--limit",
        "40",
        "--max-steps",
        "1",
        "--quiet",
        "--picture-every",
        "0",
    ]
    assert cli.main(["train", *said, *small, "--out", str(tmp_path / "run")]) == 0
    saved = json.loads((tmp_path / "run" / "config.json").read_text())["model"]
    assert said[-1] in (saved["environment"], saved["gc_agent"])


def test_epochs_are_steps_in_other_words(tmp_path, capsys):
    options = tiny_options(tmp_path / "run", limit=40, batch_size=8)
    del options[options.index("--max-steps") : options.index("--max-steps") + 2]
    assert cli.main(["train", *options, "--epochs", "2"]) == 0
    assert "step 10," in capsys.readouterr().out
    assert cli.main(["train", *options, "--epochs", "2.5"]) == 0  # it goes on
    assert "step 13," in capsys.readouterr().out
    assert cli.main(["train", *options, "--epochs", "2", "--max-steps", "3"]) == 2
    assert "give one of them" in capsys.readouterr().err
    assert cli.main(["train", *options, "--epochs", "0"]) == 2
    assert "--epochs must be above 0" in capsys.readouterr().err


def test_a_finished_run_says_that_it_was_finished(tmp_path, capsys):
    options = tiny_options(tmp_path / "run", max_steps=2)
    for words in ("done: step 2", "done already; a larger --max-steps or --max-seconds goes on: step 2"):
        assert cli.main(["train", *options]) == 0
        assert capsys.readouterr().out.startswith(words)
    assert cli.main(["train", *options, "--max-steps", "3"]) == 0
    assert capsys.readouterr().out.startswith("done: step 3")


def test_the_device_of_training_is_an_option(tmp_path, capsys):
    assert cli.main(["train", *tiny_options(tmp_path / "run", device="cpu", max_steps=2)]) == 0
    if not torch.cuda.is_available():
        assert cli.main(["train", *tiny_options(tmp_path / "other", device="cuda", max_steps=2)]) == 2
        assert "--device cuda is not there on this machine" in capsys.readouterr().err


def test_a_start_of_another_size_while_sampling_does_not_advise_training(digits_run, tmp_path, capsys):
    picture = write_images(tmp_path / "p", 1, size=(12, 10)) / "000.png"
    assert cli.main(["sample", str(digits_run), "--out", str(tmp_path / "s"), "--start", str(picture)]) == 2
    error = capsys.readouterr().err
    assert "is 12x10 and the model's images are 8x8 (height x width); resize it to 8x8" in error
    assert "train" not in error


def test_no_hint_names_a_package_index_that_has_no_such_package():
    for path in Path(goalgen.__file__).parent.rglob("*.py"):
        assert 'pip install "goalgen' not in path.read_text(encoding="utf-8"), path


# What models take


def test_models_take_images_of_every_kind(model, tmp_path):
    folder = write_images(tmp_path / "images", 3)
    files = sorted(folder.glob("*.png"))
    opened = [Image.open(file) for file in files]
    levels = torch.stack([from_unit(to_unit(torch.tensor(np.array(p))[None], 256), 17) for p in opened])
    expected = model.nll_bound(levels).total
    kinds = {
        "numpy": levels.numpy(), "without channels": levels[:, 0], "channels last": levels.permute(0, 2, 3, 1).numpy(),
        "int64": levels.long(), "PIL": opened, "paths": files, "strings": [str(f) for f in files], "folder": str(folder),
        "folder path": folder, "mixed": [files[0], opened[1], levels[2]],
    }  # fmt: skip
    for kind, images in kinds.items():
        assert torch.equal(model.nll_bound(images).total, expected), kind
    one = model.reconstruct(levels[:1])
    for images in (opened[0], str(files[0]), files[0], levels[0], levels[0, 0].numpy()):
        assert torch.equal(model.reconstruct(images), one)
    assert model.iw_bound(opened, k=2).shape == (3,)
    begun = model.sample(2, start=to_unit(levels[0], 17)).states[0]
    for start in (opened[0], files[0], str(files[0]), levels[0].numpy()):
        assert (
            model.sample(2, start=start).states[0].int() - begun.int()
        ).abs().max() <= 8  # half a level of seventeen


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((8, 9, 9), np.uint8), r"images must be \(N, 1, 8, 8\) or \(N, 8, 8\); these are \(8, 9, 9\)"),
        (np.zeros((2, 1, 8, 8), np.float32), "these are float32: scale and round them first"),
        (np.zeros((2, 1, 8, 8), bool), "these are bool"),
        (torch.full((1, 8, 8), 200), "grey levels 0 to 16; found 200"),
        (torch.full((1, 8, 8), -1), "grey levels 0 to 16; found -1"),
        (np.array([["a"] * 8] * 8), "must hold integers"),
        (Image.new("L", (9, 8)), r"the image is 8x9 \(height x width\), the model's images are 8x8"),
        ("nowhere.png", "nowhere.png does not exist"),
        (3, "not int"),
        ([3], "not int"),
        ([], "no images"),
        (None, "not NoneType"),
    ],
)
def test_what_is_no_image_is_said_by_its_own_words(model, images, message):
    for method in (model.nll_bound, model.reconstruct, model.iw_bound, model.rollout):
        with pytest.raises(GoalgenError, match=message):
            method(images)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_device_that_is_not_there_is_one_line(model, digits_run):
    for device in ("cuda", "abacus"):
        with pytest.raises(GoalgenError, match=f"--device {device} is not there"):
            model.to(device)
        with pytest.raises(GoalgenError, match=f"--device {device} is not there"):
            load(digits_run, device=device)


def test_pushing_without_a_network_is_one_line(model, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(GoalgenError, match="the hub does not take nobody/nothing") as error:
        model.push_to_hub("nobody/nothing")
    assert error.value.__cause__ is None


# Images in memory


def test_training_takes_images_as_a_tensor_or_an_array(tmp_path):
    images = load_data(DataConfig(data=str(write_images(tmp_path / "images", 60)))).train.images
    settings = {"limit": None, "max_steps": 4}
    first = train(tiny_config(tmp_path / "a", **settings), images)
    last = train(tiny_config(tmp_path / "b", **settings), images[:, 0].numpy())
    other = train(tiny_config(tmp_path / "c", **settings), images.permute(0, 2, 3, 1))
    assert first.best_bits == last.best_bits == other.best_bits
    assert train(tiny_config(tmp_path / "a", **settings | {"max_steps": 6}), images).step == 6  # resumes
    with pytest.raises(GoalgenError, match="holds a run with other settings: --data"):
        train(tiny_config(tmp_path / "a", **settings), 255 - images)
    model = load(tmp_path / "a")
    quick = {"features": "pixel-pca", "iw_images": 2, "iw_k": 2}
    numbers = evaluate(model, images, **quick)
    assert numbers["num_test"] == len(from_memory(images, DataConfig())[0].test)
    with pytest.raises(GoalgenError, match="given its images in Python"):
        evaluate(model, **quick)
    with pytest.raises(GoalgenError, match="other images than the model was trained on"):
        evaluate(model, 255 - images, **quick)


def test_labels_go_with_images_in_memory(tmp_path):
    images = torch.randint(0, 256, (60, 8, 8), generator=torch.Generator().manual_seed(0))
    labels = np.arange(60) % 3
    config = tiny_config(
        tmp_path / "run", environment="latent", latent_size=3, condition="label", limit=None, max_steps=2
    )
    train(config, images, labels)
    model = load(tmp_path / "run")
    assert model.family.num_labels == 3
    assert evaluate(model, (images, labels), features="pixel-pca", iw_images=2, iw_k=2)["conditional_on"] == ["label"]


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(9, 8, 8), None, "integers 0 to 255, not float32"),
        (torch.full((9, 8, 8), 256), None, "integers 0 to 255; found 256 to 256"),
        (np.zeros((9, 4, 8, 8), np.uint8), None, "1 or 3 channels"),
        (np.zeros((8, 8), np.uint8), None, r"not \(8, 8\)"),
        (np.zeros((0, 8, 8), np.uint8), None, r"not \(0, 8, 8\)"),
        (np.zeros((2, 8, 8), np.uint8), None, "too few images"),
        (np.zeros((9, 8, 8), np.uint8), [1, 2], "9 whole numbers"),
        ("images", None, "a folder goes into data="),
    ],
)
def test_tensors_that_are_no_images_are_refused_before_a_run_begins(tmp_path, images, labels, message):
    before = digest(tmp_path)
    with pytest.raises(GoalgenError, match=message):
        train(tiny_config(tmp_path / "run", limit=None), images, labels)
    assert digest(tmp_path) == before


def test_evaluation_finds_the_data_of_the_run(digits_run):
    model, quick = load(digits_run), {"features": "pixel-pca", "iw_images": 2, "iw_k": 2, "num_samples": 6}
    assert (
        evaluate(model, **quick)
        == evaluate(model, load_data(model.config.data), **quick)
        == evaluate(model, "digits", **quick)
    )


# Flips


def test_flips_mirror_about_half_of_the_images_and_change_nothing_else():
    images = torch.arange(6, dtype=torch.uint8).view(1, 1, 2, 3).repeat(400, 1, 1, 1)
    flipped = augment_flip(images, torch.Generator().manual_seed(0))
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    assert ((flipped == images).flatten(1).all(1) ^ mirrored).all()
    assert 150 < mirrored.sum() < 250


def test_flips_are_seen_by_the_batches_of_a_run(tmp_path):
    plain, mirrored = (tiny_config(tmp_path / str(flip), flip=flip, max_steps=3) for flip in (False, True))
    assert train(plain).best_bits != train(mirrored).best_bits
    folder = write_images(tmp_path / "images", 24)
    with pytest.raises(GoalgenError, match="--flip would mirror the goals and not their partners"):
        train(tiny_config(tmp_path / "pairs", data=folder, start=str(folder), flip=True))


# All of it


@pytest.mark.slow
def test_the_hour_of_a_new_user_has_no_surprise():
    """A part of what docs/first-hour.md shows, off a terminal and on one."""
    script = Path(__file__).parents[1] / "benchmarks" / "first_hour.py"
    done = subprocess.run([sys.executable, str(script), "--short", "--seconds", "10"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
