"""The images of a run, and goalgen trained on them as ``goalgen train`` does it."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
from pathlib import Path

import torch
from contenders import Options, Row, as_options, data_folder

from goalgen import configure, load, load_data, rng, train
from goalgen.config import Config, DataConfig
from goalgen.data import Splits
from goalgen.model import Model
from goalgen.training.log import read_log


class Stopped(Exception):
    """A signal ended the training before its time; the same row goes on from there."""


def splits_of(data: DataConfig, options: Options) -> Splits:
    """The images, the first so many test images among them. A trial is measured on training images that are held out of the
    training and of the choice of a checkpoint, as many as there are test images; the test images are out of its reach."""
    splits = load_data(dataclasses.replace(data, limit=None) if options.trial else data)
    test, train = splits.test, splits.train
    if options.trial:
        order = torch.randperm(len(train), generator=rng.generator(0, "images of trials"))
        count = min(len(test), options.num_test or len(train) // 2)
        test, train = train.subset(order[:count]), train.subset(order[count:][: data.limit])
    return dataclasses.replace(
        splits, train=train, test=test.subset(range(min(options.num_test or len(test), len(test))))
    )


def fit(config: Config, splits: Splits) -> tuple[Model, Row]:
    """Train, or go on, as ``goalgen train`` does. Returns the best model, and how the training went."""
    outcome = train(config, splits)
    if outcome.interrupted:
        raise Stopped
    return load(config.out), {"steps": outcome.step, "seconds": outcome.seconds}


TOGETHER = ("--multi_gpu", "--num_processes")
"""Without the first, Accelerate starts one process on a machine that has no GPU."""


def fit_together(config: Config, words: list[str], processes: int) -> tuple[Model, Row]:
    """Train with ``goalgen train`` in several processes, which share every batch. Returns the best model, and how it went."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", *TOGETHER, str(processes), "-m", "goalgen"]
    with subprocess.Popen([*launch, *words, "--out", str(config.out), "--picture-every", "0", "--quiet"]) as launched:
        told: list[int] = []

        def end(number: int, frame: object) -> None:
            told.append(number)
            launched.terminate()  # it then ends what it has begun

        before = signal.signal(signal.SIGTERM, end)
        status = launched.wait()
        signal.signal(signal.SIGTERM, before)
    if told:
        raise Stopped
    if status:
        raise SystemExit(f"{processes} processes that trained together ended with {status}")
    steps = read_log(config.out / "log.jsonl")[-1]["step"]
    return load(config.out), {"steps": steps, "seconds": config.training.max_seconds, "processes": processes}


def train_goalgen(
    folder: Path, options: Options, seed: int, settings: Row, preset: str | None = None
) -> tuple[Model, Splits, Row]:
    """The model of some settings, the images, and how it went: steps, seconds and the command that does the same."""
    given = {"data": data_folder(options.data), "seed": seed, "max_seconds": options.seconds}
    config = configure(preset, **settings, **given, out=folder, quiet=True, picture_every=0)
    splits, together = splits_of(config.data, options), options.processes > 1
    words = ["train", *(["--preset", preset] if preset else []), *as_options({**settings, **given})]
    if together:
        assert not options.trial, "goalgen train knows of no trials"
        words += ["--device", options.device]
    model, went = fit_together(config, words, options.processes) if together else fit(config, splits)
    program = ["accelerate launch", *TOGETHER, str(options.processes), "-m goalgen"] if together else ["goalgen"]
    said = {given["data"]: options.data if options.data == "digits" else f"DATA/{options.data}"}
    return model, splits, {**went, "command": " ".join([*program, *(quoted(said.get(word, word)) for word in words)])}


def quoted(word: str) -> str:
    """As a shell wants it."""
    return f'"{word}"' if any(sign in word for sign in " #") else word
