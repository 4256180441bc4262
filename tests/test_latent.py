"""Latent proposals against torch.distributions at one step, and against a closed form on a linear-Gaussian world."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from tiny import tiny_goals
from torch import Tensor, nn
from torch.distributions import (
    AffineTransform,
    Categorical,
    Independent,
    MixtureSameFamily,
    Normal,
    SigmoidTransform,
    TransformedDistribution,
    Uniform,
)
from torch.distributions.kl import kl_divergence
from torch.distributions.multivariate_normal import MultivariateNormal

from goalgen.agents import Agents, Decision, SAgent, Seen
from goalgen.bound import bound, importance_weighted_bound
from goalgen.environment import Continuous
from goalgen.families import make
from goalgen.families.latent import EncoderGCAgent, LatentEnvironment, LatentSettings
from goalgen.family import Plan
from goalgen.learning import Clock, active_units, learn_pathwise
from goalgen.likelihoods import Likelihood
from goalgen.networks import NetworkSpec
from goalgen.networks.base import LARGEST_LOG_STD, bounded
from goalgen.policies import Gaussian, Mixture
from goalgen.rollout import draw_noise, rollout, sample_rollout
from goalgen.settings import configure
from goalgen.task import Task

SHAPE = (1, 4, 4)


def latent(horizon: int = 3, *, seed: int = 0, **changes) -> Agents:
    config = configure(
        **{
            "environment": "latent", "horizon": horizon, "width": 24, "depth": 2, "head_width": 12, "latent_size": 5,
            "patch": 2, "step_size": 0.7,
        }
        | changes
    )  # fmt: skip
    return make(config, SHAPE, 5, seed).double()


def noise_for(agents: Agents, batch: int, seed: int = 0) -> Tensor:
    return draw_noise(agents.environment, batch, torch.Generator().manual_seed(seed)).double()


GOALS, START = tiny_goals(6, shape=SHAPE).double(), torch.zeros(6, *SHAPE).double()


# One step is a variational autoencoder


def test_one_step_is_the_evidence_bound_of_a_vae():
    """The bound at H = 1, from torch.distributions alone: a logistic cut into levels, and a Gaussian posterior and prior."""
    agents = latent(1)
    noise = noise_for(agents, 6)
    ours = bound(agents, rollout(agents, Task(START, GOALS), noise))
    decision = agents.s_agent.decide(agents.see(0, START))
    posterior = agents.gc_agent.policy(agents.see(0, START), GOALS, decision)
    z = posterior.mean + posterior.std * noise[0]
    assert isinstance(agents.environment, LatentEnvironment)
    mean = START + 0.7 * decision.offer(z)
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
        MultivariateNormal(d.mean.flatten(1), torch.diag_embed(d.std.square().flatten(1)))
        for d in (posterior, decision.policy)
    ]
    torch.testing.assert_close(ours.kl[0], kl_divergence(*flat))


def test_kl_agrees_with_monte_carlo():
    agents = latent(1)
    goal, start = GOALS[:1].expand(40_000, -1, -1, -1), START[:1].expand(40_000, -1, -1, -1)
    with torch.no_grad():
        trajectory = rollout(agents, Task(start, goal), noise_for(agents, 40_000))
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

    def decide(self, seen: Seen) -> Decision:
        zeros = seen.state.new_zeros(len(seen.state), 1, self.size)
        policy = Gaussian(zeros, torch.ones_like(zeros))
        return Decision(policy, lambda z: (z[:, 0] @ self.weight[seen.step].T).unflatten(1, self.shape))


class GaussianLikelihood(Likelihood):
    """A density in place of levels."""

    def __init__(self) -> None:
        super().__init__()
        self.log_std = nn.Parameter(torch.tensor(-0.7))

    def log_prob(self, goal: Tensor, state: Tensor, *, hold_scale: bool = False) -> Tensor:
        return Independent(Normal(state, self.log_std.exp()), 3).log_prob(goal)


def test_trained_bound_reaches_the_known_likelihood():
    """Two steps, Gaussian data: the bound falls to the entropy of the data, both to 1%, and so does the model's own -log p."""
    horizon, size, shape = 2, 2, (1, 2, 3)
    torch.manual_seed(0)
    s_agent = LinearSAgent(horizon, size, shape)
    spec = NetworkSpec("mlp", shape, horizon, width=48, depth=2, head_width=8, dropout=0.0, patch=1)
    environment = LatentEnvironment(shape, horizon, (1, size), step_size=1.0)
    plan = Plan(shape, 256, spec, LatentSettings(latent_size=size), "encoder")
    agents = Agents(environment, s_agent, EncoderGCAgent(plan, environment), GaussianLikelihood(), shape, 256)
    mixing = torch.randn(6, 3, generator=torch.Generator().manual_seed(1)) * 0.6
    truth = MultivariateNormal(torch.zeros(6), mixing @ mixing.T + 0.15 * torch.eye(6))
    optimizer = torch.optim.Adam(agents.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2500)
    for _ in range(2500):
        goals = truth.sample((256,)).unflatten(1, shape)
        task = Task(torch.zeros_like(goals), goals)
        loss = learn_pathwise(agents, task, torch.randn(horizon, 256, 1, size)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    goals = truth.sample((20_000,)).unflatten(1, shape)
    with torch.no_grad():
        trajectory = rollout(agents, Task(torch.zeros_like(goals), goals), torch.randn(horizon, len(goals), 1, size))
        ours = bound(agents, trajectory).total.mean().item()
        weight = torch.cat(list(s_agent.weight), 1)
        covariance = weight @ weight.T + torch.eye(6) * torch.exp(2 * agents.likelihood.log_std)
        model = -MultivariateNormal(torch.zeros(6), covariance).log_prob(goals.flatten(1)).mean().item()
        data = -truth.log_prob(goals.flatten(1)).mean().item()
    assert model - 0.005 <= ours <= model * 1.01
    assert ours <= data * 1.01


# Gradients and memory


@pytest.mark.parametrize("changes", [{}, {"latent_modes": 3}, {"share_steps": False, "read_start": False}])
def test_gradient_agrees_with_finite_differences(changes):
    """In both agents at once, with the noise held."""
    agents = latent(2, **changes)
    noise = noise_for(agents, 6)

    def total() -> Tensor:
        trajectory = rollout(agents, Task(START, GOALS), noise, through_q=True, through_actions=True)
        return bound(agents, trajectory).total.sum()

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
        torch.manual_seed(4)
        agents.zero_grad()
        learn_pathwise(agents.train(), Task(START, GOALS), noise, recompute=recompute).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in agents.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], msg=name)


