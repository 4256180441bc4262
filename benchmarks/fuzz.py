"""Are files of others, however broken, refused in one line? Random changes of everything that goalgen reads, for as long as you like.

Small runs of every family are trained. Then, case after case, something of one is changed (the configuration of a saved model or of a
run, bytes, header or numbers of weights, a checkpoint, a log, a record of samples, an image), and goalgen is let loose on it, in a
process that may take a gigabyte more and thirty seconds of the processor. What comes of it must be one line of an error, or finite
images of the right size; files elsewhere must stay as they are. Anything else is a fault. A case is a function of its number.

    python benchmarks/fuzz.py --minutes 60
    python benchmarks/fuzz.py --case 1234          # this one again, with its traceback
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import math
import os
import random
import resource
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

TINY = (
    "--limit 64 --width 8 --depth 1 --head-width 8 --batch-size 4 --warmup-steps 1 --decay none --quiet --precision no "
    "--max-steps 2 --checkpoint-every 1 --picture-every 0"
)
MODELS = {
    "proposals": "--environment proposals --num-proposals 4 --horizon 2 --gc-agent value",
    "proposals, cells": "--environment proposals --num-proposals 3 --horizon 2 --grid 2 --learn-step-size --start noise:0.5",
    "latent": "--environment latent --latent-size 3 --latent-modes 2 --horizon 2",
    "latent, map": "--environment latent --latent-size 2 --network unet --patch 2 --horizon 2 --condition label",
    "fixed bridge": "--environment bridge --gc-agent fixed --horizon 3",
    "learned bridge": "--environment bridge --network unet --patch 2 --horizon 2 --start mask:0.5",
    "reveal": "--environment reveal --network transformer --patch 2 --horizon 3",
    "stages": "--environment code:1+bridge:2 --code-size 4 --network unet --patch 2",
    "strokes": "--environment strokes --horizon 2 --stroke-candidates 4 --start constant:0",
}
GIGABYTE = 2**30
PROCESSOR, WALL = 30, 300
"""Seconds that a case may take: of the processor, and on the clock of a machine that is busy with other things."""
RENEWED = 400
"""Cases of one process: what earlier ones left in its memory must not count for long."""

HOSTILE: list[Any] = [
    0, 1, -1, 2, 3, 5, 7, 16, 64, 300, 20_000, 10**6, 2**31, 2**63, 10**30, -(10**9), 0.0, -1.0, 0.5, 1e-300, 1e300, 3e38, 1e-12,
    float("nan"), float("inf"), -float("inf"), None, True, False, [], {}, [1], [1, 8, 8], [3, 8, 8], [1, 200_000, 200_000], [0, 8, 8],
    [[]], {"a": 1}, "", "2", "none", "auto", "../..", "a" * 10_000, "mean", "noise:1e9", "mask:0.5", "downsample:4", "blur:2",
    "constant:2", "mlp", "unet", "transformer", "label", "value", "fixed", "learned", "posterior", "encoder", "copy", "painter", "reader",
    "bridge", "latent", "strokes", "reveal", "proposals", "code:1+bridge:3", "latent:9999999999", "code:1+code:1+bridge:1",
    "bridge:" + "9" * 5000, "digits", "/dev/zero", "/proc/self/mem", "\x1b[2J", "\ud800", "nul\x00", "a\nb", "١",
]  # fmt: skip


class TooLong(BaseException):
    """A case has taken the seconds that it may."""


class Fault(Exception):
    """goalgen did what it must not."""


# -- what is changed -----------------------------------------------------------------------------------------------


def leaves(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at] * bool(at) + [leaf for key, inner in items for leaf in leaves(inner, (*at, key))]


def change_json(file: Path, dice: random.Random) -> None:
    """Some values replaced by any others, taken away, moved or added; or the text itself spoilt."""
    text = file.read_text(encoding="utf-8")
    if dice.random() < 0.15:
        change_bytes(file, dice)
        return
    values = json.loads(text)
    for _ in range(dice.choice([1, 1, 1, 2, 3])):
        places = leaves(values)
        if not places:
            break
        *path, last = dice.choice(places)
        inside = values
        for key in path:
            inside = inside[key]
        kind = dice.random()
        if kind < 0.75:
            inside[last] = hostile(inside[last], dice)
        elif kind < 0.85:
            del inside[last]
        elif isinstance(inside, dict):
            inside[dice.choice([last + "s", "x", "__class__", ""])] = dice.choice(HOSTILE)
        else:
            inside.append(dice.choice(HOSTILE))
    file.write_text(json.dumps(values), encoding="utf-8", errors="surrogatepass")


def hostile(value: Any, dice: random.Random) -> Any:
    """Anything, or something near the value, which goes deeper."""
    if type(value) in (int, float) and dice.random() < 0.4:
        near = dice.choice([value + 1, value - 1, value * 2, -value, value * 100, value / 2])
        return type(value)(near)
    return dice.choice(HOSTILE)


def change_bytes(file: Path, dice: random.Random) -> None:
    content = bytearray(file.read_bytes())
    kind = dice.choice(["flip", "flip", "cut", "empty", "double", "insert", "zero"])
    if kind == "flip" and content:
        for _ in range(dice.choice([1, 4, 30])):
            content[dice.randrange(min(len(content), dice.choice([64, 2000, 10**9])))] = dice.randrange(256)
    elif kind == "cut":
        content = content[: dice.randrange(len(content) + 1)]
    elif kind == "double":
        content = content * 2
    elif kind == "insert":
        at = dice.randrange(len(content) + 1)
        content[at:at] = dice.randbytes(dice.choice([1, 8, 1000]))
    elif kind == "zero" and content:
        at = dice.randrange(len(content))
        content[at : at + 64] = bytes(len(content[at : at + 64]))
    file.write_bytes(b"" if kind == "empty" else content)


def change_weights(file: Path, dice: random.Random) -> None:
    """Header or numbers of a safetensors file."""
    content = file.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header, body = json.loads(content[8 : 8 + length]), bytearray(content[8 + length :])
    names = sorted(header.keys() - {"__metadata__"})
    kind = dice.choice(
        ["bytes", "shape", "type", "name", "offsets", "drop", "numbers", "numbers", "length", "metadata", "swap"]
    )
    name = dice.choice(names)
    entry = header[name]
    if kind == "bytes":
        change_bytes(file, dice)
        return
    if kind == "shape":
        shape = entry["shape"]
        entry["shape"] = dice.choice(
            [
                shape[::-1],
                [math.prod(shape)],
                [1, *shape],
                [dice.choice(HOSTILE)],
                [dice.randrange(-1, 2**40), 1],
                [*shape, 0],
            ]
        )
    elif kind == "type":
        entry["dtype"] = dice.choice(
            ["F64", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "X", "C64", "U16"]
        )
        if dice.random() < 0.7:  # as many bytes as the type needs, so that the file is whole
            size = {"F64": 8, "I64": 8, "C64": 8, "F16": 2, "BF16": 2, "U16": 2, "F32": 4, "I32": 4}.get(
                entry["dtype"], 1
            )
            first = len(body)
            body += dice.randbytes(size * math.prod(entry["shape"]))
            header = {n: header[n] for n in header if n != name} | {name: entry}
            header, body = packed(header, body, {name: (first, len(body))})
    elif kind == "name":
        header[dice.choice(["", "x" * 5000, "start.image", name + "\n", "\x1b[31m", "s_agent", name.upper()])] = (
            header.pop(name)
        )
    elif kind == "offsets":
        entry["data_offsets"] = [
            dice.randrange(len(body) + 1),
            dice.choice([len(body), 2**62, 0, dice.randrange(len(body) + 1)]),
        ]
    elif kind == "drop":
        header, body = packed({n: header[n] for n in header if n != name}, body, {})
    elif kind == "numbers" and entry["dtype"] == "F32":
        first, last = entry["data_offsets"]
        count = (last - first) // 4
        value = dice.choice([0.0, 1e3, -1e3, 1e10, 1e17, -1e17, 9e17, 1e-38, 1e-45, float("nan"), float("inf"), 3e38])
        for i in range(count) if dice.random() < 0.5 else [dice.randrange(count)] if count else []:
            body[first + 4 * i : first + 4 * i + 4] = struct.pack("<f", value)
    elif kind == "length":
        file.write_bytes(struct.pack("<Q", dice.choice([0, 1, 2**63, length - 1, length + 1, 10**8])) + content[8:])
        return
    elif kind == "metadata":
        header["__metadata__"] = dice.choice(
            [{}, {"weights": "raw"}, {"weights": "x" * 9999}, {"format": "np"}, {"weights": 1}, []]
        )
    elif kind == "swap":
        other = dice.choice(names)
        header[name], header[other] = header[other], header[name]
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    file.write_bytes(struct.pack("<Q", len(text)) + text + body)


def packed(header: dict[str, Any], body: bytes, moved: dict[str, tuple[int, int]]) -> tuple[dict[str, Any], bytearray]:
    """The same tensors with their bytes one after the other, as a file must have them."""
    new, out = {}, bytearray()
    for name, entry in header.items():
        if name == "__metadata__":
            new[name] = entry
            continue
        first, last = moved.get(name, tuple(entry["data_offsets"]))
        new[name] = {**entry, "data_offsets": [len(out), len(out) + last - first]}
        out += body[first:last]
    return new, out


def image_files(folder: Path) -> None:
    """An image of each kind that is to be spoilt."""
    import numpy as np
    from PIL import Image

    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    grey, colour, clear = Image.fromarray(pixels[..., 0]), Image.fromarray(pixels[..., :3]), Image.fromarray(pixels)
    deep = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    for name, image, options in (
        ("grey.png", grey, {}), ("colour.png", colour, {}), ("clear.png", clear, {}), ("deep.png", deep, {}),
        ("palette.png", colour.quantize(7), {"transparency": 2}), ("bits.png", grey.convert("1"), {}), ("a.jpg", grey, {}),
        ("b.jpg", colour, {"progressive": True}), ("cmyk.jpg", colour.convert("CMYK"), {}), ("a.gif", grey, {}),
        ("moving.gif", grey, {"save_all": True, "append_images": [colour.convert("L")]}), ("a.bmp", colour, {}), ("a.webp", clear, {}),
        ("a.tif", grey, {}), ("deep.tif", deep, {}), ("lzw.tif", colour, {"compression": "tiff_lzw"}), ("a.ppm", colour, {}),
        ("a.pgm", deep, {}), ("a.tga", clear, {}), ("a.ico", clear, {"sizes": [(8, 8)]}), ("a.pcx", grey, {}), ("a.sgi", colour, {}),
        ("a.jp2", grey, {}), ("a.avif", colour, {}),
    ):  # fmt: skip
        with contextlib.suppress(OSError, KeyError, ValueError):  # a Pillow without this format
            image.save(folder / name, **options)


def change_image(file: Path, dice: random.Random) -> None:
    if file.suffix == ".png" and dice.random() < 0.5:  # a header that is whole, and lies
        content = bytearray(file.read_bytes())
        header = list(struct.unpack(">IIBBBBB", content[16:29]))
        which = dice.randrange(7)
        header[which] = dice.choice([0, 1, 9, 8, 2**31 - 1, 60_000, 100_000]) if which < 2 else dice.randrange(18)
        content[16:29] = struct.pack(">IIBBBBB", *header)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
        file.write_bytes(content)
    else:
        change_bytes(file, dice)


# -- what is done with it ------------------------------------------------------------------------------------------


def call(*words: str) -> str:
    """A command of goalgen here: "" if it succeeds, the line of its error if not."""
    from goalgen import cli

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main(list(words))
    lines = err.getvalue().splitlines()
    if wild := [c for c in out.getvalue() + err.getvalue() if not c.isprintable() and c not in "\n\r"]:
        raise Fault(f"{words[0]} prints control characters {wild[:3]}")
    if status == 0:
        return ""
    errors = [line for line in lines if line.startswith("goalgen: error: ")]
    if status != 2 or len(errors) != 1 or lines[-1] != errors[0]:
        raise Fault(f"{words[0]} ends with status {status} and {lines[-3:]}")
    if not 10 < len(errors[0]) < 1500:
        raise Fault(f"{words[0]} says {len(errors[0])} characters")
    return errors[0]


def use_model(folder: Path) -> str:
    """Load, draw, measure, draw again."""
    import torch

    from goalgen import GoalgenError, load

    try:
        model = load(folder)
        repr(model)
        drawn = model.sample(2)
        bound = model.nll_bound(drawn.levels, labels=drawn.labels).total
        again = model.reconstruct(drawn.levels, labels=drawn.labels)
    except GoalgenError as error:
        if len(str(error).splitlines()) != 1 or not 10 < len(str(error)) < 1500:
            raise Fault(f"no error of one line: {str(error)[:300]!r}") from None
        return str(error)
    if tuple(drawn.images.shape) != (2, *model.shape) or again.shape != drawn.images.shape:
        raise Fault(f"images of shape {tuple(drawn.images.shape)} and {tuple(again.shape)}")
    if not torch.isfinite(bound).all() or drawn.levels.max() >= model.levels:
        raise Fault(f"a bound of {bound.tolist()} or levels to {drawn.levels.max()} is not said to be wrong")
    if not torch.equal(drawn.images, model.sample(2).images):
        raise Fault("the same seed draws other images")
    return ""


def use_run(place: Path) -> str:
    """Go on with a run by the command that made it."""
    made = json.loads((place.parent / "command.json").read_text())
    return call("train", *made[:-1], str(place), "--max-steps", "3")


def model_case(place: Path, dice: random.Random) -> str:
    folder = place / "best"
    if dice.random() < 0.55:
        change_json(folder / "config.json", dice)
    else:
        file = dice.choice(["model.safetensors"] * 8 + ["data.safetensors"])
        change_weights(folder / file, dice)
    first = use_model(folder)
    return call("show", str(folder)) if dice.random() < 0.1 else first


def run_case(place: Path, dice: random.Random) -> str:
    newest = max((place / "checkpoints").iterdir())
    kind = dice.randrange(8)
    if kind < 2:
        change_json(dice.choice([newest / "progress.json", place / "config.json"]), dice)
    elif kind < 5:
        change_weights(newest / f"{dice.choice(['raw', 'ema', 'optimizer'])}.safetensors", dice)
    elif kind == 5:
        change_bytes(place / "log.jsonl", dice)
    elif kind == 6:
        change_weights(place / "data.safetensors", dice)
    else:
        shutil.rmtree(newest) if dice.random() < 0.3 else dice.choice(list(newest.iterdir())).unlink()
    return use_run(place)


def record_case(place: Path, dice: random.Random) -> str:
    """A record of samples that names other files than its own, which --force must not touch."""
    change_json(place.parent / "samples" / "samples.json", dice)
    return call("sample", str(place), "--out", str(place.parent / "samples"), "--num", "2", "--force")


def start_case(place: Path, dice: random.Random) -> str:
    """A broken image as the start, as what is restored, or among what is learned from."""
    images = place.parent / "images"
    file = dice.choice(sorted(images.iterdir()))
    change_image(file, dice)
    kind = dice.randrange(3)
    if kind == 0:
        return call("sample", str(place), "--out", str(place.parent / "new"), "--num", "2", "--start", str(file))
    if kind == 1:
        return call(
            "restore",
            str(place),
            str(file),
            "--out",
            str(place.parent / "new"),
            *(["--mask", "middle"] if dice.random() < 0.5 else []),
        )
    for other in sorted(
        images.iterdir()
    ):  # all of one size and read as grey, so that only the broken one is unlike the others
        if other != file and other.suffix not in (".png", ".jpg"):
            other.unlink()
    from goalgen import DataConfig, GoalgenError, load_data

    try:
        data = load_data(DataConfig(data=str(images), channels=1, image_size=(8, 8)))
    except GoalgenError as error:
        return str(error)
    if data.train.shape != (1, 8, 8):
        raise Fault(f"images of shape {data.train.shape}")
    return ""


CASES: dict[str, tuple[Callable[[Path, random.Random], str], int]] = {
    "saved model": (model_case, 12), "run": (run_case, 4), "samples record": (record_case, 1), "image": (start_case, 5)
}  # fmt: skip
"""What is done, and how often."""


# -- one case, and many --------------------------------------------------------------------------------------------


def digest(folder: Path, *parts: str) -> str:
    found = hashlib.sha256()
    for file in sorted(path for part in parts for path in (folder / part).rglob("*") if path.is_file()):
        found.update(str(file).encode() + file.read_bytes())
    return found.hexdigest()


def one_case(base: Path, number: int) -> tuple[str, str, str]:
    """Kind, model, and the line of what refused it ("": it was taken)."""
    dice = random.Random(f"fuzz {number}")
    kind = dice.choices(list(CASES), [weight for _, weight in CASES.values()])[0]
    name = dice.choice(list(MODELS) if kind != "image" else ["learned bridge", "learned bridge", "latent", "strokes"])
    place = base / "case"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(base / "models" / name, place)
    before = digest(base, "models", "canary")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        said = CASES[kind][0](place / "run", dice)
    if digest(base, "models", "canary") != before:
        raise Fault("files elsewhere were changed")
    return kind, name, said


def make_models(base: Path) -> None:
    (base / "canary").mkdir(parents=True)
    (base / "canary" / "file.txt").write_text("not goalgen's\n")
    for name, options in MODELS.items():
        place = base / "models" / name
        place.mkdir(parents=True)
        command = [*TINY.split(), *options.split(), "--out"]
        for words in (
            ["train", *command, str(place / "run")],
            ["sample", str(place / "run"), "--num", "3", "--out", str(place / "samples")],
        ):
            if error := call(*words):
                raise SystemExit(error)
        (place / "command.json").write_text(json.dumps([*command, ""]))
        image_files(place / "images")


def work(base: Path, number: int) -> None:
    """Cases from ``number`` on, each told before and after, under the limits."""
    import torch

    torch.set_num_threads(1)

    def late(*_: Any) -> None:
        raise TooLong

    signal.signal(signal.SIGPROF, late)
    one_case(base, 0)  # what is imported only when it is needed
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + GIGABYTE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    out = os.fdopen(os.dup(1), "w", buffering=1)
    for case in range(number, number + RENEWED):
        print(json.dumps({"case": case}), file=out)
        about: dict[str, Any] = {"done": case}
        signal.setitimer(signal.ITIMER_PROF, PROCESSOR)
        try:
            kind, name, said = one_case(base, case)
            about |= {"kind": kind, "model": name, "said": said[:80]}
        except BaseException as error:  # of any kind: that is what is looked for
            signal.setitimer(signal.ITIMER_PROF, 0)
            last = [
                f
                for f in traceback.extract_tb(error.__traceback__)
                if "goalgen" in f.filename and "fuzz" not in f.filename
            ]
            where = f"{Path(last[-1].filename).name}:{last[-1].name}" if last else ""
            about |= {"fault": type(error).__name__, "where": where, "words": str(error)[:300]}
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(about), file=out)


def watch(
    base: Path, minutes: float, first: int, jobs: Callable[[dict[str, Any], dict[str, Any]], None]
) -> dict[str, Any]:
    """Let processes work one after the other until the time is over, and count what they tell."""
    end, begun, case = time.monotonic() + 60 * minutes, time.monotonic(), first
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in CASES}
    faults: list[dict[str, Any]] = []
    while time.monotonic() < end:
        worker = subprocess.Popen([sys.executable, __file__, "--work", str(base), "--first", str(case)], stdout=subprocess.PIPE,
                                  stderr=subprocess.DEVNULL)  # fmt: skip
        assert worker.stdout is not None
        open_case: int | None = None
        while time.monotonic() < end:
            ready, _, _ = select.select([worker.stdout], [], [], WALL)
            line = worker.stdout.readline() if ready else b""
            if not line:
                worker.kill()
                status = worker.wait()
                if open_case is not None:  # neither an error nor an end: the process itself is gone, or hangs
                    faults.append({"case": open_case, "fault": f"ended with {status}" if ready else "hangs"})
                    case = open_case + 1
                break
            told = json.loads(line)
            if "case" in told:
                open_case, case = told["case"], told["case"] + 1
                continue
            open_case = None
            if "fault" in told:
                faults.append({"case": told["done"], **{k: told[k] for k in ("fault", "where", "words")}})
            else:
                counts[told["kind"]]["refused" if told["said"] else "taken"] += 1
            jobs(found(counts, faults, begun), told)
        worker.kill()
        worker.wait()
    return found(counts, faults, begun)


def found(counts: dict[str, Counter[str]], faults: list[dict[str, Any]], begun: float) -> dict[str, Any]:
    return {
        "minutes": round((time.monotonic() - begun) / 60, 1),
        "cases": sum(sum(c.values()) for c in counts.values()) + len(faults),
        "by_kind": {kind: dict(count) for kind, count in counts.items()},
        "faults": faults,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--first", type=int, default=1, help="number of the first case")
    parser.add_argument("--case", type=int, help="only this one, here")
    parser.add_argument("--out", type=Path, help="file for what was found, such as benchmarks/results/fuzz.json")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if options.work:
        work(options.work, options.first)
        return
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder).resolve()
        os.environ["GOALGEN_CACHE"] = str(base / "cache")
        make_models(base)
        if options.case is not None:
            print(one_case(base, options.case))
            return

        def keep(so_far: dict[str, Any], told: dict[str, Any]) -> None:
            if "fault" in told:
                print(json.dumps(told), file=sys.stderr, flush=True)
            if options.out and (so_far["cases"] % 100 == 0 or "fault" in told):
                options.out.write_text(json.dumps(so_far, indent=2) + "\n")

        result = watch(base, options.minutes, options.first, keep)
        if options.out:
            options.out.write_text(json.dumps(result, indent=2) + "\n")
        print(f"{result['cases']} cases in {result['minutes']} minutes, {len(result['faults'])} faults")
        sys.exit(bool(result["faults"]))


if __name__ == "__main__":
    main()
