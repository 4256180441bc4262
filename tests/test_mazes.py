"""The mazes of the benchmarks: sums over all walks place by place are those over all action sequences."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium")
pytest.importorskip("stable_baselines3")
sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import mazes

from goalgen import configure, exact, families
from goalgen.blackbox import Judge
from goalgen.gym.worlds import GymEnvironment
from goalgen.settings import complete
from goalgen.task import Task


@pytest.fixture(scope="module")
def small():
    """Agents of the small maze whose policies are anything but even, and its goals."""
    made = mazes.MAZES["4x3"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(families, "_FAMILIES", families.families())
        kind = mazes.family_of("4x3")
        config = configure(environment=kind.name, horizon=4, width=16, depth=1)
        torch.manual_seed(0)
        family = families.make(complete(config), (2, 1, 1), 4).eval()
    with torch.no_grad():
        for parameter in family.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    goals = family.environment.goals(np.array(list(made.goals)), 4).float() / 3 * 2 - 1
    return family, goals


@torch.no_grad()
def test_summed_place_by_place_or_over_all_action_sequences(small):
    family, goals = small
    task = Task(torch.zeros(len(goals), 2, 1, 1), goals)
    walks = mazes.Walks(family, torch.zeros(2, 1, 1))
    assert torch.allclose(walks.log_likelihood(goals), exact.log_likelihood(family, task), atol=1e-4)
    assert torch.allclose(walks.expected_bound(goals), exact.expected_bound(family, task), atol=1e-4)
    assert (walks.expected_bound(goals) > -walks.log_likelihood(goals)).all()
    assert max(len(states) for states in walks.states) <= 10  # the places of the maze


@torch.no_grad()
def test_where_the_s_agent_ends_is_as_likely_as_its_walks_show(small):
    family, _ = small
    walks = mazes.Walks(family, torch.zeros(2, 1, 1))
    chance, count = walks.reached(), 4000
    assert chance.sum().item() == pytest.approx(1.0, abs=1e-5)
    state, order = family.environment.initial(torch.zeros(count, 2, 1, 1)), torch.Generator().manual_seed(0)
    for h in range(4):
        seen = family.see(h, state)
        action = family.s_agent.decide(seen).policy.sample(family.environment.action_space.noise(count, order))
        state = family.environment.transition(seen.rows, state, action, None)
    sight = family.environment.sight(state)
    found = (sight[:, None] == family.environment.sight(walks.states[-1])).all(-1).double().mean(0)
    assert (found - chance).abs().max() < 4 * 0.5 / count**0.5


class Counted(mazes.PointMaze):
    """Counts the steps that are taken of all mazes."""

    steps = 0

    def step(self, action):
        type(self).steps += 1
        return super().step(action)


def test_what_is_remembered_by_place_is_what_happens():
    """The same states as without, of far fewer steps; also where an episode ends, and where time matters."""

    class Ends(Counted):
        def reset(self, **given):
            self.taken = 0
            return super().reset(**given)

        def step(self, action):
            self.taken += 1
            seen, reward, _, _, info = super().step(action)
            return seen, reward, bool(self.at.sum() == 4), self.taken == 5, info

    taken, ends = [], []
    actions = torch.randint(4, (6, 200, 1), generator=torch.Generator().manual_seed(0))
    for markov in (False, True):
        world = GymEnvironment(lambda: Ends(mazes.MAZES["4x3"].rows), 6, markov=markov)
        state, before = world.initial(torch.zeros(200, 2, 1, 1)), Ends.steps
        for h in range(6):
            state = world.transition(torch.full((200,), h), state, actions[h], None)
        ends.append(state)
        taken.append(Ends.steps - before)
    assert torch.equal(ends[0], ends[1])
    assert world.ended(ends[0]).all()
    assert taken[1] < taken[0] / 3


@torch.no_grad()
def test_candidates_are_looked_at_together_as_one_by_one(small):
    family, goals = small
    seen = family.see(1, family.environment.initial(torch.zeros(len(goals), 2, 1, 1)))
    decision = family.s_agent.decide(seen)
    actions = torch.arange(4)[:, None, None].expand(-1, len(goals), 1)
    critic = family.gc_agent.critic
    together = critic.look(family, seen, goals, decision, actions)
    assert torch.allclose(together, Judge.look(critic, family, seen, goals, decision, actions), atol=1e-5)
    assert together.std() > 0.01
