"""Before a run: whether its settings make one, and whether its folder is free or holds this very run."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from goalgen.config import Config
from goalgen.data import Splits
from goalgen.data.labels import listed
from goalgen.data.provenance import FILE, Provenance
from goalgen.errors import GoalgenError
from goalgen.families import check_model
from goalgen.family import check_above_zero, check_least, check_share
from goalgen.nearby import settled
from goalgen.settings import load_config
from goalgen.starts import Start, settled_start
from goalgen.storage import load_json, locked, one_line, recover_all

MAY_CHANGE = {
    "max_steps", "max_seconds", "keep", "checkpoint_every", "checkpoint_seconds", "picture_every", "log_every",
    "tensorboard", "quiet", "out", "epochs", "device", "data_cache",
}  # fmt: skip
"""Settings that a run may be resumed with although they differ; all others decide what is learned."""


def check_config(config: Config) -> None:
    """Refuse numbers that make no run, one line each.

    Raises:
        GoalgenError: naming the setting, its value and what it may be.
    """
    training = config.training
    check_least(
        training, batch_size=1, episodes_per_goal=1, warmup_steps=0, max_steps=1, eval_every=1, checkpoint_every=1, keep=1,
        picture_every=0, log_every=1,
    )  # fmt: skip
    check_above_zero(training, "learning_rate", "clip_norm", "max_seconds", "checkpoint_seconds", "epochs")
    if training.epochs is not None and training.max_steps is not None:
        raise GoalgenError("--epochs and --max-steps both say how many steps the run has; give one of them")
    if (training.learning_rate or 0) > 1e30:  # AdamW divides it by 0.1 at the first step, in float32
        raise GoalgenError(f"--learning-rate must be at most 1e30, not {training.learning_rate}")
    check_share(training, "ema")
    if not 0 <= training.weight_decay < math.inf:
        raise GoalgenError(f"--weight-decay must be at least 0, not {training.weight_decay}")
    check_model(config)


def in_full(config: Config) -> Config:
    """The same with its paths in full, so that the run means the same files wherever it is used from."""
    data = replace(config.data, data=settled(config.data.data, ["digits"]))
    return replace(config, data=data, model=replace(config.model, start=settled_start(config.model.start)))


def differences(mine: Any, saved: Any) -> list[str]:
    """Settings that differ, as "name (saved x, now y)", those that may change left out."""
    found = []
    for item in fields(mine):
        a, b = getattr(mine, item.name), getattr(saved, item.name, None)
        if is_dataclass(a):  # of another family it is enough to say that the family is another
            found += differences(a, b) if type(a) is type(b) else []
        elif item.name in ("data", "start") and a == str(Path(str(b)).expanduser().absolute()):
            continue  # a run begun before paths were kept in full
        elif a != b and item.name not in MAY_CHANGE:
            found.append(f"--{item.name.replace('_', '-')} (saved {b}, now {a})")
    return found


@contextmanager
def own_folder(config: Config) -> Iterator[None]:
    """The run's folder, made or checked, and locked, so that no two processes write one run.

    Raises:
        GoalgenError: see :func:`prepare_folder`; or another process trains there.
    """
    with one_line():
        prepare_folder(config)
        if os.environ.get("RANK", "0") != "0":  # of several processes of one run the first holds the lock
            yield
            return
        with locked(config.out, "a run"):
            prepare_folder(config)  # as whoever had the lock before has left it
            recover_all(config.out, config.out / "checkpoints", config.out / "pictures")
            yield


def prepare_folder(config: Config) -> None:
    """Make the run's folder, or check that it holds this very run.

    Raises:
        GoalgenError: the folder holds something else, or cannot be made.
    """
    folder, saved = config.out, config.out / "config.json"
    if saved.exists():
        if "facts" in load_json(saved):
            raise GoalgenError(f"--out {folder} holds a saved model, and no run; choose another folder")
        if changed := differences(config, load_config(saved)):
            raise GoalgenError(
                f"{folder} holds a run with other settings: {', '.join(changed)}; choose another --out, or repeat the "
                "command it was started with"
            )
        return
    if folder.is_file():
        raise GoalgenError(f"--out {folder} is a file; choose a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        occupied = [p for p in folder.iterdir() if not p.name.startswith(".")]
    except OSError as error:
        raise GoalgenError(f"--out {folder} cannot be made: {error.strerror or error}") from None
    if occupied:
        raise GoalgenError(f"--out {folder} is not empty and holds no goalgen run; choose another folder")


def check_data(config: Config, data: Splits) -> Provenance:
    """Return what is to be known of the data, which must be those that the run was begun with.

    Raises:
        GoalgenError: they have changed since; the message says how.
    """
    now, saved = Provenance.of(data), config.out / "config.json"
    before = Provenance.load(config.out / FILE)
    # Other settings of the data are told by prepare_folder.
    same = before is not None and saved.exists() and not differences(config.data, load_config(saved).data)
    if before is not None and same and (words := before.differences(now)):
        raise GoalgenError(
            f"{config.data.data}: not the images that the run in {config.out} was begun with ({words}); put them back, or "
            "choose another --out"
        )
    return now


def check_start(config: Config, known: Provenance, start: Start) -> Provenance:
    """Return what is known of the data, and of the files to start from, which must be those that the run was begun with.

    Raises:
        GoalgenError: they have changed since.
    """
    now, before = start.fingerprint(), Provenance.load(config.out / FILE)
    if now is None:
        return known
    if before is not None and before.about.get("start", now) != now:
        raise GoalgenError(
            f"--start {config.model.start}: not the images that the run in {config.out} was begun with; put them back, or choose "
            "another --out"
        )
    return replace(known, about={**known.about, "start": now})


def class_names(data: Splits) -> tuple[str, ...]:
    """The classes, for a model that is conditioned on them.

    Raises:
        GoalgenError: some split has no labels, or some class no image to learn from.
    """
    for name, images in (("training", data.train), ("validation", data.validation), ("test", data.test)):
        if images.labels is None:
            raise GoalgenError(
                f"--condition label needs a label for every image, and the {name} images have none; give class folders "
                "or a parquet file with a label column"
            )
    assert data.train.labels is not None
    found = data.train.labels.unique().tolist()
    names = data.label_names or tuple(map(str, range(max(found) + 1)))
    if missing := [name for i, name in enumerate(names) if i not in set(found)]:
        raise GoalgenError(
            f"--condition label: there is no training image of class {listed(missing)}, only held-out ones; add some, leave "
            "the class out, or raise --limit where it is given"
        )
    return names
