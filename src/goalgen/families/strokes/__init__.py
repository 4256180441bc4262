"""Strokes: an action draws a stroke. No gradient passes through the world, and what a trained S-agent writes is a drawing: SVG."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from goalgen import config
from goalgen.blackbox import Search, collect, draw_search, learn_improved, policy_gradient
from goalgen.errors import GoalgenError
from goalgen.families.strokes.agents import Critic, Missing, PainterGCAgent, StrokesSAgent
from goalgen.families.strokes.environment import DEFAULT_INKS, START, Ink, StrokesEnvironment, read_inks
from goalgen.families.strokes.render import Brush, draw, paint
from goalgen.families.strokes.svg import to_svg
from goalgen.family import Draws, Family, Plan, Streams, check_above_zero, check_from_0_to_1, check_least
from goalgen.learning import Clock, Learned
from goalgen.likelihoods import PixelLikelihood
from goalgen.rng import generator
from goalgen.rollout import Samples, Trajectory
from goalgen.task import Task

__all__ = [
    "Brush",
    "Critic",
    "Ink",
    "Missing",
    "PainterGCAgent",
    "Strokes",
    "StrokesEnvironment",
    "StrokesSettings",
    "draw",
    "paint",
]

REPEATS = 16
"""Actions drawn at a state to say how much its divergence varies along them."""

HALF_A_LEVEL = 1 / 255
"""Of 256 grey levels from -1 to 1: what changes no pixel by more is not seen."""

FITTED = 4
"""Of the candidates at a state, strokes that the networks are fitted to."""


@dataclass(frozen=True)
class StrokesSettings(config.Settings):
    """An action draws a stroke, or says that the drawing is done; --horizon is the most strokes of a drawing."""

    stroke_bends: int = 9
    """Ways to bend a stroke, across and down, an odd number; 1: straight ones only."""
    stroke_widths: int = 4
    """Widths of the pen, from the thinnest to the thickest in equal ratios."""
    stroke_thinnest: float = 0.045
    """Width of the thinnest pen, a share of the shorter side of the image."""
    stroke_thickest: float = 0.16
    """Width of the thickest pen, likewise."""
    stroke_inks: str | None = None
    """Inks: colours as HTML names them, each with a strength after a slash if it is not 1, such as "black black/0.5"; unset: white
    in two strengths on grey images, 27 colours on others. Most drawings want a start of one colour: --start constant:0."""
    stroke_learner: Literal["improved", "gradient"] = config.of_training("improved")
    """How both agents learn: "improved" fits them to the best of many candidate strokes at every state; "gradient" is the
    policy gradient, which needs nothing of the world but what it pays (and several --episodes-per-goal, or else leans on its critic)."""
    stroke_candidates: int = config.of_training(36)
    """Candidates at every state, about half of them by the GC-agent, a tenth by the S-agent, the others at random where ink is
    missing."""
    stroke_passes: int = config.of_training(1)
    """Times that what was found at a state is learned from; of the policy gradient, how often it goes over the same episodes."""
    stroke_states: int = config.of_training(48)
    """States, about so many, of which an update of the weights learns; a batch has --horizon states an image."""
    stroke_s_lessons: int = config.of_training(2)
    """Times that the S-agent learns from a state for each time that the GC-agent does: it is not told the goal, and has the harder task; only "improved"."""
    stroke_search: float = config.of_training(0.85)
    """Share of the actions that are taken from the improved policy while training; the rest is the GC-agent's own."""
    stroke_sigma: float = config.of_training(0.2)
    """What the GC-agent is paid for: closeness to its goal, as of a Gaussian so wide, a share of the range from black to white.
    Wider, it draws with fewer strokes that are easier to foretell. What is reported as the bound does not depend on it."""
    stroke_ahead: bool = config.of_training(True)
    """The GC-agent learns what later strokes will bring; without, it looks one stroke ahead."""
    stroke_prior: float = config.of_training(1.0)
    """Weight of the S-agent's policy in what the GC-agent is paid; 0: it draws as if it need not be foretold."""
    stroke_correction: bool = config.of_training(False)
    """Weigh candidates by how likely they were to be drawn, too, as the best policy would have it. Without, the GC-agent's own
    candidates count for more, and in short trials it learned faster; what is reported as the bound is that of what it has become, either way."""
    stroke_hindsight: float = config.of_training(0.0)
    """Weight of what the GC-agent learns, of every fourth drawing, as if what came out had been its goal; only "improved"."""


