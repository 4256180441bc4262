"""Bad input: one line that says what is wrong, an exit status that is not 0, and nothing on disk harmed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import digest, edit_json, finish, start, tiny_options, write_images
from safetensors.torch import load_file, save_file

from goalgen import cli
from goalgen.training.checkpoints import list_checkpoints

# Warnings are lines too, as they are for a user.
pytestmark = pytest.mark.filterwarnings("default::UserWarning")


class World:
    """Folders to go wrong with. Every case has its own copy of a finished run."""

    def __init__(self, folder: Path, run: Path) -> None:
        self.folder = folder
        self.run = folder / "run"
        shutil.copytree(run, self.run)

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def train(self, **changes: Any) -> list[str]:
        return ["train", *tiny_options(self.folder / "new", **changes)]

    def images(self, **arguments: Any) -> str:
        return str(write_images(self.folder / "images", **arguments))

    def text(self, name: str, content: str = "not an image") -> str:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return str(path)

    def sample(self, *options: str) -> list[str]:
        return ["sample", str(self.run), "--out", self.path("samples"), *options]

    def evaluate(self, *options: str) -> list[str]:
        return ["evaluate", str(self.run), *options]

    def again(self, *options: str, **changes: Any) -> list[str]:
        """The command that made the run, with more steps and other settings."""
        return ["train", *tiny_options(self.run, **{"max_steps": 40, "log_every": 10} | changes), *options]


# What is wrong -> the command, and words of the message.
Case = tuple[Callable[[World], list[str]], str]


def only_corrupt_images(w: World) -> list[str]:
    for i in range(4):
        w.text(f"broken/{i}.png")
    return w.train(data=w.path("broken"))


def one_corrupt_image_refused(w: World) -> list[str]:
    w.text("images/zz.png")
    return w.train(data=w.images(), corrupt="refuse")


def two_sizes(w: World) -> list[str]:
    write_images(w.folder / "images" / "large", 3, size=(9, 8))
    return w.train(data=w.images())


def truncated_parquet(w: World) -> list[str]:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    images = sorted(Path(w.images()).glob("*.png"))
    whole = w.folder / "whole.parquet"
    pq.write_table(pa.table({"image": [p.read_bytes() for p in images]}), whole)
    (w.folder / "cut.parquet").write_bytes(whole.read_bytes()[:-200])
    return w.train(data=w.path("cut.parquet"))


def small_start_image(w: World) -> list[str]:
    image = write_images(w.folder / "start", 1, size=(5, 8)) / "000.png"
    return w.train(start=str(image))


def foreign_folder(w: World) -> list[str]:
    w.text("new/notes.txt")
    return w.train()


def out_is_a_file(w: World) -> list[str]:
    w.text("new")
    return w.train()


def out_inside_a_file(w: World) -> list[str]:
    return ["train", *tiny_options(Path(w.text("file")) / "new")]


DATA: dict[str, Case] = {
    "data path missing": (lambda w: w.train(data=w.path("nowhere")), "nowhere does not exist"),
    "data empty": (lambda w: w.train(data=""), "--data is empty"),
    "data a text file": (lambda w: w.train(data=w.text("notes.txt")), "neither a folder of images nor a .parquet"),
    "data a single image": (lambda w: w.train(data=w.images() + "/000.png"), "single image"),
    "empty folder": (lambda w: w.train(data=w.images(count=0)), "holds no images"),
    "two images only": (lambda w: w.train(data=w.images(count=2)), "too few images"),
    "only corrupt images": (only_corrupt_images, "none of the 4 images can be read"),
    "one corrupt image refused": (one_corrupt_image_refused, "zz.png"),
    "images of two sizes": (two_sizes, "set --image-size"),
    "truncated parquet": (truncated_parquet, "cut.parquet cannot be read"),
    "image size 0": (lambda w: w.train(data="digits", image_size=(0, 8)), "--image-size"),
    "unknown colour": (lambda w: w.train(data="digits", background="no colour"), "not a colour"),
    "limit 0": (lambda w: w.train(limit=0), "--limit must be at least 1"),
    "test fraction 1.5": (lambda w: w.train(test_fraction=1.5), "test_fraction must lie between 0 and 1"),
    "images resized, and none given": (lambda w: w.train(image_size=(16, 16)), "--data says none"),
    "binarized RGB": (lambda w: w.train(data="digits", binarize=True, channels=3), "--binarize needs grey images"),
}

SETTINGS: dict[str, Case] = {
    "unknown command": (lambda w: ["trian"], "no command is called 'trian'"),
    "unknown option": (lambda w: [*w.train(), "--horizn", "3"], "--horizn"),
    "option of the wrong type": (lambda w: w.train(horizon="many"), "many"),
    "option without its value": (lambda w: [*w.train(), "--width"], "--width"),
    "choice that does not exist": (lambda w: w.train(decay="steep"), "invalid choice 'steep'"),
    "unknown preset": (lambda w: [*w.train(), "--preset", "digts"], "no preset is called 'digts'"),
    "preset without a name": (lambda w: [*w.train(), "--preset"], "no preset is called ''"),
    "horizon 0": (lambda w: w.train(horizon=0), "--horizon must be at least 1, not 0"),
    "one proposal": (lambda w: w.train(num_proposals=1), "--num-proposals must be at least 2"),
    "grid larger than the image": (lambda w: w.train(grid=9), "grid 9 does not fit an image of 8x8"),
    "no mode": (lambda w: w.train(environment="latent", latent_modes=0), "--latent-modes must be at least 1, not 0"),
    "start not read by a shared network": (
        lambda w: w.train(environment="latent", read_start=False),
        "--no-read-start needs --no-share-steps",
    ),
    "start not read by a U-Net": (
        lambda w: w.train(environment="latent", horizon=1, read_start=False, network="unet", patch=2),
        "--no-read-start needs --network mlp, not unet",
    ),
    "dropout 1.5": (lambda w: w.train(dropout=1.5), "--dropout"),
    "dropout not a number": (lambda w: w.train(dropout="nan"), "--dropout"),
    "step size 0": (lambda w: w.train(step_size=0), "--step-size must be above 0"),
    "step size infinite": (lambda w: w.train(step_size="inf"), "--step-size"),
    "width 0": (lambda w: w.train(width=0), "--width must be at least 1"),
    "patch that does not divide": (lambda w: w.train(network="unet", patch=3), "--patch 3 does not divide"),
    "unknown GC-agent": (lambda w: w.train(gc_agent="lazy"), "no GC-agent is called 'lazy'"),
    "unknown environment": (lambda w: w.train(environment="maze"), "no environment is called 'maze'"),
    "unknown start": (lambda w: w.train(start="middle"), "no start is called 'middle'"),
    "start out of range": (lambda w: w.train(start="constant:7"), "constant:7"),
    "start image of the wrong size": (small_start_image, "wrong size"),
    "start image missing": (lambda w: w.train(start=w.path("no.png")), "no.png does not exist"),
    "grey start of grey images": (lambda w: w.train(start="grey"), "needs RGB images"),
    "batch size 0": (lambda w: w.train(batch_size=0), "--batch-size must be at least 1"),
    "negative learning rate": (lambda w: w.train(learning_rate=-1), "--learning-rate must be above 0"),
    "learning rate beyond float32": (lambda w: w.train(learning_rate=1e39), "--learning-rate must be at most 1e30"),
    "negative weight decay": (lambda w: w.train(weight_decay=-1), "--weight-decay must be at least 0"),
    "ema 1": (lambda w: w.train(ema=1.0), "--ema must be at least 0 and below 1"),
    "no steps": (lambda w: w.train(max_steps=0), "--max-steps must be at least 1"),
    "keep no checkpoint": (lambda w: w.train(keep=0), "--keep must be at least 1"),
    "demo of negative length": (lambda w: ["demo", "--out", w.path("demo"), "--max-seconds", "-1"], "--max-seconds"),
    "out is a file": (out_is_a_file, "is a file"),
    "out is inside a file": (out_inside_a_file, "cannot be made"),
    "out holds something else": (foreign_folder, "not empty and holds no goalgen run"),
}


def other_config(w: World) -> list[str]:
    edit_json(w.run / "config.json", colour="blue")
    return w.again()


def broken_config(w: World) -> list[str]:
    (w.run / "config.json").write_text('{"format": 1, "data": {')
    return w.again()


def config_of_a_list(w: World) -> list[str]:
    (w.run / "config.json").write_text("[1, 2]")
    return w.again()


def checkpoint(w: World) -> Path:
    return list_checkpoints(w.run)[-1]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def truncated_checkpoint(w: World) -> list[str]:
    truncate(checkpoint(w) / "raw.safetensors")
    return w.again()


def truncated_optimizer(w: World) -> list[str]:
    (checkpoint(w) / "optimizer.safetensors").write_bytes(b"")
    return w.again()


def checkpoint_lacks_a_file(w: World) -> list[str]:
    (checkpoint(w) / "ema.safetensors").unlink()
    return w.again()


def checkpoint_lacks_a_tensor(w: World) -> list[str]:
    file = checkpoint(w) / "raw.safetensors"
    values = load_file(file)
    del values["s_agent.weight"], values["s_agent.bias"]
    save_file(values, file)
    return w.again()


def progress_of_nonsense(w: World) -> list[str]:
    (checkpoint(w) / "progress.json").write_text('{"stepp": 3}')
    return w.again()


def edit_model(w: World, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    file = w.run / "best" / "model.safetensors"
    values = load_file(file)
    change(values)
    save_file(values, file, metadata={"weights": "ema"})


def model_of_nan(w: World) -> list[str]:
    edit_model(w, lambda values: values["s_agent.weight"].view(-1)[0].fill_(torch.nan))
    return w.sample()


def start_image_of_nan(w: World) -> list[str]:
    edit_model(w, lambda values: values["start.image"].view(-1)[0].fill_(torch.nan))
    return w.sample()


def model_lacks_a_tensor(w: World) -> list[str]:
    edit_model(w, lambda values: values.pop("s_agent.weight"))
    return w.sample()


def truncated_model(w: World) -> list[str]:
    truncate(w.run / "best" / "model.safetensors")
    return w.sample()


def model_config_with_unknown_key(w: World) -> list[str]:
    edit_json(w.run / "best" / "config.json", colour="blue")
    return w.sample()


def model_config_without_shape(w: World) -> list[str]:
    edit_json(w.run / "best" / "config.json", facts={})
    return w.sample()


def model_config_broken(w: World) -> list[str]:
    (w.run / "best" / "config.json").write_text("{")
    return w.sample()


def no_model_yet(w: World) -> list[str]:
    shutil.rmtree(w.run / "best")
    return w.sample()


RUNS: dict[str, Case] = {
    "other settings in an existing run": (lambda w: w.again(width=17), "--width (saved 16, now 17)"),
    "other data in an existing run": (lambda w: w.again(limit=63), "--limit (saved 64, now 63)"),
    "config with an unknown key": (other_config, "no setting is called 'colour'"),
    "config cut short": (broken_config, "is damaged and cannot be read as JSON"),
    "config that is a list": (config_of_a_list, "should hold a JSON object"),
    "checkpoint cut short": (truncated_checkpoint, "raw.safetensors is damaged"),
    "checkpoint file empty": (truncated_optimizer, "optimizer.safetensors is damaged"),
    "checkpoint without a file": (checkpoint_lacks_a_file, "ema.safetensors does not exist"),
    "checkpoint without a tensor": (checkpoint_lacks_a_tensor, "does not fit this model"),
    "progress of nonsense": (progress_of_nonsense, "does not fit this model"),
    "model of NaN": (model_of_nan, "s_agent.weight hold NaN"),
    "start image of NaN": (start_image_of_nan, "start.image hold NaN"),
    "model without a tensor": (model_lacks_a_tensor, "does not fit its configuration"),
    "model cut short": (truncated_model, "model.safetensors is damaged"),
    "model config with an unknown key": (model_config_with_unknown_key, "no setting is called 'colour'"),
    "model config without facts": (model_config_without_shape, "lacks shape and levels"),
    "model config cut short": (model_config_broken, "cannot be read as JSON"),
    "run without a model": (no_model_yet, "has saved no best model yet"),
}

USES: dict[str, Case] = {
    "sample of nothing": (lambda w: ["sample", "--out", w.path("s")], "required"),
    "sample of a missing folder": (lambda w: ["sample", w.path("none")], "none does not exist"),
    "sample of a file": (lambda w: ["sample", w.text("file")], "is a file"),
    "evaluate of no run": (lambda w: ["evaluate", w.images()], "neither a goalgen run nor a saved model"),
    "plot of no run": (lambda w: ["plot", w.images()], "run"),
    "plot of a missing folder": (lambda w: ["plot", w.path("none")], "none"),
    "sample 0 images": (lambda w: w.sample("--num", "0"), "must be at least 1"),
    "sample from a negative index": (lambda w: w.sample("--first", "-1"), "at least 0"),
    "temperature 0": (lambda w: w.sample("--temperature", "0"), "temperature must be above 0"),
    "unknown weights": (lambda w: w.sample("--weights", "best"), "--weights"),
    "unknown device": (lambda w: w.sample("--device", "abacus"), "--device abacus"),
    "sample from an unknown start": (lambda w: w.sample("--start", "middle"), "no start is called 'middle'"),
    "sample into a file": (lambda w: w.sample("--out", w.text("file")), "is a file"),
    "sample inside a file": (lambda w: w.sample("--out", w.text("file") + "/s"), "cannot be written"),
    "goals of another size": (
        lambda w: w.sample("--start", "blur", "--start-goals", w.path("nowhere")), "nowhere does not exist",
    ),
    "evaluate on RGB": (lambda w: w.evaluate("--data", w.images(mode="RGB")), "(3, 8, 8)"),
    "evaluate on other levels": (lambda w: w.evaluate("--data", w.images()), "grey levels"),
    "evaluate too few samples": (lambda w: w.evaluate("--num-samples", "2"), "at least 6"),
    "evaluate with no trajectory": (lambda w: w.evaluate("--iw-k", "0"), "must be at least 1"),
    "evaluate unknown features": (
        lambda w: w.evaluate("--features", "vibes", "--iw-images", "1"), "no features are called 'vibes'",
    ),
    "numbers into a place that cannot be written": (
        lambda w: w.evaluate("--json", w.text("file") + "/x.json", "--iw-images", "1", "--num-samples", "6"),
        "cannot be written",
    ),
}  # fmt: skip
if not torch.cuda.is_available():
    USES["no GPU"] = (lambda w: w.sample("--device", "cuda"), "--device cuda is not there")

CASES = DATA | SETTINGS | RUNS | USES


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_line_and_harms_nothing(tmp_path, digits_run, shared_cache, capsys, name):
    make, words = CASES[name]
    world = World(tmp_path, digits_run)
    command = make(world)
    before = digest(tmp_path)

    status = cli.main(command)

    error = capsys.readouterr().err
    assert status == 2
    assert len(error.splitlines()) == 1, error
    assert error.startswith("goalgen: error: ")
    assert words in error
    assert "Traceback" not in error
    assert not re.search(r"[─│]|---", error)  # no frames
    assert digest(tmp_path) == before


@pytest.mark.parametrize("name", ["data path missing", "unknown option", "checkpoint without a tensor"])
def test_bad_input_of_a_process_shows_no_traceback(tmp_path, digits_run, name):
    make, words = CASES[name]
    status, out, err = finish(start(make(World(tmp_path, digits_run))))
    assert status == 2
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("goalgen: error: ")
    assert words in err


def test_hub_that_cannot_be_reached_is_one_line(tmp_path):
    status, _, err = finish(start(["sample", "nobody/nothing"], HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path)))
    assert status == 2
    assert len(err.splitlines()) == 1
    assert err.startswith("goalgen: error: nobody/nothing is no folder here, and could not be loaded from the hub")


def test_corrupt_images_are_named_and_skipped(tmp_path, capsys):
    data = write_images(tmp_path / "images")
    (data / "zz.png").write_text("not an image")
    assert cli.main(["train", *tiny_options(tmp_path / "run", data=data, max_steps=2)]) == 0
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert error.startswith("goalgen: warning: skipped 1 unreadable image")
    assert "zz.png" in error
