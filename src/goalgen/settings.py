"""All settings by name: as arguments, as the JSON saved with a run, as presets. A name is the same in all.

In files the settings of a family stand among those of model and training. A preset is a TOML file in ``goalgen/presets``
that overrides some of the defaults.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
import types
import typing
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

from goalgen.config import Config, DataConfig, ModelConfig, TrainingConfig
from goalgen.errors import GoalgenError
from goalgen.families import families, family_of, settings_of
from goalgen.family import Family
from goalgen.storage import load_json

FORMAT = 1
"""Version of the saved configuration; raised when an old file can no longer be read as it is."""

TABLES: dict[str, Any] = {"data": DataConfig, "model": ModelConfig, "training": TrainingConfig}
"""Settings that every model has, by the table of a file that they stand in."""

RETIRED = {"likelihood"}
"""Settings of earlier files that have no meaning any more."""

T = TypeVar("T")


def owners(name: str) -> list[type[Family]]:
    """The families that have a setting of this name."""
    return [family for family in families().values() if name in family.Settings.__dataclass_fields__]


def table_of(field: dataclasses.Field[Any]) -> str:
    """The table of a file in which a family's setting stands."""
    return str(field.metadata.get("table", "model"))


def complete(config: Config) -> Config:
    """The same with the family's settings filled in, so that equal configurations compare equal."""
    return dataclasses.replace(config, family=settings_of(config))


def to_dict(config: Config) -> dict[str, Any]:
    """Return the configuration as plain JSON values, with its format version."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, Path):
            return value.as_posix()
        return list(value) if isinstance(value, tuple) else value

    values = {"format": FORMAT, **plain(dataclasses.replace(config, family=None))}
    del values["family"]
    settings = settings_of(config)
    for field in dataclasses.fields(settings):
        values[table_of(field)][field.name] = plain(getattr(settings, field.name))
    return values


def from_dict(
    values: dict[str, Any], base: Config | None = None, source: str = "configuration", *, strict: bool = True
) -> Config:
    """Return ``base`` (the defaults, if none is given) with ``values`` laid over it.

    Args:
        values: as :func:`to_dict` gives them, or some of them.
        source: where they come from, for messages.
        strict: refuse settings of another family that are not at their default, rather than leave them out.

    Raises:
        GoalgenError: a key that does not exist, a value of the wrong type, a setting of another family, or a newer format.
    """
    if not isinstance(values, dict):
        raise GoalgenError(f"{source}: expected a table of settings, found {type(values).__name__}")
    values = dict(values)
    version = values.pop("format", FORMAT)
    if version != FORMAT:
        raise GoalgenError(f"{source}: format {version!r} is not known to this goalgen (it reads {FORMAT}); upgrade it")
    if isinstance(values.get("model"), dict) and isinstance(values["model"].get("environment"), str):
        family_of(
            ModelConfig(environment=values["model"]["environment"])
        )  # before its settings are found to be unknown
    own: dict[str, Any] = {}
    for table, kind in TABLES.items():
        if isinstance(values.get(table), dict):
            rest = {k: v for k, v in values[table].items() if k not in RETIRED}
            foreign = [k for k in rest if k not in kind.__dataclass_fields__ and owners(k)]
            own |= {k: rest.pop(k) for k in foreign}
            values[table] = rest
    config = _overlay(base or Config(), values, source)
    family = family_of(config.model)
    settings = config.family if isinstance(config.family, family.Settings) else family.Settings()
    mine = {k: v for k, v in own.items() if k in family.Settings.__dataclass_fields__}
    if strict:
        for name in own.keys() - mine.keys():
            _refuse_foreign(name, own[name], family, source)
    return dataclasses.replace(config, family=_overlay(settings, mine, source))


def _refuse_foreign(name: str, value: Any, family: type[Family], source: str) -> None:
    """Refuse a setting that ``family`` does not have, unless it stands at its default."""
    homes = owners(name)
    hint = typing.get_type_hints(homes[0].Settings)[name]
    if _coerce(value, hint, f"{source}: {name}") != homes[0].Settings.__dataclass_fields__[name].default:
        places = " or ".join(home.name for home in homes)
        option = ("no-" if value is False else "") + name.replace("_", "-")
        raise GoalgenError(f"--{option} is for --environment {places}, not {family.name}; leave it out")


def _overlay(base: T, values: dict[str, Any], source: str) -> T:
    hints = typing.get_type_hints(type(base))
    hints.pop("family", None)  # its settings stand among the others
    changes: dict[str, Any] = {}
    for key, value in values.items():
        if key not in hints:
            every = [*hints, *(f for family in families().values() for f in family.Settings.__dataclass_fields__)]
            near = difflib.get_close_matches(key, every, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(hints)}"
            raise GoalgenError(f"{source}: no setting is called {key!r}{hint}")
        old = getattr(base, key)
        if dataclasses.is_dataclass(old) and not isinstance(old, type):
            if not isinstance(value, dict):
                raise GoalgenError(f"{source}: {key!r} is a table of settings, not {value!r}")
            changes[key] = _overlay(old, value, source)
        else:
            changes[key] = _coerce(value, hints[key], f"{source}: {key}")
    return dataclasses.replace(base, **changes)  # type: ignore[type-var]


def _coerce(value: Any, hint: Any, where: str) -> Any:
    """Return ``value`` as ``hint`` (a type in a field annotation), or raise."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        return _coerce(value, next(a for a in args if a is not type(None)), where)
    if origin is Literal:
        if value in args and not isinstance(value, bool):
            return value
        raise GoalgenError(f"{where} must be one of {', '.join(map(str, args))}, not {value!r}")
    if origin is tuple:
        if isinstance(value, (list, tuple)) and len(value) == len(args):
            return tuple(_coerce(v, a, where) for v, a in zip(value, args, strict=True))
        raise GoalgenError(f"{where} must be {len(args)} values, not {value!r}")
    if hint in (Path, str) and isinstance(value, (str, Path)):
        return hint(value)
    # A whole number that is larger is no float.
    if hint is float and (isinstance(value, float) or (type(value) is int and abs(value) < 2**1000)):
        return float(value)
    if hint in (int, bool) and type(value) is hint:
        return value
    raise GoalgenError(f"{where} must be {getattr(hint, '__name__', hint)}, not {value!r}")


