"""Sources built from real files, and the data sets at hand where they are."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from goalgen.config import DataConfig
from goalgen.data import sources, tables
from goalgen.data.sources import ImageSet, Splits, load_data
from goalgen.errors import GoalgenError

SHARED = Path(os.environ.get("GOALGEN_DATA", Path(__file__).parents[2] / "shared" / "data"))


def save(path: Path, level: int, size: tuple[int, int] = (3, 4), mode: str = "L") -> None:
    """Write a plain image of (height, width) whose every pixel is ``level``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size[::-1], level if mode == "L" else (level,) * 3).save(path)


def png(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (4, 3), level).save(buffer, "PNG")
    return buffer.getvalue()


def levels_of(images: ImageSet) -> list[int]:
    """The grey level of each plain image."""
    assert (images.images == images.images[:, :1, :1, :1]).all()
    return images.images[:, 0, 0, 0].tolist()


def all_levels(splits: Splits) -> list[int]:
    return sorted(levels_of(splits.train) + levels_of(splits.validation) + levels_of(splits.test))


def load(path: Path | str, **settings: Any) -> Splits:
    return load_data(DataConfig(data=str(path), **settings))


def fails(match: str, path: Path | str, **settings: Any) -> None:
    with pytest.raises(GoalgenError, match=match) as error:
        load(path, **settings)
    assert "\n" not in str(error.value)


# Digits


def test_digits() -> None:
    splits = load("digits")
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (1451, 76, 270)
    assert splits.train.shape == (1, 8, 8)
    assert splits.train.levels == 17
    assert splits.label_names == tuple("0123456789")
    known = {(row.astype(np.uint8).tobytes(), int(y)) for row, y in zip(*load_digits(return_X_y=True), strict=True)}
    seen = set()
    for part in (splits.train, splits.validation, splits.test):
        assert part.labels is not None
        seen |= {(x.numpy().tobytes(), int(y)) for x, y in zip(part.images, part.labels, strict=True)}
    assert seen == known


def test_the_test_set_does_not_depend_on_other_settings() -> None:
    usual = load("digits")
    other = load("digits", validation_fraction=0.2, limit=100)
    assert other.test.fingerprint() == usual.test.fingerprint()
    assert len(other.train) == 100
    assert other.validation.fingerprint() == load("digits", validation_fraction=0.2).validation.fingerprint()


def test_limits_are_nested() -> None:
    few = {x.numpy().tobytes() for x in load("digits", limit=10).train.images}
    more = {x.numpy().tobytes() for x in load("digits", limit=20).train.images}
    assert len(few) == 10
    assert few < more
    assert len(load("digits", limit=10**6).train) == 1451


def test_digits_resized_and_in_colour() -> None:
    splits = load("digits", image_size=(16, 12), fit="stretch", channels=3)
    assert splits.train.shape == (3, 16, 12)
    assert splits.train.levels == 256
    small = load("digits", channels=3)
    assert small.train.levels == 17
    plain = load("digits").train.images.float().mean() / 16
    assert abs(splits.train.images.float().mean() / 255 - plain) < 0.02


def test_binarized_digits() -> None:
    grey, splits = load("digits"), load("digits", binarize=True)
    assert splits.binarize
    assert not grey.binarize
    assert splits.train.fingerprint() == grey.train.fingerprint()
    for drawn, source in ((splits.validation, grey.validation), (splits.test, grey.test)):
        assert drawn.levels == 2
        assert (drawn.images[source.images == 0] == 0).all()
        assert (drawn.images[source.images == 16] == 1).all()
        assert abs(drawn.images.float().mean() - source.images.float().mean() / 16) < 0.02
    assert load("digits", binarize=True).test.fingerprint() == splits.test.fingerprint()
    fails("--channels 1", "digits", binarize=True, channels=3)


# Folders


def test_flat_folder(tmp_path: Path) -> None:
    for i in range(20):
        save(tmp_path / f"{i:02}.png", i)
    (tmp_path / "notes.txt").write_text("not an image")
    save(tmp_path / ".hidden.png", 200)
    splits = load(tmp_path)
    assert all_levels(splits) == list(range(20))
    assert (len(splits.test), len(splits.validation)) == (3, 1)
    assert splits.train.shape == (1, 3, 4)
    assert splits.train.labels is None
    assert splits.label_names is None
    assert splits.train.names is not None
    assert [int(n) for n in splits.train.names] == levels_of(splits.train)
    assert splits.name == tmp_path.name