def test_kl_weight_is_in_the_loss_and_not_in_the_bound():
    agents = latent(2)
    noise = noise_for(agents, 6)
    whole, half = (learn_pathwise(agents, Task(START, GOALS), noise, kl_weight=w) for w in (1.0, 0.5))
    torch.testing.assert_close(whole.bound.total, half.bound.total)
    torch.testing.assert_close(whole.loss - half.loss, 0.5 * whole.bound.kl.sum(0).mean())


@pytest.mark.parametrize("modes", [1, 4])
def test_more_trajectories_tighten_the_bound(modes):
    agents = latent(2, latent_modes=modes)
    means = []
    with torch.no_grad():
        for k in (1, 4, 32):
            noise = torch.stack([noise_for(agents, 6, seed) for seed in range(k * 30)]).unflatten(0, (30, k))
            means.append(
                torch.stack([importance_weighted_bound(agents, Task(START, GOALS), n) for n in noise]).mean().item()
            )
    assert means[0] > means[1] > means[2]


# The agents


def test_encoder_that_says_nothing_is_the_prior():
    agents = latent(2)
    with torch.no_grad():
        for head in agents.gc_agent.heads:
            head.weight.zero_()
            head.bias.zero_()
        trajectory = rollout(agents, Task(START, GOALS), noise_for(agents, 6))
    assert trajectory.kl.abs().max() < 1e-12
    assert active_units(trajectory).tolist() == [0, 0]


