"""A family for a world of your own: agents that read its states as rows of numbers, learning by whatever the world allows."""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod

import torch
from torch import Tensor, nn

from goalgen.agents import Agents, Decision, GCAgent, SAgent, Seen
from goalgen.blackbox import Judge, Search, collect, draw_search, learn_improved, policy_gradient
from goalgen.environment import Continuous, Discrete, Environment
from goalgen.errors import GoalgenError
from goalgen.family import Draws, Family, Plan, Streams
from goalgen.learning import Clock, Learned, learn_pathwise
from goalgen.likelihoods import PixelLikelihood, full_precision
from goalgen.networks import bounded, make_torso
from goalgen.policies import Categorical, Gaussian, Policy
from goalgen.rollout import advance
from goalgen.task import Task

SMOOTHING = 0.9
"""Lambda of the advantages where a batch has one episode of each goal."""


class Reader(nn.Module):
    """An mlp that reads what an environment lets be seen of a state, and the goal if it is told one: (B, numbers)."""

    def __init__(self, plan: Plan, environment: Environment, numbers: int, told: bool) -> None:
        super().__init__()
        blank = torch.zeros(1, *environment.canvas_shape)
        size = environment.sight(environment.initial(blank)).shape[1] + told * math.prod(plan.shape)
        spec = dataclasses.replace(plan.network, kind="mlp", shape=(size, 1, 1), patch=1)
        self.torso = make_torso(spec)
        self.head = nn.Linear(self.torso.num_context, numbers)
        nn.init.zeros_(self.head.weight)  # at first both agents say the same, and their divergence is nothing
        nn.init.zeros_(self.head.bias)

    def forward(self, seen: Seen, goal: Tensor | None = None) -> Tensor:
        sight = seen.environment.sight(seen.state)
        row = sight if goal is None else torch.cat([sight, goal.flatten(1)], 1)
        _, context = self.torso(seen.h, row[:, :, None, None], seen.label)
        return full_precision(self.head(context))


def numbers_of(environment: Environment) -> int:
    """How many numbers say a policy of the environment's actions.

    Raises:
        GoalgenError: its actions are neither Discrete nor Continuous.
    """
    space = environment.action_space
    if isinstance(space, Discrete):
        return space.cells * space.num_actions
    if isinstance(space, Continuous) and not space.mixed:
        return 2 * math.prod(space.shape)
    raise GoalgenError(
        f"a WorldFamily acts in Discrete or Continuous spaces, not {type(space).__name__}; write agents of your own (docs/guide.md)"
    )


def policy_of(numbers: Tensor, environment: Environment) -> Policy:
    """The policy that (B, numbers) say: logits, or means and log standard deviations."""
    space = environment.action_space
    if isinstance(space, Discrete):
        return Categorical(numbers.unflatten(1, (space.cells, space.num_actions)))
    mean, log_std = numbers.unflatten(1, (2, *space.shape)).unbind(1)
    return Gaussian(mean, bounded(log_std).exp())


class WorldSAgent(SAgent):
    """An mlp says its policy."""

    def __init__(self, plan: Plan, environment: Environment) -> None:
        super().__init__()
        self.mlp = Reader(plan, environment, numbers_of(environment), told=False)

    def decide(self, seen: Seen) -> Decision:
        return Decision(policy_of(self.mlp(seen), seen.environment))


class WorldCritic(Judge):
    """An mlp says V, beside what the state would be paid as it stands."""

    def __init__(self, plan: Plan, environment: Environment) -> None:
        super().__init__()
        self.mlp, self.horizon = Reader(plan, environment, 1, told=True), plan.horizon

    def value(self, seen: Seen, goal: Tensor) -> Tensor:
        paid = seen.likelihood.log_prob(goal, seen.state).detach()
        return paid if seen.step == self.horizon else paid + self.mlp(seen, goal)[:, 0]

    def look(self, agents: Agents, seen: Seen, goal: Tensor, decision: Decision, actions: Tensor) -> Tensor:
        """... of all candidates at once."""
        if decision.offer is not None:
            return super().look(agents, seen, goal, decision, actions)
        many = len(actions)
        label, memory = (None if x is None else x.repeat(many, *[1] * (x.dim() - 1)) for x in (seen.label, seen.memory))
        here = agents.see(seen.step, seen.state.repeat(many, *[1] * (seen.state.dim() - 1)), label, memory=memory)
        after = agents.see(seen.step + 1, advance(here, actions.flatten(0, 1), None), label, memory=memory)
        return self.value(after, goal.repeat(many, *[1] * (goal.dim() - 1))).view(many, -1)


