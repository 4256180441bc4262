"""Latent proposals against torch.distributions at one step, and against a closed form on a linear-Gaussian world."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import tiny_goals
from torch import Tensor, nn
from torch.distributions import AffineTransform, Independent, Normal, SigmoidTransform, TransformedDistribution, Uniform
from torch.distributions.kl import kl_divergence
from torch.distributions.multivariate_normal import MultivariateNormal

from goalgen.agents import Agents, Decision, EncoderGCAgent, SAgent, View, make_agents
from goalgen.agents.latent import LARGEST_LOG_STD, bounded
from goalgen.agents.networks import NetworkSpec
from goalgen.bound import bound, importance_weighted_bound
from goalgen.config import ModelConfig
from goalgen.environments import Continuous, LatentEnvironment
from goalgen.learners import PathwiseLearner, active_units, make_learner
from goalgen.rollout import draw_noise, rollout, sample_rollout

SHAPE = (1, 4, 4)


def latent(horizon: int = 3, *, seed: int = 0, **changes) -> Agents:
    config = ModelConfig(
        **{
            "environment": "latent", "horizon": horizon, "width": 24, "depth": 2, "head_width": 12, "latent_size": 5,
            "patch": 2, "step_size": 0.7,
        }
        | changes
    )  # fmt: skip
    return make_agents(config, SHAPE, 5, seed).double()


def noise_for(agents: Agents, batch: int, seed: int = 0) -> Tensor:
    return draw_noise(agents.environment, batch, torch.Generator().manual_seed(seed)).double()


GOALS, START = tiny_goals(6, shape=SHAPE).double(), torch.zeros(6, *SHAPE).double()


# One step is a variational autoencoder


def test_one_step_is_the_evidence_bound_of_a_vae():
    """The bound at H = 1, from torch.distributions alone: a logistic cut into levels, and a Gaussian posterior and prior."""
    agents = latent(1)
    noise = noise_for(agents, 6)
    ours = bound(agents, rollout(agents, START, GOALS, noise))
    decision = agents.s_agent(0, START)
    posterior = agents.gc_agent.policy(View(0, START, GOALS, decision, agents.environment, agents.likelihood))
    z = posterior.mean + posterior.stddev * noise[0]
    assert isinstance(agents.environment, LatentEnvironment)
    mean = START + 0.7 * decision.proposals(z)
    scale = agents.likelihood.log_scale(mean).exp()
    uniform = Uniform(torch.zeros_like(mean), torch.ones_like(mean), validate_args=False)
    logistic = TransformedDistribution(
        uniform, [SigmoidTransform().inv, AffineTransform(mean, scale)], validate_args=False
    )
    half = 0.25  # five levels, half a unit apart
    upper = torch.where(1 - half < GOALS, 1.0, logistic.cdf(GOALS + half))
    lower = torch.where(-1 + half > GOALS, 0.0, logistic.cdf(GOALS - half))
    torch.testing.assert_close(ours.reconstruction, -torch.log(upper - lower).sum((1, 2, 3)))
    flat = [
        MultivariateNormal(d.mean.flatten(1), torch.diag_embed(d.variance.flatten(1)))
        for d in (posterior, decision.policy)
    ]
    torch.testing.assert_close(ours.kl[0], kl_divergence(*flat))


def test_kl_agrees_with_monte_carlo():
    agents = latent(1)
    goal, start = GOALS[:1].expand(40_000, -1, -1, -1), START[:1].expand(40_000, -1, -1, -1)
    with torch.no_grad():
        trajectory = rollout(agents, start, goal, noise_for(agents, 40_000))
    sampled = -trajectory.log_ratio[0]
    assert (sampled.mean() - trajectory.kl[0, 0]).abs() < 4 * sampled.std() / 200


# A world where -log p(g) is known


class LinearSAgent(SAgent):
    """Standard normal prior, linear decoder: the model of goals is Gaussian."""

    def __init__(self, horizon: int, size: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(horizon, math.prod(shape), size, generator=generator) * 0.3)
        self.shape, self.size = shape, size

    def forward(self, h: int, state: Tensor, label: Tensor | None = None) -> Decision:
        zeros = state.new_zeros(len(state), 1, self.size)
        policy = Continuous((1, self.size)).policy(zeros, torch.ones_like(zeros))
        return Decision(policy, lambda z: (z[:, 0] @ self.weight[h].T).unflatten(1, self.shape))


class GaussianLikelihood(nn.Module):
    """A density in place of levels."""

    def __init__(self) -> None:
        super().__init__()
        self.log_std = nn.Parameter(torch.tensor(-0.7))

    def log_prob(self, goal: Tensor, canvas: Tensor, *, hold_scale: bool = False) -> Tensor:
        return Independent(Normal(canvas, self.log_std.exp()), 3).log_prob(goal)


def test_trained_bound_reaches_the_known_likelihood():
    """Two steps, Gaussian data: the bound falls to the entropy of the data, both to 1%, and so does the model's own -log p."""
    horizon, size, shape = 2, 2, (1, 2, 3)
    torch.manual_seed(0)
    s_agent = LinearSAgent(horizon, size, shape)
    spec = NetworkSpec("mlp", shape, horizon, width=48, depth=2, head_width=8, dropout=0.0, patch=1)
    environment = LatentEnvironment(shape, horizon, (1, size), step_size=1.0)
    agents = Agents(environment, s_agent, EncoderGCAgent(environment, spec), GaussianLikelihood(), 256)  # type: ignore[arg-type]
    mixing = torch.randn(6, 3, generator=torch.Generator().manual_seed(1)) * 0.6
    truth = MultivariateNormal(torch.zeros(6), mixing @ mixing.T + 0.15 * torch.eye(6))
    learner = make_learner(agents)
    optimizer = torch.optim.Adam(agents.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2500)
    for _ in range(2500):
        goals = truth.sample((256,)).unflatten(1, shape)
        loss = learner(torch.zeros_like(goals), goals, torch.randn(horizon, 256, 1, size)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    goals = truth.sample((20_000,)).unflatten(1, shape)
    with torch.no_grad():
        trajectory = rollout(agents, torch.zeros_like(goals), goals, torch.randn(horizon, len(goals), 1, size))
        ours = bound(agents, trajectory).total.mean().item()
        weight = torch.cat(list(s_agent.weight), 1)
        covariance = weight @ weight.T + torch.eye(6) * torch.exp(2 * agents.likelihood.log_std)
        model = -MultivariateNormal(torch.zeros(6), covariance).log_prob(goals.flatten(1)).mean().item()
        data = -truth.log_prob(goals.flatten(1)).mean().item()
    assert model - 0.005 <= ours <= model * 1.01
    assert ours <= data * 1.01


# Gradients and memory


def test_gradient_agrees_with_finite_differences():
    """In both agents at once, with the noise held."""
    agents = latent(2)
    noise = noise_for(agents, 6)

    def total() -> Tensor:
        return bound(agents, rollout(agents, START, GOALS, noise)).total.sum()

    total().backward()
    generator = torch.Generator().manual_seed(9)
    checked = 0
    for name, parameter in agents.named_parameters():
        if not parameter.requires_grad:
            continue
        direction = torch.randn(parameter.shape, generator=generator).double()
        assert parameter.grad is not None, name
        slope = (parameter.grad * direction).sum().item()
        with torch.no_grad():
            parameter.add_(1e-5 * direction)
            after = total().item()
            parameter.sub_(2e-5 * direction)
            before = total().item()
            parameter.add_(1e-5 * direction)
        assert (after - before) / 2e-5 == pytest.approx(slope, rel=1e-4, abs=1e-4), name
        checked += 1
    assert checked > 20


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputing_changes_no_gradient(dropout):
    agents = latent(3, dropout=dropout)
    noise = noise_for(agents, 6)
    gradients = []
    for recompute in (False, True):
        learner = PathwiseLearner(agents)
        learner.recompute = recompute
        torch.manual_seed(4)
        agents.zero_grad()
        learner.train()(START, GOALS, noise).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in agents.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], msg=name)


