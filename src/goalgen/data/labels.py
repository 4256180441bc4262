"""Labels: names of classes, and the numbers by which tensors hold them. Classes are those that occur."""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from goalgen.errors import GoalgenError

Labels = Tensor | np.ndarray | Sequence[int | str] | int | str
"""Labels of images, see :func:`label_numbers`."""

FEW = 100
"""Classes up to which it is not asked whether they are too many for the images."""


def natural(text: str) -> tuple[Any, ...]:
    """A key by which "2" sorts before "10", and "a2" before "a10"."""
    parts = re.split(r"(\d+)", text)
    return tuple((int(p), "") if i % 2 else (-1, p.casefold()) for i, p in enumerate(parts)), text


def encode_labels(
    columns: dict[str, list[Any] | None], known: Sequence[str] | None, source: str
) -> tuple[dict[str, Tensor | None], tuple[str, ...] | None]:
    """Return the labels of every split as int64, and the names of the classes that occur.

    Args:
        columns: of every split, its labels: names, or numbers from 0; None where it has none.
        known: what the numbers are called, where the source says so; classes then stand in this order, else in natural order.
        source: the name of the source, for messages.

    A split that misses a label has none at all.

    Warns:
        UserWarning: some images of a split have a label and some have not, or there are so many different labels that they
            cannot be classes; they are left out.
    """
    named = {split: None if column is None else [_name(v, known) for v in column] for split, column in columns.items()}
    names: dict[str, list[str] | None] = dict.fromkeys(columns)
    for split, found in named.items():
        if found and None not in found:
            names[split] = [name for name in found if name is not None]
        elif found and (lacking := found.count(None)) < len(found):
            message = f"{source}: {lacking:,} of {len(found):,} {split} images have no label"
            warnings.warn(f"{message}; those of the others are left out", stacklevel=3)
    order = {name: i for i, name in enumerate(known or ())}
    occurring = {name for column in names.values() for name in column or ()}
    classes = tuple(sorted(occurring, key=lambda name: (order.get(name, len(order)), natural(name))))
    count = sum(len(column) for column in names.values() if column is not None)
    if len(classes) > max(FEW, count // 2):
        warnings.warn(
            f"{source}: {len(classes):,} different labels for {count:,} images are no classes; left out", stacklevel=3
        )
        return dict.fromkeys(columns), None
    code = {name: i for i, name in enumerate(classes)}
    encoded = {
        split: None if column is None else torch.tensor([code[name] for name in column], dtype=torch.int64)
        for split, column in names.items()
    }
    return encoded, classes or None


def _name(value: Any, known: Sequence[str] | None) -> str | None:
    """The name of a label, None where it is none; -1 is what Hugging Face writes for a label that it keeps to itself."""
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value)  # a Mac's folders are spelt otherwise
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or value < 0:
        return None
    return known[value] if known and value < len(known) else str(value)


def find_label(wanted: str | int, names: Sequence[str]) -> int:
    """Return the number of a class that is given by its name, or by its number where no class is called by one.

    Raises:
        GoalgenError: there is no such class; the message lists those that there are.
    """
    text = unicodedata.normalize("NFC", str(wanted))
    if text in names:
        return list(names).index(text)
    numbered = any(name.isdecimal() for name in names)
    if not numbered and text.isdecimal() and int(text) < len(names):
        return int(text)
    raise GoalgenError(f"no class is called {text!r}; there are: {listed(names)}")


def label_numbers(labels: Labels, num: int, names: Sequence[str]) -> Tensor:
    """Return labels of ``num`` images as (num,) int64.

    Args:
        labels: a tensor of numbers of classes, or, for each image or for all, the name of a class or its number where no
            class is called by one.
        num: how many images there are.
        names: of the classes.

    Raises:
        GoalgenError: they are not so many, or not among the classes.
    """
    if isinstance(labels, (str, int)):
        labels = [labels] * num
    if not isinstance(labels, Tensor | np.ndarray | Sequence):
        raise GoalgenError(f"labels must be names or numbers of classes, not {type(labels).__name__}")
    found = labels if isinstance(labels, Tensor) else torch.tensor([find_label(v, names) for v in labels])
    if found.ndim != 1 or len(found) != num:
        raise GoalgenError(f"{found.numel()} labels were given for {num} images; give one for each")
    if found.is_floating_point() or not bool(((found >= 0) & (found < len(names))).all()):
        raise GoalgenError(f"labels must be 0 to {len(names) - 1}")
    return found.long()


def match_labels(labels: Tensor, theirs: Sequence[str], mine: Sequence[str]) -> Tensor:
    """Return labels (N,) of classes called ``theirs`` as the numbers of the same names in ``mine``.

    Raises:
        GoalgenError: a class that occurs among the labels has no namesake.
    """
    code = {name: i for i, name in enumerate(mine)}
    unknown = [theirs[i] for i in labels.unique().tolist() if theirs[i] not in code]
    if unknown:
        raise GoalgenError(f"the model knows no class {listed(unknown)}; its classes are: {listed(mine)}")
    table = torch.tensor([code.get(name, -1) for name in theirs], dtype=torch.int64)
    return table[labels]


def listed(names: Sequence[str], most: int = 20) -> str:
    """Names of classes as words of a message."""
    return ", ".join(names[:most]) + (f", ... ({len(names):,} in all)" if len(names) > most else "")
