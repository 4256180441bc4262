"""Both agents, their environment and the likelihood: all the weights of a model in one module."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from goalgen.agents.bridge import BridgeSAgent, FixedBridgeGCAgent, LearnedBridgeGCAgent
from goalgen.agents.gc_agent import GCAgent, make_gc_agent
from goalgen.agents.latent import EncoderGCAgent, LatentSAgent
from goalgen.agents.networks import NetworkSpec, make_torso
from goalgen.agents.s_agent import ProposalsSAgent, SAgent
from goalgen.config import ModelConfig
from goalgen.environments import (
    BridgeEnvironment,
    Discrete,
    Environment,
    LatentEnvironment,
    ProposalsEnvironment,
    even_schedule,
)
from goalgen.errors import GoalgenError
from goalgen.likelihoods import Likelihood


class Agents(nn.Module):
    """The two agents in their environment. It has no ``forward``: see :mod:`goalgen.rollout`.

    Attributes:
        environment: f_h and the action space.
        s_agent: p, the generative model with ``likelihood``.
        gc_agent: q.
        likelihood: p(g | x_H).
        levels: grey levels of the images.
        num_labels: classes that the agents are told; 0: none.
    """

    def __init__(
        self,
        environment: Environment,
        s_agent: SAgent,
        gc_agent: GCAgent,
        likelihood: Likelihood,
        levels: int,
        num_labels: int = 0,
    ) -> None:
        super().__init__()
        self.environment = environment
        self.s_agent = s_agent
        self.gc_agent = gc_agent
        self.likelihood = likelihood
        self.levels = levels
        self.num_labels = num_labels
        space = environment.action_space
        cells, count = (space.cells, space.num_actions) if isinstance(space, Discrete) else (0, 0)
        # Share of each action at each step, a running average over training (H, cells, A); empty for continuous actions.
        self.register_buffer("usage", torch.full((environment.horizon, cells, count), 1.0 / max(count, 1)))
        self.usage: Tensor

    @property
    def horizon(self) -> int:
        """H."""
        return self.environment.horizon

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, height, width) of the images."""
        channels, height, width = self.likelihood.log_scale_bias.shape
        return channels, height, width

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
        ("latent_size", 1),
        ("latent_modes", 1),
        ("width", 1),
        ("depth", 1 if config.network == "unet" else 0),
        ("head_width", 1),
        ("patch", 1),
    ):
        if getattr(config, name) < least:
            option = name.replace("_", "-")
            raise GoalgenError(f"--{option} must be at least {least}, not {getattr(config, name)}")
    if not 0 <= config.dropout < 1:
        raise GoalgenError(f"--dropout must be at least 0 and below 1, not {config.dropout}")
    if config.step_size is not None and not 0 < config.step_size < math.inf:
        raise GoalgenError(f"--step-size must be above 0 and finite, not {config.step_size}")
    if not config.read_start and config.horizon > 1 and config.share_steps:
        raise GoalgenError(
            "--no-read-start needs --no-share-steps where there is more than one step: one network reads all"
        )
    if config.environment not in ("auto", *FAMILIES):
        raise GoalgenError(f"no environment is called {config.environment!r}; there are: auto, {', '.join(FAMILIES)}")


def network_spec(config: ModelConfig, shape: tuple[int, int, int], num_labels: int) -> NetworkSpec:
    """The network that a configuration asks for, for images (C, height, width)."""
    return NetworkSpec(
        config.network, shape, config.horizon, config.width, config.depth, config.head_width, config.dropout,
        config.patch, num_labels,
    )  # fmt: skip


def make_proposals(config: ModelConfig, spec: NetworkSpec) -> tuple[Environment, SAgent]:
    """The world of images to choose from."""
    environment = ProposalsEnvironment(
        spec.shape, config.horizon, config.num_proposals, config.grid, config.step_size or 0.3, config.learn_step_size
    )
    torso = make_torso(spec)
    return environment, ProposalsSAgent(torso, spec.shape, config.horizon, environment.action_space)


