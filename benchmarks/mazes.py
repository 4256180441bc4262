"""Point mazes of Gymnasium as worlds of goalgen: how near the bound is to the exact likelihood, and where the S-agent goes alone.

What both agents see of a maze is the place and the step, so all walks are summed over place by place: A H places of work where
:mod:`goalgen.exact` needs A^H. Needs the extras ``gym`` and ``stable-baselines3``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gymnasium
import numpy as np
import torch
from contenders import Job, Options, Row
from fitting import fit
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

import goalgen
from goalgen.agents import GCAgent, Seen
from goalgen.config import Config
from goalgen.data import ImageSet, Splits
from goalgen.family import Family
from goalgen.gym.episodes import Given
from goalgen.gym.stable_baselines3 import GoalVecEnv, gc_agent
from goalgen.gym.worlds import GymEnvironment, GymFamily
from goalgen.model import Model

MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
SAMPLES = 1000
"""Walks of the S-agent alone."""
SPLITS = (500, 100, 200)
"""Goals to train on, to choose a checkpoint by, and held out."""
SETTINGS: Row = {
    "start": "constant", "depth": 1, "learning_rate": 0.01, "batch_size": 96, "ema": 0.95, "eval_every": 50, "picture_every": 0, "precision": "no",
}  # fmt: skip
PPO_EPISODES = 64
"""... at once; it learns from two of each at a time, with the settings of docs/environments.md."""


@dataclass(frozen=True)
class Maze:
    """A map, and the goals of its data set."""

    rows: tuple[str, ...]
    horizon: int
    goals: dict[tuple[int, int], float]
    """(row, column) and how often, summing to 1"""
    steps: int
    """of training"""
    width: int


MAZES = {
    "4x3": Maze(("....", ".##.", "...."), 5, {(0, 2): 0.1, (0, 3): 0.2, (1, 3): 0.2, (2, 2): 0.2, (2, 3): 0.3}, 1000, 32),
    "6x6": Maze(
        ("......", ".##.#.", ".#..#.", "...#..", ".#.##.", ".#...."), 12,
        {(0, 5): 0.15, (2, 5): 0.15, (3, 4): 0.1, (2, 2): 0.1, (3, 2): 0.05, (5, 0): 0.1, (5, 2): 0.1, (5, 4): 0.1, (5, 5): 0.1, (4, 5): 0.05}, 1000, 64,
    ),
}  # fmt: skip
"""That of docs/environments.md, and one with rooms, dead ends and two ways around."""


class PointMaze(gymnasium.Env):
    """Up, down, left, right; walls stop the point. It begins in the upper left corner."""

    def __init__(self, rows: tuple[str, ...]) -> None:
        # One scale for both, so that the levels of a data set are places of either.
        self.rows, longest = rows, max(len(rows), len(rows[0]))
        place = spaces.Box(0.0, longest - 1.0, (2,), np.float32)
        self.observation_space = spaces.Dict(observation=place, achieved_goal=place, desired_goal=place)
        self.action_space = spaces.Discrete(len(MOVES))

    def seen(self) -> dict[str, np.ndarray]:
        at = self.at.astype(np.float32)
        return {"observation": at, "achieved_goal": at, "desired_goal": at}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = np.zeros(2, int)
        return self.seen(), {}

    def step(self, action):
        row, column = self.at + MOVES[action]
        if 0 <= row < len(self.rows) and 0 <= column < len(self.rows[0]) and self.rows[row][column] == ".":
            self.at = np.array([row, column])
        return self.seen(), 0.0, False, False, {}


def family_of(name: str) -> type[GymFamily]:
    """The family of a maze, registered."""

    class MazeFamily(GymFamily):
        markov = True

        @classmethod
        def make_gym(cls) -> gymnasium.Env:
            return PointMaze(MAZES[name].rows)

    MazeFamily.name = f"point_maze_{name}"
    return goalgen.register(MazeFamily)


# all walks ----------------------------------------------------------------------------------------------------------


class Walks:
    """All walks of H steps, by the places they pass: sums over them are exact where what is seen of a state decides what follows.

    Args:
        family: of a world with one choice a step.
        start: the canvas to begin from, (d, 1, 1) in [-1, 1].
    """

    def __init__(self, family: Family, start: Tensor) -> None:
        environment, self.family = family.environment, family
        self.actions = environment.action_space.every()  # (A, 1)
        state = environment.initial(start[None])
        self.states: list[Tensor] = [state]
        """of each step one state for each place, (n_h, ...)"""
        self.nexts: list[Tensor] = []
        """of each step, where each action leads: (A, n_h) rows of the next step's states"""
        for h in range(family.horizon):
            count = len(state)
            steps = torch.full((count,), h)
            after = torch.cat([environment.transition(steps, state, a.expand(count, -1), None) for a in self.actions])
            sight, row = environment.sight(after).unique(dim=0, return_inverse=True)
            first = torch.stack([(row == i).nonzero()[0, 0] for i in range(len(sight))])
            state = after[first]
            self.states.append(state)
            self.nexts.append(row.view(len(self.actions), count))

    def _log_p(self, h: int) -> Tensor:
        """log p(a | x) of the S-agent at every place of a step, (n_h, A)."""
        return self._every(self.family.s_agent.decide(self._seen(h)).policy, len(self.states[h]))

    def _every(self, policy, count: int) -> Tensor:
        return torch.stack([policy.log_prob(a.expand(count, -1)) for a in self.actions], 1)

    def _seen(self, h: int, repeats: int = 1) -> Seen:
        return self.family.see(h, self.states[h].repeat_interleave(repeats, 0))

    def _paid(self, goals: Tensor) -> Tensor:
        """log p(g | x_H), (n_H, G) nats."""
        count = len(self.states[-1])
        last = self.states[-1].repeat_interleave(len(goals), 0)
        return self.family.likelihood.log_prob(goals.repeat(count, 1, 1, 1), last).view(count, -1)

    @torch.no_grad()
    def log_likelihood(self, goals: Tensor) -> Tensor:
        """log p(g | x_0) of goals (G, d, 1, 1) in [-1, 1], (G,) nats. (Equation 7)"""
        value = self._paid(goals)
        for h in reversed(range(self.family.horizon)):
            value = torch.logsumexp(self._log_p(h).T[..., None] + value[self.nexts[h]], 0)
        return value[0]

    @torch.no_grad()
    def expected_bound(self, goals: Tensor, agent: GCAgent | None = None) -> Tensor:
        """J(g), its expectation over the GC-agent's walks taken exactly, (G,) nats. (Equation 3)"""
        agent, ahead = agent or self.family.gc_agent, -self._paid(goals)
        for h in reversed(range(self.family.horizon)):
            count = len(self.states[h])
            seen = self._seen(h, len(goals))
            decision = self.family.s_agent.decide(seen)
            q = agent.policy(seen, goals.repeat(count, 1, 1, 1), decision)
            log_q = self._every(q, count * len(goals)).view(count, len(goals), -1)
            log_p = self._every(decision.policy, count * len(goals)).view(count, len(goals), -1)
            then = ahead[self.nexts[h]].permute(1, 2, 0)  # (n_h, G, A)
            ahead = (log_q.exp() * (log_q - log_p + then)).sum(-1)
        return ahead[0]

    @torch.no_grad()
    def reached(self) -> Tensor:
        """With what probability the S-agent alone ends in each of the last step's states, (n_H,)."""
        mass = torch.ones(1)
        for h in range(self.family.horizon):
            after = torch.zeros(len(self.states[h + 1]))
            mass = after.index_add(0, self.nexts[h].T.flatten(), (mass[:, None] * self._log_p(h).exp()).flatten())
        return mass


