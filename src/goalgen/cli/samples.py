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

    from goalgen.data import from_unit, to_bytes
    from goalgen.outputs import OutputFolder
    from goalgen.pictures import save_png, to_pil
    from goalgen.rollout import Samples
    from goalgen.storage import write_bytes

    place = OutputFolder(options.out, "drawings.json", "drawings", force=options.force)
    if not options.images:
        raise GoalgenError("no images were given: goalgen vectorize DIR IMAGES...")
    model = options.load()
    begin, end = model.family.files_steps
    if options.budget is not None and not 1 <= options.budget <= end - begin:
        raise GoalgenError(f"--budget must be 1 to {end - begin}, the most that this model draws, not {options.budget}")
    end = end if options.budget is None else begin + options.budget
    names, goals = _read_goals(model, options)
    episodes = model.rollout(goals, options.seed, start=options.start)
    states, actions = episodes.states[: end + 1], episodes.actions[:end]
    files = model.family.files(Samples(states, actions, []))
    _keep_svg(files, True, options.model)
    canvases = to_bytes(from_unit(model.family.environment.canvas(states[-1]).cpu(), model.levels), model.levels)
    written = [f"{name}{extension}" for name, each in zip(names, files, strict=True) for extension in (".png", *each)]
    facts = {"model": options.model, "seed": options.seed, "budget": end - begin}
    with place.filling(written, facts) as folder:
        for name, each, canvas in zip(names, files, canvases, strict=True):
            save_png(to_pil(canvas), folder / f"{name}.png")
            for extension, content in each.items():
                write_bytes(folder / f"{name}{extension}", content)
    wrong = (to_bytes(goals, model.levels).float() - canvases).div(255).square().mean()
    print(f"{len(names)} drawings in {options.out} (mean squared error {wrong:.4f} a pixel, black to white is 1)")
    return 0


def _read_goals(model: Any, options: VectorizeOptions) -> tuple[list[str], Any]:
    """Names for the drawings of the images that are given, and these as the model sees them, (N, C, height, width) uint8."""
    import torch

    from goalgen.data import from_unit, to_unit
    from goalgen.data.files import find_images
    from goalgen.data.images import decode_image

    paths: list[Any] = []
    for path in options.images:
        found = find_images(path) if path.is_dir() else [path]
        if not found:
            raise GoalgenError(f"{path} holds no images")
        paths += found
    channels, height, width = model.shape
    images = torch.stack([
        decode_image(path, channels=channels, image_size=(height, width), fit=options.fit, background=options.background)
        for path in paths
    ])  # fmt: skip
    names = [path.stem for path in paths]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise GoalgenError(f"two images are called {twice[0]!r}, and their drawings would be, too; rename one")
    unit = to_unit(255 - images if options.invert else images, 256)
    return names, from_unit(unit, model.levels)
