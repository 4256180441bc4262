"""The peers of the benchmarks do what their papers say, and the harness measures them and goalgen alike."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

pytest.importorskip("diffusers")
pytest.importorskip("torchcfm")

import compare  # noqa: E402
import curve  # noqa: E402
import peers  # noqa: E402
import run  # noqa: E402
import where_time_goes  # noqa: E402
from tiny import tiny_agents, tiny_goals  # noqa: E402

from goalgen import cli  # noqa: E402
from goalgen.agents import make_agents  # noqa: E402
from goalgen.agents.networks import NetworkSpec  # noqa: E402
from goalgen.config import ModelConfig, TrainingConfig  # noqa: E402
from goalgen.data import ImageSet, from_unit  # noqa: E402
from goalgen.size import count_parameters  # noqa: E402
from goalgen.training.ema import EMA  # noqa: E402

SPEC = NetworkSpec("mlp", (1, 4, 4), 1, 24, 2, 12, 0.0, 4)


class Oracle(nn.Module):
    """Knows the only goal there is, and answers what a perfectly trained network would."""

    def __init__(self, goal: Tensor, schedule=None) -> None:
        super().__init__()
        self.goal, self.schedule, self.calls = goal, schedule, 0

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        self.calls += 1
        if self.schedule is None:  # velocity along the straight line that ends at the goal
            return (self.goal - x) / (1 - time[:, None, None, None]).clamp(min=1e-3)
        if self.schedule.config.prediction_type == "sample":
            return self.goal.expand_as(x)
        share = self.schedule.alphas_cumprod[(time * peers.TRAIN_STEPS).round().long()][:, None, None, None]
        return (x - share.sqrt() * self.goal) / (1 - share).sqrt()


@pytest.mark.parametrize("evaluations", [1, 2, 8, 50])
@pytest.mark.parametrize("method", ["diffusion", "diffusion (x0)", "flow matching"])
def test_samplers_find_the_goal_that_a_perfect_network_points_at(method, evaluations):
    peer = peers.make_peer(method, SPEC, 256)
    goal = tiny_goals(1, shape=(1, 4, 4))
    for sampler in peer.samplers:
        peer.network = Oracle(goal, getattr(peer, "schedule", None))
        noise = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        drawn = peer.draw(sampler, evaluations, noise, torch.Generator().manual_seed(1))
        if drawn is None:
            assert (sampler, evaluations) == ("OT-CFM Heun", 1)  # Heun's method takes two evaluations a step
            continue
        assert peer.network.calls == evaluations
        if sampler != "OT-CFM Heun":  # whose last slope is taken at the goal itself, where the oracle's is 0 / 0
            torch.testing.assert_close(drawn, goal.expand_as(drawn), atol=2e-2, rtol=0)


@pytest.mark.parametrize("method", ["diffusion", "diffusion (x0)", "flow matching"])
def test_a_perfect_network_has_no_loss(method):
    peer = peers.make_peer(method, SPEC, 256)
    goal = tiny_goals(1, shape=(1, 4, 4))
    peer.network = Oracle(goal, getattr(peer, "schedule", None))
    assert peer.loss(goal.repeat(32, 1, 1, 1), torch.Generator().manual_seed(0), 0) < 1e-2
    assert peer.loss(-goal.repeat(32, 1, 1, 1), torch.Generator().manual_seed(0), 0) > 0.1


def test_heun_is_exact_where_the_velocity_is_linear_in_time():
    peer = peers.make_peer("flow matching", SPEC, 256)

    class Linear(nn.Module):
        def forward(self, x: Tensor, time: Tensor) -> Tensor:
            return 2 * time[:, None, None, None].expand_as(x)

    peer.network = Linear()
    noise = torch.zeros(3, 1, 4, 4)
    torch.testing.assert_close(peer.draw("OT-CFM Heun", 2, noise, torch.Generator()), torch.ones(3, 1, 4, 4))
    assert peer.draw("OT-CFM Euler", 2, noise, torch.Generator()).max() == pytest.approx(0.5)


def test_the_bound_of_the_vae_is_that_of_torch_distributions():
    torch.manual_seed(0)
    peer = peers.make_peer("VAE", SPEC, 17)
    goals, noise = tiny_goals(6, shape=(1, 4, 4)), torch.randn(6, peer.latent)
    reconstruction, kl = peer.terms(goals, noise)
    zero = torch.zeros(1, dtype=torch.int64)
    mean, log_std = peer.posterior(nn.functional.silu(peer.encoder(zero, goals).tokens.mean(1))).chunk(2, -1)
    q = Normal(mean, (5 * torch.tanh(log_std / 5)).exp())
    torch.testing.assert_close(kl, kl_divergence(q, Normal(0.0, 1.0)).sum(1))
    canvas = peer.decode(q.mean + q.stddev * noise)
    torch.testing.assert_close(reconstruction, -peer.likelihood.log_prob(goals, canvas))


@pytest.mark.parametrize("method", peers.METHODS)
def test_every_peer_learns(method):
    torch.manual_seed(0)
    goals = tiny_goals(2, shape=(1, 4, 4)).repeat(32, 1, 1, 1)  # two images: there is something to learn from any noise
    images = from_unit(goals, 17)
    peer = peers.make_peer(method, SPEC, 17)
    data = ImageSet(images, 17)

    def loss(module: peers.Peer) -> float:
        with torch.no_grad():
            return float(module.eval().loss(goals, torch.Generator().manual_seed(0), 10_000))

    before = loss(peer)
    fitted = peers.fit(peer, data, TrainingConfig(batch_size=16, max_seconds=2.0, ema=0.9), 0)
    assert fitted.steps > 10
    assert loss(fitted.peer) < 0.9 * before


def test_contenders_have_weights_within_five_percent_on_the_digits():
    target = compare.SETUPS["digits"]["weights"]
    for method in peers.METHODS:
        peer = peers.make_peer(method, compare.spec_of("digits", compare.peer_width("digits", method)), 17)
        assert abs(sum(p.numel() for p in peer.parameters()) / target - 1) < 0.05


@pytest.mark.parametrize("data", ["digits", "fashion_mnist"])
@pytest.mark.parametrize("name", ["goalgen latent H=1", "goalgen latent H=8", "goalgen learned bridge H=50"])
def test_goalgen_s_contenders_have_weights_within_five_percent(data, name):
    contender, setup = compare.CONTENDERS[name], compare.SETUPS[data]
    options = compare.options_of(contender, data)
    width = curve.width_of(data, options, name)  # ends the process where it finds none
    config = ModelConfig(**options, width=width, head_width=width // 2)
    agents = make_agents(config, setup["shape"], setup["levels"])
    assert abs(sum(count_parameters(agents).values()) / setup["weights"] - 1) < 0.05
    modes = getattr(agents.s_agent, "modes", 1)
    several = contender.family == "latent" and (data == "fashion_mnist" or contender.horizon == 1)
    assert modes == (compare.MODES[data] if several else 1)


@pytest.mark.parametrize(
    ("family", "horizon"), [("fixed bridge", 4), ("learned bridge", 4), ("latent", 1), ("latent", 32)]
)
def test_families_have_weights_within_five_percent_on_larger_images(family, horizon):
    width = curve.width_for("fashion_mnist", family, horizon)  # ends the process where it finds none
    config = ModelConfig(**curve.model_options("fashion_mnist", family, horizon), width=width, head_width=width // 2)
    agents = make_agents(config, (1, 28, 28), 256)
    assert abs(sum(count_parameters(agents).values()) / curve.SETUPS["fashion_mnist"]["weights"] - 1) < 0.05


def test_a_family_s_command_is_one_that_goalgen_takes():
    for family, horizon in (("fixed bridge", 4), ("latent", 2)):
        fields = curve.model_options("fashion_mnist", family, horizon)
        with pytest.raises(SystemExit) as end:
            cli.main(["train", *curve.as_options(fields), "--help"])
        assert end.value.code == 0
    assert "--no-share-steps" in curve.as_options(curve.model_options("fashion_mnist", "latent", 2))
    assert curve.merged(["--a", "1", "--b", "2"], ["--a", "3"]) == ["--a", "3", "--b", "2"]


def test_savings_are_switched_on_and_off():
    """Each changes what its name says: the optimiser's form, how often weights are averaged, the layout of convolutions."""
    switched = {name: switch for name, (switch, _, _) in where_time_goes.SAVINGS.items()}
    agents = tiny_agents(network="unet", patch=2)
    trainer = SimpleNamespace(optimizer=torch.optim.AdamW(agents.parameters(), fused=True), agents=agents)
    for on in (False, True):
        switched["fused AdamW"](trainer, on)
        assert trainer.optimizer.param_groups[0]["fused"] == on
        switched["channels last"](trainer, on)
        weight = next(m.weight for m in agents.modules() if isinstance(m, torch.nn.Conv2d) and m.weight.shape[1] > 1)
        assert weight.is_contiguous(memory_format=torch.channels_last) == on
        switched["average of some steps"](trainer, on)
        average = EMA(agents, 0.99)
        before = average.module.s_agent.weight.clone()
        with torch.no_grad():
            agents.s_agent.weight.add_(1.0)
        average.update(agents, 2001)
        assert torch.equal(average.module.s_agent.weight, before) == on