def test_classes(tmp_path: Path) -> None:
    for i in range(10):
        save(tmp_path / ("cat" if i % 2 else "dog") / f"{i}.png", i)
    splits = load(tmp_path)
    assert splits.label_names == ("cat", "dog")
    for part in (splits.train, splits.validation, splits.test):
        assert part.labels is not None
        assert part.labels.tolist() == [1 - i % 2 for i in levels_of(part)]
    assert splits.train.names is not None
    assert set(splits.train.names) <= {f"{'cat' if i % 2 else 'dog'}/{i}" for i in range(10)}
    save(tmp_path / "stray.png", 99)  # now the folders are not classes of everything
    with pytest.warns(
        UserWarning, match="train images have no labels, as not every one lies in a folder of its class: .*stray"
    ):
        assert load(tmp_path).label_names is None
    save(tmp_path / "single" / "only" / "0.png", 1)
    save(tmp_path / "single" / "only" / "1.png", 2)
    save(tmp_path / "single" / "only" / "2.png", 3)
    assert load(tmp_path / "single").label_names is None


def test_split_folders(tmp_path: Path) -> None:
    for i in range(6):
        save(tmp_path / "train" / "ab"[i % 2] / f"{i}.png", i)
    save(tmp_path / "Test" / "b" / "6.png", 6)
    save(tmp_path / "val" / "a" / "7.png", 7)
    splits = load(tmp_path)
    assert levels_of(splits.train) == [0, 2, 4, 1, 3, 5]
    assert levels_of(splits.test) == [6]
    assert levels_of(splits.validation) == [7]
    assert splits.label_names == ("a", "b")
    assert splits.train.labels is not None
    assert splits.test.labels is not None
    assert splits.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert splits.test.labels.tolist() == [1]
    assert splits.test.names == ("Test/b/6",)
    save(tmp_path / "extra" / "8.png", 8)
    with pytest.warns(UserWarning, match="1 outside of any split unused"):
        assert 8 not in all_levels(load(tmp_path))


def test_sizes_must_agree_or_be_set(tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path / f"{i}.png", i)
    save(tmp_path / "big.png", 50, (6, 5))
    fails(r"0.png is 3x4, .*big.png is 6x5; set --image-size H W", tmp_path)
    assert load(tmp_path, image_size=(7, 2)).train.shape == (1, 7, 2)


def test_channels(tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path / f"{i}.png", i)
    save(tmp_path / "rgb.png", 50, mode="RGB")
    assert load(tmp_path).train.shape == (3, 3, 4)
    assert load(tmp_path, channels=1).train.shape == (1, 3, 4)
    (tmp_path / "rgb.png").unlink()
    assert load(tmp_path, channels=3).train.shape == (3, 3, 4)


def test_corrupt_images(tmp_path: Path) -> None:
    for i in range(8):
        save(tmp_path / f"{i}.png", i)
    (tmp_path / "text.png").write_text("hello")
    noise = np.random.default_rng(0).integers(0, 256, (3, 4, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.png")  # a sound header: only decoding finds out
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:50])
    with pytest.warns(UserWarning, match="skipped 2 unreadable images") as caught:
        splits = load(tmp_path, channels=1)
    assert len(caught) == 1
    assert "text.png" in str(caught[0].message)
    assert "cut.png" in str(caught[0].message)
    assert all_levels(splits) == list(range(8))
    fails("text.png cannot be read.*--corrupt skip", tmp_path, channels=1, corrupt="refuse")
    (tmp_path / "text.png").unlink()
    fails("cut.png cannot be read.*--corrupt skip", tmp_path, channels=1, corrupt="refuse")


def test_labels_and_names_stay_with_their_images(tmp_path: Path) -> None:
    for i in range(12):
        save(tmp_path / "train" / ("odd" if i % 2 else "even") / f"{i:02}.png", i)
        save(tmp_path / "test" / ("odd" if i % 2 else "even") / f"{i + 12:02}.png", i + 12)
    for split, first in (("train", "00"), ("test", "12")):
        whole = tmp_path / split / "even" / f"{first}.png"
        whole.write_bytes(whole.read_bytes()[:45])  # the header survives
    with pytest.warns(UserWarning, match="skipped 2 unreadable"):
        splits = load(tmp_path)
    for part in (splits.train, splits.validation, splits.test):
        assert part.labels is not None
        assert part.names is not None
        assert part.labels.tolist() == [i % 2 for i in levels_of(part)]
        assert [int(n[-2:]) for n in part.names] == levels_of(part)


