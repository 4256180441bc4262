"""Several processes, as `accelerate launch` starts them: the same batches, samples and numbers, and what is left when one dies.

All is done by one launch of two processes, which run one command after the other; the last ends with the death of one.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import digest, environment, tensors, tiny_config, tiny_options

from goalgen import cli, processes
from goalgen.errors import GoalgenError
from goalgen.storage import locked
from goalgen.training import train
from goalgen.training.batches import Batches
from goalgen.training.checkpoints import list_checkpoints
from goalgen.training.surviving import surviving

PROGRAM = """
import json, os, signal, sys, time
from accelerate import Accelerator, PartialState
from goalgen import cli, processes
from goalgen.model import Model
from goalgen.training.loop import Trainer
from test_processes import record_batches

folder, rank = sys.argv[1], os.environ["RANK"]
Accelerator.end_training = lambda self: None  # the next command goes on with the same processes
processes.leave = lambda: None
record_batches(f"{folder}/batches-{rank}.jsonl")
counts = {"sample": 0, "nll_bound": 0, "iw_bound": 0}

def counted(name):
    method = getattr(Model, name)
    def counting(*arguments, **settings):
        counts[name] += 1
        return method(*arguments, **settings)
    setattr(Model, name, counting)

for name in counts:
    counted(name)
step = Trainer._step

def dying(trainer):
    if trainer.config.out.name == "dying" and rank == "1" and trainer.progress.step == 7:
        with open(f"{folder}/counts-1.json", "w") as file:
            json.dump(counts, file)
        os.kill(os.getpid(), signal.SIGKILL)
    return step(trainer)

Trainer._step = dying
for command in json.load(open(f"{folder}/commands.json")):
    status = cli.main(command)
    sys.stdout.flush()  # so that the line is a write of its own, which those of the other process do not cut in two
    print("status", rank, PartialState().num_processes, command[0], status, flush=True)
with open(f"{folder}/counts-{rank}.json", "w") as file:
    json.dump(counts, file)
