"""Likelihoods: normalised, exact in the tails, and in agreement with torch.distributions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from goalgen.likelihoods import LARGEST_SCALE, PixelLikelihood, bernoulli_log_prob, discretised_logistic_log_prob


def grey_levels(levels):
    return torch.linspace(-1, 1, levels, dtype=torch.float64)


@given(st.sampled_from([2, 5, 17, 256]), st.floats(-2, 2), st.floats(-6, 2))
def test_levels_sum_to_one(levels, mean, log_scale):
    mean, log_scale = torch.tensor(mean, dtype=torch.float64), torch.tensor(log_scale, dtype=torch.float64)
    log_p = discretised_logistic_log_prob(grey_levels(levels), mean, log_scale, levels)
    assert log_p.exp().sum().item() == pytest.approx(1.0, abs=1e-9)


def test_agrees_with_the_logistic_distribution_of_torch():
    from torch.distributions import SigmoidTransform, TransformedDistribution, Uniform

    unit = Uniform(torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))
    logistic = TransformedDistribution(unit, SigmoidTransform().inv)
    mean, scale, half = 0.3, 0.2, 1 / 16
    goals = grey_levels(17)
    cdf = [logistic.cdf((goals + side - mean) / scale) for side in (half, -half)]
    expected = cdf[0] - cdf[1]
    expected[0], expected[-1] = cdf[0][0], 1 - cdf[1][-1]
    log_p = discretised_logistic_log_prob(goals, torch.tensor(mean), torch.tensor(math.log(scale)), 17)
    assert torch.allclose(log_p.exp(), expected, atol=1e-6)


def test_far_tails_stay_finite_with_a_gradient():
    mean = torch.tensor([40.0, -40.0], requires_grad=True)
    log_p = discretised_logistic_log_prob(torch.zeros(2), mean, torch.tensor(-3.0), 256)
    log_p.sum().backward()
    assert torch.isfinite(log_p).all()
    assert (mean.grad.abs() > 1).all()


@pytest.mark.parametrize("log_scale", [-8.5, -1.0, 4.6])
def test_outer_levels_have_a_gradient_where_it_is_due_and_none_is_nan(log_scale):
    goals = grey_levels(256).float().requires_grad_()
    mean, scale = torch.zeros(256, requires_grad=True), torch.full((256,), log_scale, requires_grad=True)
    discretised_logistic_log_prob(goals, mean, scale, 256).sum().backward()
    assert torch.isfinite(mean.grad).all()
    assert torch.isfinite(scale.grad).all()
    assert mean.grad[0] < 0 < mean.grad[-1]  # towards the level


def test_a_canvas_never_seen_is_no_infinite_loss():
    likelihood = PixelLikelihood((1, 4, 4), 256)
    with torch.no_grad():
        likelihood.scale_network[-1].weight.fill_(1e3)
    canvas = torch.full((1, 1, 4, 4), -50.0, requires_grad=True)
    loss = -likelihood.log_prob(torch.zeros(1, 1, 4, 4), canvas)
    loss.sum().backward()
    assert likelihood.log_scale(canvas).max() <= math.log(LARGEST_SCALE) + 1e-4
    assert loss < 16 * 20  # about the logarithm of the scale in grey levels, for each pixel
    assert all(torch.isfinite(p.grad).all() for p in [canvas, *likelihood.parameters()])


@given(st.floats(-3, 3), st.floats(-4, 2))
def test_bernoulli_is_the_logistic_at_two_levels(mean, log_scale):
    goals = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    mean, log_scale = torch.tensor(mean, dtype=torch.float64), torch.tensor(log_scale, dtype=torch.float64)
    two = discretised_logistic_log_prob(goals, mean, log_scale, 2)
    assert torch.allclose(bernoulli_log_prob(goals, mean, log_scale), two, atol=1e-9)
    reference = torch.distributions.Bernoulli(logits=mean / log_scale.exp())
    assert torch.allclose(two, reference.log_prob(torch.tensor([0.0, 1.0], dtype=torch.float64)), atol=1e-9)


def test_scale_depends_on_the_canvas_and_is_bounded_below():
    likelihood = PixelLikelihood((1, 5, 5), 256)
    canvas = torch.randn(3, 2, 1, 5, 5)
    assert torch.equal(likelihood.log_scale(canvas), likelihood.log_scale(torch.zeros_like(canvas)))  # untrained
    with torch.no_grad():
        likelihood.scale_network[-1].weight.normal_()
        assert not torch.equal(likelihood.log_scale(canvas), likelihood.log_scale(torch.zeros_like(canvas)))
        likelihood.log_scale_bias.fill_(-1e4)
    assert likelihood.log_scale(canvas).min() >= math.log(0.05 / 255) - 1e-4


def test_log_prob_sums_the_map():
    likelihood = PixelLikelihood((3, 4, 4), 17)
    goal = torch.randint(0, 17, (2, 3, 4, 4)) / 8 - 1
    canvas = torch.randn(2, 3, 4, 4)
    assert torch.allclose(likelihood.log_prob(goal, canvas), likelihood.log_prob_map(goal, canvas).sum((1, 2, 3)))


def test_one_level_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        PixelLikelihood((1, 2, 2), 1)
