"""What a model knows of the images it was made from, so that other images are told, and none it has seen is tested on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from goalgen.data.labels import listed
from goalgen.data.sets import ImageSet, Splits
from goalgen.errors import GoalgenError
from goalgen.storage import load_tensors, save_tensors, write_atomically

FILE = "data.safetensors"
"""Name of the file, in a run and in a saved model."""

ROLES = ("train", "validation", "test")


@dataclass(frozen=True)
class Provenance:
    """The images that a model was made from, by their digests."""

    about: dict[str, Any]
    """of the splits: number and fingerprint of each, shape, levels, names of classes; JSON values"""
    seen: Tensor
    """(n,) int64, sorted: digests of the images that were trained on, or that chose the best weights"""

    @classmethod
    def of(cls, data: Splits) -> Provenance:
        """What is to be known of ``data``."""
        parts = {"train": data.train, "validation": data.validation, "test": data.test}
        about: dict[str, Any] = {
            role: {"images": len(part), "fingerprint": _fingerprint(part)} for role, part in parts.items()
        }
        names = list(data.label_names) if data.label_names else None
        about |= {"name": data.name, "shape": list(data.train.shape), "levels": data.test.levels, "classes": names}
        return cls(about, torch.cat([data.train.digest(), data.validation.digest()]).unique())

    def save(self, path: Path) -> None:
        """Write it (the caller makes it atomic)."""
        save_tensors(path, {"seen": self.seen}, {"about": json.dumps(self.about)})

    def keep(self, folder: Path) -> None:
        """Write it into the folder of a run."""
        write_atomically(folder / FILE, self.save)

    @classmethod
    def load(cls, path: Path) -> Provenance | None:
        """Read what :meth:`save` wrote; None where there is no such file, as of models of earlier versions.

        Raises:
            GoalgenError: the file is damaged.
        """
        if not path.exists():
            return None
        tensors, metadata = load_tensors(path)
        try:
            about, seen = json.loads(metadata["about"]), tensors["seen"]
            if not _is_about(about) or seen.dtype != torch.int64 or seen.ndim != 1:
                raise ValueError
            return cls(about, seen)
        except (KeyError, ValueError, RecursionError):
            raise GoalgenError(f"{path} is damaged: it does not say what data it is of; restore or delete it") from None

    def differences(self, other: Provenance) -> str:
        """How ``other`` data differ from these, in words; "" where they are the same."""
        mine, theirs = self.about, other.about
        if mine.get("shape") != theirs["shape"]:
            return f"images are {_size(theirs['shape'])} now, and were {_size(mine.get('shape', []))}"
        found = []
        if mine.get("levels") != theirs["levels"]:
            found.append(f"grey levels {theirs['levels']} now, {mine.get('levels')} then")
        if mine.get("classes") != theirs["classes"]:
            found.append(
                f"classes {listed(theirs['classes'] or ['none'])} now, {listed(mine.get('classes') or ['none'])} then"
            )
        for role in ROLES:
            before, now = mine.get(role, {}), theirs[role]
            if before.get("images") != now["images"]:
                found.append(f"{now['images']:,} {role} images now, {before.get('images', 0):,} then")
            elif before.get("fingerprint") != now["fingerprint"]:
                found.append(f"other {role} images, labels or order of them")
        return "; ".join(found)


def _is_about(about: Any) -> bool:
    """Whether a value is what :meth:`Provenance.of` says of data: models come from anywhere."""
    if not isinstance(about, dict) or not all(isinstance(about.get(role), dict) for role in ROLES):
        return False
    counts = [about[role].get("images") for role in ROLES]
    shape, classes = about.get("shape"), about.get("classes")
    if not isinstance(shape, list) or not isinstance(classes, list | None):
        return False
    names = [about.get("name"), *(about[role].get("fingerprint") for role in ROLES), *(classes or [])]
    whole = all(type(number) is int for number in [*counts, *shape, about.get("levels")])
    return whole and all(isinstance(name, str) for name in names)


def _size(shape: list[int]) -> str:
    return "x".join(map(str, shape))


def _fingerprint(part: ImageSet) -> str:
    digest = hashlib.blake2b(part.digest().numpy().tobytes(), digest_size=16)
    if part.labels is not None:
        digest.update(part.labels.contiguous().numpy().tobytes())
    return digest.hexdigest()


def say_repeated(data: Splits) -> None:
    """Warn where test images are among those that are learned from."""
    seen = torch.cat([data.train.digest(), data.validation.digest()])
    if count := int(torch.isin(data.test.digest(), seen).sum()):
        total = len(data.test)
        message = f"{data.name}: {count:,} of the {total:,} test images {'is' if count == 1 else 'are'} also among those to learn from"
        warnings.warn(f"{message}; what is measured on them is too good", stacklevel=3)


def unseen(data: Splits, known: Provenance | None) -> Splits:
    """Return ``data`` without test images that a model has seen, if they are other data than it was made from.

    Warns:
        UserWarning: they are others, or some of their test images were seen.

    Raises:
        GoalgenError: all of their test images were seen.
    """
    if known is None or not (words := known.differences(Provenance.of(data))):
        return data
    warnings.warn(f"{data.name}: not the data that the model was made from ({words})", stacklevel=3)
    fresh = ~torch.isin(data.test.digest(), known.seen)
    if fresh.all():
        return data
    count, total = int((~fresh).sum()), len(fresh)
    if count == total:
        raise GoalgenError(f"{data.name}: the model was trained on all of the {total:,} test images; give it others")
    message = f"{data.name}: {count:,} of the {total:,} test images were trained on, and are left out"
    warnings.warn(message, stacklevel=3)
    return dataclasses.replace(data, test=data.test.subset(fresh.nonzero()[:, 0]))
