"""The documents say what the code does: equation numbers, names, commands, links, and Python that runs."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import setting_names

from goalgen import cli
from goalgen.cli import commands, parsing
from goalgen.config import Config
from goalgen.errors import GoalgenError
from goalgen.settings import load_preset, preset_names

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "goalgen"
MATH = ROOT / "docs" / "math.md"
GUIDE = ROOT / "docs" / "guide.md"
DOCUMENTS = [path for path in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))] if path.exists()]

CITATION = re.compile(r"\b[Ee]quations?\s+(\d+(?:(?:\s*,\s*and\s+|\s*,\s*|\s+and\s+)\d+)*)")
MARKER = re.compile(r"^\*\*\((\d+)\)\*\*", re.MULTILINE)
COMPUTED_BY = "Computed by: "
PLANNED = "Planned: "

FORBIDDEN = ("/home/", "/root/", "../shared")
"""Paths of the machine that something was written on."""

OPTIONS = {"train": Config, "sample": cli.SampleOptions, "restore": cli.RestoreOptions, "vectorize": cli.VectorizeOptions, "evaluate": cli.EvaluateOptions,
           "show": cli.ShowOptions, "plot": cli.PlotOptions,
           "demo": cli.DemoOptions}  # fmt: skip
FOREIGN_OPTIONS = {"--num_processes", "--multi_gpu", "--num_machines", "--machine_rank", "--version"}
"""Options in the documents that belong to `accelerate launch` and to goalgen itself."""


def cited(text: str) -> set[int]:
    return {int(n) for numbers in CITATION.findall(text) for n in re.findall(r"\d+", numbers)}


# -- equations -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Equation:
    computed_by: list[str]
    planned: bool


def equations() -> dict[int, Equation]:
    """The numbered equations of docs/math.md, each with what follows it up to the next number."""
    text = MATH.read_text(encoding="utf-8")
    marks = list(MARKER.finditer(text))
    found: dict[int, Equation] = {}
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        number, body = int(mark[1]), text[mark.end() : following.start() if following else None]
        assert number not in found, f"equation {number} is numbered twice"
        paragraphs = body.split("\n\n")
        lists = [p for p in paragraphs if p.startswith(COMPUTED_BY)]
        names = re.findall(r"`(goalgen[\w.]*)`", " ".join(lists))
        found[number] = Equation(names, any(p.startswith(PLANNED) for p in paragraphs))
    return found


def resolve(name: str) -> Any:
    """The object with this dotted name."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            assert hasattr(value, part), f"{name} does not exist"
            value = getattr(value, part)
        return value
    raise AssertionError(f"{name} cannot be imported")


def test_equations_are_numbered_without_a_gap():
    assert sorted(equations()) == list(range(1, len(equations()) + 1))


def test_every_cited_equation_exists_and_none_of_them_is_planned():
    known = equations()
    for path in sorted(SOURCE.rglob("*.py")):
        for number in cited(path.read_text(encoding="utf-8")):
            assert number in known, f"{path.name} cites equation {number}, which docs/math.md does not have"
            assert not known[number].planned, f"{path.name} cites equation {number}, which docs/math.md calls planned"


@pytest.mark.parametrize("number", sorted(equations()))
def test_what_computes_an_equation_exists_and_cites_it(number):
    equation = equations()[number]
    if equation.planned:
        assert not equation.computed_by
        return
    assert equation.computed_by, f"equation {number} names nothing that computes it, and is not marked as planned"
    for name in equation.computed_by:
        own = cited(resolve(name).__doc__ or "")
        assert number in own, f"{name} is listed for equation {number}; its docstring cites {sorted(own) or 'none'}"


def test_numbers_in_the_documents_exist():
    known = set(equations())
    for path in DOCUMENTS:
        unknown = cited(path.read_text(encoding="utf-8")) - known
        assert not unknown, f"{path.name} speaks of equations {sorted(unknown)}"


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("see (Equation 3)", {3}),
        ("(Equations 1 and 2)", {1, 2}),
        ("(Equations 5, 6\n    and 8)", {5, 6, 8}),
        ("a case of equation 6, q(a | x)", {6}),
        ("(Equations 5, 6)", {5, 6}),
        ("no number: the equation of Bellman, 1957", set()),
    ],
)
def test_citations_are_read(text, numbers):
    assert cited(text) == numbers


# -- names in the documents ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_dotted_names_exist(path):
    """`goalgen.something` in backticks is something that can be imported."""
    for name in set(re.findall(r"`(goalgen(?:\.\w+)+)(?:\([^`]*\))?`", path.read_text(encoding="utf-8"))):
        resolve(name)


# -- Python in the documents ---------------------------------------------------------------------------------------


def python_of(path: Path) -> str:
    """The ```python blocks of a document as one file whose line numbers are the document's."""
    out, inside = [], False
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            inside = line.strip() == "```python"
            out.append("")
        else:
            out.append(line if inside else "")
    return "\n".join(out) + "\n"


@pytest.mark.parametrize("path", [p for p in DOCUMENTS if python_of(p).strip()], ids=lambda p: p.name)
def test_python_blocks_run(path, tmp_path):
    """Top to bottom in one namespace, in an empty folder; a traceback shows the document's own line numbers."""
    script = tmp_path / f"{path.name}.py"
    script.write_text(python_of(path), encoding="utf-8")
    folder = tmp_path / "work"
    folder.mkdir()
    settings = {
        "PYTHONPATH": str(SOURCE.parent),
        "GOALGEN_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TMPDIR": str(tmp_path),
        "PYTHONIOENCODING": "utf-8",
    }
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:goalgen", str(script)],
        cwd=folder, env={**os.environ, **settings}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, f"{path.name}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


