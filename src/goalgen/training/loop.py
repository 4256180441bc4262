"""The training loop: one function for a laptop, a GPU, or several under ``accelerate launch``."""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from goalgen import rng
from goalgen.bound import bits_per_dim
from goalgen.config import Config
from goalgen.data import Splits
from goalgen.errors import GoalgenError
from goalgen.families import make
from goalgen.family import AfterStep, Family
from goalgen.learning import Clock, Learned
from goalgen.processes import hold_group
from goalgen.saved import save_model
from goalgen.settings import save_config
from goalgen.size import count_operations, describe_size
from goalgen.starts import ImageStart, make_start
from goalgen.storage import write_atomically
from goalgen.training.batches import Batches, conditional_on, mean_image
from goalgen.training.checkpoints import Progress, list_checkpoints, load_checkpoint, save_checkpoint
from goalgen.training.ema import EMA
from goalgen.training.log import bits_of, cut_log, measured
from goalgen.training.machine import StopSignal, choose_precision, compile_networks, make_accelerator, seed_dropout
from goalgen.training.optimiser import make_optimizer, rate
from goalgen.training.pace import Pace
from goalgen.training.preparation import check_data, check_start, class_names
from goalgen.training.surviving import surviving
from goalgen.training.teller import Teller, next_picture
from goalgen.training.updates import NotFiniteError, Updates
from goalgen.training.validation import BATCH, draw_snapshot, validation_bound


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
    conditional_on: list[str]
    """What the bound is given, such as labels."""


