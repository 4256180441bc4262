"""The command line, end to end."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from runs import digest, environment, finish, setting_names, start, tiny_config, tiny_options, write_images

from goalgen import cli, load
from goalgen.config import Config
from goalgen.settings import from_dict, load_preset, preset_names, to_dict
from goalgen.training import train
from goalgen.training.log import read_log
from goalgen.training.preparation import check_config


def size(path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


# Help


OPTIONS = {
    "train": Config, "sample": cli.SampleOptions, "restore": cli.RestoreOptions, "vectorize": cli.VectorizeOptions, "evaluate": cli.EvaluateOptions,
    "show": cli.ShowOptions, "plot": cli.PlotOptions,
    "demo": cli.DemoOptions,
}  # fmt: skip


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_of_a_command_names_every_option(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    names = setting_names(OPTIONS[command])
    assert len(names) >= (1 if command == "show" else 3)
    for name in names:
        if name not in ("model", "images", "files"):  # the positional arguments
            assert re.search(rf"--{name.replace('_', '-')}\b", text), name


def test_help_of_train_names_the_presets(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "the six options one needs:"
    assert [line.split()[0] for line in lines[1:7]] == [
        "--data",
        "--out",
        "--image-size",
        "--max-seconds",
        "--start",
        "--preset",
    ]
    shown = {line.split()[0]: line for line in lines[:25] if line.startswith("  ")}
    for name in preset_names():
        assert len(shown[name].split()) > 5, name


def test_the_guide_has_every_preset():
    table = (
        (Path(__file__).parents[1] / "docs" / "guide.md")
        .read_text(encoding="utf-8")
        .split("| preset | for |")[1]
        .split("\n\n")[0]
    )
    assert re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE) == preset_names()


def test_usage_names_every_command(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"goalgen {name} " in text for name in cli.COMMANDS)


def test_no_command_shows_usage_and_fails(capsys):
    assert cli.main([]) == 2
    assert "goalgen train" in capsys.readouterr().out


def test_version_is_that_of_the_package(capsys):
    import goalgen

    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == goalgen.__version__


def test_help_into_a_closed_pipe_is_quiet():
    process = start(["train", "--help"])
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    process.wait()


# Presets and configuration


@pytest.mark.parametrize("name", preset_names())
def test_preset_is_valid_and_says_something(name):
    preset = load_preset(name)
    check_config(preset)
    assert preset != Config()


def test_configuration_survives_json():
    config = dataclasses.replace(load_preset("digits"), seed=7)
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_preset_sets_defaults_and_options_override_them(tmp_path, capsys):
    options = ["--preset", "digits", *tiny_options(tmp_path / "run", max_steps=2)]
    assert cli.main(["train", *options]) == 0
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["model"]["dropout"] == load_preset("digits").model.dropout
    assert saved["model"]["width"] == 16
    assert saved["training"]["max_steps"] == 2


# Commands


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run made by the command line itself."""
    out = tmp_path_factory.mktemp("cli") / "run"
    assert cli.main(["train", *tiny_options(out, max_steps=5)]) == 0
    return out


def test_train_says_one_line_with_step_bound_and_folder(tmp_path, capsys):
    assert cli.main(["train", *tiny_options(tmp_path / "run", max_steps=3)]) == 0
    captured = capsys.readouterr()
    line = rf"done: step 3, \d+ s, best held-out bound \d\.\d{{4}} bits/dim; run in {tmp_path}/run\n"
    assert re.fullmatch(line, captured.out)
    assert captured.err == ""


def test_train_again_goes_on(run, tmp_path, capsys):
    out = tmp_path / "run"
    cli.main(["train", *tiny_options(out, max_steps=3)])
    assert cli.main(["train", *tiny_options(out, max_steps=6)]) == 0
    assert "step 6" in capsys.readouterr().out.splitlines()[-1]
    assert [r["step"] for r in read_log(out / "log.jsonl")] == [3, 6]


