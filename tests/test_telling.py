"""What long computations say, how long they take, and when they show pictures."""

from __future__ import annotations

import io
import re
import time

import pytest
from runs import tiny_config, tiny_options

import goalgen.training.loop as loop
from goalgen import cli, evaluate, load, load_data
from goalgen.config import DataConfig
from goalgen.telling import Telling, duration
from goalgen.training import train
from goalgen.training.checkpoints import list_checkpoints
from goalgen.training.pace import Pace
from goalgen.training.teller import next_picture

TIMED = {"max_steps": None, "precision": "no"}


def timed_options(out, seconds: float, **changes) -> list[str]:
    options = tiny_options(out, **changes)
    del options[options.index("--max-steps") : options.index("--max-steps") + 2]
    return [*options, "--max-seconds", str(seconds)]


# Lines and estimates


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "1 s"), (48, "48 s"), (119.5, "2:00 min"), (185, "3:05 min"), (7385, "2:03:05 h")]
)
def test_durations_are_said_as_people_do(seconds, words):
    assert duration(seconds) == words


def test_off_a_terminal_there_is_a_line_every_half_minute(capsys):
    now = [0.0]
    with Telling(100, title="work", clock=lambda: now[0]) as telling:
        for position in range(1, 101):
            now[0] += 2.0
            telling.at(position, lambda: "so far so good")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "work: 15%, so far so good, 2:50 min left"
    assert len(lines) == 6
    assert lines[-1] == "work: 90%, so far so good, 20 s left"


