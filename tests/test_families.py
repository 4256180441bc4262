"""Every family of environments as a user meets it: trained, resumed, sampled, measured, and told labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from runs import different, stop_in_step, tensors, timeless_log, tiny_config, tiny_options, write_images
from tiny import tiny_agents, tiny_goals, tiny_start

from goalgen import cli, exact
from goalgen.data import load_data
from goalgen.errors import GoalgenError
from goalgen.families import make
from goalgen.model import load
from goalgen.rollout import draw_noise, rollout
from goalgen.settings import configure
from goalgen.starts import make_start
from goalgen.task import Task
from goalgen.training import train
from goalgen.training.batches import Batches
from goalgen.training.log import read_log

FAMILIES: dict[str, dict[str, Any]] = {
    "latent": {"environment": "latent", "latent_size": 3},
    "latent, one step": {"environment": "latent", "latent_size": 3, "horizon": 1},
    "latent, recomputed, warmed up": {
        "environment": "latent", "latent_size": 3, "recompute": True, "kl_warmup_steps": 10, "learn_step_size": True,
    },
    "latent, networks of their own": {"environment": "latent", "latent_size": 3, "share_steps": False},
    "latent, mixture, start not read": {
        "environment": "latent", "latent_size": 3, "latent_modes": 4, "share_steps": False, "read_start": False,
    },
    "latent, map of mixtures": {
        "environment": "latent", "latent_size": 2, "latent_modes": 3, "network": "unet", "patch": 2,
    },
    "latent, mixture, label, start not read": {
        "environment": "latent", "latent_size": 3, "latent_modes": 4, "horizon": 1, "read_start": False, "condition": "label",
    },
    "latent, map": {"environment": "latent", "latent_size": 2, "network": "unet", "patch": 2},
    "fixed bridge": {"environment": "bridge", "gc_agent": "fixed"},
    "fixed bridge, free variance": {"environment": "bridge", "gc_agent": "fixed", "learn_variance": True},
    "learned bridge": {"environment": "bridge"},
    "bridge, transformer": {"environment": "bridge", "network": "transformer", "patch": 4},
    "bridge, given ratios": {"environment": "bridge", "learn_snr": False, "log_snr": (-2.0, 3.0)},
    "bridge, from a blurred goal": {"environment": "bridge", "start": "blur:1"},
    "bridge, black and white": {"environment": "bridge", "binarize": True},
    "proposals, label": {"condition": "label"},
    "latent, label": {"environment": "latent", "latent_size": 3, "condition": "label"},
    "bridge, label": {"environment": "bridge", "condition": "label"},
}  # fmt: skip


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def run(request, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("family") / "run"
    return train(tiny_config(out, dropout=0.1, log_every=5, **FAMILIES[request.param])).folder


def test_every_family_is_trained_sampled_and_measured(run, tmp_path):
    assert all(torch.isfinite(t).all() for t in tensors(run).values())
    assert cli.main(["sample", str(run), "--out", str(tmp_path / "s"), "--num", "3", "--grid", "--trajectory"]) == 0
    assert (tmp_path / "s" / "trajectories.gif").exists()
    file = tmp_path / "numbers.json"
    assert cli.main(["evaluate", str(run), "--json", str(file), "--num-samples", "20", "--iw-images", "9", "--features", "pixel-pca"]) == 0  # fmt: skip
    numbers = json.loads(file.read_text())
    total = numbers["reconstruction_nats"] + numbers["kl_nats"]
    assert numbers["nll_bound_nats"] == pytest.approx(total, rel=1e-5)
    assert sum(numbers["kl_per_step_nats"]) == pytest.approx(numbers["kl_nats"], rel=1e-5)
    assert numbers["network_evaluations"] == len(numbers["kl_per_step_nats"])
    assert numbers["parameters"]["generative"] > 0
    model = load(run)
    if model.config.model.environment == "latent":
        assert len(numbers["active_units_per_step"]) == model.horizon
        assert 0 <= max(numbers["active_units_per_step"]) <= numbers["units_per_step"]


@pytest.mark.parametrize("family", ["latent", "learned bridge", "bridge, label"])
def test_plots_are_drawn(family, tmp_path, capsys):
    run = train(tiny_config(tmp_path / "run", max_steps=5, log_every=1, **FAMILIES[family])).folder
    assert cli.main(["plot", str(run), "--out", str(tmp_path / "plots")]) == 0
    drawn = {Path(line).name for line in capsys.readouterr().out.split()}
    assert {"curves.png", "kl_by_step.png", "trajectories.png", "neighbours.png"} <= drawn
    assert "usage.png" not in drawn


def test_sample_i_does_not_depend_on_how_many_are_drawn(run):
    model = load(run)
    goals = torch.zeros(70, *model.shape, dtype=torch.uint8) if model.start().needs_goal else None
    many = model.sample(70, seed=3, goals=goals)
    few = model.sample(2, seed=3, first=66, goals=None if goals is None else goals[:2])
    assert torch.equal(few.images, many.images[66:68])


def test_saved_model_is_the_model(run, tmp_path):
    model = load(run)
    again = load(model.save(tmp_path / "saved"))
    goals = torch.zeros(2, *model.shape, dtype=torch.uint8) if model.start().needs_goal else None
    assert torch.equal(model.sample(2, goals=goals).images, again.sample(2, goals=goals).images)


@pytest.mark.parametrize("family", ["latent", "fixed bridge", "learned bridge", "latent, label"])
def test_stopped_and_resumed_run_is_the_uninterrupted_run(family, tmp_path, monkeypatch):
    settings = FAMILIES[family] | {
        "max_steps": 30, "log_every": 4, "eval_every": 7, "checkpoint_every": 9, "dropout": 0.1,
    }  # fmt: skip
    whole = train(tiny_config(tmp_path / "whole", **settings))
    stop_in_step(monkeypatch, 12)
    config = tiny_config(tmp_path / "halves", **settings)
    first = train(config)
    assert first.interrupted
    assert 0 < first.step < 30
    second = train(config)
    assert different(whole.folder, second.folder) == []
    assert timeless_log(whole.folder) == timeless_log(second.folder)


THRESHOLDS = {
    "latent": (
        {"environment": "latent", "latent_size": 8, "horizon": 2, "step_size": 1.0, "kl_warmup_steps": 200},
        2.3,
    ),
    "fixed bridge": ({"environment": "bridge", "gc_agent": "fixed", "horizon": 4}, 2.45),
    "learned bridge": ({"environment": "bridge", "horizon": 4}, 2.4),
}


@pytest.mark.parametrize("family", sorted(THRESHOLDS))
def test_every_family_learns_the_digits(family, tmp_path):
    """The mean image alone needs about 2.5 bits/dim."""
    settings, threshold = THRESHOLDS[family]
    sizes = {"limit": None, "width": 64, "depth": 2, "head_width": 32, "batch_size": 32, "max_steps": 600}
    outcome = train(tiny_config(tmp_path / "run", **(sizes | settings | {"eval_every": 100, "ema": 0.9})))
    first = read_log(outcome.folder / "log.jsonl")[0]
    assert first["bits_per_dim"] > 2.5
    assert outcome.best_bits < threshold


# Fewer steps


def test_fixed_bridge_samples_in_fewer_steps(tmp_path, capsys):
    run = train(tiny_config(tmp_path / "run", horizon=6, **FAMILIES["fixed bridge"])).folder
    assert cli.main(["sample", str(run), "--out", str(tmp_path / "s"), "--num", "3", "--steps", "2"]) == 0
    assert "2 network evaluations each" in capsys.readouterr().out
    assert json.loads((tmp_path / "s" / "samples.json").read_text())["network_evaluations"] == 2
    for steps, message in ((7, "must be 1 to 6, not 7"), (0, "must be 1 to 6, not 0")):
        assert cli.main(["sample", str(run), "--out", str(tmp_path / "t"), "--steps", str(steps)]) == 2
        assert message in capsys.readouterr().err


def test_other_models_take_every_step(tmp_path, capsys):
    run = train(tiny_config(tmp_path / "run", max_steps=3, **FAMILIES["latent"])).folder
    assert cli.main(["sample", str(run), "--out", str(tmp_path / "s"), "--steps", "1"]) == 2
    assert "takes every step it was trained with" in capsys.readouterr().err


# Labels


def dark_and_light(folder: Path, count: int = 40) -> str:
    """Two classes of images that differ in brightness."""
    random = np.random.default_rng(0)
    for name, level in (("dark", 40), ("light", 200)):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.clip(random.normal(level, 20, (8, 8)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:03d}.png")
    return str(folder)


@pytest.mark.parametrize(
    "family",
    [{}, {"environment": "latent", "latent_size": 4}, {"environment": "bridge"}],
    ids=["proposals", "latent", "bridge"],
)
def test_samples_are_of_the_class_that_is_asked_for(family, tmp_path, capsys):
    data = dark_and_light(tmp_path / "images")
    settings = {"limit": None, "condition": "label", "max_steps": 200, "batch_size": 16, "width": 32, "ema": 0.9}
    model = load(train(tiny_config(tmp_path / "run", data=data, **settings, **family)).folder)
    dark, light = (model.sample(20, labels=label).images.float().mean().item() for label in (0, 1))
    assert dark + 80 < light
    mixed = model.sample(4)
    assert mixed.labels.tolist() == [0, 1, 0, 1]
    assert mixed.images[0].float().mean() + 40 < mixed.images[1].float().mean()
    assert cli.main(["sample", str(tmp_path / "run"), "--out", str(tmp_path / "s"), "--num", "2", "--label", "1"]) == 0
    assert np.asarray(Image.open(tmp_path / "s" / "00000.png")).mean() > 120
    capsys.readouterr()
    assert cli.main(["sample", str(tmp_path / "run"), "--out", str(tmp_path / "t"), "--label", "2"]) == 2
    assert "no class is called '2'" in capsys.readouterr().err


def test_bound_bounds_the_likelihood_given_the_label():
    """By summing over all action sequences; the likelihood itself depends on the label."""
    goals, start, label = tiny_goals(6), tiny_start(6), torch.tensor([0, 1, 2, 0, 1, 2])
    for kind in ("posterior", "value", "greedy"):
        agents = tiny_agents(kind, condition="label")
        with torch.no_grad():
            truth = exact.log_likelihood(agents, Task(start, goals, label))
            assert (exact.expected_bound(agents, Task(start, goals, label)) >= -truth - 1e-5).all()
            other = exact.log_likelihood(agents, Task(start, goals, (label + 1) % 3))
            assert (truth - other).abs().min() > 1e-3
    exact.OptimalGCAgent(agents)
    with torch.no_grad():
        torch.testing.assert_close(
            exact.expected_bound(agents, Task(start, goals, label)), -truth, rtol=1e-5, atol=1e-5
        )
        noise = draw_noise(agents.environment, 6, torch.Generator().manual_seed(0))
        assert rollout(agents, Task(start, goals, label), noise).task.label is label


def test_a_model_with_labels_asks_for_them(tmp_path):
    model = load(train(tiny_config(tmp_path / "run", max_steps=2, condition="label")).folder)
    images = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(GoalgenError, match="give the label of every image"):
        model.nll_bound(images)
    with pytest.raises(GoalgenError, match="2 labels were given for 3 images"):
        model.nll_bound(images, labels=[0, 1])
    assert model.nll_bound(images, labels=[0, 1, 9]).total.shape == (3,)
    assert model.iw_bound(images, 2, labels=[0, 1, 9]).shape == (3,)
    assert model.reconstruct(images, labels=[0, 1, 9]).shape == images.shape
    plain = load(train(tiny_config(tmp_path / "plain", max_steps=2)).folder)
    with pytest.raises(GoalgenError, match="not conditioned on labels"):
        plain.sample(2, labels=1)


# The environment that goes without saying


@pytest.mark.parametrize(
    ("gc_agent", "environment"),
    [("auto", "latent"), ("encoder", "latent"), ("learned", "bridge"), ("fixed", "bridge"), ("posterior", "proposals"),
     ("greedy", "proposals"), ("value", "proposals")],
)  # fmt: skip
def test_a_gc_agent_brings_its_environment(gc_agent, environment):
    agents = make(configure(gc_agent=gc_agent, horizon=2, width=8, head_width=4), (1, 8, 8), 17)
    assert type(agents.environment).__name__.lower() == f"{environment}environment"


# Bad input

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "encoder of the proposals": ({"gc_agent": "encoder"}, "'encoder' needs --environment latent"),
    "fixed agent of the latents": ({"environment": "latent", "gc_agent": "fixed"}, "'fixed' needs --environment bridge"),
    "posterior of the bridge": ({"environment": "bridge", "gc_agent": "posterior"}, "'posterior' needs --environment proposals, not bridge"),
    "latent of no numbers": ({"environment": "latent", "latent_size": 0}, "--latent-size must be at least 1"),
    "ratios that fall": ({"environment": "bridge", "log_snr": (3.0, -2.0)}, "--log-snr must be two finite numbers that rise"),
    "warm-up of the bridge": ({"environment": "bridge", "kl_warmup_steps": 5}, "--kl-warmup-steps is for --environment latent"),
    "chain dropout of the latents": ({"environment": "latent", "chain_dropout": 0.1}, "--chain-dropout is for --environment proposals"),
    "negative warm-up": ({"environment": "latent", "kl_warmup_steps": -1}, "--kl-warmup-steps must be at least 0"),
    "code that pays more than its nats": ({"environment": "code:1+bridge:2", "code_kl_weight": 1.5}, "--code-kl-weight must be from 0 to 1, not 1.5"),
    "U-Net without blocks": ({"network": "unet", "depth": 0}, "--depth must be at least 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_what_makes_no_model_is_refused_in_one_line(case, tmp_path, capsys):
    settings, message = REFUSED[case]
    assert cli.main(["train", *tiny_options(tmp_path / "run", **settings)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_labels_must_be_there(tmp_path, capsys):
    data = write_images(tmp_path / "images")
    assert cli.main(["train", *tiny_options(tmp_path / "run", data=data, condition="label")]) == 2
    assert "needs a label for every image" in capsys.readouterr().err


# Several processes


@pytest.mark.parametrize("family", ["fixed bridge", "latent, label", "proposals, label"])
def test_processes_share_a_batch_row_by_row(family):
    """Noise, steps and labels of a process are its rows of the whole batch."""
    config = tiny_config(
        Path("unused"), batch_size=8, chain_dropout=0.1 if family == "proposals, label" else 0.0, **FAMILIES[family]
    )
    data = load_data(config.data)
    model = make(config, data.train.shape, data.train.levels, num_labels=10)
    start = make_start("mean", data.train.shape, torch.zeros(data.train.shape), config.data)
    whole, *parts = (
        Batches(config, data.train, False, start, model, rank, world)(3) for rank, world in ((0, 1), (0, 2), (1, 2))
    )
    assert set(whole.draws) >= {"noise"}
    for name, expected in whole.draws.items():
        assert torch.equal(torch.cat([part.draws[name] for part in parts], 1), expected), name
    for name in ("start", "goals", "label"):
        expected, mine = getattr(whole.task, name), [getattr(part.task, name) for part in parts]
        assert mine == [None, None] if expected is None else torch.equal(torch.cat(mine), expected), name
    assert ("steps" in whole.draws) == (family == "fixed bridge")
    assert (whole.task.label is None) == (config.model.condition == "none")
