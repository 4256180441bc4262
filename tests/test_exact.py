"""The deepest test of the project: on a world that can be enumerated, the bound is what docs/math.md says."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from tiny import LEVELS, SHAPE, tiny_agents, tiny_goals, tiny_start

from goalgen import exact
from goalgen.bound import bits_per_dim, bound, importance_weighted_bound
from goalgen.families.proposals import ProposalsEnvironment
from goalgen.learning import Clock
from goalgen.rollout import draw_noise, rollout
from goalgen.task import Task


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def double_agents(*args, **kwargs):
    return tiny_agents(*args, **kwargs).double()


def goals(count=6, **kwargs):
    return tiny_goals(count, **kwargs).double()


def test_likelihood_sums_to_one_over_all_images():
    """sum over every 2x2 image of p(g | x_0) = 1: the whole generative model is normalised."""
    agents = double_agents()
    axis = torch.linspace(-1, 1, LEVELS)
    every = torch.cartesian_prod(axis, axis, axis, axis).view(-1, *SHAPE)
    log_p = exact.log_likelihood(agents, Task(tiny_start(len(every)).double(), every))
    assert log_p.exp().sum().item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("kind", ["greedy", "posterior", "value"])
@pytest.mark.parametrize("seed", range(5))
def test_bound_is_never_below_the_negative_log_likelihood(kind, seed):
    agents = double_agents(kind, seed=seed)
    start = tiny_start().double()
    nll = -exact.log_likelihood(agents, Task(start, goals(seed=seed)))
    assert (exact.expected_bound(agents, Task(start, goals(seed=seed))) - nll).min() > 0


@pytest.mark.parametrize("seed", range(3))
def test_bound_is_tight_with_the_optimal_gc_agent(seed):
    agents = double_agents(seed=seed)
    start = tiny_start().double()
    exact.OptimalGCAgent(agents)
    nll = -exact.log_likelihood(agents, Task(start, goals(seed=seed)))
    assert torch.allclose(exact.expected_bound(agents, Task(start, goals(seed=seed))), nll, atol=1e-5, rtol=0)
    # and then every single trajectory has the same importance weight
    noise = draw_noise(agents.environment, 6, torch.Generator().manual_seed(0))
    one = importance_weighted_bound(agents, Task(start, goals(seed=seed)), noise.unsqueeze(0).double())
    assert torch.allclose(one, nll, atol=1e-5, rtol=0)


def test_gap_is_the_divergence_of_trajectories_with_a_grid_of_choices():
    """Four cells choose on their own; KL(q(tau | g) || p(tau | g)) is summed over all 256 trajectories. (Equation 7)"""
    agents = double_agents(grid=2, horizon=2, actions=2)
    start, told = tiny_start().double(), goals()
    evidence = exact.log_likelihood(agents, Task(start, told))
    divergence = torch.zeros(len(told)).double()
    joint = agents.environment.action_space.every()
    for trajectory in itertools.product(joint, repeat=2):
        state = agents.environment.initial(start)
        log_q, log_p = torch.zeros(len(told)).double(), torch.zeros(len(told)).double()
        for h, action in enumerate(trajectory):
            actions = action.expand(len(told), -1)
            decision = agents.s_agent.decide(agents.see(h, state))
            q = agents.gc_agent.policy(agents.see(h, state), told, decision)
            log_q, log_p = log_q + q.log_prob(actions), log_p + decision.policy.log_prob(actions)
            state = agents.environment.transition(torch.full((len(told),), h), state, actions, decision.offer)
        posterior = log_p + agents.likelihood.log_prob(told, state) - evidence
        divergence += log_q.exp() * (log_q - posterior)
    gap = exact.expected_bound(agents, Task(start, told)) + evidence
    assert gap.min() > 1e-3
    torch.testing.assert_close(gap, divergence)


def test_sampled_bound_agrees_with_the_exact_expectation():
    agents = double_agents(seed=2)
    count, repeats = 4, 4000
    g, start = goals(count), tiny_start(count).double()
    expected = exact.expected_bound(agents, Task(start, g))
    noise = draw_noise(agents.environment, count * repeats, torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        trajectory = rollout(agents, Task(start.repeat(repeats, 1, 1, 1), g.repeat(repeats, 1, 1, 1)), noise)
        sampled = bound(agents, trajectory).total.view(repeats, count)
    error = sampled.std(0) / math.sqrt(repeats)
    assert ((sampled.mean(0) - expected).abs() < 5 * error).all()


def test_importance_weighted_bound_falls_to_the_likelihood_as_k_grows():
    agents = double_agents(seed=3)
    with torch.no_grad():
        agents.gc_agent.log_temperature.fill_(math.log(4))  # a broad q, whose weights have a finite variance
    count, repeats = 4, 50
    g, start = goals(count), tiny_start(count).double()
    nll = -exact.log_likelihood(agents, Task(start, g))
    previous = exact.expected_bound(agents, Task(start, g)).mean()
    generator = torch.Generator().manual_seed(2)
    for k in (4, 16, 128):
        noise = torch.stack([draw_noise(agents.environment, count * repeats, generator) for _ in range(k)]).double()
        estimate = importance_weighted_bound(
            agents, Task(start.repeat(repeats, 1, 1, 1), g.repeat(repeats, 1, 1, 1)), noise
        ).view(repeats, count)
        mean, error = estimate.mean(), estimate.mean(1).std() / math.sqrt(repeats)
        assert mean < previous - 2 * error  # strictly tighter
        assert mean > nll.mean() - 3 * error  # from above
        previous = mean
    assert previous - nll.mean() < 0.02


def test_gradient_of_the_bound_agrees_with_finite_differences():
    """With the GC-agent's choices held, backprop through the whole episode is the exact gradient of J."""
    agents = double_agents(seed=4)
    g, start = goals(), tiny_start().double()
    noise = draw_noise(agents.environment, 6, torch.Generator().manual_seed(0)).double()
    reference = rollout(agents, Task(start, g), noise)

    def j() -> torch.Tensor:
        """J with q and the actions of the reference episode."""
        state, total = start, torch.zeros(6)
        for h in range(agents.horizon):
            step = torch.full((6,), h)
            decision = agents.s_agent.decide(agents.see(h, state))
            total = total + reference.q[h].kl(decision.policy)
            state = agents.environment.transition(step, state, reference.actions[h], decision.offer)
        return (total - agents.likelihood.log_prob(g, state)).mean()

    terms = bound(agents, reference)
    parameters = agents.generative_parameters()
    gradients = torch.autograd.grad(terms.total.mean(), parameters, allow_unused=True)
    generator = torch.Generator().manual_seed(5)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        assert gradient is not None
        direction = torch.randn(parameter.shape, generator=generator)
        step = 1e-5
        with torch.no_grad():
            parameter.add_(direction, alpha=step)
            up = j()
            parameter.add_(direction, alpha=-2 * step)
            down = j()
            parameter.add_(direction, alpha=step)
        numeric = ((up - down) / (2 * step)).item()
        assert numeric == pytest.approx((gradient * direction).sum().item(), rel=1e-4, abs=1e-6)


