"""What is measured: a table of experiments, each with the rows that it wants and a function that measures one of them."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import contenders
import likelihood
import timing
import torch
from ablation import ABLATED, ablation
from contenders import RUNS, SETUPS, Contender, Job, Options, Row
from contest import compare
from fitting import train_goalgen
from folders import FOLDERS, folder
from orders import ORDERS, order
from painting import LEARNERS, PAINTERS, STROKES, WORK, learner, painting, strokes_speed
from report import APART, PICTURES, RESULTS
from shading import shaded
from value_gap import MEASURED, value_gap
from vectors import WAYS, vectorize

from goalgen import cli, evaluate, load
from goalgen.saved import save_model
from goalgen.zoo import FOLDER

CORES = os.cpu_count() or 1

# goalgen against the number of steps --------------------------------------------------------------------------------


def curve(job: Job, options: Options, folder: Path) -> Row:
    settings = contenders.sized(Contender(job["family"], job["horizon"], settled_for="bound"), options)
    model, splits, went = train_goalgen(folder / "run", options, job["seed"], settings)
    numbers = evaluate(model, splits, **SETUPS[options.data].measured)
    return {**numbers, "seconds": went["seconds"], "trained_steps": went["steps"], "command": went["command"]}


# presets ------------------------------------------------------------------------------------------------------------

Measure = Callable[[Job, Options, Path], Row]


def of_preset(
    preset: Callable[[Options], str | None], settings: Callable[[Job, Options], Row] = lambda job, o: {}, pictures: Iterable[str] = (), **how: Any
) -> Measure:  # fmt: skip
    """Train a preset with some settings of its own, and measure it.

    Args:
        pictures: of the documents, that show samples of seed 0: a grid, trajectories, and what a bridge had in mind.
        how: of :func:`goalgen.evaluate`.
    """

    def measure(job: Job, options: Options, folder: Path) -> Row:
        run, seed = folder / "run", job.get("seed", 0)
        model, splits, went = train_goalgen(run, options, seed, settings(job, options), preset(options))
        if pictures and seed == 0:
            cli.main(
                ["sample", str(run), "--out", str(run / "samples"), "--num", "100", "--grid", "--trajectory", "--force"]
            )
            PICTURES.mkdir(parents=True, exist_ok=True)
            for written, kept in zip(("grid", "trajectories", "guesses"), pictures, strict=False):
                shown, picture = PICTURES / f"{kept}.png", run / "samples" / f"{written}.png"
                if picture.exists():
                    shutil.copy(picture, shown)
                else:  # not every family has images in mind before the end
                    shown.unlink(missing_ok=True)
        return {**went, "threads": torch.get_num_threads(), **evaluate(model.to(options.device), splits, **how)}

    return measure


def defaults(job: Job, options: Options, folder: Path) -> Row:
    """What the rule of families/suited.py chooses, in some seconds; samples, and how eight came to be, as pictures."""
    return of_preset(
        lambda o: None, pictures=[f"{options.data}-{what}" for what in ("samples", "trajectories", "guesses")]
    )(job, options, folder)


@dataclass(frozen=True)
class Shipped:
    """A model that comes with the package."""

    data: str
    seconds: float
    there: str
    """run to take as it is, if it is there"""
    source: str
    """where anybody finds the data"""
    preset: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    num_test: int | None = None
    """test images, the first ones; unset: all"""


ZOO = {
    "digits": Shipped("digits", 120.0, "demo/0", "digits", "digits"),
    "fashion_mnist": Shipped("fashion_mnist", 1200.0, "defaults_fashion_mnist/all", "zalando-datasets/fashion_mnist"),
    "avatars": Shipped("avatars", 1200.0, "defaults_avatars/all", "avatars"),
    "mnist_strokes": Shipped(
        "mnist", 1200.0, "strokes_mnist/improved-0", "ylecun/mnist", settings=STROKES, num_test=2000
    ),
}


def zoo(job: Job, options: Options, folder: Path) -> Row:
    """A model that comes with the package: trained, shrunk to half precision, and measured as it is shipped."""
    name, made = job["name"], ZOO[job["name"]]
    run = RUNS / made.there / "run" if (RUNS / made.there / "run" / "best").is_dir() else folder / "run"
    options = dataclasses.replace(
        options, data=made.data, seconds=options.seconds or made.seconds, num_test=made.num_test
    )
    model, splits, went = train_goalgen(run, options, 0, made.settings, made.preset)
    data = dataclasses.replace(model.config.data, data=made.source)
    config = dataclasses.replace(model.config, out=Path("runs") / name, data=data)
    facts = {key: value for key, value in model.facts.items() if key not in ("shape", "levels", "num_labels")}
    shipped = (RESULTS / "zoo" if APART else FOLDER) / name
    save_model(shipped, config, model.family.half(), None, model.start_image, facts)
    size = (shipped / "model.safetensors").stat().st_size
    return {"bytes": size, "command": went["command"], **evaluate(load(shipped), splits)}


def maze(job: Job, options: Options, folder: Path) -> Row:
    """See mazes.py, which needs more packages than the other experiments."""
    import mazes

    return mazes.maze(job, options, folder)


SMALL = {"width": 16, "depth": 1, "horizon": 4, "batch_size": 32, "precision": "no", "eval_every": 20, "limit": 2000,
         "kl_warmup_steps": 50}  # fmt: skip
"""Settings for a CPU, to see that a preset for a GPU works."""

# the table ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Experiment:
    """A question, and the rows that answer it."""

    question: str
    jobs: Callable[[Options], list[Job]]
    """what tells the rows from each other; the first value is what --only names"""
    measure: Measure
    """the numbers of one row, in a process and with a folder of its own"""
    varies: str = ""
    """the option that result files are named after"""
    data: dict[str, float] = field(default_factory=dict)
    """data sets, the default first, and the seconds of each"""
    defaults: dict[str, Any] = field(default_factory=dict)
    """of other options"""
    told: tuple[str, ...] = ("seconds", "num_test")
    """options that must be the same for all rows of a file"""
    at_once: int = 2
    threads: int = 1
    trial: bool = False
    """whether there may be trials of it"""
    keeps: bool = False
    """the folders of runs stay, and an interrupted one goes on: for long runs, and those that another experiment needs"""
    constants: dict[str, Any] = field(default_factory=dict)
    """what else the head of a result file says"""
    packages: tuple[str, ...] = ()
    """whose versions stand in the result file"""

    def file(self, options: Options) -> str:
        """Name of the result file."""
        parts = [str(getattr(options, self.varies))] if self.varies else []
        setup = SETUPS.get(options.data)
        parts += [options.equal] if setup and options.equal not in ("", setup.equal) else []
        standard = self.data.get(options.data, options.seconds)
        parts += [f"{options.seconds:.0f}s"] if "seconds" in self.told and options.seconds != standard else []
        parts += ["cuda"] if options.device == "cuda" else []
        parts += ["trial"] if options.trial else []
        return "_".join([next(name for name, e in EXPERIMENTS.items() if e is self), *parts])


def rows_of(**columns: Any) -> list[Job]:
    """All combinations of values, the last column slowest."""
    names = list(columns)
    return [dict(zip(names, reversed(row), strict=True)) for row in product(*reversed(columns.values()))]


CURVES = ("fixed bridge", "learned bridge", "latent", "proposals")
HORIZONS = (1, 2, 4, 8, 16, 32)
PEERS = ("diffusers", "torchcfm")
POINT_MAZES = ("4x3", "6x6")

EXPERIMENTS = {
    "compare": Experiment(
        "goalgen beside diffusion, flow matching and a VAE (peers.py) at 1 to 50 network evaluations",
        lambda o: rows_of(contender=contenders.contenders_on(o.data), seed=o.seeds), compare, "data",
        {"digits": 20, "fashion_mnist": 120, "mnist": 120, "avatars": 120, "cifar10": 600}, {"seeds": (0, 1), "num_test": 2000}, trial=True, packages=PEERS,
    ),
    "ablation": Experiment(
        "what is each part of the choice for large images worth? (120 s of a thread each)",
        lambda o: rows_of(variant=ABLATED, seed=o.seeds), ablation, "data", {"fashion_mnist": 120, "mnist": 120, "avatars": 120},
        {"seeds": (0, 1), "num_test": 2000}, trial=True,
    ),
    "curve": Experiment(
        "bits/dim and Frechet distance against the number of steps, for every family",
        lambda o: rows_of(family=CURVES, horizon=o.horizons, seed=o.seeds), curve, "data",
        {"digits": 40}, {"seeds": (0, 1, 2), "horizons": HORIZONS, "num_test": 2000},
        trial=True,
    ),
    "order": Experiment(
        "a learned order of reveals beside fixed ones, at equal seconds: bits/dim and Frechet distance",
        lambda o: rows_of(order=ORDERS, horizon=o.horizons, seed=o.seeds), order, "data", {"digits": 40, "fashion_mnist": 120},
        {"seeds": (0, 1, 2), "horizons": (8, 16), "num_test": 2000}, trial=True,
    ),
    "likelihood": Experiment(
        "bounds after twenty minutes: binarised MNIST in nats, the others in bits/dim",
        likelihood.jobs, likelihood.likelihood, "data", {"mnist": 1200, "fashion_mnist": 1200, "cifar10": 540}, {"seeds": (0,), "horizons": (10, 25)}, keeps=True,
    ),
    "speed": Experiment(
        "training and sampling speed beside the loops of diffusers and torchcfm",
        lambda o: rows_of(contender=[*timing.GOALGEN, *timing.PEERS], precision=("no", "bf16"), round=o.seeds), timing.speed, "network", defaults={"seconds": 2.0, "seeds": (0, 1, 2)}, told=("network", "weights", "batch"), at_once=1,
        threads=CORES, packages=PEERS,
    ),
    "time": Experiment(
        "where the time of a training step and of sampling goes, and what each way of saving some is worth",
        lambda o: rows_of(contender=timing.GOALGEN, saving=["", *timing.SAVINGS]), timing.time_spent, "network", told=("network", "weights", "batch"), at_once=1, threads=CORES,
    ),
    "cost": Experiment(
        "time and memory of a training image against the number of steps",
        lambda o: rows_of(family=timing.COSTS, horizon=o.horizons), timing.cost, defaults={"horizons": HORIZONS},
        told=("width", "batch"), at_once=1, threads=CORES,
    ),
    "gc_agents": Experiment(
        "greedy, posterior or value: which GC-agent trains the better model in the same time?",
        lambda o: rows_of(gc_agent=("greedy", "posterior", "value"), seed=o.seeds),
        of_preset(lambda o: contenders.PROPOSALS[o.data], lambda job, o: {"gc_agent": job["gc_agent"]}, iw_images=200), "data",
        {"digits": 60, "fashion_mnist": 120, "mnist": 120}, {"seeds": (0, 1, 2), "num_test": 2000}, trial=True, keeps=True,
    ),
    "value_gap": Experiment(
        "at a fixed S-agent (of gc_agents), by how much does reinforcement learning tighten the bound?",
        lambda o: rows_of(run=[f"posterior-{seed}" for seed in o.seeds]), value_gap, "data",
        {"digits": 60, "fashion_mnist": 120, "mnist": 120}, {"seeds": (0, 1, 2)}, at_once=1, constants={"episodes": MEASURED},
    ),
    "demo": Experiment(
        "what does `goalgen demo` reach in two minutes?", lambda o: rows_of(seed=o.seeds),
        of_preset(lambda o: "digits", pictures=("digits-grid", "digits-trajectories")), "", {"digits": 120},
        {"seeds": (0, 1, 2)}, at_once=1, threads=2, keeps=True,
    ),
    "defaults": Experiment(
        "what does `goalgen train` make of images where nothing else is said, in twenty minutes?", lambda o: [{}], defaults,
        "data", {"fashion_mnist": 1200, "avatars": 1200, "mnist": 1200, "cifar10": 600}, at_once=1, threads=2, keeps=True,
    ),
    "folders": Experiment(
        "folders as a user has them: what is said, and what comes out, with nothing but --data given?",
        lambda o: rows_of(folder=FOLDERS), folder, told=(), at_once=1, threads=2, keeps=True,
    ),
    "strokes": Experiment(
        "what do agents paint, and draw, that learn without a gradient through the world?",
        lambda o: rows_of(variant=PAINTERS[o.data], seed=o.seeds), painting, "data", {"mnist": 1200, "fashion_mnist": 600, "avatars": 600},
        {"seeds": (0,), "num_test": 2000}, at_once=1, threads=2, trial=True, keeps=True, packages=("potracer",),
    ),
    "learners": Experiment(
        "strokes: what is each part of how they are learned worth, at equal seconds?",
        lambda o: rows_of(variant=LEARNERS, seed=o.seeds), learner, "data", {"mnist": 120},
        {"seeds": (0, 1, 2), "num_test": 2000}, trial=True, keeps=True,
    ),
    "strokes_speed": Experiment(
        "strokes a second: judged, drawn, learned from; and by resvg, one file each",
        lambda o: rows_of(work=WORK, threads=tuple(range(1, CORES + 1)), round=o.seeds), strokes_speed,
        defaults={"seconds": 3.0, "seeds": (0, 1, 2)}, told=(), at_once=1, threads=CORES,
    ),
    "shaded": Experiment(
        "strokes, then a bridge: a drawing that is worked out, under one bound", lambda o: rows_of(seed=o.seeds), shaded, "data",
        {"fashion_mnist": 600, "mnist": 600}, {"seeds": (0,), "num_test": 2000}, at_once=1, trial=True, keeps=True,
    ),
    "vectorize": Experiment(
        "pictures that no model has seen, painted by `goalgen vectorize`: how near, beside greedy search? (by a run of strokes)",
        lambda o: rows_of(way=WAYS), vectorize, "", {"mnist": 1200}, told=(), at_once=1,
    ),
    "maze": Experiment(
        "goals of a Gymnasium maze: the bound beside the exact likelihood, where the S-agent goes alone, and PPO as the GC-agent",
        lambda o: rows_of(maze=POINT_MAZES, seed=o.seeds), maze, defaults={"seeds": (0, 1, 2)}, told=(), at_once=1,
        packages=("gymnasium", "stable-baselines3"),
    ),
    "zoo": Experiment(
        "the models that come with the package: made and measured (of demo and defaults, if they are there)",
        lambda o: rows_of(name=ZOO), zoo, told=(), at_once=1, threads=2, keeps=True,
    ),
    "large": Experiment(
        "binarised MNIST and CIFAR-10 at ten steps, on a GPU, in pieces (--piece)", lambda o: [{}],
        of_preset(lambda o: o.data, lambda job, o: SMALL if o.device == "cpu" else {}), "data", {"mnist": 1500, "cifar10": 7200}, at_once=1, threads=8, keeps=True,
    ),
}  # fmt: skip
