"""Stages: a sequence of families is a family; exact where it can be enumerated."""

from __future__ import annotations

import json

import pytest
import torch
from runs import different, stop_in_step, tiny_config, tiny_options
from tiny import LEVELS, SHAPE, tiny_goals, tiny_start

import goalgen
from goalgen import cli, exact
from goalgen.bound import bound
from goalgen.check import check_family
from goalgen.families import make
from goalgen.learning import Clock
from goalgen.rollout import draw_noise, rollout, sample_rollout
from goalgen.settings import configure
from goalgen.task import Task
from goalgen.training import train

KINDS = {
    "code:1+bridge:3": {"code_size": 3, "code_modes": 4},
    "code:2+reveal:4": {"code_size": 3, "reveal_modes": 3, "code_modes": 1},
    "latent:1+bridge:3": {"latent_size": 3, "gc_agent": "fixed"},
    "latent:2+latent:1": {"latent_size": 3, "latent_modes": 4},
    "bridge:2+bridge:2": {},
    "proposals:2+bridge:2": {"num_proposals": 4},
    "code:1+latent:1+bridge:2": {"code_size": 3, "latent_size": 3, "code_modes": 4},
}


def stages(spec: str, shape=(1, 8, 8), **settings):
    values = {"environment": spec, "width": 16, "depth": 1, "head_width": 8, "patch": 2}
    return make(configure(**values | KINDS.get(spec, {}) | settings), shape, 17)


def jittered(family, size: float = 0.2):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in family.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
    return family.eval()


@pytest.mark.parametrize("network", ["mlp", "unet", "transformer"])
@pytest.mark.parametrize("spec", sorted(KINDS))
def test_every_sequence_keeps_what_a_family_promises(spec, network):
    family = stages(spec, network=network)
    check_family(family)
    assert family.horizon == sum(stage.horizon for stage in family.parts)


@pytest.mark.parametrize("spec", sorted(KINDS))
def test_what_is_learned_from_estimates_whole_episodes(spec):
    """J of the first stages' episodes and the last one's own way, averaged, is J of whole episodes."""
    family, count = jittered(stages(spec), 0.05), 3000
    goals = (tiny_goals(1, levels=17, shape=(1, 8, 8))).expand(count, -1, -1, -1)
    task = Task(torch.zeros_like(goals), goals)
    draws = family.draw(count, lambda name: torch.Generator().manual_seed(len(name)))
    with torch.no_grad():
        noise = draw_noise(family.environment, count, torch.Generator().manual_seed(9))
        whole = bound(family, rollout(family, task, noise))
        ours = family.learn(task, draws, Clock(done=1.0)).bound
        held_out = family.estimate(task, lambda _: torch.Generator().manual_seed(5))
    for found in (ours, held_out):
        assert found.kl.shape == whole.kl.shape
        error = (found.total.var() / count + whole.total.var() / count).sqrt()
        assert (found.total.mean() - whole.total.mean()).abs() < 5 * error + 1e-3 * whole.total.mean()


def test_bound_is_exact_where_it_can_be_enumerated():
    """Two stages of choices: by summing over all action sequences J is never below -log p, and meets it with the best GC-agent."""
    values = {"environment": "proposals:2+proposals:1", "num_proposals": 3, "width": 16, "depth": 1, "head_width": 8}
    family = jittered(make(configure(**values), SHAPE, LEVELS).double(), 0.3)
    torch.set_default_dtype(torch.float64)
    try:
        task = Task(tiny_start(6).double(), tiny_goals(6).double())
        nll = -exact.log_likelihood(family, task)
        assert (exact.expected_bound(family, task) - nll).min() > 0
        exact.OptimalGCAgent(family)
        torch.testing.assert_close(exact.expected_bound(family, task), nll, atol=1e-6, rtol=0)
        axis = torch.linspace(-1, 1, LEVELS)
        every = torch.cartesian_prod(axis, axis, axis, axis).view(-1, *SHAPE)
        total = exact.log_likelihood(family, Task(torch.zeros_like(every), every)).exp().sum()
        assert total.item() == pytest.approx(1, abs=1e-6)
    finally:
        torch.set_default_dtype(torch.float32)


