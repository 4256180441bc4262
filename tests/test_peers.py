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

import contenders  # noqa: E402
import fitting  # noqa: E402
import peers  # noqa: E402
import timing  # noqa: E402
from contenders import ON_DIGITS, ON_LARGER, SETUPS, Contender, contenders_on  # noqa: E402
from tiny import tiny_agents, tiny_goals  # noqa: E402

from goalgen import DataConfig, cli, configure, load_data  # noqa: E402
from goalgen.config import TrainingConfig  # noqa: E402
from goalgen.data import ImageSet, from_unit  # noqa: E402
from goalgen.families.suited import suited  # noqa: E402
from goalgen.networks import NetworkSpec  # noqa: E402
from goalgen.training.ema import EMA  # noqa: E402

SPEC = NetworkSpec("mlp", (1, 4, 4), 1, 24, 2, 12, 0.0, 4)


class Oracle(nn.Module):
    """Knows the only goal there is, and answers what a perfectly trained network would."""

    def __init__(self, goal: Tensor, schedule=None) -> None:
        super().__init__()
        self.goal, self.schedule, self.calls = goal, schedule, 0

    def forward(self, x: Tensor, time: Tensor, *what: Tensor) -> Tensor:
        self.calls += 1
        if self.schedule is None:  # velocity along the straight line that ends at the goal
            return (self.goal - x) / (1 - time[:, None, None, None]).clamp(min=1e-3)
        if self.schedule.config.prediction_type == "sample":
            return self.goal.expand_as(x)
        share = self.schedule.alphas_cumprod[(time * peers.TRAIN_STEPS).round().long()][:, None, None, None]
        return (x - share.sqrt() * self.goal) / (1 - share).sqrt()


@pytest.mark.parametrize("evaluations", [1, 2, 8, 50])
@pytest.mark.parametrize("method", ["diffusion", "diffusion (x0)", "flow matching", "flow matching (plain)"])
def test_samplers_find_the_goal_that_a_perfect_network_points_at(method, evaluations):
    peer = peers.make_peer(method, SPEC, 256)
    goal = tiny_goals(1, shape=(1, 4, 4))
    for sampler in peer.samplers:
        peer.network = Oracle(goal, getattr(peer, "schedule", None))
        noise = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        if not peer.can_draw(sampler, evaluations):
            assert ("Heun" in sampler, evaluations) == (True, 1)  # Heun's method takes two evaluations a step
            continue
        drawn = peer.draw(sampler, evaluations, noise, torch.Generator().manual_seed(1))
        assert peer.network.calls == evaluations
        if "Heun" not in sampler:  # whose last slope is taken at the goal itself, where the oracle's is 0 / 0
            torch.testing.assert_close(drawn, goal.expand_as(drawn), atol=2e-2, rtol=0)


@pytest.mark.parametrize("method", ["diffusion", "diffusion (x0)", "flow matching", "flow matching (plain)"])
def test_a_perfect_network_has_no_loss(method):
    peer = peers.make_peer(method, SPEC, 256)
    goal = tiny_goals(1, shape=(1, 4, 4))
    peer.network = Oracle(goal, getattr(peer, "schedule", None))
    assert peer.loss(goal.repeat(32, 1, 1, 1), torch.Generator().manual_seed(0), 0) < 1e-2
    assert peer.loss(-goal.repeat(32, 1, 1, 1), torch.Generator().manual_seed(0), 0) > 0.1


def test_heun_is_exact_where_the_velocity_is_linear_in_time():
    peer = peers.make_peer("flow matching", SPEC, 256)

    class Linear(nn.Module):
        def forward(self, x: Tensor, time: Tensor, *what: Tensor) -> Tensor:
            return 2 * time[:, None, None, None].expand_as(x)

    peer.network = Linear()
    noise = torch.zeros(3, 1, 4, 4)
    torch.testing.assert_close(peer.draw("flow matching, Heun", 2, noise, torch.Generator()), torch.ones(3, 1, 4, 4))
    assert peer.draw("flow matching, Euler", 2, noise, torch.Generator()).max() == pytest.approx(0.5)


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
    fitted = peers.fit(peer, data, TrainingConfig(batch_size=16, max_steps=120, ema=0.9), 0)
    assert fitted.steps == 120
    assert loss(fitted.peer) < 0.9 * before