@pytest.mark.parametrize("saving", ["", "fused AdamW"])
def test_the_time_of_a_step_is_taken_apart(saving):
    command = [
        sys.executable,
        "where_time_goes.py",
        "--one",
        "goalgen latent H=4",
        "--saving",
        saving,
        "--weights",
        "400000",
    ]
    command += ["--batch", "8", "--repeats", "2", "--rounds", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=BENCHMARKS, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout.strip().splitlines()[-1])
    if saving:
        assert row["without_ms"] > 0
        assert row["with_ms"] > 0
    else:
        parts = row["parts_ms"]
        whole = parts.pop("whole step")
        assert sum(parts.values()) == pytest.approx(whole)
        assert parts["backward"] > parts["average of the weights"]
        assert 0 < row["of_it_policy_ms"] < row["drawing_ms"]


@pytest.mark.parametrize("contender", ["VAE", "goalgen latent H=1"])
def test_the_harness_trains_and_measures_a_contender(tmp_path, contender):
    command = [
        sys.executable,
        "compare.py",
        "digits",
        "--one",
        contender,
        "--seconds",
        "2",
        "--seeds",
        "0",
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(
        command, cwd=BENCHMARKS, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr
    row = json.loads((tmp_path / "row.json").read_text())
    (numbers,) = row["evaluations"]["1"].values()
    assert numbers["frechet_distance"] > numbers["frechet_reference"] > 0
    assert numbers["sampled_images_per_second"] > 0
    assert row["bits_per_dim"] < 8
    assert row["trained_steps"] > 5
    assert abs(row["parameters"] / 250_000 - 1) < 0.05


@pytest.mark.parametrize("contender", ["goalgen fixed bridge", "torchcfm", "diffusers + Accelerate"])
def test_the_speed_of_a_contender_is_measured(contender):
    command = [
        sys.executable,
        "speed.py",
        "--one",
        contender,
        "--seconds",
        "0.5",
        "--weights",
        "400000",
        "--batch",
        "8",
        "--precision",
        "no",
    ]
    done = subprocess.run(
        command, cwd=BENCHMARKS, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout.strip().splitlines()[-1])
    assert row["images_per_second"] > 0
    assert abs(row["weights"] / 400_000 - 1) < 0.05
    assert row["peak_mib"] > 0


def test_two_runs_of_the_suite_are_compared_by_their_spreads():
    def rows(values):
        return [{"contender": "a", "bits_per_dim": v} for v in values]

    before = run.spread_of(rows([1.0, 1.2]))
    assert run.compare(before, run.spread_of(rows([1.1, 1.25])))[1] == []
    shared, far = run.compare(before, run.spread_of(rows([3.0, 3.1])))
    assert shared == 1
    assert far == ["a: bits_per_dim: 1.100 ± 0.141, now 3.050 ± 0.071"]