def test_a_bar_says_first_what_must_not_be_cut_off(monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", screen)
    now = [0.0]
    with Telling(100, clock=lambda: now[0]) as telling:
        assert telling.has_bar
        for position in range(1, 50):
            now[0] += 1.0
            telling.at(position, lambda: "step 3, {braces}")
    last = [state for state in screen.getvalue().split("\r") if state.strip()][-1]
    assert re.fullmatch(r"\s*49%\|.*\| 51 s left, step 3, \{braces\}\s*", last)
    assert ", step" not in screen.getvalue().replace("left, step", "")


def test_there_is_no_estimate_while_it_could_only_be_wrong():
    """The first step of a run takes seconds, the others milliseconds: 342 hours left, it was said."""
    now = [0.0]
    telling = Telling(100_000, clock=lambda: now[0])
    now[0] = 12.0  # the first step
    telling.at(1)
    for position in range(2, 500):
        now[0] += 0.01
        telling.at(position)
    assert telling.left() is None
    for position in range(500, 600):
        now[0] += 0.01
        telling.at(position)
    assert telling.left() == pytest.approx((100_000 - 599) * 0.01, rel=1e-6)


def test_a_silent_one_says_nothing(capsys):
    now = [0.0]
    telling = Telling(10, silent=True, clock=lambda: now[0])
    now[0] = 100.0
    telling.at(3)
    telling.say("a line")
    assert capsys.readouterr().err == ""


def test_work_goes_on_when_the_terminal_is_gone(monkeypatch):
    class Gone:
        def write(self, text):
            raise OSError(5, "Input/output error")

        flush = write

        def isatty(self):
            return False

    now = [0.0]
    monkeypatch.setattr("sys.stderr", Gone())
    with Telling(10, clock=lambda: now[0]) as telling:
        telling.say("a line")
        for position in range(10):
            now[0] += 31
            telling.at(position)


def test_training_off_a_terminal_says_where_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("goalgen.telling.EVERY", 0.2)
    monkeypatch.setattr("goalgen.telling.SURE", 0.0)
    monkeypatch.setattr("goalgen.training.teller.FIRST_PICTURE", 0.1)
    assert cli.main(["train", *tiny_options(tmp_path / "steps", max_steps=100, quiet=False)]) == 0
    assert cli.main(["train", *timed_options(tmp_path / "clock", 2.0, quiet=False)]) == 0
    lines = capsys.readouterr().err.splitlines()
    form = r"\d+%, step [\d,]+, [\d.,]+ epochs, \d+\.\d{3} bits/dim(, [\d,]+ images/s)?(, newest picture (\S+\.png))?, (\d+ s|\d+:\d\d min) left"
    found = [m for line in lines if (m := re.fullmatch(form, line))]
    assert len(found) >= 3
    assert [line for line in lines if not re.fullmatch(form, line) and "held-out" not in line] == []
    pictures = [m.group(3) for m in found if m.group(3)]
    assert pictures
    assert (tmp_path / "clock" / "pictures").is_dir()


def test_a_quiet_run_says_nothing_while_it_trains(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("goalgen.telling.EVERY", 0.0)
    assert cli.main(["train", *tiny_options(tmp_path / "run", max_steps=20)]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.filterwarnings("ignore:digits. not the data that the model was made from")
def test_evaluation_off_a_terminal_says_where_it_is(digits_run, monkeypatch, capsys):
    monkeypatch.setattr("goalgen.telling.EVERY", 0.0)
    evaluate(load(digits_run), load_data(DataConfig()), features="pixel-pca", num_test=200, iw_images=70, iw_k=2)
    lines = capsys.readouterr().err.splitlines()
    for part in ("bound: 64 of 200 images", "tighter bound: 70 of 70 images", "samples: 200 of 200 images"):
        assert any(part in line for line in lines), part
    assert lines[-1].startswith("evaluate: 100%")
    evaluate(
        load(digits_run), load_data(DataConfig()), features="pixel-pca", num_test=70, iw_images=7, iw_k=2, quiet=True
    )
    assert capsys.readouterr().err == ""


# Pictures


@pytest.mark.parametrize(
    ("after", "at"), [(0, 15), (14.9, 15), (15, 30), (29, 30), (31, 60), (100, 120), (10_000, 15_360)]
)
def test_pictures_come_by_the_clock(after, at):
    assert next_picture(after) == at


def test_a_run_draws_pictures_by_the_clock(tmp_path, monkeypatch):
    monkeypatch.setattr("goalgen.training.teller.FIRST_PICTURE", 0.05)
    outcome = train(tiny_config(tmp_path / "run", max_steps=200))
    steps = sorted(int(p.stem.partition("-")[2]) for p in (outcome.folder / "pictures").glob("samples-*.png"))
    assert len(steps) >= 3
    assert steps[0] < 200 == steps[-1]
    only = train(tiny_config(tmp_path / "end", max_steps=40, picture_every=0))
    assert len(list((only.folder / "pictures").glob("samples-*.png"))) == 1


# Time


def test_a_run_limited_by_time_keeps_time_for_its_end():
    pace = Pace(None, 100.0)
    assert pace.done(5, 50.0) == 0.5
    pace.costs |= {"validation": 8.0, "checkpoint": 2.0}
    assert not pace.is_late(89.9)
    assert pace.is_late(90.0)
    assert pace.done(5, 45.0) == 0.5
    assert pace.done(5, 95.0) == 1.0
    steps = Pace(10, 100.0)  # the learning rate follows the steps, so that a resumed run ends the same
    steps.costs |= {"validation": 50.0}
    assert steps.done(5, 99.0) == 0.5
    assert not steps.is_late(99.0)


def test_measurements_are_part_of_the_time_that_was_asked_for(tmp_path, monkeypatch, capsys):
    """Held-out images that would take longer than the whole run: 12 s asked, 35 s taken."""
    bound, asked = loop.validation_bound, 3.0

    def slow(family, images, start, seed, *share):
        time.sleep(0.3 * -(-len(images) // loop.BATCH))
        return bound(family, images, start, seed, *share)

    monkeypatch.setattr(loop, "validation_bound", slow)
    settings = {"data": "digits", "limit": 1000, "validation_fraction": 0.5, "eval_every": 5, "quiet": False}
    command = ["train", *timed_options(tmp_path / "run", asked, **settings)]
    begun = time.monotonic()
    assert cli.main(command) == 0
    taken = time.monotonic() - begun
    captured = capsys.readouterr()
    assert "measured on 64 of 764 held-out images, as the time is short" in captured.err
    assert re.search(r"done: step \d+, 3 s, best held-out bound \d", captured.out)
    assert taken < asked + 3  # all of the images would have taken 3.6 s at each of many measurements
    (checkpoint,) = list_checkpoints(tmp_path / "run")[-1:]
    assert cli.main(command) == 0  # it is over: the same command trains no further
    assert list_checkpoints(tmp_path / "run")[-1] == checkpoint


def test_a_quick_evaluation_measures_few_images_and_says_so(digits_run, tmp_path, capsys):
    assert (
        cli.main(["evaluate", str(digits_run), "--quick", "--num-test", "40", "--json", str(tmp_path / "n.json")]) == 0
    )
    text = capsys.readouterr().out
    assert "quick: a first answer on few images" in text
    assert "40 test images" in text


@pytest.mark.filterwarnings("ignore:digits. not the data that the model was made from")
def test_a_quick_evaluation_of_a_slow_model_takes_the_least_there_is(digits_run, monkeypatch):
    model, data = load(digits_run), load_data(DataConfig())
    reach = model._reach

    def slow(task, generator):
        time.sleep(0.1 * len(task))
        return reach(task, generator)

    monkeypatch.setattr(model, "_reach", slow)
    numbers = evaluate(model, data, quick=True)
    assert 6 <= numbers["num_test"] <= 30
    assert numbers["quick"] is True
    assert numbers["features"].startswith("pixel")
    assert evaluate(load(digits_run), data, quick=True, features="pixel-pca")["num_test"] > 200