# a row --------------------------------------------------------------------------------------------------------------


def goals_of(maze: Maze, world: GymEnvironment, seed: int) -> Splits:
    """Goals drawn by how often each is wanted."""
    levels = max(len(maze.rows), len(maze.rows[0]))
    places, rng = np.array(list(maze.goals)), np.random.default_rng(seed)
    train, validation, test = (
        ImageSet(world.goals(rng.choice(places, count, p=list(maze.goals.values())), levels), levels)
        for count in SPLITS
    )
    return Splits(train, validation, test, None, "places")


class Until(BaseCallback):
    """Stops an agent's learning after so many seconds of the processor."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds, self.begun = seconds, time.process_time()

    def _on_step(self) -> bool:
        return time.process_time() - self.begun < self.seconds


def learn_ppo(model: Model, splits: Splits, seconds: float, seed: int) -> tuple[GCAgent, int]:
    """stable-baselines3's PPO as the GC-agent of the model's own S-agent, and the steps it took; on -J, not something like it."""
    worlds = GoalVecEnv(model, splits.train.images, num_envs=PPO_EPISODES, given=Given(pay_prior=True))
    steps = 2 * model.horizon
    ppo = PPO(
        "MultiInputPolicy", worlds, n_steps=steps, batch_size=PPO_EPISODES * steps // 2, n_epochs=4, gamma=1.0, ent_coef=1.0,
        normalize_advantage=False, learning_rate=0.003, seed=seed, device="cpu",
    )  # fmt: skip
    ppo.learn(10**9, callback=Until(seconds))
    return gc_agent(ppo, worlds.episodes), ppo.num_timesteps


def coverage(walks: Walks, maze: Maze, model: Model, world: GymEnvironment, seed: int) -> Row:
    """How what the S-agent reaches alone covers the data's goals: in so many samples, and by its own probabilities."""

    def places_of(canvases: Tensor) -> list[tuple[int, int]]:
        return [tuple(place) for place in world.achieved(canvases).round().astype(int).tolist()]

    drawn = model.sample(SAMPLES, seed=seed).levels
    ends, places = places_of(drawn / (model.levels - 1) * 2 - 1), places_of(world.canvas(walks.states[-1]))
    chance = dict(zip(places, walks.reached().double().tolist(), strict=True))
    wanted = {place: maze.goals.get(place, 0.0) for place in {*places, *maze.goals}}
    return {
        "samples": SAMPLES,
        "goals_reached": float(np.mean([goal in ends for goal in maze.goals])),
        "samples_on_goals": float(np.mean([end in maze.goals for end in ends])),
        "mass_on_goals": sum(chance.get(goal, 0.0) for goal in maze.goals),
        "total_variation": sum(abs(chance.get(place, 0.0) - often) for place, often in wanted.items()) / 2,
        "kl_data_to_reached_nats": float(sum(o * np.log(o / chance[p]) for p, o in wanted.items() if o)),
    }


