"""A new user's first hour at the command line, off a terminal and on one: no traceback, no surprise. Writes docs/first-hour.md.

A folder of images is made with whatever folders of images have wrong with them. goalgen is then driven as by somebody who has read the
README once: mistakes, a training that is interrupted and gone on with, samples, numbers, restorations, the run moved, the model given
away. Every command must end as it should; what it printed is the transcript, with what a clock decides made neutral.

    python benchmarks/first_hour.py              # run it all, write docs/first-hour.md
    python benchmarks/first_hour.py --check      # run it all; fail if docs/first-hour.md tells another story
    python benchmarks/first_hour.py --short      # a part of it, nothing written: what the tests do
"""

from __future__ import annotations

import argparse
import difflib
import fcntl
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "first-hour.md"
COLUMNS, SHOWN, LONG = 110, 24, 120
"""Width of the terminal, lines of one command that the page shows, and length from which a line is shown in full only once."""

INTRO = """# A first hour

What a new user types and what goalgen answers, from beginning to end. `benchmarks/first_hour.py` types it, checks every answer, and writes
this page; what a clock decides reads …, and so does what is left out, or was shown before. The images, {images} in all, are drawn by the script and have what
folders of images have: sizes that differ, 16-bit grey, a palette with transparency, a `.jfif`, a file that is cut off, one that is no image, a text
file, a link, an image that is in both train and test, names with spaces and control characters, and classes called 0 to 11.
"""


@dataclass
class Step:
    """A command, and how it must end."""

    words: str
    """as typed; "goalgen" is this checkout's"""
    status: int = 0
    says: tuple[str, ...] = ()
    """what it must print"""
    never: tuple[str, ...] = ()
    """what it must not print"""
    title: str = ""
    """heading before it"""
    about: str = ""
    """a sentence before it"""
    interrupt: str = ""
    """press Ctrl-C a second after this is printed"""
    terminal: bool = False
    short: bool = False
    """whether it is part of --short"""
    shown: int = SHOWN
    output: str = field(default="", init=False)


def error(words: str, *says: str, **more: object) -> Step:
    return Step(words, 2, ("goalgen: error: ", *says), **more)  # type: ignore[arg-type]


PYTHON = """python -c "
import goalgen
model = goalgen.load('{model}')
print(model)
print(model.sample(4, seed=1).images.shape)
{more}" """.strip()

TRAIN = "goalgen train --data photos --image-size 12 12 --out runs/mine --max-seconds {seconds}"
ON_TERMINAL = "goalgen train --data photos --image-size 12 12 --out runs/second --max-seconds {seconds}"


