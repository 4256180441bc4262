"""Policies over actions of several parts, against sums over all actions."""

from __future__ import annotations

import pytest
import torch
from tiny_strokes import GOALS, SPACE, tiny_marks

from goalgen import check_environment, exact
from goalgen.bound import bound
from goalgen.composite import Autoregressive, Composite, tabulated
from goalgen.rollout import draw_noise, rollout
from goalgen.task import Task

THREE = Composite((4, 3, 2), stop=1)
"""13 + 6 actions: a stop, and 3 x 3 x 2 others."""


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def policy(seed: int, batch: int = 3, space: Composite = THREE, ended: torch.Tensor | None = None) -> Autoregressive:
    """A policy whose every conditional is a table of its own."""
    generator = torch.Generator().manual_seed(seed)
    tables = [torch.randn(batch, *space.sizes[: i + 1], generator=generator) for i in range(len(space.sizes))]

    def conditional(part: int, before: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(batch)[:, None].expand(-1, before.shape[1])
        return tables[part][(rows, *before.unbind(-1))]

    return Autoregressive(space, torch.zeros(batch, dtype=torch.bool) if ended is None else ended, conditional)


def joint(of: Autoregressive) -> tuple[torch.Tensor, torch.Tensor]:
    """All actions (N, parts) and their log-probabilities (B, N)."""
    every = of.space.every()
    return every, of.log_prob_many(every[:, None].expand(-1, len(of.ended), -1)).T


@pytest.mark.parametrize("space", [THREE, Composite((3, 2, 2)), SPACE], ids=["stop", "none", "last"])
def test_the_probabilities_of_all_actions_sum_to_one(space):
    every, log_p = joint(policy(0, space=space))
    assert len(every) == space.count
    assert torch.allclose(log_p.exp().sum(1), torch.ones(3))
    assert torch.allclose(policy(0, space=space).log_prob(every[:1].expand(3, -1)), log_p[:, 0])


def test_divergence_and_entropy_are_the_sums_over_all_actions():
    q, p = policy(1), policy(2)
    (_, log_q), (_, log_p) = joint(q), joint(p)
    assert torch.allclose(q.kl(p), (log_q.exp() * (log_q - log_p)).sum(1))
    assert torch.allclose(q.entropy(), -(log_q.exp() * log_q).sum(1))
    assert torch.allclose(q.kl(q), torch.zeros(3), atol=1e-12)


def test_along_drawn_actions_both_have_the_right_mean_and_vary_less_than_log_ratios():
    q, p = policy(1), policy(2)
    actions = q.sample_many(torch.rand(20_000, 3, 3, generator=torch.Generator().manual_seed(0)))
    along = q.kl_along_many(p, actions)  # (K, B)
    error = along.std(0) / len(along) ** 0.5
    assert ((along.mean(0) - q.kl(p)).abs() < 5 * error).all()
    assert (along.var(0) < 0.7 * (q.log_prob_many(actions) - p.log_prob_many(actions)).var(0)).all()
    assert torch.allclose(q.kl_along(p, actions[7]), along[7])
    entropy = torch.stack([q.entropy_along(a) for a in actions[:5000]])
    assert ((entropy.mean(0) - q.entropy()).abs() < 5 * entropy.std(0) / 5000**0.5).all()


def test_actions_are_drawn_as_often_as_their_probability_says():
    q = policy(3)
    every, log_q = joint(q)
    actions = q.sample_many(torch.rand(40_000, 3, 3, generator=torch.Generator().manual_seed(0)))
    drawn = (actions[:, :, None] == every).all(-1).double().mean(0)  # (B, N)
    assert torch.allclose(drawn.sum(1), torch.ones(3))  # every one of them in the canonical form
    error = (log_q.exp() * (1 - log_q.exp()) / 40_000).sqrt()
    assert ((drawn - log_q.exp()).abs() < 5 * error).all()
    noise = torch.rand(3, 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(q.sample(noise), q.sample(noise))


def test_an_episode_that_is_over_stops_for_certain_and_costs_nothing():
    ended = torch.tensor([False, True, False])
    q, p = policy(1, ended=ended), policy(2, ended=ended)
    action = q.sample(torch.rand(3, 3, generator=torch.Generator().manual_seed(0)))
    assert action[1].tolist() == [THREE.stop, 0, 0]
    for number in (q.log_prob(action), q.kl(p), q.kl_along(p, action), q.entropy()):
        assert number[1] == 0
        assert (number[[0, 2]] != 0).all()
    assert q.log_prob(torch.tensor([[0, 1, 1]]).expand(3, -1))[1] == -torch.inf
    assert joint(q)[1].exp().sum(1).allclose(torch.ones(3))


def test_a_table_of_all_actions_is_a_policy():
    every, log_q = joint(policy(4))
    again = tabulated(THREE, torch.zeros(3, dtype=torch.bool), log_q + 3.0)
    assert torch.allclose(joint(again)[1], log_q)
    never = log_q.clone()
    never[:, every[:, 0] == 2] = -torch.inf
    half = tabulated(THREE, torch.zeros(3, dtype=torch.bool), never)
    assert torch.allclose(joint(half)[1].exp().sum(1), torch.ones(3))
    assert torch.isfinite(half.kl(policy(4))).all()
    assert (half.sample_many(torch.rand(500, 3, 3))[..., 0] != 2).all()


def test_a_low_temperature_keeps_to_likelier_parts():
    q = policy(5)
    assert torch.allclose(q.tempered(1.0).entropy(), q.entropy())
    assert (q.tempered(0.5).entropy() < q.entropy()).all()
    greedy = q.tempered(1e-3).sample(torch.full((3, 3), 0.5))
    first = q.log_probs(0, torch.zeros(3, 1, 0, dtype=torch.int64))[:, 0].argmax(-1)
    assert torch.equal(greedy[:, 0], first)


def test_too_many_actions_to_sum_over_are_refused():
    wide = Composite((1000, 1000))
    q = Autoregressive(wide, torch.zeros(1, dtype=torch.bool), lambda i, before: torch.zeros(*before.shape[:2], 1000))
    assert q.kl_along(q, q.sample(torch.rand(1, 2))).item() == 0
    with pytest.raises(NotImplementedError, match="1,000,000 actions are too many"):
        q.kl(q)


def test_random_actions_are_canonical():
    drawn = THREE.uniform(torch.rand(400, 3, generator=torch.Generator().manual_seed(0)))
    assert len(torch.unique(drawn, dim=0)) == THREE.count
    assert (drawn[drawn[:, 0] == THREE.stop][:, 1:] == 0).all()


# In an environment


def test_the_tiny_world_keeps_the_protocol():
    torch.set_default_dtype(torch.float32)
    check_environment(tiny_marks().environment)


def test_with_the_optimal_agent_the_bound_is_the_likelihood():
    agents = tiny_marks().double()
    task = Task(torch.zeros(3, 1, 1, 2), GOALS.double())
    nll = -exact.log_likelihood(agents, task)
    assert (exact.expected_bound(agents, task) - nll).min() > 0.01
    axis = torch.linspace(-1, 1, 5)
    images = torch.cartesian_prod(axis, axis).view(-1, 1, 1, 2)
    whole = exact.log_likelihood(agents, Task(torch.zeros(25, 1, 1, 2), images))
    assert whole.exp().sum().item() == pytest.approx(1.0)
    exact.OptimalGCAgent(agents)
    assert torch.allclose(exact.expected_bound(agents, task), nll)


def test_the_sampled_bound_has_the_exact_mean():
    agents, repeats = tiny_marks().double(), 4000
    task = Task(torch.zeros(3, 1, 1, 2), GOALS.double())
    expected = exact.expected_bound(agents, task)
    many = task.repeat(repeats)
    noise = draw_noise(agents.environment, len(many), torch.Generator().manual_seed(1))
    sampled = bound(agents, rollout(agents, many, noise)).total.view(3, repeats)
    assert ((sampled.mean(1) - expected).abs() < 5 * sampled.std(1) / repeats**0.5).all()


def test_no_gradient_passes_through_the_world():
    agents = tiny_marks().double()
    start = torch.zeros(3, 1, 1, 2).requires_grad_()
    task = Task(start, GOALS.double())
    noise = draw_noise(agents.environment, 3, torch.Generator().manual_seed(1))
    trajectory = rollout(agents, task, noise, through_q=True)
    assert trajectory.kl.requires_grad  # what the agents say of each state still learns
    assert torch.autograd.grad(trajectory.states[1:].sum(), start)[0].abs().sum() == 0
    agents.environment.black_box = False
    through = rollout(agents, task, noise, through_q=True)
    assert torch.autograd.grad(through.states[1:].sum(), start)[0].abs().sum() > 0
