"""Check an environment before agents are trained in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from goalgen.environments.base import ChoiceEnvironment, Continuous, Discrete, Environment
from goalgen.errors import GoalgenError
from goalgen.rng import generator

BATCH = 4


def check_environment(
    environment: Environment, proposals: Tensor | Callable[[Tensor, Tensor], Any] | None = None
) -> None:
    """Run an environment through its protocol and say what to mend.

    Checked: the attributes; shapes and types of states, actions and canvases; that a transition is a function of its
    arguments alone, treats each row of the batch by itself and does not change its inputs; that gradients pass where
    ``differentiable`` says so; and, where all next states can be listed, that they agree with the transition.

    Args:
        environment: the one to check.
        proposals: what its S-agent would offer: a function of (h, state), a tensor (4, ...), or None if it offers none.

    Raises:
        GoalgenError: the first fault found, with its mend.
    """
    name = type(environment).__name__
    _check_attributes(environment, name)
    space = environment.action_space
    rng = generator(0, "environment check")
    canvas = torch.rand(BATCH, *_canvas_shape(environment, name), generator=rng) * 2 - 1
    state = environment.initial(canvas)
    _check_tensor(state, (BATCH, *environment.state_shape), f"{name}.initial", "state_shape")
    for step in range(environment.horizon):
        h = torch.full((BATCH,), step)
        offer = proposals(h, state) if callable(proposals) else proposals
        action = space.uniform(space.noise(BATCH, rng))
        _check_action(action, space, name)
        before = state.clone()
        after = _transition(environment, h, state, action, offer, name)
        if not torch.equal(state, before):
            raise GoalgenError(
                f"{name}.transition changes the state it is given; return a new tensor (x + y, not x += y)"
            )
        _check_tensor(after, tuple(state.shape), f"{name}.transition", "state_shape")
        if not torch.equal(after, _transition(environment, h, state, action, offer, name)):
            raise GoalgenError(
                f"{name}.transition gives another state for the same arguments; take randomness from the action, and "
                "keep no state in the environment"
            )
        _check_rows(environment, h, state, action, offer, after, name)
        if isinstance(environment, ChoiceEnvironment):
            _check_candidates(environment, h, state, offer, name)
        state = after
    _check_gradient(environment, canvas, proposals, rng, name)


def _check_attributes(environment: Environment, name: str) -> None:
    for attribute in ("horizon", "state_shape", "action_space", "differentiable"):
        if not hasattr(environment, attribute):
            raise GoalgenError(f"{name} lacks the attribute {attribute!r}; set it in __init__ after super().__init__()")
    if not isinstance(environment.horizon, int) or environment.horizon < 1:
        raise GoalgenError(f"{name}.horizon must be a whole number of at least 1, not {environment.horizon!r}")
    if not isinstance(environment.action_space, (Discrete, Continuous)):
        raise GoalgenError(
            f"{name}.action_space must be Discrete(...) or Continuous(...), not {type(environment.action_space).__name__}"
        )
    if not isinstance(environment.differentiable, bool):
        raise GoalgenError(f"{name}.differentiable must be True or False, not {environment.differentiable!r}")


def _canvas_shape(environment: Environment, name: str) -> tuple[int, ...]:
    """Shape of the canvases it starts from: ``canvas_shape`` if the state is not the canvas itself."""
    shape = tuple(getattr(environment, "canvas_shape", environment.state_shape))
    if len(shape) != 3:
        raise GoalgenError(
            f"{name}: a canvas has the shape (C, height, width), not {shape}; where the state is more than a canvas, set "
            "canvas_shape beside state_shape"
        )
    return shape


def _transition(environment: Environment, h: Tensor, state: Tensor, action: Tensor, offer: Any, name: str) -> Tensor:
    try:
        return environment.transition(h, state, action, offer)
    except GoalgenError:
        raise
    except Exception as error:
        hint = "; pass what its S-agent proposes: check_environment(environment, proposals)" if offer is None else ""
        raise GoalgenError(
            f"{name}.transition fails at step {int(h[0])}: {type(error).__name__}: {error}{hint}"
        ) from error


def _check_tensor(value: Any, shape: tuple[int, ...], where: str, attribute: str) -> None:
    if not isinstance(value, Tensor):
        raise GoalgenError(f"{where} must return a tensor, not {type(value).__name__}")
    if tuple(value.shape) != shape:
        raise GoalgenError(f"{where} returns {tuple(value.shape)} where {shape} was expected; mend it or {attribute}")
    if not value.is_floating_point():
        raise GoalgenError(f"{where} returns {value.dtype}; states are floating point")
    if not torch.isfinite(value).all():
        raise GoalgenError(
            f"{where} returns NaN or infinity for canvases and actions in range; look for a division or a log"
        )


def _check_action(action: Tensor, space: Discrete | Continuous, name: str) -> None:
    if tuple(action.shape) != (BATCH, *space.shape):
        raise GoalgenError(
            f"{name}.action_space draws actions of {tuple(action.shape)}, its shape says {(BATCH, *space.shape)}"
        )


def _rows(value: Any, i: int) -> Any:
    return value[i : i + 1] if isinstance(value, Tensor) else value


def _check_rows(
    environment: Environment, h: Tensor, state: Tensor, action: Tensor, offer: Any, after: Tensor, name: str
) -> None:
    if offer is not None and not isinstance(offer, Tensor):
        return
    for i in range(BATCH):
        alone = environment.transition(h[i : i + 1], state[i : i + 1], action[i : i + 1], _rows(offer, i))
        if not torch.allclose(alone[0], after[i], atol=1e-5):
            raise GoalgenError(
                f"{name}.transition mixes the rows of a batch: row {i} comes out otherwise alone; reduce over the last "
                "dimensions only"
            )


def _check_candidates(environment: ChoiceEnvironment, h: Tensor, state: Tensor, offer: Any, name: str) -> None:
    space = environment.action_space
    listed = environment.candidates(h, state, offer)
    _check_tensor(listed, (BATCH, space.num_actions, *environment.state_shape), f"{name}.candidates", "num_actions")
    for a in range(space.num_actions):
        action = torch.full((BATCH, space.cells), a)
        if not torch.allclose(listed[:, a], environment.transition(h, state, action, offer), atol=1e-5):
            raise GoalgenError(f"{name}.candidates and .transition disagree on action {a}; make one call the other")
    pixels = environment.canvas(state)
    sums = environment.sum_by_cell(pixels)
    if tuple(sums.shape) != (BATCH, space.cells):
        raise GoalgenError(
            f"{name}.cell_mask has {sums.shape[-1]} cells where the action space has {space.cells}; give one mask a cell"
        )
    if not torch.allclose(sums.sum(-1), pixels.sum((-3, -2, -1)), atol=1e-3):
        raise GoalgenError(f"{name}.cell_mask loses or repeats pixels; every pixel belongs to exactly one cell")


def _check_gradient(environment: Environment, canvas: Tensor, proposals: Any, rng: torch.Generator, name: str) -> None:
    start = canvas.clone().requires_grad_()
    state, space = environment.initial(start), environment.action_space
    actions = []
    for step in range(environment.horizon):
        h = torch.full((BATCH,), step)
        offer = proposals(h, state) if callable(proposals) else proposals
        action = space.uniform(space.noise(BATCH, rng))
        if isinstance(space, Continuous):
            action = action.requires_grad_()
            actions.append(action)
        state = environment.transition(h, state, action, offer)
    total = environment.canvas(state).square().sum()
    reaches = total.requires_grad and any(
        g is not None and bool(g.abs().sum() > 0)
        for g in torch.autograd.grad(total, [*actions, start], allow_unused=True)
    )
    if environment.differentiable and not reaches:
        raise GoalgenError(
            f"{name} says differentiable = True, but no gradient passes from the last canvas back to the first or to the "
            "actions; remove .detach(), .round() or NumPy from the transition, or set differentiable = False"
        )
