"""The five pictures of a run, from a real one of 40 steps, and the numbers that they show."""

from __future__ import annotations

import json
import re
import shutil
import sys
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from PIL import Image

from goalgen import plots
from goalgen.data import load_data
from goalgen.errors import GoalgenError
from goalgen.families.proposals import picture
from goalgen.families.proposals.picture import draw_usage
from goalgen.metrics.statistics import nearest_rows
from goalgen.model import load
from goalgen.plots import draw_curves, draw_kl, plot_run, read_curves, settled, smooth
from goalgen.settings import configure
from goalgen.training import train
from goalgen.training.checkpoints import list_checkpoints
from goalgen.training.log import read_log

NAMES = ["curves.png", "kl_by_step.png", "usage.png", "trajectories.png", "neighbours.png"]
HORIZON, ACTIONS, STEPS = 4, 6, 40
SETTINGS = {
    "environment": "proposals", "horizon": HORIZON, "num_proposals": ACTIONS, "width": 16, "depth": 1, "head_width": 8,
    "batch_size": 8, "max_steps": STEPS, "log_every": 5, "eval_every": 10, "picture_every": 0, "quiet": True,
}  # fmt: skip
SHORT = SETTINGS | {"max_steps": 4, "log_every": 2, "eval_every": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plots") / "run"
    train(configure(out=out, limit=200, **SETTINGS))
    return out


@pytest.fixture(scope="module")
def written(run: Path) -> list[Path]:
    return plot_run(run)


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A run that a test may damage."""
    return Path(shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("plots")))


def edit_config(folder: Path, section: str, **changes: object) -> None:
    path = folder / "best" / "config.json"
    values = json.loads(path.read_text())
    values[section].update(changes)
    path.write_text(json.dumps(values))


def refused(folder: Path, match: str) -> None:
    with pytest.raises(GoalgenError, match=match) as error:
        plot_run(folder)
    assert "\n" not in str(error.value)
    assert not (folder / "plots").exists()


# 1. The files


def test_all_five_are_written_into_the_run_and_nothing_else(run: Path, written: list[Path]) -> None:
    assert written == [run / "plots" / name for name in NAMES]
    assert sorted(p.name for p in (run / "plots").iterdir()) == sorted([*NAMES, "plots.json"])


@pytest.mark.parametrize("name", NAMES)
def test_every_picture_is_a_sizeable_png_with_something_in_it(run: Path, written: list[Path], name: str) -> None:
    with Image.open(run / "plots" / name) as picture:
        assert picture.format == "PNG"
        assert 600 <= picture.width <= 1000
        assert 350 <= picture.height <= 1400
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert len(np.unique(pixels, axis=0)) > 50
    assert 0.01 < (pixels != 255).any(1).mean() < 0.99


@pytest.mark.parametrize("name", NAMES)
def test_no_text_is_cut_off_at_the_edge(run: Path, written: list[Path], name: str) -> None:
    with Image.open(run / "plots" / name) as picture:
        pixels = np.asarray(picture.convert("L"))
    for edge in (pixels[:, :2], pixels[:, -2:], pixels[:2], pixels[-2:]):
        assert (edge == 255).all()


def test_the_same_seed_draws_the_same_pictures_and_another_seed_other_samples(
    run: Path, written: list[Path], tmp_path: Path
) -> None:
    again, other = plot_run(run, tmp_path / "again"), plot_run(run, tmp_path / "other", seed=1)
    assert [p.parent for p in again] == [tmp_path / "again"] * 5
    assert [p.read_bytes() for p in again] == [p.read_bytes() for p in written]
    same = [a.read_bytes() == b.read_bytes() for a, b in zip(again, other, strict=True)]
    assert same == [True, True, True, False, False]


def test_drawing_leaves_matplotlib_as_it_was(run: Path, tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    loaded = "matplotlib.pyplot" in sys.modules
    plot_run(run, tmp_path)
    assert dict(matplotlib.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == loaded


# 2. What they show


def test_curves_hold_what_the_log_holds(run: Path) -> None:
    records = read_log(run / "log.jsonl")
    curves = read_curves(records, run)
    training = [r for r in records if "bits_per_dim" in r]
    assert curves.steps.tolist() == list(range(5, STEPS + 1, 5))
    assert sorted(set(curves.validation_steps.tolist())) == [10, 20, 30, 40]
    assert curves.bits_per_dim.tolist() == [r["bits_per_dim"] for r in training]
    assert curves.reconstruction.tolist() == [r["reconstruction_nats"] for r in training]
    assert curves.seconds.tolist() == [r["seconds"] for r in training]
    assert curves.kl.shape == (HORIZON, len(training))
    assert curves.kl[2].tolist() == [r["kl_nats_2"] for r in training]
    np.testing.assert_allclose(curves.kl.sum(0), [r["kl_nats"] for r in training])
    measured = [r["validation_bits_per_dim"] for r in records if "validation_bits_per_dim" in r]
    assert curves.validation_bits.tolist() == measured


def lines(axes: Axes) -> dict[str, np.ndarray]:
    return {str(line.get_label()).partition(" ")[0]: np.asarray(line.get_xydata()) for line in axes.get_lines()}


def test_the_curves_are_drawn_from_those_columns_and_the_best_is_marked(run: Path) -> None:
    curves = read_curves(read_log(run / "log.jsonl"), run)
    figure = draw_curves(curves)
    top, bottom = figure.axes[:2]
    drawn = lines(top)
    assert (drawn["training"] == np.stack([curves.steps, curves.bits_per_dim], 1)).all()
    assert (drawn["held-out"] == np.stack([curves.validation_steps, curves.validation_bits], 1)).all()
    (star,) = (c for c in top.collections if str(c.get_label()).startswith("best"))
    best = load(run).facts
    assert np.asarray(star.get_offsets())[0].tolist() == [best["step"], best["validation_bits_per_dim"]]
    assert f"{best['validation_bits_per_dim']:.3f} bits/dim at step {best['step']}" in str(star.get_label())
    assert (top.get_ylabel(), bottom.get_ylabel(), bottom.get_xlabel()) == ("bits/dim", "nats/image", "optimiser step")
    stack = bottom.collections[-1].get_paths()[0].vertices
    assert stack[:, 1].max() == pytest.approx((curves.kl.sum(0) + curves.reconstruction).max())


def test_a_long_log_is_smoothed_and_its_first_records_do_not_set_the_scale() -> None:
    curves = read_curves(long_log(200), Path())
    top = draw_curves(curves).axes[0]
    assert len(lines(top)["mean"]) == 200
    assert top.get_ylim()[1] < 6
    assert curves.bits_per_dim[0] == 100


def long_log(count: int, horizon: int = 3) -> list[dict[str, float]]:
    kl = {f"kl_nats_{h}": 1.0 + h for h in range(horizon)}
    return [
        {"step": 20 * i, "seconds": 50.0 * i, "bits_per_dim": 100 / i, "reconstruction_nats": 1000 / i, **kl}
        for i in range(1, count + 1)
    ]


def test_time_is_given_in_a_fitting_unit_at_the_right_steps() -> None:
    axes = draw_curves(read_curves(long_log(200), Path())).axes[0]  # 10,000 seconds in 4,000 steps
    (time,) = axes.child_axes
    assert "minutes" in time.get_xlabel()
    minutes = [float(t.get_text()) for t in time.get_xticklabels()]
    assert np.allclose(np.array(minutes) * 60 / 2.5, time.get_xticks())
    assert max(time.get_xticks()) <= 4000


def test_one_record_is_enough_and_so_is_a_clock_that_stood_still() -> None:
    for records in (long_log(1), [{**r, "seconds": 0.0} for r in long_log(3)]):
        curves = read_curves(records, Path())
        draw_curves(curves).canvas.draw()
        draw_kl(curves).canvas.draw()


def test_smoothing_is_a_mean_whose_window_shrinks_at_the_ends() -> None:
    values = np.array([1.0, 2.0, 6.0, 3.0, 8.0])
    assert smooth(values, 3).tolist() == pytest.approx([1.5, 3.0, 11 / 3, 17 / 3, 5.5])
    assert smooth(values, 1).tolist() == values.tolist()
    assert smooth(np.full(9, 2.5), 5).tolist() == pytest.approx([2.5] * 9)


def test_the_first_tenth_is_left_out_of_long_columns_only() -> None:
    assert len(settled(np.zeros((2, 0)))) == 2
    assert settled(np.arange(9)).tolist() == list(range(9))
    assert settled(np.arange(11)).tolist() == list(range(2, 11))
    assert settled(np.zeros((3, 20))).shape == (3, 18)


def test_kl_map_has_a_cell_for_each_step_and_record_and_the_bars_are_its_end(run: Path) -> None:
    curves = read_curves(read_log(run / "log.jsonl"), run)
    left, right = draw_kl(curves).axes[:2]
    (mesh,) = (c for c in left.collections if isinstance(c, QuadMesh))
    assert (np.asarray(mesh.get_array()) == curves.kl).all()
    assert mesh.get_coordinates()[0, :, 0].tolist() == [0, *curves.steps]
    assert [p.get_width() for p in right.patches] == curves.kl[:, -1].tolist()
    assert left.get_ylim()[0] > left.get_ylim()[1]  # the first step on top
    assert f"{curves.kl[:, -1].sum():.1f} nats" in right.get_title()


def texts(figure: Figure) -> list[str]:
    return [t.get_text() for axes in figure.axes for t in axes.texts]


def test_usage_shows_means_over_cells_entropies_and_the_dead() -> None:
    usage = torch.zeros(2, 2, 4)  # steps, cells, proposals
    usage[0] = 0.25
    usage[1, 0, 1] = 1.0
    usage[1, 1, 2] = 1.0
    figure = draw_usage(usage, revive_below=0.6)
    left, right = figure.axes[:2]
    shown = np.asarray(left.images[0].get_array())
    assert shown[0].tolist() == pytest.approx([25, 25, 25, 25])
    assert sorted(shown[1].tolist()) == pytest.approx([0, 0, 50, 50])
    assert shown.mean(0).tolist() == sorted(shown.mean(0).tolist(), reverse=True)
    # Each cell of the second step always takes the same proposal: no entropy, though their mean has some.
    assert [p.get_width() for p in right.patches] == pytest.approx([np.log(4), 0], abs=1e-6)
    assert [float(t) for t in texts(figure)] == [4.0, 1.0]
    assert "mean of 2 cells" in left.get_title()
    assert "2 of 4 dead" in figure.get_suptitle()
    assert "0 of 4 dead" in draw_usage(usage, revive_below=0.05).get_suptitle()


def test_usage_is_that_of_the_last_checkpoint_not_of_the_best(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []

    def look(usage: torch.Tensor, below: float) -> Figure:
        seen.append(usage)
        return draw_usage(usage, below)

    monkeypatch.setattr(picture, "draw_usage", look)
    plot_run(copy)
    last = load(copy, which="last").family.usage
    assert (seen[0] == last).all()
    assert seen[0].shape == (HORIZON, 1, ACTIONS)
    for path in list_checkpoints(copy):
        shutil.rmtree(path)
    plot_run(copy)
    assert (seen[1] == load(copy).family.usage).all()


def test_neighbours_header_compares_samples_with_test_images(run: Path) -> None:
    model = load(run)
    data = load_data(model.config.data)
    goals = data.test.subset(range(70))
    figure = plots.draw_neighbours(model, data.train.images, goals, 3)
    rows = model.sample(70, 3).levels.flatten(1), goals.images.flatten(1)
    # Root mean square over 64 pixels, grey levels as 0..1.
    mine, theirs = (float(nearest_rows(r, data.train.images.flatten(1))[0].mean()) / 16 / 8 for r in rows)
    header = " ".join(t.get_text() for t in figure.texts)
    assert f"{mine:.3f} for 70 samples" in header
    assert f"{theirs:.3f} for 70 test images" in header
    assert len(figure.axes) == 10 * (1 + 4)
    distances = [float(axes.get_xlabel()) for axes in figure.axes if axes.get_xlabel()]
    assert np.array(distances).reshape(4, 10).T.tolist() == np.sort(np.array(distances).reshape(4, 10).T).tolist()


def test_film_strips_are_the_samples_and_the_told_episodes_beside_their_goals(run: Path) -> None:
    model = load(run)
    goals = load_data(model.config.data).test
    figure = plots.draw_trajectories(model, goals, 0)
    drawn, told, right = (np.asarray(axes.images[0].get_array()) for axes in figure.axes)
    assert drawn.shape == told.shape == (8 * 9 + 1, (HORIZON + 1) * 9 + 1)
    assert (drawn[1:9, -9:-1] == model.sample(8, 0).images[0, 0].numpy()).all()
    frames = plots.told_frames(model, goals.subset(range(8)), 0)
    assert (told[1:9, 1:9] == frames[0, 0, 0].numpy()).all()
    assert (told[-9:-1, -9:-1] == frames[-1, 7, 0].numpy()).all()
    assert right[1:9, 1:9].tolist() == (goals.images[0, 0].float() * 255 / 16).round().tolist()
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["0", "1", "2", "3", "4"]


# 3. Runs of other kinds


def test_a_start_that_is_a_function_of_the_goal_cells_and_black_and_white(tmp_path: Path) -> None:
    settings = SHORT | {"horizon": 20, "grid": 2, "start": "blur", "limit": 20, "binarize": True}
    train(configure(out=tmp_path / "run", **settings))
    assert [p.name for p in plot_run(tmp_path / "run")] == NAMES
    edit_config(tmp_path / "run", "data", data="/gone/away")
    with pytest.warns(UserWarning, match="data cannot be used"):
        assert [p.name for p in plot_run(tmp_path / "run")] == NAMES[:3]


def test_starts_paired_with_the_goals_by_name(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for folder in ("goals", "starts"):
        (tmp_path / folder).mkdir()
        for i in range(40):
            pixels = torch.randint(0, 256, (9, 6, 3), dtype=torch.uint8, generator=generator)
            Image.fromarray(pixels.numpy()).save(tmp_path / folder / f"{i:02d}.png")
    places = {"start": str(tmp_path / "starts"), "data": str(tmp_path / "goals")}
    train(configure(out=tmp_path / "run", **SHORT | places | {"horizon": 2}))
    assert [p.name for p in plot_run(tmp_path / "run")] == NAMES
    trained = load(tmp_path / "run")
    goals = load_data(trained.config.data).test
    first = plots.told_frames(trained, goals, 0)[0]
    assert goals.names is not None
    for name, canvas in zip(goals.names, first, strict=True):
        with Image.open(tmp_path / "starts" / f"{name}.png") as partner:
            assert (canvas.permute(1, 2, 0).numpy() == np.asarray(partner)).all()
    shutil.rmtree(tmp_path / "starts")
    with pytest.warns(UserWarning, match="trajectories and neighbours are left out"):
        assert [p.name for p in plot_run(tmp_path / "run")] == NAMES[:3]


# 4. What is missing


def test_data_that_are_gone_cost_the_pictures_that_need_them_and_a_warning(copy: Path) -> None:
    edit_config(copy, "data", data="/gone/away")
    with pytest.warns(UserWarning, match="data cannot be used.*/gone/away does not exist") as caught:
        assert [p.name for p in plot_run(copy)] == NAMES[:4]
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_data_that_have_changed_are_not_used(copy: Path) -> None:
    edit_config(copy, "data", binarize=True)
    with pytest.warns(UserWarning, match="now .* of 2 levels, the model's are .* of 17"):
        assert [p.name for p in plot_run(copy)] == NAMES[:4]


def test_what_is_no_run_is_refused_in_one_line(copy: Path, tmp_path: Path) -> None:
    looked = re.escape(f"(looked in {tmp_path})")
    refused(tmp_path / "nowhere", f"nowhere does not exist {looked}; plots need the folder of a run")
    refused(copy / "best", "best is a saved model; plots need the folder of a run")
    refused(copy / "checkpoints", "holds no log.jsonl; plots need the folder of a run")
    (copy / "log.jsonl").unlink()
    refused(copy, "holds no log.jsonl; plots need the folder of a run")


def test_a_run_too_young_is_refused_in_one_line(copy: Path) -> None:
    log = copy / "log.jsonl"
    text = log.read_text()
    log.write_text('{"step": 10, "validation_bits_per_dim": 3.0}\n{"step": 20, "bits_per')
    refused(copy, "holds no record of training yet; let the run train longer")
    log.write_text(text)
    shutil.rmtree(copy / "best")
    refused(copy, "is a run that has saved no best model yet")


def test_a_folder_that_cannot_be_written_to_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with warnings.catch_warnings(), pytest.raises(GoalgenError, match="file is a file; choose a folder"):
        plot_run(run, tmp_path / "file")
