"""goalgen's worlds pass the checkers of others, pay the return of the project, and take an agent of others as the GC-agent."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from runs import environment
from tiny import LEVELS, tiny_agents, tiny_goals

import goalgen
from goalgen import exact
from goalgen.bound import bound, log_weight
from goalgen.families import make
from goalgen.family import Family
from goalgen.gym import GoalEnv, GoalVectorEnv
from goalgen.gym.episodes import Given
from goalgen.rollout import draw_noise, rollout
from goalgen.settings import configure
from goalgen.task import Task

WORLDS = {
    "proposals": {"environment": "proposals", "num_proposals": 4},
    "cells": {"environment": "proposals", "num_proposals": 4, "grid": 2},
    "latent": {"environment": "latent", "latent_size": 3},
    "bridge": {"environment": "bridge"},
    "reveal": {"environment": "reveal"},
    "strokes": {"environment": "strokes"},
    "stages": {"environment": "code:1+bridge:2"},
}
UNBOUNDED = "ignore:.*A Box observation space m(in|ax)imum value is -?infinity"
NO_SPEC = "ignore:.*Not able to test alternative render modes"


def world(name: str, **changes) -> Family:
    sizes = {} if name == "strokes" else {"width": 8, "depth": 1, "network": "mlp"}
    horizon = {} if name == "stages" else {"horizon": 3}
    return make(configure(**WORLDS[name], **sizes, **horizon, **changes), (1, 8, 8), 17, seed=0).requires_grad_(False)


def goals(count: int = 5) -> torch.Tensor:
    return torch.randint(0, 17, (count, 1, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def tiny_bytes() -> torch.Tensor:
    return ((tiny_goals() + 1) / 2 * (LEVELS - 1)).round().to(torch.uint8)


@pytest.mark.filterwarnings(UNBOUNDED, NO_SPEC)
@pytest.mark.parametrize("given", [Given(), Given(pay_prior=True, shaping=True)], ids=["plain", "priced"])
@pytest.mark.parametrize("name", WORLDS)
def test_every_family_passes_the_checkers(name, given):
    env = GoalEnv(world(name), goals(), given, render_mode="rgb_array")
    check_env(env)
    assert env.render().shape == (8, 8, 3)
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    checker.check_env(env, warn=True, skip_render_check=False)


@pytest.mark.parametrize("name", ["proposals", "latent", "bridge", "strokes", "stages"])
def test_what_is_paid_is_the_return(name):
    """The GC-agent's own actions, taken in the Gymnasium environment, are paid log p(g | x_H), or the integrand of (4)."""
    family, count = world(name), 4
    which, noise = [0, 3, 3, 1], draw_noise(family.environment, count, torch.Generator().manual_seed(0))
    start = torch.zeros(family.shape)
    task = Task(start.expand(count, -1, -1, -1), (goals().float() / 16 * 2 - 1)[which])
    episodes = rollout(family, task, noise)
    log_q = log_weight(family, episodes) + bound(family, episodes).reconstruction  # sum of log p - log q
    for given in (Given(start=start), Given(start=start, pay_prior=True, shaping=True)):
        envs = GoalVectorEnv(family, goals(), count, given)
        observation, _ = envs.reset(options={"goals": which})
        total = np.zeros(count)
        for h, action in enumerate(episodes.actions):
            flat = action.flatten(1).numpy()
            taken = flat / envs.episodes.reach if action.is_floating_point() else flat
            taken = taken[:, 0] if name == "proposals" else taken
            observation, reward, terminated, truncated, _ = envs.step(taken)
            total += reward
            assert terminated.all() == (h == 2)
            assert not truncated.any()
        canvas = family.environment.canvas(episodes.states[-1]).flatten(1)
        assert np.allclose(observation["achieved_goal"], canvas, atol=1e-4)
        wanted = -bound(family, episodes).reconstruction
        if given.pay_prior:
            first = family.likelihood.log_prob(task.goal, episodes.states[0])
            log_p = torch.stack(
                [d.policy.log_prob(a) for d, a in zip(episodes.decisions, episodes.actions, strict=True)]
            ).sum(0)
            numbers = episodes.actions[0, 0].numel() if action.is_floating_point() else 0
            assert torch.isfinite(log_q).all()
            wanted = wanted + log_p - first + 3 * numbers * np.log(envs.episodes.reach)
        assert np.allclose(total, wanted, rtol=1e-4, atol=2e-2)


def test_episodes_follow_one_another_and_a_seed_repeats_them():
    envs = GoalVectorEnv(world("latent"), goals(), 3)
    rng = np.random.default_rng(0)
    actions = rng.normal(size=(8, 3, 3)).astype(np.float32)

    def run(seed):
        seen = [envs.reset(seed=seed)[0]]
        steps = [envs.step(a) for a in actions]
        return [*seen, *(s[0] for s in steps)], steps

    (first, steps), (again, _), (other, _) = run(3), run(3), run(4)
    key = "desired_goal"
    assert all(np.array_equal(a[k], b[k]) for a, b in zip(first, again, strict=True) for k in a)
    assert not all(np.array_equal(a[key], b[key]) for a, b in zip(first, other, strict=True))
    assert [bool(s[2].all()) for s in steps] == [False, False, True, False, False, False, True, False]
    assert (steps[3][1] == 0).all()  # the step that begins the next episode pays nothing
    assert (first[4]["observation"][:, -1] == 0).all()
    assert envs.observation_space.contains(first[-1])
    assert envs.action_space.shape == (3, 3)


