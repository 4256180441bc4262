"""Folders as users have them: what is meant is recognised, or refused, or said; nothing is pooled or left out in silence."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from test_data_sources import all_levels, fails, levels_of, load, png, save

from goalgen.data.images import decode_image
from goalgen.data.labels import encode_labels, find_label, match_labels, natural
from goalgen.data.sets import ImageSet, Splits
from goalgen.errors import GoalgenError


def names_of(splits: Splits, part: ImageSet) -> list[str]:
    """The class of each image, by name."""
    assert part.labels is not None
    assert splits.label_names is not None
    return [splits.label_names[i] for i in part.labels.tolist()]


# Splits


def test_classes_beside_a_test_folder(tmp_path: Path) -> None:
    for i in range(8):
        save(tmp_path / ("cats" if i % 2 else "dogs") / f"{i}.png", i)
    save(tmp_path / "test" / "cats" / "9.png", 9)
    with pytest.warns(UserWarning, match="has a test split and none called train: the other 8 files are learned from"):
        splits = load(tmp_path)
    assert levels_of(splits.test) == [9]
    assert 9 not in levels_of(splits.train) + levels_of(splits.validation)
    assert splits.label_names == ("cats", "dogs")
    assert names_of(splits, splits.test) == ["cats"]


def test_a_flat_test_folder_leaves_the_labels_of_the_others(tmp_path: Path) -> None:
    for i in range(8):
        save(tmp_path / "train" / ("cats" if i % 2 else "dogs") / f"{i}.png", i)
        save(tmp_path / "test" / f"{i}.png", 100 + i)
    splits = load(tmp_path)
    assert splits.test.labels is None
    assert names_of(splits, splits.train) == ["cats" if i % 2 else "dogs" for i in levels_of(splits.train)]


def test_splits_inside_of_classes(tmp_path: Path) -> None:
    for i in range(12):
        save(tmp_path / ("cats" if i % 2 else "dogs") / ("train" if i < 9 else "test") / f"{i}.png", i)
    splits = load(tmp_path)
    assert sorted(levels_of(splits.test)) == [9, 10, 11]
    assert splits.label_names == ("cats", "dogs")
    assert names_of(splits, splits.test) == ["cats" if i % 2 else "dogs" for i in levels_of(splits.test)]


def test_splits_below_the_folder_of_a_zip_file(tmp_path: Path) -> None:
    for i in range(9):
        save(tmp_path / "mnist" / ("train_images" if i < 7 else "test2017") / str(i % 2) / f"{i}.png", i)
    splits = load(tmp_path)
    assert sorted(levels_of(splits.test)) == [7, 8]
    assert splits.label_names == ("0", "1")


def test_partitioned_folders(tmp_path: Path) -> None:
    for i in range(8):
        save(tmp_path / f"split={'train' if i < 6 else 'test'}" / f"label={'cat' if i % 2 else 'dog'}" / f"{i}.png", i)
    splits = load(tmp_path)
    assert sorted(levels_of(splits.test)) == [6, 7]
    assert splits.label_names == ("cat", "dog")


@pytest.mark.parametrize("folders", [("test", "val"), ("test",), ("dev", "Testing")])
def test_no_training_images(tmp_path: Path, folders: tuple[str, ...]) -> None:
    for folder in folders:
        for i in range(4):
            save(tmp_path / folder / f"{i}.png", i)
    fails("has no training split, only .*; call one of them train, or give one as --data", tmp_path)
    assert all_levels(load(tmp_path / folders[0])) == [0, 1, 2, 3]


def rows(path: Path, levels: list[int], **columns: list[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": [png(v) for v in levels], **columns}), path)


def test_partitioned_parquet(tmp_path: Path) -> None:
    for split, first in (("train", 0), ("test", 10)):
        for label in ("cat", "big%20dog"):
            first += 4
            rows(tmp_path / f"split={split}" / f"label={label}" / "0.parquet", list(range(first, first + 4)))
    splits = load(tmp_path)
    assert levels_of(splits.test) == [*range(18, 22), *range(14, 18)]
    assert splits.label_names == ("big dog", "cat")
    assert names_of(splits, splits.test) == ["big dog"] * 4 + ["cat"] * 4
    assert names_of(splits, splits.train) == ["big dog" if v >= 8 else "cat" for v in levels_of(splits.train)]


def test_parquet_files_called_after_their_splits(tmp_path: Path) -> None:
    rows(tmp_path / "mnist_train.parquet", [1, 2, 3, 4])
    rows(tmp_path / "mnist_test.parquet", [5])
    assert levels_of(load(tmp_path).test) == [5]
    rows(tmp_path / "train-test.parquet", [6])
    fails("train-test.parquet is called after two splits, test and train", tmp_path)


def test_what_lies_beside_parquet_files_is_named(tmp_path: Path) -> None:
    rows(tmp_path / "train.parquet", [1, 2, 3, 4])
    save(tmp_path / "more" / "5.png", 5)
    for _ in range(2):  # also where the images themselves come from the cache
        with pytest.warns(UserWarning, match=r"not read: 1 file \(1 .png\), such as .*5.png"):
            assert all_levels(load(tmp_path)) == [1, 2, 3, 4]


# Files that are not read


def test_files_that_are_not_read_are_counted(tmp_path: Path) -> None:
    for i in range(5):
        save(tmp_path / f"{i}.png", i)
        (tmp_path / f"{i}.heic").write_bytes(b"x")
    (tmp_path / "cover.psd").write_bytes(b"x")
    for companion in ("labels.csv", "README", "LICENSE.md", "Thumbs.db", ".DS_Store"):
        (tmp_path / companion).write_bytes(b"x")
    with pytest.warns(UserWarning, match=r"not read: 6 files \(5 .heic, 1 .psd\), such as .*0.heic; save .* as PNG"):
        assert all_levels(load(tmp_path)) == [0, 1, 2, 3, 4]


def test_all_that_pillow_reads_is_read(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / f"{i}.png", i)
    Image.new("L", (4, 3), 200).save(tmp_path / "a.jfif", "JPEG")
    Image.new("L", (4, 3), 100).save(tmp_path / "b.avif", quality=100)
    Image.new("L", (4, 3), 50).save(tmp_path / "c.pgm")
    found = all_levels(load(tmp_path, channels=1))
    assert found[:4] == [0, 1, 2, 50]
    assert found[4:] == pytest.approx([100, 200], abs=2)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipes_do_not_hang(tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path / f"{i}.png", i)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "lost.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.warns(UserWarning, match="not read: 2 that cannot be read as a file is"):
        assert all_levels(load(tmp_path)) == [0, 1, 2, 3]
    fails("neither a folder", tmp_path / "pipe.png")
    with pytest.raises(GoalgenError, match="a pipe or a device"):
        decode_image(tmp_path / "pipe.png")


@pytest.mark.parametrize("inside", [False, True])
def test_folders_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: bool) -> None:
    """The folder itself is refused; one inside of it is said to be left unread."""
    for i in range(4):
        save(tmp_path / "a" / f"{i}.png", i)
        save(tmp_path / "b" / f"{i}.png", i)
    closed, scandir = str(tmp_path / "b" if inside else tmp_path), os.scandir

    def refusing(path: Any) -> Any:
        if str(path) == closed:
            raise PermissionError(errno.EACCES, "Permission denied", closed)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    if inside:
        with pytest.warns(UserWarning, match="not read: 1 that cannot be read as a file is .*b"):
            assert all_levels(load(tmp_path)) == [0, 1, 2, 3]
    else:
        fails("cannot be read; you need the right to read and enter it", tmp_path)


def test_links_to_classes_leave_the_labels(tmp_path: Path) -> None:
    for i in range(8):
        save(tmp_path / ("cats" if i % 2 else "dogs") / f"{i}.png", i)
    (tmp_path / "cats" / "dogs").symlink_to(tmp_path / "dogs", target_is_directory=True)
    (tmp_path / "animals").symlink_to(tmp_path / "dogs", target_is_directory=True)
    with pytest.warns(UserWarning, match="2 linked to folders that are read already"):
        splits = load(tmp_path)
    assert all_levels(splits) == list(range(8))
    assert splits.label_names == ("cats", "dogs")


def test_links_out_of_the_folder_are_followed(tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path / "elsewhere" / f"{i}.png", i)
        save(tmp_path / "images" / "dogs" / f"{i}.png", 10 + i)
    (tmp_path / "images" / "cats").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    splits = load(tmp_path / "images")
    assert all_levels(splits) == [0, 1, 2, 3, 10, 11, 12, 13]
    assert splits.label_names == ("cats", "dogs")


def test_an_unreadable_test_image_is_replaced_by_another(tmp_path: Path) -> None:
    """Whichever file of a small folder is broken, the others are read."""
    for i in range(6):
        save(tmp_path / f"{i}.png", i)
    for i in range(6):
        path = tmp_path / f"{i}.png"
        whole = path.read_bytes()
        path.write_bytes(whole[:45])  # the header survives
        with pytest.warns(UserWarning, match="skipped 1 unreadable image"):
            splits = load(tmp_path)
        assert all_levels(splits) == [v for v in range(6) if v != i]
        assert min(len(splits.train), len(splits.validation), len(splits.test)) > 0
        path.write_bytes(whole)


# Labels


def test_classes_are_in_natural_order(tmp_path: Path) -> None:
    for i in range(36):
        save(tmp_path / str(i % 12) / f"{i}.png", i)
    splits = load(tmp_path)
    assert splits.label_names == tuple(map(str, range(12)))
    for part in (splits.train, splits.validation, splits.test):
        assert part.labels is not None
        assert part.labels.tolist() == [v % 12 for v in levels_of(part)]


def test_natural_order() -> None:
    assert sorted(["a10", "10", "a2", "b", "2", "", "A3", "01"], key=natural) == [
        "",
        "01",
        "2",
        "10",
        "a2",
        "A3",
        "a10",
        "b",
    ]


def test_classes_are_those_that_occur(tmp_path: Path) -> None:
    rows(tmp_path / "a.parquet", list(range(8)), label=[5, 300000] * 4)
    splits = load(tmp_path)
    assert splits.label_names == ("5", "300000")
    assert names_of(splits, splits.train) == ["300000" if v % 2 else "5" for v in levels_of(splits.train)]
    encoded, names = encode_labels({"train": [3, 9, 3], "test": [9]}, [f"kind {i}" for i in range(10)], "x")
    assert names == ("kind 3", "kind 9")
    assert [t.tolist() for t in encoded.values() if t is not None] == [[0, 1, 0], [1]]
    encoded, names = encode_labels({"train": [0, 1], "test": ["dog"]}, ["dog", "cat"], "x")  # numbers here, names there
    assert names == ("dog", "cat")
    assert [t.tolist() for t in encoded.values() if t is not None] == [[0, 1], [0]]


def test_ids_are_no_classes(tmp_path: Path) -> None:
    rows(tmp_path / "a.parquet", [v % 256 for v in range(200)], label=list(range(200)))
    with pytest.warns(UserWarning, match="200 different labels for 200 images are no classes; left out"):
        assert load(tmp_path).train.labels is None


def test_labels_that_are_missing_are_said() -> None:
    with pytest.warns(UserWarning, match="x: 1 of 3 train images have no label; those of the others are left out"):
        encoded, names = encode_labels({"train": [0, None, 1], "test": [1.0]}, None, "x")
    assert encoded["train"] is None
    assert encoded["test"] is not None
    assert names == ("1",)
    assert encode_labels({"test": [-1, -1]}, ["a"], "x") == ({"test": None}, None)  # kept to themselves


def test_labels_are_found_by_name() -> None:
    assert find_label("10", ("5", "10")) == 1
    assert find_label(10, ("5", "10")) == 1
    assert find_label("dog", ("cat", "dog")) == 1
    assert find_label("1", ("cat", "dog")) == 1
    assert find_label("e\u0301tang", ("\xe9tang",)) == 0
    for wanted, names in (("1", ("5", "10")), ("2", ("cat", "dog")), ("-1", ("cat", "dog")), ("emu", ("cat", "dog"))):
        with pytest.raises(GoalgenError, match=f"no class is called '{wanted}'; there are: {', '.join(names)}"):
            find_label(wanted, names)


def test_labels_are_matched_by_name() -> None:
    labels = torch.tensor([0, 1, 0])
    assert match_labels(labels, ("dog", "cat", "emu"), ("cat", "dog")).tolist() == [1, 0, 1]
    with pytest.raises(GoalgenError, match="the model knows no class emu; its classes are: cat, dog"):
        match_labels(labels, ("dog", "emu"), ("cat", "dog"))
