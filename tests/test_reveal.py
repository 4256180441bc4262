"""Reveals: J is the negative log-likelihood itself, against brute force and a PixelCNN's own computation."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from runs import tiny_config
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    Categorical,
    SigmoidTransform,
    TransformedDistribution,
    Uniform,
)

from goalgen import cli, evaluate, load
from goalgen.bound import bound, importance_weighted_bound
from goalgen.check import check_family
from goalgen.errors import GoalgenError
from goalgen.families import make
from goalgen.families.reveal.environment import RevealEnvironment, group_ends, position_order
from goalgen.families.reveal.policies import Copy, Logistics, Pixels
from goalgen.learning import Clock
from goalgen.likelihoods import discretised_logistic_log_prob
from goalgen.rollout import draw_noise, rollout, sample_rollout
from goalgen.settings import configure
from goalgen.task import Task
from goalgen.training import train

LEVELS = 3


def reveal(shape=(1, 2, 2), horizon=4, seed=0, **settings):
    """A model of tiny images, every weight off its initial value."""
    values = {"environment": "reveal", "horizon": horizon, "width": 16, "depth": 1, "head_width": 8, "reveal_modes": 3,
              "reveal_values": "logistics"}  # fmt: skip
    family = make(configure(**values | settings), shape, LEVELS, seed).double().eval()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in family.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).double() * 0.3)
    return family


def every_image(shape: tuple[int, int, int]) -> Tensor:
    levels = torch.linspace(-1, 1, LEVELS, dtype=torch.float64)
    return torch.tensor(list(itertools.product(levels.tolist(), repeat=math.prod(shape))), dtype=torch.float64).view(
        -1, *shape
    )


def nll(family, images: Tensor) -> Tensor:
    task = Task(torch.zeros_like(images), images)
    noise = draw_noise(family.environment, len(images), torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        return bound(family, rollout(family, task, noise)).total


CASES = [
    ((1, 2, 2), 1, {}), ((1, 2, 2), 2, {}), ((1, 2, 2), 4, {}), ((1, 2, 2), 3, {"reveal_order": "raster"}),
    ((1, 2, 2), 4, {"reveal_order": "random"}), ((1, 2, 3), 3, {"reveal_values": "levels"}), ((3, 1, 2), 2, {}),
    ((3, 1, 2), 1, {"reveal_channels": "together"}), ((2, 1, 2), 2, {"reveal_channels": "together"}),
    ((2, 1, 2), 2, {"reveal_channels": "together", "reveal_values": "levels"}), ((3, 1, 2), 2, {"reveal_values": "levels"}),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "horizon", "settings"), CASES)
def test_probabilities_of_all_images_sum_to_one(shape, horizon, settings):
    """So J is the negative log-likelihood of a normalised model, not a bound on it."""
    family = reveal(shape, horizon, **settings)
    assert nll(family, every_image(shape)).neg().exp().sum().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("settings", [{}, {"reveal_values": "levels"}, {"reveal_order": "raster"}])
def test_samples_have_the_frequencies_that_the_likelihood_says(settings):
    family, count = reveal((1, 1, 2), 2, **settings), 40_000
    images = every_image((1, 1, 2))
    chance = nll(family, images).neg().exp()
    noise = draw_noise(family.environment, count, torch.Generator().manual_seed(3)).double()
    drawn = family.environment.canvas(
        sample_rollout(family, Task(torch.zeros(count, 1, 1, 2).double()), noise).states[-1]
    )
    found = (drawn.unsqueeze(1) - images).abs().flatten(2).amax(2) < 1e-6
    assert found.any(1).all()  # every sample is an image of these levels
    assert ((found.double().mean(0) - chance).abs() < 5 * (chance / count).sqrt() + 1e-4).all()


@pytest.mark.parametrize(
    ("levels", "shape", "settings", "numbers"),
    [
        (2, (1, 4, 4), {}, 2),  # a chance of black and one of white
        (30, (1, 4, 4), {}, 30),
        (31, (1, 4, 4), {}, 30),  # ten logistics, three numbers each
        (17, (3, 4, 4), {}, 17),
        (17, (3, 4, 4), {"reveal_channels": "together"}, 60),  # ... and how their means lean on the channels before
        (2, (1, 4, 4), {"reveal_values": "logistics"}, 30),
        (256, (1, 4, 4), {"reveal_values": "levels"}, 256),
    ],
)
def test_values_have_a_chance_for_each_level_where_that_takes_no_more_numbers(levels, shape, settings, numbers):
    config = configure(environment="reveal", horizon=2, width=16, depth=1, head_width=8, **settings)
    assert len(make(config, shape, levels).s_agent.bias) == numbers


def test_channels_that_come_together_depend_on_each_other():
    """Sums to one, is sampled with its own frequencies, and is by hand what equation 3 of PixelCNN++ says; a policy of independent
    channels could not tell two channels that are equal from two that are opposite."""
    torch.manual_seed(0)
    group = torch.ones(1, 2, 1, 1, dtype=torch.bool)
    logits, mean, log_scale = torch.randn(1, 2, 1, 1), torch.randn(1, 2, 2, 1, 1), torch.randn(1, 2, 2, 1, 1) - 1
    lean = torch.randn(1, 2, 2, 2, 1, 1)
    policy = Pixels(group, LEVELS, *(x.double() for x in (logits, mean, log_scale, lean)))
    images = every_image((2, 1, 1))
    chance = torch.stack([policy.log_prob(image[None])[0] for image in images]).exp()
    assert chance.sum().item() == pytest.approx(1, abs=1e-6)
    for image, value in zip(images, chance, strict=True):
        first, second = image.flatten()
        by_hand = 0.0
        for m, weight in enumerate(logits.flatten().softmax(0)):
            center = mean[0, m].flatten().double() + torch.stack([torch.zeros(()), lean[0, m, 1, 0, 0, 0] * first])
            at = torch.stack([first, second])
            each = discretised_logistic_log_prob(at, center, log_scale[0, m].flatten().double(), LEVELS)
            by_hand += weight * each.sum().exp()
        assert value.item() == pytest.approx(float(by_hand), rel=1e-6)
    many = [x.double().expand(20_000, *x.shape[1:]) for x in (logits, mean, log_scale, lean)]
    drawn = Pixels(group, LEVELS, *many).sample(
        torch.rand(20_000, 2, 2, 1, 1, generator=torch.Generator().manual_seed(0)).double()
    )
    found = ((drawn.unsqueeze(1) - images).abs().flatten(2).amax(2) < 1e-6).double().mean(0)
    assert ((found - chance).abs() < 5 * (chance / 20_000).sqrt()).all()
    tempered = policy.tempered(0.5)
    assert torch.stack([tempered.log_prob(image[None])[0] for image in images]).exp().sum().item() == pytest.approx(
        1, abs=1e-6
    )

    equal, opposite = torch.tensor([[-1.0, -1.0], [1.0, 1.0]]), torch.tensor([[-1.0, 1.0], [1.0, -1.0]])
    both = Pixels(
        group, LEVELS, torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 2, 1, 1), torch.tensor([0.0, -3.0]).view(1, 1, 2, 1, 1),
        torch.tensor([[0.0, 0.0], [1.0, 0.0]]).view(1, 1, 2, 2, 1, 1),
    )  # fmt: skip
    values = [both.log_prob(pair.view(2, 2, 1, 1)) for pair in (equal, opposite)]
    assert (values[0] > values[1] + 5).all()


def test_raster_order_is_what_a_pixel_cnn_computes():
    """Pixel by pixel, from torch.distributions alone: the network sees the pixels before, and nothing of those after."""
    family = reveal((1, 2, 3), 6, reveal_order="raster")
    images = every_image((1, 2, 3))[::37]
    total = torch.zeros(len(images)).double()
    s_agent, half = family.s_agent, 1 / (LEVELS - 1)
    with torch.no_grad():
        for i in range(6):
            row, column = divmod(i, 3)
            known = torch.zeros(1, 2, 3).double()
            known.view(-1)[:i] = 1
            seen = torch.cat([images * known, known.expand_as(images), torch.zeros_like(images)], 1)
            features, _ = s_agent.torso(torch.tensor([i]), seen)
            numbers = (
                s_agent.torso.assemble(torch.einsum("ndf,bfp->bndp", s_agent.weight, features), (1, 2, 3))
                + s_agent.bias
            )
            logits, mean, log_scale = numbers[:, :, 0, row, column].chunk(3, 1)
            scale = (5 * torch.tanh((log_scale + 2) / 5) - 2).exp()
            uniform = Uniform(torch.zeros_like(mean), torch.ones_like(mean), validate_args=False)
            logistic = TransformedDistribution(
                uniform, [SigmoidTransform().inv, AffineTransform(mean, scale)], validate_args=False
            )
            value = images[:, :, row, column]
            upper = torch.where(value > 1 - half, 1.0, logistic.cdf(value + half))
            lower = torch.where(value < -1 + half, 0.0, logistic.cdf(value - half))
            total -= (Categorical(logits=logits).probs * (upper - lower)).sum(1).log()
    torch.testing.assert_close(nll(family, images), total, rtol=1e-5, atol=1e-5)


def test_one_step_of_each_episode_estimates_it_without_bias():
    family = reveal((3, 2, 2), 3)
    images = every_image((3, 1, 1))[:5].expand(-1, -1, 2, 2)
    task = Task(torch.zeros_like(images), images)
    mean = torch.zeros(len(images)).double()
    with torch.no_grad():
        for h in range(family.horizon):  # the mean over steps, each with the chance that it is drawn with
            steps = torch.full((1, len(images)), h)
            mean += family.chance[h] * family.learn(task, {"steps": steps}, Clock()).bound.total
    torch.testing.assert_close(mean, nll(family, images))
    steps = torch.cat(
        [family.draw(64, lambda _, s=s: torch.Generator().manual_seed(s))["steps"] for s in range(400)], 1
    )
    share = torch.bincount(steps.flatten(), minlength=family.horizon) / steps.numel()
    torch.testing.assert_close(share.double(), family.chance, rtol=0, atol=0.004)


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"reveal_values": "levels"}, {"reveal_channels": "together"}, {"reveal_channels": "together", "reveal_values": "levels"},
        {"network": "mlp"}, {"network": "transformer"}, {"patch": 4},
    ],
)  # fmt: skip
def test_what_a_step_writes_is_said_as_if_all_were(settings):
    """A step's values are worked out alone: the same chances and draws as of a policy of all values, at other steps for every image."""
    values = {"network": "unet", "patch": 2, "depth": 1} | settings
    family, count = reveal((3, 8, 8), 5, **values), 15
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, LEVELS, (count, 3, 8, 8), generator=generator).double() - 1
    h = torch.arange(count) % family.horizon
    seen = family.see(h, family.environment.at(h, images, torch.zeros_like(images)))
    with torch.no_grad():
        some, every = family.s_agent.decide(seen).policy, family.s_agent.decide_all(seen)
    torch.testing.assert_close(some.log_prob(images), every.log_prob(images))
    noise = family.environment.action_space.noise(count, generator).double()
    written = family.environment.group(h)
    for temperature in (1.0, 0.5):
        one, other = some.tempered(temperature), every.tempered(temperature)
        torch.testing.assert_close(one.log_prob(images), other.log_prob(images))
        assert torch.equal(torch.where(written, one.sample(noise), 0.0), torch.where(written, other.sample(noise), 0.0))


