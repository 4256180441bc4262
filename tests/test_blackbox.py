"""Learners for a black box find, on a world that can be enumerated, the optimum that the exact agent has."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_strokes import GOALS, MarksGCAgent, tiny_marks, which
from torch import Tensor, nn

from goalgen import exact
from goalgen.agents import Agents, Seen
from goalgen.blackbox import (
    Found,
    Judge,
    Search,
    collect,
    draw_search,
    improve,
    learn_improved,
    look_for_better,
    policy_gradient,
)
from goalgen.bound import bound
from goalgen.rollout import draw_noise, rollout
from goalgen.task import Task

STEPS = 150


class Table(Judge):
    """A value of its own for every goal, step and mark made before."""

    def __init__(self, horizon: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(len(GOALS), horizon, 6))

    def value(self, seen: Seen, goal: Tensor) -> Tensor:
        paid = seen.likelihood.log_prob(goal, seen.state).detach()
        if seen.step == self.table.shape[1]:
            return paid
        value = self.table[which(goal), seen.step, seen.state[:, 3].long()]
        return torch.where(seen.environment.ended(seen.state), paid, value)


def world() -> tuple[Agents, Judge, Task, Tensor, list[nn.Parameter]]:
    """Agents, values, three goals, what J is at best, and what may learn: p and the likelihood stay as they are."""
    agents = tiny_marks(spread=0.0)
    judge = Table(agents.horizon)
    task = Task(torch.zeros(3, 1, 1, 2), GOALS)
    best = -exact.log_likelihood(agents, task)
    return agents, judge, task, best, [*agents.gc_agent.parameters(), *judge.parameters()]


def gap(agents: Agents, task: Task, best: Tensor) -> float:
    """How far J is from what it can be, nats, exactly."""
    with torch.no_grad():
        return float((exact.expected_bound(agents, task) - best).max())


def improve_for_a_while(agents: Agents, judge: Judge, task: Task, learns: list[nn.Parameter], **search) -> None:
    search, many = Search(own=16, others=16, share=0.7, **search), task.repeat(8)
    optimizer = torch.optim.Adam(learns, lr=0.2)
    generator = torch.Generator().manual_seed(0)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 0.2 * (1 - step / STEPS)
        noise = draw_noise(agents.environment, len(many), generator)
        draws = draw_search(agents.environment, len(many), search, generator)
        learned = learn_improved(agents, judge, many, noise, draws, search)
        optimizer.zero_grad()
        learned.loss.backward()
        optimizer.step()


def test_the_improved_policy_reaches_the_optimum():
    agents, judge, task, best, learns = world()
    assert gap(agents, task, best) > 0.5
    improve_for_a_while(agents, judge, task, learns)
    assert gap(agents, task, best) < 0.02
    # V is the value: at the first step the likelihood itself. (Equation 7)
    start = agents.see(0, agents.environment.initial(task.start))
    assert torch.allclose(judge.value(start, task.goal), -best, atol=0.1)


def test_uncorrected_candidates_miss_the_best_policy():
    """They lean to whatever proposes, so the correction is what makes (32) right."""
    agents, judge, task, best, learns = world()
    improve_for_a_while(agents, judge, task, learns, corrected=False)
    assert gap(agents, task, best) > 0.05


@pytest.mark.parametrize(
    ("smoothing", "updates"), [(None, 1), (0.9, 1), (None, 3)], ids=["others", "critic", "clipped"]
)
def test_the_policy_gradient_reaches_the_optimum(smoothing, updates):
    agents, judge, task, best, learns = world()
    many = task.repeat(24)
    optimizer = torch.optim.Adam(learns, lr=0.1)
    generator = torch.Generator().manual_seed(0)
    steps = STEPS if updates == 1 else STEPS // 2
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * (1 - step / steps)
        episodes = collect(agents, judge, many, draw_noise(agents.environment, len(many), generator), smoothing)
        for _ in range(updates):
            optimizer.zero_grad()
            policy_gradient(agents, judge, episodes).loss.backward()
            optimizer.step()
    assert gap(agents, task, best) < 0.04


def test_the_policy_gradient_is_the_gradient_of_the_bound():
    """Its mean over many episodes is what differentiating the exact sum over all of them gives, in q and in p."""
    agents, judge, task, _, _ = world()
    agents.gc_agent = MarksGCAgent(1.0)
    parameters = [*agents.gc_agent.parameters(), *agents.s_agent.parameters()]
    expected = torch.autograd.grad(exact.expected_bound(agents, task).mean(), parameters)
    many, generator = task.repeat(4000), torch.Generator().manual_seed(0)
    episodes = collect(agents, judge, many, draw_noise(agents.environment, len(many), generator))
    found = torch.autograd.grad(policy_gradient(agents, judge, episodes).loss, parameters)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() < 0.05 * b.norm() + 1e-3


def test_both_say_what_the_bound_is():
    agents, judge, task, _, _ = world()
    agents.gc_agent = MarksGCAgent(1.0)
    expected, many = exact.expected_bound(agents, task), task.repeat(3200)
    noise = draw_noise(agents.environment, len(many), torch.Generator().manual_seed(0))
    search = Search(own=2, others=2)
    draws = draw_search(agents.environment, len(many), search, torch.Generator().manual_seed(1))
    searched = learn_improved(agents, judge, many, noise, draws, search).bound.total.view(3, -1)
    acted = collect(agents, judge, many, noise).bound.total.view(3, -1)
    for said in (searched, acted):
        assert ((said.mean(1) - expected).abs() < 5 * said.std(1) / said.shape[1] ** 0.5).all()
    assert torch.allclose(acted.flatten(), bound(agents, rollout(agents, many, noise)).total, atol=1e-5)


def test_candidates_count_by_what_they_are_worth_over_how_they_were_drawn():
    """Drawn however they may be, their weighted shares tend to p exp V, and the mean weight to the value. (Equations 5, 6)"""
    p, v = torch.tensor([0.2, 0.5, 0.3]), torch.tensor([1.0, 0.0, 2.0])
    target = p * v.exp()
    for m in (torch.tensor([0.8, 0.1, 0.1]), torch.tensor([0.1, 0.2, 0.7])):
        drawn = torch.multinomial(m, 200_000, replacement=True, generator=torch.Generator().manual_seed(0))
        log_weight, value = improve(p[drawn].log()[:, None], v[drawn][:, None], m[drawn].log()[:, None])
        shares = torch.zeros(3).scatter_add(0, drawn, log_weight.exp()[:, 0])
        assert torch.allclose(shares, target / target.sum(), atol=0.01)
        assert value.item() == pytest.approx(target.sum().log().item(), abs=0.02)
    greedy, _ = improve(p.log()[:, None], v[:, None], p.log()[:, None], temperature=1e-3)
    assert greedy.exp()[2].item() == pytest.approx(1.0)


def test_no_gradient_passes_through_the_world():
    agents, judge, task, _, _ = world()
    start = task.start.clone().requires_grad_()
    task, search = Task(start, task.goal), Search(own=3, others=3)
    noise = draw_noise(agents.environment, 3, torch.Generator().manual_seed(0))
    draws = draw_search(agents.environment, 3, search, torch.Generator().manual_seed(1))
    learned = learn_improved(agents, judge, task, noise, draws, search)
    assert torch.autograd.grad(learned.loss, start, allow_unused=True)[0] is None
    state = agents.environment.initial(torch.zeros(3, 1, 1, 2)).requires_grad_()
    seen = agents.see(0, state)
    decision = agents.s_agent.decide(seen)
    ahead = judge.look(agents, seen, GOALS, decision, torch.zeros(2, 3, 2, dtype=torch.int64))
    assert not ahead.requires_grad or torch.autograd.grad(ahead.sum(), state, allow_unused=True)[0] is None


def test_in_hindsight_what_was_reached_was_the_goal():
    """The loss is that of one episode in four, told its own last canvas; it reaches the GC-agent alone, and vanishes at weight 0."""
    agents, judge, task, _, _ = world()
    with torch.no_grad():
        for parameter in agents.gc_agent.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    search, many = Search(own=4, others=4), task.repeat(4)
    generator = torch.Generator().manual_seed(0)
    noise = draw_noise(agents.environment, len(many), generator)
    draws = draw_search(agents.environment, len(many), search, generator)
    without = learn_improved(agents, judge, many, noise, draws, search).loss
    weight = replace(search, hindsight=0.5)
    loss = learn_improved(agents, judge, many, noise, draws, weight).loss
    found = Found(agents, judge, many)
    look_for_better(found, noise, draws, weight)
    steps = agents.horizon
    again, reached, expected = found.rows[steps:], agents.environment.canvas(found.last), torch.zeros(())
    assert len(found.rows) == 2 * steps
    for rows, plain in zip(again, found.rows, strict=False):
        assert rows.episode.tolist() == [e for e in plain.episode.tolist() if e % 4 == 3]
        assert torch.equal(rows.goal, reached[rows.episode])
        assert not torch.equal(rows.goal, many.goal[rows.episode])
        after = found.visits[int(rows.step[0]) + 1][2] if int(rows.step[0]) + 1 < steps else found.last
        seen = agents.see(int(rows.step[0]), rows.state)
        went = agents.environment.transition(seen.h, rows.state, rows.targets[:, 0], None)
        assert torch.equal(went, after[rows.episode])
        q = agents.gc_agent.policy(seen, rows.goal, agents.s_agent.decide(seen))
        expected = expected - 0.5 * q.log_prob(rows.targets[:, 0]).sum() / 3  # three of twelve episodes
    assert torch.allclose(loss - without, expected, rtol=1e-4)
    (first,) = torch.autograd.grad(loss - without.detach(), agents.gc_agent.tables.first, retain_graph=True)
    assert first.abs().sum() > 0
    with_p = torch.autograd.grad(loss, agents.s_agent.tables.first)[0]
    assert torch.allclose(with_p, torch.autograd.grad(without, agents.s_agent.tables.first)[0])


def test_updates_share_the_states_and_add_up():
    """In every pass each state has its turn once: the losses' means are that of one update of all states."""
    agents, judge, task, _, _ = world()
    many, plain = task.repeat(5), Search(own=4, others=4)
    split = replace(plain, passes=2, states=7)

    def learned(search: Search):
        generator = torch.Generator().manual_seed(0)
        noise = draw_noise(agents.environment, len(many), generator)
        draws = draw_search(agents.environment, len(many), search, generator)
        return learn_improved(agents, judge, many, noise, draws, search), draws["updates"]

    once, every = learned(plain)
    assert every.shape == (1, 15, agents.horizon)
    assert every.all()
    assert not once.again
    several, updates = learned(split)
    parts = len(updates) // 2
    assert parts == round(15 * agents.horizon / 7) > 1
    assert (updates.unflatten(0, (2, parts)).sum(1) == 1).all()
    assert not torch.equal(updates[:parts], updates[parts:])
    losses = torch.stack([several.loss, *(lesson() for lesson in several.again)])
    assert losses.std() > 0
    for half in losses.split(parts):
        assert torch.allclose(half.mean(), once.loss, rtol=1e-4)


