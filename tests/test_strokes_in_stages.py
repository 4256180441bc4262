"""Strokes as a stage: a drawing that later stages work out, or one that an earlier stage plans."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from runs import different, stop_in_step, tiny_config, tiny_options
from torch import Tensor

import goalgen
from goalgen import check_family, cli, exact
from goalgen.agents import Agents
from goalgen.bound import bound
from goalgen.families import make
from goalgen.families.stages import Stages
from goalgen.family import Family
from goalgen.learning import Clock
from goalgen.likelihoods import Likelihood
from goalgen.rollout import draw_noise, rollout
from goalgen.settings import configure
from goalgen.task import Task
from goalgen.training import train

SMALL = {"start": "constant:0", "width": 8, "depth": 1, "head_width": 8, "stroke_candidates": 12}
KINDS = {
    "strokes:2+bridge:2": {},
    "strokes:2+latent:1": {"latent_size": 3},
    "strokes:1+reveal:2": {"reveal_modes": 3},
    "strokes:2+strokes:1": {},
    "code:1+strokes:2": {"code_size": 3, "code_modes": 4},
    "code:1+strokes:2+bridge:2": {"code_size": 3, "code_modes": 4},
}


def stages(spec: str, shape=(1, 8, 8), **settings) -> Stages:
    built = make(configure(environment=spec, **SMALL | KINDS.get(spec, {}) | settings), shape, 17)
    assert isinstance(built, Stages)
    return built


def jittered(family: Family, size: float) -> Family:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in family.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
    return family.eval()


def streams(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(len(name))


def squares(count: int, seed: int = 0) -> Tensor:
    """Bright squares on black with an edge in grey, (count, 1, 8, 8)."""
    generator = torch.Generator().manual_seed(seed)
    images = -torch.ones(count, 1, 8, 8)
    for image, (top, left) in zip(images, torch.randint(0, 5, (count, 2), generator=generator).tolist(), strict=True):
        image[0, top : top + 3, left : left + 3] = 1
        image[0, top + 2, left : left + 3] = 0
    return images


@pytest.mark.parametrize("network", ["unet", "transformer"])
@pytest.mark.parametrize("spec", sorted(KINDS))
def test_every_sequence_keeps_what_a_family_promises(spec, network):
    check_family(stages(spec, network=network, patch=2))


def test_a_stage_that_needs_a_network_brings_it():
    assert make(configure(environment="strokes:2+bridge:2", start="constant:0"), (1, 8, 8), 17).parts[1].s_agent.torso


# The bound, where it can be summed


FEW = {"stroke_bends": 1, "stroke_widths": 1, "stroke_inks": "white", "stroke_thinnest": 0.3, "stroke_thickest": 0.3}
"""A stroke is one of sixteen, or a stop."""


class Rest(Likelihood):
    """log p(g | canvas) of the stages after the strokes, whose J is no estimate: they copy the goal."""

    def __init__(self, after: Family) -> None:
        super().__init__()
        self.after = after

    def log_prob(self, goal: Tensor, state: Tensor, *, hold_scale: bool = False) -> Tensor:
        canvas = state[:, :-2].view(-1, *self.after.shape)
        noise = torch.zeros(self.after.horizon, len(goal), *self.after.environment.action_space.shape)
        return -bound(self.after, rollout(self.after, Task(canvas, goal), noise)).total

    def draw(self, state: Tensor, generator: torch.Generator) -> Tensor:
        raise NotImplementedError


@pytest.fixture(scope="module")
def summable() -> tuple[Stages, Agents]:
    """Two strokes among seventeen, then a reveal; and the same with the reveal as the likelihood of the strokes."""
    family = stages("strokes:2+reveal:2", (1, 4, 4), patch=2, reveal_modes=3, **FEW)
    jittered(family, 0.1)
    first, after = family.parts
    whole = Agents(first.environment, first.s_agent, first.gc_agent, Rest(after), family.shape, family.levels)
    return family, whole


def test_what_is_learned_from_has_the_bound_of_the_sequence_for_its_mean(summable):
    """Summed over all drawings: J of training and of held-out goals, with the canvases of the GC-agent's own strokes."""
    family, whole = summable
    count = 2000
    goal = -torch.ones(1, 1, 4, 4)
    goal[0, 0, 1:3, 1] = 0.5
    task = Task(-torch.ones(count, 1, 4, 4), goal.expand(count, -1, -1, -1))
    with torch.no_grad():
        expected = exact.expected_bound(whole, Task(task.start[:1], goal)).item()
        nll = -exact.log_likelihood(whole, Task(task.start[:1], goal)).item()
        assert expected > nll
        learned = family.learn(task, family.draw(count, streams), Clock()).bound
        held_out = family.estimate(task, streams)
        noise = draw_noise(family.environment, count, torch.Generator().manual_seed(9))
        episodes = bound(family, rollout(family, task, noise))
    for found in (learned, held_out, episodes):
        assert found.kl.shape == (4, count)
        error = found.total.std().item() / count**0.5
        assert error < 0.02 * expected  # or the next line says little
        assert found.total.mean().item() == pytest.approx(expected, abs=5 * error)


