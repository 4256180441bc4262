"""How the arguments of a command become its options, and what is said of those that do not."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import inspect
import io
import re
import textwrap
import typing
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import tyro

from goalgen.config import Config
from goalgen.errors import GoalgenError

T = TypeVar("T")

ABOUT_FILES = ("image_size", "fit", "channels", "background", "corrupt")
"""Settings that nobody gives who means the embedded digits."""


def parse(kind: type[T], command: str, arguments: Sequence[str], default: T | None = None) -> T:
    """Read command-line arguments into a dataclass; what cannot be read becomes one line.

    Raises:
        GoalgenError: an unknown option or a value of the wrong type.
        SystemExit: after --help.
    """
    arguments = with_sizes(arguments)
    errors = io.StringIO()
    options: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(
                kind, prog=f"goalgen {command}", args=list(arguments), config=(tyro.conf.OmitArgPrefixes,), **options
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
    said = _one_line(errors.getvalue())
    if unknown := re.match(r"Unrecognized options: (-\S+?)(?:[,\s]|$)", said):
        raise GoalgenError(f"{unknown_option(unknown[1], option_names(kind), command)} (see goalgen {command} --help)")
    raise GoalgenError(f"{in_words(said)} (see goalgen {command} --help)")


KINDS = {"INT": "a whole number", "FLOAT": "a number", "INT INT": "two whole numbers", "FLOAT FLOAT": "two numbers"}


def in_words(said: str) -> str:
    """What tyro says of a value for an option that may also be unset, without the names of Python's types."""
    found = re.match(r"Error parsing (--\S+): no type matching (.*?) could be instantiated from \['?(.*?)'?\]", said)
    if found is None:
        return said
    kinds = [KINDS.get(k, k) for k in (k.strip("{}") for k in found[2].split("|")) if k != "None"]
    return f"{found[1]} takes {' or '.join(kinds)}, not {found[3][:80] or 'nothing'}"


ALIASES = {
    "--lr": "--learning-rate", "--batch": "--batch-size", "--bs": "--batch-size", "--gpu": "--device cuda", "--cuda": "--device cuda",
    "--steps": "--max-steps", "--num-steps": "--max-steps", "--iterations": "--max-steps", "--time": "--max-seconds",
    "--minutes": "--max-seconds", "--output": "--out", "-o": "--out", "--output-dir": "--out", "--n": "--num", "-n": "--num",
    "--samples": "--num", "--num-samples": "--num", "--size": "--image-size", "--resolution": "--image-size",
    "--dataset": "--data", "--data-dir": "--data", "--model": "--environment", "--overwrite": "--force", "-f": "--force",
    "--class": "--label", "--hflip": "--flip", "--horizontal-flip": "--flip", "--config": "--preset", "--ema-decay": "--ema",
    "--epoch": "--epochs", "--fp16": "--precision bf16", "--bf16": "--precision bf16", "--verbose": "",
}  # fmt: skip
"""What options are called elsewhere, and here."""


def unknown_option(given: str, names: Sequence[str], command: str) -> str:
    """What to say of an option that does not exist."""
    name = given.partition("=")[0]
    if name in ("--resume", "--continue"):
        return f"no option is called {name}: the same command again resumes"
    known = [f"--{n.replace('_', '-')}" for n in names]
    alias = ALIASES.get(name, "")
    if alias.partition(" ")[0] in known:
        return f"goalgen {command} has no option {name}; did you mean {alias}?"
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.7)
    return f"goalgen {command} has no option {name}" + (f"; did you mean {' or '.join(near)}?" if near else "")


def option_names(kind: type) -> list[str]:
    """Names of all settings of a dataclass, and of those inside it."""
    hints, names = typing.get_type_hints(kind), []
    for item in dataclasses.fields(kind):
        inner = hints[item.name]
        names += option_names(inner) if isinstance(inner, type) and dataclasses.is_dataclass(inner) else [item.name]
    return names


def with_sizes(arguments: Sequence[str]) -> list[str]:
    """The same where --image-size may be one number, or two with an x or a comma between."""
    found: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if name.replace("_", "-") != "--image-size":
            found.append(word)
            continue
        if not equals:
            value = rest.pop(0) if rest else ""
        sides = re.fullmatch(r"(\d+)(?:[x,*](\d+))?", value.strip().lower())
        if sides is None:
            found += [name, value] if value else [name]
            continue
        second = sides[2] or (rest.pop(0) if rest and re.fullmatch(r"\d+", rest[0]) else sides[1])
        found += [name, sides[1], second]
    return found


def _one_line(message: str) -> str:
    """What tyro says, without the titled box over several lines that it draws around it, or its ASCII stand-in."""
    text = re.sub(r"\x1b\[[0-9;]*m|\[/?bold\]", "", message)
    text = re.sub(r"[╭╮╰╯│─]+|[-+]{3,}|^\||\|$", " ", text, flags=re.MULTILINE)
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and re.fullmatch(r"\w+ \w+", lines[0]):
        lines = lines[1:]  # the title
    return re.sub(r"(Argument helptext:|For full helptext).*", "", " ".join(lines)).strip()