def test_nothing_but_corrupt_images(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.png").write_text("no")
    fails("none of the 3 images can be read; the first: .*0.png", tmp_path)


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    fails("does not exist", tmp_path / "no")
    fails("does not exist", "./no")
    fails("does not exist", "~/no-such-folder/at-all")
    fails("does not exist", "no.parquet")
    fails("does not exist", r"C:\pictures")
    fails(r"holds no images; looked for \.png", tmp_path)
    fails("empty", " ")
    save(tmp_path / "a.png", 1)
    fails("single image", tmp_path / "a.png")
    (tmp_path / "a.zip").touch()
    fails("neither a folder", tmp_path / "a.zip")
    (tmp_path / "train").mkdir()
    with pytest.warns(UserWarning, match="a.zip"):
        fails("training folder", tmp_path)


def test_too_few_images(tmp_path: Path) -> None:
    for i in range(2):
        save(tmp_path / f"{i}.png", i)
        fails("too few images", tmp_path)
    save(tmp_path / "2.png", 2)
    splits = load(tmp_path, test_fraction=0.9, validation_fraction=0.9)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (1, 1, 1)
    assert all_levels(splits) == [0, 1, 2]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"test_fraction": 0.0}, "test_fraction"),
        ({"validation_fraction": 1.0}, "validation_fraction"),
        ({"limit": 0}, "--limit"),
        ({"image_size": (0, 4)}, "--image-size"),
        ({"channels": 2}, "--channels"),
        ({"fit": "squash"}, "--fit"),
        ({"corrupt": "ignore"}, "--corrupt"),
        ({"background": "blurple"}, "not a colour"),
    ],
)
def test_settings_without_meaning(settings: dict[str, Any], match: str) -> None:
    fails(match, "digits", **settings)


def test_large_data_are_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(4):
        save(tmp_path / f"{i}.png", i, (64, 64))
    monkeypatch.setattr(sources, "LARGE", 2**14 - 1)
    with pytest.warns(UserWarning, match="take 0.0 GiB of memory"):
        load(tmp_path)
    monkeypatch.setattr(sources, "LARGE", 2**14)
    load(tmp_path)


# Parquet and the hub


