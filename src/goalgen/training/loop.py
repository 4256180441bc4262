"""The training loop: one function for a laptop, a GPU, or several under ``accelerate launch``."""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from goalgen import rng
from goalgen.bound import bits_per_dim
from goalgen.choice import choose, is_open, worth
from goalgen.config import Config
from goalgen.data import Splits, load_data
from goalgen.errors import GoalgenError
from goalgen.families import make
from goalgen.family import AfterStep, Family
from goalgen.learning import Clock, Learned
from goalgen.saved import save_model
from goalgen.settings import complete, save_config
from goalgen.size import count_operations, describe_size
from goalgen.starts import ImageStart, make_start
from goalgen.storage import write_atomically
from goalgen.training.batches import Batches, conditional_on, mean_image
from goalgen.training.checkpoints import Progress, list_checkpoints, load_checkpoint, save_checkpoint
from goalgen.training.ema import EMA
from goalgen.training.log import cut_log
from goalgen.training.machine import StopSignal, choose_precision, compile_networks, make_accelerator, seed_dropout
from goalgen.training.optimiser import first_bad_tensor, make_optimizer, rate
from goalgen.training.preparation import check_config, count_labels, prepare_folder
from goalgen.training.validation import draw_snapshot, validation_bound

TIMED = 10
"""Steps after which it is said what the time of a run buys."""

DEFAULT_SECONDS = 600.0
"""Length of a run for which neither steps nor seconds are given."""


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


def train(config: Config, data: Splits | None = None) -> Outcome:
    """Train, or resume, the run that ``config`` describes; with ``data``, goals in memory in the place of those that it names.

    Raises:
        GoalgenError: bad data or configuration, a folder that holds another run, or a loss that is not finite.
    """
    check_config(config)
    chosen: list[str] = []
    if is_open(config):
        data = data or load_data(config.data)
        config, chosen = choose(config, data, torch.cuda.is_available())
    config = complete(config)
    prepare_folder(config)
    return Trainer(config, data or load_data(config.data), chosen).run()


