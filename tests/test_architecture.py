"""The order of the modules: each imports only from those before it, and a new one has to be placed here."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "goalgen"

LAYERS: list[tuple[str, str]] = [
    ("errors", "errors"),
    ("rng", "rng"),
    ("storage", "storage"),
    ("telling", "telling"),
    ("nearby", "nearby"),
    ("outputs", "outputs"),
    ("cache", "cache"),
    ("processes", "processes"),
    ("zoo", "zoo"),
    ("pictures", "pictures"),
    ("figures", "figures"),
    (
        "metrics",
        "metrics metrics.features metrics.fidelity metrics.images metrics.inception metrics.quality metrics.statistics",
    ),
    ("config", "config"),
    (
        "data",
        "data data.decoding data.files data.formats data.hubs data.images data.labels data.levels data.mapped data.memory data.pixels data.provenance data.records data.sets data.sources data.tables",
    ),
    ("start", "starts starts.kinds"),
    ("policies", "policies"),
    ("composite", "composite"),
    ("environment", "environment"),
    ("likelihood", "likelihoods"),
    ("networks", "networks networks.base networks.mlp networks.transformer networks.unet"),
    ("agents", "agents"),
    ("task", "task"),
    ("rollout", "rollout"),
    ("bound", "bound"),
    ("exact", "exact"),
    ("learning", "learning"),
    ("black box", "blackbox blackbox.gradient blackbox.judging blackbox.search"),
    ("family", "family"),
    (
        "families",
        "families families.bridge families.bridge.agents families.bridge.environment families.code families.latent families.proposals "
        "families.proposals.environment families.proposals.gc_agents families.proposals.picture families.proposals.revival "
        "families.proposals.s_agent families.reveal families.reveal.agents families.reveal.environment families.reveal.orders families.reveal.policies families.stages families.stages.world "
        "families.strokes families.strokes.agents families.strokes.environment families.strokes.render families.strokes.svg families.suited families.world",
    ),
    ("settings", "settings"),
    ("choice", "choice"),
    ("check", "check"),
    ("size", "size"),
    ("skeleton", "skeleton"),
    ("saved model", "saved"),
    ("hub", "hub"),
    (
        "training",
        "training training.batches training.checkpoints training.ema training.entry training.log training.loop training.machine "
        "training.muon training.optimiser training.pace training.preparation training.surviving training.teller training.updates training.validation",
    ),
    ("sample", "sampling"),
    ("intake", "intake"),
    (
        "restore",
        "restoration restoration.drawing restoration.masks restoration.names restoration.reading restoration.writing",
    ),
    ("model", "model"),
    ("vectorize", "vectorizing"),
    ("evaluate", "evaluation"),
    ("plots", "plots"),
    ("gymnasium", "gym gym.episodes gym.views gym.stable_baselines3 gym.worlds"),
    ("command line", "cli cli.commands cli.options cli.parsing cli.samples"),
    ("entry", "__main__"),
]
"""Layers from first to last, with their modules (names below ``goalgen``)."""

LAYER = {module: i for i, (_, modules) in enumerate(LAYERS) for module in modules.split()}

ONLY = {
    "errors": set(),
    "rng": set(),
    "storage": {"errors"},
    "telling": set(),
    "nearby": set(),
    "outputs": {"errors", "storage"},
    "pictures": {"errors", "storage"},
    "figures": set(),
    "cache": {"errors", "storage"},
    "processes": {"errors"},
    "metrics": {"errors", "rng", "storage", "cache"},
}
"""Layers that may import less than everything before them: utilities which know nothing of goalgen's own ideas."""

ROOT = ""
"""The package itself: what ``import goalgen`` runs."""

HEAVY = {"torchvision", "datasets", "torch_fidelity", "tensorboard", "torchmetrics"}
"""Optional packages: imported where they are used, never with goalgen."""

UNPICKLERS = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}


@dataclass(frozen=True)
class Import:
    target: str
    """Dotted name as imported, such as "torch.nn" or "goalgen.rng"."""
    line: int
    top_level: bool
    typing_only: bool


