"""Check an environment before agents are trained in it, and a family before it is trained at length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from goalgen.environment import ActionSpace, ChoiceEnvironment, Environment
from goalgen.errors import GoalgenError
from goalgen.family import Family
from goalgen.rng import generator

BATCH = 4


def check_family(family: Family) -> None:
    """Check a family's environment with what its S-agent offers, then both agents and the likelihood on its episodes.

    Raises:
        GoalgenError: the first fault found, with its mend.
    """
    name, environment = type(family).__name__, family.environment
    label = torch.zeros(BATCH, dtype=torch.int64) if family.num_labels else None

    def offer(h: Tensor, state: Tensor) -> Any:
        return family.s_agent.decide(family.see(int(h[0]), state, label)).offer

    training = family.training
    family.eval()
    check_environment(environment, offer)
    rng = generator(0, "family check")
    goal = torch.randint(0, family.levels, (BATCH, *family.shape), generator=rng) / (family.levels - 1) * 2 - 1
    state = environment.initial(torch.zeros_like(goal))
    for h in range(environment.horizon):
        seen = family.see(h, state, label)
        decision = family.s_agent.decide(seen)
        q = family.gc_agent.policy(seen, goal, decision)
        noise = environment.action_space.noise(BATCH, rng)
        for agent, policy in (("s_agent", decision.policy), ("gc_agent", q)):
            where = f"{name}.{agent}'s policy"
            _check_action(policy.sample(noise), environment.action_space, where)
            _check_tensor(policy.log_prob(policy.sample(noise)), (BATCH,), f"{where}.log_prob", "sum over the action")
        kl = q.kl_along(decision.policy, q.sample(noise))
        _check_tensor(kl, (BATCH,), f"{name}'s KL", "sum over the action")
        negative = f"{name}: the KL of the policies is negative ({kl.min():.3g}); Policy.kl is KL(self || other)"
        _demand(not (kl < -1e-3).any(), negative)
        state = environment.transition(seen.rows, state, q.sample(noise), decision.offer)
    _check_tensor(family.likelihood.log_prob(goal, state), (BATCH,), f"{name}.likelihood.log_prob", "sum over the goal")
    family.train(training)


def check_environment(environment: Environment, offer: Tensor | Callable[[Tensor, Tensor], Any] | None = None) -> None:
    """Run an environment through its protocol and say what to mend.

    Checked: the attributes; shapes and types of states, actions and canvases; that a transition is a function of its
    arguments alone, treats each row of the batch by itself and does not change its inputs; that gradients pass where
    no ``black_box`` is declared; and, where all next states can be listed, that they agree with the transition.

    Args:
        environment: the one to check.
        offer: what its S-agent would offer: a function of (h, state), a tensor (4, ...), or None if it offers none.

    Raises:
        GoalgenError: the first fault found, with its mend.
    """
    name = type(environment).__name__
    _check_attributes(environment, name)
    space = environment.action_space
    rng = generator(0, "environment check")
    canvas = torch.rand(BATCH, *environment.canvas_shape, generator=rng) * 2 - 1
    state = environment.initial(canvas)
    _check_tensor(state, (BATCH, *environment.state_shape), f"{name}.initial", "state_shape")
    for step in range(environment.horizon):
        h = torch.full((BATCH,), step)
        offered = offer(h, state) if callable(offer) else offer
        action = space.uniform(space.noise(BATCH, rng))
        _check_action(action, space, name)
        before = state.clone()
        after = _transition(environment, h, state, action, offered, name)
        wrong = f"{name}.transition changes the state it is given; return a new tensor (x + y, not x += y)"
        _demand(torch.equal(state, before), wrong)
        _check_tensor(after, tuple(state.shape), f"{name}.transition", "state_shape")
        _demand(
            torch.equal(after, _transition(environment, h, state, action, offered, name)),
            f"{name}.transition gives another state for the same arguments; take randomness from the action, and "
            "keep no state in the environment",
        )
        _check_rows(environment, h, state, action, offered, after, name)
        if isinstance(environment, ChoiceEnvironment):
            _check_candidates(environment, h, state, offered, name)
        state = after
    if not environment.black_box:
        _check_gradient(environment, canvas, offer, rng, name)


def _demand(right: bool | Tensor, message: str) -> None:
    if not right:
        raise GoalgenError(message)


def _check_attributes(environment: Environment, name: str) -> None:
    for attribute in ("horizon", "state_shape", "action_space", "black_box"):
        lacking = f"{name} lacks the attribute {attribute!r}; set it in __init__ after super().__init__()"
        _demand(hasattr(environment, attribute), lacking)
    horizon, space, black_box = environment.horizon, environment.action_space, environment.black_box
    whole = isinstance(horizon, int) and horizon >= 1
    _demand(whole, f"{name}.horizon must be a whole number of at least 1, not {horizon!r}")
    found = f"must be Discrete(...), Continuous(...) or Composite(...), not {type(space).__name__}"
    is_space = all(hasattr(space, word) for word in ("shape", "normal", "noise", "uniform"))
    _demand(is_space, f"{name}.action_space {found}")
    _demand(isinstance(black_box, bool), f"{name}.black_box must be True or False, not {black_box!r}")
    shape = tuple(environment.canvas_shape)
    _demand(
        len(shape) == 3,
        f"{name}: a canvas has the shape (C, height, width), not {shape}; where the state is more than a canvas, set "
        "canvas_shape beside state_shape",
    )


def _transition(environment: Environment, h: Tensor, state: Tensor, action: Tensor, offer: Any, name: str) -> Tensor:
    try:
        return environment.transition(h, state, action, offer)
    except GoalgenError:
        raise
    except Exception as error:
        hint = "; pass what its S-agent offers: check_environment(environment, offer)" if offer is None else ""
        raise GoalgenError(
            f"{name}.transition fails at step {int(h[0])}: {type(error).__name__}: {error}{hint}"
        ) from error


def _check_tensor(value: Any, shape: tuple[int, ...], where: str, attribute: str) -> None:
    _demand(isinstance(value, Tensor), f"{where} must return a tensor, not {type(value).__name__}")
    found, kind = tuple(value.shape), value.dtype
    _demand(found == shape, f"{where} returns {found} where {shape} was expected; mend it or {attribute}")
    wrong = f"{where} returns {kind}; states and log-probabilities are torch.float32: add .float()"
    _demand(kind == torch.float32, wrong)
    wrong = f"{where} returns NaN or infinity for canvases and actions in range; look for a division or a log"
    _demand(torch.isfinite(value).all(), wrong)


def _check_action(action: Tensor, space: ActionSpace, name: str) -> None:
    found, said = tuple(action.shape), (BATCH, *space.shape)
    _demand(found == said, f"{name}.action_space draws actions of {found}, its shape says {said}")


def _check_rows(
    environment: Environment, h: Tensor, state: Tensor, action: Tensor, offer: Any, after: Tensor, name: str
) -> None:
    if offer is not None and not isinstance(offer, Tensor):
        return
    for i in range(BATCH):
        row = slice(i, i + 1)
        alone = environment.transition(h[row], state[row], action[row], None if offer is None else offer[row])
        _demand(
            torch.allclose(alone[0], after[i], atol=1e-5),
            f"{name}.transition mixes the rows of a batch: row {i} comes out otherwise alone; reduce over the last "
            "dimensions only",
        )


def _check_candidates(environment: ChoiceEnvironment, h: Tensor, state: Tensor, offer: Any, name: str) -> None:
    space = environment.action_space
    listed = environment.candidates(h, state, offer)
    _check_tensor(listed, (BATCH, space.num_actions, *environment.state_shape), f"{name}.candidates", "num_actions")
    for a in range(space.num_actions):
        alike = torch.allclose(
            listed[:, a], environment.transition(h, state, torch.full((BATCH, space.cells), a), offer), atol=1e-5
        )
        _demand(alike, f"{name}.candidates and .transition disagree on action {a}; make one call the other")
    pixels = environment.canvas(state)
    sums = environment.sum_by_cell(pixels)
    found = f"{sums.shape[-1]} cells where the action space has {space.cells}"
    _demand(tuple(sums.shape) == (BATCH, space.cells), f"{name}.cell_mask has {found}; give one mask a cell")
    whole = torch.allclose(sums.sum(-1), pixels.sum((-3, -2, -1)), atol=1e-3)
    _demand(whole, f"{name}.cell_mask loses or repeats pixels; every pixel belongs to exactly one cell")


def _check_gradient(environment: Environment, canvas: Tensor, offer: Any, rng: torch.Generator, name: str) -> None:
    start = canvas.clone().requires_grad_()
    state, space = environment.initial(start), environment.action_space
    actions = []
    for step in range(environment.horizon):
        h = torch.full((BATCH,), step)
        offered = offer(h, state) if callable(offer) else offer
        action = space.uniform(space.noise(BATCH, rng))
        if action.is_floating_point():
            action = action.requires_grad_()
            actions.append(action)
        state = environment.transition(h, state, action, offered)
    total = state.square().sum()  # with the canvas what lies beside it: memory is there for networks to read
    gradients = torch.autograd.grad(total, [*actions, start], allow_unused=True) if total.requires_grad else ()
    _demand(
        any(g is not None and g.abs().sum() > 0 for g in gradients),
        f"{name} is no black box, but no gradient passes from the last state back to the first canvas or to the "
        "actions; remove .detach(), .round() or NumPy from the transition, or set black_box = True",
    )
