"""A learned order of reveals: J and its gradient against sums over all orders, and the fixed order as the special case."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import tiny_config
from test_reveal import every_image, nll, reveal
from torch import Tensor

from goalgen import cli, load
from goalgen.bound import bound, log_weight
from goalgen.check import check_family
from goalgen.families import make
from goalgen.families.reveal import orders
from goalgen.families.reveal.environment import ChosenOrderEnvironment, GroupAndValues
from goalgen.families.reveal.orders import chosen_at, draw_order, log_prob_of_order
from goalgen.family import Family
from goalgen.learning import Clock
from goalgen.rollout import draw_noise, rollout, sample_rollout
from goalgen.settings import configure
from goalgen.task import Task
from goalgen.training import train

CASES = [
    ((1, 2, 2), 3, {}), ((1, 2, 2), 4, {"reveal_values": "levels"}), ((2, 1, 3), 3, {}), ((3, 1, 2), 2, {"reveal_channels": "together"}),
]  # fmt: skip
"""Shape, groups and settings of models so small that all images and all orders can be summed over."""


def learned(shape, horizon, seed=0, **changes):
    return reveal(shape, horizon, seed, reveal_order="learned", **changes)


def every_order(family: Family) -> list[Tensor]:
    return [torch.tensor(order) for order in itertools.permutations(range(family.environment.groups))]


def along_orders(family: Family, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log p(order, image), log q(order | image) and the sum of the KLs of all steps, each (orders, B)."""
    environment, start = family.environment, torch.zeros_like(images)
    channels = environment.shape[0] if environment.follow else 1
    found = []
    for order in every_order(family):
        log_p, log_q, kl = torch.zeros(3, len(images), dtype=images.dtype)
        for h in range(environment.horizon):
            state = environment.along(torch.tensor([h]), images, start, order.expand(len(images), -1))
            seen = family.see(h, state)
            decision = family.s_agent.decide(seen)
            p, q = decision.policy, family.gc_agent.policy(seen, images, decision)
            group = order[h // channels]
            log_p = log_p + p.log_choice[:, group] + p.log_prob_by_group(images)[:, group]
            log_q = log_q + q.log_choice[:, group]
            kl = kl + q.kl(p)
        found.append((log_p, log_q, kl))
    return tuple(torch.stack(part) for part in zip(*found, strict=True))


@pytest.mark.parametrize(("shape", "horizon", "changes"), CASES)
def test_j_is_a_bound_on_a_normalised_model(shape, horizon, changes):
    """The probabilities of all images, summed over all orders, sum to one; J is no less than -log of them, and is equal only if q is
    the posterior of orders. By the sums of the KLs it is the same number as by the chances of whole orders."""
    family, images = learned(shape, horizon, **changes), every_image(shape)
    with torch.no_grad():
        log_p, log_q, kl = along_orders(family, images)
    exact = torch.logsumexp(log_p, 0)
    assert exact.exp().sum().item() == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(torch.logsumexp(log_q, 0), torch.zeros(len(images)).double())
    j = (log_q.exp() * kl).sum(0)
    torch.testing.assert_close(j, (log_q.exp() * (log_q - log_p)).sum(0))
    posterior = log_p - exact
    gap = (log_q.exp() * (log_q - posterior)).sum(0)
    assert gap.min() > -1e-9
    assert gap.max() > 1e-3
    torch.testing.assert_close(j + exact, gap)


@pytest.mark.parametrize(("shape", "horizon", "changes"), CASES)
def test_episodes_have_the_bound_that_the_sum_over_orders_has(shape, horizon, changes):
    family, count = learned(shape, horizon, **changes), 4000
    image = every_image(shape)[7:8]
    with torch.no_grad():
        log_p, log_q, kl = along_orders(family, image)
    j = (log_q.exp() * kl).sum()
    spread = (log_q.exp() * (kl - j).square()).sum().sqrt()
    goals = image.expand(count, -1, -1, -1)
    task = Task(torch.zeros_like(goals), goals)
    noise = draw_noise(family.environment, count, torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        episodes = rollout(family, task, noise)
    assert abs(bound(family, episodes).total.mean() - j) < 5 * spread / count**0.5 + 1e-6
    channels = family.environment.shape[0] if family.environment.follow else 1
    chosen = torch.stack([family.environment.action_space.split(a)[0] for a in episodes.actions[::channels]], 1)
    which = (chosen.unsqueeze(1) == torch.stack(every_order(family))).all(2).int().argmax(1)
    torch.testing.assert_close(log_weight(family, episodes), (log_p - log_q)[which, 0])


@pytest.mark.parametrize(("shape", "horizon", "changes"), [case for case in CASES if case[1] < 4])
def test_one_step_of_each_episode_estimates_j_and_its_gradient_without_bias(shape, horizon, changes, monkeypatch):
    """Summed over all steps and orders with their chances; of the GC-agent's weights those that its expected costs do not share."""
    family, images = learned(shape, horizon, **changes), every_image(shape)[3:5]
    groups, parameters = family.environment.groups, dict(family.named_parameters())

    def gradients(value: Tensor) -> dict[str, Tensor]:
        found = torch.autograd.grad(value, list(parameters.values()), retain_graph=True, allow_unused=True)
        kept = {name: g for name, g in zip(parameters, found, strict=True) if g is not None and ".scores.0" not in name}
        return {name: g[:groups] if ".scores.2" in name else g for name, g in kept.items()}

    task = Task(torch.zeros_like(images), images)
    _, log_q, kl = along_orders(family, images)
    j = (log_q.exp() * kl).sum(0)
    exact = gradients(j.mean())
    total, sums = torch.zeros_like(j), {name: torch.zeros_like(g) for name, g in exact.items()}
    for k, order in enumerate(every_order(family)):
        monkeypatch.setattr(orders, "draw_order", lambda scores, uniform, order=order: order.expand(len(scores), -1))
        for h in range(family.horizon):
            steps, uniform = torch.full((1, len(images)), h), torch.zeros(1, len(images), groups)
            for i in range(len(images)):  # every image has its own chance of the order
                chance = log_q[k, i].exp().detach() * family.chance[h]
                draws = {"steps": steps[:, i : i + 1], "orders": uniform[:, i : i + 1]}
                learned_from = family.learn(task.rows(slice(i, i + 1)), draws, Clock())
                total[i] += chance * learned_from.bound.total[0]
                for name, g in gradients(learned_from.loss).items():
                    sums[name] += chance * g / len(images)
    torch.testing.assert_close(total, j.detach())
    for name, g in exact.items():
        torch.testing.assert_close(sums[name], g, msg=lambda text, name=name: f"{name}: {text}")
    assert exact["gc_agent.lean"].abs().max() > 1e-3


@pytest.mark.parametrize(("shape", "horizon", "changes"), CASES)
def test_an_order_that_both_agents_are_sure_of_is_the_fixed_order(shape, horizon, changes):
    """With the weights of a spread order and scores far apart: the same probability of every image, and no more than that in J."""
    fixed, family = reveal(shape, horizon, **changes), learned(shape, horizon, **changes)
    family.load_state_dict(fixed.state_dict(), strict=False)
    with torch.no_grad():
        for agent in (family.s_agent, family.gc_agent):
            agent.lean.copy_(-1e4 * torch.arange(horizon))
    images = every_image(shape)
    torch.testing.assert_close(nll(family, images), nll(fixed, images), rtol=1e-12, atol=1e-12)


def test_samples_have_the_frequencies_that_the_sum_over_orders_says():
    shape, count = (1, 1, 2), 40_000
    family, images = learned(shape, 2), every_image(shape)
    with torch.no_grad():
        chance = torch.logsumexp(along_orders(family, images)[0], 0).exp()
    noise = draw_noise(family.environment, count, torch.Generator().manual_seed(3)).double()
    drawn = sample_rollout(family, Task(torch.zeros(count, *shape).double()), noise).states[-1]
    assert (drawn[:, 1] == 1).all()
    found = (drawn[:, :1].unsqueeze(1) - images).abs().flatten(2).amax(2) < 1e-6
    assert found.any(1).all()
    assert ((found.double().mean(0) - chance).abs() < 5 * (chance / count).sqrt() + 1e-4).all()


@given(st.lists(st.floats(-4, 4), min_size=1, max_size=4), st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_orders_are_drawn_by_their_chances(scores, seed):
    count = 3000
    row = torch.tensor(scores, dtype=torch.float64)
    every = torch.tensor(list(itertools.permutations(range(len(scores)))))
    chance = log_prob_of_order(row.expand(len(every), -1), every).sum(1).exp()
    assert chance.sum().item() == pytest.approx(1)
    one = math.exp(row[every[-1][0]]) / row.exp().sum()  # of the first choice alone
    assert log_prob_of_order(row[None], every[-1:])[0, 0].exp().item() == pytest.approx(float(one))
    uniform = torch.rand(count, len(scores), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    drawn = draw_order(row.expand(count, -1), uniform)
    found = (drawn.unsqueeze(1) == every).all(2).double().mean(0)
    assert ((found - chance).abs() < 6 * (chance / count).sqrt() + 2 / count).all()


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.booleans(), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_states_along_an_order_are_those_that_its_actions_lead_to(channels, height, width, follow, seed):
    generator = torch.Generator().manual_seed(seed)
    groups = int(torch.randint(1, height * width + 1, (1,), generator=generator))
    environment = ChosenOrderEnvironment((channels, height, width), groups, follow=follow)
    image, start = torch.rand(2, 3, channels, height, width, generator=generator)
    order = torch.rand(3, groups, generator=generator).argsort(1)
    state = environment.initial(start)
    for h in range(environment.horizon):
        at = torch.full((3,), h)
        assert torch.equal(state, environment.along(at, image, start, order))
        group = order[:, h // channels if follow else h]
        left = environment.among_those_left(at, state, torch.zeros(3, groups))
        assert (left.gather(1, group[:, None]) == 0).all()
        if follow and h % channels:  # the channels of a group follow: nothing to choose
            assert (left == 0).sum() == 3
        action = environment.action_space.join(group, image)
        assert torch.equal(environment.action_space.split(action)[0], group)
        state = environment.transition(at, state, action, None)
    assert torch.equal(environment.canvas(state), image)
    assert environment.count_known(state[None]).tolist() == [[image[0].numel()] * 3]


def test_a_group_of_no_chance_is_never_chosen():
    log_choice = torch.tensor([[0.0, 0.3, -torch.inf], [-torch.inf, 0.0, -torch.inf]]).log_softmax(1)
    for uniform in (0.0, 0.5, 1 - 2**-24, 1.0):
        choice = chosen_at(log_choice, torch.full((2,), uniform))
        assert not log_choice.gather(1, choice[:, None]).isneginf().any()
    space = GroupAndValues(5000, (1, 1, 1))
    every = torch.arange(5000)
    assert torch.equal(space.split(space.join(every, torch.zeros(5000, 1, 1, 1)))[0], every)


@pytest.mark.parametrize("changes", [{}, {"reveal_channels": "together"}])
def test_the_family_passes_its_check(changes):
    small = {"environment": "reveal", "reveal_order": "learned", "width": 16, "depth": 1, "head_width": 8}
    check_family(make(configure(**small, horizon=4, start="blur:1", **changes), (3, 8, 8), 256))


def test_both_agents_learn_to_turn_round_an_order_that_costs():
    """Three equal pixels in two groups: the larger one first costs two bits, as its pixels are independent; the smaller one, one bit.

    Or the order itself says the bit: one group first for black images, the other for white ones. That is one bit, too.
    """
    small = {"environment": "reveal", "reveal_order": "learned", "reveal_values": "levels", "width": 16, "depth": 1}
    family = make(configure(**small, horizon=2, head_width=8), (1, 1, 3), 2, 0)
    assert family.environment.sizes.tolist() == [2, 1]
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(family.parameters(), 0.02)
    for _ in range(300):
        goals = (torch.randint(0, 2, (32, 1, 1, 1), generator=generator) * 2.0 - 1).expand(-1, -1, -1, 3)
        loss = family.learn(Task(torch.zeros_like(goals), goals), family.draw(32, lambda _: generator), Clock()).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    noise = draw_noise(family.environment, 32, generator)
    with torch.no_grad():
        episodes = rollout(family, Task(torch.zeros_like(goals), goals), noise)
    assert episodes.kl.sum(0).mean() < 1.15 * math.log(2)


def test_it_trains_samples_and_is_measured_by_the_command_line(tmp_path, capsys):
    changes = {"environment": "reveal", "reveal_order": "learned", "horizon": 4, "limit": 64, "max_steps": 6}
    outcome = train(tiny_config(tmp_path / "run", **changes))
    model = load(outcome.folder)
    assert model.sample(3).network_evaluations == 4
    arguments = ["evaluate", str(outcome.folder), "--features", "pixel-pca", "--iw-images", "4", "--num-test", "20"]
    assert cli.main(arguments) == 0
    assert "values by step: " in capsys.readouterr().out