# -- commands in the documents -------------------------------------------------------------------------------------


def option_names(kind: Any) -> set[str]:
    """The options of a dataclass as the command line spells them."""
    options = {name.replace("_", "-") for name in setting_names(kind)}
    return {"--help", "-h"} | {f"--{option}" for option in options} | {f"--no-{option}" for option in options}


NAMES = {command: option_names(kind) for command, kind in OPTIONS.items()}
NAMES["train"].add("--preset")


def fenced(text: str) -> Iterator[tuple[str, str]]:
    """Language and content of every fenced block."""
    yield from re.findall(r"^```(\w*)[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands_of(path: Path) -> Iterator[tuple[list[str], bool]]:
    """Arguments after ``goalgen`` of every command, and whether it is whole (in a block, not in a sentence)."""
    text = path.read_text(encoding="utf-8")
    lines = []
    for language, block in fenced(text):
        if language in ("sh", "bash", "console", "shell", ""):
            lines += [(line, True) for line in block.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines += [(span, False) for span in re.findall(r"`(goalgen [^`]*)`", prose)]
    for line, whole in lines:
        # Behind the program itself, `python -m goalgen` or `accelerate launch ... -m goalgen`.
        found = re.search(r"(?:^\s*\$?\s*(?:\w+=\S+\s+)*|-m )goalgen\s+(.*)", line)
        if found:
            words = shlex.split(found[1], comments=True)
            end = next((i for i, w in enumerate(words) if re.fullmatch(r"[|&;>]+|\d?>.*", w)), len(words))
            yield words[:end], whole


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_commands_use_options_that_exist(path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for words, whole in commands_of(path):
        command, arguments = words[0], words[1:]
        if command.startswith("-") or command == "COMMAND" or "|" in words:
            continue
        assert command in OPTIONS, f"{path.name}: goalgen {' '.join(words)}: no such command"
        for word in arguments:
            if word.startswith("-") and not re.fullmatch(r"-[\d.]+", word):
                name = word.partition("=")[0]
                assert name in NAMES[command], f"{path.name}: goalgen {' '.join(words)}: no option {name}"
        if whole and not {"--help", "-h", "..."} & set(arguments):
            parse_whole(command, arguments, path)


def parse_whole(command: str, arguments: list[str], path: Path) -> None:
    """Let the command line itself read the arguments, values included."""
    try:
        if command == "train":
            preset, arguments = commands._take_preset(arguments)
            assert preset is None or preset in preset_names(), f"{path.name}: no preset {preset}"
            parsing.parse_config(arguments, load_preset(preset) if preset else None)
        else:
            parsing.parse(OPTIONS[command], command, arguments)
    except GoalgenError as error:
        raise AssertionError(f"{path.name}: goalgen {command} {' '.join(arguments)}: {error}") from None


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_options_in_sentences_exist(path):
    prose = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    known = set().union(*NAMES.values()) | FOREIGN_OPTIONS
    for span in re.findall(r"`([^`]*)`", prose):
        script = re.match(r"(benchmarks/\w+\.py)\b", span)
        own = set(re.findall(r'"(--[a-z][\w-]*)"', (ROOT / script[1]).read_text(encoding="utf-8"))) if script else known
        for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", span):
            assert option in own, f"{path.name}: `{span}`: no option {option}"


def test_messages_in_the_guide_are_those_of_the_code():
    """The first column of the table of errors is found, word for word, in the source."""
    section = GUIDE.read_text(encoding="utf-8").partition("## When something is wrong")[2].partition("\n## ")[0]
    messages = re.findall(r"^\| `([^`]+)` \|", section.partition("Things that are no errors")[0], re.MULTILINE)
    assert messages
    # A message may be written as several literals in a row, and holds values in braces.
    source = "".join(path.read_text(encoding="utf-8") for path in sorted(SOURCE.rglob("*.py")))
    source = re.sub(r"\{which\}", "best", re.sub(r'"\s*\n\s*f?"', "", source))
    for message in messages:
        assert message in source, f"no error says {message!r}"


def test_what_the_guide_says_of_kills_and_random_changes_is_in_the_result_files():
    results, text = ROOT / "benchmarks" / "results", " ".join(GUIDE.read_text(encoding="utf-8").split())
    killed = json.loads((results / "killed.json").read_text())
    assert f"killed runs of {len(killed['kinds'])} kinds {killed['kills']} times" in text
    assert not any(kind["wrong"] for kind in killed["kinds"].values())
    fuzzed = json.loads((results / "fuzz.json").read_text())
    assert f"{fuzzed['cases']:,} cases in {fuzzed['minutes']:.0f} minutes" in text
    assert f"then {fuzzed['again']['cases']:,} more" in text


# -- links and leavings --------------------------------------------------------------------------------------------


def without_code(text: str) -> str:
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`|\$[^$\n]*\$", "", text)


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a document."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    slugs = set()
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        slugs.add(re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-"))
    return slugs


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_relative_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)", without_code(path.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        other = (path.parent / file).resolve() if file else path
        assert other.exists(), f"{path.name} links to {target}, which does not exist"
        if anchor and other.suffix == ".md":
            assert anchor in anchors(other), f"{path.name} links to {target}; {other.name} has no such heading"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_a_document_has_a_heading_and_no_path_of_a_machine(path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# "), f"{path.name} does not begin with its heading"
    for string in FORBIDDEN:
        assert string not in text, f"{path.name} mentions {string}"