def test_the_bound_of_strokes_after_strokes_is_met_by_the_best_gc_agent():
    family = jittered(stages("strokes:1+strokes:1", (1, 4, 4), patch=2, **FEW), 0.1)
    task = Task(-torch.ones(2, 1, 4, 4), torch.randint(0, 17, (2, 1, 4, 4), generator=streams("x")) / 8.0 - 1)
    with torch.no_grad():
        nll = -exact.log_likelihood(family, task)
        assert (exact.expected_bound(family, task) - nll).min() > 1e-3
        exact.OptimalGCAgent(family)
        torch.testing.assert_close(exact.expected_bound(family, task), nll, rtol=1e-4, atol=1e-3)


# What learns from what


def test_strokes_learn_as_if_they_were_the_last_and_what_follows_from_what_they_leave():
    family, goals = stages("strokes:2+bridge:2"), squares(8)
    task, draws = Task(-torch.ones(8, 1, 8, 8), goals), family.draw(8, streams)
    first, last = family.parts

    def gradients(loss: Tensor, module: torch.nn.Module) -> list[Tensor | None]:
        return list(torch.autograd.grad(loss, list(module.parameters()), retain_graph=True, allow_unused=True))

    whole = family.learn(task, draws, Clock()).loss
    alone = first.learn(task, {n.removeprefix("stage 0 "): d for n, d in draws.items() if "stage 0 " in n}, Clock())
    with torch.no_grad():
        drawn = rollout(family, task, draws["before"], steps=2).states[-1]
    drawn_on = dataclasses.replace(task, start=family.environment.canvas(drawn))
    assert (drawn_on.start > -0.9).any()
    after = last.learn(drawn_on, {n.removeprefix("stage 1 "): d for n, d in draws.items() if "stage 1 " in n}, Clock())
    for stage, loss in ((first, alone.loss), (last, after.loss)):
        for ours, expected in zip(gradients(whole, stage), gradients(loss, stage), strict=True):
            assert (ours is None) == (expected is None)
            if ours is not None and expected is not None:
                torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("learner", ["improved", "gradient"])
@pytest.mark.parametrize("spec", ["code:1+strokes:2", "code:1+strokes:2+strokes:1"])
def test_a_code_learns_what_it_tells_the_s_agent(spec, learner):
    """By a gradient through memory; the GC-agent, which knows the goal, has no say in it."""
    settings = {"code_size": 3, "code_modes": 4, "stroke_learner": learner}
    family = jittered(stages(spec, **settings), 0.05)
    draws = family.draw(16, streams)
    learned = family.learn(Task(-torch.ones(16, 1, 8, 8), squares(16), episodes=4), draws, Clock())
    (gradient,) = torch.autograd.grad(learned.loss, [family.get_parameter("stages.0.gc_agent.head.weight")])
    assert gradient.abs().sum() > 0
    assert learned.bound.kl.shape == (family.horizon, 2 if learner == "improved" else 16)
    strokes, memory = family.parts[1], torch.zeros(2, 3, requires_grad=True)
    seen = strokes.see(0, strokes.environment.initial(-torch.ones(2, 1, 8, 8)), memory=memory)
    action = strokes.environment.action_space.uniform(torch.full((2, 5), 0.3))
    decision = strokes.s_agent.decide(seen)
    q = strokes.gc_agent.policy(seen, squares(2), decision)
    (told,) = torch.autograd.grad(decision.policy.log_prob(action).sum(), [memory])
    assert told.abs().sum() > 0
    assert torch.autograd.grad(q.log_prob(action).sum(), [memory], allow_unused=True) == (None,)


