"""What is chosen where nobody has said, what is said of it, and that it stands in the run's configuration."""

from __future__ import annotations

import pytest
import torch
from runs import write_images

from goalgen import cli, load
from goalgen.choice import choose, count_colours, is_open, worth
from goalgen.data import ImageSet, Splits
from goalgen.families import make
from goalgen.families.suited import suited
from goalgen.settings import configure, load_config


def splits(shape: tuple[int, int, int], count: int = 40) -> Splits:
    drawn = torch.randint(0, 256, (count, *shape), generator=torch.Generator().manual_seed(0))
    images = ImageSet(drawn.to(torch.uint8), 256)
    return Splits(images, images, images, None, "blank")


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 48, 48), (3, 45, 37), (1, 64, 64)])
@pytest.mark.parametrize("gpu", [False, True])
def test_what_suits_images_makes_a_model_of_them(shape, gpu):
    config, lines = choose(configure(), splits(shape), gpu)
    family = make(config, shape, 256)
    assert family.name == suited(shape, 40, gpu)[0]["environment"]
    assert f"{shape[1]}x{shape[2]}" in lines[0]
    assert f"--environment {family.name}" in lines[1]


def test_the_rule_goes_by_size_channels_number_and_device():
    small, large = (suited(shape, 60_000, False)[0] for shape in ((1, 8, 8), (3, 32, 32)))
    assert (small["network"], large["network"]) == ("mlp", "unet")
    assert (small.get("optimizer"), large["optimizer"]) == (None, "muon")
    assert large["code_size"] == 3 * suited((1, 32, 32), 60_000, False)[0]["code_size"]
    few = suited((3, 32, 32), 800, False)[0]
    assert few["dropout"] > 0
    assert few["code_modes"] < large["code_modes"]
    assert "dropout" not in large
    assert suited((3, 32, 32), 60_000, True)[0]["batch_size"] > large["batch_size"]


@pytest.mark.parametrize("gpu", [False, True])
def test_images_of_few_colours_are_revealed(gpu):
    """Pixel art: what lies between two colours of a palette is no colour at all."""
    pixels = torch.randint(0, 12, (40, 16, 16), generator=torch.Generator().manual_seed(0))
    palette = torch.tensor([[7 * i, 250 - 9 * i, 40 + i] for i in range(12)], dtype=torch.uint8)
    images = ImageSet(palette[pixels].movedim(-1, 1), 256)
    data = Splits(images, images, images, None, "blank")
    assert count_colours(data) == 12
    config, lines = choose(configure(), data, gpu)
    assert "of few colours (12 an image)" in lines[0]
    family = make(config, images.shape, 256)
    assert (family.name, family.horizon, config.family.reveal_values) == ("reveal", 48, "levels")
    assert config.training.optimizer == "muon"
    assert count_colours(splits((3, 32, 32))) > 24
    assert suited((1, 8, 8), 40, gpu, 2)[0]["environment"] == "latent"


@pytest.mark.parametrize(
    "said",
    [{"environment": "latent"}, {"gc_agent": "fixed"}, {"network": "unet"}, {"latent_size": 8}, {"preset": "digits"}],
)
def test_nothing_is_chosen_where_something_was_said(said):
    assert is_open(configure(max_steps=3, seed=4, width=24))
    assert not is_open(configure(**said))


def test_what_the_user_said_stands():
    config, lines = choose(
        configure(width=24, batch_size=8, learning_rate=0.01, max_steps=3, optimizer="adamw"),
        splits((1, 28, 28)),
        False,
    )
    assert config.training.optimizer == "adamw"
    assert (config.model.width, config.training.batch_size, config.training.learning_rate) == (24, 8, 0.01)
    assert config.training.max_steps == 3
    assert "--batch-size" not in lines[1]


def test_pure_defaults_train_sample_and_resume_on_a_folder_of_ones_own(tmp_path, capsys):
    data = write_images(tmp_path / "icons", 30, (20, 16), "RGB")
    command = ["train", "--data", str(data), "--out", str(tmp_path / "run"), "--width", "8", "--batch-size", "4"]
    assert cli.main([*command, "--max-seconds", "6"]) == 0
    error = capsys.readouterr().err
    assert "colour images of 20x16: a code lays them out" in error
    assert "million weights for sampling" in error
    assert "images/s: 6 s buy " in error
    assert "epochs of " in error
    saved = load_config(tmp_path / "run" / "config.json")
    assert saved.model.environment == "code:1+bridge:3"
    assert (saved.model.width, saved.training.batch_size) == (8, 4)
    assert saved.family.discount == 2.0
    assert cli.main([*command, "--max-seconds", "7"]) == 0  # the same command again goes on
    assert load(tmp_path / "run").sample(2).images.shape == (2, 3, 20, 16)


def test_too_little_time_is_said_with_what_to_change():
    assert worth(1000, 50.0, 60.0) == "50 images/s: 60 s buy 3.0 epochs of 1,000 images"
    assert "less than one: give --max-seconds more" in worth(100_000, 50.0, 60.0)