def test_replay_gives_the_same_bound_and_the_same_gradient_where_networks_see_no_earlier_canvas():
    """With one step, and scales that do not look at the canvas, the two paths of the gradient are the same."""
    for horizon in (1, 3):
        noise = draw_noise(double_agents(horizon=horizon).environment, 6, torch.Generator().manual_seed(0)).double()
        losses, gradients = [], []
        for backprop in ("full", "chosen"):
            agents = double_agents(seed=1, horizon=horizon, backprop=backprop)
            torch.nn.init.zeros_(agents.likelihood.scale_network[-1].weight)
            learned = agents.learn(Task(tiny_start().double(), goals()), {"noise": noise}, Clock())
            losses.append(learned.bound.total)
            agents.zero_grad()
            learned.loss.backward()
            gradients.append([p.grad.clone() for p in agents.generative_parameters()])
        assert torch.allclose(*losses, atol=1e-10)
        if horizon == 1:
            for a, b in zip(*gradients, strict=True):
                assert torch.allclose(a, b, atol=1e-10)


def test_temperature_gradient_is_the_gradient_of_the_exact_bound():
    """The policy gradient of equation 15, averaged over episodes, against finite differences of the enumerated J."""
    from goalgen.learning import temperature_loss

    agents = double_agents("posterior", seed=6)
    agent = agents.gc_agent
    count, repeats = 3, 20000
    g, start = goals(count), tiny_start(count).double()
    noise = draw_noise(agents.environment, count * repeats, torch.Generator().manual_seed(3)).double()
    with torch.no_grad():
        trajectory = rollout(agents, Task(start.repeat(repeats, 1, 1, 1), g.repeat(repeats, 1, 1, 1)), noise)
        terms = bound(agents, trajectory)
    (gradient,) = torch.autograd.grad(
        temperature_loss(agent.log_temperature, agents.environment, trajectory, terms), agent.log_temperature
    )
    for h in range(agents.horizon - 1):
        values = []
        for step in (1e-4, -1e-4):
            with torch.no_grad():
                agent.log_temperature[h] += step
                values.append(exact.expected_bound(agents, Task(start, g)).mean().item())
                agent.log_temperature[h] -= step
        numeric = (values[0] - values[1]) / 2e-4
        assert gradient[h].item() == pytest.approx(numeric, abs=0.02 + 0.05 * abs(numeric))