class Strokes(Family):
    """Both agents learn without a gradient through the world, from what strokes bring. (Equations 31 to 33)"""

    name = "strokes"
    Settings = StrokesSettings
    gc_agents = {"painter": PainterGCAgent}  # noqa: RUF012 - more may be put in
    network = "unet"
    sizes = {"unet": (48, 1, 32)}  # noqa: RUF012 - half the places that it points at, so it may be wider; pointing costs most
    # It is paid for how near its canvas is: what follows would have to be tried out from that of every candidate.
    learns_apart = True
    settings: StrokesSettings
    environment: StrokesEnvironment
    gc_agent: PainterGCAgent

    def __init__(self, plan: Plan) -> None:
        settings, (channels, height, width), patch = plan.settings, plan.shape, plan.network.patch
        thin, thick, count = settings.stroke_thinnest, settings.stroke_thickest, settings.stroke_widths
        ratio = (thick / thin) ** (1 / max(count - 1, 1))
        environment = StrokesEnvironment(
            plan.shape, plan.horizon, (height // patch, width // patch), settings.stroke_bends,
            [thin * ratio**i * min(height, width) for i in range(count)], inks_of(settings, channels),
        )  # fmt: skip
        s_agent = StrokesSAgent(plan.network, environment)
        likelihood = PixelLikelihood(plan.shape, plan.levels, canvas=environment.canvas)
        super().__init__(plan, environment, s_agent, self.make_gc_agent(plan, environment), likelihood)

    @classmethod
    def check(cls, plan: Plan) -> None:
        settings: StrokesSettings = plan.settings
        least_one = ("bends", "widths", "passes", "states", "s_lessons")
        check_least(settings, stroke_candidates=4, **{f"stroke_{name}": 1 for name in least_one})
        check_above_zero(settings, "stroke_thinnest", "stroke_thickest", "stroke_sigma")
        if settings.stroke_bends % 2 == 0:
            raise GoalgenError(
                f"--stroke-bends must be odd, so that a stroke may be straight, not {settings.stroke_bends}"
            )
        if settings.stroke_hindsight < 0:
            raise GoalgenError(f"--stroke-hindsight must be at least 0, not {settings.stroke_hindsight:g}")
        if settings.stroke_thickest < settings.stroke_thinnest:
            raise GoalgenError(
                f"--stroke-thickest {settings.stroke_thickest:g} is below --stroke-thinnest {settings.stroke_thinnest:g}"
            )
        check_from_0_to_1(settings, "stroke_search", "stroke_prior")
        if plan.network.kind == "mlp":
            raise GoalgenError(
                "strokes point at a map of the canvas, which an mlp has not: --network unet or transformer"
            )
        inks_of(settings, plan.shape[0])

    @property
    def search(self) -> Search:
        """How the GC-agent looks for better strokes while it learns."""
        settings = self.settings
        others = max(1, settings.stroke_candidates // 10)
        random = max(2, settings.stroke_candidates // 3)
        own = settings.stroke_candidates - others - random
        return Search(
            own, others, Missing(random - 1), random, FITTED, settings.stroke_search, prior=settings.stroke_prior,
            corrected=settings.stroke_correction, hindsight=settings.stroke_hindsight,
            passes=settings.stroke_passes, states=settings.stroke_states, s_lessons=settings.stroke_s_lessons,
        )  # fmt: skip

    def draw(self, batch: int, streams: Streams) -> Draws:
        """Noise of an episode (H, batch, 5), and what the search needs: (H, batch, K, 5) and (H, batch, 3)."""
        draws = super().draw(batch, streams)
        if self.settings.stroke_learner == "improved":
            draws |= draw_search(self.environment, batch, self.search, streams("candidates"))
        return draws

    def learn(self, task: Task, draws: Draws, clock: Clock) -> Learned:
        critic = self.gc_agent.critic
        if self.settings.stroke_learner == "improved":
            return learn_improved(self, critic, task, draws["noise"], draws, self.search)
        episodes = collect(self, critic, task, draws["noise"], None if task.episodes > 1 else 0.9)
        learned = policy_gradient(self, critic, episodes)
        held = replace(episodes, task=task.held())
        again = [lambda: policy_gradient(self, critic, held).loss] * (self.settings.stroke_passes - 1)
        return replace(learned, again=again)

    def files(self, samples: Samples) -> list[dict[str, bytes]]:
        """Each drawing as SVG, and as SVG that draws itself, without the strokes that nobody would see."""
        environment, written = self.environment, []
        states = [samples.states[0]]  # as a stage before others it is not told the last
        for h, action in enumerate(samples.actions):
            states.append(environment.transition(torch.tensor([h], device=action.device), states[-1], action))
        canvases = torch.stack([environment.canvas(state) for state in states])
        seen = canvases.diff(dim=0).abs().flatten(2).amax(2) > HALF_A_LEVEL  # (H, B)
        for canvas, actions, shown in zip(canvases[0], samples.actions.transpose(0, 1), seen.T, strict=True):
            still, moving = (to_svg(environment, canvas, actions[shown], draws_itself=moves) for moves in (False, True))
            written.append({".svg": still.encode(), ".drawing.svg": moving.encode()})
        return written

    def report(self, trajectory: Trajectory) -> dict[str, Any]:
        """Strokes a drawing, how far the GC-agent's is from its goal, and how much the divergence of a step varies along drawn actions."""
        environment = self.environment
        drawn = [
            (~environment.ended(state) & (action[:, START] != environment.positions)).double()
            for state, action in zip(trajectory.states, trajectory.actions, strict=False)
        ]
        error = (environment.canvas(trajectory.states[-1]) - trajectory.goals).square().mean() / 4
        spread = []
        for h, (q, decision) in enumerate(zip(trajectory.q, trajectory.decisions, strict=True)):
            noise = environment.action_space.noise(
                REPEATS * len(trajectory.task), generator(0, "spread of the divergence", h)
            )
            actions = q.sample_many(noise.to(self.device).unflatten(0, (REPEATS, -1)))
            kl = torch.stack([q.kl_along(decision.policy, action) for action in actions])
            spread.append(round(kl.var(0).mean().sqrt().item(), 3))
        return {
            "strokes_per_image": round(float(torch.stack(drawn).sum(0).mean()), 3),
            "squared_error": error.item(),
            "kl_deviation_per_step": spread,
        }


def inks_of(settings: StrokesSettings, channels: int) -> list[Ink]:
    """The inks that the settings name, or those for so many channels.

    Raises:
        GoalgenError: one of them is no colour.
    """
    return read_inks(DEFAULT_INKS[channels] if settings.stroke_inks is None else settings.stroke_inks, channels)