def steps(seconds: int) -> list[Step]:
    train, again = TRAIN.format(seconds=seconds), ON_TERMINAL.format(seconds=seconds)
    return [
        Step("goalgen", 2, ("goalgen train", "--help"), title="What is there"),
        Step("goalgen train --help", 0, ("the six options one needs", "--image-size"), shown=32),
        error("goalgen train --data photso --image-size 12 12", "photos", title="Mistakes", short=True),
        error("goalgen train --data photos", "differ in size", "--image-size"),
        error("goalgen train --data photos --imagesize 16", "--image-size", short=True),
        error("goalgen train --data photos --image-size big", "--image-size"),
        error("goalgen train --data photos --image-size 12 12 --out photos", "choose another folder"),
        error("goalgen sample runs/mine", "is no folder here"),
        Step(train, 130, ("goes on", "unreadable"), interrupt="images/s: ", short=True,
             title="Train, stop, go on", about="Ctrl-C after some seconds; then the same command."),
        Step(train, 0, ("done",), short=True),
        Step(train, 0, ("done already",), about="Once more: it is finished."),
        Step("goalgen show runs/mine", 0, ("start: mean",), title="Look at it", short=True),
        Step("goalgen sample runs/mine --num 16 --out new --grid", 0, ("16 images in new",), short=True),
        error("goalgen sample runs/mine --num 16 --out new --grid", "--force", short=True),
        Step("goalgen sample runs/mine --num 16 --seed 1 --out new --grid --force", 0, ("16 images in new",)),
        Step("goalgen evaluate runs/mine --quick --json numbers.json", 0, ("bits_per_dim", "quick"), shown=40),
        Step("goalgen plot runs/mine", 0, ("curves.png",)),
        error("goalgen restore runs/mine photos/test/10/a.png --out repaired", "was not trained to restore",
              title="Restore"),
        Step(f"goalgen train --data photos --image-size 12 12 --start mask:0.5 --out runs/inpainter --max-seconds {max(seconds // 2, 4)}", 0,
             ("done",)),
        Step("goalgen restore runs/inpainter photos/test/10/a.png photos/test/2 --mask middle --out repaired", 0, ("repaired",)),
        Step("mv runs/mine elsewhere", title="Move the run", short=True),
        Step("goalgen sample elsewhere --num 4 --out moved", 0, ("4 images in moved",), short=True),
        Step("goalgen evaluate elsewhere --quick", 0, ("bits_per_dim",), shown=14),
        error("goalgen sample runs/mine --num 4 --out again", "is no folder here"),
        Step("mv photos pictures"),
        error("goalgen evaluate elsewhere --quick", "say with --data", about="Now the images, too, are elsewhere."),
        Step("goalgen evaluate elsewhere --quick --data pictures", 0, ("bits_per_dim",), shown=14),
        Step("mv pictures photos"),
        Step(PYTHON.format(model="elsewhere", more="model.save('shared')\n"), 0, ("[4, ",), title="Give it away"),
        Step("mkdir friend && mv shared friend/model && cd friend && goalgen sample model --num 4 --out drawn", 0, ("4 images in drawn",)),
        Step("cd friend && " + PYTHON.format(model="model", more=""), 0, ("[4, ",)),
        Step(again, 130, ("goes on",), interrupt="images/s: ", terminal=True, title="On a terminal",
             about="The same at a terminal, where a bar moves; here is the last state of it.", short=True),
        Step(again, 0, ("done",), terminal=True, short=True),
        Step("goalgen sample runs/second --num 16 --out seconds --grid", 0, ("16 images",), terminal=True, short=True),
        error("goalgen sample runs/second --num 16 --out seconds", "--force", terminal=True, short=True),
        Step("goalgen evaluate runs/second --quick", 0, ("bits_per_dim",), terminal=True, shown=40),
        error("goalgen evaluate runs/secnod", "runs/second", terminal=True),
    ]  # fmt: skip


# -- the images ----------------------------------------------------------------------------------------------------