def test_active_units_are_counted():
    agents = latent(2)
    with torch.no_grad():
        for head in agents.gc_agent.heads:
            head.weight.zero_()
            head.weight[:3].normal_(generator=torch.Generator().manual_seed(0))  # three of the five offsets
            head.bias.zero_()
        trajectory = rollout(agents, Task(START, GOALS), noise_for(agents, 6))
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
    agents.learn(Task(START + 0.1, GOALS), {"noise": noise}, Clock()).loss.backward()
    silent = [
        n for n, p in agents.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.abs().sum() > 0)
    ]
    assert not silent
    one, other = (sample_rollout(agents, Task(START), noise_for(agents, 6, seed)).states[-1] for seed in (1, 2))
    assert (one - other).abs().amax((1, 2, 3)).min() > 1e-3


def test_unshared_steps_have_networks_of_their_own():
    shared, own = latent(3), latent(3, share_steps=False)
    count = sum(p.numel() for p in shared.s_agent.parameters())
    assert sum(p.numel() for p in own.s_agent.parameters()) == 3 * count
    with torch.no_grad():
        before = [own.s_agent.decide(own.see(h, START)).policy.mean for h in range(3)]
        own.s_agent.prior[1].bias.add_(1.0)
        after = [own.s_agent.decide(own.see(h, START)).policy.mean for h in range(3)]
    assert [bool((a != b).any()) for a, b in zip(before, after, strict=True)] == [False, True, False]


# Mixtures


def mixture(seed: int = 0, positions: int = 2, modes: int = 4, size: int = 3, batch: int = 1) -> Mixture:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return Mixture(
        draw(batch, positions, size), draw(batch, positions, size).exp(), draw(batch, positions, modes),
        2 * draw(modes, size), (0.3 * draw(modes, size)).exp(),
    )  # fmt: skip


def by_torch(p: Mixture) -> Independent:
    """The same, by torch's own class."""
    mean = p.center.unsqueeze(-2) + p.scale.unsqueeze(-2) * p.mode_mean
    modes = Independent(Normal(mean, p.scale.unsqueeze(-2) * p.mode_std), 1)
    return Independent(MixtureSameFamily(Categorical(logits=p.log_weight), modes), 1)


@pytest.mark.parametrize("seed", range(3))
def test_mixture_has_the_density_of_torchs(seed):
    ours = mixture(seed)
    theirs = by_torch(ours)
    torch.manual_seed(seed)
    values = theirs.sample((50,))
    torch.testing.assert_close(
        torch.stack([ours.log_prob(v) for v in values]), torch.stack([theirs.log_prob(v) for v in values])
    )


def test_actions_of_a_mixture_follow_its_density():
    """Every number against the distribution function of its marginal (Kolmogorov-Smirnov)."""
    count = 4000
    one = mixture(5, batch=1)
    many = Mixture(
        one.center.expand(count, -1, -1), one.scale.expand(count, -1, -1), one.log_weight.expand(count, -1, -1),
        one.mode_mean, one.mode_std,
    )  # fmt: skip
    space = Continuous((2, 3), mixed=True)
    drawn = many.sample(space.noise(count, torch.Generator().manual_seed(1)).double())
    for position in range(2):
        for i in range(3):
            where = one.center[0, position, i] + one.scale[0, position, i] * one.mode_mean[:, i]
            width = one.scale[0, position, i] * one.mode_std[:, i]
            weight = one.log_weight[0, position].exp()

            def distribution(x, where=where, width=width, weight=weight):
                cdf = Normal(where, width).cdf(torch.as_tensor(x).unsqueeze(-1))
                return (cdf * weight).sum(-1).numpy()

            assert stats.kstest(drawn[:, position, i].numpy(), distribution).pvalue > 1e-3
    torch.manual_seed(0)
    # ... and numbers of one position belong to one mode: what they have in common is that of the mixture.
    expected = torch.cov(by_torch(one).sample((100_000,))[:, 0, 0].T)
    torch.testing.assert_close(torch.cov(drawn[:, 0].T), expected, atol=0.08 * float(expected.diag().max()), rtol=0.1)