sys.exit(status)
"""

SETTINGS: dict[str, Any] = {
    "gc_agent": "greedy", "decay": "none", "augment": True, "device": "cpu", "checkpoint_every": 5, "start": "noise",
    "eval_every": 5, "optimizer": "muon",
}  # fmt: skip
SAMPLE = ["--num", "150", "--grid", "--trajectory"]
EVALUATE = ["--features", "pixel-pca", "--num-test", "140", "--iw-images", "70", "--iw-k", "2"]


def record_batches(path: str | Path) -> None:
    """Write a hash of every row of every batch that is made from now on."""
    make = Batches.make

    def recording(batches: Batches, step: int) -> Any:
        batch = make(batches, step)
        rows = [
            hashlib.sha256(
                b"".join(t.contiguous().numpy().tobytes() for t in (
                    batch.task.goal[i], batch.task.start[i], *(drawn[:, i] for drawn in batch.draws.values())
                ))
            ).hexdigest()[:16]
            for i in range(len(batch.task))
        ]  # fmt: skip
        with open(path, "a") as file:
            file.write(json.dumps([batches.config.out.name, step, rows]) + "\n")
        return batch

    Batches.make = recording  # type: ignore[method-assign]


def batches(path: Path, run: str) -> dict[int, list[str]]:
    lines = map(json.loads, path.read_text().splitlines())
    return {step: rows for name, step, rows in lines if name == run}


@dataclass
class Launched:
    folder: Path
    status: int
    out: str
    err: str
    seconds: float
    """that the launch took after the death of a process"""


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """What one process and two have done by turns."""
    folder = tmp_path_factory.mktemp("processes")
    patch = pytest.MonkeyPatch()
    patch.setattr(Batches, "make", Batches.make)  # put back when all is done
    patch.setenv("GOALGEN_CACHE", str(folder / "cache"))
    record_batches(folder / "batches.jsonl")

    def alone(run: str, steps: int) -> None:
        train(tiny_config(folder / run, max_steps=steps, **SETTINGS))

    def options(run: str, steps: int) -> list[str]:
        return ["train", *tiny_options(folder / run, max_steps=steps, **SETTINGS)]

    alone("one", 16)
    alone("one-then-two", 8)
    run = str(folder / "one")
    (folder / "commands.json").write_text(json.dumps([
        options("two-then-one", 8), options("one-then-two", 16),
        ["sample", run, "--out", str(folder / "samples-two"), *SAMPLE],
        ["evaluate", run, "--json", str(folder / "two.json"), "--quiet", *EVALUATE],
        options("dying", 16),
    ]))  # fmt: skip
    (folder / "program.py").write_text(PROGRAM)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", port,
        str(folder / "program.py"), str(folder),
    ]  # fmt: skip
    paths = os.pathsep.join([environment()["PYTHONPATH"], str(Path(__file__).parent)])
    done = subprocess.run(
        command, env=environment(PYTHONPATH=paths), cwd=folder, capture_output=True, text=True, timeout=240
    )
    ended = time.time()
    died = (folder / "counts-1.json").stat().st_mtime
    alone("two-then-one", 16)
    assert cli.main(["sample", run, "--out", str(folder / "samples-one"), *SAMPLE]) == 0
    assert cli.main(["evaluate", run, "--json", str(folder / "one.json"), "--quiet", *EVALUATE]) == 0
    yield Launched(folder, done.returncode, done.stdout, done.stderr, ended - died)
    patch.undo()


def test_all_commands_ran_in_two_processes(launched):
    for rank in "01":
        for command in ("train", "sample", "evaluate"):
            assert f"status {rank} 2 {command} 0" in launched.out, launched.err
    assert launched.out.count("150 images in") == launched.out.count("bits_per_dim ") == 1  # one of them speaks
    assert launched.out.count("done: step") == 2


@pytest.mark.parametrize("run", ["two-then-one", "one-then-two"])
def test_a_run_goes_on_with_another_number_of_processes_on_the_same_batches(launched, run):
    whole, alone = (batches(launched.folder / "batches.jsonl", name) for name in ("one", run))
    shares = [batches(launched.folder / f"batches-{rank}.jsonl", run) for rank in "01"]
    one, two = (range(8, 16), range(8)) if run == "two-then-one" else (range(8), range(8, 16))
    assert set(alone) == set(one)
    assert set(shares[0]) == set(shares[1]) == set(two)
    for step in range(16):
        assert len(whole[step]) == 4
        assert whole[step] == (alone[step] if step in one else shares[0][step] + shares[1][step])
    # The weights are the same but for the order of sums, which AdamW turns into a fraction of a step (3e-3) here and there.
    mine, theirs = tensors(launched.folder / "one"), tensors(launched.folder / run)
    weights = [name for name in mine if "optimizer" not in name]
    difference = torch.cat([(theirs[name].double() - mine[name].double()).abs().flatten() for name in weights])
    assert difference.max() < 1e-3
    assert difference.mean() < 2e-6


def test_samples_of_two_processes_are_those_of_one_to_the_last_bit(launched):
    one, two = (digest(launched.folder / f"samples-{number}") for number in ("one", "two"))
    assert one == two
    assert len([name for name in one if name[0].isdigit()]) == 150
    counts = json.loads((launched.folder / "counts-1.json").read_text())
    assert (
        counts["sample"] == 1
    )  # the second of the three blocks; the only batch of the evaluation is the first process's


def test_numbers_of_two_processes_are_those_of_one(launched):
    one, two = (json.loads((launched.folder / f"{number}.json").read_text()) for number in ("one", "two"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        expected = pytest.approx(value, rel=1e-6) if isinstance(value, float | list) else value
        assert two[name] == expected, name
    counts = json.loads((launched.folder / "counts-1.json").read_text())
    assert (counts["nll_bound"], counts["iw_bound"]) == (1, 1)  # of three pieces, and of two


def test_a_process_that_dies_ends_the_run_with_one_line_and_a_checkpoint(launched):
    assert launched.status != 0
    own = [line for line in launched.err.splitlines() if line.startswith("goalgen:")]
    assert own == [
        "goalgen: error: another process of the run died; step-00000007 is kept, and the same command goes on from it"
    ]
    assert "status 0 2 train 2" in launched.out
    assert launched.seconds < 60
    assert [p.name for p in list_checkpoints(launched.folder / "dying")] == ["step-00000005", "step-00000007"]
    # ... from which it goes on, as if nothing had happened.
    train(tiny_config(launched.folder / "dying", max_steps=16, **SETTINGS))
    mine, theirs = tensors(launched.folder / "one"), tensors(launched.folder / "dying")
    weights = [name for name in mine if "optimizer" not in name]
    assert max((theirs[name].double() - mine[name].double()).abs().max() for name in weights) < 1e-3


# What is left, without a launch

LOST = RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4242")


@pytest.fixture
def second(monkeypatch):
    """This process is the second of two."""
    monkeypatch.setenv("RANK", "1")
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_where_the_first_process_died_another_keeps_the_checkpoint(tmp_path, second):
    kept = []
    with pytest.raises(GoalgenError, match="another process of the run died; no checkpoint"), surviving(2, tmp_path, lambda: kept.append(0)):  # fmt: skip
        raise LOST
    assert kept


def test_where_the_first_process_lives_the_others_say_nothing(tmp_path, second):
    kept = []
    with (
        locked(tmp_path, "a run"),
        pytest.raises(SystemExit, match="2"),
        surviving(2, tmp_path, lambda: kept.append(0)),
    ):
        raise LOST
    assert not kept


@pytest.mark.parametrize(("count", "error"), [(1, LOST), (2, RuntimeError("out of memory")), (2, ValueError("gloo/"))])
def test_other_errors_are_no_deaths(tmp_path, count, error):
    with pytest.raises(type(error), match=str(error)[:6].replace("[", r"\[")), surviving(count, tmp_path, lambda: None):
        raise error


def test_one_process_shares_with_nobody():
    assert list(processes.shared([3, 1], lambda x: x + 1)) == [4, 2]
    assert processes.agreed("mine") == "mine"
    processes.join("cpu")
    assert not processes.assists()
