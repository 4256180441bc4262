"""Tests run on one thread: small tensors, and the machine is shared with the processes that tests start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of thirty steps on the digits, for tests that only read it."""
    from runs import tiny_config

    from goalgen.training import train

    return train(tiny_config(tmp_path_factory.mktemp("digits") / "run", max_steps=30, log_every=10)).folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all tests that evaluate: the digits' classifier takes seconds to train."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def no_cache_of_the_user(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests neither read nor fill the cache of whoever runs them."""
    monkeypatch.setenv("GOALGEN_CACHE", str(tmp_path_factory.getbasetemp() / "own-cache"))


@pytest.fixture
def shared_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Evaluate with the cache that the tests share."""
    monkeypatch.setenv("GOALGEN_CACHE", str(cache))
    return cache


@pytest.fixture
def cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache for one test."""
    monkeypatch.setenv("GOALGEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that are decoded."""
    from goalgen.data import sources

    seen: list[str] = []
    decode = sources.decode_image

    def counting(*arguments: Any, **options: Any) -> Any:
        seen.append(options["name"])
        return decode(*arguments, **options)

    monkeypatch.setattr(sources, "decode_image", counting)
    return seen