def make_latent(config: ModelConfig, spec: NetworkSpec) -> tuple[Environment, SAgent]:
    """The world of Gaussian latents."""
    s_agent = LatentSAgent(
        spec, config.latent_size, config.latent_map, config.share_steps, config.latent_modes, config.read_start
    )
    environment = LatentEnvironment(
        spec.shape, config.horizon, s_agent.latent_shape, config.step_size or 1.0, config.learn_step_size,
        mixed=config.latent_modes > 1,
    )  # fmt: skip
    return environment, s_agent


def make_bridge(config: ModelConfig, spec: NetworkSpec) -> tuple[Environment, SAgent]:
    """The world whose action is the next canvas."""
    low, high = config.log_snr
    environment = BridgeEnvironment(spec.shape, even_schedule(config.horizon, low, high, config.learn_snr))
    free = config.learn_variance if config.learn_variance is not None else config.gc_agent != "fixed"
    return environment, BridgeSAgent(spec, environment, free)


FAMILIES: dict[str, Callable[[ModelConfig, NetworkSpec], tuple[Environment, SAgent]]] = {
    "proposals": make_proposals,
    "latent": make_latent,
    "bridge": make_bridge,
}
"""What ``--environment`` takes, and how its world and S-agent are made."""


HOME = {"auto": "latent", "encoder": "latent", "learned": "bridge", "fixed": "bridge"}
"""The environment of a GC-agent; any other acts among proposals."""


def environment_of(config: ModelConfig) -> str:
    """The name of the environment that a configuration asks for, with ``auto`` resolved."""
    return HOME.get(config.gc_agent, "proposals") if config.environment == "auto" else config.environment


def gc_agent_of(config: ModelConfig, environment: Environment, spec: NetworkSpec) -> GCAgent:
    """The GC-agent that a configuration asks for; ``auto`` is the one that suits its environment.

    Raises:
        GoalgenError: no GC-agent of this environment has this name.
    """
    kind = config.gc_agent
    if isinstance(environment, LatentEnvironment) and kind in ("auto", "encoder"):
        return EncoderGCAgent(environment, spec, config.share_steps, config.read_start)
    if isinstance(environment, BridgeEnvironment) and kind in ("auto", "learned"):
        return LearnedBridgeGCAgent(environment, spec)
    if isinstance(environment, BridgeEnvironment) and kind == "fixed":
        return FixedBridgeGCAgent(environment, spec)
    if kind in HOME and kind != "auto":
        raise GoalgenError(f"GC-agent {kind!r} needs --environment {HOME[kind]}, not {config.environment}")
    return make_gc_agent("posterior" if kind == "auto" else kind, environment, spec.shape)


def make_agents(
    config: ModelConfig, shape: tuple[int, int, int], levels: int, seed: int = 0, num_labels: int = 0
) -> Agents:
    """Untrained agents for images of this ``shape`` (C, height, width) and number of grey levels.

    The weights depend on ``seed`` alone; torch's global generator is left as it was.

    Args:
        num_labels: classes of the data, for a model that is conditioned on them.

    Raises:
        GoalgenError: the configuration makes no model.
    """
    check_model_config(config)
    if config.likelihood == "bernoulli" and levels != 2:
        raise GoalgenError(f"the Bernoulli likelihood needs black-and-white goals, not {levels} levels: add --binarize")
    if config.condition == "label" and num_labels < 1:
        raise GoalgenError(
            "--condition label needs labelled data: class folders, or a parquet file with a label column"
        )
    spec = network_spec(config, shape, num_labels if config.condition == "label" else 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        environment, s_agent = FAMILIES[environment_of(config)](config, spec)
        likelihood = Likelihood(shape, levels)
        gc_agent = gc_agent_of(config, environment, spec)
        return Agents(environment, s_agent, gc_agent, likelihood, levels, spec.num_labels)
