"""Strokes: the renderer, the world, the agents, and a run from training to files."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from runs import different, stop_in_step, tensors, tiny_config, tiny_options
from torch import Tensor

from goalgen import check_environment, check_family, cli
from goalgen.blackbox import draw_search
from goalgen.environment import Environment
from goalgen.families import make
from goalgen.families.strokes import Brush, Strokes, StrokesEnvironment, draw, paint
from goalgen.families.strokes.environment import read_inks
from goalgen.families.strokes.render import boxes, error_changes
from goalgen.family import Family
from goalgen.model import load
from goalgen.settings import configure
from goalgen.task import Task
from goalgen.training import train

TINY = {
    "environment": "strokes",
    "start": "constant:0",
    "width": 8,
    "head_width": 8,
    "horizon": 3,
    "stroke_candidates": 12,
}


def curves(count: int, size: float = 28.0, seed: int = 0, channels: int = 1) -> Brush:
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(count, 3, 2, generator=generator) * size
    width = 0.7 + 4 * torch.rand(count, generator=generator)
    colour = torch.rand(count, channels, generator=generator) * 2 - 1
    return Brush(points, width, colour, 0.3 + 0.7 * torch.rand(count, generator=generator))


def oversampled(stroke: Brush, size: int, by: int = 8) -> Tensor:
    """Coverage of one curve by counting points of a fine grid that lie near points close together on it."""
    t = torch.linspace(0, 1, 400)[:, None]
    a, b, c = stroke.points[0]
    line = (1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c
    axis = (torch.arange(size * by) + 0.5) / by
    grid = torch.cartesian_prod(axis, axis).flip(1)  # x, y
    inside = (torch.cdist(grid, line).amin(1) <= stroke.width[0] / 2).float().view(1, 1, size * by, size * by)
    return torch.nn.functional.avg_pool2d(inside, by)[0, 0]


# The renderer


@pytest.mark.parametrize("seed", range(6))
def test_a_stroke_covers_what_a_fine_grid_says(seed):
    stroke = dataclasses.replace(curves(1, 20.0, seed), colour=torch.ones(1, 1), opacity=torch.ones(1))
    covered = (draw(-torch.ones(1, 1, 20, 20), stroke)[0, 0] + 1) / 2
    assert (covered - oversampled(stroke, 20)).abs().mean() < 0.01
    assert covered.max() <= 1


def test_what_lies_outside_of_a_box_is_not_touched_and_off_the_canvas_nothing_is():
    strokes = curves(40)
    canvas = torch.rand(40, 1, 28, 28)
    after = draw(canvas, strokes)
    touched = torch.zeros(40, 784, dtype=torch.bool)
    found = []
    for box in boxes(strokes, (28, 28)):
        touched[box.rows[:, None], box.index] = True
        found.append(box.rows)
    assert torch.equal(torch.cat(found).sort().values, torch.arange(40))
    assert torch.equal(after.flatten(1)[~touched], canvas.flatten(1)[~touched])
    assert touched.float().mean() < 0.8
    away = dataclasses.replace(strokes, points=strokes.points + 100)
    assert torch.equal(draw(canvas, away), canvas)
    partly = dataclasses.replace(strokes, points=strokes.points - 14)
    whole = draw(
        torch.nn.functional.pad(canvas, (14, 0, 14, 0)), dataclasses.replace(partly, points=partly.points + 14)
    )
    assert torch.allclose(draw(canvas, partly), whole[..., 14:, 14:], atol=1e-5)


def test_the_box_gives_the_same_as_the_whole_canvas():
    """However strokes are grouped: alone, or many of many sizes together, on canvases that are not square."""
    strokes, canvas = curves(30, channels=3), torch.rand(30, 3, 22, 31) * 2 - 1
    together = draw(canvas, strokes)
    for i in range(30):
        alone = draw(canvas[i : i + 1], strokes[slice(i, i + 1)])
        assert torch.allclose(alone[0], together[i], atol=1e-5)


def test_the_same_strokes_on_a_larger_canvas_are_the_same_drawing():
    strokes = [dataclasses.replace(curves(8, seed=i), width=2 + 2 * torch.rand(8)) for i in range(3)]
    small = paint(-torch.ones(8, 1, 28, 28), strokes)
    for scale in (2, 5):
        large = paint(-torch.ones(8, 1, 28 * scale, 28 * scale), strokes, scale)
        assert (torch.nn.functional.avg_pool2d(large, scale) - small).abs().mean() < 0.01 * 2


def test_a_change_of_error_is_known_without_drawing():
    generator = torch.Generator().manual_seed(0)
    canvas, goal = (torch.rand(5, 3, 28, 28, generator=generator) * 2 - 1 for _ in range(2))
    strokes = curves(35, channels=3)
    change, _ = error_changes(canvas, goal, strokes)  # (7, 5)
    after = draw(canvas.repeat(7, 1, 1, 1), strokes)
    error = (after - goal.repeat(7, 1, 1, 1)).square().sum((1, 2, 3)) - (canvas - goal).square().sum((1, 2, 3)).repeat(
        7
    )
    assert torch.allclose(change.flatten(), error, atol=1e-2)


def test_strokes_are_as_exact_where_networks_run_in_half_precision():
    strokes, canvas = curves(20), -torch.ones(20, 1, 28, 28)
    with torch.autocast("cpu", torch.bfloat16):
        rough, change = draw(canvas, strokes), error_changes(canvas, canvas + 1, strokes)[0]
    assert torch.equal(rough, draw(canvas, strokes))
    assert torch.equal(change, error_changes(canvas, canvas + 1, strokes)[0])


@pytest.mark.gpu
def test_a_gpu_draws_the_same():
    world = environment()
    state = world.initial(-torch.ones(50, 1, 12, 12))
    action = world.action_space.uniform(torch.rand(50, 5, generator=torch.Generator().manual_seed(0)))
    h = torch.zeros(50, dtype=torch.int64)
    there = environment().cuda().transition(h.cuda(), state.cuda(), action.cuda())
    assert torch.allclose(there.cpu(), world.transition(h, state, action), atol=1e-5)


def test_degenerate_strokes_are_dots_and_nothing_is_not_a_number():
    point = torch.full((2, 3, 2), 14.0)
    dots = Brush(point, torch.tensor([4.0, 0.01]), torch.ones(2, 1), torch.ones(2))
    covered = ((draw(-torch.ones(2, 1, 28, 28), dots) + 1) / 2).sum((1, 2, 3))
    assert covered[0].item() == pytest.approx(math.pi * 4, rel=0.05)
    assert 0 <= covered[1].item() < 0.1
    assert torch.isfinite(covered).all()


# The world


def environment(**changes) -> StrokesEnvironment:
    given = {"shape": (1, 12, 12), "horizon": 4, "grid": (6, 6), "bends": 3, "widths": [1.0, 3.0]}
    return StrokesEnvironment(**given | {"inks": read_inks("white white/0.5", 1)} | changes)


def test_it_keeps_the_protocol():
    check_environment(environment())
    check_environment(environment(shape=(3, 8, 12), grid=(4, 6), inks=read_inks("red #00f/0.3", 3)))


def test_a_stop_ends_the_drawing_and_the_pen_is_where_the_last_stroke_ended():
    world = environment()
    state = world.initial(torch.full((2, 1, 12, 12), -1.0))
    assert world.pen(state).tolist() == [0, 0]
    h, stroke = torch.zeros(2, dtype=torch.int64), torch.tensor([[7, 22, 4, 1, 0], [36, 0, 0, 0, 0]])
    after = world.transition(h, state, stroke)
    assert world.ended(after).tolist() == [False, True]
    assert world.pen(after).tolist() == [23, 0]
    assert (world.canvas(after)[0] > 0).any()
    assert torch.equal(world.canvas(after)[1], world.canvas(state)[1])
    again = world.transition(h + 1, after, stroke[:1].expand(2, -1))
    assert torch.equal(again[1], after[1])
    assert world.ended(again).tolist() == [False, True]


def test_white_ink_only_adds_light():
    world = environment()
    state = world.initial(torch.rand(60, 1, 12, 12) * 2 - 1)
    action = world.action_space.uniform(torch.rand(60, 5, generator=torch.Generator().manual_seed(0)))
    after = world.transition(torch.zeros(60, dtype=torch.int64), state, action)
    assert (world.canvas(after) - world.canvas(state)).min() > -1e-6


def test_what_candidates_change_is_what_the_world_does():
    world, generator = environment(), torch.Generator().manual_seed(0)
    state = world.initial(torch.rand(3, 1, 12, 12, generator=generator) * 2 - 1)
    goal = torch.rand(3, 1, 12, 12, generator=generator) * 2 - 1
    actions = world.action_space.uniform(torch.rand(30, 5, generator=generator)).view(10, 3, 5)
    actions[0, :] = torch.tensor([36, 0, 0, 0, 0])
    found, _ = world.error_changes(state, goal, actions)
    assert (found[0] == 0).all()
    for k in range(10):
        after = world.canvas(world.transition(torch.zeros(3, dtype=torch.int64), state, actions[k]))
        error = (after - goal).square().sum((1, 2, 3)) - (world.canvas(state) - goal).square().sum((1, 2, 3))
        assert torch.allclose(found[k], error, atol=1e-3)


@pytest.mark.parametrize(
    ("inks", "canvas", "goal", "lost"),
    [
        ("white", 0.5, -1.0, 2.25),  # light where there must be none
        ("white", -1.0, 0.5, 0.0),
        ("white white/0.5", 0.5, 0.25, 0.0625),
        ("white black", 0.5, -1.0, 0.0),
        ("black", -1.0, 0.5, 2.25),
        ("#808080", -1.0, 1.0, (1 - 1 / 255) ** 2),  # no ink is brighter
        ("#808080", 1.0, -1.0, (1 + 1 / 255) ** 2),
    ],
)
def test_what_no_ink_could_mend_is_lost(inks, canvas, goal, lost):
    world = environment(inks=read_inks(inks, 1))
    state = world.initial(torch.full((2, 1, 12, 12), canvas))
    found = world.lost(state, torch.full((2, 1, 12, 12), goal))
    assert torch.allclose(found, torch.full((2,), 144 * lost))


def test_a_stroke_says_what_it_loses_for_good():
    """White where there must be black: no later stroke mends it, so it does not count as what later strokes bring."""
    world, generator = environment(), torch.Generator().manual_seed(0)
    state = world.initial(torch.rand(3, 1, 12, 12, generator=generator) * 2 - 1)
    goal = torch.rand(3, 1, 12, 12, generator=generator) * 2 - 1
    actions = world.action_space.uniform(torch.rand(30, 5, generator=generator)).view(10, 3, 5)
    _, found = world.error_changes(state, goal, actions)
    for k in range(10):
        after = world.transition(torch.zeros(3, dtype=torch.int64), state, actions[k])
        assert torch.allclose(found[k], world.lost(after, goal) - world.lost(state, goal), atol=1e-3)
    assert (found > 1).any()


# The agents


def family(**changes) -> Strokes:
    built = make(configure(**TINY | changes), (1, 8, 8), 17)
    assert isinstance(built, Strokes)
    return built


def goals(count: int, seed: int = 0) -> Tensor:
    """Bright squares on black, (count, 1, 8, 8)."""
    generator = torch.Generator().manual_seed(seed)
    images = -torch.ones(count, 1, 8, 8)
    for image, (top, left) in zip(images, torch.randint(0, 5, (count, 2), generator=generator).tolist(), strict=True):
        image[0, top : top + 3, left : left + 3] = 1
    return images


def streams(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(len(name))


@pytest.mark.parametrize(
    "changes", [{}, {"network": "transformer", "patch": 2}, {"stroke_bends": 1, "stroke_widths": 1}]
)
def test_it_keeps_what_a_family_promises(changes):
    check_family(family(**changes))
    rgb = make(configure(**TINY | changes), (3, 8, 12), 256)
    check_family(rgb)
    assert rgb.environment.action_space.sizes[4] == 27


@pytest.mark.parametrize("learner", ["improved", "gradient"])
def test_no_gradient_passes_through_the_world(learner, monkeypatch):
    """Nothing that a transition gives out has a gradient, and every network learns all the same."""
    model = family(stroke_learner=learner)
    given: list[Tensor] = []
    transition = StrokesEnvironment.transition

    def watched(self, h, state, action, offer=None):
        given.append(transition(self, h, state, action, offer))
        return given[-1]

    monkeypatch.setattr(StrokesEnvironment, "transition", watched)
    start = -torch.ones(8, 1, 8, 8).requires_grad_()
    task = Task(start, goals(8), episodes=4)
    learned = model.learn(task, model.draw(8, streams), clock=None)
    assert len(given) == 3
    assert not any(state.requires_grad for state in given)
    learned.loss.backward()
    for name, parameter in model.named_parameters():
        if not (name.startswith("gc_agent.critic") or "stop" in name or "from_pen" in name):
            assert parameter.grad is not None, name
    assert model.gc_agent.pointer.maps.weight.grad.abs().sum() > 0
    assert model.s_agent.pointer.maps.weight.grad.abs().sum() > 0


def test_what_is_said_of_the_bound_is_of_the_agent_alone(monkeypatch):
    """One episode in eight is the GC-agent's own: the same as a rollout of it."""
    from goalgen.bound import bound
    from goalgen.rollout import rollout

    model = family()
    task, draws = Task(-torch.ones(17, 1, 8, 8), goals(17)), model.draw(17, streams)
    learned = model.learn(task, draws, clock=None)
    rows = slice(None, None, 8)
    alone = Task(task.start[rows], task.goal[rows])
    expected = bound(model, rollout(model, alone, draws["noise"][:, rows]))
    assert torch.allclose(learned.bound.total, expected.total.detach(), atol=1e-3)


