"""The harness measures what is missing and loses nothing; the pages say what the result files say."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import environment

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import bench  # noqa: E402
import comparison  # noqa: E402
import contenders  # noqa: E402
import contest  # noqa: E402
import pages_of_orders  # noqa: E402
import report  # noqa: E402
from contenders import Options  # noqa: E402
from fitting import Stopped, splits_of, train_goalgen  # noqa: E402

from goalgen import DataConfig, load_data  # noqa: E402

# the harness --------------------------------------------------------------------------------------------------------


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """Result files apart, and rows whose measurement is a process of a moment; the list says which were begun. A row of
    seed 13 fails, a row of seed 50 takes long."""
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(bench, "RUNS", tmp_path / "runs")
    rows: list[int] = []

    def start(name, job, options, folder, threads):
        rows.append(job["seed"])
        seed, row = job["seed"], json.dumps({**job, "bits_per_dim": 1.0 + job["seed"]})
        code = f"import pathlib, time; time.sleep({60 if seed == 50 else 0}); {'1 / 0' if seed == 13 else 'pass'}; "
        code += f"pathlib.Path({str(folder / 'row.json')!r}).write_text({row!r})"
        return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)

    monkeypatch.setattr(bench, "start", start)
    return rows


def run(seeds, **how):
    """Of one contender."""
    bench.run("compare", bench.options_of("compare", {"seeds": seeds}), only=["VAE"], **how)


def seeds_there():
    return [row["seed"] for row in report.read("compare_digits")["rows"]]


def test_a_package_that_is_missing_is_named_before_anything_is_measured():
    with pytest.raises(SystemExit, match="no-such-package, which is not installed: pip install"):
        report.machine(["no-such-package"])


def test_rows_that_are_there_are_not_measured_again(begun):
    run((0, 1))
    run((0, 1, 2))
    assert begun == [0, 1, 2]
    assert sorted(seeds_there()) == [0, 1, 2]
    head = report.read("compare_digits")
    assert head["seconds"] == 20
    assert "diffusers" in head["machine"]["versions"]
    run((1,), again=True)
    assert begun == [0, 1, 2, 1]
    assert sorted(seeds_there()) == [0, 1, 2]


def test_a_row_that_fails_takes_no_other_with_it(begun):
    with pytest.raises(SystemExit, match="failed"):
        run((0, 13, 2), at_once=1)
    assert seeds_there() == [0]
    run((0, 2), at_once=1)
    assert begun == [0, 13, 2]


def test_a_run_that_is_cut_off_keeps_what_was_measured(begun):
    with pytest.raises(SystemExit, match="goes on from here"):
        run((0, 50), at_once=1, piece=1.0)
    assert seeds_there() == [0]
    run((0, 1), at_once=1)
    assert begun == [0, 50, 1]


def test_rows_of_another_length_do_not_join_a_file(begun):
    run((0,))
    bench.run("compare", bench.options_of("compare", {"seeds": (1,), "seconds": 5.0}), only=["VAE"])
    assert begun == [0, 1]
    assert seeds_there() == [0]
    assert [row["seed"] for row in report.read("compare_digits_5s")["rows"]] == [1]
    # What is not in a file's name must be the same for all its rows.
    report.write("compare_digits", {**report.read("compare_digits"), "num_test": 9})
    with pytest.raises(SystemExit, match="have num_test 9"):
        run((2,))


def test_trials_refuse_the_seeds_that_are_reported():
    assert bench.options_of("compare", {"trial": True}).seeds == (100, 101)
    assert bench.EXPERIMENTS["compare"].file(bench.options_of("compare", {"trial": True})) == "compare_digits_trial"
    with pytest.raises(SystemExit, match="seed 0"):
        bench.options_of("compare", {"trial": True, "seeds": (100, 0)})
    with pytest.raises(SystemExit, match="seed 100"):
        bench.options_of("compare", {"seeds": (100,)})
    with pytest.raises(SystemExit, match="no trials"):
        bench.options_of("speed", {"trial": True})


def test_trials_see_no_test_image(monkeypatch):
    whole = load_data(DataConfig())
    trial = splits_of(DataConfig(limit=500), Options(data="digits", trial=True, num_test=2000))

    def held(images):
        return {image.numpy().tobytes() for image in images.images}

    assert len(trial.train) == 500
    assert len(trial.test) == 270
    assert held(trial.test) <= held(whole.train)
    everything = torch.cat([trial.train.images, trial.test.images])
    assert len(everything.unique(dim=0)) == len(everything)  # what is measured on is not trained on


def test_the_suite_compares_with_the_run_before(begun, monkeypatch, capsys):
    monkeypatch.setattr(report, "APART", True)  # it writes no page
    monkeypatch.setattr(bench, "EXPERIMENTS", {"compare": bench.EXPERIMENTS["compare"]})
    monkeypatch.setattr(contenders, "ON_DIGITS", {"VAE": contenders.ON_DIGITS["VAE"]})
    run((0, 1))
    bench.suite([("compare", {"data": "digits"})])
    assert begun == [0, 1, 0, 1]
    assert "compare_digits: 1 of 1 means agree with the run before" in capsys.readouterr().out


def test_two_runs_are_compared_by_their_spreads():
    def rows(values):
        return [{"contender": "a", "bits_per_dim": v} for v in values]

    before = bench.spread_of(rows([1.0, 1.2]))
    assert bench.differences(before, bench.spread_of(rows([1.1, 1.25])))[1] == []
    shared, far = bench.differences(before, bench.spread_of(rows([3.0, 3.1])))
    assert shared == 1
    assert far == ["a: bits_per_dim: 1.100 ± 0.141, now 3.050 ± 0.071"]


def test_processes_that_train_together(tmp_path, monkeypatch, capfd):
    """What is said to have been run is what was run, and what comes of it is measured as any other. Nothing is said of how
    gradients lie in memory."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options = Options(data="digits", seconds=3.0, processes=2)
    model, splits, went = train_goalgen(
        tmp_path / "run", options, 0, {"environment": "bridge", "network": "unet", "width": 16, "batch_size": 16}
    )
    assert (went["processes"], model.shape) == (2, splits.train.shape)
    assert went["steps"] > 0
    launched = "accelerate launch --multi_gpu --num_processes 2 -m goalgen train --environment bridge"
    assert went["command"].startswith(launched)
    assert "Grad strides" not in capfd.readouterr().err
    assert "--data digits" in went["command"]
    assert str(tmp_path) not in went["command"]