def imports(path: Path) -> Iterator[Import]:
    """Every import of a file, in functions too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    yield from _imports(tree, True, False)


def _imports(node: ast.AST, top_level: bool, typing_only: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for name in child.names:
                yield Import(name.name, child.lineno, top_level, typing_only)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"line {child.lineno}: imports are absolute here"
            for name in child.names:
                yield Import(f"{child.module}.{name.name}", child.lineno, top_level, typing_only)
        elif isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for statement in child.body:
                yield from _imports(ast.Module([statement], []), top_level, True)
            for statement in child.orelse:
                yield from _imports(ast.Module([statement], []), top_level, typing_only)
        else:
            inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from _imports(child, top_level and not inside, typing_only)


def own_module(target: str) -> str | None:
    """The module below goalgen that ``target`` (a module, or a name in one) comes from; None if not from goalgen."""
    parts = target.split(".")
    if parts[0] != "goalgen":
        return None
    for end in range(len(parts), 1, -1):
        name = ".".join(parts[1:end])
        if name in MODULES:
            return name
    return ROOT


def package(module: str) -> str:
    return module.partition(".")[0]


def test_every_module_has_its_place():
    assert set(MODULES) - {ROOT} == set(LAYER), "place each module in LAYERS of tests/test_architecture.py"


@pytest.mark.parametrize("module", sorted(set(MODULES) - {ROOT}))
def test_modules_import_only_from_earlier_layers(module):
    layer = LAYER[module]
    allowed = ONLY.get(LAYERS[layer][0])
    for found in imports(MODULES[module]):
        target = own_module(found.target)
        if target is None:
            continue
        where = f"{MODULES[module].name}:{found.line} imports {found.target}"
        if target == ROOT:
            assert package(module) in ("cli", "__main__"), f"{where}: import the module itself, not the package goalgen"
            continue
        within = LAYER[target] == layer and package(target) == package(module)
        assert within or LAYER[target] < layer, f"{where}, which comes later"
        if allowed is not None and not within:
            assert LAYERS[LAYER[target]][0] in allowed, f"{where}; {LAYERS[layer][0]} may import only {sorted(allowed)}"


def test_the_package_itself_loads_only_the_configuration():
    """`import goalgen` and `goalgen --help` must not wait for torch; the rest is loaded when first asked for."""
    eager = {own_module(f.target) for f in imports(MODULES[ROOT]) if f.top_level and not f.typing_only}
    assert eager - {None} == {"config", "errors"}
    for module in ("config", "errors", "cli", "cli.commands", "cli.options", "cli.parsing", "cli.samples"):
        tops = {f.target.partition(".")[0] for f in imports(MODULES[module]) if f.top_level and not f.typing_only}
        assert "torch" not in tops


FAMILIES = {f"families.{name}" for name in ("bridge", "code", "latent", "proposals", "reveal", "stages", "strokes")}


def family_words() -> dict[str, set[str]]:
    """Names that only a family's own file or folder may speak: of its classes, settings, GC-agents, and its own name."""
    words: dict[str, set[str]] = {}
    for home in FAMILIES:
        own = words[home] = set()
        for module, path in MODULES.items():
            if module == home or module.startswith(f"{home}."):
                tree = ast.parse(path.read_text(encoding="utf-8"))
                own |= {n.name for n in tree.body if isinstance(n, ast.ClassDef)}
                for node in ast.walk(tree):  # fields of its settings
                    if isinstance(node, ast.ClassDef) and any("Settings" in ast.unparse(b) for b in node.bases):
                        own |= {f.target.id for f in node.body if isinstance(f, ast.AnnAssign)}
    import goalgen.families as known

    for family in known.families().values():
        home = family.__module__.removeprefix("goalgen.")
        if home in words:
            words[home] |= {family.name, *family.gc_agents}
    return words