class Trainer:
    """One run. :func:`train` is the way in; the class is for those who change the loop."""

    def __init__(self, config: Config, data: Splits, remarks: Sequence[str] = ()) -> None:
        """``remarks``: lines to say before training begins, of a run whose settings were chosen for the user."""
        self.config, self.settings, self.data, self.remarks = config, config.training.plain(), data, remarks
        self.shape = data.train.shape
        self.levels = 2 if data.binarize else data.train.levels
        num_labels = count_labels(data) if config.model.condition == "label" else 0
        family = make(config, self.shape, self.levels, rng.derive_seed(config.seed, "weights"), num_labels)
        precision = choose_precision(self.settings.precision, family, lambda: count_operations(family)["train"])
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
        self.parameters = (family.generative_parameters(), family.gc_parameters())
        self.progress = Progress()
        self.clock = time.perf_counter()
        self.saved_at, self.saved_step = 0.0, -1
        self.window: list[Tensor] = []  # what the steps since the last record of the log measured
        self.over = False
        self.stop = StopSignal()

    # -- the run ---------------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Train until the end, a signal, or a loss that is not finite."""
        self._resume()
        if not self.silent:
            size = [describe_size(self.family)] if self.remarks or sys.stderr.isatty() else []
            print(*self.remarks, *size, sep="\n", end="\n" if size else "", file=sys.stderr)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # TensorBoard's remarks on the Python it was built for
            self.accelerator.init_trackers("tensorboard" if self.settings.tensorboard else "goalgen")
        bar = tqdm(
            total=self._total(), initial=self._position(), unit="", disable=True if self.silent else None,
            bar_format="{l_bar}{bar}| {elapsed}<{remaining}{postfix}",
        )  # fmt: skip
        self.clock = time.perf_counter() - self.progress.seconds
        self.saved_at = self.progress.seconds
        mark = begun = (time.perf_counter(), self.progress.step)
        with bar, self.stop.listening():
            while not self._finished():
                learned = self._step()
                names, values = measured(learned)
                self.window.append(values)
                step = self.progress.step
                if step == begun[1] + 1:
                    begun = (time.perf_counter(), begun[1])  # the first step also warms up
                elif step == begun[1] + TIMED:
                    self._say_worth((TIMED - 1) / (time.perf_counter() - begun[0]))
                bar.n = self._position()
                if step % self.settings.log_every == 0:
                    rate_now = (step - mark[1]) * (self.settings.batch_size or 0) / (time.perf_counter() - mark[0])
                    record = self._log(names, rate_now)
                    mark = (time.perf_counter(), step)
                    bar.set_postfix_str(f"{record['bits_per_dim']:.3f} bits/dim, {rate_now:,.0f} images/s")
                self._at_intervals()
        return self._end()

    def _say_worth(self, steps_per_second: float) -> None:
        """What the time buys at this rate, where settings were chosen for the user and the time is limited."""
        seconds = self._seconds()
        if self.remarks and seconds is not None and not self.silent:
            images_per_second = steps_per_second * (self.settings.batch_size or 0)
            tqdm.write(worth(len(self.data.train), images_per_second, seconds), file=sys.stderr)

    def _seconds(self) -> float | None:
        """Limit of time, if there is one."""
        return self.settings.max_seconds or (None if self.settings.max_steps else DEFAULT_SECONDS)

    def _total(self) -> float:
        return self.settings.max_steps or self.settings.max_seconds or DEFAULT_SECONDS

    def _position(self) -> float:
        return self.progress.step if self.settings.max_steps else min(self.progress.seconds, self._total())

    def _finished(self) -> bool:
        """Whether the run is over, or was told to stop."""
        self.progress.seconds = time.perf_counter() - self.clock
        seconds = self._seconds()
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
        return (self.progress.step if self.settings.max_steps else self.progress.seconds) / self._total()

    def _step(self) -> Learned:
        settings, step = self.settings, self.progress.step
        task, draws = self.batches(step)
        factor = rate(settings, step, self._done())
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        seed_dropout(rng.derive_seed(self.config.seed, "dropout", step, self.accelerator.process_index))
        if not self.learner.training:
            self.learner.train()
        learned: Learned = self.learner(task, draws, Clock(step, self._done()))
        self.optimizer.zero_grad()
        self.accelerator.backward(learned.loss)
        self._check_and_clip(learned)
        self.optimizer.step()
        self.progress.step = step + 1
        self.ema.update(self.family, step + 1)
        seen = {name: self._mean(value) for name, value in learned.seen.items()}

        def streams(name: str) -> torch.Generator:
            return rng.generator(self.config.seed, name, step)

        counted = self.family.after_step(AfterStep(step + 1, seen, self.ema.module, self.optimizer, streams))
        for name, count in counted.items():
            self.progress.counts[name] = self.progress.counts.get(name, 0) + count
        return learned

    def _mean(self, value: Tensor) -> Tensor:
        """The mean over all processes."""
        return value if self.accelerator.num_processes == 1 else self.accelerator.reduce(value, "mean")

    def _check_and_clip(self, learned: Learned) -> None:
        """Stop at a loss or gradient that is not finite; shorten the gradients that are too long, S-agent's and GC-agent's apart.

        One synchronisation for all; gradients that are short enough, as nearly all are, are not written again.
        """
        gradients = [[p.grad for p in group if p.grad is not None] for group in self.parameters if group]
        norms = [torch.nn.utils.get_total_norm(part) for part in gradients]
        loss, *lengths = torch.stack([learned.loss.detach().float(), *norms]).tolist()
        if not math.isfinite(loss + sum(lengths)):
            self._stop_at_nan(first_bad_tensor(learned.bound, self.family))
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
        for name, parameter in self.family.named_parameters():
            if not torch.isfinite(parameter).all():
                self._stop_at_nan(f"{name} is not finite")

    # -- at intervals ----------------------------------------------------------------------------------------------

    def _at_intervals(self) -> None:
        settings, step = self.settings, self.progress.step
        # The last step is measured and kept here, not after the loop, so that a run cut off at it ends like any other.
        last = self._is_last_step()
        if step % settings.eval_every == 0 or last:
            self._validate()
        if settings.picture_every and step % settings.picture_every == 0:
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
            save_model(self.config.out / name, self.config, self.ema.module, self.family, image, facts)

    def _pictures(self) -> None:
        if self.main:
            folder = self.config.out / "pictures"
            draw_snapshot(
                self.ema.module, self.data.validation, self.start, self.config.seed, folder, self.progress.step
            )

    def _checkpoint(self) -> None:
        self._check_weights()
        self.progress.window = self._mean(torch.stack(self.window)).tolist() if self.window else []
        if self.main:
            save_checkpoint(
                self.config.out, self.family, self.ema.module, self.optimizer, self.progress, self.settings.keep
            )
        self.saved_at, self.saved_step = self.progress.seconds, self.progress.step
        self.accelerator.wait_for_everyone()

    # -- beginning and end -----------------------------------------------------------------------------------------

    def _resume(self) -> None:
        folder = self.config.out
        kept = list_checkpoints(folder)
        if kept:
            self.progress = load_checkpoint(kept[-1], self.family, self.ema.module, self.optimizer)
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
            self._pictures()
        self.accelerator.end_training()
        progress, given = self.progress, conditional_on(self.family, self.start, self.batches.names is not None)
        return Outcome(self.config.out, progress.step, progress.seconds, progress.best_bits, interrupted, given)


def measured(learned: Learned) -> tuple[list[str], Tensor]:
    """What a step says for the log: names, and (values,) means over the batch."""
    terms = learned.bound
    names = ["reconstruction_nats", *(f"kl_nats_{h}" for h in range(len(terms.kl))), *learned.info]
    extra = [value.detach().reshape(1) for value in learned.info.values()]
    return names, torch.cat([terms.reconstruction.mean().reshape(1), terms.kl.mean(1), *extra])
