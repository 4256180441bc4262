"""Images decoded into a file that is mapped into memory: the same as in memory, once, on from where it was cut off."""

from __future__ import annotations

import dataclasses
import errno
import io
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from runs import different, environment, tensors, tiny_config, write_images

from goalgen.config import DataConfig
from goalgen.data import Splits, decoding, load_data, mapped
from goalgen.data.decoding import BLOCK
from goalgen.data.provenance import Provenance
from goalgen.errors import GoalgenError
from goalgen.training import train

pytestmark = pytest.mark.usefixtures("cache_folder")

COUNT = 5 * BLOCK + 17


def encoded(seed: int, size: tuple[int, int] = (8, 6), mode: str = "RGB") -> bytes:
    """The bytes of a PNG of noise of (height, width)."""
    shape = (*size, 3) if mode == "RGB" else size
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def broken(seed: int) -> bytes:
    """... whose header is sound and whose pixels are not there."""
    whole = encoded(seed)
    return whole[:60]


def write_parquet(path: Path, images: list[bytes | None], **columns: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [None if image is None else {"bytes": image, "path": None} for image in images]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(rows, kind), **columns}), path)


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    write_parquet(
        tmp_path / "data" / "a.parquet", [encoded(i) for i in range(COUNT)], label=[i % 3 for i in range(COUNT)]
    )
    return tmp_path / "data"