# the pages ----------------------------------------------------------------------------------------------------------


def test_a_learned_order_wins_by_more_than_the_spread_of_seeds_or_ties():
    def rows(**bits):
        return [
            {"order": order, "horizon": 8, "seed": seed, "bits_per_dim": value, "trained_steps": 90 if order == "learned" else 100,
             "order_kl_nats": 0.25, "order_entropy_nats": 3.5}
            for order, values in bits.items() for seed, value in enumerate(values)
        ]  # fmt: skip

    fixed = {"spread": (2.0, 2.02), "raster": (2.2, 2.21)}
    for learned, word in (((1.9, 1.91), "beats"), ((1.995, 2.0), "ties with"), ((2.1, 2.11), "loses to")):
        text = pages_of_orders.order_verdict(rows(learned=learned, **fixed))
        assert f"**{word}** the best fixed one, spread" in text
        assert ("0.25 nats" in text and "10% fewer steps" in text) == (word == "loses to")
    assert "one seed" in pages_of_orders.order_verdict(rows(learned=(1.9,), spread=(2.0,)))
    assert pages_of_orders.order_verdict(rows(**fixed)) == ""


def test_what_is_not_sampled_as_it_was_trained_is_called_another_sampler():
    name = comparison.sampler_name
    assert name("goalgen latent H=2", "goalgen", "2") == "goalgen latent H=2"
    assert name("goalgen latent H=2", "goalgen, temperature 2", "2") == "goalgen latent H=2, sampler at temperature 2"
    assert name("goalgen fixed bridge H=50", "goalgen", "8") == "goalgen fixed bridge H=50, sampler of fewer steps"
    assert name("diffusion", "DDIM", "8") == "DDIM"


def test_verdicts_are_of_the_models_themselves():
    def numbers(distance):
        return {"1": [{"frechet_distance": distance}]}

    found = {"VAE": numbers(10.0), "goalgen latent H=1": numbers(8.0)}
    found["goalgen latent H=1, sampler at temperature 2"] = numbers(4.0)
    text = comparison.verdict(found, set_here=True)
    missed, others = text.split("\n\n")[1:]
    assert missed == "**Missed** at 1: 8.00 (goalgen latent H=1) against 10.00 (VAE), 0.80 of it."
    assert "no verdict" in others
    assert "4.00 (goalgen latent H=1, sampler at temperature 2)" in others


def check(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "bench.py", "report", "--check"]
    return subprocess.run(command, cwd=folder / "benchmarks", capture_output=True, text=True, check=False)


def test_every_table_of_the_pages_comes_from_the_result_files():
    done = check(ROOT)
    assert done.returncode == 0, done.stderr


def test_the_check_notices_a_changed_number(tmp_path):
    shutil.copytree(ROOT / "benchmarks", tmp_path / "benchmarks")
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "benchmarks.md", tmp_path / "docs" / "benchmarks.md")
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    changed = page.replace("<!-- /results -->", "| made up | 1.23 |\n<!-- /results -->")
    (tmp_path / "README.md").write_text(changed, encoding="utf-8")
    done = check(tmp_path)
    assert done.returncode != 0
    assert "README.md is not what" in done.stderr


@pytest.mark.parametrize("name", ["VAE", "goalgen latent H=1"])
def test_what_was_trained_is_measured_by_another_call(name, tmp_path, shared_cache):
    options, job = Options(data="digits", seconds=1.0, num_test=40, only_train=True), {"contender": name, "seed": 0}
    with pytest.raises(Stopped):
        contest.compare(job, options, tmp_path)
    kept = json.loads((tmp_path / "trained.json").read_text())
    row = contest.compare(job, dataclasses.replace(options, only_train=False), tmp_path)
    assert (row["trained_steps"], row["trained_seconds"]) == (kept["steps"], kept["seconds"])
    assert {
        f"{e}/{s}": n["sampled_images_per_second"] for e, ss in row["evaluations"].items() for s, n in ss.items()
    } == kept["speeds"]


def test_the_page_of_scale_says_what_was_measured():
    import large_data

    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    found = json.loads((ROOT / "benchmarks" / "results" / "large_data.json").read_text())
    assert large_data.BEGIN + large_data.table(found) + large_data.END in page
    assert found["images"] == 500_000
    assert found["limit"]["trains"]["peak_data"] < found["limit"]["decodes"]["peak_data"] < large_data.LIMIT == 10**9
    assert found["speed"]["ratio"] >= 0.95


@pytest.mark.slow
def test_the_page_of_scale_says_what_is_counted():
    command = [sys.executable, str(ROOT / "benchmarks" / "scale.py"), "--check"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
