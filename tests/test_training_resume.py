"""A run that is stopped, killed or spoilt, and started again by the same command."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import different, digest, edit_json, finish, start, timeless_log, tiny_config, tiny_options, write_images
from safetensors.torch import load_file, save_file

from goalgen import cli, storage
from goalgen.families.proposals import GreedyGCAgent, Proposals
from goalgen.training import train
from goalgen.training.checkpoints import list_checkpoints
from goalgen.training.log import read_log
from goalgen.training.loop import Trainer


class StoppingGCAgent(GreedyGCAgent):
    """Acts like the greedy agent; a number of decisions later the process gets a signal, in the middle of a step."""

    decisions_left: int | None = None

    def policy(self, seen, goal, decision):
        cls = type(self)
        if cls.decisions_left is not None:
            cls.decisions_left -= 1
            if cls.decisions_left == 0:
                signal.raise_signal(signal.SIGTERM)
        return super().policy(seen, goal, decision)


Proposals.gc_agents["stopping"] = StoppingGCAgent

FREQUENT = {
    "gc_agent": "stopping", "max_steps": 40, "log_every": 5, "eval_every": 6, "checkpoint_every": 9, "dropout": 0.1,
    "precision": "no",  # to choose one, operations would be counted first
}  # fmt: skip


@pytest.mark.parametrize(("decisions", "optimizer"), [(4, "adamw"), (41, "adamw"), (100, "adamw"), (41, "muon")])
def test_stopped_and_resumed_run_is_the_uninterrupted_run(tmp_path, monkeypatch, decisions, optimizer):
    whole = train(tiny_config(tmp_path / "whole", optimizer=optimizer, **FREQUENT))
    config = tiny_config(tmp_path / "halves", optimizer=optimizer, **FREQUENT)

    monkeypatch.setattr(StoppingGCAgent, "decisions_left", decisions)
    first = train(config)
    assert first.interrupted
    assert 0 < first.step < 40
    assert not (tmp_path / "halves" / "last").exists()

    second = train(config)
    assert not second.interrupted
    assert different(whole.folder, second.folder) == []
    assert timeless_log(whole.folder) == timeless_log(second.folder)
    assert whole.best_bits == second.best_bits


def test_signal_in_the_last_step_does_not_undo_the_end(tmp_path, monkeypatch):
    config = tiny_config(tmp_path / "run", gc_agent="stopping", max_steps=3, eval_every=50, precision="no")
    monkeypatch.setattr(StoppingGCAgent, "decisions_left", 9)  # three steps of horizon 3
    outcome = train(config)
    assert StoppingGCAgent.decisions_left <= 0
    assert outcome.step == 3
    assert not outcome.interrupted
    assert (outcome.folder / "last" / "model.safetensors").exists()


def test_last_step_is_measured_and_kept_whatever_the_intervals(tmp_path):
    for eval_every, checkpoint_every, measured in ((5, 4, [5, 10, 12]), (50, 50, [12]), (6, 12, [6, 12])):
        settings = {"max_steps": 12, "eval_every": eval_every, "checkpoint_every": checkpoint_every}
        folder = train(tiny_config(tmp_path / f"{eval_every}", **settings)).folder
        records = read_log(folder / "log.jsonl")
        assert [r["step"] for r in records if "validation_bits_per_dim" in r] == measured
        assert list_checkpoints(folder)[-1].name == "step-00000012"


def test_finished_run_is_left_as_it_is_by_the_same_command(tmp_path):
    config = tiny_config(tmp_path / "run", max_steps=12, eval_every=5, checkpoint_every=5)
    train(config)
    log, weights = (tmp_path / "run" / "log.jsonl").read_text(), digest(tmp_path / "run" / "checkpoints")
    train(config)
    assert (tmp_path / "run" / "log.jsonl").read_text() == log
    assert digest(tmp_path / "run" / "checkpoints") == weights


def test_finished_run_goes_on_when_given_more_steps(tmp_path):
    train(tiny_config(tmp_path / "run", max_steps=10))
    assert train(tiny_config(tmp_path / "run", max_steps=15)).step == 15
    assert read_log(tmp_path / "run" / "log.jsonl")[-1]["step"] == 15


def wait_for_step(folder: Path, step: int, process, *, seconds: float = 60) -> None:
    """Return once a checkpoint of at least ``step`` is whole."""
    end = time.monotonic() + seconds
    while not any(int(p.name[5:]) >= step for p in list_checkpoints(folder)):
        assert process.poll() is None, f"the run ended before step {step}: {process.communicate()}"
        assert time.monotonic() < end, f"the run has not reached step {step}"
        time.sleep(0.001)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_says_one_line_and_exits_130(tmp_path, number):
    data = write_images(tmp_path / "images")
    options = tiny_options(tmp_path / "run", data=data, max_steps=5000, checkpoint_every=10, eval_every=50)
    process = start(["train", *options])
    wait_for_step(tmp_path / "run", 20, process)
    process.send_signal(number)
    status, out, err = finish(process)
    assert status == 130
    assert len(out.splitlines()) == 1
    assert "the same command goes on" in out
    assert err == ""

    step = int(list_checkpoints(tmp_path / "run")[-1].name[5:])
    assert f"step {step}," in out
    assert cli.main(["train", *options, "--max-steps", str(step + 5)]) == 0
    assert read_log(tmp_path / "run" / "log.jsonl")[-1]["step"] == step + 5


def half_written(folder: Path) -> list[Path]:
    return list((folder / "checkpoints").glob(".step-*.tmp"))


KILLED: dict[str, tuple[int, dict[str, Any]]] = {
    "proposals": (4, {"max_steps": 70}),
    "latent": (3, {"max_steps": 60, "environment": "latent", "latent_size": 3}),
    "stages": (3, {"max_steps": 40, "environment": "code:1+bridge:2", "code_size": 4, "network": "unet", "patch": 2}),
}
"""Ten kills: how many of a run of each family, and its settings. (benchmarks/killed.py kills more of more.)"""


@pytest.mark.parametrize("family", KILLED)
def test_run_killed_ten_times_is_the_run_never_killed(tmp_path, family):
    """Half of the kills wait for a checkpoint to be half written, the others for a random moment."""
    kills, changes = KILLED[family]
    settings = {
        "data": str(write_images(tmp_path / "images")), "checkpoint_every": 3, "eval_every": 8, "log_every": 4,
        "picture_every": 25, **changes,
    }  # fmt: skip
    steps = settings["max_steps"]
    whole = train(tiny_config(tmp_path / "whole", **settings)).folder
    folder = tmp_path / "killed"
    moments = random.Random(0)
    cut_short = 0
    for kill in range(kills):
        process = start(["train", *tiny_options(folder, **settings)])
        wait_for_step(folder, steps * (kill + 1) // (kills + 2) - moments.randrange(6), process)
        if kill % 2:
            time.sleep(moments.uniform(0, 0.04))
        else:
            while not half_written(folder) and process.poll() is None:
                pass
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "the run had ended before it was killed"
        for checkpoint in list_checkpoints(folder):
            assert len(list(checkpoint.iterdir())) == 4
        assert int(list_checkpoints(folder)[-1].name[5:]) < steps
        cut_short += bool(half_written(folder))
    assert cut_short > 0

    status, _, err = finish(start(["train", *tiny_options(folder, **settings)]))
    assert (status, err) == (0, "")
    assert different(whole, folder) == []
    assert timeless_log(whole) == timeless_log(folder)
    assert list(folder.rglob(".*")) == []


def test_what_a_killed_run_left_half_written_is_removed_or_put_back(tmp_path):
    config = tiny_config(tmp_path / "run", max_steps=4, checkpoint_every=2, picture_every=2)
    folder = train(config).folder
    before, best = digest(folder), digest(folder / "best")
    (folder / "pictures" / ".samples-00000002.png.abcdefgh.tmp").write_bytes(b"half")
    (folder / ".best.abcdefgh.tmp").mkdir()
    (folder / ".best.abcdefgh.tmp" / "model.safetensors").write_bytes(b"half")
    (folder / "best").rename(folder / ".best.old")  # killed between the two renames
    (folder / "pictures" / ".mine").write_text("of somebody else")
    train(config)
    (folder / "pictures" / ".mine").unlink()
    assert digest(folder).keys() == before.keys()
    assert digest(folder / "best") == best


def test_a_checkpoint_that_is_half_removed_is_none(tmp_path, monkeypatch):
    folder = train(tiny_config(tmp_path / "run", max_steps=4, checkpoint_every=2)).folder
    first = list_checkpoints(folder)[0]
    # One file is gone, and then the process.
    monkeypatch.setattr(storage.shutil, "rmtree", lambda path, **_: [f.unlink() for f in [*Path(path).glob("*")][:1]])
    storage.remove_folder(first)
    assert first not in list_checkpoints(folder)


def test_a_signal_at_the_end_loses_nothing(tmp_path, monkeypatch):
    """Measuring and saving take seconds, in which a first Ctrl-C must not undo what was learned since the last checkpoint."""
    measure = Trainer._validate

    def stopped(trainer: Trainer) -> None:
        signal.raise_signal(signal.SIGINT)
        measure(trainer)

    monkeypatch.setattr(Trainer, "_validate", stopped)
    outcome = train(tiny_config(tmp_path / "run", max_steps=None, max_seconds=0.5, eval_every=10**6))
    assert not outcome.interrupted
    assert (outcome.folder / "last" / "model.safetensors").exists()
    assert list_checkpoints(outcome.folder)[-1].name == f"step-{outcome.step:08d}"


def tensor_changed(name: str, change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def apply(checkpoint: Path) -> None:
        values = load_file(checkpoint / name)
        change(values)
        save_file(values, checkpoint / name)

    return apply


def progress_changed(**changes: Any) -> Callable[[Path], None]:
    return lambda checkpoint: edit_json(checkpoint / "progress.json", **changes)


BIAS = "s_agent.bias"
SPOILT: dict[str, Callable[[Path], None]] = {
    "window of words": progress_changed(window="mean"),
    "window of other rows": progress_changed(window=[[1.0], [1.0, 2.0]]),
    "window of another model": progress_changed(window=[[1.0]]),
    "another step": progress_changed(step=4),
    "seconds below none": progress_changed(seconds=-1.0),
    "held-out images of none": progress_changed(validation_images=0),
    "bound that is no number": progress_changed(best_bits="low"),
    "counts that are none": progress_changed(counts={"revived": "many"}),
    "optimiser without a moment": tensor_changed("optimizer.safetensors", lambda t: t.pop(f"{BIAS}/exp_avg_sq")),
    "optimiser of another shape": tensor_changed("optimizer.safetensors", lambda t: t.update({f"{BIAS}/exp_avg": torch.zeros(3)})),
    "optimiser of whole numbers": tensor_changed("optimizer.safetensors", lambda t: t.update({f"{BIAS}/exp_avg": t[f"{BIAS}/exp_avg"].long()})),
    "optimiser of another model": tensor_changed("optimizer.safetensors", lambda t: t.update({"other/step": torch.tensor(1.0)})),
    "weights of another type": tensor_changed("raw.safetensors", lambda t: t.update({BIAS: t[BIAS].double()})),
}  # fmt: skip


@pytest.mark.parametrize("what", SPOILT)
def test_a_checkpoint_that_says_what_cannot_be_is_refused_in_a_line(tmp_path, capsys, what):
    """Each was once a traceback, or taken; benchmarks/fuzz.py found them."""
    options = tiny_options(tmp_path / "run", max_steps=3, log_every=2)
    assert cli.main(["train", *options]) == 0
    SPOILT[what](list_checkpoints(tmp_path / "run")[-1])
    capsys.readouterr()
    assert cli.main(["train", *options, "--max-steps", "5"]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "does not fit this model" in error or "is damaged" in error


def spoil(file: Path, name: str) -> None:
    """Put one NaN into a tensor of a file."""
    values = load_file(file)
    values[name].view(-1)[0] = torch.nan
    save_file(values, file)


def test_nan_weights_stop_the_run_by_name_and_leave_older_checkpoints(tmp_path, capsys):
    options = tiny_options(tmp_path / "run", max_steps=10, checkpoint_every=5)
    assert cli.main(["train", *options]) == 0
    older, newest = list_checkpoints(tmp_path / "run")
    spoil(newest / "raw.safetensors", "s_agent.torso.trunk.input.weight")
    before = digest(tmp_path / "run" / "checkpoints")
    capsys.readouterr()

    longer = [*options, "--max-steps", "20"]
    assert cli.main(["train", *longer]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "training stopped at step 10" in error
    assert "is NaN" in error
    assert newest.name in error
    assert digest(tmp_path / "run" / "checkpoints") == before

    shutil.rmtree(newest)
    assert older.exists()
    assert cli.main(["train", *longer]) == 0


def test_absurd_learning_rate_stops_the_run_before_it_saves_what_is_not_finite(tmp_path, capsys):
    options = tiny_options(tmp_path / "run", learning_rate=1e30, checkpoint_every=1, keep=50, eval_every=100)
    assert cli.main(["train", *options]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "NaN" in error or "infinite" in error or "not finite" in error
    kept = list_checkpoints(tmp_path / "run")
    assert kept
    for checkpoint in kept:
        assert json.loads((checkpoint / "progress.json").read_text())["step"] > 0
        for tensor in load_file(checkpoint / "raw.safetensors").values():
            assert torch.isfinite(tensor).all()


def test_weights_spoilt_by_the_last_update_are_never_saved(tmp_path, capsys):
    # The loss and its gradient are finite; the weights are infinite after they were multiplied by 1 - 1e42.
    options = tiny_options(tmp_path / "run", learning_rate=1e12, weight_decay=1e30, checkpoint_every=1, eval_every=100)
    assert cli.main(["train", *options]) == 2
    error = capsys.readouterr().err
    assert "training stopped at step 1: s_agent." in error
    assert "no checkpoint had been written" in error
    assert list_checkpoints(tmp_path / "run") == []


def test_bound_that_is_not_finite_never_becomes_the_best(tmp_path, capsys):
    options = tiny_options(tmp_path / "run", learning_rate=1e30, eval_every=1)
    assert cli.main(["train", *options]) == 2
    assert "held-out bound" in capsys.readouterr().err
    assert not (tmp_path / "run" / "best").exists()