def test_candidates_at_random_lie_on_missing_ink():
    model, goal = family(), goals(6)
    seen = model.see(0, model.environment.initial(-torch.ones(6, 1, 8, 8)))
    (policy, count), (stop, one) = model.search.proposer(seen, goal, model.s_agent.decide(seen))
    assert (count, one) == (model.search.more - 1, 1)
    actions = policy.sample_many(torch.rand(50, 6, 5, generator=torch.Generator().manual_seed(0)))
    rows = torch.arange(6).expand(50, -1)
    assert (goal.flatten(1)[rows, actions[..., 0]] > 0).float().mean() > 0.95
    assert torch.isfinite(policy.log_prob_many(actions)).all()
    stops = stop.sample_many(torch.rand(2, 6, 5))
    assert (stops == torch.tensor([64, 0, 0, 0, 0])).all()
    assert (stop.log_prob_many(stops) == 0).all()
    assert (stop.log_prob_many(actions) == -torch.inf).all()


def test_the_critic_sees_what_the_world_does():
    model, goal = family(), goals(5)
    critic = model.gc_agent.critic
    with torch.no_grad():
        critic.cost.fill_(-2.0)
    seen = model.see(1, model.environment.initial(-torch.ones(5, 1, 8, 8)))
    draws = draw_search(model.environment, 5, model.search, torch.Generator().manual_seed(0))["candidates"][0]
    actions = torch.stack([model.environment.action_space.uniform(noise) for noise in draws.transpose(0, 1)])
    actions[0] = torch.tensor([64, 0, 0, 0, 0])
    quick = critic.look(model, seen, goal, model.s_agent.decide(seen), actions)
    slow = super(type(critic), critic).look(model, seen, goal, model.s_agent.decide(seen), actions)
    assert torch.allclose(quick, slow, atol=1e-3)
    assert (critic.value(seen, goal) > -critic.missing(seen, goal)).all()


