"""A trained model: load it by path or hub name, then sample, reconstruct and measure without retyping anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from goalgen import rng
from goalgen.bound import Bound, bits_per_dim, bound, check_finite, importance_weighted_bound
from goalgen.config import Config
from goalgen.data import from_unit, to_unit
from goalgen.data.labels import Labels, listed
from goalgen.data.provenance import Provenance
from goalgen.errors import GoalgenError
from goalgen.family import Family
from goalgen.hub import HubModel
from goalgen.intake import Asked, Begin, Given, Images, sample_labels, to_canvas, to_images, to_labels
from goalgen.restoration import Restorer, RestoringModel
from goalgen.rollout import Trajectory, draw_noise, rollout
from goalgen.sampling import Sampled, Wanted, draw_samples
from goalgen.saved import check_device, check_place, find_model, load_saved, save_model
from goalgen.size import count_parameters
from goalgen.starts import ImageStart, Start, TensorStart, make_start, settled_start
from goalgen.storage import one_line
from goalgen.task import Task

__all__ = ["Asked", "Given", "Model", "load"]

CHUNK = 64
"""Goals that are reached for together."""


class Model(
    HubModel, RestoringModel, library_name="goalgen", tags=["goalgen", "image-generation", "reinforcement-learning"]
):
    """Both agents with their weights, and what is needed to use them.

    Attributes:
        family: the module.
        config: configuration of the run that made it.
        facts: shape, levels, step, label names and the like.
        weights: which weights these are, "ema" or "raw".
        origin: where it was loaded from.
        provenance: the images that it was made from, where that is known.
    """

    def __init__(
        self,
        family: Family,
        config: Config,
        facts: dict[str, Any],
        start_image: Tensor | None,
        weights: str,
        origin: str = "",
        provenance: Provenance | None = None,
    ) -> None:
        self.family = family.eval().requires_grad_(False)
        self.config, self.facts, self.start_image = config, facts, start_image
        self.weights, self.origin, self.provenance = weights, origin, provenance

    # -- facts -----------------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        size, step = count_parameters(self.family), self.facts.get("step")
        kind = {"ema": "averaged", "raw": "raw"}.get(self.weights, self.weights)
        channels, height, width = self.shape
        parts = [
            f"{self.family.name} in {self.horizon} step{'s' if self.horizon > 1 else ''}",
            f"images of {channels}x{height}x{width} in {self.levels} levels",
            f"from {self.origin or 'memory'}" + (f" (step {step:,}, {kind} weights)" if step is not None else ""),
            f"{size['generative']:,} weights for sampling, {size['gc_agent']:,} in the GC-agent",
        ] + ([f"classes {listed(self.classes)}"] if self.classes else [])
        return f"<goalgen.Model: {', '.join(parts)}>"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, height, width) of its images."""
        return self.family.shape

    @property
    def levels(self) -> int:
        """Grey levels of its images."""
        return self.family.levels

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that it is told, by their numbers; none if it is told none."""
        names, count = self.facts.get("label_names") or (), self.family.num_labels
        return tuple(str(names[i]) if i < len(names) else str(i) for i in range(count))

    @property
    def horizon(self) -> int:
        """H: S-agent evaluations for one image."""
        return self.family.horizon

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.family.device

    def to(self, device: str | torch.device) -> Model:
        """Move the weights.

        Raises:
            GoalgenError: this machine has no such device.
        """
        self.family.to(check_device(device))
        return self

    def bits_per_dim(self, nats: Tensor | float) -> Tensor | float:
        """Nats an image as bits per dimension. (Equation 14)"""
        return bits_per_dim(nats, self.shape)

    # -- sampling --------------------------------------------------------------------------------------------------

    def start(self, spec: Begin = None) -> Start:
        """The initial state called ``spec`` (see ``--start``), canvases, or images; unset: the one trained with.

        A tensor or array of floats is canvases in [-1, 1]; of integers, images in grey levels; PIL images are decoded.

        Raises:
            GoalgenError: there is no such start, or it has the wrong size.
        """
        spec = to_canvas(spec, self.shape, self.levels)
        if isinstance(spec, Tensor):
            return TensorStart(spec, self.shape)
        trained = self.config.model.start
        if spec is None or settled_start(spec) == trained:
            if self.start_image is not None:
                return ImageStart(trained, self.shape, self.start_image)
            spec = trained
        mean = self.start_image if trained == "mean" else None
        if spec == "mean" and mean is None:
            raise GoalgenError(
                f"this model was trained from {trained!r} and does not know the mean image; choose another start"
            )
        return make_start(spec, self.shape, mean, self.config.data)

    def sample(
        self,
        num: int = 64,
        seed: int = 0,
        *,
        start: Begin = None,
        goals: Images | None = None,
        names: Sequence[str] | None = None,
        labels: Labels | None = None,
        temperature: float = 1.0,
        steps: int | None = None,
        correlation: float = 0.0,
        draw_pixels: bool = False,
        first: int = 0,
        guesses: bool = False,
        canvases: bool = True,
    ) -> Sampled:
        """Draw images with the S-agent alone. Image i depends on (seed, first + i) only, however many are drawn.

        Args:
            num: how many.
            seed: seed of the noise.
            start: initial state, see :meth:`start`.
            goals: num images (see :func:`goalgen.intake.to_images`), for a start that is a function of the goal.
            names: num names, for a start that is a folder paired by name.
            labels: of a model that is conditioned on labels: one for all images, or num, by name or number (see
                :attr:`classes`); unset: image i is of class i modulo the number of classes.
            temperature: below 1 keeps to likelier actions; 1 is the model.
            steps: actions to take, where the model can skip steps; unset: all it was trained with.
            correlation: from 0, the model, to 1: share of the noise of a bridge's actions that is taken from the canvas
                rather than drawn; 1 is DDIM.
            draw_pixels: draw every pixel from p(g | x_H), rather than round the last canvas to its grey levels.
            first: index of the first image.
            guesses: keep what the S-agent has in mind on the way, where it has something: a bridge, from its draft to the image.
            canvases: keep the canvases on the way; without them memory is that of the images alone.

        Raises:
            GoalgenError: a number out of range, or a start that does not fit.
        """
        if num < 1 or first < 0:
            raise GoalgenError(f"the number of samples must be at least 1 (not {num}) and the first index at least 0")
        if correlation and not self.family.can_correlate:
            raise GoalgenError("this model's actions have no correlation: --correlation is for --environment bridge")
        start = to_canvas(start, self.shape, self.levels)
        begin, path = self.start(start), self.family.path(steps)
        classes = sample_labels(labels, num, first, self.classes)
        goals = None if goals is None else self._unit(goals)
        if goals is not None and len(goals) != num:
            raise GoalgenError(f"{len(goals)} goals were given for {num} samples; give one for each")
        if isinstance(start, Tensor) and start.ndim == 4 and len(start) not in (1, num):
            raise GoalgenError(f"{len(start)} starts were given for {num} samples; give one, or one for each")
        each = start if isinstance(start, Tensor) and start.ndim == 4 and len(start) == num else None
        wanted = Wanted(
            num, seed, first, begin, each, goals, names, classes, temperature, path, draw_pixels, correlation, guesses,
            canvases,
        )  # fmt: skip
        return draw_samples(self.family, wanted, trained_start=self.config.model.start)

    def restorer(self) -> Restorer:
        """What restores images, see :meth:`restore`. Raises :class:`GoalgenError` where the model was not trained to."""
        return Restorer.of(self.family, self.config, self.classes, self.facts.get("paired") is True)

    # -- the GC-agent ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def rollout(self, images: Images, seed: int = 0, **given: Unpack[Asked]) -> Trajectory:
        """Episodes of the GC-agent told ``images``, of any kind that :func:`goalgen.intake.to_images` reads; see :class:`Given`."""
        images = self._images(images)
        ((task, generator),) = self._tasks(images, lambda _: rng.generator(seed, "rollout"), given, len(images))
        return self._reach(task, generator)

    def reconstruct(self, images: Images, seed: int = 0, **given: Unpack[Asked]) -> Tensor:
        """What the GC-agent makes of ``images`` (uint8 grey levels): uint8 grey levels, same shape; see :class:`Given`."""
        parts = []
        for task, generator in self._tasks(images, _chunk_source(seed, "reconstruct"), given):
            last = self._reach(task, generator).states[-1]
            parts.append(from_unit(self.family.environment.canvas(last).cpu(), self.levels))
        return torch.cat(parts)

    def nll_bound(self, images: Images, seed: int = 0, **given: Unpack[Asked]) -> Bound:
        """Upper bound on -log p of every image, nats, split by term. (Equation 3)

        It is a bound given the initial state, and the label, if the model is told one.

        Args:
            images: grey levels (N, C, height, width), PIL images, files; see :func:`goalgen.intake.to_images`.
            seed: of the noise.
            given: see :class:`Given`.
        """
        parts = []
        for task, generator in self._tasks(images, _chunk_source(seed, "bound"), given):
            parts.append(bound(self.family, self._reach(task, generator)))
        terms = Bound(torch.cat([p.reconstruction for p in parts]).cpu(), torch.cat([p.kl for p in parts], 1).cpu())
        check_finite(terms.total)
        return terms

    def iw_bound(self, images: Images, k: int = 16, seed: int = 0, **given: Unpack[Asked]) -> Tensor:
        """The tighter bound from ``k`` trajectories an image, (N,) nats; see :class:`Given`. (Equation 4)"""
        if k < 1:
            raise GoalgenError(f"the number of trajectories must be at least 1, not {k}")
        parts = []
        for task, generator in self._tasks(images, lambda i: rng.generator(seed, "iw bound", i), given):
            noise = torch.stack([draw_noise(self.family.environment, len(task), generator) for _ in range(k)])
            parts.append(importance_weighted_bound(self.family, task, noise.to(self.device)))
        nats = torch.cat(parts).cpu()
        check_finite(nats)
        return nats

    @torch.no_grad()
    def _reach(self, task: Task, generator: torch.Generator) -> Trajectory:
        noise = draw_noise(self.family.environment, len(task), generator).to(self.device)
        return rollout(self.family, task, noise)

    def _tasks(
        self, images: Images, source: Callable[[int], torch.Generator], given: Asked, size: int = CHUNK
    ) -> Iterator[tuple[Task, torch.Generator]]:
        """Episodes of ``size`` images at a time, each with the generator, source(index), that has drawn its starts."""
        images = self._images(images)
        names, labels = given.get("names"), to_labels(given.get("labels"), len(images), self.classes)
        start = self.start(given.get("start"))
        if unknown := given.keys() - Asked.__annotations__.keys():
            raise TypeError(f"unexpected arguments: {', '.join(sorted(unknown))}")
        if names is not None and len(names) != len(images):
            raise GoalgenError(f"{len(names)} names were given for {len(images)} images; give one for each")
        for i in range(0, len(images), size):
            rows, generator = slice(i, i + size), source(given.get("first", 0) + i)
            goals = to_unit(images[rows], self.levels)
            part = None if names is None else names[rows]
            canvas = start(len(goals), goals=goals.to(self.device), names=part, generator=generator)
            yield Task(canvas, goals, None if labels is None else labels[rows], part).to(self.device), generator
            if (each := given.get("each")) is not None:
                each(min(i + size, len(images)))

    def _images(self, images: Images) -> Tensor:
        found = to_images(images, self.shape, self.levels)
        if not len(found):
            raise GoalgenError("no images were given")
        return found

    def _unit(self, images: Images) -> Tensor:
        return to_unit(self._images(images), self.levels)

    # -- files -----------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> Path:
        """Write the model to a folder that :func:`load` and the Hugging Face hub read. Returns the folder.

        Raises:
            GoalgenError: the folder holds anything but a saved model, or cannot be written.
        """
        path = Path(folder).expanduser()
        with one_line():
            check_place(path)
            self._write(path)
        return path

    def _write(self, path: Path) -> None:
        facts = {**self.facts, "weights": self.weights}
        save_model(path, self.config, self.family, None, self.start_image, facts, self.provenance)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **kwargs: Any) -> Model:
        # The mixin adds parts of config.json and download settings of its own; what load knows is passed on.
        known = ("weights", "which", "device", "revision", "token")
        return load(model_id, **{name: kwargs[name] for name in known if kwargs.get(name) is not None})


def _chunk_source(seed: int, stream: str) -> Callable[[int], torch.Generator]:
    return lambda i: rng.generator(rng.derive_seed(seed, stream, i), "rollout")


def load(
    path_or_hub_name: str | Path,
    *,
    weights: Literal["ema", "raw"] = "ema",
    which: Literal["best", "last"] = "best",
    device: str | torch.device = "cpu",
    revision: str | None = None,
    token: str | bool | None = None,
) -> Model:
    """Load a model: the folder of a run, a saved model, "zoo:NAME" (see :mod:`goalgen.zoo`), or a name on the Hugging Face hub.

    Args:
        path_or_hub_name: where it is.
        weights: the averaged weights, or the ones the optimiser moved (runs keep both).
        which: of a run, the checkpoint with the lowest held-out bound, or the last one.
        device: where to put it.
        revision: hub revision.
        token: hub token.

    Raises:
        GoalgenError: there is nothing there, or it is damaged.
    """
    with one_line():
        saved = load_saved(find_model(path_or_hub_name, which, revision, token), weights)
    family, origin = saved.family.to(check_device(device)), str(path_or_hub_name)
    return Model(family, saved.config, saved.facts, saved.start_image, saved.weights, origin, saved.provenance)