class WorldGCAgent(GCAgent):
    """An mlp that is told the goal says its policy; another says V."""

    episodes_per_goal = 8  # without a gradient through the world it learns from what differs between them

    def __init__(self, plan: Plan, environment: Environment) -> None:
        super().__init__(plan, environment)
        self.mlp = Reader(plan, environment, numbers_of(environment), told=True)
        self.critic = WorldCritic(plan, environment) if by_gradient(environment) else None
        if self.critic is None:
            self.episodes_per_goal = 1

    def policy(self, seen: Seen, goal: Tensor, decision: Decision) -> Policy:
        return policy_of(self.mlp(seen, goal), seen.environment)


def by_gradient(environment: Environment) -> bool:
    """Whether only the policy gradient is left: in a black box, and where actions are choices."""
    return environment.black_box or not isinstance(environment.action_space, Continuous)


def searches(environment: Environment) -> bool:
    """Whether better actions are looked for: where actions are choices, so that any may be tried at random."""
    return isinstance(environment.action_space, Discrete)


def at_random(seen: Seen, goal: Tensor, decision: Decision) -> list[tuple[Policy, int]]:
    """Candidates that no agent has thought of: every choice alike."""
    assert isinstance(decision.policy, Categorical)
    return [(Categorical(torch.zeros_like(decision.policy.log_probs)), SEARCH.more)]


SEARCH = Search(own=4, others=2, proposer=at_random, more=6, share=0.5)
"""How better choices are looked for."""

SEARCHED = 0.4
"""Share of a run in which they are. Fitted to what a search finds, the GC-agent knows where to go, but not what its own errors cost;
that the policy gradient teaches it in the rest."""


class WorldFamily(Family):
    """Both agents in an environment that is all there is to write: a subclass has a ``name`` and :meth:`world`.

    A world through which gradients pass, with Continuous actions, is learned by them (equation 3 itself); any other by the policy
    gradient, which asks nothing of it (equation 33), after a search where actions are choices (equation 32). For agents, learning or settings of your own see docs/guide.md.
    """

    gc_agents = {"actor": WorldGCAgent}  # noqa: RUF012 - more may be put in
    stageable = False

    def __init__(self, plan: Plan) -> None:
        environment = self.world(plan)
        likelihood = PixelLikelihood(plan.shape, plan.levels, hidden=0, canvas=environment.canvas)
        s_agent = WorldSAgent(plan, environment)
        super().__init__(plan, environment, s_agent, self.make_gc_agent(plan, environment), likelihood)

    @classmethod
    @abstractmethod
    def world(cls, plan: Plan) -> Environment:
        """The environment for images (or other goals) of ``plan.shape``, in ``plan.horizon`` steps."""

    @classmethod
    def check(cls, plan: Plan) -> None:
        if plan.network.kind != "mlp":
            raise GoalgenError(f"the agents of {cls.name} are mlps, not --network {plan.network.kind}")

    def draw(self, batch: int, streams: Streams) -> Draws:
        draws = super().draw(batch, streams)
        if searches(self.environment):
            draws |= draw_search(self.environment, batch, SEARCH, streams("candidates"))
        return draws

    def learn(self, task: Task, draws: Draws, clock: Clock) -> Learned:
        if not by_gradient(self.environment):
            return learn_pathwise(self, task, draws["noise"])
        critic = self.gc_agent.critic
        assert isinstance(critic, WorldCritic)
        if searches(self.environment) and clock.done < SEARCHED:
            learned = learn_improved(self, critic, task, draws["noise"], draws, SEARCH)
            del learned.info["candidates_that_count"]  # the log has the same numbers all along
            return learned
        episodes = collect(self, critic, task, draws["noise"], None if task.episodes > 1 else SMOOTHING)
        return policy_gradient(self, critic, episodes)