def test_kl_weight_is_in_the_loss_and_not_in_the_bound():
    agents = latent(2)
    noise = noise_for(agents, 6)
    whole, half = (make_learner(agents)(START, GOALS, noise, kl_weight=w) for w in (1.0, 0.5))
    torch.testing.assert_close(whole.bound.total, half.bound.total)
    torch.testing.assert_close(whole.loss - half.loss, 0.5 * whole.bound.kl.sum(0).mean())


def test_more_trajectories_tighten_the_bound():
    agents = latent(2)
    means = []
    with torch.no_grad():
        for k in (1, 4, 32):
            noise = torch.stack([noise_for(agents, 6, seed) for seed in range(k * 30)]).unflatten(0, (30, k))
            means.append(torch.stack([importance_weighted_bound(agents, START, GOALS, n) for n in noise]).mean().item())
    assert means[0] > means[1] > means[2]


# The agents


def test_encoder_that_says_nothing_is_the_prior():
    agents = latent(2)
    with torch.no_grad():
        for head in agents.gc_agent.heads:
            head.weight.zero_()
            head.bias.zero_()
        trajectory = rollout(agents, START, GOALS, noise_for(agents, 6))
    assert trajectory.kl.abs().max() < 1e-12
    assert active_units(trajectory).tolist() == [0, 0]