def names_in_code(path: Path) -> Iterator[tuple[str, int]]:
    """Attributes, imported names, and strings that are one word, with their lines; docstrings and messages do not count."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Name) and node.id[0].isupper():  # a class, and no variable that happens to be called so
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute):
            yield node.attr, node.lineno
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                yield alias.name.rpartition(".")[2], node.lineno
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value, node.lineno


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"families"}))
def test_only_a_family_speaks_of_itself(module):
    """No isinstance on a family's classes, no comparison with its name or its GC-agents', none of its settings elsewhere."""
    if module == "families.suited":  # the rule that chooses among them
        return
    for home, words in family_words().items():
        if module == home or module.startswith(f"{home}."):
            continue
        found = [(word, line) for word, line in names_in_code(MODULES[module]) if word in words - COMMON]
        assert not found, f"{MODULES[module].name} speaks of {home}: {found}"


COMMON = {"Box", "fixed", "grid", "value", "step_size", "learn_step_size", "code", "copy", "learned"}
"""Words that a family uses and that others use for something else, or that two families share."""


def test_the_words_of_families_are_found(tmp_path):
    words = family_words()
    assert {"Latent", "LatentSettings", "latent", "encoder", "latent_modes"} <= words["families.latent"]
    assert {"Bridge", "learned", "log_snr", "BridgeSAgent"} <= words["families.bridge"]
    file = tmp_path / "sample.py"
    file.write_text('def f(x):\n    """latent"""\n    return isinstance(x, Latent) or x.kind == "encoder"\n')
    assert {"Latent", "encoder"} <= {word for word, _ in names_in_code(file)}


def test_files_and_functions_can_be_held_in_the_head():
    for module, path in MODULES.items():
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 350, f"{module} has {len(text.splitlines())} lines: it is two things"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                reason = "Long:" in (ast.get_docstring(node) or "")
                assert length <= 60 or reason, (
                    f"{module}.{node.name} has {length} lines, and no reason in its docstring"
                )


def signatures() -> dict[str, list[str]]:
    """Long signatures, and the functions that have them; what overrides a method of a base class does not count."""
    found: dict[str, list[str]] = {}
    bases: dict[str, set[str]] = {}
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                bases.setdefault(node.name, {ast.unparse(b).rpartition(".")[2] for b in node.bases})
    methods: dict[str, set[str]] = {}

    def inherited(kind: str, name: str) -> bool:
        return any(name in methods.get(b, set()) or inherited(b, name) for b in bases.get(kind, set()))

    every = []
    for module, path in MODULES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for parent in ast.walk(tree):
            for node in ast.iter_child_nodes(parent):
                if isinstance(node, ast.FunctionDef):
                    kind = parent.name if isinstance(parent, ast.ClassDef) else ""
                    methods.setdefault(kind, set()).add(node.name)
                    every.append((module, kind, node))
    for module, kind, node in every:
        arguments = [a for a in (*node.args.args, *node.args.kwonlyargs) if a.arg not in ("self", "cls")]
        if len(arguments) >= 5 and not (kind and inherited(kind, node.name)):
            key = ", ".join(f"{a.arg}: {ast.unparse(a.annotation) if a.annotation else ''}" for a in arguments)
            found.setdefault(key, []).append(f"{module}.{kind}.{node.name}")
    return found


def test_no_long_signature_stands_twice():
    assert {key: where for key, where in signatures().items() if len(where) > 1} == {}


def test_there_is_no_import_cycle():
    graph = {
        module: {t for f in imports(path) if (t := own_module(f.target)) is not None and t not in (ROOT, module)}
        for module, path in MODULES.items()
        if module != ROOT
    }
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the cycle


@pytest.mark.parametrize("module", sorted(MODULES))
def test_optional_packages_are_not_imported_with_goalgen(module):
    for found in imports(MODULES[module]):
        if found.top_level and not found.typing_only:
            parts = set(found.target.split("."))
            assert not parts & HEAVY, f"{module} line {found.line}: import {found.target} where it is used"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_nothing_is_unpickled(module):
    """Files of others must not run code: safetensors and JSON everywhere; published weights with weights_only=True."""
    for found in imports(MODULES[module]):
        assert found.target.partition(".")[0] not in UNPICKLERS, f"{module} line {found.line} imports {found.target}"
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        where = f"{module} line {node.lineno}: {called}"
        if called in ("torch.load", "torch.save") or called.startswith("torch.hub.load"):
            assert module == "metrics.inception", f"{where}; use goalgen.storage"
            if called != "torch.save":
                given = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert given.get("weights_only") == "True", f"{where} needs weights_only=True"
        if any(k.arg == "allow_pickle" for k in node.keywords):
            raise AssertionError(f"{where} with allow_pickle")


def test_the_rules_catch_what_they_forbid(tmp_path):
    """The parser sees imports in functions, in classes and behind conditions."""
    file = tmp_path / "sample.py"
    file.write_text(
        "import torch.nn as nn\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from goalgen.model import Model\n"
        "class A:\n    import datasets\n"
        "def f():\n    from goalgen import rng\n    from goalgen.data import load_data\n"
        "try:\n    import torchvision\nexcept ImportError:\n    pass\n"
    )
    found = {(f.target, f.top_level, f.typing_only) for f in imports(file)}
    assert ("goalgen.model.Model", True, True) in found
    assert ("datasets", True, False) in found
    assert ("goalgen.rng", False, False) in found
    assert ("torchvision", True, False) in found
    assert own_module("goalgen.rng") == "rng"
    assert own_module("goalgen.data.load_data") == "data"
    assert own_module("goalgen.__version__") == ROOT
    assert own_module("torch.nn") is None


ARCHITECTURE = Path(__file__).parents[1] / "docs" / "architecture.md"


def places(text: str) -> list[str]:
    """Modules and folders below goalgen that a text names, such as "rollout" and "training"."""
    names = re.findall(r"(?<![\w/.-])([a-z_]+(?:/[a-z_]+)*)(?:\.py|/)(?![\w-])", text)
    return [name.replace("/", ".") for name in names]


def test_the_picture_of_the_floors_is_the_order_of_imports():
    """Whatever stands on a line of docs/architecture.md comes after all that stands below it."""
    picture = ARCHITECTURE.read_text(encoding="utf-8").split("```text\n")[1].split("```")[0]
    floors = [[LAYER[name] for name in places(line)] for line in picture.splitlines() if places(line)]
    assert len(floors) >= 10
    assert all(min(above) > max(below) for above, below in pairwise(floors))
    drawn = {name for line in picture.splitlines() for name in places(line)}
    assert {package(module) for module in LAYER} - drawn <= {"__main__", "learning", "task"} | {
        package(m) for m in drawn
    }


def test_files_that_the_page_of_the_architecture_names_exist():
    text = ARCHITECTURE.read_text(encoding="utf-8").split("```")[2]
    named = re.findall(r"`([\w/]+(?:\.py|/))`", text)
    assert len(named) >= 15
    for name in named:
        own, other = SOURCE / name, SOURCE.parents[1] / name
        assert own.exists() or other.exists(), f"docs/architecture.md names {name}"
