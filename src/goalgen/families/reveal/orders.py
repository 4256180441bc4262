"""A learned order: the GC-agent chooses which group comes next, and the S-agent learns to choose without the goal.

The GC-agent scores all groups of an image once, from its goal. Its order is a Plackett-Luce model of these scores: at every step it
draws among the groups that are left, in proportion to exp(score). So an order is drawn in one go, without walking through the
episode, and one step of each episode is still enough to learn from (as LO-ARM does, Wang et al. 2025). (Equation 34)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from goalgen.agents import Agents, Decision, GCAgent, Seen
from goalgen.bound import Bound
from goalgen.families.reveal.agents import RevealSAgent, RevealSettings
from goalgen.families.reveal.environment import ChosenOrderEnvironment
from goalgen.families.reveal.policies import ValuePolicy
from goalgen.learning import Learned
from goalgen.networks import NetworkSpec
from goalgen.policies import Policy
from goalgen.rollout import Trajectory
from goalgen.task import Task

if TYPE_CHECKING:
    from goalgen.family import Draws, Plan

SIDE, WIDTH = 8, 64
"""Sides, at most, of the small images that networks of orders read, and their width: little beside the network of values."""

LEAN = 3.0
"""Before anything is learned a group's score is this much below that of the group before it: little is left to chance, as one network
has to serve all orders that may come."""


class Ordered(Policy):
    """The S-agent's: a group, chosen among those that are left, then its values.

    Args:
        environment: of the groups.
        logits: (B, G), -inf for groups that may not be chosen.
        values: of all values; those that may be written at the step count.
    """

    def __init__(self, environment: ChosenOrderEnvironment, logits: Tensor, values: ValuePolicy) -> None:
        self.environment, self.values = environment, values
        self.log_choice = logits.log_softmax(1)

    def log_prob_by_group(self, image: Tensor) -> Tensor:
        """log p of the values of every group, were it the one, (B, G) nats, of an image (B, C, height, width)."""
        return self.environment.by_group(self.values.log_prob_counted(image))

    def sample(self, noise: Tensor) -> Tensor:
        first, rest = self.environment.action_space.split_noise(noise)
        return self.environment.action_space.join(chosen_at(self.log_choice, first), self.values.sample(rest))

    def log_prob(self, action: Tensor) -> Tensor:
        choice, image = self.environment.action_space.split(action)
        both = self.log_choice + self.log_prob_by_group(image)
        return both.gather(1, choice.unsqueeze(1))[:, 0]

    def kl(self, other: Policy) -> Tensor:
        raise NotImplementedError("this is the S-agent's policy; the GC-agent copies")

    def tempered(self, temperature: float) -> Ordered:
        values = self.values.tempered(temperature)
        assert isinstance(values, ValuePolicy)
        return Ordered(self.environment, self.log_choice / temperature, values)


class OrderedCopy(Policy):
    """The GC-agent's: a group by its own chances, then the goal's values.

    Args:
        environment: of the groups.
        logits: (B, G), -inf for groups that may not be chosen.
        goal: (B, C, height, width).
    """

    def __init__(self, environment: ChosenOrderEnvironment, logits: Tensor, goal: Tensor) -> None:
        self.environment, self.goal = environment, goal
        self.log_choice = logits.log_softmax(1)

    def sample(self, noise: Tensor) -> Tensor:
        first, _ = self.environment.action_space.split_noise(noise)
        return self.environment.action_space.join(chosen_at(self.log_choice, first), self.goal)

    def log_prob(self, action: Tensor) -> Tensor:
        choice, _ = self.environment.action_space.split(action)
        return self.log_choice.gather(1, choice.unsqueeze(1))[:, 0]

    def kl(self, other: Policy) -> Tensor:
        """KL(q_o || p_o) + E_q_o[-log p(values | x_h, group)], (B,) nats, summed over the groups. (Equation 34)"""
        assert isinstance(other, Ordered)
        return self.kl_of_order(other) - (other.log_prob_by_group(self.goal) * self.log_choice.exp()).sum(1)

    def kl_of_order(self, other: Ordered) -> Tensor:
        """KL(q_o || p_o), of the choices alone, (B,) nats."""
        possible = ~self.log_choice.isneginf()  # a difference of infinities would spoil the gradient
        log_ratio = torch.where(possible, self.log_choice, 0.0) - torch.where(possible, other.log_choice, 0.0)
        return (self.log_choice.exp() * log_ratio).sum(1)

    def tempered(self, temperature: float) -> OrderedCopy:
        return OrderedCopy(self.environment, self.log_choice / temperature, self.goal)


def chosen_at(log_choice: Tensor, uniform: Tensor) -> Tensor:
    """Groups (B,) at uniform numbers (B,), by the inverse of the cumulative distribution."""
    cumulative = log_choice.exp().cumsum(1)
    below = (cumulative <= uniform.unsqueeze(1) * cumulative[:, -1:]).sum(1)
    # Rounding must not end at a group of no chance: the last that has one is the most there is.
    last = log_choice.shape[1] - 1 - (~log_choice.isneginf()).flip(1).int().argmax(1)
    return torch.minimum(below, last)


def small(images: Tensor) -> Tensor:
    """Means over blocks of pixels, (B, numbers) of (B, channels, height, width)."""
    sides = tuple(min(side, SIDE) for side in images.shape[2:])
    if sides == images.shape[2:]:
        return images.flatten(1)
    return F.adaptive_avg_pool2d(images, sides).flatten(1)  # type: ignore[arg-type]


def make_scores(numbers: int, count: int) -> nn.Sequential:
    """A small network whose ``count`` outputs begin at zero."""
    last = nn.Linear(WIDTH, count)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(numbers, WIDTH), nn.SiLU(), last)


def leaning(groups: int) -> nn.Parameter:
    """Scores (G,) that favour the order of the partition: training departs from it where that pays."""
    return nn.Parameter(-LEAN * torch.arange(groups, dtype=torch.get_default_dtype()))


class OrderingSAgent(RevealSAgent):
    """Says which of the groups that are left comes next, p_o(group | x_h), and what values hidden pixels have.

    The order's network sees the canvas in small, and which groups are shown; never the goal.
    """

    def __init__(
        self, spec: NetworkSpec, settings: RevealSettings, levels: int, environment: ChosenOrderEnvironment
    ) -> None:
        super().__init__(spec, settings, levels, environment)
        seen = small(torch.zeros(1, *environment.state_shape)).shape[1]
        self.order, self.lean = make_scores(seen + environment.groups, environment.groups), leaning(environment.groups)

    def decide(self, seen: Seen) -> Decision:
        environment = seen.environment
        assert isinstance(environment, ChosenOrderEnvironment)
        values = self.decide_all(seen)
        canvas, known, start = seen.state.chunk(3, 1)
        shown = environment.shown(seen.state)[:, 0].to(canvas.dtype)
        scores = self.lean + self.order(torch.cat([small(torch.cat([canvas * known, known, start], 1)), shown], 1))
        return Decision(Ordered(environment, environment.among_those_left(seen.h, seen.state, scores), values))


class OrderingGCAgent(GCAgent):
    """Chooses the next group for the goal's sake, and copies its values.

    Attributes:
        scores: of all groups, and what it expects every step to cost, which only its learning reads; from the goal in small.
    """

    def __init__(self, plan: Plan, environment: ChosenOrderEnvironment) -> None:
        super().__init__(plan, environment)
        self.groups, self.horizon = environment.groups, environment.horizon
        seen = small(torch.zeros(1, *environment.shape)).shape[1]
        self.scores, self.lean = make_scores(seen, self.groups + self.horizon), leaning(self.groups)

    def judge(self, goal: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (B, G) and expected costs of the steps, (B, H) nats a value."""
        scores, costs = self.scores(small(goal)).split([self.groups, self.horizon], 1)
        return self.lean + scores, costs

    def choose(self, seen: Seen, goal: Tensor, scores: Tensor) -> OrderedCopy:
        """Its policy with these scores."""
        environment = seen.environment
        assert isinstance(environment, ChosenOrderEnvironment)
        return OrderedCopy(environment, environment.among_those_left(seen.h, seen.state, scores), goal)

    def policy(self, seen: Seen, goal: Tensor, decision: Decision) -> OrderedCopy:
        return self.choose(seen, goal, self.judge(goal)[0])


