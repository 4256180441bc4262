"""Training runs: what they keep, the settings that change them, and several processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from runs import environment, finish, tensors, timeless_log, tiny_config, tiny_options, write_images
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from goalgen import cli
from goalgen.agents import GCAgent
from goalgen.families import make
from goalgen.families.proposals import Proposals
from goalgen.model import load
from goalgen.training import train
from goalgen.training.checkpoints import list_checkpoints
from goalgen.training.log import read_log


def log(folder: Path) -> list[dict]:
    return read_log(folder / "log.jsonl")


def final(folder: Path) -> dict:
    """The last record of a training step."""
    return [r for r in log(folder) if "bits_per_dim" in r][-1]


# What a run keeps


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    folder = train(tiny_config(tmp_path / "run", max_steps=22, checkpoint_every=4, keep=3)).folder
    assert [p.name for p in list_checkpoints(folder)] == ["step-00000016", "step-00000020", "step-00000022"]


def test_best_model_is_the_one_with_the_lowest_held_out_bound_in_the_log(tmp_path):
    # Two images are soon learned by heart, so that the best is not the last.
    settings = {"limit": 2, "max_steps": 40, "eval_every": 4, "learning_rate": 0.1, "ema": 0.0}
    folder = train(tiny_config(tmp_path / "run", **settings)).folder
    measured = {r["step"]: r["validation_bits_per_dim"] for r in log(folder) if "validation_bits_per_dim" in r}
    best = min(measured, key=measured.__getitem__)
    facts = json.loads((folder / "best" / "config.json").read_text())["facts"]
    assert best != 40
    assert (facts["step"], facts["validation_bits_per_dim"]) == (best, measured[best])


def test_best_model_holds_the_weights_that_were_measured(tmp_path):
    from goalgen.data import load_data
    from goalgen.training.validation import validation_bound

    folder = train(tiny_config(tmp_path / "run", max_steps=12, eval_every=5)).folder
    model = load(folder)
    nats = validation_bound(model.family, load_data(model.config.data).validation, model.start(), model.config.seed)
    assert float(model.bits_per_dim(nats)) == pytest.approx(model.facts["validation_bits_per_dim"], rel=1e-6)


def test_raw_and_averaged_weights_are_both_kept_and_named(tmp_path):
    folder = train(tiny_config(tmp_path / "run")).folder
    for place, raw, ema in (
        (folder / "last", "model.raw", "model"),
        (folder / "best", "model.raw", "model"),
        (list_checkpoints(folder)[-1], "raw", "ema"),
    ):
        values = {}
        for kind, name in (("raw", raw), ("ema", ema)):
            with safe_open(place / f"{name}.safetensors", framework="pt") as file:
                assert file.metadata()["weights"] == kind
                values[kind] = file.get_tensor("s_agent.weight")
        assert not torch.equal(values["raw"], values["ema"])


def test_log_adds_up(tmp_path):
    for record in [r for r in log(train(tiny_config(tmp_path / "run")).folder) if "bits_per_dim" in r]:
        steps = [record[f"kl_nats_{h}"] for h in range(3)]
        assert sum(steps) == pytest.approx(record["kl_nats"], rel=1e-6)
        assert record["reconstruction_nats"] + record["kl_nats"] == pytest.approx(record["nll_bound_nats"], rel=1e-6)
        assert record["nll_bound_nats"] / (64 * 0.6931471805599453) == pytest.approx(record["bits_per_dim"], rel=1e-6)


def test_training_lowers_the_bound(tmp_path):
    folder = train(tiny_config(tmp_path / "run", max_steps=120, log_every=10, learning_rate=1e-2)).folder
    records = [r["bits_per_dim"] for r in log(folder) if "bits_per_dim" in r]
    assert records[-1] < records[0] - 0.3


def test_pictures_of_the_end_are_drawn(tmp_path):
    folder = train(tiny_config(tmp_path / "run", max_steps=3)).folder / "pictures"
    # 64 images of 8x8 in 8 columns, one pixel apart, seven times as large.
    with Image.open(folder / "samples-00000003.png") as picture:
        assert picture.size == ((8 * 9 + 1) * 7,) * 2
    with Image.open(folder / "trajectories.gif") as film:
        assert film.n_frames == 4


def test_tensorboard_events_hold_the_bound(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = train(tiny_config(tmp_path / "run", tensorboard=True)).folder
    events = EventAccumulator(str(next(folder.rglob("events.out.tfevents*")).parent)).Reload()
    scalar = events.Scalars("bits_per_dim")[-1]
    assert scalar.step == 20
    assert scalar.value == pytest.approx(final(folder)["bits_per_dim"], rel=1e-6)


def test_nothing_is_drawn_off_a_terminal(tmp_path, capfd):
    train(tiny_config(tmp_path / "run", quiet=False))
    assert capfd.readouterr() == ("", "")


def test_time_limit_ends_a_run(tmp_path):
    outcome = train(tiny_config(tmp_path / "run", max_steps=None, max_seconds=0.3))
    assert not outcome.interrupted
    assert outcome.seconds >= 0.3
    assert log(outcome.folder)[-1]["step"] == outcome.step
    assert log(outcome.folder)[-1]["validation_bits_per_dim"] >= outcome.best_bits
    assert (outcome.folder / "last" / "model.safetensors").exists()


# Settings


@pytest.mark.parametrize(
    "settings",
    [
        {"chain_dropout": 0.3},
        {"augment": True},
        {"grid": 2},
        {"backprop": "full"},
        {"network": "unet", "patch": 2},
        {"network": "transformer", "patch": 4, "grid": 2},
        {"horizon": 1},
        {"horizon": 1, "gc_agent": "value"},
        {"horizon": 1, "gc_agent": "greedy"},
        {"gc_agent": "value"},
        {"gc_agent": "value", "grid": 2},
        {"gc_agent": "greedy"},
        {"dropout": 0.5},
        {"precision": "bf16"},
        {"decay": "cosine"},
        {"decay": "none", "weight_decay": 0.0},
        {"depth": 0},
        {"channels": 3},
    ],
    ids=str,
)
def test_setting_trains_and_changes_what_is_learned(tmp_path, plain_run, settings):
    folder = train(tiny_config(tmp_path / "run", max_steps=4, log_every=1, **settings)).folder
    assert all(torch.isfinite(t).all() for t in tensors(folder).values())
    assert [r["bits_per_dim"] for r in log(folder)[:4]] != [r["bits_per_dim"] for r in log(plain_run)[:4]]
    assert load(folder).sample(2).images.shape[-2:] == (8, 8)


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory) -> Path:
    return train(tiny_config(tmp_path_factory.mktemp("plain") / "run", max_steps=4, log_every=1)).folder


def test_binarised_digits_are_black_and_white_under_a_bernoulli(tmp_path):
    model = load(train(tiny_config(tmp_path / "run", binarize=True, max_steps=4)).folder)
    sampled = model.sample(8)
    assert model.levels == 2
    canvas = torch.linspace(-1.5, 1.5, 64).view(1, 1, 8, 8)
    levels = [model.family.likelihood.log_prob_map(torch.full_like(canvas, level), canvas) for level in (-1.0, 1.0)]
    torch.testing.assert_close(torch.stack(levels).exp().sum(0), torch.ones_like(canvas))
    assert set(sampled.levels.unique().tolist()) <= {0, 1}
    assert set(sampled.images.unique().tolist()) <= {0, 255}


def test_learned_step_sizes_move_each_by_itself(tmp_path):
    folder = train(tiny_config(tmp_path / "run", learn_step_size=True, step_size=0.3)).folder
    alpha = load(folder, weights="raw").family.environment.log_alpha.exp()
    assert (alpha - 0.3).abs().min() > 1e-4
    assert len(alpha.unique()) == 3


def test_fixed_step_sizes_stay(tmp_path):
    alpha = load(train(tiny_config(tmp_path / "run", max_steps=4)).folder).family.environment.log_alpha.exp()
    torch.testing.assert_close(alpha, torch.full((3,), 0.3))


def image_file(folder: Path) -> str:
    return str(write_images(folder / "start", 1) / "000.png")


def image_folder(folder: Path) -> str:
    return str(write_images(folder / "start", 3))


@pytest.mark.parametrize(
    "start",
    [
        "mean", "constant:0.2", "noise:0.5", "grey", "blur:1", "downsample:2", "mask:0.3", "edges", image_file,
        image_folder,
    ],
)  # fmt: skip
def test_start_trains_and_samples(tmp_path, start):
    spec = start if isinstance(start, str) else start(tmp_path)
    outcome = train(tiny_config(tmp_path / "run", start=spec, max_steps=3, channels=3 if spec == "grey" else None))
    model = load(outcome.folder)
    goals = torch.zeros(2, *model.shape, dtype=torch.uint8) if model.start().needs_goal else None
    sampled = model.sample(2, goals=goals)
    assert outcome.step == 3
    assert sampled.start == spec


def test_starts_in_a_folder_are_paired_with_goals_of_the_same_name(tmp_path):
    goals, starts = write_images(tmp_path / "goals", 8), write_images(tmp_path / "starts", 8)
    pairs = [train(tiny_config(tmp_path / name, data=str(goals), start=str(starts), seed=3, max_steps=3)).folder
             for name in ("one", "two")]  # fmt: skip
    (starts / "000.png").unlink()  # without its partners in full the folder is drawn from
    with pytest.warns(UserWarning, match="only some goals have a partner"):
        drawn = train(tiny_config(tmp_path / "three", data=str(goals), start=str(starts), seed=3, max_steps=3)).folder
    assert timeless_log(pairs[0]) == timeless_log(pairs[1])
    assert timeless_log(pairs[0]) != timeless_log(drawn)


class PriorGCAgent(GCAgent):
    """Ignores the goal and acts as the S-agent would: what a fourth GC-agent takes, in two lines."""

    def policy(self, seen, goal, decision):
        return decision.policy


def test_fourth_gc_agent_takes_one_class_and_one_entry(tmp_path, monkeypatch):
    monkeypatch.setitem(Proposals.gc_agents, "prior", PriorGCAgent)
    folder = train(tiny_config(tmp_path / "run", gc_agent="prior")).folder
    assert [final(folder)[f"kl_nats_{h}"] for h in range(3)] == [0, 0, 0]
    assert load(folder).nll_bound(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)).kl.abs().max() == 0


# Revival in a run


def test_proposal_made_dead_is_revived(tmp_path):
    # A proposal far out of range is not chosen by either agent; its share falls by 1 % a step.
    settings = {"revive_every": 80, "revive_below": 0.5, "log_every": 5}
    folder = train(tiny_config(tmp_path / "run", max_steps=5, **settings)).folder
    checkpoint = list_checkpoints(folder)[-1]
    for file in (checkpoint / "raw.safetensors", checkpoint / "ema.safetensors"):
        values = load_file(file)
        values["s_agent.logit_bias"][0] = -50
        values["s_agent.bias"][:, 0] = 1000
        save_file(values, file)

    train(tiny_config(tmp_path / "run", max_steps=79, **settings))
    before = load_file(list_checkpoints(folder)[-1] / "raw.safetensors")
    assert before["s_agent.bias"][:, 0].min() > 900
    assert before["usage"][..., 0].max() < 0.5 / 4

    train(tiny_config(tmp_path / "run", max_steps=95, **settings))
    assert final(folder)["revived"] >= 1
    for name in ("model", "model.raw"):
        after = load_file(folder / "last" / f"{name}.safetensors")
        assert after["s_agent.bias"][:, 0].abs().max() < 5
        assert after["s_agent.logit_bias"][0].min() > -5
    assert after["usage"][..., 0].mean() > 0.05


# Several processes


PROGRAM = """
import sys
from accelerate import PartialState
from goalgen.cli import main
status = main(sys.argv[1:])
print("one of", PartialState().num_processes)
sys.exit(status)
"""
"""goalgen, and proof that its processes knew of each other."""


def launch(folder: Path, arguments: list[str], **extra: str) -> tuple[int, str, str]:
    """Run goalgen in two processes. (`accelerate launch --cpu` would start one, whatever --num_processes says.)"""
    (folder / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    command += [str(folder / "program.py"), *arguments]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": folder}
    return finish(subprocess.Popen(command, env=environment(**extra), **streams))


@pytest.mark.parametrize(
    "kind",
    [
        {
            "gc_agent": "greedy"
        },  # the posterior agent's baseline is fitted by each process to its own rows; this one has none
        {
            "environment": "code:1+bridge:2",
            "code_size": 3,
            "code_modes": 4,
        },  # whose kept codes are those of all processes
        {
            "environment": "strokes",
            "network": "unet",
            "batch_size": 16,
            "stroke_candidates": 9,
            "stroke_states": 12,
            "max_steps": 1,
        },  # whose batch is several updates, and what comes next depends on choices that rounding may turn
    ],
    ids=["proposals", "stages", "strokes"],
)
def test_two_processes_learn_what_one_learns(tmp_path, kind):
    settings = {"max_steps": 20, "log_every": 7, "eval_every": 6, "checkpoint_every": 9, **kind}
    one, two = train(tiny_config(tmp_path / "one", **settings)).folder, tmp_path / "two"
    status, out, err = launch(tmp_path, ["train", *tiny_options(two, **settings)], ACCELERATE_USE_CPU="true")
    assert status == 0, err
    assert out.count("one of 2") == 2
    assert out.count("done:") == 1
    assert "goalgen: warning" not in err

    mine, theirs = tensors(one), tensors(two)
    assert mine.keys() == theirs.keys()
    # What all keys of a softmax have in common has no gradient but rounding, of which AdamW makes whole steps.
    ignored = ("maps.bias", "qkv.bias") if "stroke_states" in kind else ()
    weights = [name for name in mine if "optimizer" not in name and not name.endswith(ignored)]
    difference = torch.cat([(theirs[name] - mine[name]).abs().flatten() for name in weights])
    # A step of AdamW is as long for a gradient that is all rounding as for any other: a weight may part by a fraction
    # of a step (3e-3), all together by no more than rounding.
    assert difference.max() < 1e-3
    assert difference.mean() < 2e-6
    records = timeless_log(one), timeless_log(two)
    assert len(records[0]) == len(records[1])
    for a, b in zip(*records, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6)


def test_processes_that_do_not_see_each_other_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")  # what torchrun sets
    assert cli.main(["train", *tiny_options(tmp_path / "run")]) == 2
    assert "2 processes were started and do not see each other" in capsys.readouterr().err


def test_batch_that_two_processes_cannot_share_is_refused():
    from goalgen.training.batches import Batches

    config = tiny_config(Path("unused"), batch_size=5)
    family = make(config, (1, 8, 8), 17)
    with pytest.raises(Exception, match="--batch-size 5 cannot be shared by 2 processes"):
        Batches(config, None, False, None, family, rank=0, world=2)  # type: ignore[arg-type]


def test_runs_of_several_precisions_follow_each_other_in_one_python(tmp_path):
    for i, precision in enumerate(("no", "bf16", "no")):
        train(tiny_config(tmp_path / str(i), precision=precision, max_steps=3))
    assert timeless_log(tmp_path / "0") == timeless_log(tmp_path / "2")
    assert timeless_log(tmp_path / "0") != timeless_log(tmp_path / "1")