def test_gradients_reach_the_first_stage_through_canvas_and_memory():
    for spec, parameter in (
        ("code:1+bridge:3", "stages.0.gc_agent.head.weight"),
        ("latent:1+bridge:3", "stages.0.gc_agent.heads.0.weight"),
        ("code:2+reveal:4", "stages.0.gc_agent.head.weight"),
    ):
        family = jittered(stages(spec))
        goals = tiny_goals(6, levels=17, shape=(1, 8, 8))
        draws = family.draw(6, lambda name: torch.Generator().manual_seed(0))
        learned = family.learn(Task(torch.zeros_like(goals), goals), draws, Clock())
        # The KL of the code itself has no weight yet: what comes is from the stage after it.
        (gradient,) = torch.autograd.grad(learned.loss, [family.get_parameter(parameter)])
        assert gradient.abs().sum() > 0
    frozen = jittered(stages("proposals:2+bridge:2"))
    draws = frozen.draw(6, lambda name: torch.Generator().manual_seed(0))
    frozen.learn(Task(torch.zeros_like(goals), goals), draws, Clock()).loss.backward()
    assert frozen.stages[0].gc_agent.potential.log_sigma.grad.abs().sum() > 0  # by its own loss
    assert frozen.stages[0].s_agent.weight.grad.abs().sum() > 0  # through the canvas


@pytest.mark.parametrize("network", ["mlp", "unet", "transformer"])
def test_a_code_is_read_from_memory_and_leaves_the_canvas_alone(network):
    family = jittered(stages("code:2+bridge:3", network=network, code_size=3, code_modes=4))
    task = Task(torch.zeros(4, 1, 8, 8))
    noise = draw_noise(family.environment, 4, torch.Generator().manual_seed(0))
    other = noise.clone()
    other[:2] = draw_noise(family.environment, 4, torch.Generator().manual_seed(1))[:2]
    one, two = (sample_rollout(family, task, n) for n in (noise, other))
    world = family.environment
    assert torch.equal(world.canvases(one.states[:3]), torch.zeros(3, 4, 1, 8, 8))
    assert (world.memory(one.states[1])[:, 3:] == 0).all()
    torch.testing.assert_close(world.memory(one.states[2])[:, :3], one.actions[0][:, :3])
    torch.testing.assert_close(world.memory(one.states[-1])[:, 3:], one.actions[1][:, :3])
    assert (world.canvas(one.states[-1]) - world.canvas(two.states[-1])).abs().amax((1, 2, 3)).min() > 1e-4


def test_stages_that_can_skip_take_fewer_steps():
    family = stages("latent:2+bridge:8", latent_size=3)
    assert family.path(None) == list(range(11))
    assert family.path(3) == [0, 1, 2, 10]
    assert family.path(6) == [0, 1, 2, 4, 6, 8, 10]
    with pytest.raises(goalgen.GoalgenError, match="must be 3 to 10, not 2"):
        family.path(2)
    noise = draw_noise(family.environment, 2, torch.Generator().manual_seed(0))
    assert len(sample_rollout(family, Task(torch.zeros(2, 1, 8, 8)), noise, path=family.path(4)).states) == 5
    with pytest.raises(goalgen.GoalgenError, match="takes every step"):
        stages("code:2+reveal:4").path(3)
    two = stages("bridge:4+bridge:4").path(4)
    assert two == [0, 2, 4, 6, 8]