def test_value_agent_closes_the_gap_that_posterior_leaves():
    """Soft value learning (equations 5, 6, 8, 16), the S-agent held fixed, finds the optimum."""
    torch.set_default_dtype(torch.float32)
    agents = tiny_agents("value", seed=7)
    g, start = tiny_goals(4), tiny_start(4)
    for parameter in agents.generative_parameters():
        parameter.requires_grad_(False)
    with torch.no_grad():
        nll = -exact.log_likelihood(agents, Task(start, g))
        untrained = exact.expected_bound(agents, Task(start, g))  # V = Phi: the posterior agent
        posterior = tiny_agents("posterior", seed=7)
        assert torch.allclose(exact.expected_bound(posterior, Task(start, g)), untrained, atol=1e-4)
    optimiser = torch.optim.Adam(agents.gc_parameters(), 1e-2)
    updates = 700
    for step in range(updates):
        for group in optimiser.param_groups:
            group["lr"] = 1e-2 * (1 - step / updates)
        generator = torch.Generator().manual_seed(step)
        noise = draw_noise(agents.environment, 256, generator)
        interrupt = torch.rand(3, 256, 2, generator=generator)
        interrupt[:, :, 0] -= 0.1  # chain dropout: one action in ten is random, so that V is right there too
        task = Task(start, g).repeat(64)
        learned = agents.learn(task, {"noise": noise, "interrupt": interrupt}, Clock())
        optimiser.zero_grad()
        learned.loss.backward()
        optimiser.step()
    with torch.no_grad():
        gap_before, gap_after = (untrained - nll).mean(), (exact.expected_bound(agents, Task(start, g)) - nll).mean()
    assert gap_before > 0.1
    assert gap_after <= 0.01 * gap_before


def test_bits_per_dim():
    assert bits_per_dim(math.log(2) * 12, (3, 2, 2)) == pytest.approx(1.0)


def test_enumeration_refuses_what_is_too_large():
    from goalgen.errors import GoalgenError

    agents = double_agents(horizon=20)
    assert isinstance(agents.environment, ProposalsEnvironment)
    with pytest.raises(GoalgenError, match="too many to enumerate"):
        exact.log_likelihood(agents, Task(tiny_start().double(), goals()))