@pytest.mark.parametrize("name", ["latent", "strokes"])
def test_goals_reached_in_hindsight_are_paid_as_such(name):
    """What another goal would have paid is its likelihood, for a batch, a step, and a list of infos; without infos it is refused."""
    family = world(name)
    envs = GoalVectorEnv(family, goals(), 2, Given(shaping=True))
    envs.reset(seed=0)
    envs.action_space.seed(0)
    for _ in range(3):
        before = envs.episodes.state
        observation, _, _, _, infos = envs.step(envs.action_space.sample())
    other = (goals(2).float() / 16 * 2 - 1).flatten(1).numpy()[[1, 0]]
    found = envs.compute_reward(observation["achieved_goal"], other, infos)
    goal = torch.as_tensor(other).unflatten(1, (1, 8, 8))
    ends = [family.likelihood.log_prob(goal, state) for state in (envs.episodes.state, before)]
    assert np.allclose(found, ends[0] - ends[1], rtol=1e-4)
    each = [{key: value[i] for key, value in infos.items()} for i in range(2)]
    assert np.array_equal(envs.compute_reward(observation["achieved_goal"], other, each), found)
    alone = envs.compute_reward(observation["achieved_goal"][1], other[1], each[1])
    assert isinstance(alone, float)
    assert alone == found[1]
    with pytest.raises(goalgen.GoalgenError, match="copy_info_dict=True"):
        envs.compute_reward(observation["achieved_goal"], other, [{}, {}])


def test_faults_are_named():
    family, bad = world("latent"), goalgen.GoalgenError
    with pytest.raises(bad, match=r"uint8 of shape \(N, 1, 8, 8\)"):
        GoalVectorEnv(family, goals().float())
    with pytest.raises(bad, match="grey levels 0 to 16; found 200"):
        GoalVectorEnv(family, goals() * 0 + 200)
    with pytest.raises(bad, match="at least 1, not 0"):
        GoalVectorEnv(family, goals(), 0)
    with pytest.raises(bad, match="not conditioned on labels"):
        GoalVectorEnv(family, goals(), 2, Given(labels=[0] * 5))
    with pytest.raises(bad, match="a start by name needs a model"):
        GoalVectorEnv(family, goals(), 2, Given(start="mean"))
    with pytest.raises(bad, match="give 2 numbers of goals, each 0 to 4"):
        GoalVectorEnv(family, goals(), 2).reset(options={"goals": [0, 5]})
    with pytest.raises(bad, match="offer a tensor"):
        GoalVectorEnv(world("bridge"), goals(), 2, Given(see_offer=True))


def test_a_trained_model_with_labels_knows_its_start(tmp_path):
    settings = {"environment": "latent", "horizon": 2, "width": 8, "depth": 1, "condition": "label", "limit": 50}
    out = goalgen.train(goalgen.configure(out=tmp_path / "run", max_steps=2, quiet=True, **settings)).folder
    model = goalgen.load(out)
    data = goalgen.load_data(model.config.data).test
    envs = GoalVectorEnv(model, data.images[:4], 2, Given(labels=data.labels[:4]))
    observation, _ = envs.reset(options={"goals": [2, 0]})
    one_hot = observation["observation"][:, -10:]
    assert one_hot.argmax(1).tolist() == data.labels[[2, 0]].tolist()
    assert np.allclose(observation["achieved_goal"][0], model.start_image.flatten(), atol=1e-6)


def test_an_agent_of_stable_baselines3_is_measured_by_j():
    """PPO with entropy weighed 1 maximises -J: exactly known, J comes near the negative log-likelihood and never below it."""
    stable = pytest.importorskip("stable_baselines3")
    from goalgen.gym.stable_baselines3 import GoalVecEnv, gc_agent

    family = tiny_agents().requires_grad_(False)
    images, start = tiny_bytes(), torch.zeros(1, 2, 2)
    task = Task(start.expand(6, -1, -1, -1), tiny_goals())
    envs = GoalVecEnv(family, images, 64, Given(start=start, pay_prior=True))
    ppo = stable.PPO(
        "MultiInputPolicy", envs, n_steps=6, batch_size=192, n_epochs=6, gamma=1.0, ent_coef=1.0, learning_rate=3e-3,
        normalize_advantage=False, seed=0, device="cpu",
    )  # fmt: skip
    family.gc_agent = gc_agent(ppo, envs.episodes)
    least = -exact.log_likelihood(family, task)
    with torch.no_grad():
        before = exact.expected_bound(family, task) - least
    ppo.learn(64 * 6 * 30)
    with torch.no_grad():
        after = exact.expected_bound(family, task) - least
    assert (after > -1e-4).all()
    assert after.mean() < before.mean() / 3


def test_gymnasium_is_imported_only_where_it_is_used():
    code = (
        "import sys, goalgen, goalgen.model, goalgen.cli.commands, goalgen.evaluation\n"
        "assert 'gymnasium' not in sys.modules\n"
        "sys.modules['gymnasium'] = None\n"
        "try:\n    import goalgen.gym\nexcept goalgen.GoalgenError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout == "goalgen.gym needs Gymnasium: pip install gymnasium\n"