# Runs


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    settings = TINY | {"max_steps": 6, "log_every": 5, "picture_every": 0}
    return train(tiny_config(tmp_path_factory.mktemp("strokes") / "run", **settings)).folder


def test_it_is_trained_saved_and_measured(run, tmp_path, capsys):
    assert all(torch.isfinite(t).all() for t in tensors(run).values())
    file = tmp_path / "numbers.json"
    assert cli.main(["evaluate", str(run), "--json", str(file), "--num-samples", "20", "--iw-images", "9", "--features", "pixel-pca"]) == 0  # fmt: skip
    assert "kl deviation by step: " in capsys.readouterr().out
    numbers = json.loads(file.read_text())
    assert numbers["nll_bound_nats"] == pytest.approx(numbers["reconstruction_nats"] + numbers["kl_nats"], rel=1e-5)
    assert 0 <= numbers["strokes_per_image"] <= 3
    assert len(numbers["kl_deviation_per_step"]) == 3
    assert 0 < numbers["squared_error"] < 1
    assert numbers["iw_bound_nats"] < numbers["nll_bound_nats_on_iw_images"] + 1
    model = load(run)
    many, few = model.sample(70, seed=3), model.sample(2, seed=3, first=66)
    assert torch.equal(few.images, many.images[66:68])