def test_active_units_are_counted():
    agents = latent(2)
    with torch.no_grad():
        for head in agents.gc_agent.heads:
            head.weight.zero_()
            head.weight[:3].normal_(generator=torch.Generator().manual_seed(0))  # three of the five offsets
            head.bias.zero_()
        trajectory = rollout(agents, START, GOALS, noise_for(agents, 6))
    assert active_units(trajectory).tolist() == [3, 3]


@pytest.mark.parametrize("value", [-1e6, -3.0, 0.0, 2.0, 1e6])
def test_log_deviations_are_bounded_smoothly(value):
    x = torch.tensor(value, dtype=torch.float64, requires_grad=True)
    y = bounded(x)
    y.backward()
    assert abs(y.item()) <= LARGEST_LOG_STD
    assert x.grad >= 0
    if abs(value) <= 2:
        assert y.item() == pytest.approx(value, rel=0.1)


@pytest.mark.parametrize("network", ["mlp", "unet", "transformer"])
@pytest.mark.parametrize("changes", [{}, {"latent_map": False}, {"share_steps": False}])
def test_latents_of_every_kind_reach_the_canvas_and_the_gradient(network, changes):
    agents = latent(2, network=network, **changes)
    noise = noise_for(agents, 6)
    expected = 4 if network != "mlp" and changes != {"latent_map": False} else 1
    assert agents.environment.action_space.shape == (expected, 5)
    with torch.no_grad():  # some parts begin at zero, and pass nothing back to those before them
        for parameter in agents.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)).double() * 0.03)
    make_learner(agents)(START + 0.1, GOALS, noise).loss.backward()
    silent = [
        n for n, p in agents.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.abs().sum() > 0)
    ]
    assert not silent
    one, other = (sample_rollout(agents, START, noise_for(agents, 6, seed)).states[-1] for seed in (1, 2))
    assert (one - other).abs().amax((1, 2, 3)).min() > 1e-3


def test_unshared_steps_have_networks_of_their_own():
    shared, own = latent(3), latent(3, share_steps=False)
    count = sum(p.numel() for p in shared.s_agent.parameters())
    assert sum(p.numel() for p in own.s_agent.parameters()) == 3 * count
    with torch.no_grad():
        before = [own.s_agent(h, START).policy.mean for h in range(3)]
        own.s_agent.prior[1].bias.add_(1.0)
        after = [own.s_agent(h, START).policy.mean for h in range(3)]
    assert [bool((a != b).any()) for a, b in zip(before, after, strict=True)] == [False, True, False]
