"""Models that come with the package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import goalgen
from goalgen import cli
from goalgen.errors import GoalgenError
from goalgen.zoo import FOLDER, zoo_names

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results" / "zoo.json"


def test_the_zoo_has_what_the_results_speak_of():
    rows = json.loads(RESULTS.read_text())["rows"]
    assert sorted(row["name"] for row in rows) == zoo_names() == ["avatars", "digits", "fashion_mnist", "mnist_strokes"]
    for row in rows:
        assert row["bytes"] == (FOLDER / row["name"] / "model.safetensors").stat().st_size < 3e6
        assert str(Path.home()) not in (FOLDER / row["name"] / "config.json").read_text()


@pytest.mark.parametrize("name", zoo_names())
def test_a_model_of_the_zoo_samples_without_training(name, tmp_path):
    assert cli.main(["sample", f"zoo:{name}", "--num", "9", "--out", str(tmp_path), "--grid"]) == 0
    assert len(list(tmp_path.glob("0*.png"))) == 9
    model = goalgen.load(f"zoo:{name}")
    assert torch.equal(model.sample(4).images, goalgen.load(f"zoo:{name}").sample(4).images)
    assert all(p.dtype == torch.float32 for p in model.family.parameters())


def test_the_digits_of_the_zoo_are_as_good_as_the_page_says():
    (row,) = (row for row in json.loads(RESULTS.read_text())["rows"] if row["name"] == "digits")
    model = goalgen.load("zoo:digits")
    numbers = goalgen.evaluate(model, goalgen.load_data(goalgen.DataConfig()), iw_images=1)
    assert numbers["bits_per_dim"] == pytest.approx(row["bits_per_dim"], abs=2e-3)
    assert numbers["frechet_distance"] == pytest.approx(row["frechet_distance"], rel=0.05)
    assert numbers["bits_per_dim"] < 1.88


def test_an_unknown_name_is_refused_with_the_known_ones(capsys):
    with pytest.raises(GoalgenError, match=r"there are: .*zoo:digits"):
        goalgen.load("zoo:elephant")
    assert cli.main(["sample", "zoo:elephant"]) == 2
    assert "zoo:digits" in capsys.readouterr().err