def test_values_to_come_are_learned_from_while_training_is_young_and_never_in_the_bound():
    ours = [reveal((2, 4, 4), 4, network="unet", patch=2, reveal_foresight=f) for f in (0.0, 0.5)]
    images = torch.randint(0, LEVELS, (32, 2, 4, 4), generator=torch.Generator().manual_seed(0)).double() - 1
    task = Task(torch.zeros_like(images), images)
    draws = ours[1].draw(32, lambda name: torch.Generator().manual_seed(len(name)))
    without, young, half, old = (
        family.learn(task, draws, Clock(done=done))
        for family, done in ((ours[0], 0.0), (ours[1], 0.0), (ours[1], 0.5), (ours[1], 1.0))
    )
    for learned in (young, half, old):
        assert torch.equal(learned.bound.total, without.bound.total)
    assert without.loss == without.bound.total.mean() == old.loss
    assert young.loss > without.loss
    torch.testing.assert_close(half.loss - without.loss, (young.loss - without.loss) / 2)


def test_of_the_values_to_come_some_are_drawn_for_each_that_is_revealed():
    family = reveal((1, 16, 16), 8)
    sizes = family.environment.sizes
    for h in range(family.horizon):
        steps = torch.full((400,), h)
        drawn = family.some_later(steps, torch.rand(400, 1, 16, 16, generator=torch.Generator().manual_seed(h)))
        assert not (drawn & (family.environment.step <= h)).any()
        expected = min(4 * int(sizes[h]), int(sizes[h + 1 :].sum()))
        assert drawn.sum() / 400 == pytest.approx(expected, rel=0.1)


