"""A trained model: load it by path or hub name, then sample, reconstruct and measure without retyping anything."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor

from goalgen import rng
from goalgen.agents import Agents, make_agents
from goalgen.bound import Bound, bits_per_dim, bound, importance_weighted_bound
from goalgen.config import Config, from_dict
from goalgen.data import from_unit, to_bytes, to_unit
from goalgen.errors import GoalgenError
from goalgen.rollout import Trajectory, draw_noise, even_path, rollout, sample_rollout
from goalgen.starts import ImageStart, Start, TensorStart, make_start
from goalgen.storage import load_json, load_tensors
from goalgen.training.checkpoints import save_model
from goalgen.zoo import PREFIX, zoo_folder

BLOCK = 64
"""Samples that are computed together. It is fixed, because arithmetic on another number of rows may round otherwise:
so sample i is the same to the last bit however many are asked for."""


@dataclass
class Sampled:
    """New images."""

    images: Tensor
    """(N, C, height, width) uint8, 0..255"""
    states: Tensor
    """canvases x_0 .. x_H as pictures, (H + 1, N, C, height, width) uint8, 0..255"""
    levels: Tensor
    """the images in the grey levels of the data, 0..levels-1, (N, C, height, width) uint8"""
    start: str
    """the initial state they began from, "(trained with ...)" added where it is another one"""
    network_evaluations: int
    """S-agent evaluations for one image"""
    labels: Tensor | None = None
    """(N,) int64, of a model that is conditioned on labels"""


class Model(ModelHubMixin, library_name="goalgen", tags=["goalgen", "image-generation", "reinforcement-learning"]):
    """Both agents with their weights, and what is needed to use them.

    Attributes:
        agents: the modules.
        config: configuration of the run that made them.
        facts: shape, levels, step, label names and the like.
        weights: which weights these are, "ema" or "raw".
    """

    def __init__(
        self, agents: Agents, config: Config, facts: dict[str, Any], start_image: Tensor | None, weights: str
    ) -> None:
        self.agents = agents.eval().requires_grad_(False)
        self.config = config
        self.facts = facts
        self.start_image = start_image
        self.weights = weights

    # -- facts -----------------------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, height, width) of its images."""
        channels, height, width = self.facts["shape"]
        return channels, height, width

    @property
    def levels(self) -> int:
        """Grey levels of its images."""
        return int(self.facts["levels"])

    @property
    def horizon(self) -> int:
        """H: S-agent evaluations for one image."""
        return self.agents.horizon

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.agents.device

    def to(self, device: str | torch.device) -> Model:
        """Move the weights."""
        self.agents.to(device)
        return self

    def bits_per_dim(self, nats: Tensor | float) -> Tensor | float:
        """Nats an image as bits per dimension. (Equation 14)"""
        return bits_per_dim(nats, self.shape)

    # -- sampling --------------------------------------------------------------------------------------------------

    def start(self, spec: str | Tensor | None = None) -> Start:
        """The initial state called ``spec`` (see ``--start``), or a tensor of canvases; unset: the one trained with.

        Raises:
            GoalgenError: there is no such start, or it has the wrong size.
        """
        if isinstance(spec, Tensor):
            return TensorStart(spec, self.shape)
        trained = self.config.model.start
        if spec is None or spec == trained:
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
        start: str | Tensor | None = None,
        goals: Tensor | None = None,
        names: Sequence[str] | None = None,
        labels: Tensor | Sequence[int] | int | None = None,
        temperature: float = 1.0,
        steps: int | None = None,
        first: int = 0,
    ) -> Sampled:
        """Draw images with the S-agent alone. Image i depends on (seed, first + i) only, however many are drawn.

        Args:
            num: how many.
            seed: seed of the noise.
            start: initial state, see :meth:`start`.
            goals: (num, C, height, width) uint8 grey levels, for a start that is a function of the goal.
            names: num names, for a start that is a folder paired by name.
            labels: of a model that is conditioned on labels: one for all images, or num; unset: image i is of class i
                modulo the number of classes.
            temperature: below 1 keeps to likelier actions; 1 is the model.
            steps: actions to take, where the model can skip steps; unset: all it was trained with.
            first: index of the first image.

        Raises:
            GoalgenError: a number out of range, or a start that does not fit.
        """
        if num < 1 or first < 0:
            raise GoalgenError(f"the number of samples must be at least 1 (not {num}) and the first index at least 0")
        begin = self.start(start)
        classes = self._sample_labels(labels, num, first)
        path = None if steps is None else even_path(self.horizon, steps)
        canvases = []
        if goals is not None:
            goals = self._unit(goals)
            if len(goals) != num:
                raise GoalgenError(f"{len(goals)} goals were given for {num} samples; give one for each")
        if isinstance(start, Tensor) and start.ndim == 4 and len(start) not in (1, num):
            raise GoalgenError(f"{len(start)} starts were given for {num} samples; give one, or one for each")
        for block in range(first // BLOCK, -(-(first + num) // BLOCK)):
            x0 = self._block_start(begin, start, goals, names, block, seed, first, num)
            noise = draw_noise(self.agents.environment, BLOCK, rng.generator(seed, "sample", block))
            label = None if classes is None else classes[self._block_rows(block, first, num)].to(self.device)
            states = sample_rollout(self.agents, x0, noise.to(self.device), temperature, label=label, path=path).states
            canvases.append(self.agents.environment.canvas(states.flatten(0, 1)).unflatten(0, states.shape[:2]).cpu())
        offset = first % BLOCK
        frames = from_unit(torch.cat(canvases, 1)[:, offset : offset + num], self.levels)
        trained = self.config.model.start
        spec = begin.spec if begin.spec == trained else f"{begin.spec} (trained with {trained})"
        pictures = to_bytes(frames, self.levels)
        return Sampled(pictures[-1], pictures, frames[-1], spec, len(frames) - 1, classes)

    def _block_start(
        self,
        begin: Start,
        given: Any,
        goals: Tensor | None,
        names: Sequence[str] | None,
        block: int,
        seed: int,
        first: int,
        num: int,
    ) -> Tensor:
        """Initial canvases of a block; rows outside the request repeat one inside it."""
        rows = self._block_rows(block, first, num)
        generator = rng.generator(seed, "sample start", block)
        part = None if goals is None else goals[rows]
        if isinstance(given, Tensor) and given.ndim == 4 and len(given) == num:
            return given.to(torch.float32)[rows].to(self.device)
        partners = None if names is None else [names[i] for i in rows.tolist()]
        return begin(BLOCK, goals=part, names=partners, generator=generator).to(self.device)

    @staticmethod
    def _block_rows(block: int, first: int, num: int) -> Tensor:
        """Which of the images asked for stand in the rows of a block; rows outside the request repeat one inside it."""
        return torch.arange(block * BLOCK, (block + 1) * BLOCK).clamp(first, first + num - 1) - first

    def _sample_labels(self, labels: Tensor | Sequence[int] | int | None, num: int, first: int) -> Tensor | None:
        """Labels (num,) of new images."""
        count = self.agents.num_labels
        if labels is None and count:
            return (torch.arange(num) + first) % count
        if isinstance(labels, int):
            labels = [labels] * num
        return self._labels(labels, num)

    def _labels(self, labels: Tensor | Sequence[int] | None, num: int) -> Tensor | None:
        """Labels as (num,) int64 on the CPU.

        Raises:
            GoalgenError: the model is not told labels, or needs them; or they are not so many, or not among its classes.
        """
        count = self.agents.num_labels
        if labels is None:
            if count:
                raise GoalgenError("this model is conditioned on labels: give the label of every image")
            return None
        if not count:
            raise GoalgenError("this model is not conditioned on labels (--condition label)")
        found = torch.as_tensor(labels)
        if found.ndim != 1 or len(found) != num:
            raise GoalgenError(f"{found.numel()} labels were given for {num} images; give one for each")
        if not bool(((found >= 0) & (found < count)).all()):
            raise GoalgenError(f"labels must be 0 to {count - 1}")
        return found.long()

    # -- the GC-agent ----------------------------------------------------------------------------------------------

    def rollout(
        self,
        images: Tensor,
        seed: int = 0,
        *,
        start: str | Tensor | None = None,
        names: Sequence[str] | None = None,
        labels: Tensor | Sequence[int] | None = None,
    ) -> Trajectory:
        """Episodes of the GC-agent told ``images``.

        Args:
            images: (N, C, height, width) uint8 grey levels.
            seed: of the noise.
            start: initial state, see :meth:`start`.
            names: N names, for a start that is a folder paired by name.
            labels: (N,), of a model that is conditioned on labels.
        """
        with torch.no_grad():
            goals = self._unit(images).to(self.device)
            generator = rng.generator(seed, "rollout")
            x0 = self.start(start)(len(goals), goals=goals, names=names, generator=generator).to(self.device)
            noise = draw_noise(self.agents.environment, len(goals), generator).to(self.device)
            label = self._labels(labels, len(goals))
            return rollout(self.agents, x0, goals, noise, label=None if label is None else label.to(self.device))

    def reconstruct(
        self,
        images: Tensor,
        seed: int = 0,
        *,
        start: str | Tensor | None = None,
        names: Sequence[str] | None = None,
        labels: Tensor | Sequence[int] | None = None,
    ) -> Tensor:
        """What the GC-agent makes of ``images`` (uint8 grey levels): uint8 grey levels, same shape."""
        parts = []
        for i, chunk, part, classes in self._chunks(images, names, labels):
            trajectory = self.rollout(
                chunk, rng.derive_seed(seed, "reconstruct", i), start=start, names=part, labels=classes
            )
            parts.append(from_unit(self.agents.environment.canvas(trajectory.states[-1]).cpu(), self.levels))
        return torch.cat(parts)

    def nll_bound(
        self,
        images: Tensor,
        seed: int = 0,
        *,
        start: str | Tensor | None = None,
        names: Sequence[str] | None = None,
        labels: Tensor | Sequence[int] | None = None,
    ) -> Bound:
        """Upper bound on -log p of every image, nats, split by term. (Equation 3)

        Args:
            images: (N, C, height, width) uint8 grey levels.
            seed: of the noise.
            start: initial state, see :meth:`start`.
            names: N names, for a start that is a folder paired by name.
            labels: (N,), of a model that is conditioned on labels.
        """
        parts = []
        for i, chunk, part, classes in self._chunks(images, names, labels):
            trajectory = self.rollout(chunk, rng.derive_seed(seed, "bound", i), start=start, names=part, labels=classes)
            parts.append(bound(self.agents, trajectory))
        return Bound(torch.cat([p.reconstruction for p in parts]).cpu(), torch.cat([p.kl for p in parts], 1).cpu())

    def iw_bound(
        self,
        images: Tensor,
        k: int = 16,
        seed: int = 0,
        *,
        start: str | Tensor | None = None,
        names: Sequence[str] | None = None,
        labels: Tensor | Sequence[int] | None = None,
    ) -> Tensor:
        """The tighter bound from ``k`` trajectories an image, (N,) nats. (Equation 4)"""
        if k < 1:
            raise GoalgenError(f"the number of trajectories must be at least 1, not {k}")
        parts = []
        for i, chunk, part, classes in self._chunks(images, names, labels):
            goals = self._unit(chunk).to(self.device)
            generator = rng.generator(seed, "iw bound", i)
            x0 = self.start(start)(len(goals), goals=goals, names=part, generator=generator).to(self.device)
            noise = torch.stack([draw_noise(self.agents.environment, len(goals), generator) for _ in range(k)])
            label = None if classes is None else classes.to(self.device)
            parts.append(importance_weighted_bound(self.agents, x0, goals, noise.to(self.device), label))
        return torch.cat(parts).cpu()

    def _chunks(
        self,
        images: Tensor,
        names: Sequence[str] | None,
        labels: Tensor | Sequence[int] | None,
        size: int = 64,
    ) -> Iterator[tuple[int, Tensor, Sequence[str] | None, Tensor | None]]:
        if not len(images):
            raise GoalgenError("no images were given")
        if names is not None and len(names) != len(images):
            raise GoalgenError(f"{len(names)} names were given for {len(images)} images; give one for each")
        classes = self._labels(labels, len(images))
        for i in range(0, len(images), size):
            part = None if names is None else names[i : i + size]
            yield i, images[i : i + size], part, None if classes is None else classes[i : i + size]

    def _unit(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8 or images.ndim != 4 or tuple(images.shape[1:]) != self.shape:
            raise GoalgenError(
                f"images must be uint8 of shape (N, {', '.join(map(str, self.shape))}), not {images.dtype} of "
                f"{tuple(images.shape)}"
            )
        if len(images) and int(images.max()) >= self.levels:
            raise GoalgenError(f"images must hold grey levels 0 to {self.levels - 1}; found {int(images.max())}")
        return to_unit(images, self.levels)

    # -- files -----------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> Path:
        """Write the model to a folder that :func:`load` and the Hugging Face hub read. Returns the folder."""
        path = Path(folder)
        if path.exists() and (path.is_file() or (any(path.iterdir()) and not (path / "config.json").exists())):
            raise GoalgenError(f"{path} holds something else than a saved model; choose another folder")
        self._write(path)
        return path

    def _write(self, path: Path) -> None:
        facts = {k: v for k, v in self.facts.items() if k not in ("shape", "levels", "num_labels")}
        save_model(path, self.config, self.agents, None, self.start_image, {**facts, "weights": self.weights})

    def _save_pretrained(self, save_directory: Path) -> None:
        import shutil
        import tempfile

        # The hub mixin owns the folder, so the files go in one by one.
        with tempfile.TemporaryDirectory() as temporary:
            self._write(Path(temporary) / "model")
            for file in (Path(temporary) / "model").iterdir():
                shutil.copy(file, save_directory / file.name)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **kwargs: Any) -> Model:
        # The mixin adds parts of config.json and download settings of its own; what load knows is passed on.
        known = ("weights", "which", "device", "revision", "token")
        return load(model_id, **{name: kwargs[name] for name in known if kwargs.get(name) is not None})


Weights = Literal["ema", "raw"]


def load(
    path_or_hub_name: str | Path,
    *,
    weights: Weights = "ema",
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
    folder = _find(path_or_hub_name, which, revision, token)
    values = load_json(folder / "config.json")
    facts = values.pop("facts", None)
    if not isinstance(facts, dict) or not _is_shape(facts.get("shape")) or not isinstance(facts.get("levels"), int):
        raise GoalgenError(
            f"{folder / 'config.json'} is not the configuration of a saved model: it lacks shape and levels"
        )
    config = from_dict(values, source=str(folder / "config.json"))
    tensors, metadata = load_tensors(folder / "model.safetensors")
    image = tensors.pop("start.image", None)
    if weights == "raw" and metadata.get("weights") != "raw":
        tensors, metadata = load_tensors(folder / "model.raw.safetensors")
    channels, height, width = facts["shape"]
    agents = make_agents(
        config.model, (channels, height, width), facts["levels"], num_labels=facts.get("num_labels", 0)
    )
    try:
        agents.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise GoalgenError(f"{folder / 'model.safetensors'} does not fit its configuration: {reason}") from None
    image_too = tensors if image is None else {**tensors, "start.image": image}
    for name, tensor in image_too.items():
        if not math.isfinite(tensor.double().sum().item()):
            raise GoalgenError(f"{folder}: the weights {name} hold NaN or infinity; use another checkpoint")
    return Model(agents.to(device), config, facts, image, metadata.get("weights", "ema"))


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(isinstance(v, int) and v > 0 for v in value)


def _find(name: str | Path, which: str, revision: str | None, token: str | bool | None) -> Path:
    """The folder with config.json and model.safetensors."""
    if str(name).startswith(PREFIX):
        return zoo_folder(str(name).removeprefix(PREFIX))
    path = Path(name).expanduser()
    if path.is_dir():
        if (path / "model.safetensors").exists():
            return path
        if (path / which / "config.json").exists():
            return path / which
        if (path / "checkpoints").is_dir() or (path / "log.jsonl").exists():
            raise GoalgenError(f"{path} is a run that has saved no {which} model yet; let it train longer")
        raise GoalgenError(f"{path} holds neither a goalgen run nor a saved model")
    text = str(name)
    if path.exists():
        raise GoalgenError(f"{path} is a file; give the folder of a run or of a saved model")
    if text.count("/") != 1 or text.startswith((".", "~", "/")):
        raise GoalgenError(
            f"{text} does not exist; give the folder of a run or of a saved model, or a hub name owner/model"
        )
    try:
        return Path(snapshot_download(text, revision=revision, token=token, allow_patterns=["*.json", "*.safetensors"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise GoalgenError(f"{text} is no folder here, and could not be loaded from the hub: {reason}") from None
