"""The one command of the benchmarks.

    python benchmarks/bench.py list                                  # the experiments
    python benchmarks/bench.py run compare --data fashion_mnist      # measure what rows are missing
    python benchmarks/bench.py suite                                 # what fits a laptop, in two or three hours
    python benchmarks/bench.py report                                # docs/benchmarks.md from the result files

Every row is measured in a process of its own and joins its result file as soon as it is there: a run that was cut off goes on
where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import report
from contenders import RUNS, Job, Options, Row
from experiments import EXPERIMENTS
from fitting import Stopped
from report import read, write

FIRST_TRIAL_SEED = 100
"""Seeds below are for what is reported, those from here on for trials, which choose settings."""

STOPPED = (130, -2, -15)
"""How a process ends that was told to."""


# one experiment -----------------------------------------------------------------------------------------------------


def options_of(name: str, given: dict[str, Any]) -> Options:
    """What was given, over what the experiment has by default.

    Raises:
        SystemExit: it has no such data, no trials, or the seeds are for the other kind of run.
    """
    experiment = EXPERIMENTS[name]
    given = {key: value for key, value in given.items() if value not in (None, False)}
    data = given.get("data") or next(iter(experiment.data), "")
    if data not in (*experiment.data, "") or (data and not experiment.data):
        sys.exit(f"{name} is for {', '.join(experiment.data) or 'no data set'}, not {data}")
    trial = bool(given.get("trial"))
    if trial and not experiment.trial:
        sys.exit(f"there are no trials of {name}")
    defaults = {**experiment.defaults, "data": data}
    if data:
        defaults["seconds"] = experiment.data[data]
    if trial:
        defaults["seeds"] = (FIRST_TRIAL_SEED, FIRST_TRIAL_SEED + 1)
    options = Options(**{**defaults, **given})
    wrong = [seed for seed in options.seeds if (seed >= FIRST_TRIAL_SEED) != trial]
    if wrong:
        sys.exit(f"seed {wrong[0]}: seeds below {FIRST_TRIAL_SEED} are for what is reported, the others for --trial")
    return options


def same(job: Job, row: Row) -> bool:
    """Whether a row is the one asked for. (Earlier files lack some names.)"""
    return all(row.get(name, value) == value for name, value in job.items())


def add(file: str, job: Job, row: Row, head: Row) -> None:
    """Put a row into its result file, in the place of an earlier one if there is one."""
    results = read(file)
    rows = results["rows"]
    place = next((i for i, other in enumerate(rows) if same(job, other)), len(rows))
    write(file, {**head, **results, "rows": [*rows[:place], row, *rows[place + 1 :]]})


def run(name: str, options: Options, at_once: int = 0, threads: int = 0, only: list[str] | None = None,
        again: bool = False, piece: float = float("inf")) -> None:  # fmt: skip
    """Measure the rows that are missing.

    Args:
        at_once: rows at a time, each in a process with so many ``threads``; 0: as the experiment has it.
        only: what the first value of a row may be.
        again: measure rows that are there, too.
        piece: seconds after which what still runs is stopped; another call goes on.
    """
    experiment, file = EXPERIMENTS[name], EXPERIMENTS[name].file(options)
    told = {key: getattr(options, key) for key in experiment.told if getattr(options, key)}
    head = {**told, **experiment.constants, "threads": threads or experiment.threads}
    results = read(file)
    for key, value in head.items():
        if results["rows"] and results.get(key, value) != value:
            sys.exit(f"the rows of {file}.json have {key} {results[key]}, not {value}; move it away to begin anew")
    wanted = [job for job in experiment.jobs(options) if not only or str(next(iter(job.values()), "")) in only]
    waiting = [job for job in wanted if again or not any(same(job, row) for row in results["rows"])]
    print(f"{file}: {len(waiting)} of {len(wanted)} rows to measure", file=sys.stderr)
    if waiting:
        head = {"machine": report.machine(experiment.packages), **head}
        measure(name, options, waiting, head, at_once or experiment.at_once, piece, again)


def measure(
    name: str, options: Options, waiting: list[Job], head: Row, at_once: int, piece: float, again: bool = False
) -> None:
    """Measure rows, so many at a time, each in a process of its own."""
    experiment, file = EXPERIMENTS[name], EXPERIMENTS[name].file(options)
    running: dict[subprocess.Popen[bytes], tuple[Job, Path]] = {}
    end, stopped, failed = time.monotonic() + piece, False, ""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as an interrupt at the keyboard
    try:
        while running or (waiting and not stopped and not failed):
            while waiting and not stopped and not failed and len(running) < at_once:
                job = waiting.pop(0)
                folder = RUNS / file / (re.sub(r"[^\w.=]+", "-", "-".join(str(v) for v in job.values())) or "all")
                if again or not (experiment.keeps or (folder / "trained.json").exists()):
                    shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True, exist_ok=True)
                running[start(name, job, options, folder, head["threads"])] = (job, folder)
            time.sleep(0.1)
            if not stopped and time.monotonic() > end:
                stopped = True
                stop(running)
            for process in [p for p in running if p.poll() is not None]:
                job, folder = running.pop(process)
                if process.returncode == 0:
                    add(file, job, json.loads((folder / "row.json").read_text()), head)
                    if not experiment.keeps:
                        shutil.rmtree(folder)
                elif process.returncode not in STOPPED:
                    failed = f"{file}: {job} failed"
    except KeyboardInterrupt:
        stopped = True
    finally:
        signal.signal(signal.SIGTERM, before)
        stop(running)
        for process in running:
            process.wait()
    if failed or stopped:
        sys.exit(failed or "stopped; the same command goes on from here")


def start(name: str, job: Job, options: Options, folder: Path, threads: int) -> subprocess.Popen[bytes]:
    """A process that measures one row. (In a session of its own: an interrupt at the keyboard must not reach it twice.)"""
    request = json.dumps({"experiment": name, "job": job, "options": vars(options)})
    command = [sys.executable, str(Path(__file__).resolve()), "row", request, str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    return subprocess.Popen(command, env=environment, start_new_session=True)


def stop(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    """Tell all to end; training saves first."""
    for process in processes:
        process.terminate()


def measure_row(request: dict[str, Any], folder: Path) -> None:
    """One row, in this process; writes FOLDER/row.json."""
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in request["options"].items()}
    try:
        row = EXPERIMENTS[request["experiment"]].measure(request["job"], Options(**options), folder)
    except Stopped:
        sys.exit(130)
    (folder / "row.json").write_text(json.dumps({**request["job"], **row}))


# the suite ----------------------------------------------------------------------------------------------------------

SUITE: list[tuple[str, dict[str, Any]]] = [
    ("compare", {"data": "digits"}), ("compare", {"data": "fashion_mnist"}), ("speed", {})
]  # fmt: skip


def spread_of(rows: list[Row]) -> dict[str, tuple[float, float]]:
    """What a table shows: the mean over seeds and their standard deviation, by name."""
    groups: dict[str, list[float]] = {}
    for row in rows:
        who = row.get("contender") or f"{row.get('family')} H={row.get('horizon')}"
        for evaluations, samplers in row.get("evaluations", {}).items():
            for sampler, numbers in samplers.items():
                groups.setdefault(f"{who}, {sampler} at {evaluations}: Frechet", []).append(numbers["frechet_distance"])
        for key in ("bits_per_dim", "nll_bound_nats"):
            if key in row:
                groups.setdefault(f"{who}: {key}", []).append(row[key])
        if "images_per_second" in row:
            rate, half = row["images_per_second"], row.get("spread")  # an earlier row stands for several rounds
            name = f"{who}, {row['precision']}: images/s"
            groups.setdefault(name, []).extend([rate] if half is None else [rate - half, rate + half])
    return {k: (statistics.mean(v), statistics.stdev(v)) for k, v in groups.items() if len(v) > 1}


def differences(before: dict[str, tuple[float, float]], now: dict[str, tuple[float, float]]) -> tuple[int, list[str]]:
    """How many means two runs share, and those that differ by more than three standard deviations of the difference."""
    far = []
    shared = before.keys() & now.keys()
    for key in sorted(shared):
        (old, old_spread), (new, new_spread) = before[key], now[key]
        if abs(new - old) > 3 * max((old_spread**2 + new_spread**2) ** 0.5, 0.02 * abs(old)):
            far.append(f"{key}: {old:.3f} ± {old_spread:.3f}, now {new:.3f} ± {new_spread:.3f}")
    return len(shared), far


def suite(parts: list[tuple[str, dict[str, Any]]] = SUITE) -> None:
    """What fits a laptop, measured anew; then the pages, and every mean beside that of the run before.

    The rows of the run before make room when a part begins, so that a suite that was cut off goes on where it stopped.
    """
    place = RUNS / "suite"
    place.mkdir(parents=True, exist_ok=True)
    files = []
    for name, given in parts:
        if given.get("data", "digits") != "digits" and not os.environ.get("GOALGEN_DATA"):
            print(f"GOALGEN_DATA is not set: without {name} of {given['data']}", file=sys.stderr)
            continue
        options = options_of(name, given)
        files.append(EXPERIMENTS[name].file(options))
        kept = place / f"{files[-1]}.json"
        if not kept.exists():
            kept.write_text(json.dumps(read(files[-1])))
            (report.RESULTS / kept.name).unlink(missing_ok=True)
        run(name, options)
    if not report.APART:
        write_report(check=False)
    for file in files:
        old, now = json.loads((place / f"{file}.json").read_text())["rows"], read(file)["rows"]
        shared, far = differences(spread_of(old), spread_of(now))
        print(f"{file}: {shared - len(far)} of {shared} means agree with the run before", *far, sep="\n  ")
    shutil.rmtree(place)


def write_report(check: bool) -> None:
    """Write docs/benchmarks.md, the table in README.md and the plots, or see whether both pages are what the results say."""
    import comparison
    import pages

    compare = report.of_data("compare", comparison.parts(), comparison.compare)
    curve = report.of_data("curve", report.NAMES, comparison.curve)
    pages.write_pages(compare, curve, comparison.headline("fashion_mnist"), check)
    if not check:
        comparison.draw()


# the command --------------------------------------------------------------------------------------------------------


def show_list() -> None:
    """All experiments."""
    for name, experiment in EXPERIMENTS.items():
        data = f" (--data {', '.join(experiment.data)})" if experiment.varies == "data" else ""
        print(f"{name:15}{experiment.question}{data}")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the experiments")
    one = commands.add_parser("run", help="measure the rows of an experiment that are missing")
    one.add_argument("name", choices=list(EXPERIMENTS))
    one.add_argument("--data", help="data set; in $GOALGEN_DATA, but for the digits")
    one.add_argument("--seconds", type=float, help="of training, for every row")
    one.add_argument("--seeds", type=int, nargs="+", help="(of speed: its rounds)")
    one.add_argument("--only", nargs="+", help="contenders, families, ...: the first value of a row")
    one.add_argument("--horizons", type=int, nargs="+")
    one.add_argument("--num-test", type=int, help="measure on the first so many test images")
    one.add_argument(
        "--equal",
        choices=["weights", "operations"],
        help="what contenders have equally many of (unset: on the digits weights, on larger images operations)",
    )
    one.add_argument(
        "--trial", action="store_true", help="choose settings: on validation images, with other seeds, unreported"
    )
    one.add_argument("--device", choices=["cpu", "cuda"])
    one.add_argument("--network", choices=["mlp", "unet", "transformer"], help="speed, time")
    one.add_argument("--weights", type=int, help="speed, time: of the network")
    one.add_argument("--batch", type=int, help="speed, time, cost")
    one.add_argument("--width", type=int, help="cost: of the network")
    one.add_argument("--processes", type=int, help="that train a row's model together")
    one.add_argument("--jobs", type=int, default=0, help="rows at a time")
    one.add_argument("--threads", type=int, default=0, help="of each")
    one.add_argument(
        "--piece", type=float, default=float("inf"), help="stop after so many seconds; the same command goes on"
    )
    one.add_argument(
        "--only-train", action="store_true", help="compare: train and time, keep the models; a later call measures them"
    )
    one.add_argument(
        "--measure-on", choices=["cpu", "cuda"], help="compare: where samples are drawn to be measured (unset: cpu)"
    )
    one.add_argument("--again", action="store_true", help="measure rows that are there, too")
    commands.add_parser("suite", help="what fits a laptop, in two or three hours, and the pages")
    pages = commands.add_parser("report", help="write docs/benchmarks.md and the table of README.md")
    pages.add_argument("--check", action="store_true", help="only fail if a page is not what the results say")
    row = commands.add_parser("row")  # what a process of its own is called with
    row.add_argument("request", type=json.loads)
    row.add_argument("folder", type=Path)
    return top


def main() -> None:
    given = vars(parser().parse_args())
    command = given.pop("command")
    if command == "list":
        show_list()
    elif command == "run":
        name, how = given.pop("name"), {key: given.pop(key) for key in ("threads", "only", "again", "piece")}
        at_once = given.pop("jobs")
        lists = {key: tuple(given.pop(key) or ()) or None for key in ("seeds", "horizons")}
        run(name, options_of(name, {**given, **lists}), at_once, **how)
    elif command == "suite":
        suite()
    elif command == "report":
        write_report(given["check"])
    else:
        measure_row(given["request"], given["folder"])


if __name__ == "__main__":
    main()
