"""Both agents, their environment and the likelihood: all the weights of a model in one module."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from goalgen.agents.gc_agent import GCAgent, make_gc_agent
from goalgen.agents.networks import make_torso
from goalgen.agents.s_agent import ProposalsSAgent, SAgent
from goalgen.config import ModelConfig
from goalgen.environments import Environment, ProposalsEnvironment
from goalgen.errors import GoalgenError
from goalgen.likelihoods import Likelihood


class Agents(nn.Module):
    """The two agents in their environment. It has no ``forward``: see :mod:`goalgen.rollout`.

    Attributes:
        environment: f_h and the action space.
        s_agent: p, the generative model with ``likelihood``.
        gc_agent: q.
        likelihood: p(g | x_H).
    """

    def __init__(
        self, environment: Environment, s_agent: SAgent, gc_agent: GCAgent, likelihood: Likelihood, levels: int
    ) -> None:
        super().__init__()
        self.environment = environment
        self.s_agent = s_agent
        self.gc_agent = gc_agent
        self.likelihood = likelihood
        self.levels = levels
        shape = environment.action_space.shape
        count = getattr(environment.action_space, "num_actions", 0)
        # Share of each action at each step, a running average over training (H, cells, A).
        self.register_buffer("usage", torch.full((environment.horizon, *shape, count), 1.0 / max(count, 1)))
        self.usage: Tensor

    @property
    def horizon(self) -> int:
        """H."""
        return self.environment.horizon

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def generative_parameters(self) -> list[nn.Parameter]:
        """What the M-step learns: environment, S-agent and likelihood."""
        modules = (self.environment, self.s_agent, self.likelihood)
        return [p for m in modules for p in m.parameters() if p.requires_grad]

    def gc_parameters(self) -> list[nn.Parameter]:
        """What the E-step learns: the GC-agent."""
        return [p for p in self.gc_agent.parameters() if p.requires_grad]


def check_model_config(config: ModelConfig) -> None:
    """Refuse numbers that make no model, one line each.

    Raises:
        GoalgenError: naming the setting, its value and what it may be.
    """
    for name, least in (
        ("horizon", 1),
        ("num_proposals", 2),
        ("grid", 1),
        ("width", 1),
        ("depth", 0),
        ("head_width", 1),
        ("patch", 1),
    ):
        if getattr(config, name) < least:
            option = name.replace("_", "-")
            raise GoalgenError(f"--{option} must be at least {least}, not {getattr(config, name)}")
    if not 0 <= config.dropout < 1:
        raise GoalgenError(f"--dropout must be at least 0 and below 1, not {config.dropout}")
    if not 0 < config.step_size < math.inf:
        raise GoalgenError(f"--step-size must be above 0 and finite, not {config.step_size}")
    if config.environment != "proposals":
        raise GoalgenError(f"no environment is called {config.environment!r}; there are: proposals")


def make_agents(config: ModelConfig, shape: tuple[int, int, int], levels: int, seed: int = 0) -> Agents:
    """Untrained agents for images of this ``shape`` (C, height, width) and number of grey levels.

    The weights depend on ``seed`` alone; torch's global generator is left as it was.

    Raises:
        GoalgenError: the configuration makes no model.
    """
    check_model_config(config)
    if config.likelihood == "bernoulli" and levels != 2:
        raise GoalgenError(f"the Bernoulli likelihood needs black-and-white goals, not {levels} levels: add --binarize")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        environment = ProposalsEnvironment(
            shape, config.horizon, config.num_proposals, config.grid, config.step_size, config.learn_step_size
        )
        torso = make_torso(
            config.network,
            shape,
            config.horizon,
            config.width,
            config.depth,
            config.head_width,
            config.dropout,
            config.patch,
        )
        s_agent = ProposalsSAgent(torso, shape, config.horizon, environment.action_space)
        likelihood = Likelihood(shape, levels)
        gc_agent = make_gc_agent(config.gc_agent, environment, shape)
        return Agents(environment, s_agent, gc_agent, likelihood, levels)
