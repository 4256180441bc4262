"""Closed-form divergences against Monte Carlo, and the targets of soft value learning by hand."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import tiny_agents, tiny_goals, tiny_start

from goalgen.environment import Continuous, Discrete
from goalgen.learning import soft_returns
from goalgen.policies import Categorical, Gaussian
from goalgen.rollout import draw_noise, rollout
from goalgen.task import Task

DRAWS = 200_000


def policies(space, generator):
    def one():
        if isinstance(space, Discrete):
            return Categorical(torch.randn(1, space.cells, space.num_actions, generator=generator))
        return Gaussian(
            torch.randn(1, *space.shape, generator=generator), torch.rand(1, *space.shape, generator=generator) + 0.3
        )

    return one(), one()


@pytest.mark.parametrize("space", [Discrete(5), Discrete(3, cells=4), Continuous((4,)), Continuous((2, 3))])
@pytest.mark.parametrize("seed", range(3))
def test_closed_form_kl_agrees_with_monte_carlo(space, seed):
    generator = torch.Generator().manual_seed(seed)
    q, p = policies(space, generator)
    many = q.distribution.expand((DRAWS,))
    many = Categorical(many.base_dist.logits) if isinstance(q, Categorical) else Gaussian(many.mean, many.stddev)
    draws = many.sample(space.noise(DRAWS, generator))
    difference = q.log_prob(draws) - p.log_prob(draws)
    error = (difference.std() / math.sqrt(DRAWS)).item()
    assert difference.mean().item() == pytest.approx(q.kl(p).item(), abs=5 * error + 1e-6)


def test_kl_of_a_greedy_policy_is_minus_the_log_probability_of_its_action():
    agents = tiny_agents("greedy")
    trajectory = rollout(
        agents, Task(tiny_start(), tiny_goals()), draw_noise(agents.environment, 6, torch.Generator().manual_seed(0))
    )
    assert torch.allclose(trajectory.kl, -trajectory.log_ratio, atol=1e-5)


def test_divergences_of_an_episode_are_finite_and_not_negative():
    for kind in ("greedy", "posterior", "value"):
        agents = tiny_agents(kind, seed=3)
        with torch.no_grad():
            agents.s_agent.logit_bias.mul_(1e3)  # a policy of near certainties
        noise = draw_noise(agents.environment, 6, torch.Generator().manual_seed(0))
        kl = rollout(agents, Task(tiny_start(), tiny_goals()), noise).kl
        assert torch.isfinite(kl).all()
        assert (kl > -1e-5).all()


def test_soft_returns_by_hand():
    log_ratio = torch.tensor([[9.0], [-1.0], [-2.0]])  # H = 3; the first step has no value to teach
    values = torch.tensor([[-7.0], [-5.0]])  # V_1, V_2
    terminal = torch.tensor([-4.0])
    one_step = soft_returns(log_ratio, values, terminal, 0.0)
    assert one_step.flatten().tolist() == [-1.0 - 5.0, -2.0 - 4.0]
    whole = soft_returns(log_ratio, values, terminal, 1.0)
    assert whole.flatten().tolist() == [-1.0 - 2.0 - 4.0, -2.0 - 4.0]
    half = soft_returns(log_ratio, values, terminal, 0.5)
    assert half[0].item() == pytest.approx(-1.0 + 0.5 * -5.0 + 0.5 * -6.0)


def test_one_step_soft_value_is_the_same_at_every_action():
    """V(a) + log p(a) - log q(a) = log sum p exp V for q proportional to p exp V: the identity behind equation 16."""
    generator = torch.Generator().manual_seed(0)
    log_p = torch.randn(7, generator=generator).log_softmax(-1)
    values = torch.randn(7, generator=generator) * 3
    log_q = (log_p + values).log_softmax(-1)
    assert torch.allclose(values + log_p - log_q, torch.logsumexp(log_p + values, -1).expand(7), atol=1e-5)


def test_errors_within_goals_do_not_see_what_the_episodes_of_a_goal_share():
    from goalgen.learning import within_goals

    generator = torch.Generator().manual_seed(0)
    error = torch.randn(2, 12, generator=generator)
    shared = torch.randn(2, 3, generator=generator).repeat_interleave(4, 1) * 10
    assert torch.allclose(within_goals(error + shared, 4), within_goals(error, 4), atol=1e-5)
    assert torch.equal(within_goals(error, 1), error)
    many = torch.randn(1, 40_000, generator=generator)
    assert within_goals(many, 4).square().mean().item() == pytest.approx(1.0, abs=0.03)