def load(path: Path | str, **settings: Any) -> tuple[Splits, list[str]]:
    """The data, and what was warned of."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        data = load_data(DataConfig(data=str(path), **settings))
    return data, [str(remark.message) for remark in said]


def same(one: Splits, other: Splits) -> None:
    assert (one.label_names, one.name, one.binarize) == (other.label_names, other.name, other.binarize)
    for role in ("train", "validation", "test"):
        a, b = getattr(one, role), getattr(other, role)
        assert torch.equal(a.images, b.images)
        assert (a.levels, a.names) == (b.levels, b.names)
        assert (a.labels is None and b.labels is None) or torch.equal(a.labels, b.labels)
        assert torch.equal(a.digest(), b.digest())
        assert a.fingerprint() == b.fingerprint()
    assert Provenance.of(one).about == Provenance.of(other).about


def file_of(cache: Path) -> Path:
    (found,) = cache.glob("images-*")
    return found


# The same data


def splits_of_their_own(folder: Path) -> None:
    for split, first, count in (("train", 0, 300), ("test", 300, 90), ("validation", 390, 40)):
        write_parquet(
            folder / f"{split}-0.parquet", [encoded(first + i) for i in range(count)], label=["a", "b"] * (count // 2)
        )


def unreadable_ones(folder: Path) -> None:
    images: list[bytes | None] = [encoded(i) for i in range(COUNT)]
    for i in (0, 1, 5, 130, 131, 300, COUNT - 1):  # only decoding tells
        images[i] = broken(i)
    images[7], images[9] = b"no image", None  # the header tells
    write_parquet(folder / "0.parquet", images, label=[i % 4 for i in range(COUNT)])


def whole_blocks_unreadable(folder: Path) -> None:
    images = [broken(i) if BLOCK <= i < 2 * BLOCK else encoded(i) for i in range(COUNT)]
    write_parquet(folder / "0.parquet", [*images])


def folder_of_classes(folder: Path) -> None:
    for name in ("2", "10", "1"):
        write_images(folder / name, 70, seed=int(name))
    (folder / "odd.xyz").touch()
    (folder / "2" / "broken.png").write_bytes(encoded(0, (8, 8), "L")[:60])


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (splits_of_their_own, {}),
        (unreadable_ones, {}),
        (unreadable_ones, {"limit": 50, "image_size": (4, 4), "channels": 1}),
        (whole_blocks_unreadable, {}),
        (folder_of_classes, {}),
        (folder_of_classes, {"binarize": True, "channels": 1}),
    ],
)
def test_on_disk_are_the_very_images_that_were_in_memory(tmp_path, cache_folder, make, settings):
    make(tmp_path / "data")
    memory, said = load(tmp_path / "data", data_cache="memory", **settings)
    shutil.rmtree(cache_folder, ignore_errors=True)
    made, said_making = load(tmp_path / "data", data_cache="disk", **settings)
    opened, said_opening = load(tmp_path / "data", data_cache="disk", **settings)
    same(memory, made)
    same(memory, opened)
    assert said_making == said_opening
    # Those that cannot be read are met in another order, set by set in memory, so others of them are named first.
    assert sorted(line.split(" images: ")[0] for line in said) == sorted(
        line.split(" images: ")[0] for line in said_making
    )
    assert sorted(p.name for p in file_of(cache_folder).iterdir()) in (
        ["about.safetensors", "pixels"], [".lock", "about.safetensors", "pixels"],
    )  # fmt: skip


def test_where_all_held_out_images_are_unreadable_others_are_held_out(tmp_path):
    write_parquet(tmp_path / "data" / "a.parquet", [encoded(i) for i in range(20)])
    settings = {"test_fraction": 0.05, "validation_fraction": 0.05}
    first, _ = load(tmp_path / "data", data_cache="memory", **settings)
    every = [encoded(i) for i in range(20)]
    lost = next(i for i in range(20) if np.array_equal(pixels_of(every[i]), first.test.images[0].numpy()))
    write_parquet(tmp_path / "data" / "a.parquet", [broken(i) if i == lost else every[i] for i in range(20)])
    memory, _ = load(tmp_path / "data", data_cache="memory", **settings)
    disk, _ = load(tmp_path / "data", data_cache="disk", **settings)
    same(memory, disk)


def pixels_of(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content))).transpose(2, 0, 1)


def test_all_sets_are_parts_of_one_file_and_ranges_of_them_no_copies(parquet, cache_folder):
    data, _ = load(parquet, data_cache="disk")
    size = 3 * 8 * 6
    assert str(file_of(cache_folder) / "pixels") in Path("/proc/self/maps").read_text()
    assert data.validation.images.data_ptr() == data.train.images.data_ptr() + len(data.train) * size
    assert data.test.images.data_ptr() == data.validation.images.data_ptr() + len(data.validation) * size
    part = data.train.subset(range(3, 9))
    assert part.images.data_ptr() == data.train.images.data_ptr() + 3 * size
    same_part = data.train.subset(torch.arange(3, 9))
    assert torch.equal(part.images, same_part.images)
    assert torch.equal(part.labels, same_part.labels)


def test_a_run_on_mapped_images_is_the_run_on_images_in_memory(parquet, tmp_path):
    settings = {"data": str(parquet), "limit": 300, "decay": "none", "checkpoint_every": 3}
    train(tiny_config(tmp_path / "disk", data_cache="disk", max_steps=6, **settings))
    train(tiny_config(tmp_path / "memory", data_cache="memory", max_steps=3, **settings))
    train(tiny_config(tmp_path / "memory", data_cache="disk", max_steps=6, **settings))  # goes on in the other place
    train(tiny_config(tmp_path / "alone", data_cache="memory", max_steps=6, **settings))
    assert not different(tmp_path / "alone", tmp_path / "disk")
    assert tensors(tmp_path / "alone").keys() == tensors(tmp_path / "memory").keys()
    name = "step-00000006/raw.safetensors/s_agent.bias"
    assert torch.equal(tensors(tmp_path / "alone")[name], tensors(tmp_path / "memory")[name])


# Once, and on from where it was cut off


def test_images_are_decoded_once_and_its_size_is_said(parquet, cache_folder, counted, capfd):
    load(parquet, data_cache="disk")
    assert len(counted) == COUNT
    err = capfd.readouterr().err
    assert f"decoding {COUNT} images of data once, into {file_of(cache_folder)} (0.00 GB, of " in err
    assert err.count("\n") == 1
    load(parquet, data_cache="disk")
    assert len(counted) == COUNT
    assert capfd.readouterr().err == ""
    (parquet / "a.parquet").touch()  # it may be another
    load(parquet, data_cache="disk")
    assert len(counted) == 2 * COUNT


def test_decoding_that_was_cut_off_goes_on(parquet, cache_folder, counted, monkeypatch):
    whole, _ = load(parquet, data_cache="memory")
    counted.clear()
    keep, kept = decoding._Writer._keep, []

    def cut_off(writer: Any, *arguments: Any) -> None:
        keep(writer, *arguments)
        kept.append(0)
        if len(kept) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(decoding._Writer, "_keep", cut_off)
    with pytest.raises(KeyboardInterrupt):
        load(parquet, data_cache="disk")
    monkeypatch.setattr(decoding._Writer, "_keep", keep)
    assert not (file_of(cache_folder) / "about.safetensors").exists()
    with (file_of(cache_folder) / "blocks.jsonl").open("a") as journal:
        journal.write('{"block": "train 5", "err')  # it died while it wrote
    counted.clear()
    data, _ = load(parquet, data_cache="disk")
    assert len(counted) == COUNT - 3 * BLOCK
    same(whole, data)


def test_a_process_that_was_killed_in_the_middle_goes_on(parquet, cache_folder, counted):
    program = f"""
import os, signal
from goalgen.config import DataConfig
from goalgen.data import decoding, load_data
keep, kept = decoding._Writer._keep, []
def killing(writer, *arguments):
    keep(writer, *arguments)
    kept.append(0)
    if len(kept) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
