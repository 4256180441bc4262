"""The families there are, and the one place where they are known by name."""

from __future__ import annotations

from typing import Any, TypeVar

import torch

from goalgen.config import Config, ModelConfig
from goalgen.errors import GoalgenError
from goalgen.families.bridge import Bridge
from goalgen.families.code import Code
from goalgen.families.latent import Latent
from goalgen.families.proposals import Proposals
from goalgen.families.reveal import Reveal
from goalgen.families.stages import Stages, make_stages
from goalgen.families.strokes import Strokes
from goalgen.family import Family, Plan, check_least, check_most, check_share
from goalgen.networks import SIZES, NetworkSpec, default_patch

LARGEST = 10**6
"""No size of a network, and no number of steps, is larger."""

F = TypeVar("F", bound=type[Family])

_FAMILIES: dict[str, type[Family]] = {}


def register(family: F) -> F:
    """Make a family known by its name, to ``--environment``, saved models and all commands. Returns it (a decorator).

    Raises:
        GoalgenError: it lacks what a family must have, or its name is taken by another.
    """
    for attribute, kind in (("name", str), ("gc_agents", dict)):
        if not isinstance(getattr(family, attribute, None), kind) or not getattr(family, attribute):
            raise GoalgenError(f"the family {family.__name__} needs a class attribute {attribute!r}, a {kind.__name__}")
    known = _FAMILIES.get(family.name)
    if known is not None and known.__qualname__ != family.__qualname__:
        raise GoalgenError(f"a family is called {family.name!r} already ({known.__qualname__}); choose another name")
    _FAMILIES[family.name] = family
    return family


for _built_in in (Latent, Proposals, Bridge, Reveal, Strokes, Code):  # the first is the default
    register(_built_in)


def families() -> dict[str, type[Family]]:
    """All families by name, the default first."""
    return dict(_FAMILIES)


def family_of(model: ModelConfig) -> type[Family]:
    """The family that a configuration asks for; with "auto" the one in which its GC-agent acts.

    Raises:
        GoalgenError: there is no such family, or it has no such GC-agent.
    """
    name, agent = model.environment, model.gc_agent
    if "+" in name or ":" in name:
        return _stages(name, agent)
    if name != "auto":
        _known(name)
    homes = [f for f in _FAMILIES.values() if agent == "auto" or agent in f.gc_agents]
    if not homes:
        agents = ", ".join(a for f in _FAMILIES.values() for a in f.gc_agents)
        raise GoalgenError(f"no GC-agent is called {agent!r}; there are: auto, {agents}")
    if name == "auto":
        return homes[0]
    if _FAMILIES[name] not in homes:
        own = ", ".join(_FAMILIES[name].gc_agents)
        raise GoalgenError(f"GC-agent {agent!r} needs --environment {homes[0].name}, not {name} (which has: {own})")
    return _FAMILIES[name]


def _known(name: str) -> type[Family]:
    if name not in _FAMILIES:
        raise GoalgenError(f"no environment is called {name!r}; there are: auto, {', '.join(_FAMILIES)}")
    return _FAMILIES[name]


_STAGES: dict[str, type[Stages]] = {}


def _stages(spec: str, agent: str) -> type[Family]:
    """The sequence that ``spec`` names, always the same class."""
    family = _STAGES.get(spec) or _STAGES.setdefault(spec, make_stages(spec, _known))
    if agent != "auto" and agent not in family.gc_agents:
        raise GoalgenError(
            f"no stage of {spec} has a GC-agent {agent!r}; there are: {', '.join(list(family.gc_agents)[1:])}"
        )
    return family


def plan_of(config: Config, shape: tuple[int, int, int], levels: int, num_labels: int = 0) -> Plan:
    """What a configuration asks for, for images (C, height, width) of so many grey levels.

    Raises:
        GoalgenError: it makes no model.
    """
    model, family = config.model, family_of(config.model)
    check_least(model, horizon=1, width=1, depth=1 if model.network == "unet" else 0, head_width=1, patch=1)
    check_most(model, LARGEST, "horizon", "width", "depth", "head_width", "patch")
    check_share(model, "dropout")
    if model.condition == "label" and num_labels < 1:
        raise GoalgenError(
            "--condition label needs labelled data: class folders, or a parquet file with a label column"
        )
    kind = family.network if model.network == "auto" else model.network
    width, depth, head = family.sizes.get(kind, SIZES[kind])
    network = NetworkSpec(
        kind, shape, 10 if model.horizon is None else model.horizon, model.width or width, depth if model.depth is None else model.depth,
        model.head_width or head, model.dropout, model.patch or default_patch(*shape[1:]),
        num_labels if model.condition == "label" else 0,
    )  # fmt: skip
    agent = next(iter(family.gc_agents)) if model.gc_agent == "auto" else model.gc_agent
    return Plan(shape, levels, network, settings_of(config), agent)


def settings_of(config: Config) -> Any:
    """The family's own settings in a configuration, its defaults if there are none.

    Raises:
        GoalgenError: they are those of another family.
    """
    family = family_of(config.model)
    if config.family is None:
        return family.Settings()
    if not isinstance(config.family, family.Settings):
        raise GoalgenError(
            f"the settings are a {type(config.family).__name__}, but {family.name} takes {family.Settings.__name__}"
        )
    return config.family


def check_model(config: Config) -> None:
    """Refuse settings that make no model, before there are data.

    Raises:
        GoalgenError: naming the setting, its value and what it may be.
    """
    family_of(config.model).check(plan_of(config, (1, 1, 1), 2, num_labels=1))


def make(config: Config, shape: tuple[int, int, int], levels: int, seed: int = 0, num_labels: int = 0) -> Family:
    """An untrained model for images of this ``shape`` (C, height, width) and number of grey levels.

    The weights depend on ``seed`` alone; torch's global generator is left as it was.

    Args:
        num_labels: classes of the data, for a model that is conditioned on them.

    Raises:
        GoalgenError: the configuration makes no model.
    """
    plan = plan_of(config, shape, levels, num_labels)
    family = family_of(config.model)
    family.check(plan)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return family(plan)  # type: ignore[call-arg] # a family is built from its plan alone