@pytest.mark.parametrize("lessons", [2, 3])
def test_the_s_agent_may_have_more_lessons(lessons):
    """Over a pass it learns so many times of every state, and the GC-agent once; never twice of one in an update."""
    agents, judge, task, _, _ = world()
    many, plain = task.repeat(5), Search(own=4, others=4, states=7)
    first_of = (agents.gc_agent.tables.first, agents.s_agent.tables.first)

    def gradients(search: Search):
        generator = torch.Generator().manual_seed(0)
        noise = draw_noise(agents.environment, len(many), generator)
        learned = learn_improved(
            agents, judge, many, noise, draw_search(agents.environment, len(many), search, generator), search
        )
        losses = [learned.loss, *(lesson() for lesson in learned.again)]
        return torch.autograd.grad(torch.stack(losses).mean(), first_of)

    (q, p), (q_again, p_more) = gradients(plain), gradients(replace(plain, s_lessons=lessons))
    assert p.abs().sum() > 0
    assert torch.allclose(q, q_again, rtol=1e-4, atol=1e-6)
    assert torch.allclose(lessons * p, p_more, rtol=1e-4, atol=1e-6)


def test_an_update_without_states_of_its_own_still_has_a_gradient():
    """As where several processes share a batch, and the episodes of one are over."""
    agents, judge, task, _, _ = world()
    generator, search = torch.Generator().manual_seed(0), Search(own=4, others=4)
    noise = draw_noise(agents.environment, len(task), generator)
    draws = draw_search(agents.environment, len(task), search, generator)
    found = Found(agents, judge, task)
    look_for_better(found, noise, draws, search)
    loss, _ = found.learned_of(torch.zeros_like(draws["updates"][0]), None, 1)
    (first,) = torch.autograd.grad(loss, agents.gc_agent.tables.first)
    assert (first == 0).all()