def amount(contender, data, equal):
    """Weights, or operations for a training image, at the width that is chosen to make them equal."""
    setup, width = SETUPS[data], contenders.width_of(contender, data, equal)  # ends the process where there is none
    settings = contenders.settings_of(contender, setup) if contender.family else {}
    module = contenders.build(contender, setup, settings, width)
    return contenders.weights_of(module) if equal == "weights" else contenders.operations_of(module)["train"]


@pytest.mark.parametrize("method", [name for name in peers.METHODS if name in ON_DIGITS])
def test_peers_have_weights_and_operations_within_five_percent_on_the_digits(method):
    contender = ON_DIGITS[method]
    assert abs(amount(contender, "digits", "weights") / 250_000 - 1) < 0.05
    assert abs(amount(contender, "digits", "operations") / 1_000_000 - 1) < 0.05


@pytest.mark.parametrize("name", ["goalgen latent H=1", "goalgen latent H=8", "goalgen learned bridge H=50"])
def test_goalgen_s_contenders_have_weights_within_five_percent(name):
    contender, setup = ON_DIGITS[name], SETUPS["digits"]
    assert abs(amount(contender, "digits", "weights") / setup.weights - 1) < 0.05
    several = contender.family == "latent" and contender.horizon == 1
    modes = contenders.settings_of(contender, setup).get("latent_modes", 1)
    assert modes == (setup.modes if several else 1)


@pytest.mark.parametrize("name", ["goalgen latent H=1", "goalgen latent H=4", "goalgen proposals H=2"])
def test_goalgen_s_contenders_need_operations_within_five_percent(name):
    assert abs(amount(ON_DIGITS[name], "digits", "operations") / SETUPS["digits"].operations - 1) < 0.05


SLOW = ("goalgen reveal, raster H=784",)
"""A sample of 784 evaluations is counted for every width that is tried."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in ON_LARGER]
)
def test_on_larger_images_all_are_convolutional_and_need_operations_within_five_percent(name):
    contender, setup = ON_LARGER[name], SETUPS["fashion_mnist"]
    assert abs(amount(contender, "fashion_mnist", "operations") / setup.operations - 1) < 0.05
    module = contenders.build(
        contender, setup, contenders.settings_of(contender, setup) if contender.family else {}, 32
    )
    assert any(isinstance(part, torch.nn.Conv2d) for part in module.modules())


def test_what_is_compared_is_what_goalgen_chooses_by_itself():
    """The contender of as many steps, but for what the harness sets, against the rule of `goalgen train`."""
    chosen, _ = suited((1, 28, 28), 60_000, False)
    settings = contenders.settings_of(
        contenders_on("fashion_mnist")["goalgen code, bridge H=4"], SETUPS["fashion_mnist"]
    )
    assert chosen == {name: settings[name] for name in chosen}


def test_where_no_width_fits_the_benchmark_ends():
    assert contenders.fit_width(lambda width: width * width, 10_000, "squares") == 100
    with pytest.raises(SystemExit, match="squares"):
        contenders.fit_width(lambda width: width * width, 101, "squares", multiple=8)


def test_a_contender_s_command_is_one_that_goalgen_takes():
    for family, horizon in (("fixed bridge", 4), ("latent", 2), ("code, bridge", 4)):
        settings = contenders.settings_of(Contender(family, horizon, settled_for="bound"), SETUPS["fashion_mnist"])
        options = contenders.as_options(settings)
        assert ("--log-snr" in options) == (family == "code, bridge")
        with pytest.raises(SystemExit) as end:
            cli.main(["train", *options, "--help"])
        assert end.value.code == 0


def test_savings_are_switched_on_and_off():
    """Each changes what its name says: the optimiser's form, and how often weights are averaged."""
    family = tiny_agents()
    trainer = SimpleNamespace(optimizer=torch.optim.AdamW(family.parameters(), fused=True), family=family)
    for on in (False, True):
        timing.SAVINGS["fused AdamW"](trainer, on)
        assert trainer.optimizer.param_groups[0]["fused"] == on
        timing.SAVINGS["average of some steps"](trainer, on)
        average = EMA(family, 0.99)
        before = average.module.s_agent.weight.clone()
        with torch.no_grad():
            family.s_agent.weight.add_(1.0)
        average.update(family, 2001)
        assert torch.equal(average.module.s_agent.weight, before) == on


