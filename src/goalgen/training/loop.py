"""The training loop: one function for a laptop, a GPU, or several under ``accelerate launch``."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import is_tensorboard_available
from torch import Tensor
from tqdm import tqdm

from goalgen import rng
from goalgen.agents import Agents, make_agents
from goalgen.bound import bits_per_dim, bound
from goalgen.config import Config, TrainingConfig, save_config
from goalgen.data import ImageSet, Splits, from_unit, load_data, to_bytes, to_unit
from goalgen.errors import GoalgenError
from goalgen.learners import Learned, PathwiseLearner, make_learner, spread_steps
from goalgen.pictures import columns_for, film_strip, save_gif, save_png, tile
from goalgen.rollout import draw_noise, rollout, sample_rollout
from goalgen.size import count_operations, count_parameters
from goalgen.starts import ImageStart, Start, make_start
from goalgen.storage import write_atomically
from goalgen.training.batches import Batches, pairing_names
from goalgen.training.checkpoints import Progress, list_checkpoints, load_checkpoint, save_checkpoint, save_model
from goalgen.training.ema import EMA
from goalgen.training.log import JSONLTracker, cut_log
from goalgen.training.optimiser import first_bad_tensor, make_optimizer, rate
from goalgen.training.preparation import check_config, prepare_folder
from goalgen.training.revival import revive

DEFAULT_SECONDS = 600.0
"""Length of a run for which neither steps nor seconds are given."""

KL_WARMUP_STEPS, KL_WARMUP_SHARE = 500, 0.4
"""A learner that warms up the KL does so over so many steps or this share of the run, whichever is over first."""


@dataclass
class Outcome:
    """How a run ended."""

    folder: Path
    step: int
    seconds: float
    best_bits: float | None
    """Lowest held-out bound, bits/dim."""
    interrupted: bool
    """A signal stopped it; the same command goes on."""


def train(config: Config) -> Outcome:
    """Train, or resume, the run that ``config`` describes.

    Raises:
        GoalgenError: bad data or configuration, a folder that holds another run, or a loss that is not finite.
    """
    check_config(config)
    prepare_folder(config)
    return Trainer(config, load_data(config.data)).run()


class StopSignal:
    """Remembers SIGINT and SIGTERM until the step in hand is done; a second one ends the process at once."""

    def __init__(self) -> None:
        self.received = False

    def _handle(self, number: int, frame: Any) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = True

    @contextmanager
    def listening(self) -> Iterator[StopSignal]:
        """Catch the signals inside the block; elsewhere than in the main thread nothing is changed."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Trainer:
    """One run. :func:`train` is the way in; the class is for those who change the loop."""

    def __init__(self, config: Config, data: Splits) -> None:
        self.config, self.settings = config, config.training
        self.data = data
        self.shape = data.train.shape
        self.levels = 2 if data.binarize else data.train.levels
        num_labels = count_labels(data) if config.model.condition == "label" else 0
        agents = make_agents(config.model, self.shape, self.levels, rng.derive_seed(config.seed, "weights"), num_labels)
        self.accelerator = self._accelerator(choose_precision(self.settings.precision, agents))
        self.main = self.accelerator.is_main_process
        self.start = make_start(config.model.start, self.shape, mean_image(data.train), config.data)
        self.batches = Batches(
            config, data.train, data.binarize, self.start, agents.environment,
            self.accelerator.process_index, self.accelerator.num_processes, agents.gc_agent.learner == "marginals",
        )  # fmt: skip
        agents.to(self.accelerator.device)
        self.ema = EMA(agents, self.settings.ema)
        learner = make_learner(agents, self.settings.backprop, self.batches.episodes)
        if isinstance(learner, PathwiseLearner):
            learner.recompute = config.model.recompute
        optimizer = make_optimizer(agents, self.settings)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*broadcast_buffers.*")  # newer torch has another word for it
            self.learner, self.optimizer = self.accelerator.prepare(learner, optimizer)
        self.agents: Agents = agents
        self.parameters = (agents.generative_parameters(), agents.gc_parameters())
        self.progress = Progress()
        self.clock = time.perf_counter()
        self.saved_at, self.saved_step = 0.0, -1
        self.window: list[Tensor] = []  # what the steps since the last record of the log measured
        self.over = False
        self.stop = StopSignal()

    def _accelerator(self, precision: str) -> Accelerator:
        tracker: list[Any] = [JSONLTracker(self.config.out / "log.jsonl")]
        if self.settings.tensorboard:
            if not is_tensorboard_available():  # Accelerate would leave the tracker out and say nothing
                raise GoalgenError('--tensorboard needs the package tensorboard: pip install "goalgen[tensorboard]"')
            tracker.append("tensorboard")
        if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
            AcceleratorState._reset_state()  # an earlier run of this Python process had another precision
        try:
            accelerator = Accelerator(
                mixed_precision=precision,
                log_with=tracker,
                project_dir=self.config.out,
                kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)],
            )
        except (ValueError, ImportError) as error:
            raise GoalgenError(f"the training setup does not fit this machine: {error}") from None
        launched = int(os.environ.get("WORLD_SIZE") or 1)
        if launched > accelerator.num_processes:  # each would take itself for the only one, and all write one folder
            raise GoalgenError(
                f"{launched} processes were started and do not see each other; without GPUs start them with "
                f"ACCELERATE_USE_CPU=true torchrun --nproc_per_node {launched} -m goalgen train ..."
            )
        return accelerator

    # -- the run ---------------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Train until the end, a signal, or a loss that is not finite."""
        self._resume()
        if not self._silent() and sys.stderr.isatty():
            print(describe_size(self.agents), file=sys.stderr)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # TensorBoard's remarks on the Python it was built for
            self.accelerator.init_trackers("tensorboard" if self.settings.tensorboard else "goalgen")
        bar = tqdm(
            total=self._total(), initial=self._position(), unit="", disable=True if self._silent() else None,
            bar_format="{l_bar}{bar}| {elapsed}<{remaining}{postfix}",
        )  # fmt: skip
        self.clock = time.perf_counter() - self.progress.seconds
        self.saved_at = self.progress.seconds
        mark = (time.perf_counter(), self.progress.step)
        with bar, self.stop.listening():
            while not self._finished():
                learned = self._step()
                names, values = measured(learned)
                self.window.append(values)
                step = self.progress.step
                if step % self.settings.log_every == 0:
                    rate_now = (step - mark[1]) * self.settings.batch_size / (time.perf_counter() - mark[0])
                    record = self._log(names, rate_now)
                    mark = (time.perf_counter(), step)
                    bar.set_postfix_str(f"{record['bits_per_dim']:.3f} bits/dim, {rate_now:,.0f} images/s")
                bar.n = self._position()
                bar.refresh() if step % self.settings.log_every == 0 else None
                self._at_intervals()
        return self._end()

    def _silent(self) -> bool:
        return self.settings.quiet or not self.main

    def _total(self) -> float:
        return self.settings.max_steps or self.settings.max_seconds or DEFAULT_SECONDS

    def _position(self) -> float:
        return self.progress.step if self.settings.max_steps else min(self.progress.seconds, self._total())

    def _finished(self) -> bool:
        """Whether the run is over, or was told to stop."""
        self.progress.seconds = time.perf_counter() - self.clock
        settings = self.settings
        seconds = settings.max_seconds or (None if settings.max_steps else DEFAULT_SECONDS)
        self.over = self._is_last_step() or (seconds is not None and self._agreed(self.progress.seconds >= seconds))
        return self.over or self._agreed(self.stop.received)

    def _is_last_step(self) -> bool:
        return self.settings.max_steps is not None and self.progress.step >= self.settings.max_steps

    def _agreed(self, flag: bool) -> bool:
        """Whether any process says so: clocks and signals differ between processes, the last step must not."""
        if self.accelerator.num_processes == 1:
            return flag
        mine = torch.tensor([float(flag)], device=self.accelerator.device)
        return bool(self.accelerator.reduce(mine, "sum").item() > 0)

    def _done(self) -> float:
        """Share of the run that lies behind. With --max-steps it is a function of the step alone."""
        if self.settings.max_steps:
            return self.progress.step / self.settings.max_steps
        return self.progress.seconds / (self.settings.max_seconds or DEFAULT_SECONDS)

    def _step(self) -> Learned:
        settings, step = self.settings, self.progress.step
        batch = self.batches(step).to(self.accelerator.device)
        factor = rate(settings, step, self._done())
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        seed_dropout(rng.derive_seed(self.config.seed, "dropout", step, self.accelerator.process_index))
        if not self.learner.training:
            self.learner.train()
        learned: Learned = self.learner(**vars(batch), kl_weight=kl_weight(settings, step, self._done()))
        self.optimizer.zero_grad()
        self.accelerator.backward(learned.loss)
        self._check_and_clip(learned)
        self.optimizer.step()
        self.progress.step = step + 1
        self._count(learned)
        self.ema.update(self.agents, step + 1)
        if settings.revive_every and (step + 1) % settings.revive_every == 0:
            generator = rng.generator(self.config.seed, "revival", step)
            self.progress.revived += revive(
                self.agents, self.ema.module, self.optimizer, generator, settings.revive_below
            )
        return learned

    def _check_and_clip(self, learned: Learned) -> None:
        """Stop at a loss or gradient that is not finite; shorten the gradients that are too long, S-agent's and GC-agent's apart.

        One synchronisation for all; gradients that are short enough, as nearly all are, are not written again.
        """
        gradients = [[p.grad for p in group if p.grad is not None] for group in self.parameters if group]
        norms = [torch.nn.utils.get_total_norm(part) for part in gradients]
        loss, *lengths = torch.stack([learned.loss.detach().float(), *norms]).tolist()
        if not math.isfinite(loss + sum(lengths)):
            self._stop_at_nan(first_bad_tensor(learned.bound, self.agents))
        longest = self.settings.clip_norm
        for group, norm, length in zip((g for g in self.parameters if g), norms, lengths, strict=True):
            if length > longest:
                torch.nn.utils.clip_grads_with_norm_(group, longest, norm)

    def _stop_at_nan(self, culprit: str) -> None:
        kept = list_checkpoints(self.config.out)
        where = f"the last checkpoint, {kept[-1].name}, is kept" if kept else "no checkpoint had been written"
        raise GoalgenError(
            f"training stopped at step {self.progress.step}: {culprit}; {where}; try a lower --learning-rate"
        )

    def _check_weights(self) -> None:
        """Refuse to save weights that the last update has spoilt, and no loss has seen yet."""
        for name, parameter in self.agents.named_parameters():
            if not torch.isfinite(parameter).all():
                self._stop_at_nan(f"{name} is not finite")

    def _count(self, learned: Learned) -> None:
        """Running average of how often each proposal is chosen, the same on every process."""
        if learned.usage is not None:
            usage = (
                self.accelerator.reduce(learned.usage, "mean") if self.accelerator.num_processes > 1 else learned.usage
            )
            self.agents.usage.lerp_(usage, 0.01)

    # -- at intervals ----------------------------------------------------------------------------------------------

    def _at_intervals(self) -> None:
        settings, step = self.settings, self.progress.step
        # The last step is measured and kept here, not after the loop, so that a run cut off at it ends like any other.
        last = self._is_last_step()
        if step % settings.eval_every == 0 or last:
            self._validate()
        if settings.picture_every and step % settings.picture_every == 0 and self.main:
            self._pictures()
        self.progress.seconds = time.perf_counter() - self.clock
        due = self.progress.seconds - self.saved_at >= settings.checkpoint_seconds
        if step % settings.checkpoint_every == 0 or last or self._agreed(due):
            self._checkpoint()

    def _log(self, names: list[str], images_per_second: float) -> dict[str, float]:
        """Write the mean of the window, and empty it."""
        record: dict[str, float] = dict(zip(names, self._window().mean(0).tolist(), strict=True))
        self.window = []
        steps = sum(name.startswith("kl_nats_") for name in names)
        record["kl_nats"] = sum(record[f"kl_nats_{h}"] for h in range(steps))
        record["nll_bound_nats"] = record["reconstruction_nats"] + record["kl_nats"]
        record["bits_per_dim"] = float(bits_per_dim(record["nll_bound_nats"], self.shape))
        record |= {"images_per_second": images_per_second, "seconds": self.progress.seconds}
        record["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        record["revived"] = self.progress.revived
        self.accelerator.log(record, step=self.progress.step)
        return record

    def _window(self) -> Tensor:
        """The window, (steps, values), its mean over all processes."""
        values = torch.stack(self.window)
        return self.accelerator.reduce(values, "mean") if self.accelerator.num_processes > 1 else values

    def _validate(self) -> None:
        """The bound on held-out goals with the averaged weights; keep the best."""
        self._check_weights()
        total = validation_bound(self.ema.module, self.data.validation, self.start, self.config.seed)
        bits = float(bits_per_dim(total, self.shape))
        if not math.isfinite(bits):
            self._stop_at_nan(f"the held-out bound is {bits}")
        self.accelerator.log({"validation_bits_per_dim": bits}, step=self.progress.step)
        if self.progress.best_bits is None or bits < self.progress.best_bits:
            self.progress.best_bits, self.progress.best_step = bits, self.progress.step
            self._save_model("best", bits)

    def _save_model(self, name: str, bits: float | None) -> None:
        if self.main:
            image = self.start.image if isinstance(self.start, ImageStart) else None
            facts = {
                "step": self.progress.step,
                "seconds": round(self.progress.seconds, 3),
                "validation_bits_per_dim": bits,
                "label_names": list(self.data.label_names) if self.data.label_names else None,
            }
            save_model(self.config.out / name, self.config, self.ema.module, self.agents, image, facts)

    @torch.no_grad()
    def _pictures(self) -> None:
        """Samples and trajectories of the averaged S-agent, always from the same noise."""
        count = 64
        generator = rng.generator(self.config.seed, "pictures")
        device = self.accelerator.device
        agents = self.agents
        goals, names = fixed_goals(self.data.validation, self.start, count)
        label = torch.arange(count, device=device) % agents.num_labels if agents.num_labels else None
        start = self.start(count, goals=goals, names=names, generator=generator).to(device)
        noise = draw_noise(self.agents.environment, count, generator).to(device)
        states = sample_rollout(self.ema.module, start, noise, label=label).states
        frames = canvas_bytes(self.ema.module, states)
        folder = self.config.out / "pictures"
        save_png(tile(frames[-1], columns_for(count)), folder / f"samples-{self.progress.step:08d}.png")
        save_png(film_strip(frames[:, :8]), folder / f"trajectories-{self.progress.step:08d}.png")
        save_gif(frames[:, :16], folder / "trajectories.gif", columns=4)

    def _checkpoint(self) -> None:
        self._check_weights()
        self.progress.window = self._window().tolist() if self.window else []
        if self.main:
            save_checkpoint(
                self.config.out, self.agents, self.ema.module, self.optimizer, self.progress, self.settings.keep
            )
        self.saved_at, self.saved_step = self.progress.seconds, self.progress.step
        self.accelerator.wait_for_everyone()

    # -- beginning and end -----------------------------------------------------------------------------------------

    def _resume(self) -> None:
        folder = self.config.out
        kept = list_checkpoints(folder)
        if kept:
            self.progress = load_checkpoint(kept[-1], self.agents, self.ema.module, self.optimizer)
            self.window = [torch.tensor(v, device=self.accelerator.device) for v in self.progress.window]
            self.saved_step = self.progress.step
        if self.main:
            cut_log(folder / "log.jsonl", self.progress.step)
            write_atomically(folder / "config.json", lambda p: save_config(self.config, p))
        self.accelerator.wait_for_everyone()

    def _end(self) -> Outcome:
        interrupted = not self.over
        already = self.saved_step == self.progress.step
        if not interrupted and (not already or self.progress.best_bits is None):
            self._validate()
        if not already:
            self._checkpoint()
        if not interrupted:
            self._save_model("last", None)
            if self.main:
                self._pictures()
        self.accelerator.end_training()
        progress = self.progress
        return Outcome(self.config.out, progress.step, progress.seconds, progress.best_bits, interrupted)


def kl_weight(settings: TrainingConfig, step: int, done: float) -> float:
    """Weight of the KL in the loss of optimiser step ``step`` (from 0), ``done`` (0 to 1) of the run behind it."""
    if settings.kl_warmup_steps is not None:
        return min(1.0, (step + 1) / max(settings.kl_warmup_steps, 1))
    return min(1.0, max((step + 1) / KL_WARMUP_STEPS, done / KL_WARMUP_SHARE))


BF16_WEIGHTS = 1_000_000
"""Weights from which bfloat16 is faster on a CPU that has instructions for it: in smaller networks its conversions cost
more than the products save."""


def choose_precision(setting: str, agents: Agents) -> str:
    """What "auto" means here: "bf16" or "no"."""
    if setting != "auto":
        return setting
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "no"
    large = sum(p.numel() for p in agents.parameters()) >= BF16_WEIGHTS
    return "bf16" if cpu_has_bfloat16() and large else "no"


def cpu_has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 numbers itself."""
    check = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(check is not None and check())


def seed_dropout(seed: int) -> None:
    """Seed the global generators that dropout draws from. (torch.manual_seed does more, at a millisecond a call.)"""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed(seed)


def describe_size(agents: Agents) -> str:
    """Weights and operations in one line."""
    weights, operations = count_parameters(agents), count_operations(agents)
    return (
        f"{weights['generative'] / 1e6:.2f} million weights for sampling, {weights['gc_agent'] / 1e6:.2f} in the GC-agent; "
        f"{operations['sample'] / 1e6:.1f} million operations to draw an image, {operations['train'] / 1e6:.1f} to learn from one "
        "(pass forward)"
    )


def measured(learned: Learned) -> tuple[list[str], Tensor]:
    """What a step says for the log: names, and (values,) means over the batch."""
    terms = learned.bound
    names = ["reconstruction_nats", *(f"kl_nats_{h}" for h in range(len(terms.kl))), *learned.extra]
    extra = [value.detach().reshape(1) for value in learned.extra.values()]
    return names, torch.cat([terms.reconstruction.mean().reshape(1), terms.kl.mean(1), *extra])


def mean_image(images: ImageSet) -> Tensor:
    """Mean of the training images in [-1, 1], (C, height, width)."""
    total = torch.zeros(images.shape, dtype=torch.float64)
    for chunk in images.images.split(4096):
        total += chunk.double().sum(0)
    return (total / len(images) / (images.levels - 1) * 2 - 1).float()


def canvas_bytes(agents: Agents, states: Tensor) -> Tensor:
    """States (T, B, ...) as pictures, uint8 0..255 (T, B, C, height, width) on the CPU."""
    canvases = agents.environment.canvas(states.flatten(0, 1)).unflatten(0, states.shape[:2])
    return to_bytes(from_unit(canvases.cpu(), agents.levels), agents.levels)


def fixed_goals(images: ImageSet, start: Start, count: int) -> tuple[Tensor | None, list[str] | None]:
    """``count`` goals (repeated if there are fewer) for a start that needs them, and their names for pairing."""
    if not start.needs_goal:
        names = pairing_names(start, images)
        return None, [names[i % len(images)] for i in range(count)] if names else None
    index = torch.arange(count) % len(images)
    return to_unit(images.images[index], images.levels), None


def count_labels(data: Splits) -> int:
    """Number of classes, for a model that is conditioned on them.

    Raises:
        GoalgenError: some split has no labels.
    """
    splits = {"training": data.train, "validation": data.validation, "test": data.test}
    largest = 0
    for name, images in splits.items():
        if images.labels is None:
            raise GoalgenError(
                f"--condition label needs a label for every image, and the {name} images have none; give class folders "
                "or a parquet file with a label column"
            )
        largest = max(largest, int(images.labels.max()))
    return max(largest + 1, len(data.label_names or ()))


SMALLEST_MEASURE = 1024
"""Examples, at least, of an estimate of the bound that visits one step of each episode; few images are gone through again."""


@torch.no_grad()
def validation_bound(agents: Agents, images: ImageSet, start: Start, seed: int, batch: int = 64) -> float:
    """Mean J over ``images`` in nats, with the same noise at every call. (Equation 3)

    Where marginals are in closed form it is estimated from one step of each episode, and may differ a little from what
    :meth:`goalgen.model.Model.nll_bound` says of whole episodes.
    """
    device, names = agents.device, pairing_names(start, images)
    marginals = agents.gc_agent.learner == "marginals"
    learner = make_learner(agents).eval() if marginals else None
    passes = -(-SMALLEST_MEASURE // len(images)) if marginals else 1
    total = 0.0
    for repeat in range(passes):
        for first in range(0, len(images), batch):
            goals = to_unit(images.images[first : first + batch], images.levels)
            part = list(names[first : first + batch]) if names else None
            generator = rng.generator(seed, "validation", first + repeat * len(images))
            canvas = start(len(goals), goals=goals, names=part, generator=generator).to(device)
            label = label_rows(agents, images, slice(first, first + batch))
            if learner is None:
                noise = draw_noise(agents.environment, len(goals), generator).to(device)
                terms = bound(agents, rollout(agents, canvas, goals.to(device), noise, label=label))
            else:
                space = agents.environment.action_space
                noise = space.noise(len(goals), generator).unsqueeze(0).to(device)
                steps = spread_steps(len(goals), agents.horizon, generator).to(device)
                terms = learner(canvas, goals.to(device), noise, label=label, steps=steps).bound
            total += terms.total.sum().item()
    return total / (passes * len(images))


def label_rows(agents: Agents, images: ImageSet, rows: slice) -> Tensor | None:
    """Labels of some images, on the device of ``agents``; None for agents that are not told labels."""
    if not agents.num_labels:
        return None
    assert images.labels is not None
    return images.labels[rows].to(agents.device)
