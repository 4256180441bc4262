"""The bridge against diffusers' DDPM scheduler, closed forms and Monte Carlo."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from tiny import tiny_goals
from torch import Tensor

import goalgen
from goalgen.agents import Agents
from goalgen.bound import bound
from goalgen.errors import GoalgenError
from goalgen.families import make
from goalgen.families.bridge import BridgeEnvironment, BridgeGCAgent, BridgeSAgent, Look, Schedule, even_schedule
from goalgen.learning import Clock, spread_steps
from goalgen.rollout import draw_noise, even_path, rollout, sample_rollout
from goalgen.settings import configure
from goalgen.task import Task

SHAPE = (1, 4, 4)


def bridge(gc_agent: str = "fixed", horizon: int = 6, *, seed: int = 0, jitter: float = 0.0, **changes) -> Agents:
    """Agents of the bridge in double precision; ``jitter`` moves every learned number off its initial value."""
    config = configure(
        environment="bridge", gc_agent=gc_agent, horizon=horizon, width=24, depth=2, head_width=12, **changes
    )
    agents = make(config, SHAPE, 5, seed).double()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in agents.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).double() * jitter)
    return agents


def goals_and_start(count: int = 8) -> tuple[Tensor, Tensor]:
    start = torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(5)).double() - 0.5
    return tiny_goals(count, shape=SHAPE).double(), start


def parts(agents: Agents) -> tuple[BridgeEnvironment, BridgeGCAgent, BridgeSAgent]:
    assert isinstance(agents.environment, BridgeEnvironment)
    assert isinstance(agents.gc_agent, BridgeGCAgent)
    assert isinstance(agents.s_agent, BridgeSAgent)
    return agents.environment, agents.gc_agent, agents.s_agent


# Against diffusers


def ddpm(steps: int):
    schedulers = pytest.importorskip("diffusers.schedulers")
    return schedulers.DDPMScheduler(
        steps,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        clip_sample=False,
        variance_type="fixed_small",
    )


def ddpm_bridge(scheduler, seed: int = 0) -> Agents:
    """The fixed bridge with the scheduler's signal-to-noise ratios, from a black canvas: its step h is DDPM's T - h."""
    share = scheduler.alphas_cumprod.double().flip(0)
    agents = bridge("fixed", len(share), seed=seed, jitter=0.02, learn_snr=False)
    agents.environment.schedule = Schedule(torch.log(share / (1 - share)), learn=False)
    return agents


def scale(scheduler) -> Tensor:
    """A canvas here over the same canvas of DDPM: ours ends with the goal at full strength."""
    return scheduler.alphas_cumprod[0].double().rsqrt()


@pytest.mark.parametrize("steps", [5, 50])
def test_kl_of_every_step_is_the_posterior_kl_of_ddpm(steps):
    scheduler = ddpm(steps)
    agents = ddpm_bridge(scheduler)
    _, gc_agent, s_agent = parts(agents)
    goals, _ = goals_and_start()
    start = torch.zeros_like(goals)
    generator = torch.Generator().manual_seed(0)
    for h in range(1, steps):
        timestep = steps - h
        noise = torch.randn(goals.shape, generator=generator).double()
        noisy = scheduler.add_noise(goals, noise, torch.full((len(goals),), timestep))
        canvas = noisy.double() * scale(scheduler)
        seen = agents.see(h, torch.cat([canvas, start], 1))
        q = gc_agent.step(seen.h, canvas, gc_agent.look(seen, goals))
        look = s_agent.look(seen)
        ours = q.kl(s_agent.act(seen, look))
        # DDPM's mean for a prediction of the clean image, its noise taken away again.
        variance = scheduler._get_variance(timestep).double()
        means = []
        for prediction in (goals, look.guess):
            seeded = torch.Generator().manual_seed(1)
            after = scheduler.step(prediction, timestep, noisy, generator=seeded).prev_sample.double()
            drawn = torch.randn(prediction.shape, generator=torch.Generator().manual_seed(1), dtype=prediction.dtype)
            means.append(after - variance.sqrt() * drawn)
        theirs = (means[0] - means[1]).square().sum((1, 2, 3)) / (2 * variance)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_same_noise_gives_the_trajectory_of_ddpm():
    scheduler = ddpm(40)
    agents = ddpm_bridge(scheduler)
    start = torch.zeros(3, *SHAPE).double()
    noise = draw_noise(agents.environment, 3, torch.Generator().manual_seed(2)).double()
    samples = sample_rollout(agents, Task(start), noise)
    canvases = samples.actions  # x_1 .. x_H
    theirs = canvases[0] / scale(scheduler)
    for h in range(1, 40):
        state = torch.cat([theirs * scale(scheduler), start], 1)
        guess = agents.s_agent.decide(agents.see(h, state)).offer.guess
        mean = scheduler.step(guess, 40 - h, theirs, generator=torch.Generator().manual_seed(0)).prev_sample
        drawn = torch.randn(guess.shape, generator=torch.Generator().manual_seed(0), dtype=guess.dtype)
        deviation = scheduler._get_variance(40 - h).double().sqrt()
        theirs = mean + deviation * (noise[h] - drawn)
        torch.testing.assert_close(canvases[h], theirs * scale(scheduler), rtol=1e-5, atol=1e-5)
    # DDPM's last step adds no noise: it is the prediction, as the last canvas is read here.
    read = parts(agents)[2].look(agents.see(40, torch.cat([theirs * scale(scheduler), start], 1))).guess
    theirs = scheduler.step(read, 0, theirs).prev_sample
    torch.testing.assert_close(agents.environment.canvas(samples.states[-1]), theirs, rtol=1e-5, atol=1e-5)


# Closed forms


def test_kl_telescopes_to_differences_of_the_signal_to_noise_ratio():
    agents = bridge("fixed", jitter=0.1)
    goals, start = goals_and_start()
    noise = draw_noise(agents.environment, len(goals), torch.Generator().manual_seed(3)).double()
    trajectory = rollout(agents, Task(start, goals), noise, keep_offers=True)
    environment, _, _ = parts(agents)
    snr = torch.cat([torch.zeros(1), environment.schedule.log_snr.exp()])
    for h in range(agents.horizon):
        error = (goals - trajectory.decisions[h].offer.guess).square().sum((1, 2, 3))
        expected = 0.5 * (snr[h + 1] - snr[h]) * error
        torch.testing.assert_close(trajectory.kl[h], expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("gc_agent", ["fixed", "learned"])
def test_episodes_have_the_marginals_of_equation_9(gc_agent):
    agents = bridge(gc_agent, 4, jitter=0.3)
    environment, agent, _ = parts(agents)
    goals, start = goals_and_start(1)
    count = 20_000
    many, begin = goals.expand(count, -1, -1, -1), start.expand(count, -1, -1, -1)
    noise = draw_noise(environment, count, torch.Generator().manual_seed(4)).double()
    with torch.no_grad():
        canvases = rollout(agents, Task(begin, many), noise).actions  # x_1 .. x_4
        told = agent.look(agents.see(0, environment.initial(start)), goals)
        for h in range(1, 5):
            mean, std = agent.marginal(torch.tensor([h]), told)
            error = std / count**0.5
            assert ((canvases[h - 1].mean(0) - mean).abs() < 5 * error).all()
            torch.testing.assert_close(canvases[h - 1].std(0), std[0], rtol=0.04, atol=0)


def test_the_learned_agent_starts_as_the_fixed_one():
    goals, start = goals_and_start()
    fixed, learned = bridge("fixed"), bridge("learned")
    noise = draw_noise(fixed.environment, len(goals), torch.Generator().manual_seed(6)).double()
    one, other = (rollout(agents, Task(start, goals), noise) for agents in (fixed, learned))
    torch.testing.assert_close(one.states, other.states, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(one.kl, other.kl, rtol=1e-9, atol=1e-9)


def test_the_learned_agent_moves_away_from_it():
    """Every kind of freedom receives a gradient: mean, noise, correlation, and what the S-agent makes of them."""
    agents = bridge("learned", jitter=0.05)
    goals, start = goals_and_start()
    steps = 1 + spread_steps(len(goals), agents.horizon, torch.Generator().manual_seed(0))
    noise = torch.randn(1, *goals.shape, generator=torch.Generator().manual_seed(0)).double()
    agents.learn(Task(start, goals), {"noise": noise, "steps": steps.unsqueeze(0)}, Clock()).loss.backward()
    for name in (
        "gc_agent.head.weight",
        "gc_agent.log_odds",
        "gc_agent.gain",
        "s_agent.departure.weight",
        "s_agent.log_gain",
    ):
        assert agents.get_parameter(name).grad.abs().sum() > 0, name
    assert agents.get_parameter("environment.schedule.first").grad.abs().sum() > 0


@pytest.mark.parametrize("horizon", [1, 5])
@pytest.mark.parametrize("first_look", [False, True])
@pytest.mark.parametrize("gc_agent", ["fixed", "learned"])
def test_one_step_of_each_episode_estimates_the_bound(gc_agent, first_look, horizon):
    """The mean of many draws of (h, x_h) agrees with whole episodes, within four standard errors."""
    agents = bridge(gc_agent, horizon, jitter=0.1, first_look=first_look).eval()
    goals, start = goals_and_start(1)
    count = 4_000
    many, begin = goals.expand(count, -1, -1, -1), start.expand(count, -1, -1, -1)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        noise = draw_noise(agents.environment, count, generator).double()
        whole = bound(agents, rollout(agents, Task(begin, many), noise))
        draws = agents.draw(count, lambda _: generator)
        assert draws["steps"].unique().tolist() == list(range(0 if first_look else 1, horizon + 1))
        one = agents.learn(Task(begin, many), {**draws, "noise": draws["noise"].double()}, Clock()).bound
    for ours, theirs in ((one.total, whole.total), (one.reconstruction, whole.reconstruction)):
        error = (ours.var() / count + theirs.var() / count).sqrt()
        assert (ours.mean() - theirs.mean()).abs() < 4 * error
    torch.testing.assert_close(one.kl.mean(1), whole.kl.mean(1), rtol=0.15, atol=0.05)


@pytest.mark.parametrize(("batch", "horizon"), [(12, 4), (5, 8), (64, 1), (7, 7)])
def test_steps_are_spread_evenly(batch, horizon):
    steps = [spread_steps(batch, horizon, torch.Generator().manual_seed(seed)) for seed in range(400)]
    counts = torch.stack([torch.bincount(s, minlength=horizon) for s in steps])
    assert counts.min() >= batch // horizon
    assert counts.max() <= -(-batch // horizon)
    torch.testing.assert_close(
        counts.double().mean(0), torch.full((horizon,), batch / horizon).double(), rtol=0.2, atol=0
    )


# The schedule


def test_schedule_goes_from_no_goal_to_the_whole_goal():
    schedule = even_schedule(7, -4.0, 5.0).double()
    h = torch.arange(8)
    alpha, sigma = schedule.alpha(h).detach(), schedule.sigma(h).detach()
    assert alpha[0] == 0
    assert alpha[-1] == pytest.approx(1)
    assert (alpha.diff() > 0).all()
    torch.testing.assert_close(2 * torch.log(alpha[1:] / sigma[1:]), torch.linspace(-4, 5, 7).double())


def test_schedule_stays_in_order_whatever_is_learned():
    schedule = even_schedule(5, -2.0, 4.0)
    with torch.no_grad():
        schedule.log_gap.normal_(std=3)
    assert (schedule.log_snr.diff() > 0).all()


@pytest.mark.parametrize("grid", [[0.0, 0.0], [1.0, -1.0], [0.0, float("nan")]])
def test_schedule_that_does_not_rise_is_refused(grid):
    with pytest.raises(GoalgenError, match="rise from step to step"):
        Schedule(torch.tensor(grid))


# Fewer steps


def test_a_jump_is_the_steps_that_it_replaces():
    """With the guess held, two steps of the fixed agent have the mean and variance of one step over both."""
    agents = bridge("fixed", 6)
    environment, agent, s_agent = parts(agents)
    goals, start = goals_and_start()
    canvas = start + torch.randn(start.shape, generator=torch.Generator().manual_seed(8)).double()
    seen = agents.see(2, torch.cat([canvas, start], 1), to=4)
    told = agent.look(seen, goals)
    first = agent.step(torch.tensor([2]), canvas, told)
    second = agent.step(torch.tensor([3]), first.mean, told)
    slope = environment.schedule.correlation(torch.tensor([3]), torch.tensor([4]))[0]
    slope = slope * environment.schedule.sigma(torch.tensor([4])) / environment.schedule.sigma(torch.tensor([3]))
    variance = second.std**2 + slope**2 * first.std**2
    # The S-agent's jump, with its guess taken as the goal.
    decision = s_agent.decide(seen)
    told = agent.look(seen, decision.offer.guess)
    first = agent.step(torch.tensor([2]), canvas, told)
    second = agent.step(torch.tensor([3]), first.mean, told)
    torch.testing.assert_close(decision.policy.mean, second.mean)
    torch.testing.assert_close(decision.policy.std**2, variance)


@pytest.mark.parametrize(("horizon", "count"), [(10, 1), (10, 3), (10, 10), (7, 4)])
def test_paths_run_from_the_first_step_to_the_last(horizon, count):
    path = even_path(horizon, count)
    assert path[0] == 0
    assert path[-1] == horizon
    assert len(path) == count + 1
    assert all(a < b for a, b in pairwise(path))


def test_fewer_steps_make_other_images_with_fewer_evaluations():
    agents = bridge("fixed", 6, jitter=0.1)
    start = torch.zeros(4, *SHAPE).double()
    noise = draw_noise(agents.environment, 4, torch.Generator().manual_seed(0)).double()
    assert len(sample_rollout(agents, Task(start), noise, path=even_path(6, 2)).states) == 3
    every = sample_rollout(agents, Task(start), noise, path=range(7)).states
    torch.testing.assert_close(every, sample_rollout(agents, Task(start), noise).states)


def test_a_learned_bridge_that_has_learned_nothing_yet_skips_as_the_fixed_one():
    start = torch.zeros(4, *SHAPE).double()
    fixed, learned = bridge("fixed", 6), bridge("learned", 6)
    noise = draw_noise(fixed.environment, 4, torch.Generator().manual_seed(0)).double()
    one, other = (sample_rollout(agents, Task(start), noise, path=[0, 2, 6]).states for agents in (fixed, learned))
    torch.testing.assert_close(one, other)
    moved = bridge("learned", 6, jitter=0.1)
    assert torch.isfinite(sample_rollout(moved, Task(start), noise, path=[0, 3, 6]).states).all()


# The correlation of sampling


@pytest.mark.parametrize("evaluations", [50, 10])
def test_at_correlation_one_it_is_ddim(evaluations):
    """Against diffusers: the same first noise, the same network, the same steps, and no noise after the first."""
    schedulers = pytest.importorskip("diffusers.schedulers")
    settings = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample", "clip_sample": False}
    ddim = schedulers.DDIMScheduler(50, set_alpha_to_one=True, timestep_spacing="leading", **settings)
    ddim.set_timesteps(evaluations)
    agents = ddpm_bridge(ddpm(50))
    start = torch.zeros(3, *SHAPE).double()
    noise = draw_noise(agents.environment, 3, torch.Generator().manual_seed(2)).double()
    steps = [0, *(50 - int(t) for t in ddim.timesteps)]  # DDPM's timestep t is step 50 - t here
    ours = sample_rollout(agents, Task(start), noise, path=steps, correlation=1.0)
    canvas = ours.actions[0] / scale(ddim)
    for timestep in ddim.timesteps:
        seen = agents.see(50 - int(timestep), torch.cat([canvas * scale(ddim), start], 1))
        guess = parts(agents)[2].look(seen).guess
        canvas = ddim.step(guess, int(timestep), canvas, eta=0.0).prev_sample
    torch.testing.assert_close(agents.environment.canvas(ours.states[-1]), canvas, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_marginals_are_the_same_at_every_correlation(share):
    """With the goal itself as the guess, canvases have the mean and variance of equation 9, however much noise is carried along."""
    agents = bridge("fixed", 4)
    _, agent, s_agent = parts(agents)
    goals, start = goals_and_start(1)
    count = 20_000
    generator = torch.Generator().manual_seed(0)
    many, begin = goals.expand(count, -1, -1, -1), start.expand(count, -1, -1, -1)
    canvas = begin
    for h in range(4):
        seen = agents.see(h, torch.cat([canvas, begin], 1))
        policy = s_agent.act(seen, Look(many)).correlated(share)
        canvas = policy.sample(torch.randn(canvas.shape, generator=generator).double())
        mean, std = agent.marginal(seen.to, agent.look(seen, many))
        assert ((canvas.mean(0) - mean[0]).abs() < 5 * std[0] / count**0.5).all()
        torch.testing.assert_close(canvas.std(0), std[0], rtol=0.04, atol=0)


def test_correlation_of_other_families_is_refused(tmp_path):
    model = goalgen.load("zoo:digits")
    with pytest.raises(GoalgenError, match="actions have no correlation"):
        model.sample(1, correlation=0.5)
    with pytest.raises(GoalgenError, match="must be from 0 to 1, not 2"):
        sample_rollout(
            bridge("fixed"), Task(torch.zeros(1, *SHAPE).double()), torch.zeros(6, 1, *SHAPE), correlation=2.0
        )


# Discount and clamped guesses


@pytest.mark.parametrize("gc_agent", ["fixed", "learned"])
def test_a_discount_weighs_the_loss_and_not_the_bound(gc_agent):
    plain, cut = bridge(gc_agent, 5, jitter=0.1).eval(), bridge(gc_agent, 5, jitter=0.1, discount=1.0).eval()
    goals, start = goals_and_start(10)
    noise = torch.randn(1, 10, *SHAPE, generator=torch.Generator().manual_seed(0)).double()
    for h in range(5):
        draws = {"noise": noise, "steps": torch.full((1, 10), h + 1)}
        one, other = (agents.learn(Task(start, goals), draws, Clock()) for agents in (plain, cut))
        torch.testing.assert_close(one.bound.total, other.bound.total)
        first = one.bound.kl[0].mean()
        snr = plain.environment.schedule.log_snr[h].exp()
        torch.testing.assert_close(other.loss - first, (one.loss - first) / (1 + snr / math.e), check_dtype=False)
    weights = cut.weight(torch.arange(6))
    assert weights[0] == 1
    assert (weights.diff() < 0).all()


def test_clamped_guesses_stay_in_range_and_learn_all_the_same():
    agents = bridge("fixed", 4, jitter=0.5, clamp_guess=True)
    seen = agents.see(2, torch.full((3, 2, 4, 4), 1.5).double())
    assert agents.train().s_agent.look(seen).guess.abs().max() > 1
    assert agents.eval().s_agent.look(seen).guess.abs().max() <= 1


def test_temperature_narrows_the_policy():
    agents = bridge("fixed", 3)
    start = torch.zeros(500, *SHAPE).double()
    noise = draw_noise(agents.environment, 500, torch.Generator().manual_seed(0)).double()
    wide, narrow = (sample_rollout(agents, Task(start), noise, t).states[1, :, :1].std() for t in (1.0, 0.25))
    assert narrow < 0.75 * wide


# The start


def test_the_start_stays_in_view_and_noise_is_around_it():
    agents = bridge("fixed", 5)
    environment, _, _ = parts(agents)
    goals, start = goals_and_start()
    noise = draw_noise(environment, len(goals), torch.Generator().manual_seed(1)).double()
    states = rollout(agents, Task(start, goals), noise).states
    for state in states:
        torch.testing.assert_close(environment.start(state), start)
    torch.testing.assert_close(environment.canvas(states[0]), start)
    alpha = environment.schedule.alpha(torch.tensor([1])).item()
    sigma = environment.schedule.sigma(torch.tensor([1])).item()
    torch.testing.assert_close(environment.canvas(states[1]), start + alpha * (goals - start) + sigma * noise[0])


def test_the_policy_at_what_is_seen_is_the_step():
    agents = bridge("learned", jitter=0.1)
    _, agent, _ = parts(agents)
    goals, start = goals_and_start()
    canvas = start + 0.1
    state = torch.cat([canvas, start], 1)
    decision = agents.s_agent.decide(agents.see(2, state))
    seen = agents.see(2, state)
    q = agent.policy(seen, goals, decision)
    expected = agent.step(seen.h, canvas, agent.look(seen, goals))
    torch.testing.assert_close(q.mean, expected.mean)
    torch.testing.assert_close(q.std, expected.std)


@pytest.mark.parametrize("horizon", [1, 4])
def test_the_fixed_agent_learns_by_the_squared_error_that_its_divergence_is(horizon):
    agents = bridge("fixed", horizon, jitter=0.1)
    goals, start = goals_and_start(24)
    noise = torch.randn(1, 24, *SHAPE, generator=torch.Generator().manual_seed(6)).double()
    steps = 1 + torch.arange(24) % horizon
    _, gc_agent, _ = parts(agents)
    found = []
    for short in (True, False):
        agents.zero_grad()
        gc_agent.follows_schedule = short  # without it: KL of the two policies, as of any agent
        learned = agents.learn(Task(start, goals), {"noise": noise, "steps": steps.unsqueeze(0)}, Clock())
        learned.loss.backward()
        gradients = {n: p.grad.clone() for n, p in agents.named_parameters() if p.grad is not None}
        found.append((learned.loss, learned.bound.kl, gradients))
    torch.testing.assert_close(*(loss for loss, _, _ in found), rtol=1e-9, atol=0)
    torch.testing.assert_close(*(kl for _, kl, _ in found), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(*(gradients for _, _, gradients in found), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("gc_agent", ["fixed", "learned"])
def test_a_batch_in_which_nobody_is_at_the_last_step(gc_agent):
    agents = bridge(gc_agent, 6, jitter=0.1)
    goals, start = goals_and_start(3)
    noise = torch.randn(1, 3, *SHAPE, generator=torch.Generator().manual_seed(6)).double()
    learned = agents.learn(Task(start, goals), {"noise": noise, "steps": torch.tensor([1, 3, 5]).unsqueeze(0)}, Clock())
    learned.loss.backward()
    assert torch.isfinite(learned.loss)
    assert learned.bound.reconstruction.tolist() == [0.0, 0.0, 0.0]
