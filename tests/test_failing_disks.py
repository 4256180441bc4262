"""A disk that is full, fails, or may not be read, at any moment: one line, and what was there before is whole."""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from runs import digest, tiny_config, tiny_options, write_images
from safetensors.torch import load_file

from goalgen import GoalgenError, cli, load
from goalgen.cache import fingerprint
from goalgen.config import DataConfig
from goalgen.data import load_data
from goalgen.training import train

resource = pytest.importorskip("resource")  # limits that the system keeps

ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES)
TOUCHING = (
    "open",
    "stat",
    "lstat",
    "scandir",
    "listdir",
    "mkdir",
    "replace",
    "rename",
    "unlink",
    "rmdir",
    "fsync",
    "chmod",
)
"""Functions of os by which Python's own file functions reach the disk."""

pytestmark = pytest.mark.filterwarnings("default::UserWarning")


class Disk:
    """The disk below a folder, on which the operation of a certain number fails."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.fail_at, self.error, self.seen = str(folder), -1, 0, 0
        for name in TOUCHING:
            monkeypatch.setattr(os, name, self._failing(getattr(os, name)))
        monkeypatch.setattr(builtins, "open", self._failing(builtins.open))
        monkeypatch.setattr(io, "open", self._failing(io.open))

    def _failing(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*args: Any, **named: Any) -> Any:
            path = args[0] if args else named.get("path", named.get("file"))
            inside = isinstance(path, int) or str(
                os.fspath(path) if isinstance(path, os.PathLike) else path
            ).startswith(self.folder)
            if inside:
                self.seen += 1
                if self.seen == self.fail_at:
                    raise OSError(self.error, os.strerror(self.error), None if isinstance(path, int) else str(path))
            return real(*args, **named)

        return operation

    @contextmanager
    def failing(self, at: int, error: int) -> Iterator[None]:
        self.fail_at, self.error, self.seen = at, error, 0
        try:
            yield
        finally:
            self.fail_at = -1


def run_command(*arguments: object) -> str:
    """The error of a command, or "" if it came to its end. Raises whatever is no line."""
    err = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", err)
        patch.setattr(sys, "stdout", io.StringIO())
        status = cli.main([str(a) for a in arguments])
    lines = [line for line in err.getvalue().splitlines() if not line.startswith("goalgen: warning: ")]
    assert (status, len(lines)) in ((0, 0), (2, 1)), (status, lines)
    assert not lines or lines[0].startswith("goalgen: error: ")
    return lines[0] if lines else ""


def call(function: Callable[..., Any], *arguments: Any) -> str:
    try:
        function(*arguments)
    except GoalgenError as error:
        return str(error)
    return ""


def content(folder: Path) -> dict[str, str]:
    """A hash of every file; of tensors by their values, as the order in a header is nobody's."""
    hashed = digest(folder)
    for name in hashed:
        if name.endswith(".safetensors"):
            hashed[name] = fingerprint(load_file(folder / name))
    return hashed


def broken(before: dict[str, str], now: Path, after: dict[str, str]) -> list[str]:
    """Files that are neither as they were nor as the undisturbed command leaves them; what a clock decides must be whole JSON."""
    wrong = []
    for name, hashed in content(now).items():
        if any(part.startswith(".") for part in Path(name).parts):
            continue
        if name.endswith(("progress.json", "config.json", "samples.json")):
            json.loads((now / name).read_text())
        elif not name.endswith("log.jsonl") and hashed not in (before.get(name), after.get(name)):
            wrong.append(name)
    return wrong


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    """A run of four steps, to be gone on with."""
    return train(tiny_config(tmp_path_factory.mktemp("begun") / "run", **SHORT, max_steps=4)).folder


SHORT = {"checkpoint_every": 3, "eval_every": 3, "log_every": 1, "limit": 16, "precision": "no"}


def each_failure(
    disk: Disk,
    attempt: Callable[[], str],
    reset: Callable[[], None],
    check: Callable[[], None],
    step: int = 1,
    errors: int = 1,
) -> int:
    """Fail every operation (or every ``step``-th) of ``attempt``, with one of the errors in turn or all. Returns the number of cases."""
    for cases in count():
        at = 1 + cases // errors * step
        reset()
        with disk.failing(at, ERRORS[cases % 3]):
            error = attempt()
            reached = disk.seen >= at
        if not reached:
            assert error == ""
            return cases
        check()
        assert "Traceback" not in error
    raise AssertionError


def test_training_survives_any_operation_that_fails(tmp_path, begun, monkeypatch):
    """The run is whole after each, and the same command goes on."""
    run, whole = tmp_path / "disk" / "run", tmp_path / "whole"
    shutil.copytree(begun, whole)
    command = ("train", *tiny_options(run, **SHORT, max_steps=6))
    assert run_command("train", *tiny_options(whole, **SHORT, max_steps=6)) == ""
    before, after = content(begun), content(whole)
    disk = Disk(tmp_path / "disk", monkeypatch)

    def reset() -> None:
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(begun, run)

    def check() -> None:
        assert broken(before, run, after) == []
        assert load(run).facts["step"] in (4, 6)

    tried = each_failure(disk, lambda: run_command(*command), reset, check, step=11)
    assert tried >= 15
    assert run_command(*command) == ""
    assert broken({}, run, after) == []


