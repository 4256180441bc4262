"""The worlds that docs/environments.md shows: its blocks run, and what it says of them holds."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import goalgen
from goalgen import families

PAGE = Path(__file__).parents[1] / "docs" / "environments.md"


def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def gain(run: Path) -> float:
    """Bits/dim by which training brought down the bound of test images."""
    model = goalgen.load(run)
    untrained = goalgen.Model(families.make(model.config, model.shape, model.levels), model.config, {}, model.start_image, "raw")  # fmt: skip
    images = goalgen.load_data(model.config.data).test.images[:100]
    before, after = (m.nll_bound(images).total.mean() for m in (untrained, model))
    return float(model.bits_per_dim(before - after))


@pytest.fixture(scope="module")
def page():
    """What the blocks leave behind, and the names registered by them forgotten again; without stable-baselines3 all but the last."""
    names: dict = {"__name__": "page"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(families, "_FAMILIES", families.families())
        for block in blocks():
            if "stable_baselines3" in block:
                pytest.importorskip("stable_baselines3")
            exec(compile(block, str(PAGE), "exec"), names)
        yield names


def test_the_world_is_short_and_learns(page):
    assert len([line for line in blocks()[0].splitlines() if line.strip()]) <= 32
    assert gain(page["folder"] / "spots") > 0.1
    again = goalgen.load(page["saved"])
    assert torch.equal(again.sample(3).images, page["model"].sample(3).images)


def test_the_same_world_is_learned_as_a_black_box(page, tmp_path):
    """Nothing but the one attribute; no gradient is left, and the bound falls all the same."""

    class Closed(page["Spots"]):
        black_box = True

        def transition(self, h, state, action, offer):
            with torch.no_grad():  # what it is computed with is its own affair
                return super().transition(h, state, action, offer)

    class ClosedFamily(page["SpotsFamily"]):
        name = "closed"

        @classmethod
        def world(cls, plan):
            return Closed(plan.shape, plan.horizon)

    goalgen.register(ClosedFamily)
    goalgen.check_environment(Closed((1, 8, 8), 3))
    config = goalgen.configure(
        out=tmp_path / "run", environment="closed", horizon=3, width=32, depth=1, learning_rate=0.01, batch_size=64, ema=0.9,
        max_steps=40, eval_every=20, quiet=True,
    )  # fmt: skip
    goalgen.train(config)
    assert gain(config.out) > 0.05


def test_the_maze_is_within_five_percent_of_the_exact_value(page):
    """The bound of the goals, with its expectation taken exactly, beside the log-likelihood summed over all walks."""
    exact, ours = -page["likelihood"], page["ours"]
    assert (ours > exact - 1e-4).all()
    weights = page["often"]
    assert (ours * weights).sum() < 1.05 * (exact * weights).sum()
    entropy = -(weights * weights.log()).sum()
    assert (exact * weights).sum() < entropy + 0.35  # nats; the goals cannot be foretold better than that


def test_the_s_agent_alone_reaches_the_goals_of_the_data(page):
    places = {tuple(place) for place in page["places"]}
    ends = [tuple(place) for place in page["reached"]]
    assert places <= set(ends)
    assert np.mean([end in places for end in ends]) > 0.85


def test_ppo_is_measured_beside_it(page):
    theirs, untrained, exact = page["theirs"], page["untrained"], -page["likelihood"]
    assert (theirs > exact - 1e-4).all()
    assert theirs.mean() - exact.mean() < 0.3 * (untrained.mean() - exact.mean())


def test_a_gymnasium_environment_is_stateless_here(page):
    """In any order, with other episodes between, the same actions lead to the same places; an ended episode stays."""
    maze = page["maze"]
    actions = torch.tensor([[1, 1, 3, 3, 3], [3, 3, 3, 1, 1]])
    state = maze.initial(torch.zeros(2, 2, 1, 1))
    states = [state]
    for h in range(5):
        states.append(maze.transition(torch.full((2,), h), states[-1], actions[:, h : h + 1], None))
    assert maze.achieved(maze.canvas(states[-1])).tolist() == [[2.0, 3.0], [2.0, 3.0]]
    for h in (3, 0, 4, 1):
        again = maze.transition(torch.full((1,), h), states[h][1:], actions[1:, h : h + 1], None)
        assert torch.equal(again, states[h + 1][1:])

    class Ends(page["PointMaze"]):
        def step(self, action):
            observation, reward, _, truncated, info = super().step(action)
            return observation, reward, bool(self.at[0] == 1), truncated, info

    from goalgen.gym.worlds import GymEnvironment

    ends = GymEnvironment(Ends, 5)
    goalgen.check_environment(ends)
    down = torch.ones(1, 1, dtype=torch.int64)
    state = ends.transition(torch.zeros(1), ends.initial(torch.zeros(1, 2, 1, 1)), down, None)
    assert ends.ended(state).all()
    assert torch.equal(ends.transition(torch.ones(1), state, down, None), state)


def test_faults_of_gymnasium_environments_are_named(page):
    import gymnasium
    from gymnasium import spaces

    from goalgen.gym.worlds import GymEnvironment

    with pytest.raises(goalgen.GoalgenError, match="observes a Dict with achieved_goal, desired_goal, observation"):
        GymEnvironment(lambda: gymnasium.make("CartPole-v1"), 3)

    class Endless(page["PointMaze"]):
        def __init__(self):
            super().__init__()
            self.observation_space["achieved_goal"] = spaces.Box(-np.inf, np.inf, (2,), np.float32)

    with pytest.raises(goalgen.GoalgenError, match="must be a Box with bounds"):
        GymEnvironment(Endless, 3)
    with pytest.raises(goalgen.GoalgenError, match=r"goals must be \(N, 2\) within \[0.0, 0.0\] and \[3.0, 3.0\]"):
        page["maze"].goals(np.array([[0, 4]]), 4)

    class Chancy(page["PointMaze"]):
        def step(self, action):
            return super().step(np.random.default_rng().integers(4))

    with pytest.raises(goalgen.GoalgenError, match="Chancy does not do the same again with the same seed and actions"):
        GymEnvironment(Chancy, 50)
