"""Paths and names: a run means the same files wherever it is used from, and what is not there is said at once."""

from __future__ import annotations

import json
import os
import time

import pytest
from runs import digest, tiny_config, tiny_options, write_images

from goalgen import GoalgenError, cli, load, load_data
from goalgen.config import DataConfig
from goalgen.data import hubs
from goalgen.nearby import is_hub_name
from goalgen.training import train

QUICK = ["--features", "pixel-pca", "--num-test", "6", "--iw-images", "1", "--iw-k", "1"]


@pytest.fixture
def no_hub(monkeypatch):
    """Fails the test where the hub is asked."""

    def asked(*_, **__):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(hubs, "open_hub", asked)
    monkeypatch.setattr(hubs, "hub_revision", asked)
    monkeypatch.setattr("goalgen.saved.snapshot_download", asked)


@pytest.mark.parametrize("name", ["images", "sets/images"])
def test_a_run_on_a_relative_path_is_used_from_another_folder(tmp_path, monkeypatch, no_hub, name):
    """Evaluate, plot, sample and resume: the same images, although another folder has others of that name."""
    home, away = tmp_path / "home", tmp_path / "away"
    write_images(home / name, 60)
    write_images(away / name, 60, seed=5)
    monkeypatch.chdir(home)
    settings = {"data": name, "start": name, "max_steps": 3}
    assert cli.main(["train", *tiny_options(tmp_path / "run", **settings)]) == 0
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["data"]["data"] == saved["model"]["start"] == str(home / name)
    command = ["evaluate", str(tmp_path / "run"), *QUICK, "--json"]
    assert cli.main([*command, str(tmp_path / "here.json")]) == 0
    monkeypatch.chdir(away)
    assert cli.main([*command, str(tmp_path / "there.json")]) == 0
    assert (tmp_path / "here.json").read_text() == (tmp_path / "there.json").read_text()
    assert cli.main(["train", *tiny_options(tmp_path / "run", **settings)]) == 2  # other data, by the same words
    monkeypatch.chdir(home)
    assert cli.main(["train", *tiny_options(tmp_path / "run", **settings)]) == 0


def test_a_run_begun_when_paths_were_kept_as_typed_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "images", 24)
    train(tiny_config(tmp_path / "run", data="images", max_steps=2))
    file = tmp_path / "run" / "config.json"
    values = json.loads(file.read_text())
    values["data"]["data"] = "images"
    file.write_text(json.dumps(values))
    assert train(tiny_config(tmp_path / "run", data="images", max_steps=3)).step == 3


def test_data_that_have_moved_are_said_at_once(tmp_path, monkeypatch, no_hub, capsys):
    write_images(tmp_path / "a" / "images", 24)
    monkeypatch.chdir(tmp_path)
    train(tiny_config(tmp_path / "run", data="a/images", max_steps=2))
    os.rename(tmp_path / "a", tmp_path / "b")
    assert cli.main(["evaluate", "run", *QUICK]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path}/a/images is not there any more" in error
    assert "say with --data where they are now" in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("typed", "near"),
    [
        ("imags", "did you mean images?"),
        ("sets/mnst", "did you mean sets/mnist?"),
        ("sts/mnist", "did you mean sets/mnist?"),
        ("Images", "did you mean images?"),
        ("digts", "did you mean digits?"),
        ("mnist", "owner/name"),
        ("./x/y", "(looked in {})"),
        ("owner/name/more", "(looked in {})"),
        ("owner/pictures.png", "(looked in {})"),
    ],
)
def test_a_misspelt_path_never_goes_to_the_hub_and_suggests_what_is_near(tmp_path, monkeypatch, no_hub, typed, near):
    (tmp_path / "sets" / "mnist").mkdir(parents=True)
    (tmp_path / "images").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GoalgenError) as error:
        load_data(DataConfig(data=typed))
    assert f"{typed} does not exist (looked in {tmp_path}" in str(error.value)
    assert near.format(tmp_path) in str(error.value)


def test_a_misspelt_model_never_goes_to_the_hub(tmp_path, monkeypatch, no_hub):
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    begun = time.monotonic()
    for typed, near in (("runs/mien", "runs/mine"), ("zo:digits", "zoo:digits"), ("run/mine", "runs/mine")):
        with pytest.raises(GoalgenError, match=f"did you mean .*{near}"):
            load(typed)
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    ("name", "hub"),
    [("ylecun/mnist", True), ("a.b/c-d_e", True), ("mnist", False), ("/a/b", False), ("../b", False), ("a/b/c", False), ("a/b.parquet", False)],
)  # fmt: skip
def test_only_owner_and_name_are_a_name_of_the_hub(tmp_path, monkeypatch, name, hub):
    monkeypatch.chdir(tmp_path)
    assert is_hub_name(name) is hub


def test_what_is_not_there_changes_nothing(tmp_path, monkeypatch, no_hub):
    monkeypatch.chdir(tmp_path)
    before = digest(tmp_path)
    assert cli.main(["train", *tiny_options(tmp_path / "run", data="nothing/here/at/all")]) == 2
    assert digest(tmp_path) == before
