"""The family that docs/guide.md shows is a full model: nothing of the package is touched to add it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import different, digest, environment, stop_in_step, tensors, timeless_log

import goalgen
from goalgen import cli, families
from goalgen.training.log import read_log

GUIDE = Path(__file__).parents[1] / "docs" / "guide.md"
SOURCE = Path(goalgen.__file__).parent
TINY = {
    "environment": "waves", "limit": 200, "horizon": 4, "width": 32, "depth": 1, "batch_size": 8, "max_steps": 30,
    "log_every": 5, "eval_every": 7, "checkpoint_every": 9, "dropout": 0.1, "quiet": True,
}  # fmt: skip


def source() -> str:
    """The block of the guide that holds the family."""
    blocks = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (block,) = (block for block in blocks if "(Family):" in block)
    return block


@pytest.fixture(scope="module", autouse=True)
def registered(tmp_path_factory):
    """The family as a user's own file; afterwards it is forgotten again."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "waves.py").write_text(source())
    before = digest(SOURCE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setattr(families, "_FAMILIES", families.families())
        import waves

        yield waves
    sys.modules.pop("waves")
    assert {k: v for k, v in digest(SOURCE).items() if k.endswith(".py")} == {k: v for k, v in before.items() if k.endswith(".py")}  # fmt: skip


@pytest.fixture(scope="module")
def run(registered, tmp_path_factory):
    return goalgen.train(goalgen.configure(out=tmp_path_factory.mktemp("waves") / "run", **TINY)).folder


def test_it_is_short():
    assert len(source().splitlines()) <= 120


def test_it_keeps_what_it_promises(run):
    goalgen.check_family(goalgen.load(run).family)


def test_it_learns(tmp_path):
    settings = TINY | {
        "limit": None,
        "max_steps": 300,
        "dropout": 0.0,
        "ema": 0.9,
        "batch_size": 32,
        "learning_rate": 0.01,
    }
    outcome = goalgen.train(goalgen.configure(out=tmp_path / "run", **settings))
    assert read_log(outcome.folder / "log.jsonl")[0]["bits_per_dim"] > 3.0
    assert outcome.best_bits < 2.8


def test_stopped_and_resumed_it_is_the_uninterrupted_run(run, tmp_path, monkeypatch):
    stop_in_step(monkeypatch, 12)
    config = goalgen.configure(out=tmp_path / "halves", **TINY)
    assert goalgen.train(config).interrupted
    again = goalgen.train(config).folder
    assert different(run, again) == []
    assert timeless_log(run) == timeless_log(again)


def test_it_is_saved_loaded_and_bounded(run, tmp_path):
    model = goalgen.load(run)
    again = goalgen.load(model.save(tmp_path / "saved"))
    assert again.config.family == model.config.family
    assert torch.equal(again.sample(3).images, model.sample(3).images)
    assert "waves in 4 steps" in repr(again)
    images = goalgen.load_data(model.config.data).test.images[:20]
    bound, tighter = model.nll_bound(images).total, model.iw_bound(images, k=8)
    assert tighter.mean() < bound.mean()
    assert model.reconstruct(images).shape == images.shape
    assert all(torch.isfinite(t).all() for t in tensors(run).values())


def test_every_command_knows_it(run, tmp_path, capsys):
    assert cli.main(["sample", str(run), "--out", str(tmp_path / "s"), "--num", "3", "--grid", "--trajectory"]) == 0
    assert (tmp_path / "s" / "trajectories.gif").exists()
    assert len(json.loads((tmp_path / "s" / "00002.json").read_text())) == 4 * 16  # every wave of an 8x8 image
    file = tmp_path / "numbers.json"
    options = ["--json", str(file), "--num-samples", "20", "--iw-images", "9", "--features", "pixel-pca"]
    assert cli.main(["evaluate", str(run), *options]) == 0
    assert "wave height by step: " in capsys.readouterr().out
    assert len(json.loads(file.read_text())["wave_height_per_step"]) == 4
    assert cli.main(["plot", str(run), "--out", str(tmp_path / "plots")]) == 0
    assert {p.name for p in (tmp_path / "plots").iterdir()} >= {"curves.png", "kl_by_step.png", "trajectories.png"}


def test_its_settings_are_options(registered, tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    text = capsys.readouterr().out
    assert "--wave-noise" in text
    assert "Standard deviation of the GC-agent's waves" in text
    assert cli.main(["train", "--out", str(tmp_path / "run"), "--environment", "latent", "--wave-noise", "0.5"]) == 2
    assert "--wave-noise is for --environment waves, not latent" in capsys.readouterr().err
    assert cli.main(["train", "--out", str(tmp_path / "run"), "--environment", "waves", "--wave-noise", "0"]) == 2
    assert "--wave-noise must be above 0" in capsys.readouterr().err
    assert cli.main(["train", "--out", str(tmp_path / "run"), "--gc-agent", "analyst", "--num-proposals", "3"]) == 2
    assert "--num-proposals is for --environment proposals, not waves" in capsys.readouterr().err


def test_a_model_of_a_family_that_is_not_there_says_so(run):
    """In a process that has not imported it."""
    code = f"from goalgen import cli; raise SystemExit(cli.main(['sample', {str(run)!r}]))"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no environment is called 'waves'; there are: auto, latent, proposals, bridge" in done.stderr


def test_a_family_that_looks_at_numbers_while_it_is_built_can_be_loaded(registered, tmp_path):
    """Saved models are compared with the header of their weights without numbers; here that cannot be."""

    class Looking(registered.Waves):
        name = "looking"

        def __init__(self, plan):
            assert torch.ones(3).sum().item() == 3
            super().__init__(plan)

    goalgen.register(Looking)
    config = goalgen.configure(out=tmp_path / "run", **TINY | {"environment": "looking", "max_steps": 2})
    model = goalgen.load(goalgen.train(config).folder)
    saved = model.save(tmp_path / "saved")
    assert torch.equal(goalgen.load(saved).sample(2).images, model.sample(2).images)
    values = json.loads((saved / "config.json").read_text())
    values["model"]["depth"] = 10**6
    (saved / "config.json").write_text(json.dumps(values))
    with pytest.raises(goalgen.GoalgenError, match="which has more"):
        goalgen.load(saved)