def make_images(folder: Path) -> int:
    """Twelve classes of bars, class k with k of them, and everything that can be wrong. Returns the number of files."""
    import numpy as np
    from PIL import Image

    dice = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 5)):
        for label in range(12):
            place = folder / split / str(label)
            place.mkdir(parents=True)
            for i in range(count):
                pixels = dice.integers(0, 40, (24, 24), dtype=np.uint8)
                for bar in range(label):
                    top = dice.integers(0, 3)
                    pixels[2 + top : 20 + top, 1 + 2 * bar : 2 + 2 * bar] = dice.integers(150, 256)
                name = "abcdefghijklmnopqrstuvwxyz"[i] + ".png"
                Image.fromarray(pixels if i % 3 else pixels[:20]).save(place / name)  # sizes differ
    deep = Image.fromarray(dice.integers(0, 65536, (24, 24), dtype=np.uint16))
    deep.save(folder / "train" / "3" / "sixteen bits.png")
    colour = Image.fromarray(dice.integers(0, 256, (24, 24, 3), dtype=np.uint8))
    colour.quantize(9).save(folder / "train" / "4" / "palette.png", transparency=3)
    colour.save(folder / "train" / "5" / "from the net.jfif", format="jpeg")
    whole = (folder / "train" / "6" / "a.png").read_bytes()
    (folder / "train" / "6" / "cut off.png").write_bytes(whole[: len(whole) // 2])
    (folder / "train" / "7" / "no image.jpg").write_text("<html>404</html>")
    (folder / "train" / "notes.txt").write_text("remember to sort these\n")
    (folder / "train" / "8" / "linked.png").symlink_to(Path("a.png"))
    shutil.copy(folder / "train" / "9" / "a.png", folder / "test" / "9" / "z.png")
    (folder / "train" / "10" / "odd \x1b[31mname\x07.png").write_bytes(b"not an image either")
    colour.resize((30, 20)).save(folder / "train" / "11" / "ümläut und Leerzeichen.png")
    return sum(p.is_file() for p in folder.rglob("*"))


# -- typing --------------------------------------------------------------------------------------------------------


def type_it(step: Step, folder: Path, environment: dict[str, str]) -> int:
    """Run one command as a shell would, and keep what it prints. Returns its status."""
    ends: list[int] = list(pty.openpty()) if step.terminal else list(os.pipe())
    if step.terminal:
        fcntl.ioctl(ends[1], termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))

    def own_terminal() -> None:
        os.setsid()
        if step.terminal:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        ["bash", "-c", step.words], cwd=folder, env=environment, stdin=ends[1] if step.terminal else subprocess.DEVNULL,
        stdout=ends[1], stderr=ends[1], preexec_fn=own_terminal,
    )  # fmt: skip
    os.close(ends[1])
    said, begun, pressed = b"", time.monotonic(), not step.interrupt
    while True:
        if select.select([ends[0]], [], [], 0.2)[0]:
            try:
                part = os.read(ends[0], 65536)
            except OSError:  # a terminal that nobody has open any more
                part = b""
            if not part:
                break
            said += part
        if not pressed and step.interrupt.encode() in said:
            time.sleep(1)
            if step.terminal:
                os.write(ends[0], b"\x03")
            else:
                os.killpg(process.pid, signal.SIGINT)
            pressed = True
        if time.monotonic() - begun > 600:
            os.killpg(process.pid, signal.SIGKILL)
            break
    os.close(ends[0])
    step.output = said.decode(errors="replace")
    return process.wait()


def wrong(step: Step, status: int) -> list[str]:
    """What a command did that it must not have."""
    text = as_seen(step.output)
    found = [] if status == step.status else [f"status {status}, not {step.status}"]
    found += [f"does not say {words!r}" for words in step.says if words not in " ".join(text.split())]
    found += ["Traceback"] * ("Traceback" in text)
    found += ["control characters of a name reach the terminal"] * (
        "\x1b[31mname" in step.output or "\x07" in step.output
    )
    if step.status == 2 and step.says[0] == "goalgen: error: ":
        lines = text.splitlines()
        # On a terminal one line of output may take several of the screen.
        if sum("goalgen: error:" in line for line in lines) != 1 or "goalgen: error:" not in lines[-1]:
            found.append("no error of one line")
        elif len(lines[-1]) > 400:
            found.append(f"an error of {len(lines[-1])} characters")
    return found


def as_seen(output: str) -> str:
    """What a terminal shows in the end: of lines that were drawn over, the last state, without colours."""
    output = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.replace("\r\n", "\n"))
    lines = []
    for line in output.split("\n"):
        states = [state for state in line.split("\r") if state.strip()]
        lines.append(states[-1].rstrip() if states else "")
    return "\n".join(lines).strip("\n")


# -- the page ------------------------------------------------------------------------------------------------------