def test_sample_writes_images_grid_and_trajectories(run, tmp_path, capsys):
    out = tmp_path / "samples"
    assert cli.main(["sample", str(run), "--out", str(out), "--num", "5", "--seed", "4", "--grid", "--trajectory"]) == 0
    names = {f"{i:05d}.png" for i in range(5)} | {"grid.png", "trajectories.png", "trajectories.gif", "samples.json"}
    assert digest(out).keys() == names
    assert size(out / "00004.png") == (8, 8)
    # 8x8 images one pixel apart, enlarged sevenfold: 3 columns and 2 rows; 4 canvases an episode and 5 episodes.
    assert size(out / "grid.png") == (28 * 7, 19 * 7)
    assert size(out / "trajectories.png") == (37 * 7, 46 * 7)
    with Image.open(out / "trajectories.gif") as film:
        assert film.n_frames == 4
    about = json.loads((out / "samples.json").read_text())
    assert about["network_evaluations"] == 3
    assert (about["seed"], about["num"], about["first"], about["start"], about["weights"]) == (4, 5, 0, "mean", "ema")
    assert "3 network evaluations each, start: mean" in capsys.readouterr().out


def test_sample_files_hold_the_images_of_the_model(run, tmp_path):
    cli.main(["sample", str(run), "--out", str(tmp_path), "--num", "3", "--first", "70", "--seed", "4"])
    expected = load(run).sample(3, 4, first=70).images
    for i in range(3):
        with Image.open(tmp_path / f"{70 + i:05d}.png") as picture:
            assert torch.equal(torch.tensor(list(picture.tobytes())).view(8, 8), expected[i, 0].long())


def test_sample_from_another_start_says_so(run, tmp_path, capsys):
    assert cli.main(["sample", str(run), "--out", str(tmp_path / "s"), "--num", "2", "--start", "constant:1"]) == 0
    assert "start: constant:1 (trained with mean)" in capsys.readouterr().out


def test_sample_from_goals_of_a_folder(tmp_path):
    # The digits have 17 grey levels, PNGs 256.
    folder = train(tiny_config(tmp_path / "run", start="blur:1", max_steps=2)).folder
    goals = write_images(tmp_path / "goals", 12)
    samples = str(tmp_path / "samples")
    assert cli.main(["sample", str(folder), "--out", samples, "--num", "4", "--start-goals", str(goals)]) == 0
    assert size(tmp_path / "samples" / "00003.png") == (8, 8)


def test_evaluate_prints_a_table_and_writes_the_same_numbers(run, tmp_path, shared_cache, capsys):
    file = tmp_path / "numbers.json"
    arguments = ["evaluate", str(run), "--json", str(file), "--num-samples", "50", "--iw-images", "20", "--iw-k", "4"]
    assert cli.main(arguments) == 0
    numbers, table = json.loads(file.read_text()), capsys.readouterr().out
    for key in ("bits_per_dim", "iw_bound_nats", "frechet_distance", "nearest_train_distance"):
        assert key in table
        assert f"{numbers[key]:.3f}" in table
    assert f"{numbers['frechet_reference']:.3f}" in table
    assert numbers["num_samples"] == 50
    assert numbers["iw_k"] == 4


def test_evaluate_is_the_same_twice(run, tmp_path, shared_cache):
    files = [tmp_path / "one.json", tmp_path / "two.json"]
    for file in files:
        cli.main(["evaluate", str(run), "--json", str(file), "--num-samples", "50", "--iw-images", "5"])
    assert files[0].read_text() == files[1].read_text()


def test_demo_trains_samples_and_evaluates(tmp_path, cache):
    out = tmp_path / "demo"
    process = start(["demo", "--out", str(out), "--max-seconds", "0.5"], GOALGEN_CACHE=str(cache))
    status, text, err = finish(process)
    assert status == 0
    assert "goalgen:" not in err  # a slow machine says how far it is
    assert "bits_per_dim" in text
    assert size(out / "samples" / "00099.png") == (8, 8)
    numbers = json.loads((out / "evaluation.json").read_text())
    assert numbers["num_samples"] == numbers["num_test"]
    for path in re.findall(r"(\S+\.png)", text.split("look at:")[1]):
        assert size(path)[0] > 8


def test_commands_work_as_processes_of_their_own(run, tmp_path):
    status, out, err = finish(start(["sample", str(run), "--out", str(tmp_path / "s"), "--num", "2"]))
    assert (status, err) == (0, "")
    assert "2 images" in out
    assert (tmp_path / "s" / "00001.png").exists()


def test_help_needs_no_torch():
    code = "import sys; from goalgen import cli; cli.main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True).returncode == 0