def test_more_trajectories_say_nothing_new():
    family, images = reveal(), every_image((1, 2, 2))[:9]
    noise = torch.stack(
        [draw_noise(family.environment, 9, torch.Generator().manual_seed(k)) for k in range(3)]
    ).double()
    tighter = importance_weighted_bound(family, Task(torch.zeros_like(images), images), noise)
    torch.testing.assert_close(tighter, nll(family, images))


@pytest.mark.parametrize("order", ["spread", "raster", "random"])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 7), (1, 6)])
def test_any_number_of_groups_reveals_every_value_once(order, height, width):
    for groups in (1, 2, 3, height * width - 1, height * width):
        for channels, follow in ((1, True), (3, True), (3, False)):
            environment = RevealEnvironment((channels, height, width), groups, order, follow)
            assert environment.horizon == groups * (channels if follow else 1)
            assert environment.sizes.min() >= 1
            assert environment.sizes.sum() == channels * height * width
            seen = sum(environment.group(torch.tensor([h])).int() for h in range(environment.horizon))
            assert (seen == 1).all()
        for first in (0.0, 0.1, 1.0):
            ends = group_ends(order, height * width, groups, first)
            assert len(ends) == groups
            assert sorted(set(ends)) == ends
            assert ends[-1] == height * width
    with pytest.raises(GoalgenError, match=f"--horizon must be 1 to {height * width}"):
        group_ends(order, height * width, height * width + 1)