def mean_over(maze: Maze) -> Callable[[Tensor], float]:
    """The mean over the data's goals, of a number of each, (G,)."""
    often = torch.tensor(list(maze.goals.values()), dtype=torch.float64)
    return lambda nats: float((often * nats.double()).sum())


def trained(config: Config, splits: Splits, note: Path) -> tuple[Model, float]:
    """The model of a run, and the seconds of the processor that it took; a row that was cut off after that does not train again."""
    if not note.exists():
        begun = time.process_time()
        fit(config, splits)
        note.write_text(json.dumps({"processor_seconds": time.process_time() - begun}))
    return goalgen.load(config.out), json.loads(note.read_text())["processor_seconds"]


def maze(job: Job, options: Options, folder: Path) -> Row:
    """One maze: both agents trained; J and -log p exactly; where the S-agent goes alone; PPO as the GC-agent.

    PPO has as many seconds of the processor as both our agents had, for the GC-agent alone.
    """
    made, seed, family = MAZES[job["maze"]], job["seed"], family_of(job["maze"])
    world = GymEnvironment(family.make_gym, made.horizon, markov=True)
    splits = goals_of(made, world, seed)
    config = goalgen.configure(
        **SETTINGS, environment=family.name, horizon=made.horizon, width=made.width, seed=seed, max_steps=made.steps, out=folder / "run", quiet=True,
    )  # fmt: skip
    model, seconds = trained(config, splits, folder / "trained.json")
    mean = mean_over(made)
    levels = splits.train.levels
    goals = world.goals(np.array(list(made.goals)), levels).float() / (levels - 1) * 2 - 1
    walks = Walks(model.family, model.start()(1, goals=goals[:1])[0])
    exact, ours = -mean(walks.log_likelihood(goals)), mean(walks.expected_bound(goals))
    theirs, ppo_steps = learn_ppo(model, splits, seconds, seed)
    sampled = model.nll_bound(splits.test.images, seed).total.double()
    return {
        "processor_seconds": seconds, "trained_steps": made.steps, "horizon": made.horizon, "goals": len(made.goals),
        "entropy_nats": -mean(torch.tensor(list(made.goals.values())).log()),
        "exact_nats": exact, "bound_nats": ours, "share_above": ours / exact - 1,
        "sampled_bound_nats": float(sampled.mean()), "sampled_bound_standard_error": float(sampled.std() / len(sampled) ** 0.5),
        **coverage(walks, made, model, world, seed),
        "ppo_bound_nats": (ppo := mean(walks.expected_bound(goals, theirs))), "ppo_share_above": ppo / exact - 1, "ppo_steps": ppo_steps,
    }  # fmt: skip