decoding._Writer._keep = killing
load_data(DataConfig(data={str(parquet)!r}, data_cache="disk"))
"""
    done = subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL
    data, _ = load(parquet, data_cache="disk")
    assert len(counted) == COUNT - 2 * BLOCK
    same(data, load(parquet, data_cache="memory")[0])


def test_a_block_that_never_reached_the_disk_is_decoded_again(parquet, cache_folder, counted, monkeypatch):
    def cut_off(*_: Any) -> None:
        raise KeyboardInterrupt

    close_up = decoding._Writer._close_up
    monkeypatch.setattr(decoding._Writer, "_close_up", cut_off)
    with pytest.raises(KeyboardInterrupt):
        load(parquet, data_cache="disk")
    monkeypatch.setattr(decoding._Writer, "_close_up", close_up)
    with (file_of(cache_folder) / "pixels").open("r+b") as file:
        file.write(bytes(10))  # as a failure of power leaves it
    counted.clear()
    data, _ = load(parquet, data_cache="disk")
    assert len(counted) == BLOCK
    same(data, load(parquet, data_cache="memory")[0])


def test_closing_up_that_was_cut_off_is_done_again(tmp_path, cache_folder, monkeypatch):
    unreadable_ones(tmp_path / "data")
    put, moved = decoding._Writer._put, []

    def cut_off(writer: Any, row: int, pixels: np.ndarray) -> None:
        put(writer, row, pixels)
        moved.append(pixels.ndim == 1)  # a single row, moved
        if sum(moved) == 200:
            raise KeyboardInterrupt

    monkeypatch.setattr(decoding._Writer, "_put", cut_off)
    with pytest.raises(KeyboardInterrupt):
        load(tmp_path / "data", data_cache="disk")
    monkeypatch.setattr(decoding._Writer, "_put", put)
    same(load(tmp_path / "data", data_cache="disk")[0], load(tmp_path / "data", data_cache="memory")[0])


@pytest.mark.parametrize("damage", ["short", "long", "other", "about"])
def test_a_damaged_file_is_made_anew_with_a_line(parquet, cache_folder, counted, damage):
    first, _ = load(parquet, data_cache="disk")
    memory = dataclasses.replace(first, train=first.train.subset(list(range(len(first.train)))))
    pixels = file_of(cache_folder) / "pixels"
    content = pixels.read_bytes()
    changed = {"short": content[:-1], "long": content + b"0", "other": bytes(len(content))}
    del first
    if damage == "about":
        (file_of(cache_folder) / "about.safetensors").write_bytes(b"{}")
    else:
        pixels.write_bytes(changed[damage])
    counted.clear()
    again, said = load(parquet, data_cache="disk")
    assert len(counted) == COUNT
    assert len(said) == 1
    assert "making it anew" in said[0]
    assert torch.equal(again.train.images, memory.train.images)


def test_two_processes_make_one_file(parquet, cache_folder):
    program = f"""
from goalgen.config import DataConfig
from goalgen.data import load_data, sources
seen, decode = [], sources.decode_image
def counting(*a, **k):
    seen.append(0)
    return decode(*a, **k)
