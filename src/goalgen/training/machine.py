"""What a run asks of the machine: processes and precision through Accelerate, signals, the generators of dropout."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import is_tensorboard_available
from torch import nn

from goalgen.config import Config
from goalgen.errors import GoalgenError
from goalgen.networks import Top, Trunk
from goalgen.saved import check_device
from goalgen.training.log import JSONLTracker

BF16_WEIGHTS, BF16_OPERATIONS = 1_000_000, 10_000_000
"""Weights, or operations of a training image, from which bfloat16 is faster on a CPU that has instructions for it: in smaller
networks its conversions cost more than the products save. (Convolutions have few weights and many operations.)"""


def make_accelerator(config: Config, precision: str) -> Accelerator:
    """Accelerate's view of the machine, with the run's trackers.

    Raises:
        GoalgenError: the machine cannot do what is asked, or processes were started that do not see each other.
    """
    tracker: list[Any] = [JSONLTracker(config.out / "log.jsonl")]
    if config.training.tensorboard:
        if not is_tensorboard_available():  # Accelerate would leave the tracker out and say nothing
            raise GoalgenError("--tensorboard needs the package tensorboard: pip install tensorboard")
        tracker.append("tensorboard")
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()  # an earlier run of this Python process had another precision
    device = config.training.device
    if device != "auto":
        check_device(device)
    try:
        accelerator = Accelerator(
            cpu=device == "cpu",
            mixed_precision=precision,
            log_with=tracker,
            project_dir=config.out,
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
    if accelerator.num_processes > 1:
        # Of convolutions of one pixel: their gradients may lie in memory in either of two ways, which are the same.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    return accelerator


def has_gpu(device: str) -> bool:
    """Whether ``--device`` means a CUDA device here."""
    return device in ("auto", "cuda") and torch.cuda.is_available()


def choose_precision(
    setting: str, model: nn.Module, operations: Callable[[], int] = lambda: 0, device: str = "auto"
) -> str:
    """What "auto" means here: "bf16" or "no". ``operations`` counts those of a training image, where they decide."""
    if setting != "auto":
        return setting
    if has_gpu(device):
        return "bf16" if torch.cuda.is_bf16_supported() else "no"
    if not cpu_has_bfloat16():
        return "no"
    weights = sum(p.numel() for p in model.parameters())
    return "bf16" if weights >= BF16_WEIGHTS or operations() >= BF16_OPERATIONS else "no"


def cpu_has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 numbers itself."""
    check = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(check is not None and check())


def compile_networks(module: nn.Module) -> None:
    """Compile every trunk and top in place, from its first call on; names of weights stay."""
    for part in module.modules():
        if isinstance(part, (Trunk, Top)):
            part.compile()


def seed_dropout(seed: int) -> None:
    """Seed the global generators that dropout draws from. (torch.manual_seed does more, at a millisecond a call.)"""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed(seed)


class StopSignal:
    """Remembers SIGINT and SIGTERM until the step in hand is done; a second one ends the process at once."""

    def __init__(self) -> None:
        self.received = False

    def _handle(self, number: int, frame: Any) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Catch the signals inside the block; elsewhere than in the main thread nothing is changed."""
        main = threading.current_thread() is threading.main_thread()
        before = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM) if main}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