@pytest.mark.parametrize("learner", ["improved", "gradient"])
def test_stopped_and_resumed_it_is_the_uninterrupted_run(learner, tmp_path, monkeypatch):
    settings = TINY | {
        "stroke_learner": learner,
        "max_steps": 8,
        "eval_every": 3,
        "checkpoint_every": 4,
        "episodes_per_goal": 2,
    }
    whole = train(tiny_config(tmp_path / "whole", **settings))
    stop_in_step(monkeypatch, 4)
    config = tiny_config(tmp_path / "halves", **settings)
    assert train(config).interrupted
    assert different(whole.folder, train(config).folder) == []


def test_it_learns_to_paint():
    """Squares, in two strokes: from nothing to where little is missing, by the GC-agent alone; and what it does is foretold."""
    from goalgen.bound import bound
    from goalgen.rollout import rollout

    model = family(
        horizon=2, width=16, head_width=16, stroke_bends=1, stroke_widths=2, stroke_thinnest=0.2, stroke_thickest=0.4
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    task, test = Task(-torch.ones(16, 1, 8, 8), goals(16)), Task(-torch.ones(64, 1, 8, 8), goals(64, seed=1))
    noise = model.draw(64, streams)["noise"]

    @torch.no_grad()
    def error() -> tuple[float, float]:
        trajectory = rollout(model, test, noise)
        canvas = model.environment.canvas(trajectory.states[-1])
        return (canvas - test.goal).square().mean().item() / 4, bound(model, trajectory).kl.sum(0).mean().item()

    before, _ = error()
    for step in range(60):
        draws = model.draw(16, lambda name, step=step: torch.Generator().manual_seed(1000 * step + len(name)))
        learned = model.learn(task, draws, clock=None)
        optimizer.zero_grad()
        learned.loss.backward()
        optimizer.step()
    after, kl = error()
    assert before > 0.1
    assert after < 0.04
    assert kl < 2 * (6 + 6) * 0.7  # far less than naming two strokes at random, log(64 * 64) each and more


REFUSED = {
    "an mlp": ({"network": "mlp"}, "--network unet or transformer"),
    "even bends": ({"stroke_bends": 4}, "--stroke-bends must be odd"),
    "no candidates": ({"stroke_candidates": 2}, "--stroke-candidates must be at least 4"),
    "thin and thick": ({"stroke_thickest": 0.01}, "--stroke-thickest 0.01 is below --stroke-thinnest 0.045"),
    "no width": ({"stroke_thinnest": 0.0}, "--stroke-thinnest must be above 0"),
    "no colour": ({"stroke_inks": "white ultragreen"}, "--inks 'ultragreen' is no colour"),
    "no ink": ({"stroke_inks": " "}, "--inks names no colour"),
    "an ink that is too strong": ({"stroke_inks": "white/2"}, "the strength must be above 0 and at most 1"),
    "a share above 1": ({"stroke_search": 1.5}, "--stroke-search must be from 0 to 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_what_makes_no_model_is_refused_in_one_line(case, tmp_path, capsys):
    settings, message = REFUSED[case]
    assert cli.main(["train", *tiny_options(tmp_path / "run", **TINY | settings)]) == 2
    error = capsys.readouterr().err
    assert message in error.replace("--stroke-inks", "--inks")
    assert len(error.splitlines()) == 1


def test_it_is_a_black_box_like_any():
    assert isinstance(family().environment, Environment)
    assert family().environment.black_box
    assert isinstance(family(), Family)
