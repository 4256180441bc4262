"""On a CUDA device: every family trains there, and what was trained samples and measures as on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from runs import tiny_config

from goalgen import evaluate, load, load_data
from goalgen.training import train
from goalgen.training.log import read_log

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

STROKES = {"environment": "strokes", "start": "constant:0"}
KINDS: dict[str, dict[str, Any]] = {
    "proposals": {},
    "proposals, value": {"gc_agent": "value"},
    "latent": {"environment": "latent"},
    "latent, modes": {"environment": "latent", "latent_modes": 4},
    "learned bridge": {"environment": "bridge", "gc_agent": "learned", "network": "unet"},
    "fixed bridge": {"environment": "bridge", "gc_agent": "fixed", "network": "transformer"},
    "reveal": {"environment": "reveal", "network": "unet"},
    "code, bridge": {"environment": "code:1+bridge:2", "network": "unet", "code_modes": 8, "horizon": None},
    "latent, reveal": {"environment": "latent:1+reveal:2", "network": "unet", "horizon": None},
    "reveal, learned order": {"environment": "reveal", "network": "unet", "reveal_order": "learned"},
}


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def settings_of(kind: str) -> dict[str, Any]:
    """Without those that are None; in float32, so that the CPU can be compared with."""
    given = {"horizon": 3, "precision": "no", "max_steps": 12, **KINDS.get(kind, STROKES)}
    return {name: value for name, value in given.items() if value is not None}


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_trained_there_measures_and_samples_as_on_the_cpu(tmp_path, kind):
    config = tiny_config(tmp_path / "run", **settings_of(kind))
    folder = train(config).folder
    here, there = load(folder), load(folder, device="cuda")
    assert all(p.device.type == "cuda" for p in there.family.parameters())
    images = load_data(config.data).test.images[:8]
    torch.testing.assert_close(there.nll_bound(images).total.cpu(), here.nll_bound(images).total, rtol=1e-3, atol=1e-2)
    mine, theirs = there.sample(16).levels.cpu().float(), here.sample(16).levels.float()
    assert (mine - theirs).abs().mean() < 0.02 * (here.levels - 1)
    assert (mine == theirs).float().mean() > 0.9


@pytest.mark.parametrize("kind", ["proposals", "code, bridge", "strokes"])
def test_half_precision_learns(tmp_path, kind):
    """As `goalgen train` chooses it there."""
    config = tiny_config(
        tmp_path / "run", **{**settings_of(kind), "precision": "auto", "max_steps": 200, "log_every": 10}
    )
    bounds = [row["nll_bound_nats"] for row in read_log(train(config).folder / "log.jsonl") if "nll_bound_nats" in row]
    assert bounds[-1] < bounds[0]


def test_strokes_are_judged_drawn_and_learned_there_as_on_the_cpu(tmp_path):
    """The same strokes make the same canvases and errors; chances of actions differ by rounding alone."""
    folder = train(tiny_config(tmp_path / "run", **settings_of("strokes"))).folder
    found = []
    for device in ("cpu", "cuda"):
        family = load(folder, device=device).family
        world, order = family.environment, torch.Generator().manual_seed(0)
        goal = (torch.rand(4, 1, 8, 8, generator=order) * 2 - 1).to(device)
        actions = world.action_space.uniform(world.action_space.noise(4, order)).to(device)
        state = world.initial(torch.full_like(goal, -1.0))
        seen = family.see(0, state)
        after = world.canvas(world.transition(seen.h, state, actions, None))
        changes, lost = world.error_changes(state, goal, actions.unsqueeze(0))
        chances = family.s_agent.decide(seen).policy.log_prob(actions)
        found.append([x.detach().cpu() for x in (after, changes, lost, chances)])
    for here, there in zip(*found, strict=True):
        torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-3)


def test_a_run_goes_on_there(tmp_path):
    settings = settings_of("latent")
    train(tiny_config(tmp_path / "run", **settings))
    outcome = train(tiny_config(tmp_path / "run", **{**settings, "max_steps": 20}))
    assert outcome.step == 20


def test_evaluation_there_gives_the_numbers_of_the_cpu(tmp_path, shared_cache):
    config = tiny_config(tmp_path / "run", **settings_of("latent"))
    folder, data = train(config).folder, load_data(config.data)
    here, there = (evaluate(load(folder, device=d), data, num_samples=64, iw_images=8, iw_k=2) for d in ("cpu", "cuda"))
    assert here.keys() == there.keys()
    for name in ("nll_bound_nats", "iw_bound_nats", "frechet_distance", "kernel_distance", "nearest_train_distance"):
        assert there[name] == pytest.approx(here[name], rel=2e-2), name


def test_compiled_networks_learn_the_same(tmp_path):
    settings = {**settings_of("code, bridge"), "max_steps": 60, "log_every": 20}
    plain, compiled = (
        [row["nll_bound_nats"] for row in read_log(train(tiny_config(tmp_path / name, **settings, compile=on)).folder / "log.jsonl")
         if "nll_bound_nats" in row] for name, on in (("plain", False), ("compiled", True))
    )  # fmt: skip
    assert compiled == pytest.approx(plain, rel=2e-2)