def write(path: Path, levels: list[int], names: list[str] | None = None, column: str = "image", **columns: Any) -> None:
    """Write plain images as Hugging Face does; ``names`` are the names of the classes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({column: [{"bytes": png(v), "path": None} for v in levels], **columns})
    features: dict[str, Any] = {column: {"_type": "Image"}}
    if names is not None:
        features["label"] = {"_type": "ClassLabel", "names": names}
    info = json.dumps({"info": {"features": features}})
    pq.write_table(table.replace_schema_metadata({"huggingface": info}), path, row_group_size=3)


@pytest.mark.usefixtures("cache_folder")
def test_parquet_files_are_decoded_once(tmp_path: Path, counted: list[str]) -> None:
    folder = tmp_path / "data"
    write(folder / "train.parquet", [0, 1, 2, 3], ["even", "odd"], label=[0, 1, 0, 1])
    write(folder / "test.parquet", [6], ["even", "odd"], label=[0])
    first = load(folder)
    assert len(counted) == 5
    again = load(folder)
    assert len(counted) == 5
    for role in ("train", "validation", "test"):
        a, b = getattr(first, role), getattr(again, role)
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)
        assert (a.levels, a.names) == (b.levels, b.names)
    assert (first.label_names, first.name, first.binarize) == (again.label_names, again.name, again.binarize)

    assert load(folder, image_size=(4, 4)).train.shape[1:] == (4, 4)  # another setting, other images
    assert len(counted) == 10
    assert load(folder, binarize=True).test.levels == 2
    assert len(counted) == 15
    assert load(folder, binarize=True).binarize
    assert len(counted) == 15
    write(folder / "test.parquet", [7], ["even", "odd"], label=[1])  # other content, the same names and number
    assert load(folder).test.labels.tolist() == [1]
    assert len(counted) == 20


@pytest.mark.usefixtures("cache_folder")
def test_a_damaged_cache_is_made_anew(tmp_path: Path, counted: list[str]) -> None:
    write(tmp_path / "data" / "train.parquet", [0, 1, 2, 3])
    first = load(tmp_path / "data")
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.warns(UserWarning, match="damaged"):
        assert torch.equal(load(tmp_path / "data").train.images, first.train.images)
    assert len(counted) == 8
    load(tmp_path / "data")
    assert len(counted) == 8


def test_what_the_hash_does_not_cover_is_not_cached(tmp_path: Path, counted: list[str]) -> None:
    save(tmp_path / "paths" / "pictures" / "0.png", 0)
    for i in range(4):
        save(tmp_path / "paths" / "pictures" / f"{i}.png", i)
    pq.write_table(pa.table({"image": [f"pictures/{i}.png" for i in range(4)]}), tmp_path / "paths" / "a.parquet")
    images = [{"bytes": png(v), "path": None} for v in range(5)] + [{"bytes": b"broken", "path": None}]
    (tmp_path / "broken").mkdir()
    pq.write_table(pa.table({"image": images}), tmp_path / "broken" / "a.parquet")
    for _ in range(2):
        load(tmp_path / "paths")
        with pytest.warns(UserWarning, match="skipped 1 unreadable"):
            load(tmp_path / "broken")
    assert not (tmp_path / "cache").exists()
    assert len(counted) == 2 * (4 + 5)


def test_parquet_folder(tmp_path: Path) -> None:
    write(tmp_path / "data" / "train-0.parquet", [0, 1, 2, 3], ["even", "odd"], label=[0, 1, 0, 1])
    write(tmp_path / "data" / "train-1.parquet", [4, 5], ["even", "odd"], label=[0, 1])
    write(tmp_path / "data" / "test.parquet", [6], ["even", "odd"], label=[0])
    write(tmp_path / "data" / "validation.parquet", [7], ["even", "odd"], label=[1])
    splits = load(tmp_path)
    assert levels_of(splits.train) == [0, 1, 2, 3, 4, 5]
    assert levels_of(splits.test) == [6]
    assert levels_of(splits.validation) == [7]
    assert splits.label_names == ("even", "odd")
    assert splits.train.labels is not None
    assert splits.train.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert splits.train.names is None


def test_single_parquet_file_is_split(tmp_path: Path) -> None:
    levels = [v % 256 for v in range(1200)]  # more rows than are read at a time
    write(tmp_path / "test.parquet", levels)
    with pytest.warns(UserWarning, match="180 of the 180 test images are also among those to learn from"):
        splits = load(tmp_path / "test.parquet")
    assert all_levels(splits) == sorted(levels)
    assert (len(splits.test), len(splits.validation)) == (180, 51)


def test_parquet_without_metadata(tmp_path: Path) -> None:
    table = pa.table({"img": [png(v) for v in range(6)], "labels": ["b", "a", "b", "a", "b", "a"]})
    pq.write_table(table, tmp_path / "a.parquet")
    splits = load(tmp_path)
    assert splits.label_names == ("a", "b")
    assert splits.train.labels is not None
    assert splits.train.labels.tolist() == [1 - v % 2 for v in levels_of(splits.train)]


def test_parquet_of_paths(tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path / "pictures" / f"{i}.png", i)
    pq.write_table(pa.table({"image": [f"pictures/{i}.png" for i in range(4)]}), tmp_path / "a.parquet")
    assert all_levels(load(tmp_path / "a.parquet")) == [0, 1, 2, 3]


def test_hidden_test_labels_are_no_labels(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [0, 1, 2], ["x", "y"], label=[0, 1, 0])
    write(tmp_path / "test.parquet", [3], ["x", "y"], label=[-1])
    splits = load(tmp_path)
    assert splits.train.labels is not None
    assert splits.test.labels is None


def test_corrupt_rows_are_named(tmp_path: Path) -> None:
    images = [{"bytes": png(v), "path": None} for v in range(5)] + [{"bytes": b"junk", "path": None}, None]
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet")
    with pytest.warns(UserWarning, match=r"skipped 2 unreadable images: a.parquet row 5, a.parquet row 6"):
        assert all_levels(load(tmp_path)) == [0, 1, 2, 3, 4]
    fails("a.parquet row 5", tmp_path, corrupt="refuse")


def test_parquet_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    fails("broken.parquet cannot be read", tmp_path / "broken.parquet")
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "text.parquet")
    fails("no column of images, only text", tmp_path / "text.parquet")
    pq.write_table(pa.table({"image": [[1.0, 2.0]]}), tmp_path / "floats.parquet")
    fails("not encoded images", tmp_path / "floats.parquet")
    write(tmp_path / "folder" / "test.parquet", [1])
    fails("no training split, only test", tmp_path / "folder")
    write(tmp_path / "mixed" / "train-0.parquet", [1, 2, 3])
    write(tmp_path / "mixed" / "train-1.parquet", [1], column="picture")
    fails("train-1.parquet cannot be read.*'image'", tmp_path / "mixed")
    write(tmp_path / "extra" / "train.parquet", [1, 2, 3])
    write(tmp_path / "extra" / "unlabelled.parquet", [4])
    with pytest.warns(UserWarning, match="unlabelled.parquet"):
        assert all_levels(load(tmp_path / "extra")) == [1, 2, 3]


def test_hub_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    fails("pip install datasets pyarrow", "owner/name")


@pytest.mark.slow
def test_hub_offline(tmp_path: Path) -> None:
    code = (
        "from goalgen.config import DataConfig as D\nfrom goalgen.data import load_data\nload_data(D(data='no/such'))"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert "GoalgenError: no/such is no file or folder here, and the hub does not give it" in last


@pytest.mark.slow
def test_hub_data_set(tmp_path: Path) -> None:
    """The object that the hub gives, made locally: decoding is the same as for files."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"photo": datasets.Image(), "kind": datasets.ClassLabel(names=["even", "odd"])})

    def part(levels: range) -> Any:
        rows = {"photo": [{"bytes": png(v), "path": None} for v in levels], "kind": [v % 2 for v in levels]}
        return datasets.Dataset.from_dict(rows, features=features)

    found = datasets.DatasetDict({"train": part(range(8)), "test": part(range(8, 10)), "unsupervised": part(range(3))})
    source = tables.open_data_sets("owner/name", found)
    splits, _ = sources._decode_splits(source, DataConfig(data="owner/name"))
    assert sorted(levels_of(splits.train) + levels_of(splits.validation)) == list(range(8))
    assert levels_of(splits.test) == [8, 9]
    assert splits.label_names == ("even", "odd")
    assert splits.test.labels is not None
    assert splits.test.labels.tolist() == [0, 1]


