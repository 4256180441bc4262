"""The averaged weights, the learning rate, the log and the revival of proposals, each by itself."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import tiny_agents, tiny_goals, tiny_start

from goalgen.config import TrainingConfig
from goalgen.families import make
from goalgen.families.proposals import dead_proposals, revive
from goalgen.learning import Clock
from goalgen.rng import generator
from goalgen.settings import configure
from goalgen.task import Task
from goalgen.training import machine
from goalgen.training.ema import EMA
from goalgen.training.log import cut_log, read_log
from goalgen.training.optimiser import first_bad_tensor, make_optimizer, rate


def test_average_with_warm_up_is_the_weighted_sum_of_all_weights_seen():
    agents = tiny_agents()
    weight = agents.s_agent.weight
    ema = EMA(agents, 0.9)
    seen = [weight.detach().double().clone()]
    for step in range(1, 121):
        with torch.no_grad():
            weight.copy_(torch.randn(weight.shape, generator=generator(step, "test")))
        seen.append(weight.detach().double().clone())
        ema.update(agents, step)

    # The share of weights n is what step n takes in and every later step keeps; decay (1 + n) / (10 + n), at most 0.9.
    keeps = [min(0.9, (1 + n) / (10 + n)) for n in range(1, 121)]
    assert keeps[78] < 0.9 == keeps[79]
    expected = sum(value * ((1 - keeps[n - 1]) if n else 1) * math.prod(keeps[n:]) for n, value in enumerate(seen))
    torch.testing.assert_close(ema.module.s_agent.weight.double(), expected, rtol=0, atol=1e-6)


def test_average_of_a_long_run_takes_in_every_fourth_step():
    """... with the decay to the fourth power: close to the average of all steps, were weights to move slowly."""
    agents = tiny_agents()
    weight = agents.s_agent.weight
    sparse, every = EMA(agents, 0.99), weight.detach().double().clone()
    for step in range(1, 2001):
        with torch.no_grad():
            weight.fill_(math.sin(step / 300))
        before = sparse.module.s_agent.weight.clone()
        sparse.update(agents, step)
        keep = min(0.99, (1 + step) / (10 + step))
        every = keep * every + (1 - keep) * weight.detach().double()
        assert torch.equal(before, sparse.module.s_agent.weight) == (step > 1000 and step % 4 > 0)
    torch.testing.assert_close(sparse.module.s_agent.weight.double(), every, rtol=0, atol=6e-3)


def test_average_of_weights_that_do_not_move_is_those_weights():
    agents = tiny_agents()
    ema = EMA(agents, 0.99)
    for step in range(1, 50):
        ema.update(agents, step)
    torch.testing.assert_close(ema.module.state_dict(), agents.state_dict())


def test_average_takes_usage_as_it_is():
    agents = tiny_agents()
    ema = EMA(agents, 0.99)
    agents.usage.fill_(0.123)
    ema.update(agents, 1)
    assert torch.equal(ema.module.usage, agents.usage)


@pytest.mark.parametrize(("decay", "middle", "end"), [("linear", 0.5, 0.02), ("cosine", 0.5, 0.02), ("none", 1.0, 1.0)])
def test_schedule_rises_from_one_step_of_warm_up_and_ends_where_it_should(decay, middle, end):
    config = TrainingConfig(decay=decay, warmup_steps=10)
    assert rate(config, 0, 0.0) == pytest.approx(0.1)
    assert rate(config, 9, 0.0) == pytest.approx(1.0)
    assert rate(config, 500, 0.5) == pytest.approx(middle)
    assert rate(config, 999, 1.0) == pytest.approx(end)
    assert rate(config, 1200, 1.5) == pytest.approx(end)


def test_schedule_without_warm_up_starts_at_the_peak():
    assert rate(TrainingConfig(warmup_steps=0), 0, 0.0) == 1.0


def test_every_parameter_that_learns_is_in_one_group():
    agents = tiny_agents("value")
    groups = make_optimizer(agents, TrainingConfig(weight_decay=0.3)).param_groups
    listed = [id(p) for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in agents.parameters() if p.requires_grad)


def test_first_bad_tensor_is_named():
    from goalgen.bound import Bound

    agents = tiny_agents()
    bad = Bound(torch.tensor([1.0, 2.0]), torch.tensor([[1.0, 1.0], [torch.inf, 1.0]]))
    assert first_bad_tensor(bad, agents) == "the KL of step 1 is infinite"
    with torch.no_grad():
        agents.s_agent.bias[0, 1] = torch.nan
    assert first_bad_tensor(Bound(torch.ones(2), torch.ones(2, 2)), agents) == "s_agent.bias is NaN"


def test_last_line_cut_short_by_a_crash_is_left_out(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "a": 0.5}\n{"step": 2, "a": 0.25}\n{"step": 3, "a')
    assert [r["step"] for r in read_log(path)] == [1, 2]


def test_log_is_cut_after_the_checkpoint(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text("".join(f'{{"step": {n}, "a": 0.1}}\n' for n in (5, 10, 10, 15)))
    cut_log(path, 10)
    assert path.read_text() == "".join(f'{{"step": {n}, "a": 0.1}}\n' for n in (5, 10, 10))


# Revival


DEAD, POPULAR, OTHER = 0, 1, 2


@pytest.fixture
def worn():
    """Agents after one optimiser step, one of whose three proposals is never chosen."""
    agents = tiny_agents(backprop="full")
    optimizer = make_optimizer(agents, TrainingConfig())
    draws = agents.draw(6, lambda _: generator(0, "test"))
    agents.learn(Task(tiny_start(), tiny_goals()), draws, Clock()).loss.backward()
    optimizer.step()
    with torch.no_grad():
        agents.s_agent.logit_bias[DEAD] = -30
        agents.s_agent.logit_weight[DEAD] = 0
        agents.usage[..., DEAD], agents.usage[..., POPULAR], agents.usage[..., OTHER] = 0, 1, 1e-6
    return agents, EMA(agents, 0.9).module, optimizer


def revived(worn, below):
    agents, ema, optimizer = worn
    count = revive(agents.s_agent, ema.s_agent, agents.usage, optimizer, generator(0, "test"), below)
    ema.usage.copy_(agents.usage)
    return count


def policy_and_proposals(agents, canvas):
    with torch.no_grad():
        decision = agents.s_agent.decide(agents.see(1, canvas))
    return decision.policy.probs[:, 0], decision.offer


def test_dead_are_those_below_their_part_of_an_equal_share():
    usage = torch.tensor([[[0.01, 0.39, 0.6]], [[0.02, 0.98, 0.0]]])  # shares 0.015, 0.685, 0.3
    assert dead_proposals(usage, 0.05).tolist() == [0]
    assert dead_proposals(usage, 0.04).tolist() == []
    assert dead_proposals(usage, 0.95).tolist() == [0, 2]


def test_dead_proposal_becomes_nearly_a_copy_of_a_popular_one(worn):
    agents, ema, optimizer = worn
    canvas = tiny_goals()
    _, before = policy_and_proposals(agents, canvas)
    assert revived((agents, ema, optimizer), 1e-7) == 1
    _, after = policy_and_proposals(agents, canvas)
    torch.testing.assert_close(after[:, POPULAR:], before[:, POPULAR:], rtol=0, atol=0)
    far = (before[:, DEAD] - before[:, POPULAR]).square().mean()
    near = (after[:, DEAD] - after[:, POPULAR]).square().mean()
    assert 0 < near < far / 10


@pytest.mark.parametrize("which", [0, 1], ids=["raw", "averaged"])
def test_copy_shares_the_probability_of_its_source(worn, which):
    module, canvas = worn[which], tiny_goals()
    before, _ = policy_and_proposals(module, canvas)
    revived(worn, 1e-7)
    after, _ = policy_and_proposals(module, canvas)
    # The floor under every probability (1e-3 / A) is the copy's in addition.
    torch.testing.assert_close(after[:, DEAD], after[:, POPULAR], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(after[:, [DEAD, POPULAR]].sum(1), before[:, POPULAR], rtol=0, atol=1e-3)
    torch.testing.assert_close(after[:, OTHER], before[:, OTHER], rtol=0, atol=1e-3)


def test_usage_is_shared_and_still_sums_to_one(worn):
    agents, ema, _ = worn
    revived(worn, 1e-7)
    assert torch.equal(agents.usage, ema.usage)
    torch.testing.assert_close(agents.usage[..., DEAD], torch.full((3, 1), 0.5))
    torch.testing.assert_close(agents.usage.sum(-1), torch.ones(3, 1))


def test_moments_of_the_optimiser_are_copied_with_the_weights(worn):
    agents, _, optimizer = worn
    different = []
    for name, dimension in agents.s_agent.rows().items():
        moment = optimizer.state[agents.s_agent.get_parameter(name)]["exp_avg"]
        different.append(not torch.equal(moment.select(dimension, DEAD), moment.select(dimension, POPULAR)))
    assert any(different)
    revived(worn, 1e-7)
    for name, dimension in agents.s_agent.rows().items():
        state = optimizer.state[agents.s_agent.get_parameter(name)]
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(state[key].select(dimension, DEAD), state[key].select(dimension, POPULAR))


def test_two_copies_of_one_source_share_its_probability_in_three(worn):
    agents, canvas = worn[0], tiny_goals()
    with torch.no_grad():
        agents.s_agent.logit_bias[OTHER] = -30
        agents.s_agent.logit_weight[OTHER] = 0
    assert revived(worn, 0.5) == 2
    after, _ = policy_and_proposals(agents, canvas)
    torch.testing.assert_close(after, torch.full_like(after, 1 / 3), rtol=0, atol=1e-5)


def test_nothing_is_revived_where_all_are_chosen(worn):
    agents = worn[0]
    agents.usage.fill_(1 / 3)
    before = {name: value.clone() for name, value in agents.state_dict().items()}
    assert revived(worn, 0.5) == 0
    torch.testing.assert_close(dict(agents.state_dict()), before, rtol=0, atol=0)


# Precision and the warm-up of the KL


def sized_agents(width: int, **changes):
    return make(configure(horizon=2, width=width, depth=2, head_width=8, **changes), (1, 8, 8), 17)


def test_precision_is_chosen_by_device_size_and_family(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine, "cpu_has_bfloat16", lambda: True)
    small, large = sized_agents(16), sized_agents(512)
    assert machine.choose_precision("auto", small) == "no"
    assert machine.choose_precision("auto", large) == "bf16"
    assert machine.choose_precision("auto", sized_agents(512, environment="proposals")) == "bf16"
    assert machine.choose_precision("bf16", small) == "bf16"
    assert machine.choose_precision("no", large) == "no"
    assert machine.choose_precision("auto", small, operations=lambda: 20_000_000) == "bf16"  # a U-Net has few weights
    monkeypatch.setattr(machine, "cpu_has_bfloat16", lambda: False)
    assert machine.choose_precision("auto", large) == "no"


def test_the_kl_is_warmed_up_over_steps_or_a_share_of_a_short_run():
    def weight(step: int, done: float, **settings) -> float:
        return sized_agents(8, environment="latent", **settings).kl_weight(Clock(step, done))

    assert weight(0, 0.0) == pytest.approx(1 / 500)
    assert weight(249, 0.01) == pytest.approx(0.5)
    assert weight(10, 0.2) == pytest.approx(0.5)  # two fifths of a run of few steps
    assert weight(10, 0.4) == weight(10, 1.0) == 1.0
    assert weight(4, 0.9, kl_warmup_steps=10) == pytest.approx(0.5)
    assert weight(0, 0.0, kl_warmup_steps=0) == 1.0