def test_what_learns_at_a_rate_of_its_own_does_so_in_a_stage():
    family = stages("strokes:2+bridge:2")
    critic = {id(p) for p in family.parts[0].gc_agent.critic.parameters()}
    peaks = {id(p): group["peak"] for group in family.parameter_groups(0.001, 0.1) for p in group["params"]}
    assert {round(peaks[i], 9) for i in critic} == {0.01}
    assert {peak for i, peak in peaks.items() if i not in critic} == {0.001}


def test_it_learns_to_draw_and_to_work_the_drawing_out():
    big = {"stroke_bends": 1, "stroke_widths": 2, "stroke_thinnest": 0.2, "stroke_thickest": 0.4}
    family = stages("strokes:2+bridge:2", width=16, head_width=16, gc_agent="fixed", first_look=True, **big)
    optimizer = torch.optim.Adam(family.parameter_groups(0.01, 0.0), lr=0.01)
    test = Task(-torch.ones(64, 1, 8, 8), squares(64, seed=1))
    noise = draw_noise(family.environment, 64, torch.Generator().manual_seed(0))

    @torch.no_grad()
    def measured() -> tuple[float, float]:
        episodes = rollout(family, test, noise)
        drawing = family.environment.canvas(episodes.states[2])
        return bound(family, episodes).total.mean().item(), (drawing - test.goal).square().mean().item() / 4

    before = measured()
    for step in range(60):
        draws = family.draw(16, lambda name, step=step: torch.Generator().manual_seed(1000 * step + len(name)))
        task = Task(-torch.ones(16, 1, 8, 8), squares(16, seed=2 + step))
        learned = family.learn(task, draws, Clock(step, step / 60))
        optimizer.zero_grad()
        learned.loss.backward()
        optimizer.step()
    after = measured()
    assert after[0] < 0.5 * before[0]
    assert after[1] < 0.06 < before[1]


# Runs

FREQUENT = {"max_steps": 12, "log_every": 4, "eval_every": 5, "checkpoint_every": 6, "picture_every": 0} | SMALL


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "run"
    return train(tiny_config(folder, **FREQUENT, environment="strokes:3+bridge:4")).folder


def test_stopped_and_resumed_it_is_the_uninterrupted_run(run, tmp_path, monkeypatch):
    stop_in_step(monkeypatch, 7)
    config = tiny_config(tmp_path / "halves", **FREQUENT, environment="strokes:3+bridge:4")
    assert train(config).interrupted
    assert different(run, train(config).folder) == []


def test_it_is_measured_stage_by_stage(run, tmp_path):
    file = tmp_path / "numbers.json"
    options = ["--num-samples", "20", "--iw-images", "9", "--features", "pixel-pca", "--num-test", "30"]
    assert cli.main(["evaluate", str(run), "--json", str(file), *options]) == 0
    numbers = json.loads(file.read_text())
    assert [name for name, _ in numbers["kl_by_stage"]] == ["strokes:3", "bridge:4"]
    assert 0 <= numbers["strokes_per_image"] <= 3
    assert len(numbers["kl_deviation_per_step"]) == 3