def test_as_few_steps_as_may_be_end_with_the_draft():
    family = stages("code:1+bridge:3").eval()
    assert family.path(1) == [0, 1]
    assert family.path(2) == [0, 1, 4]
    assert family.path(4) == [0, 1, 2, 3, 4]
    with pytest.raises(goalgen.GoalgenError, match="must be 1 to 4, not 0"):
        family.path(0)
    with pytest.raises(goalgen.GoalgenError, match="must be 2 to 4, not 1"):
        stages("latent:1+bridge:3", first_look=False).path(1)
    model = goalgen.Model(family, configure(environment="code:1+bridge:3"), {}, torch.zeros(1, 8, 8), "ema")
    draft, whole = model.sample(3, steps=1, guesses=True), model.sample(3, guesses=True)
    assert torch.equal(draft.images, whole.guesses[0])  # the same draft that the rest of the bridge begins from
    assert torch.equal(draft.images, draft.guesses[0])
    assert (draft.network_evaluations, draft.sampler) == (1, "1 of 4 steps, the draft")
    with pytest.raises(goalgen.GoalgenError, match="one step more"):
        model.sample(3, steps=1, draw_pixels=True)


@pytest.fixture(scope="module", params=["code:1+bridge:3", "code:1+latent:1+bridge:2", "proposals:2+bridge:2"])
def spec(request):
    return request.param


FREQUENT = {"horizon": 10, "max_steps": 24, "log_every": 4, "eval_every": 7, "checkpoint_every": 9, "dropout": 0.1}


@pytest.fixture(scope="module")
def run(spec, tmp_path_factory):
    return train(
        tiny_config(tmp_path_factory.mktemp("stages") / "run", **FREQUENT, environment=spec, **KINDS[spec])
    ).folder


def test_a_sequence_is_trained_resumed_saved_sampled_and_measured(spec, run, tmp_path, monkeypatch, capsys):
    stop_in_step(monkeypatch, 12)
    config = tiny_config(tmp_path / "halves", **FREQUENT, environment=spec, **KINDS[spec])
    assert train(config).interrupted
    assert different(run, train(config).folder) == []
    model = goalgen.load(run)
    again = goalgen.load(model.save(tmp_path / "saved"))
    assert torch.equal(model.sample(3).images, again.sample(3).images)
    assert torch.equal(model.sample(70, seed=3).images[66:68], model.sample(2, seed=3, first=66).images)
    file = tmp_path / "numbers.json"
    options = [
        "--json",
        str(file),
        "--num-samples",
        "20",
        "--iw-images",
        "9",
        "--features",
        "pixel-pca",
        "--num-test",
        "30",
    ]
    assert cli.main(["evaluate", str(run), *options, "--correlation", "1"]) == 0
    assert json.loads(file.read_text())["sampler"] == "correlation 1"
    capsys.readouterr()
    assert cli.main(["evaluate", str(run), *options, "--force"]) == 0
    numbers = json.loads(file.read_text())
    assert [name for name, _ in numbers["kl_by_stage"]] == spec.split("+")
    assert sum(nats for _, nats in numbers["kl_by_stage"]) == pytest.approx(numbers["kl_nats"], rel=0.2)
    assert "KL by stage (nats): " in capsys.readouterr().out
    assert cli.main(["sample", str(run), "--out", str(tmp_path / "s"), "--num", "3", "--trajectory"]) == 0
    assert cli.main(["plot", str(run), "--out", str(tmp_path / "plots")]) == 0


REFUSED = {
    "code:1+maze:2": "no environment is called 'maze'",
    "code:1+bridge:x": "'bridge:x' needs a number of steps",
    "code:0+bridge:2": "'code:0' needs a number of steps",
    "bridge:4": "is one stage; write --environment bridge --horizon 4",
    "bridge:2+code:1": "the last stage must draw",
    "code:1+bridge:2 --gc-agent posterior": "no stage of code:1+bridge:2 has a GC-agent 'posterior'",
    "code:1+bridge:2 --num-proposals 9": "--num-proposals is for --environment proposals",
    "code:1+bridge:2 --code-size 0": "--code-size must be at least 1",
}


@pytest.mark.parametrize("spec", sorted(REFUSED))
def test_what_makes_no_sequence_is_refused_in_one_line(spec, tmp_path, capsys):
    environment, *more = spec.split()
    options = tiny_options(tmp_path / "run", environment=environment)
    assert cli.main(["train", *options, *more]) == 2
    error = capsys.readouterr().err
    assert REFUSED[spec] in error
    assert len(error.splitlines()) == 1
