"""Saved models that are broken, or made to break: one line, at once, and no memory taken for what a file only claims.

GOALGEN_FUZZ=20000 pytest tests/test_hostile_models.py -k configuration tries as many configurations.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runs import environment, tiny_config
from safetensors.torch import load_file, save_file

from goalgen import GoalgenError, cli, load
from goalgen.config import Config
from goalgen.families import make
from goalgen.saved import save_model
from goalgen.settings import complete

resource = pytest.importorskip("resource")  # limits that the system keeps

MODELS: dict[str, dict[str, Any]] = {
    "proposals": {"gc_agent": "value"},
    "latent": {"environment": "latent", "latent_size": 3, "latent_modes": 2},
    "bridge": {"environment": "bridge", "network": "unet", "patch": 2, "condition": "label"},
    "reveal": {"environment": "reveal", "network": "transformer", "patch": 2},
    "strokes": {"environment": "strokes", "horizon": 3, "stroke_candidates": 6},
    "stages": {"environment": "code:1+bridge:2", "code_size": 4, "network": "unet", "patch": 2},
}
CASES = int(os.environ.get("GOALGEN_FUZZ", "60"))
"""Cases of each of the six tests that make them up."""
GIGABYTE = 2**30

made = settings(
    max_examples=CASES, deadline=None, derandomize="GOALGEN_FUZZ" not in os.environ, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


def saved(folder: Path, config: Config, labels: int = 3) -> Path:
    torch.manual_seed(0)
    family = make(config, (1, 8, 8), 17, num_labels=labels)
    facts = {"step": 3, "validation_bits_per_dim": 3.5, "label_names": ["a", "b", "c"]}
    save_model(folder, config, family, None, torch.zeros(1, 8, 8), facts)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("models")
    return {name: saved(place / name, complete(tiny_config(place, **s))) for name, s in MODELS.items()}


@pytest.fixture(autouse=True)
def memory():
    """No test of this file may take a gigabyte: what asks the system for more gets none."""
    if sys.platform != "linux":
        yield
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + GIGABYTE, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def tried(folder: Path) -> str:
    """What comes of loading and using a model: the one line of an error, or "" and images that are finite."""
    try:
        model = load(folder)
        repr(model)
        drawn = model.sample(2)
        bound = model.nll_bound(drawn.levels, labels=drawn.labels).total
    except GoalgenError as error:
        return one_line(str(error))
    assert drawn.images.shape[0] == 2
    assert torch.isfinite(bound).all()
    return ""


def one_line(error: str) -> str:
    assert len(error.splitlines()) == 1
    assert 10 < len(error) < 1500
    return error


def leaves(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the values of a JSON object are, inner objects and lists included."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at] * bool(at) + [leaf for key, inner in items for leaf in leaves(inner, (*at, key))]


def put(value: Any, at: tuple[Any, ...], new: Any) -> None:
    for key in at[:-1]:
        value = value[key]
    value[at[-1]] = new


HOSTILE = st.one_of(
    st.sampled_from([0, 1, -1, 2, 3, 7, 64, 20_000, 10**6, 2**31, 2**63, 10**30, -(10**9), 10**400]),
    st.sampled_from([0.0, -1.0, 0.5, 1e-300, 1e300, 3e38, float("nan"), float("inf"), -float("inf")]),
    st.sampled_from(["", "2", "none", "auto", "../..", "a" * 10_000, "mean", "noise:1e9", "mlp", "bridge", "code:1+bridge:3", "latent:9999999999"]),
    st.sampled_from(["bridge:" + "9" * 5000 + "+bridge:1", "bridge:1+" * 5000 + "bridge:1", "unet", "transformer", "label", "value", "fixed"]),
    st.sampled_from([None, True, False, [], {}, [1], [1, 200_000, 200_000], [3, 4096, 4096], [1, 8, 8], [0, 8, 8], [[]], {"a": 1}]),
    st.integers(-100, 3000), st.floats(allow_nan=True), st.text(max_size=8),
)  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_no_configuration_of_a_saved_model_ends_in_a_traceback(models, tmp_path, name):
    """Any value of the file replaced by any other: refused in a line, or a model whose images and bounds are finite."""
    folder = tmp_path / "model"
    shutil.copytree(models[name], folder)
    text = (folder / "config.json").read_text()
    places = leaves(json.loads(text))

    @made
    @given(st.lists(st.tuples(st.sampled_from(places), HOSTILE), min_size=1, max_size=2))
    def attempt(changes):
        values = json.loads(text)
        for at, new in changes:
            try:
                put(values, at, new)
            except (TypeError, IndexError, KeyError):
                continue  # the first change took away where the second would be
        (folder / "config.json").write_text(json.dumps(values))
        tried(folder)

    attempt()


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        ("model.width", 20_000, "does not fit its configuration"),
        ("model.depth", 10**6, "does not fit its configuration, which has more"),
        ("model.horizon", 10**6, "does not fit its configuration"),
        ("model.num_proposals", 10**9, "does not fit its configuration"),
        ("facts.shape", [1, 200_000, 200_000], "it says shape [1, 200000, 200000]"),
        ("facts.shape", [1, 4000, 4000], "start.image is (1, 8, 8)"),
        ("facts.num_labels", "2", "it says num_labels '2'"),
        ("facts.levels", 1000, "it says levels 1000"),
        ("facts.step", "many", "it says step 'many'"),
        ("facts.label_names", [1, 2], "label_names"),
        ("facts", [], "lacks shape and levels"),
        ("model.step_size", float("nan"), "is no finite number"),
        ("model.dropout", 10**400, "dropout must be float, not 1000"),
        ("model.environment", "bridge:" + "9" * 5000 + "+bridge:1", "needs a number of steps"),
    ],
)
def test_what_a_configuration_claims_is_compared_before_anything_is_built(models, tmp_path, capsys, at, value, words):
    folder = tmp_path / "model"
    shutil.copytree(models["proposals"], folder)
    values = json.loads((folder / "config.json").read_text())
    put(values, tuple(at.split(".")), value)
    (folder / "config.json").write_text(json.dumps(values))
    assert cli.main(["sample", str(folder), "--out", str(tmp_path / "s"), "--num", "1"]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert words in error


def test_weights_that_no_training_makes_are_refused(models, tmp_path):
    """Every tensor, filled with what breaks it."""
    folder = tmp_path / "model"
    silent, numbers = [], itertools.cycle((3e38, float("nan"), -float("inf")))
    for name in ("proposals", "stages"):
        shutil.copytree(models[name], folder, dirs_exist_ok=True)
        file = folder / "model.safetensors"
        whole = load_file(file)
        for tensor in sorted(whole)[:: 1 if name == "proposals" else 4]:
            if not whole[tensor].is_floating_point() or not whole[tensor].numel():
                continue
            spoilt = {k: v.clone() for k, v in whole.items()}
            spoilt[tensor].view(-1)[-1] = next(numbers)
            save_file(spoilt, file, metadata={"weights": "ema"})
            error = tried(folder)
            if f"the weights {tensor} " not in error:
                silent.append((name, tensor, error))
    assert not silent


@made
@given(st.data())
def test_no_file_of_weights_ends_in_a_traceback(models, tmp_path, data):
    """Bytes of the file changed, cut off, or its header rewritten."""
    name = data.draw(st.sampled_from(sorted(MODELS)))
    folder = tmp_path / "model"
    shutil.copytree(models[name], folder, dirs_exist_ok=True)
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    length = struct.unpack("<Q", content[:8])[0]
    kind = data.draw(st.sampled_from(["bytes", "cut", "shape", "type", "name", "numbers"]))
    header = json.loads(content[8 : 8 + length])
    tensor = data.draw(st.sampled_from(sorted(header.keys() - {"__metadata__"})))
    if kind == "bytes":
        for _ in range(4):
            content[data.draw(st.integers(0, min(len(content), 2 * length) - 1))] = data.draw(st.integers(0, 255))
        file.write_bytes(content)
    elif kind == "cut":
        file.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    elif kind == "numbers":
        whole = load_file(file)
        factor = data.draw(st.sampled_from([1e3, 1e10, 1e17, -1e17, 0.0]))
        save_file({k: v * factor if v.is_floating_point() else v for k, v in whole.items()}, file)
    else:
        changed = {
            "shape": lambda: header[tensor].update(shape=[data.draw(st.integers(-1, 2**40)), 1]),
            "type": lambda: header[tensor].update(dtype=data.draw(st.sampled_from(["F64", "I64", "BOOL", "F8_E4M3", "X", "C64"]))),
            "name": lambda: header.update({data.draw(st.text(max_size=5)): header.pop(tensor)}),
        }  # fmt: skip
        changed[kind]()
        text = json.dumps(header).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    tried(folder)


def test_sound_models_are_taken(models):
    assert [tried(folder) for folder in models.values()] == [""] * len(models)


@pytest.mark.slow
def test_a_minute_of_random_changes_finds_no_fault():
    """Everything that goalgen reads, other cases every minute. benchmarks/fuzz.py --case N is one of them again."""
    script, first = Path(__file__).parents[1] / "benchmarks" / "fuzz.py", str(int(time.time()))
    command = [sys.executable, str(script), "--minutes", "1", "--first", first]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