def draw_order(scores: Tensor, uniform: Tensor) -> Tensor:
    """Groups in the order in which a Plackett-Luce model draws them, (B, G) int64, at uniform numbers (B, G) (Yellott 1977)."""
    gumbel = -(-uniform.clamp(1e-7, 1 - 1e-7).log()).log()
    return (scores + gumbel).argsort(1, descending=True)


def log_prob_of_order(scores: Tensor, order: Tensor) -> Tensor:
    """log q of each choice of an order given those before it, (B, G) nats."""
    sorted_scores = scores.gather(1, order)
    left = sorted_scores.flip(1).logcumsumexp(1).flip(1)  # over the groups that were not yet chosen
    return sorted_scores - left


def learn_order(family: Agents, chance: Tensor, task: Task, draws: Draws) -> Learned:
    """An unbiased estimate of J and of its gradient in both agents, from one step of each episode. (Equation 34)

    At the visited step the choice is summed over. What was chosen before it enters by the score function: log q of these choices
    times what the step cost, less what it was expected to.

    Args:
        chance: that each step is visited, (H,).
        draws: "steps" (1, B), and "orders": uniform numbers (1, B, G).
    """
    environment, gc_agent, goals = family.environment, family.gc_agent, task.goal
    assert isinstance(environment, ChosenOrderEnvironment)
    assert isinstance(gc_agent, OrderingGCAgent)
    h = draws["steps"][0]
    scores, expected = gc_agent.judge(goals)
    order = draw_order(scores.detach(), draws["orders"][0].to(scores.dtype))
    state = environment.along(h, goals, task.start, order)
    seen = family.see(h, state, task.label, memory=task.memory)
    decision = family.s_agent.decide(seen)
    q = gc_agent.choose(seen, goals, scores)
    p = decision.policy
    assert isinstance(p, Ordered)
    cost, weight = q.kl(p), 1 / chance.to(goals.dtype)[h]
    before = torch.arange(environment.groups, device=h.device) < environment.choices_before(h)[:, None]
    log_q = torch.where(before, log_prob_of_order(scores, order), 0.0).sum(1)
    size = environment.sizes.to(cost.dtype)[h]  # in the order of the partition: about as large as the cost
    error = cost.detach() / size - expected.gather(1, h[:, None])[:, 0]
    loss = (weight * (cost + size * error.detach() * log_q) + error.square()).mean()
    by_step = cost.new_zeros(family.horizon, len(cost)).scatter(
        0, h.unsqueeze(0), (weight * cost).detach().unsqueeze(0)
    )
    return Learned(loss, Bound(torch.zeros_like(cost.detach()), by_step))


@torch.no_grad()
def report_order(trajectory: Trajectory, environment: ChosenOrderEnvironment) -> dict[str, Any]:
    """What the order costs, how much of it is left to chance, and how many values come at each step in the mean."""
    kl, entropy = torch.zeros(()), torch.zeros(())
    for q, decision in zip(trajectory.q, trajectory.decisions, strict=True):
        assert isinstance(q, OrderedCopy)
        assert isinstance(decision.policy, Ordered)
        kl = kl + q.kl_of_order(decision.policy).mean().cpu()
        entropy = entropy + torch.special.entr(q.log_choice.exp()).sum(1).mean().cpu()
    known = environment.count_known(trajectory.states).double().mean(1)  # (H + 1,)
    return {
        "bound_is_exact": False, "order_kl_nats": float(kl), "order_entropy_nats": float(entropy),
        "values_per_step": [round(size, 1) for size in known.diff().tolist()],
    }  # fmt: skip