def neutral(text: str, folder: Path) -> str:
    """Without paths of the machine, and without what a clock decides."""
    text = text.replace(str(folder), "~/photos-and-runs").replace(str(ROOT), "~/goalgen")
    text = re.sub(r"\b[\d,.:]+(?= (?:s|min|h|images/s|epochs|seconds)\b)", "…", text)
    text = re.sub(r"\d+%\|[^|]*\|", "…%|████      |", text)
    text = re.sub(r"^(\s*)\d+%(?=, )", r"\1…%", text, flags=re.MULTILINE)
    return re.sub(r"(?<=step )\d[\d,]*(?<=\d)", "…", text)


def page(done: list[Step], images: int, folder: Path) -> str:
    parts = [INTRO.format(images=images)]
    block: list[str] = []
    seen: set[str] = set()  # long lines, which are shown in full once

    def close() -> None:
        if block:
            parts.append("```text\n" + "\n".join(block) + "\n```\n")
            block.clear()

    for step in done:
        if step.title or step.about:
            close()
        parts += [f"## {step.title}\n"] * bool(step.title) + [f"{step.about}\n"] * bool(step.about)
        first, *rest = step.words.splitlines()
        block.extend([f"$ {first}", *rest])
        lines = neutral(as_seen(step.output), folder).splitlines()
        known = [len(line) > LONG and line in seen for line in lines]
        seen |= set(lines)
        lines = [f"{line[:60]} …" if again else line for line, again in zip(lines, known, strict=True)]
        if len(lines) > step.shown:
            lines = [*lines[: step.shown], f"… ({len(lines) - step.shown} more lines)"]
        if step.interrupt:  # a terminal echoes it
            lines = [*lines[:-1], "^C", lines[-1].removeprefix("^C")]
        block.extend(lines)
        if step.status not in (0, 2):
            block.append(f"(exit status {step.status})")
    close()
    return "\n".join(parts)


def structure(text: str) -> list[str]:
    """What --check compares: words, not numbers."""
    told = [
        line for line in text.splitlines() if "██" not in line and "measured on" not in line
    ]  # as the clock will have it
    lines = [re.sub(r"-?[\d,.]*\d", "#", line) for line in told]
    return [re.sub(r"\s+", " ", re.sub(r"[━─┃│┏┓┗┛┡┩└┘╇┴┬┼█ ]+", " ", line)).strip() for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with docs/first-hour.md instead of writing it")
    parser.add_argument("--short", action="store_true", help="a part of it only; nothing is written")
    parser.add_argument("--seconds", type=int, default=20, help="of a training")
    options = parser.parse_args()
    faults = 0
    with tempfile.TemporaryDirectory() as name:
        top = Path(name).resolve()
        folder, programs = top / "user", top / "bin"
        programs.mkdir()
        for program, words in (("goalgen", "-m goalgen "), ("python", "")):
            (programs / program).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words}"$@"\n')
            (programs / program).chmod(0o755)
        images = make_images(folder / "photos")
        environment = os.environ | {
            "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT / "src"), "GOALGEN_CACHE": str(top / "cache"),
            "HF_HUB_OFFLINE": "1", "COLUMNS": str(COLUMNS), "TERM": "xterm", "LANG": "C.UTF-8",
        }  # fmt: skip
        done = [step for step in steps(options.seconds) if step.short or not options.short]
        for step in done:
            begun = time.monotonic()
            found = wrong(step, type_it(step, folder, environment))
            faults += len(found)
            print(
                f"{time.monotonic() - begun:6.1f} s  {step.words.splitlines()[0][:90]}", *found, sep="   ", flush=True
            )
            if found:
                print(step.output)
        text = page(done, images, folder)
    if options.check:
        changes = [
            *difflib.unified_diff(
                structure(PAGE.read_text(encoding="utf-8")), structure(text), "docs/first-hour.md", "now", n=1
            )
        ]
        print("\n".join(changes) or "docs/first-hour.md says what happens")
        faults += bool(changes)
    elif not options.short:
        PAGE.write_text(text, encoding="utf-8")
    print(f"{len(done)} commands, {faults} faults")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