def measured(folder: Path, experiment: str, job: dict, **options) -> dict:
    """A row, measured in a process of its own as the harness does."""
    request = json.dumps({"experiment": experiment, "job": job, "options": options})
    command = [sys.executable, "bench.py", "row", request, str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GOALGEN_RESULTS": str(folder)}
    done = subprocess.run(command, cwd=BENCHMARKS, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "row.json").read_text())


@pytest.mark.parametrize("saving", ["", "fused AdamW"])
def test_the_time_of_a_step_is_taken_apart(saving, tmp_path):
    row = measured(tmp_path, "time", {"contender": "goalgen latent H=4", "saving": saving}, weights=400_000, batch=8)
    if saving:
        assert row["without_ms"] > 0
        assert row["with_ms"] > 0
    else:
        parts = row["parts_ms"]
        whole = parts.pop("whole step")
        assert sum(parts.values()) == pytest.approx(whole)
        assert parts["backward"] > parts["average of the weights"]
        assert 0 < row["of_it_policy_ms"] < row["drawing_ms"]


@pytest.mark.parametrize(("contender", "seed"), [("VAE", 0), ("goalgen latent H=1", 100)])
def test_a_contender_is_trained_and_measured(contender, seed, tmp_path):
    job, trial = {"contender": contender, "seed": seed}, seed >= 100
    row = measured(tmp_path, "compare", job, data="digits", seconds=2.0, num_test=2000, trial=trial)
    (numbers,) = row["evaluations"]["1"].values()
    assert numbers["frechet_distance"] > numbers["frechet_reference"] > 0
    assert numbers["sampled_images_per_second"] > 0
    assert numbers["num_reference"] == (
        1451 - 270 if trial else 1451
    )  # a trial is measured on what it does not train on
    assert row["bits_per_dim"] < 8
    assert row["trained_steps"] > 5
    assert abs(row["parameters"] / 250_000 - 1) < 0.05


@pytest.mark.parametrize("contender", ["goalgen fixed bridge", "torchcfm", "diffusers + Accelerate"])
def test_the_speed_of_a_contender_is_measured(contender, tmp_path):
    job = {"contender": contender, "precision": "no", "round": 0}
    row = measured(tmp_path, "speed", job, seconds=0.5, weights=400_000, batch=8)
    assert row["images_per_second"] > 0
    assert abs(row["weights"] / 400_000 - 1) < 0.05
    assert row["peak_mib"] > 0


def test_a_pixelcnn_sees_what_comes_before_and_its_probabilities_sum_to_one():
    torch.manual_seed(0)
    peer = peers.make_peer("PixelCNN", NetworkSpec("mlp", (1, 3, 3), 1, 8, 1, 8, 0.0, 1), 2)
    images = torch.tensor([[(i >> k) & 1 for k in range(9)] for i in range(2**9)]).view(-1, 1, 3, 3) * 2.0 - 1
    with torch.no_grad():
        assert (-peer.nats(images)).exp().sum().item() == pytest.approx(1, abs=1e-4)
        for place in range(9):
            other = images[:1].clone()
            other.view(-1)[place] *= -1
            changed = (peer.mixture(images[:1])[1] - peer.mixture(other)[1]).abs().amax(1).view(-1) > 0
            assert not changed[: place + 1].any()
            assert place == 8 or changed[place + 1 :].any()
        drawn = peer.draw("PixelCNN", 9, torch.zeros(4000, 1, 3, 3), torch.Generator().manual_seed(0))
        frequency = torch.stack([(drawn == image).flatten(1).all(1).float().mean() for image in images])
    assert (frequency - (-peer.nats(images)).exp()).abs().max() < 0.03


def test_where_nothing_is_said_the_benchmark_trains_what_goalgen_chooses(tmp_path):
    splits = load_data(DataConfig())
    config = configure(out=tmp_path / "run", max_steps=2, quiet=True)
    model, _ = fitting.fit(config, splits)
    chosen, _ = suited(splits.train.shape, len(splits.train), False)
    assert (model.config.model.environment, model.config.model.width) == (chosen["environment"], chosen["width"])
