"""A code's prior: learned from codes of earlier batches, with modes where codes are."""

from __future__ import annotations

import math

import pytest
import torch
from runs import tiny_config
from safetensors.torch import load_file

import goalgen
from goalgen.families import make
from goalgen.families.code import MODE_RATE, REHEARSED, Code, revive
from goalgen.learning import Clock
from goalgen.policies import NEAREST, Gaussian, Mixture
from goalgen.settings import configure
from goalgen.task import Task
from goalgen.training import train


def stages(modes: int = 40, **settings):
    values = {"environment": "code:1+bridge:2", "width": 16, "depth": 1, "head_width": 8, "patch": 2}
    return make(configure(**values, code_size=3, code_modes=modes, **settings), (1, 8, 8), 17)


def clusters(count: int, seed: int = 0) -> tuple[torch.Tensor, Gaussian]:
    """What is told, and codes around three far places."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.tensor([[3.0, 0, 0], [-3, 1, 0], [0, 4, -4]])
    mean = places[torch.randint(3, (count, 1), generator=generator)] + 0.1 * torch.randn(
        count, 1, 3, generator=generator
    )
    return torch.zeros(count, 49), Gaussian(mean, torch.full_like(mean, 0.2))


def test_modes_that_no_code_chooses_are_put_where_codes_are():
    code = stages().parts[0]
    assert isinstance(code, Code)
    other = stages().parts[0]
    optimizer = torch.optim.AdamW(code.s_agent.parameters(), lr=1e-7)
    told, codes = clusters(300)
    policy = code.s_agent.policy(told[:1].requires_grad_(False), 0)
    policy.log_prob(codes.mean[:1]).sum().backward()
    optimizer.step()
    before = codes.kl(code.s_agent.policy(told, 0)).mean()
    with torch.no_grad():
        count = revive((code.s_agent, other.s_agent), told, codes, 0, torch.randperm(300), optimizer)
        after = codes.kl(code.s_agent.policy(told, 0)).mean()
    assert 20 <= count < 40
    assert after < before - 2
    near = (MODE_RATE * code.s_agent.mode_mean[0]).unsqueeze(1) - codes.mean[:, 0]
    moved = near.norm(dim=-1).amin(1) < 1e-2
    assert moved.sum() >= count  # each where a code is, in the average as well, and without a moment of its past
    assert torch.equal(code.s_agent.mode_mean[0, moved], other.s_agent.mode_mean[0, moved])
    assert optimizer.state[code.s_agent.mode_mean]["exp_avg"][0, moved].abs().max() == 0
    # An average chance: not the whole of it, and not so little that they die again.
    assert code.s_agent.policy(told[:1], 0).log_weight[0, 0, moved].exp().mean().item() == pytest.approx(
        1 / 40, rel=0.5
    )


def test_modes_that_codes_choose_stay():
    code = stages(modes=3).parts[0]
    told, codes = clusters(300)
    with torch.no_grad():
        code.s_agent.mode_mean[0] = torch.tensor([[3.0, 0, 0], [-3, 1, 0], [0, 4, -4]]) / MODE_RATE
        before = code.s_agent.mode_mean.clone()
        agents = (code.s_agent, code.s_agent)
        assert revive(agents, told, codes, 0, torch.arange(300), torch.optim.AdamW(code.s_agent.parameters())) == 0
    assert torch.equal(code.s_agent.mode_mean, before)


def test_the_s_agent_alone_rehearses_codes_of_earlier_batches():
    family = stages()
    code = family.parts[0]
    goals = torch.rand(8, 1, 8, 8) * 2 - 1
    for step in range(2):
        seen = family.environment.seen_in_stage(family.see(0, family.environment.initial(torch.zeros_like(goals))))[1]
        q = code.gc_agent.policy(seen, goals, code.s_agent.decide(seen))
        loss = code.rehearse([seen], [q], Clock(step))
    kept = code.kept(0, slice(0, 16))[1]
    torch.testing.assert_close(kept.mean[8:], q.mean.detach())
    assert (code.rehearsed[0, 16:] == 0).all()
    loss.backward()
    assert all(p.grad is None for p in code.gc_agent.parameters())
    assert code.s_agent.mode_mean.grad.abs().sum() > 0
    told, old = code.kept(0, torch.arange(64) % 16)
    torch.testing.assert_close(loss, old.kl(code.s_agent.policy(told, 0)).mean())


def test_what_is_rehearsed_is_no_part_of_the_bound():
    family = stages()
    goals = torch.rand(8, 1, 8, 8) * 2 - 1
    draws = family.draw(8, lambda _: torch.Generator().manual_seed(0))
    first = family.learn(Task(torch.zeros_like(goals), goals), draws, Clock(0))
    second = family.learn(Task(torch.zeros_like(goals), goals), draws, Clock(1))  # has more to rehearse
    torch.testing.assert_close(first.bound.total, second.bound.total)


def test_a_run_goes_on_with_what_it_had_to_rehearse(tmp_path):
    """4096 rows are full after 64 steps of 64; a run in two parts ends with the same weights as one in a single part."""
    settings = {"environment": "code:1+bridge:2", "code_size": 3, "code_modes": 8, "batch_size": 64, "eval_every": 64}
    whole = train(tiny_config(tmp_path / "whole", max_steps=130, decay="none", **settings))
    for steps in (70, 130):
        parts = train(tiny_config(tmp_path / "parts", max_steps=steps, decay="none", **settings))
    one, other = (goalgen.load(outcome.folder, which="last") for outcome in (whole, parts))
    for (name, a), b in zip(
        one.family.s_agent.state_dict().items(), other.family.s_agent.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    assert "revived_modes" in (tmp_path / "parts" / "log.jsonl").read_text()
    assert REHEARSED == 64 * 64
    saved = load_file(tmp_path / "parts" / "last" / "model.safetensors")
    assert not any("rehearsed" in name for name in saved)  # a saved model has no use for them, and they are large
    assert set(saved) - {"start.image"} < set(one.family.state_dict())


@pytest.mark.parametrize("modes", [1, 7])
def test_costs_of_narrow_modes_far_away_are_exact(modes):
    """A mode as narrow as may be, against the sum that is no difference of large numbers."""
    generator = torch.Generator().manual_seed(0)
    mean, variance = torch.randn(5, 1, 32, generator=generator), torch.rand(5, 1, 32, generator=generator)
    places = 5 + torch.randn(modes, 32, generator=generator)
    std = torch.full((modes, 32), math.exp(-5))
    p = Mixture(torch.zeros(5, 1, 32), torch.ones(5, 1, 32), torch.zeros(5, 1, modes), places, std)
    exact = (mean.double().unsqueeze(-2) - places.double()).square() + variance.double().unsqueeze(-2)
    expected = 0.5 * (exact / std.double().square()).sum(-1) + std.double().log().sum(-1)
    torch.testing.assert_close(p.costs(mean, variance).double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_of_many_modes_the_nearest_are_summed(precision):
    """A larger bound, by next to nothing, than the sum of all, which fewer modes are; the same under a coarse autocast."""
    generator = torch.Generator().manual_seed(0)
    q = Gaussian(torch.randn(9, 1, 8, generator=generator), torch.full((9, 1, 8), 0.3))
    many = 50 * NEAREST
    places, std = torch.randn(many, 8, generator=generator), torch.full((many, 8), 0.4)
    logits = torch.randn(9, 1, many, generator=generator, requires_grad=True)
    center, scale = torch.full((9, 1, 8), 0.2), torch.full((9, 1, 8), 1.1)
    p = Mixture(center, scale, logits, places, std)
    with torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32):
        found = q.kl(p)
    mean, variance = (q.mean - center) / scale, (q.std / scale).square()
    entropy = 0.5 * (variance.log() + 1).sum(-1, keepdim=True)
    whole = -torch.logsumexp(p.log_weight - p.costs(mean, variance) + entropy, -1).sum(-1)
    assert (found >= whole - 1e-4).all()
    assert (found - whole).max() < 0.1
    assert (found - whole).max() > 1e-3  # else nothing was left out
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert (gradient < 0).any(-1).all()


def test_a_code_is_read_at_a_coarser_size_where_there_is_one():
    spec = stages(network="unet").parts[0].gc_agent.trunk
    full = stages(network="unet").parts[1].s_agent.torso.trunk
    assert spec.positions == full.positions  # 8x8 by patches of 2 is 4x4 already: nothing coarser
    larger = make(configure(environment="code:1+bridge:2", network="unet", width=16, patch=2), (1, 28, 28), 17)
    read, drawn = larger.parts[0].gc_agent.trunk, larger.parts[1].s_agent.torso.trunk
    assert (read.input.stride, drawn.input.stride) == ((4, 4), (2, 2))


def test_memory_is_told_at_few_maps_that_channels_mix():
    family = make(configure(environment="code:1+bridge:2", network="unet", width=32, code_size=5), (1, 28, 28), 17)
    fine, coarse = family.parts[1].s_agent.torso.trunk.recall
    assert fine.map.out_features == 8 * 14 * 14
    assert coarse.map.out_features == 64 * 7 * 7
    memory = torch.randn(2, 5)
    assert fine(memory).shape == (2, 32, 14, 14)
    assert torch.linalg.matrix_rank((fine(memory)[0] - fine(memory)[1]).flatten(1)) <= 8


def test_a_code_s_networks_are_told_nothing_that_is_not_there_yet():
    family = make(
        configure(environment="code:1+code:2+bridge:2", width=16, depth=2, head_width=8, code_size=3), (1, 8, 8), 17
    )
    told = []
    for h in range(family.horizon):
        seen = family.see(h, family.environment.initial(torch.zeros(1, 1, 8, 8)))
        memory = family.environment.seen_in_stage(seen)[1].memory
        told.append(0 if memory is None else memory.shape[1])
    assert told == [0, 9, 9, 9, 9]


def test_a_draft_is_all_that_a_code_tells_and_the_last_guess_is_the_image():
    family = stages()
    model = goalgen.Model(family, configure(environment="code:1+bridge:2"), {}, torch.zeros(1, 8, 8), "ema")
    drawn = model.sample(3, guesses=True)
    assert drawn.guesses.shape == (3, 3, 1, 8, 8)  # at the draft and at the canvas after it, and the images
    assert torch.equal(drawn.guesses[-1], drawn.images)
    assert not torch.equal(drawn.guesses[0], drawn.guesses[1])
    assert model.sample(3).guesses is None


def test_the_weight_of_a_codes_kl_rises_over_the_run_or_over_some_steps():
    def weight(step: int, done: float, **settings) -> float:
        return stages(**settings).parts[0].kl_weight(Clock(step, done))

    assert [weight(0, done) for done in (0.0, 0.5, 1.0)] == pytest.approx([0.0, 0.3, 0.6])
    assert weight(5, 0.5, code_kl_weight=1.0) == pytest.approx(0.5)
    assert weight(4, 0.9, code_kl_weight=0.8, code_warmup_steps=10) == pytest.approx(0.4)
    assert weight(99, 0.0, code_warmup_steps=10) == pytest.approx(0.6)


def test_the_bound_counts_all_of_a_codes_kl_whatever_its_weight():
    generator = torch.Generator().manual_seed(0)
    goals = torch.rand(8, 1, 8, 8, generator=generator) * 2 - 1
    losses, bounds = [], []
    for weight in (0.0, 0.5, 1.0):
        torch.manual_seed(0)
        family = stages(code_kl_weight=weight)
        draws = family.draw(8, lambda name: torch.Generator().manual_seed(len(name)))
        learned = family.learn(Task(torch.zeros_like(goals), goals), draws, Clock(0, 1.0))
        losses.append(learned.loss.item())
        bounds.append(learned.bound)
    assert torch.equal(bounds[0].total, bounds[2].total)
    kl = bounds[0].kl[0].mean()
    assert kl > 0.01
    assert losses[1] - losses[0] == pytest.approx(0.5 * kl.item(), rel=1e-3)
    assert losses[2] - losses[0] == pytest.approx(kl.item(), rel=1e-3)