def test_the_drawing_is_written_beside_what_became_of_it(run, tmp_path):
    model = goalgen.load(goalgen.load(run).save(tmp_path / "saved"))
    many, few = model.sample(70, seed=3), model.sample(2, seed=3, first=66)
    assert torch.equal(few.images, many.images[66:68])
    assert few.files == many.files[66:68]
    assert set(few.files[0]) == {".svg", ".drawing.svg"}
    paths = [each[".svg"].count(b"<path") for each in many.files]
    assert max(paths) in (1, 2, 3)
    fewer = model.sample(2, seed=3, first=66, steps=4)  # three strokes, and the bridge at once
    assert fewer.network_evaluations == 4
    assert fewer.files == few.files
    assert not torch.equal(fewer.images, few.images)
    with pytest.raises(goalgen.GoalgenError, match="must be 4 to 7, not 3"):
        model.sample(2, steps=3)
    assert cli.main(["sample", str(run), "--out", str(tmp_path / "s"), "--num", "3", "--svg", "--grid", "--trajectory"]) == 0  # fmt: skip
    names = {path.name for path in (tmp_path / "s").iterdir()}
    assert {"00002.png", "00002.svg", "00002.drawing.svg", "grid.svg", "trajectories.png"} <= names
    assert (tmp_path / "s" / "00002.svg").read_bytes() == model.sample(1, first=2).files[0][".svg"]


def test_vectorize_gives_the_drawing_alone(run, tmp_path):
    image = tmp_path / "square.png"
    Image.new("L", (8, 8), 255).save(image)
    assert (
        cli.main(["vectorize", str(run), str(image), "--out", str(tmp_path / "v"), "--budget", "2", "--invert", "no"])
        == 0
    )
    svg = (tmp_path / "v" / "square.svg").read_text()
    assert svg.count("<path") <= 2
    model = goalgen.load(run)
    episode = model.rollout([image])
    canvas = model.family.environment.canvas(episode.states[2])
    shown = torch.tensor(list(Image.open(tmp_path / "v" / "square.png").getdata())).view(8, 8)
    assert (shown / 255 * 2 - 1 - canvas[0, 0]).abs().max() < 0.08  # 17 grey levels


def test_vectorize_refuses_more_strokes_than_the_stage_has(run, tmp_path, capsys):
    image = tmp_path / "square.png"
    Image.new("L", (8, 8), 255).save(image)
    assert cli.main(["vectorize", str(run), str(image), "--out", str(tmp_path / "v"), "--budget", "4"]) == 2
    assert "--budget must be 1 to 3" in capsys.readouterr().err


@pytest.mark.parametrize("spec", ["bridge:2+strokes:3", "latent:1+strokes:3+bridge:2", "proposals:2+strokes:3"])
def test_what_would_not_learn_what_to_draw_is_refused_in_one_line(spec, tmp_path, capsys):
    options = tiny_options(tmp_path / "run", environment=spec, network="unet", start="constant:0")
    assert cli.main(["train", *options]) == 2
    error = capsys.readouterr().err
    assert f"{spec.partition(':')[0]} cannot come before strokes: no gradient passes through strokes" in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("spec", ["code:1+strokes:2", "strokes:2+bridge:2"])
@pytest.mark.parametrize("learner", ["improved", "gradient"])
def test_further_updates_of_a_batch_teach_the_strokes_alone(spec, learner):
    """A gradient passes back to a code, or to what follows, in the first update only."""
    family = stages(spec, stroke_learner=learner, stroke_passes=2, stroke_states=8, learning_rate=1e-3)
    goals = squares(8)
    learned = family.learn(Task(-torch.ones_like(goals), goals), family.draw(8, streams), Clock())
    learned.loss.backward()
    assert len(learned.again) == (3 if learner == "improved" else 1)
    strokes = next(part for part in family.parts if part.name == "strokes")
    (other,) = (part for part in family.parts if part is not strokes)
    assert any(p.grad is not None for p in other.parameters())
    for lesson in learned.again:
        family.zero_grad()
        lesson().backward()
        assert all(p.grad is None for p in other.parameters())
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in strokes.gc_agent.parameters())