class Trainer:
    """One run. :func:`goalgen.train` is the way in; the class is for those who change the loop."""

    def __init__(self, config: Config, data: Splits, remarks: Sequence[str] = ()) -> None:
        """``remarks``: lines to say before training begins, of a run whose settings were chosen for the user."""
        self.config, self.settings, self.data, self.remarks = config, config.training.plain(), data, remarks
        self.shape = data.train.shape
        self.levels = 2 if data.binarize else data.train.levels
        self.provenance = check_data(config, data)
        self.classes = class_names(data) if config.model.condition == "label" else ()
        family = make(config, self.shape, self.levels, rng.derive_seed(config.seed, "weights"), len(self.classes))
        precision = choose_precision(
            self.settings.precision, family, lambda: count_operations(family)["train"], self.settings.device
        )
        self.accelerator = make_accelerator(config, precision)
        self.main = self.accelerator.is_main_process
        self.silent = self.settings.quiet or not self.main
        self.start = make_start(config.model.start, self.shape, mean_image(data.train), config.data)
        self.batches = Batches(
            config, data.train, data.binarize, self.start, family,
            self.accelerator.process_index, self.accelerator.num_processes,
        )  # fmt: skip
        self.family: Family = family.to(self.accelerator.device)
        self.ema = EMA(family, self.settings.ema or 0.0)  # a copy that is not compiled
        if self.settings.compile:
            compile_networks(family)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*broadcast_buffers.*")  # newer torch has another word for it
            self.learner, self.optimizer = self.accelerator.prepare(family, make_optimizer(family, self.settings))
        self.updates = Updates(self.accelerator, self.optimizer, family, self.settings.clip_norm)
        self.whole = True  # no step is begun and not ended
        self.progress = Progress()
        self.clock = time.perf_counter()
        self.saved_at, self.saved_step = 0.0, -1
        self.window: list[Tensor] = []  # what the steps since the last record of the log measured
        self.over = False
        self.picture_at = 0.0
        self.pace = Pace(
            self.batches.steps_of(self.settings.epochs) or self.settings.max_steps, self.settings.max_seconds
        )
        self.stop = StopSignal()

    # -- the run ---------------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Train until the end, a signal, a loss that is not finite, or the death of another process."""
        with surviving(self.accelerator.num_processes, self.config.out, self._rescue):
            self._resume()
            try:
                return self._train()
            except NotFiniteError as error:
                raise self._stopped_at_nan(error) from None

    def _train(self) -> Outcome:
        if not self.silent and (self.remarks or sys.stderr.isatty()):
            print(*self.remarks, describe_size(self.family), sep="\n", file=sys.stderr, flush=True)
        with warnings.catch_warnings():  # TensorBoard's remarks on the Python it was built for
            warnings.simplefilter("ignore", UserWarning)
            self.accelerator.init_trackers("tensorboard" if self.settings.tensorboard else "goalgen")
        self.clock = time.perf_counter() - self.progress.seconds
        self.begun_at = self.saved_at = self.progress.seconds
        self.picture_at = next_picture(self.progress.seconds)
        self.teller = Teller(
            self.pace.total, self._position(), self.progress.step, len(self.data.train), self.settings.batch_size or 0,
            self.pace.limit if self.pace.timed else None, bool(self.remarks), self.silent,
        )  # fmt: skip
        with self.stop.listening():  # at the end too: what was learned since the last checkpoint is not lost there
            with self.teller.telling:
                self._learn()
            return self._end()

    def _learn(self) -> None:
        """Steps until the end, or a signal."""
        if self.pace.timed and not self.pace.is_late(self.progress.seconds):
            self._plan_validation()
        while not self._finished():
            learned = self._step()
            names, values = measured(learned)
            if self.window and self.window[0].shape != values.shape:
                raise GoalgenError(f"the last checkpoint in {self.config.out} is damaged: its log is another model's")
            self.window.append(values)
            if (step := self.progress.step) % self.settings.log_every == 0:
                self.teller.bits = self._log(names, self.teller.rate(step))["bits_per_dim"]
            self._at_intervals()
            self.teller.after(step, self._position(), self.progress.seconds, partial(bits_of, learned, self.shape))

    def _plan_validation(self) -> None:
        """Measure on so many held-out images that one measurement takes a small share of the time; the same ones all along."""
        images = self.data.validation
        batch = images.subset(range(min(BATCH, len(images))))
        number, seconds = self.pace.affordable(
            lambda: validation_bound(self.ema.module, batch, self.start, self.config.seed),
            lambda mine: self._mean(torch.tensor(mine, device=self.accelerator.device)).item(),
        )
        count = min(self.progress.validation_images or BATCH * number, len(images))
        self.progress.validation_images = count
        if count < len(images):
            self.teller.telling.say(f"measured on {count} of {len(images)} held-out images, as the time is short")
        self.pace.costs["validation"] = seconds * -(-count // BATCH)

    def _position(self) -> float:
        return self.pace.position(self.progress.step, self.progress.seconds)

    def _finished(self) -> bool:
        """Whether the run is over, or was told to stop."""
        self.progress.seconds = time.perf_counter() - self.clock
        late = self.pace.limit is not None and self._agreed(self.pace.is_late(self.progress.seconds))
        self.over = late or self.pace.is_last_step(self.progress.step)
        return self.over or self._agreed(self.stop.received)

    def _agreed(self, flag: bool) -> bool:
        """Whether any process says so: clocks and signals differ between processes, the last step must not."""
        if self.accelerator.num_processes == 1:
            return flag
        mine = torch.tensor([float(flag)], device=self.accelerator.device)
        return bool(self.accelerator.reduce(mine, "sum").item() > 0)

    def _step(self) -> Learned:
        settings, step = self.settings, self.progress.step
        done = self.pace.done(step, self.progress.seconds)
        task, draws = self.batches(step)
        seed_dropout(rng.derive_seed(self.config.seed, "dropout", step, self.accelerator.process_index))
        if not self.learner.training:
            self.learner.train()
        learned: Learned = self.learner(partial(self.family.learn, task, draws, Clock(step, done)))
        updates = 1 + len(learned.again)
        self.updates.gradient(learned.loss, learned.bound)
        # With one update processes meet no more before the step is whole, so that what is left of a run has a state to keep.
        seen = {name: self._mean(value) for name, value in learned.seen.items()}
        self.whole = updates == 1
        self.updates.move(rate(settings, step * updates, done))
        for done_so_far, lesson in enumerate(learned.again, 1):
            self.updates.gradient(self.learner(lesson), learned.bound)
            self.updates.move(rate(settings, step * updates + done_so_far, done))
        self.progress.step, self.whole = step + 1, True
        self.ema.update(self.family, step + 1)

        def streams(name: str) -> torch.Generator:
            return rng.generator(self.config.seed, name, step)

        counted = self.family.after_step(AfterStep(step + 1, seen, self.ema.module, self.optimizer, streams))
        for name, count in counted.items():
            self.progress.counts[name] = self.progress.counts.get(name, 0) + count
        return learned

    def _mean(self, value: Tensor) -> Tensor:
        """The mean over all processes."""
        return value if self.accelerator.num_processes == 1 else self.accelerator.reduce(value, "mean")

    def _stopped_at_nan(self, culprit: object) -> GoalgenError:
        kept = list_checkpoints(self.config.out)
        where = f"the last checkpoint, {kept[-1].name}, is kept" if kept else "no checkpoint had been written"
        return GoalgenError(
            f"training stopped at step {self.progress.step}: {culprit}; {where}; try a lower --learning-rate"
        )

    # -- at intervals ----------------------------------------------------------------------------------------------

    def _at_intervals(self) -> None:
        settings, step = self.settings, self.progress.step
        # The last step is measured and kept here, not after the loop, so that a run cut off at it ends like any other.
        last, now = self.pace.is_last_step(step), time.perf_counter() - self.clock
        if (step % settings.eval_every == 0 and self.pace.may_measure(now)) or last:
            self._validate()
        by_clock = settings.picture_every is None and now >= self.picture_at
        if by_clock or (settings.picture_every and step % settings.picture_every == 0):
            self.picture_at = next_picture(now)
            self._pictures()
        self.progress.seconds = time.perf_counter() - self.clock
        due = self.progress.seconds - self.saved_at >= settings.checkpoint_seconds
        if step % settings.checkpoint_every == 0 or last or self._agreed(due):
            self._checkpoint()

    def _log(self, names: list[str], images_per_second: float) -> dict[str, float]:
        """Write the mean of the window, and empty it."""
        record: dict[str, float] = dict(zip(names, self._mean(torch.stack(self.window)).mean(0).tolist(), strict=True))
        self.window = []
        steps = sum(name.startswith("kl_nats_") for name in names)
        record["kl_nats"] = sum(record[f"kl_nats_{h}"] for h in range(steps))
        record["nll_bound_nats"] = record["reconstruction_nats"] + record["kl_nats"]
        record["bits_per_dim"] = float(bits_per_dim(record["nll_bound_nats"], self.shape))
        record |= {"images_per_second": images_per_second, "seconds": self.progress.seconds}
        record["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        record |= self.progress.counts
        self.accelerator.log(record, step=self.progress.step)
        return record

    def _validate(self) -> None:
        """The bound on held-out goals with the averaged weights; keep the best."""
        self.updates.check_weights()
        images = self.data.validation
        if self.progress.validation_images is not None and self.progress.validation_images < len(images):
            images = images.subset(range(self.progress.validation_images))
        with self.pace.taking("validation"):
            share = (self.accelerator.process_index, self.accelerator.num_processes)
            total = validation_bound(self.ema.module, images, self.start, self.config.seed, share)
            if share[1] > 1:
                mine = torch.tensor(total, dtype=torch.float64, device=self.accelerator.device)
                total = self.accelerator.reduce(mine, "sum").item()
        bits = float(bits_per_dim(total, self.shape))
        if not math.isfinite(bits):
            raise NotFiniteError(f"the held-out bound is {bits}")
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
                "label_names": list(self.classes or self.data.label_names or ()) or None,
                "paired": self.batches.names is not None,
            }
            save_model(self.config.out / name, self.config, self.ema.module, self.family, image, facts, self.provenance)

    def _pictures(self) -> None:
        if self.main:
            folder, step = self.config.out / "pictures", self.progress.step
            with self.pace.taking("pictures"):
                self.teller.picture = str(
                    draw_snapshot(self.ema.module, self.data.validation, self.start, self.config.seed, folder, step)
                )

    def _checkpoint(self) -> None:
        self.updates.check_weights()
        self.progress.window = self._mean(torch.stack(self.window)).tolist() if self.window else []
        if self.main:
            with self.pace.taking("checkpoint"):
                self._save_state()
        self.saved_at, self.saved_step = self.progress.seconds, self.progress.step
        self.accelerator.wait_for_everyone()

    def _save_state(self) -> None:
        state = (self.family, self.ema.module, self.optimizer, self.progress)
        save_checkpoint(self.config.out, *state, self.settings.keep)

    def _rescue(self) -> None:
        """Keep the last whole step, when the other processes can no longer be asked; in the midst of one there is none."""
        if not self.whole:
            return
        self.progress.window = torch.stack(self.window).tolist() if self.window else []
        self._save_state()

    # -- beginning and end -----------------------------------------------------------------------------------------

    def _resume(self) -> None:
        folder, kept = self.config.out, list_checkpoints(self.config.out)
        self.provenance = check_start(self.config, self.provenance, self.start)
        if kept:
            self.progress = load_checkpoint(kept[-1], self.family, self.ema.module, self.optimizer)
            self.window = [torch.tensor(v, device=self.accelerator.device) for v in self.progress.window]
            self.saved_step = self.progress.step
        if self.main:
            cut_log(folder / "log.jsonl", self.progress.step)
            write_atomically(folder / "config.json", lambda p: save_config(self.config, p))
            self.provenance.keep(folder)  # after the file by which the folder is a run
        self.accelerator.wait_for_everyone()

    def _end(self) -> Outcome:
        interrupted = not self.over
        already = self.saved_step == self.progress.step
        if not interrupted and (not already or self.progress.best_bits is None):
            self._validate()
        if not interrupted and self.pace.timed and self.begun_at < self.pace.total:  # so in all processes, or in none
            already = False
            self.progress.seconds = max(self.progress.seconds, self.pace.total)  # the end uses up the rest
        if not already:
            self._checkpoint()
        if not interrupted:
            self._save_model("last", None)
            self._pictures()
        hold_group()
        self.accelerator.end_training()
        progress, given = self.progress, conditional_on(self.family, self.start, self.batches.names is not None)
        return Outcome(self.config.out, progress.step, progress.seconds, progress.best_bits, interrupted, given)