def test_spread_groups_grow_and_leave_no_gap():
    for first in (0.0, 1 / 64):
        ends = RevealEnvironment((1, 28, 28), 12, first=first).ends
        assert ends[0] == round(max(784 * first, 784 ** (1 / 12)))
        assert (ends.diff()[3:].diff() > 0).all()
    first = position_order("spread", 28, 28)[:49]
    places = torch.stack([first // 28, first % 28], 1).double()
    everywhere = torch.cartesian_prod(torch.arange(28.0), torch.arange(28.0)).double()
    assert (
        torch.cdist(everywhere, places).min(1).values.max() <= 4.5
    )  # of 49 evenly spread ones no pixel is further than this


def test_the_cost_of_learning_is_flat_in_the_number_of_steps():
    for horizon in (1, 16, 64):
        family = make(configure(environment="reveal", horizon=horizon, width=16, depth=1, head_width=8), (1, 8, 8), 17)
        calls = []
        family.s_agent.torso.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        goals = torch.zeros(6, 1, 8, 8)
        draws = family.draw(6, lambda _: torch.Generator().manual_seed(0))
        family.learn(Task(goals, goals), draws, Clock()).loss.backward()
        assert len(calls) == 1


def test_a_goal_that_is_not_copied_is_infinitely_unlikely():
    family, images = reveal(), every_image((1, 2, 2))[:4]
    state = family.environment.at(torch.tensor([4]), images, torch.zeros_like(images))
    assert family.likelihood.log_prob(images, state).tolist() == [0, 0, 0, 0]
    assert family.likelihood.log_prob(-images.flip(0), state).min() == -math.inf


def test_cold_values_are_nearer_to_the_likeliest():
    generator = torch.Generator().manual_seed(0)
    logits, mean = torch.randn(2, 500, 3, 1, 2, 2, generator=generator)
    policy = Logistics(torch.ones(1, 2, 2).bool(), 256, logits, mean, torch.full_like(mean, -2.0))
    noise = torch.rand(500, 2, 1, 2, 2, generator=generator)
    cold = policy.tempered(1e-5)
    best = (policy.log_weight - policy.log_scale).argmax(1, keepdim=True)
    torch.testing.assert_close(cold.sample(noise), mean.gather(1, best)[:, 0].clamp(-1, 1), rtol=0, atol=0.02)
    assert torch.equal(policy.tempered(1.0).sample(noise), policy.sample(noise))
    assert Copy(mean[:, 0]).tempered(0.1).kl(policy).shape == (500,)


def test_start_stays_in_view_and_the_family_passes_its_check():
    family = make(
        configure(environment="reveal", start="blur:1", horizon=3, width=16, depth=1, head_width=8), (3, 8, 8), 256
    )
    check_family(family)
    states = sample_rollout(
        family, Task(torch.full((2, 3, 8, 8), 0.25)), draw_noise(family.environment, 2, torch.Generator())
    ).states
    assert (states[:, :, 6:] == 0.25).all()
    assert (states[0, :, :3] == 0.25).all()


def test_it_learns_the_digits(tmp_path, capsys):
    settings = {"environment": "reveal", "horizon": 8, "limit": None, "width": 64, "depth": 2, "head_width": 32,
                "batch_size": 32, "max_steps": 600, "eval_every": 200, "ema": 0.9, "learning_rate": 0.01}  # fmt: skip
    outcome = train(tiny_config(tmp_path / "run", **settings))
    assert outcome.best_bits < 2.3  # the mean image alone needs about 2.5
    model = load(outcome.folder)
    assert model.sample(3).network_evaluations == 8
    assert (
        cli.main(["evaluate", str(outcome.folder), "--features", "pixel-pca", "--iw-images", "4", "--num-test", "20"])
        == 0
    )
    told = capsys.readouterr()
    assert "values by step: " in told.out
    assert "tighter bound" not in told.err  # more trajectories would say nothing new, and are not drawn
    numbers = evaluate(model, num_test=20, iw_images=4, features="pixel-pca", quiet=True)
    assert numbers["bound_is_exact"]
    assert numbers["iw_bound_nats"] == numbers["nll_bound_nats_on_iw_images"]


def test_weights_of_other_groups_are_refused():
    def model(first):
        return make(configure(environment="reveal", horizon=4, width=8, depth=1, reveal_first=first), (1, 8, 8), 17)

    saved = model(0.1).state_dict()
    model(0.1).load_state_dict(saved)
    with pytest.raises(RuntimeError, match="of other groups"):
        model(0.5).load_state_dict(saved)
    with pytest.raises(RuntimeError, match="ends"):  # written before groups were saved
        model(0.1).load_state_dict({name: value for name, value in saved.items() if not name.endswith("ends")})


def test_a_share_of_the_first_group_beyond_all_pixels_is_refused():
    with pytest.raises(GoalgenError, match="--reveal-first is a share"):
        make(configure(environment="reveal", horizon=4, reveal_first=1.5), (1, 8, 8), 17)
