"""Stages: families in sequence on one canvas, each from the state in which the one before ended. (Equation 29)

``--environment code:1+bridge:3`` names them, each with its number of steps. A state is that of the stage in hand, which begins
with the canvas, and memory beside it: the actions of stages that remember theirs, which every network may read.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable
from itertools import accumulate, pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from goalgen import config
from goalgen.agents import Decision
from goalgen.bound import Bound
from goalgen.errors import GoalgenError
from goalgen.families.stages.world import (
    Flat,
    LastLikelihood,
    Packed,
    StagesEnvironment,
    StagesGCAgent,
    StagesSAgent,
    unpack,
    unpacked,
)
from goalgen.family import AfterStep, Draws, Family, LearningGCAgent, Plan, Streams
from goalgen.learning import Clock, Learned
from goalgen.rollout import Samples, Trajectory, draw_noise, even_path, rollout
from goalgen.task import Task

__all__ = ["Flat", "Packed", "Stages", "StagesEnvironment", "make_stages"]

EACH = "of each stage"
"""What ``--gc-agent auto`` means for stages."""


class Stages(Family):
    """Families in sequence: KLs add up, and the last likelihood counts. A class of its own for every sequence."""

    kinds: ClassVar[tuple[type[Family], ...]]
    steps: ClassVar[tuple[int | None, ...]]
    """of each stage; None: as many as ``--horizon`` says"""
    environment: StagesEnvironment

    def __init__(self, plan: Plan) -> None:
        settings, steps = self.split(plan)
        stages, known = [], list(accumulate(self.left(settings, steps), initial=0))
        # Of what a stage itself leaves only earlier steps of it have left something.
        told = [known[k] if count == 1 else known[k + 1] for k, count in enumerate(steps)]
        for kind, own, count, memory in zip(self.kinds, settings, steps, told, strict=True):
            network = dataclasses.replace(plan.network, horizon=count, memory=memory)
            stages.append(kind(dataclasses.replace(plan, settings=own, network=network, gc_agent=agent_of(kind, plan))))  # type: ignore[call-arg]
        environment = StagesEnvironment(stages, plan.shape, known, told)
        super().__init__(plan, environment, StagesSAgent(), StagesGCAgent(), LastLikelihood(environment))
        self.stages = nn.ModuleList(stages)

    @classmethod
    def split(cls, plan: Plan) -> tuple[list[Any], list[int]]:
        """Settings and number of steps of each stage."""
        names = [kind.Settings.__dataclass_fields__ for kind in cls.kinds]
        values = [{name: getattr(plan.settings, name) for name in own} for own in names]
        settings = [kind.Settings(**own) for kind, own in zip(cls.kinds, values, strict=True)]
        return settings, [plan.horizon if count is None else count for count in cls.steps]

    @classmethod
    def left(cls, settings: list[Any], steps: list[int]) -> list[int]:
        """Numbers that each stage leaves in memory."""
        return [kind.remembered(own) * count for kind, own, count in zip(cls.kinds, settings, steps, strict=True)]

    @classmethod
    def check(cls, plan: Plan) -> None:
        settings, steps = cls.split(plan)
        for kind, own, count in zip(cls.kinds, settings, steps, strict=True):
            network = dataclasses.replace(plan.network, horizon=count)
            kind.check(dataclasses.replace(plan, settings=own, network=network, gc_agent=agent_of(kind, plan)))
        if cls.kinds[-1].remembered(settings[-1]):
            raise GoalgenError(
                f"the last stage must draw: {cls.kinds[-1].name} only remembers; add a stage, such as +bridge:4"
            )
        lost = ""  # a stage whose canvas nothing is learned for unless gradients come back through the next ones
        for kind, own in zip(cls.kinds, settings, strict=True):
            if kind.learns_apart and lost:
                raise GoalgenError(
                    f"{lost} cannot come before {kind.name}: no gradient passes through {kind.name} to say what {lost} should draw; "
                    f"put {kind.name} first"
                )
            lost = lost or ("" if kind.learns_apart or kind.remembered(own) else kind.name)

    def generative_modules(self) -> list[nn.Module]:
        return [module for stage in self.parts for module in stage.generative_modules()]

    def gc_modules(self) -> list[nn.Module]:
        return [module for stage in self.parts for module in stage.gc_modules()]

    @property
    def parts(self) -> tuple[Family, ...]:
        """The families of the stages."""
        return self.environment.stages

    @property
    def can_skip(self) -> bool:
        return any(stage.can_skip for stage in self.parts)

    @property
    def can_correlate(self) -> bool:
        return any(stage.can_correlate for stage in self.parts)

    def path(self, steps: int | None) -> list[int]:
        """... with those left out that stages which can skip some are to leave out, each in proportion to its steps; as few as may
        be leave out all of the last stage, of which the draft is shown."""
        if steps is None or not self.can_skip:
            return super().path(steps)
        fixed = sum(stage.horizon for stage in self.parts if not stage.can_skip)
        free = [stage.horizon for stage in self.parts if stage.can_skip]
        draft = self.parts[-1].drafts
        least = fixed + len(free) - draft
        if not least <= steps <= self.horizon:
            raise GoalgenError(f"the number of sampling steps must be {least} to {self.horizon}, not {steps}")
        if draft and steps == least:
            return [step for step in self.path(steps + 1) if step <= self.environment.ends[-2]]
        shares = list(accumulate(free, initial=0))
        cut = [round(share * (steps - fixed) / shares[-1]) for share in shares]
        counts = iter([max(1, b - a) for a, b in pairwise(cut)])
        whole = [0]
        for stage in self.parts:
            own = even_path(stage.horizon, next(counts)) if stage.can_skip else range(stage.horizon + 1)
            whole += [whole[-1] + step for step in list(own)[1:]]
        return whole

    # -- learning --------------------------------------------------------------------------------------------------

    def draw(self, batch: int, streams: Streams) -> Draws:
        """Noise of the steps before the last stage, and whatever the stages draw that learn in their own way: the last one, and
        those that learn apart."""
        draws: Draws = {}
        for k, stage in enumerate(self.parts):
            last = k + 1 == len(self.parts)
            if stage.learns_apart or last:
                own = stage.draw(batch, within(streams, "last stage" if last else f"stage {k}"))
                draws |= {f"stage {k} {name}": drawn for name, drawn in own.items()}
        space, generator = self.environment.action_space, streams("actions")
        if isinstance(space, Flat):  # the last stage's actions may want many more numbers
            space = Flat(space.spaces[:-1])
        first = [space.noise(batch, generator) for _ in range(self.environment.ends[-2])]
        return {"before": torch.stack(first), **draws}

    def learn_stage(self, k: int, task: Task, state: Tensor, draws: Draws, clock: Clock) -> Learned:
        """Stage k learns in its own way from the states (B, ...) in which it begins."""
        prefix = f"stage {k} "
        own = {name.removeprefix(prefix): drawn for name, drawn in draws.items() if name.startswith(prefix)}
        return self.parts[k].learn(self.environment.task(k, task, state), own, clock)

    def learn(self, task: Task, draws: Draws, clock: Clock) -> Learned:
        """Episodes of the stages before the last, whose states the last one learns from in its own way. (Equation 29)

        A stage that learns apart does so too; its episodes here are those of the GC-agent as it is, of which J is the bound.
        """
        *before, _ = self.parts
        own = [stage.gc_agent for stage in before if isinstance(stage.gc_agent, LearningGCAgent)]
        first = rollout(
            self, task, draws["before"], through_q=True, through_actions=True, steps=self.environment.ends[-2], weigh=bool(own)
        )  # fmt: skip
        learned = self.learn_stage(len(before), task, first.states[-1], draws, clock)
        loss, info, seen_by, again = learned.loss, learned.info, learned.seen, [*learned.again]
        for k, stage in enumerate(before):
            steps = slice(self.environment.ends[k] - stage.horizon, self.environment.ends[k])
            if stage.learns_apart:
                apart = self.learn_stage(k, task, first.states[steps.start], draws, clock)
                loss, seen_by = loss + apart.loss, {**apart.seen, **seen_by}
                again += apart.again
                info = {**info, **{name if name not in info else f"{name}_{k}": x for name, x in apart.info.items()}}
                continue
            loss = loss + stage.kl_weight(clock) * first.kl[steps].sum(0).mean()
            at = [self.see(h, first.states[h], task.label) for h in range(steps.start, steps.stop)]
            seen = [self.environment.seen_in_stage(whole)[1] for whole in at]
            loss = loss + stage.rehearse(seen, [unpacked(q) for q in first.q[steps]], clock)
            if isinstance(stage.gc_agent, LearningGCAgent):
                terms = Bound(learned.bound.total, first.kl[steps])
                extra, more = stage.gc_agent.loss(stage, self.part(first, k), terms)
                loss, info = loss + extra, {**info, **more}
        kl = first.kl.detach() if learned.rows is None else first.kl.detach()[:, learned.rows]
        terms = Bound(learned.bound.reconstruction, torch.cat([kl, learned.bound.kl]))
        return Learned(loss, terms, info, seen_by, again, learned.rows)

    def part(self, trajectory: Trajectory, k: int) -> Trajectory:
        """The episodes of stage k alone, as if it were the only one."""
        end = self.environment.ends[k]
        begin = end - self.parts[k].horizon
        q, decisions = trajectory.q[begin:end], trajectory.decisions[begin:end]
        actions = [
            p.unpack(a) if isinstance(p, Packed) else a for p, a in zip(q, trajectory.actions[begin:end], strict=True)
        ]
        states = [
            self.environment.own(k, state) for state in trajectory.states[begin : end + (k + 1 == len(self.parts))]
        ]
        if k + 1 < len(self.parts):  # its last state is not kept: the next stage has begun, with the same canvas
            canvas = self.environment.canvas(trajectory.states[end])
            states.append(
                torch.cat([canvas.flatten(1), states[-1].flatten(1)[:, canvas[0].numel() :]], 1).view_as(states[-1])
            )
        task = dataclasses.replace(trajectory.task, start=self.environment.canvas(trajectory.states[begin]))
        return Trajectory(
            task, torch.stack(states), torch.stack(actions), [Decision(unpacked(d.policy)) for d in decisions],
            [unpacked(p) for p in q], trajectory.kl[begin:end], trajectory.log_ratio[begin:end],
        )  # fmt: skip

    @torch.no_grad()
    def estimate(self, task: Task, streams: Streams) -> Bound:
        noise = draw_noise(self.environment, len(task), streams("actions")).to(self.device)
        first = rollout(self, task, noise, steps=self.environment.ends[-2], weigh=False)
        onward = self.environment.task(len(self.parts) - 1, task, first.states[-1])
        terms = self.parts[-1].estimate(onward, within(streams, "last stage"))
        return Bound(terms.reconstruction, torch.cat([first.kl, terms.kl]))

    def rates(self) -> dict[nn.Parameter, float]:
        return {parameter: rate for stage in self.parts for parameter, rate in stage.rates().items()}

    def layers(self) -> list[nn.Parameter]:
        return [weight for stage in self.parts for weight in stage.layers()]

    def after_step(self, after: AfterStep) -> dict[str, int]:
        averaged = after.averaged
        counts: dict[str, int] = {}
        assert isinstance(averaged, Stages)
        for stage, average in zip(self.parts, averaged.parts, strict=True):
            for name, count in stage.after_step(dataclasses.replace(after, averaged=average)).items():
                counts[name] = counts.get(name, 0) + count
        return counts

    def report(self, trajectory: Trajectory) -> dict[str, Any]:
        """KL by stage, and what every stage reports of its own episodes."""
        found: dict[str, Any] = {}
        nats = []
        for k, stage in enumerate(self.parts):
            own = self.part(trajectory, k)
            nats.append([f"{stage.name}:{stage.horizon}", own.kl.sum(0).mean().item()])
            found |= {key if key not in found else f"{key}_{k}": value for key, value in stage.report(own).items()}
        return {"kl_by_stage": nats, **found}

    @property
    def writer(self) -> int | None:
        """The stage whose files stand beside a sample: the last that writes any."""
        return max((k for k, stage in enumerate(self.parts) if type(stage).files is not Family.files), default=None)

    @property
    def files_steps(self) -> tuple[int, int]:
        if self.writer is None:
            return super().files_steps
        stage, end = self.parts[self.writer], self.environment.ends[self.writer]
        first, last = stage.files_steps
        return end - stage.horizon + first, end - stage.horizon + last

    def files(self, samples: Samples) -> list[dict[str, bytes]]:
        """Those of one stage, such as the drawing that a later one works out."""
        k = self.writer
        if k is None or any(stage.can_skip for stage in self.parts[:k]):  # which step is which may not be known
            return []
        begin, end = self.environment.ends[k] - self.parts[k].horizon, self.environment.ends[k]
        actions, space = list(samples.actions[begin:end]), self.parts[k].environment.action_space
        if isinstance(self.environment.action_space, Flat):
            actions = [unpack(space, rows) for rows in actions]
        states = [self.environment.own(k, state) for state in samples.states[begin : begin + len(actions)]]
        return self.parts[k].files(Samples(torch.stack(states), torch.stack(actions), []))


MOST_STAGES = 64
"""Stages, at most."""


def within(streams: Streams, what: str) -> Streams:
    """The streams of a part of the model, called by its name and their own."""
    return lambda name: streams(f"{what} {name}")


def agent_of(kind: type[Family], plan: Plan) -> str:
    """The GC-agent of a stage: the one asked for, if it has that."""
    return plan.gc_agent if plan.gc_agent in kind.gc_agents else next(iter(kind.gc_agents))


def make_stages(spec: str, known: Callable[[str], type[Family]]) -> type[Stages]:
    """The family that ``spec`` names, such as "code:1+bridge:3".

    Args:
        known: a family by its name.

    Raises:
        GoalgenError: a stage is no family, or one that cannot be a stage, or its number of steps is none.
    """
    kinds, steps = [], []
    if spec.count("+") >= MOST_STAGES:
        raise GoalgenError(f"--environment {spec[:80]}... has more than {MOST_STAGES} stages")
    for part in spec.split("+"):
        name, colon, count = part.strip().partition(":")
        if colon and not (count.isascii() and count.isdigit() and len(count) < 7 and int(count) > 0):
            raise GoalgenError(
                f"--environment {spec[:80]}: {part[:40]!r} needs a number of steps (1 to 999999) after the colon, such as {name[:40]}:4"
            )
        kinds.append(known(name))
        if not kinds[-1].stageable:
            raise GoalgenError(f"--environment {spec}: {name} cannot be a stage of several; train it by itself")
        steps.append(int(count) if colon else None)
    if len(kinds) < 2:
        raise GoalgenError(
            f"--environment {spec} is one stage; write --environment {kinds[0].name} --horizon {steps[0]}"
        )
    fields: dict[str, Any] = {}
    for kind in kinds:
        hints = typing.get_type_hints(kind.Settings)
        for item in dataclasses.fields(kind.Settings):
            value = dataclasses.field(default=item.default, metadata=item.metadata)
            fields.setdefault(item.name, (item.name, hints[item.name], value))
    settings = dataclasses.make_dataclass("StagesSettings", fields.values(), bases=(config.Settings,), frozen=True)
    agents = {EACH: StagesGCAgent} | {name: make for kind in kinds for name, make in kind.gc_agents.items()}
    demands = next((kind for kind in kinds if kind.network != Family.network), Family)  # it may need its network
    about = {
        "name": spec, "Settings": settings, "gc_agents": agents, "kinds": tuple(kinds), "steps": tuple(steps),
        "network": demands.network, "sizes": demands.sizes,
    }  # fmt: skip
    return type("Stages", (Stages,), about)