@pytest.mark.parametrize("seed", range(3))
def test_divergence_from_a_mixture_is_that_of_the_best_choice_of_modes(seed):
    """Least over all ways to choose a mode, then act; no less than the divergence of the actions alone; exact for one mode."""
    p = mixture(seed, positions=1)
    generator = torch.Generator().manual_seed(seed + 10)
    mean, log_std = torch.randn(2, 1, 1, 3, generator=generator, dtype=torch.float64)
    q = Gaussian(mean, (0.3 * log_std).exp())
    ours = q.kl(p)
    modes = [
        Independent(Normal(p.center + p.scale * m, p.scale * s), 2)
        for m, s in zip(p.mode_mean, p.mode_std, strict=True)
    ]
    each = torch.stack([kl_divergence(q.distribution, mode) for mode in modes])[:, 0]
    weight = p.log_weight[0, 0]

    def joint(choice: Tensor) -> Tensor:
        return (choice.exp() * (choice - weight + each)).sum()

    best = (weight - each).log_softmax(0)
    torch.testing.assert_close(ours[0], joint(best))
    others = torch.randn(200, 4, generator=generator, dtype=torch.float64).log_softmax(-1)
    assert all(joint(other) >= ours[0] for other in others)
    torch.manual_seed(seed)
    draws = q.distribution.rsample((100_000,))
    difference = q.distribution.log_prob(draws) - by_torch(p).log_prob(draws)
    assert difference.mean() - 5 * difference.std() / 300 < ours
    alone = Mixture(p.center, p.scale, p.log_weight[..., :1], p.mode_mean[:1], p.mode_std[:1])
    torch.testing.assert_close(q.kl(alone)[0], each[0])


def test_bound_with_a_mixture_is_no_less_than_without_its_choices():
    """The importance-weighted estimate, which sums the modes up, is below the bound, which pays for choosing one."""
    agents = latent(1, latent_modes=3)
    with torch.no_grad():
        noise = torch.stack([noise_for(agents, 6, seed) for seed in range(200)])
        paid = torch.stack([bound(agents, rollout(agents, Task(START, GOALS), n)).total for n in noise]).mean(0)
        summed = torch.stack(
            [importance_weighted_bound(agents, Task(START, GOALS), n.unsqueeze(0)) for n in noise]
        ).mean(0)
    assert (paid > summed - 1e-6).all()
    assert (paid - summed).max() > 0.01


def test_cold_mixture_stays_nearer_to_its_likeliest_mode():
    p = mixture(2, batch=1)
    cold = p.tempered(0.05)
    assert cold.log_weight.exp().max() > 0.99
    torch.testing.assert_close(p.tempered(1.0).log_weight, p.log_weight)
    assert (by_torch(cold).variance < by_torch(p).variance).all()
    assert (p.tempered(2.0).mode_std > p.mode_std).all()


# A start that is not read


def test_start_that_is_not_read_changes_no_decision_and_stays_on_the_canvas():
    agents = latent(2, share_steps=False, read_start=False)
    noise, other = noise_for(agents, 6), START + 0.3
    first, second = (
        agents.s_agent.decide(agents.see(0, START)).policy,
        agents.s_agent.decide(agents.see(0, other)).policy,
    )
    assert torch.equal(first.mean.expand_as(second.mean), second.mean)
    with torch.no_grad():
        near, far = (rollout(agents, Task(start, GOALS), noise) for start in (START, other))
    torch.testing.assert_close(far.states[1] - near.states[1], other)
    with torch.no_grad():
        agents.s_agent.prior[1].weight.normal_(generator=torch.Generator().manual_seed(0))
        one, two = (agents.s_agent.decide(agents.see(1, canvas)).policy.mean for canvas in (START, other))
    assert (one - two).abs().max() > 1e-6


def test_start_that_is_not_read_saves_two_fifths_of_the_weights():
    """... of an mlp for 28x28 images at one step, as the guide says."""
    whole, less = (
        sum(p.numel() for p in make(config, (1, 28, 28), 256).parameters())
        for config in (
            configure(
                environment="latent", horizon=1, width=500, head_width=250, latent_size=32, latent_modes=64, read_start=read
            )
            for read in (True, False)
        )
    )  # fmt: skip
    assert less == pytest.approx(0.6 * whole, rel=0.03)
