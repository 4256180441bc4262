"""The commands that draw: new images, damaged ones restored, and given ones in strokes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from goalgen.cli.options import RestoreOptions, SampleOptions, VectorizeOptions, data_of
from goalgen.cli.parsing import parse
from goalgen.errors import GoalgenError, as_line


def run_sample(arguments: Sequence[str]) -> int:
    """goalgen sample"""
    options = parse(SampleOptions, "sample", arguments)

    from goalgen.intake import sample_labels
    from goalgen.outputs import OutputFolder
    from goalgen.processes import is_first, join, leave
    from goalgen.sampling import write_samples

    if is_first():
        place = OutputFolder(options.out, "samples.json", "samples", force=options.force)
    join(options.device)
    model = options.load()
    if options.num < 1 or options.first < 0:
        raise GoalgenError(f"--num must be at least 1, not {options.num}, and --first at least 0, not {options.first}")
    facts = {
        "model": options.model, "seed": options.seed, "first": options.first, "num": options.num,
        "temperature": options.temperature, "weights": model.weights, "step": model.facts.get("step"),
    }  # fmt: skip
    of_files = sample_labels(options.label, options.num, options.first, model.classes)
    if of_files is not None:
        named = enumerate(of_files.tolist(), options.first)
        facts["labels"] = {f"{i:05d}.png": model.classes[label] for i, label in named}
    parts = _parts(model, options)
    if not is_first():  # one of several processes, which draws its share
        for _ in parts:
            pass
        leave()
        return 0
    drawn, pictures = write_samples(
        parts, place, options.num, grid=options.grid, trajectory=options.trajectory, facts=facts
    )
    leave()
    print(
        f"{options.num} images in {options.out} ({drawn.network_evaluations} network evaluations each, start: "
        f"{drawn.start}){'; ' + ', '.join(map(str, pictures)) if pictures else ''}"
    )
    return 0


def _parts(model: Any, options: SampleOptions) -> Iterator[Any]:
    """The samples asked for, a block at a time; canvases are kept of those that are shown."""
    from goalgen.processes import shared
    from goalgen.sampling import SHOWN_GIF, pieces

    goals, names = _start_goals(model, options)

    def draw(piece: tuple[int, int]) -> Any:
        first, size = piece
        rows = range(first, first + size)
        shown = options.trajectory and first - options.first < SHOWN_GIF
        part = model.sample(
            size, options.seed, start=options.start, goals=None if goals is None else goals[[i % len(goals) for i in rows]],
            names=None if names is None else [names[i % len(names)] for i in rows], temperature=options.temperature,
            first=first, steps=options.steps, labels=options.label, correlation=options.correlation,
            draw_pixels=options.draw_pixels, guesses=shown, canvases=shown,
        )  # fmt: skip
        _keep_svg(part.files, options.svg, options.model)
        return part

    yield from shared(list(pieces(options.num, options.first)), draw)


def _start_goals(model: Any, options: SampleOptions) -> tuple[Any, Sequence[str] | None]:
    """Goals for a start that is a function of the goal, and their names for a folder that is paired with them."""
    from goalgen.data import from_unit, load_data, to_unit
    from goalgen.data.provenance import unseen
    from goalgen.starts import FolderStart

    start = model.start(options.start)
    if not start.needs_goal and not isinstance(start, FolderStart) and options.start_goals is not None:
        raise GoalgenError(
            f"--start-goals is for a start that is a function of the goal, or a folder; {start.spec!r} reads none: leave it out"
        )
    if not start.needs_goal and options.start_goals is None:
        return None, None

    if options.start_goals is None:
        source = data_of(model, "--start-goals")
    else:
        _, height, width = model.shape
        source = dataclasses.replace(
            model.config.data, data=options.start_goals, image_size=(height, width), channels=model.shape[0]
        )
    splits = load_data(source)
    if splits.train.shape != model.shape:
        raise GoalgenError(f"the goals for the start are {splits.train.shape}, the model's images {model.shape}")
    if options.start_goals is None:
        splits = unseen(splits, model.provenance)
    # A start is seen through the model's own grey levels, whatever those of the goals' files.
    goals = from_unit(to_unit(splits.test.images, splits.test.levels), model.levels)
    return goals, splits.test.names if start.pairs_with(splits.test.names) else None


def _keep_svg(files: list[dict[str, bytes]], wanted: bool, model: str) -> None:
    """Leave out of the further files of images those in SVG, unless they are wanted; then there must be some."""
    if wanted and not any(name.endswith(".svg") for each in files for name in each):
        raise GoalgenError(
            f"{model} draws no strokes, so there is no SVG of what it does: train one with --environment strokes"
        )
    for each in files:
        for name in [name for name in each if name.endswith(".svg") and not wanted]:
            del each[name]


def run_restore(arguments: Sequence[str]) -> int:
    """goalgen restore"""
    options = parse(RestoreOptions, "restore", arguments)

    from goalgen.outputs import OutputFolder
    from goalgen.restoration.drawing import Drawing
    from goalgen.restoration.names import Truths, find_items
    from goalgen.restoration.writing import told, write_restorations

    place = OutputFolder(options.out, "restore.json", "restorations", force=options.force)
    if not options.files:
        raise GoalgenError("no files were given: goalgen restore DIR FILES...")
    if options.num < 1:
        raise GoalgenError(f"--num must be at least 1, not {options.num}")
    model = options.load()
    restorer = model.restorer()
    truths = None if options.truth is None else Truths(options.truth)
    items = find_items(options.files, options.out, options.num, truths is not None)
    facts = {
        "model": options.model, "start": model.config.model.start, "weights": model.weights, "step": model.facts.get("step"),
        "mask": options.mask, "label": options.label,
    }  # fmt: skip
    how = Drawing(options.num, options.seed, options.temperature, options.steps)
    written = write_restorations(restorer, items, options.mask, place, how, options.label, truths, facts)
    for line in told(written, options.out):
        print(as_line(line))
    return 0


def run_vectorize(arguments: Sequence[str]) -> int:
    """goalgen vectorize"""
    options = parse(VectorizeOptions, "vectorize", arguments)

    import torch

    from goalgen.data import to_bytes
    from goalgen.outputs import OutputFolder
    from goalgen.pictures import save_png, to_pil
    from goalgen.rollout import Samples
    from goalgen.storage import write_bytes
    from goalgen.vectorizing import as_the_picture, goals_of, paint, picture_of

    place = OutputFolder(options.out, "drawings.json", "drawings", force=options.force)
    if not options.images:
        raise GoalgenError("no images were given: goalgen vectorize DIR IMAGES...")
    model = options.load()
    _check_vectorize(model, options)
    pictures = _read_pictures(model, options)
    goals = goals_of(model, list(pictures.values()))
    first = model.rollout(goals[:1], options.seed, start=options.start)
    _keep_svg(model.family.files(Samples(first.states, first.actions, [])), True, options.model)
    drawn = paint(model, goals, options.seed, options.start, options.budget, options.tries, options.search)
    files = model.family.files(drawn)
    canvases = model.family.environment.canvas(drawn.states[-1]).cpu()
    written = [
        f"{name}{extension}" for name, each in zip(pictures, files, strict=True) for extension in (".png", *each)
    ]
    facts = {
        "model": options.model, "seed": options.seed, "budget": options.budget or most_strokes(model), "tries": options.tries,
        "search": options.search,
    }  # fmt: skip
    with place.filling(written, facts) as folder:
        for (name, picture), each, canvas in zip(pictures.items(), files, canvases, strict=True):
            save_png(to_pil(picture_of(model, canvas, picture.negative)), folder / f"{name}.png")
            for extension, content in each.items():
                shown = as_the_picture(content, picture, options.fit == "stretch")
                write_bytes(folder / f"{name}{extension}", shown)
    seen = torch.stack([picture_of(model, canvas, negative=False) for canvas in canvases])
    wrong = (to_bytes(goals, model.levels).float() - seen).div(255).square().mean()
    print(
        f"{len(pictures)} drawings in {options.out} (mean squared error {wrong:.4f} a pixel, black to white is 1)"
        + negatives(sum(picture.negative for picture in pictures.values()), options.invert)
    )
    return 0


def negatives(count: int, invert: str) -> str:
    """What is said of pictures that were painted as their negatives without being told to."""
    if not count or invert != "auto":
        return ""
    return f"; {count} painted as their negative{'s' if count > 1 else ''} and turned back (--invert no: as they are)"


def most_strokes(model: Any) -> int:
    """Actions that a drawing of the model shows."""
    begin, end = model.family.files_steps
    return int(end - begin)


def _check_vectorize(model: Any, options: VectorizeOptions) -> None:
    """Refuse what no model, or not this one, can do."""
    most = most_strokes(model)
    if options.budget is not None and not 1 <= options.budget <= most:
        raise GoalgenError(f"--budget must be 1 to {most}, the most that this model draws, not {options.budget}")
    if options.tries < 1:
        raise GoalgenError(f"--tries must be at least 1, not {options.tries}")
    if options.search < 0:
        raise GoalgenError(f"--search must be at least 0, which is no search, not {options.search}")


def _read_pictures(model: Any, options: VectorizeOptions) -> dict[str, Any]:
    """The pictures that are given, under the names of their drawings."""
    from goalgen.data.files import find_images
    from goalgen.vectorizing import plain_ground, read_picture

    paths: list[Any] = []
    for path in options.images:
        found = find_images(path) if path.is_dir() else [path]
        if not found:
            raise GoalgenError(f"{path} holds no images")
        paths += found
    names = [path.stem for path in paths]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise GoalgenError(f"two images are called {twice[0]!r}, and their drawings would be, too; rename one")
    start = model.start(options.start)
    ground = None if start.drawn or start.needs_goal else plain_ground(start(1)[0])
    return {
        name: read_picture(path, model.shape, options.fit, options.background, options.invert, ground)
        for name, path in zip(names, paths, strict=True)
    }