# Known data sets


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "mnist").is_dir(), reason="no MNIST at hand")
def test_mnist() -> None:
    splits = load(SHARED / "mnist")
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (58000, 2000, 10000)
    assert splits.train.shape == (1, 28, 28)
    x = torch.cat([splits.train.images, splits.validation.images]).float() / 255
    assert float(x.mean()) == pytest.approx(0.1307, abs=1e-4)
    assert float(x.std()) == pytest.approx(0.3081, abs=1e-4)
    assert splits.label_names == tuple("0123456789")
    assert splits.test.labels is not None
    assert splits.test.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "cifar10").is_dir(), reason="no CIFAR-10 at hand")
def test_cifar10() -> None:
    # One of the four training files keeps the test short; 12,500 images give the known figures to about 0.002.
    splits = load(SHARED / "cifar10" / "train-0.parquet")
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (10094, 531, 1875)
    assert splits.train.shape == (3, 32, 32)
    x = torch.cat([splits.train.images, splits.validation.images, splits.test.images]).float() / 255
    assert x.mean((0, 2, 3)).tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=4e-3)
    assert x.std((0, 2, 3)).tolist() == pytest.approx([0.2470, 0.2435, 0.2616], abs=4e-3)
    assert splits.label_names is not None
    assert splits.label_names[0] == "airplane"


# ImageSet


def test_image_set() -> None:
    images = torch.arange(24, dtype=torch.uint8).reshape(3, 1, 2, 4)
    labels = torch.tensor([5, 6, 7])
    whole = ImageSet(images, 256, labels, ("a", "b", "c"))
    part = whole.subset([2, 0])
    assert len(part) == 2
    assert part.shape == (1, 2, 4)
    assert (part.images == images[[2, 0]]).all()
    assert part.labels is not None
    assert part.labels.tolist() == [7, 5]
    assert part.names == ("c", "a")
    different = [
        whole,
        part,
        ImageSet(images, 256),
        ImageSet(images, 255, labels),
        ImageSet(images, 256, labels + 1),
        ImageSet(images.reshape(3, 1, 4, 2), 256, labels),
    ]
    assert len({s.fingerprint() for s in different}) == len(different)
    assert whole.fingerprint() == ImageSet(images.clone(), 256, labels.clone()).fingerprint()


def test_image_sets_that_do_not_fit() -> None:
    images = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    for match, arguments in {
        "uint8": (images.float(), 256),
        "levels must be": (images, 1),
        "hold the level 20": (images + 20, 17),
        "labels must be": (images, 256, torch.zeros(2, dtype=torch.int64)),
        "2 names": (images, 256, None, ("a", "b")),
    }.items():
        with pytest.raises(GoalgenError, match=match):
            ImageSet(*arguments)  # type: ignore[arg-type]