sources.decode_image = counting
data = load_data(DataConfig(data={str(parquet)!r}, data_cache="disk"))
print(len(seen), data.train.fingerprint())
"""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen([sys.executable, "-c", program], env=environment(), **streams) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    counts, prints = zip(*(out.split() for out, _ in said), strict=True)
    assert sum(map(int, counts)) == COUNT
    assert len(set(prints)) == 1


# Room, and when


def test_no_room_is_said_before_anything_is_decoded(parquet, counted, monkeypatch):
    monkeypatch.setattr(mapped.shutil, "disk_usage", lambda _: namedtuple("usage", "free")(1000))
    with pytest.raises(
        GoalgenError, match=r"decoded, the images take 0.0 GB, and the disk of .* has 0.0 GB free: make room"
    ):
        load(parquet, data_cache="disk")
    assert not counted


def test_a_disk_that_fills_up_meanwhile_is_one_line_and_the_same_command_goes_on(parquet, counted, monkeypatch):
    put, done = decoding._Writer._put, []

    def full(writer: Any, *arguments: Any) -> None:
        if len(done) == 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done.append(put(writer, *arguments))

    monkeypatch.setattr(decoding._Writer, "_put", full)
    with pytest.raises(GoalgenError, match="cannot be written: No space left on device; what is decoded is kept"):
        load(parquet, data_cache="disk")
    monkeypatch.setattr(decoding._Writer, "_put", put)
    counted.clear()
    load(parquet, data_cache="disk")
    assert 0 < len(counted) < COUNT


def test_images_go_to_disk_by_themselves_where_they_would_fill_a_quarter_of_the_memory(
    parquet, cache_folder, monkeypatch
):
    size = COUNT * 3 * 8 * 6
    monkeypatch.setattr(mapped, "free_memory", lambda: 4 * size)
    load(parquet)
    assert not list(cache_folder.glob("images-*"))
    shutil.rmtree(cache_folder)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # each of two processes would hold them
    load(parquet)
    assert list(cache_folder.glob("images-*"))
    shutil.rmtree(cache_folder)
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    monkeypatch.setattr(mapped, "free_memory", lambda: 4 * size - 4)
    load(parquet)
    assert list(cache_folder.glob("images-*"))


def test_free_memory_is_no_more_than_what_a_process_may_take(monkeypatch):
    before = mapped.free_memory()
    assert before > 2**20
    monkeypatch.setattr("resource.getrlimit", lambda _: (2**20, 2**30))
    assert mapped.free_memory() == 2**20


def test_a_cache_that_cannot_be_written_is_one_line(parquet, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("GOALGEN_CACHE", str(tmp_path / "file"))
    with pytest.raises(GoalgenError, match=r"cannot be written: .*; set GOALGEN_CACHE to a folder that can"):
        load(parquet, data_cache="disk")


# The hub, as a stream


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A hub that has owner/large, parquet files that are read as they stream; too large to store."""
    monkeypatch.chdir(tmp_path)
    images = [encoded(i) for i in range(COUNT)]
    write_parquet(tmp_path / "far" / "train-0.parquet", images[:500], label=[i % 3 for i in range(500)])
    write_parquet(tmp_path / "far" / "test-0.parquet", images[500:], label=[i % 3 for i in range(500, COUNT)])
    files = {"train": str(tmp_path / "far" / "train-0.parquet"), "test": str(tmp_path / "far" / "test-0.parquet")}
    seen = SimpleNamespace(calls=[], revision="1", size=10**18, files=files)
    real = datasets.load_dataset

    def load_dataset(name: str, streaming: bool = False) -> Any:
        assert name == "owner/large"
        seen.calls.append(streaming)
        return real("parquet", data_files=files, streaming=streaming, cache_dir=str(tmp_path / "hf"))

    def load_dataset_builder(name: str) -> Any:
        counts = {"train": SimpleNamespace(num_examples=500), "test": SimpleNamespace(num_examples=COUNT - 500)}
        info = SimpleNamespace(download_size=seen.size, dataset_size=seen.size, splits=counts)
        return SimpleNamespace(hash=seen.revision, info=info, cache_dir=str(tmp_path / "nowhere" / "owner___large"))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "load_dataset_builder", load_dataset_builder)
    return seen


SIZE: dict[str, Any] = {"image_size": (8, 6), "channels": 3}


def test_what_the_disk_has_no_room_for_is_decoded_as_it_streams(hub, tmp_path, counted):
    streamed, _ = load("owner/large", **SIZE)
    assert hub.calls == [True]
    local, _ = load(tmp_path / "far", data_cache="memory", **SIZE)
    assert streamed.name == "owner/large"
    same(dataclasses.replace(streamed, name="far"), local)
    counted.clear()
    load("owner/large", **SIZE)
    assert hub.calls == [True]  # it is all here
    assert not counted
    hub.revision = "2"
    again, said = load("owner/large", **SIZE)
    assert hub.calls == [True, True]
    assert "the data have changed since; making it anew" in said[0]
    same(streamed, again)


def test_what_the_disk_has_room_for_is_downloaded(hub):
    hub.size = 1
    data, _ = load("owner/large", **SIZE)
    assert hub.calls == [False]
    assert len(data.train) + len(data.validation) == 500


def test_a_stream_needs_to_be_told_the_size(hub):
    with pytest.raises(GoalgenError, match="the first would be --image-size 8 6 --channels 3"):
        load("owner/large")


def test_a_stream_that_breaks_off_goes_on(hub, counted, monkeypatch):
    keep, kept = decoding._Writer._keep, []

    def failing(writer: Any, *arguments: Any) -> None:
        keep(writer, *arguments)
        kept.append(0)
        if len(kept) == 2:
            raise GoalgenError("the stream broke off")

    monkeypatch.setattr(decoding._Writer, "_keep", failing)
    with pytest.raises(GoalgenError, match="broke off"):
        load("owner/large", **SIZE)
    monkeypatch.setattr(decoding._Writer, "_keep", keep)
    counted.clear()
    streamed, _ = load("owner/large", **SIZE)
    assert len(counted) == COUNT - 2 * BLOCK
    assert streamed.train.labels is not None
    assert len(streamed.train.labels) == len(streamed.train)
