"""What commands write: none overwrites what it did not write, and memory does not grow with the number of images."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time

import pytest
import torch
from runs import digest, environment, finish, start, tiny_config, tiny_options, write_images

from goalgen import GoalgenError, cli, load
from goalgen.families import make
from goalgen.outputs import STAGING, OutputFolder
from goalgen.pictures import save_png
from goalgen.saved import save_model
from goalgen.settings import complete, configure
from goalgen.training import train
from goalgen.training.log import read_log


def sample(run, out, *options: str) -> int:
    return cli.main(["sample", str(run), "--out", str(out), *options])


# Samples


def test_samples_never_replace_the_files_of_another(digits_run, tmp_path, capsys):
    images = write_images(tmp_path / "images", 3)
    (images / "000.png").rename(images / "00000.png")
    before = digest(images)
    for options in ((), ("--force",)):
        assert sample(digits_run, images, "--num", "2", *options) == 2
        error = capsys.readouterr().err
        assert "is not empty and holds no samples of goalgen's" in error
        assert len(error.splitlines()) == 1
        assert digest(images) == before


def test_samples_of_another_model_are_replaced_whole_where_that_is_asked_for(digits_run, tmp_path, capsys):
    out = tmp_path / "s"
    assert sample(digits_run, out, "--num", "5", "--grid", "--trajectory") == 0
    (out / "mine.txt").write_text("keep me")
    before = digest(out)
    assert sample(digits_run, out, "--num", "2", "--seed", "1") == 2
    assert "holds samples already; add --force to replace them" in capsys.readouterr().err
    assert digest(out) == before
    assert sample(digits_run, out, "--num", "2", "--seed", "1", "--force") == 0
    assert digest(out).keys() == {"00000.png", "00001.png", "samples.json", "mine.txt"}
    assert (out / "mine.txt").read_text() == "keep me"
    about = json.loads((out / "samples.json").read_text())
    assert (about["seed"], about["complete"], about["files"]) == (1, True, ["00000.png", "00001.png"])
    alone = tmp_path / "alone"
    sample(digits_run, alone, "--num", "2", "--seed", "1")
    assert digest(alone)["00001.png"] == digest(out)["00001.png"]


def test_a_file_put_among_samples_is_not_replaced_by_more_of_them(digits_run, tmp_path, capsys):
    out = tmp_path / "s"
    assert sample(digits_run, out, "--num", "2") == 0
    (out / "00002.png").write_bytes(b"a drawing of mine")
    before = digest(out)
    assert sample(digits_run, out, "--num", "3", "--force") == 2
    assert "00002.png is there and goalgen did not write it" in capsys.readouterr().err
    assert digest(out) == before


@pytest.mark.parametrize("files", [None, "00000.png", ["../notes.txt"], [3]])
def test_a_record_that_names_no_files_of_the_folder_is_not_believed(digits_run, tmp_path, files):
    (tmp_path / "notes.txt").write_text("keep me")
    out = tmp_path / "s"
    out.mkdir()
    (out / "samples.json").write_text(json.dumps({} if files is None else {"files": files}))
    before = digest(tmp_path)
    assert sample(digits_run, out, "--num", "2", "--force") == 2
    assert digest(tmp_path) == before


def test_replacing_that_fails_half_way_leaves_the_earlier_files_whole(digits_run, tmp_path, monkeypatch):
    out = tmp_path / "s"
    assert sample(digits_run, out, "--num", "70") == 0
    before = digest(out)

    def failing(picture, path):
        if path.name == "00066.png":
            raise GoalgenError(f"{path} cannot be written: No space left on device")
        save_png(picture, path)

    monkeypatch.setattr("goalgen.sampling.save_png", failing)
    assert sample(digits_run, out, "--num", "70", "--seed", "1", "--force") == 2
    assert digest(out) == before
    assert not [p for p in out.iterdir() if p.name.startswith(STAGING)]
    fresh = tmp_path / "fresh"  # what was cut off is known, and can be replaced
    assert sample(digits_run, fresh, "--num", "70") == 2
    assert json.loads((fresh / "samples.json").read_text())["complete"] is False
    monkeypatch.undo()
    assert sample(digits_run, fresh, "--num", "3", "--force") == 0
    assert digest(fresh).keys() == {"00000.png", "00001.png", "00002.png", "samples.json"}


def test_memory_does_not_grow_with_the_number_of_samples(tmp_path):
    """Images of 3x64x64 in 10 steps: all canvases of 320 more of them are 170 MB."""
    torch.manual_seed(0)
    config = configure(environment="latent", latent_size=2, horizon=10, width=8, depth=1, head_width=8, network="mlp")
    save_model(tmp_path / "model", complete(config), make(config, (3, 64, 64), 256), None, torch.zeros(3, 64, 64), {})
    code = (
        "import sys, resource\nfrom goalgen import cli\n"
        "for num in ('64', '384'):\n"
        "    assert cli.main(['sample', sys.argv[1], '--out', sys.argv[2] + num, '--num', num]) == 0\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "model"), str(tmp_path / "s")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    unit = 1 if sys.platform == "darwin" else 1024
    few, many = (int(line) * unit / 2**20 for line in done.stderr.split())
    assert many - few < 60, (few, many)


def test_two_samplings_into_one_folder_do_not_mix(digits_run, tmp_path):
    out = tmp_path / "s"
    both = [start(["sample", str(digits_run), "--out", str(out), "--num", "300", "--seed", s]) for s in "01"]
    ends = [finish(process) for process in both]
    assert sorted(status for status, _, _ in ends) == [0, 2], ends
    (error,) = [err for status, _, err in ends if status]
    assert len(error.splitlines()) == 1
    winner = [status for status, _, _ in ends].index(0)
    assert json.loads((out / "samples.json").read_text())["seed"] == winner
    alone = tmp_path / "alone"
    assert sample(digits_run, alone, "--num", "300", "--seed", str(winner)) == 0
    one, other = digest(out), digest(alone)
    assert {k: v for k, v in one.items() if k != "samples.json"} == {
        k: v for k, v in other.items() if k != "samples.json"
    }


# Numbers, plots, models, runs


def test_numbers_replace_only_earlier_numbers(digits_run, tmp_path, shared_cache, capsys):
    file = tmp_path / "numbers.json"
    command = [
        "evaluate",
        str(digits_run),
        "--json",
        str(file),
        "--num-test",
        "10",
        "--iw-images",
        "1",
        "--features",
        "pixel-pca",
    ]
    for text in ("my notes", '{"mine": 1}', "[1]", "[" * 100_000):
        file.write_text(text)
        for options in ([], ["--force"]):
            assert cli.main([*command, *options]) == 2
            assert "is there and holds no numbers of goalgen's" in capsys.readouterr().err
            assert file.read_text() == text
    file.unlink()
    assert cli.main(command) == 0
    before = file.read_text()
    assert cli.main([*command, "--seed", "1"]) == 2
    assert "add --force" in capsys.readouterr().err
    assert file.read_text() == before
    assert cli.main([*command, "--seed", "1", "--force"]) == 0
    assert file.read_text() != before


def test_plots_replace_only_plots(digits_run, tmp_path, capsys):
    images = write_images(tmp_path / "images", 3)
    save_as = images / "curves.png"
    (images / "000.png").rename(save_as)
    before = digest(images)
    assert cli.main(["plot", str(digits_run), "--out", str(images), "--force"]) == 2
    assert "holds no plots of goalgen's" in capsys.readouterr().err
    assert digest(images) == before
    run = tmp_path / "run"
    shutil.copytree(digits_run, run)
    assert cli.main(["plot", str(run)]) == 0
    assert cli.main(["plot", str(run)]) == 0  # its own place
    out = tmp_path / "plots"
    assert cli.main(["plot", str(run), "--out", str(out)]) == 0
    assert cli.main(["plot", str(run), "--out", str(out)]) == 2
    OutputFolder(out, "plots.json", "plots", force=True)


def test_saving_a_model_never_removes_a_run_or_files_of_others(digits_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(digits_run, run)
    model = load(run)
    other = tmp_path / "other"  # a model of another library
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "bert"}')
    saved = model.save(tmp_path / "saved")
    (saved / "notes.txt").write_text("keep me")
    before = digest(tmp_path)
    for folder in (run, other, saved, other / "config.json"):
        with pytest.raises(GoalgenError, match="holds something else than a saved model"):
            model.save(folder)
    for folder in (run, other):
        with pytest.raises(GoalgenError, match="holds something else than a saved model"):
            model.save_pretrained(folder)
    assert digest(tmp_path) == before
    (saved / "notes.txt").unlink()
    model.save(saved)


def test_demo_again_replaces_its_own(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("GOALGEN_CACHE", str(cache))
    command = ["demo", "--out", str(tmp_path / "demo"), "--max-seconds", "0.5", "--quiet"]
    assert cli.main(command) == 0
    assert cli.main(command) == 0


def test_training_into_a_saved_model_says_what_is_there(digits_run, tmp_path):
    saved = load(digits_run).save(tmp_path / "saved")
    before = digest(saved)
    with pytest.raises(GoalgenError, match="holds a saved model"):
        train(tiny_config(saved))
    assert digest(saved) == before


def test_a_run_that_another_process_writes_is_refused_until_that_is_gone(tmp_path, capsys):
    out = tmp_path / "run"
    process = start(["train", *tiny_options(out, max_steps=10**6, checkpoint_every=5)])
    try:
        while not (out / "checkpoints").is_dir():
            assert process.poll() is None
            time.sleep(0.05)
        for steps in (10**6, 1):
            assert cli.main(["train", *tiny_options(out, max_steps=steps, checkpoint_every=10**6)]) == 2
            error = capsys.readouterr().err
            assert len(error.splitlines()) == 1
            assert f"{out} is in use: another process is writing a run there" in error
        assert cli.main(["train", *tiny_options(out, max_steps=10**6, seed=1)]) == 2
        assert "other settings: --seed" in capsys.readouterr().err
        assert process.poll() is None
    finally:
        process.kill()  # SIGKILL: nothing is tidied up
        process.communicate()
    step = int(max((out / "checkpoints").glob("step-*")).name.partition("-")[2])
    assert cli.main(["train", *tiny_options(out, max_steps=step + 1)]) == 0
    assert f"step {step + 1}," in capsys.readouterr().out


def test_two_runs_begun_at_once_in_one_folder_are_one_run(tmp_path):
    """Two seeds, started together: one run is whole, the other process says what is wrong."""
    out = tmp_path / "run"
    both = [start(["train", *tiny_options(out, max_steps=300, log_every=1, seed=seed)]) for seed in (0, 1)]
    ends = [finish(process) for process in both]
    assert sorted(status for status, _, _ in ends) == [0, 2], ends
    assert json.loads((out / "config.json").read_text())["seed"] == [status for status, _, _ in ends].index(0)
    assert [r["step"] for r in read_log(out / "log.jsonl") if "bits_per_dim" in r] == list(range(1, 301))


def test_a_folder_with_hidden_files_alone_is_free(tmp_path):
    (tmp_path / ".DS_Store").write_text("")
    assert OutputFolder(tmp_path, "samples.json", "samples").check() == set()
