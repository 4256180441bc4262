"""The order of the data is a function of (seed, step)."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import tiny_config, write_images

from goalgen import rng
from goalgen.data import BatchOrder, ImageSet, augment_shift
from goalgen.families import make
from goalgen.starts import make_start
from goalgen.training.batches import Batches, mean_image

sizes = st.integers(1, 40)


@given(sizes, st.integers(1, 100), st.integers(0, 5))
def test_every_epoch_is_a_permutation(size: int, batch_size: int, seed: int) -> None:
    order = BatchOrder(size, batch_size, seed)
    steps = -(-3 * size // batch_size)
    batches = [order.indices(step) for step in range(steps)]
    assert all(b.shape == (batch_size,) and b.dtype == torch.int64 for b in batches)
    row = torch.cat(batches)
    for epoch in range(3):
        assert row[epoch * size : (epoch + 1) * size].sort().values.tolist() == list(range(size))


@settings(max_examples=40)
@given(sizes, st.integers(1, 100), st.lists(st.integers(0, 60), min_size=1, max_size=10))
def test_random_access_equals_sequential(size: int, batch_size: int, steps: list[int]) -> None:
    sequential = BatchOrder(size, batch_size, 3)
    batches = [sequential.indices(step) for step in range(max(steps) + 1)]
    jumping = BatchOrder(size, batch_size, 3)
    for step in steps:
        assert (jumping.indices(step) == batches[step]).all()


def test_epochs_and_seeds_differ() -> None:
    order = BatchOrder(1000, 1000, 0)
    assert (order.indices(0) != order.indices(1)).any()
    assert (order.indices(0) != BatchOrder(1000, 1000, 1).indices(0)).any()


def test_a_caller_may_write_into_a_batch() -> None:
    order = BatchOrder(10, 5, 0)
    first = order.indices(0)
    expected = first.clone()
    first.zero_()
    assert (order.indices(0) == expected).all()


@settings(max_examples=30)
@given(st.integers(0, 3), st.integers(0, 10))
def test_shifted_pixels_come_from_the_right_place(pixels: int, seed: int) -> None:
    images = torch.arange(6 * 2 * 5 * 7).reshape(6, 2, 5, 7).to(torch.uint8)
    shifted = augment_shift(images, rng.generator(seed, "augment"), pixels)
    assert shifted.dtype == images.dtype
    padded = torch.nn.functional.pad(images.float(), (pixels,) * 4, mode="replicate").to(torch.uint8)
    windows = [(dy, dx) for dy in range(2 * pixels + 1) for dx in range(2 * pixels + 1)]
    for image, padded_image in zip(shifted, padded, strict=True):
        assert any((image == padded_image[:, y : y + 5, x : x + 7]).all() for y, x in windows)


def test_shifts_are_uniform_and_independent() -> None:
    image = torch.zeros(1, 1, 5, 5)
    image[..., 2, 2] = 1
    shifted = augment_shift(image.expand(9000, -1, -1, -1), rng.generator(0, "augment"))
    share = shifted.mean(0)[0]
    assert (share[1:4, 1:4] - 1 / 9).abs().max() < 0.02  # 6 standard deviations
    assert share.sum() == pytest.approx(1)
    assert (augment_shift(image, rng.generator(0, "augment"), pixels=0) == image).all()


class Noticing(torch.Tensor):
    """Images that remember how many were asked for."""

    asked: list[int]

    def __getitem__(self, rows):
        self.asked.append(len(rows))
        return self.as_subclass(torch.Tensor)[rows]


@pytest.mark.parametrize("start", ["mean", "noise", "blur", "folder", "pairs"])
@pytest.mark.parametrize("settings", [{}, {"augment": True, "flip": True, "binarize": True}, {"episodes_per_goal": 2}])
def test_every_process_reads_its_own_goals_and_all_together_have_the_batch_of_one(tmp_path, start, settings):
    if start == "pairs" and settings.get("flip"):
        settings = {k: v for k, v in settings.items() if k != "flip"}
    images = torch.randint(0, 256, (40, 1, 8, 8), generator=rng.generator(0, "images"), dtype=torch.uint8)
    data = ImageSet(images, 256, torch.arange(40) % 3, tuple(f"{i:03d}" for i in range(40)))
    spec = start
    if start in ("folder", "pairs"):
        spec = str(write_images(tmp_path / "starts", 7 if start == "folder" else 40))
        data = data if start == "pairs" else replace(data, names=None)
    binarize = bool(settings.get("binarize"))
    config = tiny_config(tmp_path / "run", batch_size=8, start=spec, condition="label", gc_agent="value", **settings)
    family = make(config, (1, 8, 8), 2 if binarize else 256, num_labels=3)
    begin = make_start(spec, (1, 8, 8), mean_image(data), config.data)
    whole = Batches(config, data, binarize, begin, family, 0, 1).make(3)
    parts = []
    for rank in range(2):
        noticing = images.as_subclass(Noticing)
        noticing.asked = []
        share = Batches(config, data, binarize, begin, family, rank, 2)
        share.train = SimpleNamespace(images=noticing, levels=256, labels=data.labels)
        parts.append(share.make(3))
        assert sum(noticing.asked) == 4 // share.episodes
    for name in ("start", "goals", "label"):
        assert torch.equal(torch.cat([getattr(part.task, name) for part in parts]), getattr(whole.task, name))
    if start == "pairs":
        assert [n for part in parts for n in part.task.names] == whole.task.names
    for name, drawn in whole.draws.items():
        assert torch.equal(torch.cat([part.draws[name] for part in parts], 1), drawn)
