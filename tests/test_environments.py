"""Environments: the proposals world, the action spaces and the checker."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import tiny_agents, tiny_start

from goalgen.check import check_environment
from goalgen.environment import ChoiceEnvironment, Continuous, Discrete
from goalgen.errors import GoalgenError
from goalgen.families.proposals import ProposalsEnvironment
from goalgen.policies import Categorical, Gaussian
from goalgen.rollout import draw_noise, sample_rollout
from goalgen.task import Task

SHAPE = (1, 4, 6)


def proposals_environment(**changes):
    return ProposalsEnvironment(SHAPE, horizon=3, num_proposals=5, **changes)


def offer(h, state):
    """Proposals that depend on the state: (B, 5, 1, 4, 6)."""
    return torch.stack([torch.sin(state * (a + 1) + a) for a in range(5)], 1)


@pytest.mark.parametrize("grid", [1, 2, 3])
def test_proposals_environment_passes_its_check(grid):
    check_environment(proposals_environment(grid=grid), offer)


def test_transition_adds_the_chosen_proposal():
    environment = proposals_environment(step_size=0.5)
    state, h = torch.zeros(2, *SHAPE), torch.zeros(2, dtype=torch.int64)
    images = torch.arange(5.0).view(1, 5, 1, 1, 1).expand(2, 5, *SHAPE)
    after = environment.transition(h, state, torch.tensor([[3], [1]]), images)
    assert torch.allclose(after[0], torch.full(SHAPE, 1.5))
    assert torch.allclose(after[1], torch.full(SHAPE, 0.5))


def test_cells_of_a_grid_choose_on_their_own():
    environment = proposals_environment(grid=2, step_size=1.0)
    images = torch.arange(5.0).view(1, 5, 1, 1, 1).expand(1, 5, *SHAPE)
    after = environment.transition(torch.tensor([0]), torch.zeros(1, *SHAPE), torch.tensor([[0, 1, 2, 3]]), images)
    expected = torch.tensor([[0.0, 1.0], [2.0, 3.0]]).repeat_interleave(2, 0).repeat_interleave(3, 1)
    assert torch.allclose(after[0, 0], expected)


def test_learned_step_sizes_receive_a_gradient():
    environment = proposals_environment(learn_step_size=True)
    state = environment.transition(
        torch.tensor([1]), torch.zeros(1, *SHAPE), torch.tensor([[2]]), torch.ones(1, 5, *SHAPE)
    )
    state.sum().backward()
    gradient = environment.log_alpha.grad
    assert gradient is not None
    assert gradient[1] > 0
    assert gradient[0] == 0


def test_sampling_by_inverse_cdf_has_the_policy_as_its_distribution():
    space = Discrete(4)
    logits = torch.log(torch.tensor([0.1, 0.2, 0.3, 0.4])).view(1, 1, 4).expand(40000, 1, 4)
    actions = Categorical(logits).sample(space.noise(40000, torch.Generator().manual_seed(0)))
    share = torch.bincount(actions.flatten(), minlength=4) / 40000
    assert torch.allclose(share, torch.tensor([0.1, 0.2, 0.3, 0.4]), atol=0.01)


def test_an_impossible_action_is_never_taken():
    logits = torch.tensor([-math.inf, 0.0, -math.inf]).view(1, 1, 3).expand(3, 1, 3)
    noise = torch.tensor([[0.0], [0.5], [1 - 2**-24]])
    assert Categorical(logits).sample(noise).flatten().tolist() == [1, 1, 1]


def test_gaussian_actions_are_reparameterised():
    space = Continuous((2, 3))
    mean, std = torch.randn(5, 2, 3, requires_grad=True), torch.full((5, 2, 3), 0.5)
    noise = space.noise(5, torch.Generator().manual_seed(0))
    action = Gaussian(mean, std).sample(noise)
    assert torch.allclose(action, mean + 0.5 * noise)
    action.sum().backward()
    assert torch.allclose(mean.grad, torch.ones(5, 2, 3))


def test_policy_never_falls_below_its_floor():
    """However extreme the logits, each KL is at most log(A / share). (Equation 17)"""
    from goalgen.families.proposals.s_agent import UNIFORM_SHARE

    agents = tiny_agents()
    with torch.no_grad():
        agents.s_agent.logit_bias[0] += 1e4
    log_p = agents.s_agent.decide(agents.see(0, tiny_start())).policy.log_probs
    assert log_p.min() > math.log(UNIFORM_SHARE / 3) - 1e-4
    assert torch.allclose(log_p.exp().sum(-1), torch.ones(6, 1), atol=1e-5)


def test_low_temperature_takes_the_likeliest_action():
    agents = tiny_agents()
    noise = draw_noise(agents.environment, 6, torch.Generator().manual_seed(0))
    cold = sample_rollout(agents, Task(tiny_start()), noise, temperature=1e-3)
    first = agents.s_agent.decide(agents.see(0, tiny_start())).policy.probs.argmax(-1)
    assert torch.equal(cold.actions[0], first)
    with pytest.raises(GoalgenError, match="temperature must be above 0"):
        sample_rollout(agents, Task(tiny_start()), noise, temperature=0.0)


class Sum(ChoiceEnvironment):
    """A correct world of two actions, to be broken in one way at a time."""

    def __init__(self):
        super().__init__()
        self.horizon, self.state_shape, self.action_space = 2, SHAPE, Discrete(2)

    def transition(self, h, state, action, offer):
        return state + action.float().view(-1, 1, 1, 1)

    def candidates(self, h, state, offer):
        return torch.stack([state, state + 1], 1)

    def cell_mask(self):
        return torch.ones(1, 1, 1, 1)


def broken(**members):
    return type("Broken", (Sum,), members)()


def test_checker_accepts_a_correct_environment():
    check_environment(Sum())


COUNTER = iter(range(1000))

FAULTS = [
    ({"transition": lambda s, h, x, a, p: x.add_(a.float().view(-1, 1, 1, 1))}, "changes the state"),
    ({"transition": lambda s, h, x, a, p: x + next(COUNTER)}, "another state for the same arguments"),
    ({"transition": lambda s, h, x, a, p: x + a.float().mean()}, "mixes the rows"),
    ({"transition": lambda s, h, x, a, p: x[:, :, :-1]}, "where .* was expected"),
    ({"transition": lambda s, h, x, a, p: x / 0}, "NaN or infinity"),
    ({"transition": lambda s, h, x, a, p: p + x}, "pass what its S-agent offers"),
    ({"transition": lambda s, h, x, a, p: x.detach() + a.float().view(-1, 1, 1, 1)}, "no gradient passes"),
    ({"candidates": lambda s, h, x, p: torch.stack([x + 1, x], 1)}, "disagree on action 0"),
    ({"candidates": lambda s, h, x, p: torch.stack([x], 1)}, "num_actions"),
    ({"cell_mask": lambda s: torch.zeros(1, 1, 4, 6)}, "loses or repeats pixels"),
    ({"cell_mask": lambda s: torch.ones(2, 1, 1, 1)}, "one mask a cell"),
    ({"initial": lambda s, c: c.long()}, "torch.float32"),
]


@pytest.mark.parametrize(("members", "message"), FAULTS, ids=[message for _, message in FAULTS])
def test_checker_says_what_to_mend(members, message):
    with pytest.raises(GoalgenError, match=message):
        check_environment(broken(**members))


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [("horizon", 0, "at least 1"), ("action_space", 5, "Discrete"), ("state_shape", (3,), "canvas_shape")],
)
def test_checker_names_the_attribute(attribute, value, message):
    environment = Sum()
    setattr(environment, attribute, value)
    with pytest.raises(GoalgenError, match=message):
        check_environment(environment)


def test_a_grid_finer_than_the_image_is_refused():
    with pytest.raises(GoalgenError, match="does not fit an image of 4x6"):
        proposals_environment(grid=5)