def test_a_run_goes_on_after_a_failure_half_way(tmp_path, begun, monkeypatch):
    run = tmp_path / "disk" / "run"
    shutil.copytree(begun, run)
    command = ("train", *tiny_options(run, **SHORT, max_steps=6))
    disk = Disk(tmp_path / "disk", monkeypatch)
    for at in range(40, 200, 40):
        with disk.failing(at, errno.ENOSPC):
            run_command(*command)
    assert run_command(*command) == ""
    whole = tmp_path / "whole"
    shutil.copytree(begun, whole)
    assert run_command("train", *tiny_options(whole, **SHORT, max_steps=6)) == ""
    assert broken({}, run, content(whole)) == []


def test_sampling_survives_any_operation_that_fails(tmp_path, begun, monkeypatch):
    """New samples, and samples in the place of others: the earlier ones stay until all are there."""
    place = tmp_path / "disk"
    whole = {}
    for seed in ("0", "1"):
        assert run_command("sample", begun, "--out", tmp_path / seed, "--num", "3", "--seed", seed, "--grid") == ""
        whole[seed] = digest(tmp_path / seed)
    disk = Disk(place, monkeypatch)
    out = place / "s"
    command = ("sample", begun, "--out", out, "--num", "3", "--seed", "1", "--grid")

    def check() -> None:
        assert broken(whole["0"], place / "s", whole["1"]) == [] if out.exists() else True

    def empty() -> None:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()

    def full() -> None:
        empty()
        shutil.copytree(tmp_path / "0", out)

    assert each_failure(disk, lambda: run_command(*command), empty, check, step=2) >= 20
    assert each_failure(disk, lambda: run_command(*command, "--force"), full, check, step=2) >= 25


def test_saving_and_loading_survive_any_operation_that_fails(tmp_path, begun, monkeypatch):
    place = tmp_path / "disk"
    model, other = load(begun), load(begun, weights="raw")
    before, after = content(other.save(tmp_path / "old")), content(model.save(tmp_path / "new"))
    disk = Disk(place, monkeypatch)
    saved = place / "model"

    def reset() -> None:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(tmp_path / "old", saved)

    def whole() -> None:
        now = content(saved)
        assert {k: v for k, v in now.items() if not k.startswith(".")} in (before, after)

    assert each_failure(disk, lambda: call(model.save, saved), reset, whole, errors=3) >= 60
    reset()
    assert each_failure(disk, lambda: call(load, saved), lambda: None, whole, errors=3) >= 15
    run = place / "run"
    shutil.copytree(begun, run)
    hashed = digest(run)

    def same() -> None:
        assert digest(run) == hashed

    for function in (lambda: call(load, run), lambda: run_command("evaluate", run, *QUICK)):
        assert each_failure(disk, function, lambda: None, same, errors=3) >= 15


QUICK = ("--features", "pixel-pca", "--num-test", "6", "--iw-images", "1", "--iw-k", "1")


def test_reading_images_survives_any_operation_that_fails(tmp_path, monkeypatch):
    images = write_images(tmp_path / "disk" / "images", 12)
    before = digest(images)
    disk = Disk(tmp_path / "disk", monkeypatch)

    def same() -> None:
        assert digest(images) == before

    assert each_failure(disk, lambda: call(load_data, DataConfig(data=str(images))), lambda: None, same, errors=3) >= 60


def test_numbers_and_plots_survive_any_operation_that_fails(tmp_path, begun, monkeypatch):
    place = tmp_path / "disk"
    place.mkdir()
    file = place / "numbers.json"
    command = ("evaluate", begun, *QUICK, "--json", file)
    assert run_command(*command) == ""
    before = file.read_bytes()
    disk = Disk(place, monkeypatch)

    def whole() -> None:
        assert file.read_bytes() == before

    assert each_failure(disk, lambda: run_command(*command, "--force"), lambda: None, whole) >= 5


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may become larger: the system refuses to write more, as on a full disk, whoever writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_disk_that_is_full_in_the_middle_of_a_file(tmp_path, begun):
    """Real writes that the system cuts off, those of safetensors and Pillow too."""
    model, run, out, saved = load(begun), tmp_path / "run", tmp_path / "s", tmp_path / "model"
    model.save(saved)
    whole = tmp_path / "whole"
    shutil.copytree(begun, whole)
    assert run_command("train", *tiny_options(whole, **SHORT, max_steps=6)) == ""
    before, after, kept = content(begun), content(whole), content(saved)
    failed = 0
    for size in (0, 100, 1000, 10_000, 30_000, 40_000, 60_000):
        shutil.rmtree(run, ignore_errors=True)
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(begun, run)
        with largest_file(size):
            errors = [
                run_command("train", *tiny_options(run, **SHORT, max_steps=6)),
                run_command("sample", begun, "--out", out, "--num", "2", "--grid"),
                call(model.save, saved),
            ]
        assert broken(before, run, after) == []
        assert content(saved) == kept
        assert load(run).facts["step"] in (4, 6)
        failed += sum("cannot be written" in error for error in errors)
        assert all("cannot be written" in error or not error for error in errors), errors
        assert run_command("train", *tiny_options(run, **SHORT, max_steps=6)) == ""
        assert broken({}, run, after) == []
    assert failed >= 8
