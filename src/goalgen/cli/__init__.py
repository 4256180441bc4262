"""The command line: goalgen train | sample | restore | vectorize | evaluate | show | plot | demo."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from goalgen.cli.commands import run_demo, run_evaluate, run_plot, run_show, run_train
from goalgen.cli.options import (
    DemoOptions,
    EvaluateOptions,
    PlotOptions,
    RestoreOptions,
    SampleOptions,
    ShowOptions,
    VectorizeOptions,
)
from goalgen.cli.samples import run_restore, run_sample, run_vectorize
from goalgen.errors import GoalgenError, as_line

__all__ = [
    "DemoOptions",
    "EvaluateOptions",
    "PlotOptions",
    "RestoreOptions",
    "SampleOptions",
    "ShowOptions",
    "VectorizeOptions",
    "main",
]

USAGE = """goalgen: generative models learned with goal-conditioned reinforcement learning

  goalgen demo                             train on the digits, sample, evaluate: two minutes and a half
  goalgen train --data SRC --out DIR       train; the same command again resumes
  goalgen sample DIR --out PATH            draw new images
  goalgen restore DIR FILES... --out PATH  undo the damage that a model was trained to undo
  goalgen vectorize DIR IMAGES... --out PATH  paint given images in strokes, as SVG
  goalgen evaluate DIR                     bound, quality, diversity, each beside its held-out reference
  goalgen show DIR                         what a model is: its kind, its data, its classes
  goalgen plot DIR                         learning curves, KL by step, action usage, neighbours

`goalgen COMMAND --help` lists the options. DIR is the folder of a run, a saved model, zoo:digits, or a hub name."""


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": run_train,
    "sample": run_sample,
    "restore": run_restore,
    "vectorize": run_vectorize,
    "evaluate": run_evaluate,
    "show": run_show,
    "plot": run_plot,
    "demo": run_demo,
}


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    if os.environ.get("RANK", "0") != "0":  # of several processes the first says it
        return
    print(f"goalgen: warning: {as_line(message)}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit status: 0, 2 for what the user can mend, 130 when interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if given else 2
    if given[0] == "--version":
        from goalgen import __version__

        print(__version__)
        return 0
    try:
        if given[0] not in COMMANDS:
            raise GoalgenError(f"no command is called {given[0]!r}; there are: {', '.join(COMMANDS)}")
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            status = COMMANDS[given[0]](given[1:])
            sys.stdout.flush()
            return status
    except GoalgenError as error:
        print(f"goalgen: error: {as_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("goalgen: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Who reads the output (head, a pager) has had enough; Python's own flush at the end must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a file that nobody above has words for
        place = f"{error.filename}: " if error.filename else ""
        print(f"goalgen: error: {as_line(place + (error.strerror or str(error)))}", file=sys.stderr)
        return 2