def parse_config(arguments: Sequence[str], preset: Config | None) -> Config:
    """The configuration that the arguments of ``goalgen train`` ask for.

    Only what differs from the preset (or the defaults) counts as said, so that what a preset says of its family is no
    fault of whoever chooses another.

    Raises:
        GoalgenError: an unknown option, a value of the wrong type, or a setting of another family.
    """
    from goalgen.settings import from_dict, table_of

    before = preset or Config()
    default, tables = _train_options(before)
    asked = parse(type(default), "train", arguments, default)
    values: dict[str, Any] = {}
    for item in dataclasses.fields(default):
        old, new = getattr(default, item.name), getattr(asked, item.name)
        if not dataclasses.is_dataclass(old):
            values |= {item.name: new} if new != old else {}
            continue
        for setting in dataclasses.fields(old):
            value = getattr(new, setting.name)
            if value != getattr(old, setting.name):
                table = item.name if item.name in tables else table_of(setting)
                values.setdefault(table, {})[setting.name] = value
    files = [name for name in ABOUT_FILES if name in values.get("data", {})]
    if files and preset is None and not any(a == "--data" or a.startswith("--data=") for a in arguments):
        option = f"--{files[0].replace('_', '-')}"
        raise GoalgenError(
            f"{option} is about images of your own, and --data says none: add --data path/to/images, or --data digits for the "
            "digits that come with goalgen"
        )
    return from_dict(values, _yielding(before, values), "goalgen train")


def _yielding(preset: Config, said: dict[str, Any]) -> Config:
    """The preset without what contradicts what was said: its family where a GC-agent of another was, and the other way round."""
    from goalgen.families import families

    model, training = said.get("model", {}), said.get("training", {})
    homes = {agent: name for name, family in families().items() for agent in family.gc_agents}
    if "gc_agent" in model and "environment" not in model and preset.model.environment != "auto":
        home = homes.get(model["gc_agent"])
        if home is not None and model["gc_agent"] not in agents_of(preset.model.environment):
            preset = dataclasses.replace(
                preset, model=dataclasses.replace(preset.model, environment="auto"), family=None
            )
    agent = preset.model.gc_agent
    if (
        "environment" in model
        and "gc_agent" not in model
        and agent != "auto"
        and agent not in agents_of(model["environment"])
    ):
        preset = dataclasses.replace(preset, model=dataclasses.replace(preset.model, gc_agent="auto"), family=None)
    if "epochs" in training and "max_steps" not in training:
        preset = dataclasses.replace(preset, training=dataclasses.replace(preset.training, max_steps=None))
    return preset


def agents_of(environment: str) -> list[str]:
    """The GC-agents of a family, or of all families of stages; none where there is no such family."""
    from goalgen.config import ModelConfig
    from goalgen.families import family_of

    try:
        return list(family_of(ModelConfig(environment=environment)).gc_agents)
    except GoalgenError:
        return []


def _train_options(config: Config) -> tuple[Any, set[str]]:
    """The options of ``goalgen train`` with their defaults, grouped by family; and the groups that every model has."""
    from goalgen.families import families
    from goalgen.settings import TABLES, owners

    groups: dict[str, list[Any]] = {}
    titles: dict[str, str] = {}
    for family in families().values():
        hints, described = typing.get_type_hints(family.Settings), describe(family.Settings)
        current = config.family if isinstance(config.family, family.Settings) else family.Settings()
        for setting in dataclasses.fields(family.Settings):
            homes = owners(setting.name)
            if homes[0] is not family:
                continue
            name = "_".join(home.name for home in homes)
            titles[name] = f"--environment {' or '.join(home.name for home in homes)}"
            titles[name] += f": {inspect.getdoc(family.Settings)}" if len(homes) == 1 else ""
            kind: Any = Annotated[hints[setting.name], tyro.conf.arg(help=described.get(setting.name))]
            shared = getattr(config.family, setting.name, getattr(current, setting.name))
            value = dataclasses.field(default=shared, metadata=setting.metadata)
            groups.setdefault(name, []).append((setting.name, kind, value))
    fields: list[Any] = []
    help_of = describe(type(config))
    for item in dataclasses.fields(config):
        if item.name != "family":
            hint = typing.get_type_hints(type(config))[item.name]
            kind = hint if item.name in TABLES else Annotated[hint, tyro.conf.arg(help=help_of[item.name])]
            fields.append((item.name, kind, dataclasses.field(default=getattr(config, item.name))))
    for name, settings in groups.items():
        group = dataclasses.make_dataclass(name, settings, frozen=True, namespace={"__doc__": titles[name]})
        fields.append((name, group, dataclasses.field(default=group())))
    doc = {"__doc__": "Train, or resume, the run that these settings describe."}
    return dataclasses.make_dataclass("Train", fields, frozen=True, namespace=doc)(), set(TABLES)


def describe(settings: type) -> dict[str, str]:
    """The docstring below every field of a dataclass; none where its source is not at hand."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(settings))).body[0]
    except (OSError, TypeError, SyntaxError):
        return {}
    found, before = {}, ""
    for node in tree.body if isinstance(tree, ast.ClassDef) else []:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            before = node.target.id
        elif before and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found[before] = inspect.cleandoc(str(node.value.value))
    return found