def configure(preset: str | None = None, **settings: Any) -> Config:
    """A configuration from settings by their names, those of the options of ``goalgen train``.

    ``configure(environment="bridge", horizon=4, max_steps=100)``

    Args:
        preset: whose settings stand where none is given.

    Raises:
        GoalgenError: a name that does not exist, a value of the wrong type, or a setting of another family.
    """
    values: dict[str, Any] = {}
    for name, value in settings.items():
        if name == "image_size" and type(value) is int:
            value = (value, value)
        tables = [table for table, kind in TABLES.items() if name in kind.__dataclass_fields__]
        tables += [table_of(f.Settings.__dataclass_fields__[name]) for f in owners(name)]
        place = values if name in ("out", "seed") else values.setdefault(tables[0] if tables else "model", {})
        place[name] = value
    return from_dict(values, None if preset is None else load_preset(preset), "configure")


def save_config(config: Config, path: Path) -> None:
    """Write ``config`` as JSON (callers make the write atomic)."""
    path.write_text(json.dumps(to_dict(config), indent=2) + "\n", encoding="utf-8")


def load_config(path: Path) -> Config:
    """Read a configuration written by :func:`save_config`.

    Raises:
        GoalgenError: the file is missing, is not JSON, or holds settings that do not exist.
    """
    return from_dict(load_json(path), source=str(path), strict=False)


def preset_names() -> list[str]:
    """Return the names that ``--preset`` takes."""
    folder = resources.files("goalgen") / "presets"
    return sorted(p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith(".toml"))


def preset_words() -> dict[str, str]:
    """What each preset is for, in its own words: the comment that its file begins with."""
    folder = resources.files("goalgen") / "presets"
    texts = {name: (folder / f"{name}.toml").read_text(encoding="utf-8") for name in preset_names()}
    return {name: text.splitlines()[0].lstrip("# ") for name, text in texts.items()}


def load_preset(name: str) -> Config:
    """Return the configuration of a preset: the defaults with the file's settings laid over them.

    Raises:
        GoalgenError: no preset has this name.
    """
    if name not in preset_names():
        raise GoalgenError(f"no preset is called {name!r}; there are: {', '.join(preset_names())}")
    text = (resources.files("goalgen") / "presets" / f"{name}.toml").read_text(encoding="utf-8")
    return from_dict(tomllib.loads(text), source=f"preset {name}")
