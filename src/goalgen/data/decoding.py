"""Decoding a source into the file of :mod:`goalgen.data.mapped`: block by block, by all cores, on from where it was cut off."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from goalgen.cache import cache_key
from goalgen.data.images import quiet
from goalgen.data.mapped import JOURNAL, PIXELS, ROLES, Mapped, map_images
from goalgen.data.records import Item, Source
from goalgen.data.sets import image_digests
from goalgen.errors import GoalgenError
from goalgen.storage import append_text, write_text
from goalgen.telling import Telling

BLOCK = 128
"""Records that are decoded together and noted as done: what a killed process loses for each of its threads."""

Roles = dict[str, tuple[str, Tensor]]
"""Of train, validation and test: the split of the source, and which of its records, (n,) int64 ascending."""
Found = dict[str, tuple[str, Tensor, Tensor, Tensor | None]]
"""Likewise: the split of the source, the images, which of its records they are, and their digests where they are known."""
Decode = Callable[..., Tensor]
"""From an item, and what messages call it (``name``), to its pixels, (C, height, width) uint8."""
Note = Callable[[str, GoalgenError], None]
"""Takes note of an image, by its name, that cannot be read."""


@dataclass
class Block:
    """Records that are decoded together."""

    name: str
    rows: np.ndarray
    """where in the file their images belong, (n,) int64"""
    items: list[Item]


@dataclass
class Decoded:
    """What became of a block."""

    block: Block
    good: np.ndarray
    """which of its images could be read, (n,) bool"""
    pixels: np.ndarray
    """of those, (k, C, height, width) uint8"""
    digests: Tensor
    """of those, (k,) int64"""
    errors: list[tuple[str, GoalgenError]]


def decode_into(
    file: Mapped, source: Source, roles: Roles, shape: tuple[int, int, int], decode: Decode, note: Note
) -> Found:
    """Decode the images of ``roles`` into ``file`` (which is locked), or what an earlier process has left to do of it.

    Returns:
        Of train, validation and test: the split of the source, the images, which of its records they are, and their digests.

    Raises:
        GoalgenError: there is no room for it, or it cannot be written.
    """
    total, size = sum(len(chosen) for _, chosen in roles.values()), math.prod(shape)
    free = file.check_room(total * size)
    with Telling(total, title="decoding") as telling:
        telling.say(
            f"decoding {total:,} images of {source.name} once, into {file.folder} ({total * size / 1e9:,.2f} GB, of "
            f"{free / 1e9:,.1f} GB free)"
        )
        try:
            (file.folder / PIXELS).touch()
            with (file.folder / PIXELS).open("r+b", buffering=0) as pixels:
                return _Writer(file, roles, shape, pixels).write(source, decode, note, telling)
        except OSError as error:
            raise GoalgenError(
                f"{file.folder} cannot be written: {error.strerror or error}; what is decoded is kept, and the same command goes on"
            ) from None


class _Writer:
    """Fills the file of pixels."""

    def __init__(self, file: Mapped, roles: Roles, shape: tuple[int, int, int], pixels: BinaryIO) -> None:
        self.file, self.roles, self.shape, self.pixels = file, roles, shape, pixels
        self.size, self.total = math.prod(shape), sum(len(chosen) for _, chosen in roles.values())
        self.digests = torch.zeros(self.total, dtype=torch.int64)
        self.there = np.zeros(self.total, dtype=bool)
        self.first: dict[str, int] = {}
        self.rows: dict[str, np.ndarray] = {}  # of each split, the row of every record, -1 where it is not wanted
        at = 0
        for role in ROLES:
            split, chosen = roles[role]
            before, length = self.rows.get(split, np.empty(0, np.int64)), int(chosen[-1]) + 1
            self.rows[split] = np.concatenate([before, np.full(max(length - len(before), 0), -1)])
            self.rows[split][chosen.numpy()] = np.arange(at, at + len(chosen))
            self.first[role], at = at, at + len(chosen)

    def write(self, source: Source, decode: Decode, note: Note, telling: Telling) -> Found:
        """All blocks that are not there yet; then images that cannot be read are closed up."""
        done = self._begun()
        with quiet(), ThreadPoolExecutor(threads(), "decode") as pool:
            waiting: deque[Future[Decoded]] = deque()
            try:
                for block in self._blocks(source):
                    if block.name in done:
                        for row, words in done[block.name].items():
                            note(block.items[int(row)][0], GoalgenError(words))
                        continue
                    waiting.append(pool.submit(_decode_block, block, decode, self.shape))
                    if len(waiting) > threads():  # no more is read than is being decoded
                        self._keep(waiting.popleft().result(), note, telling)
                while waiting:
                    self._keep(waiting.popleft().result(), note, telling)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        self._close_up()
        os.fsync(self.pixels.fileno())
        images = map_images(self.file.folder / PIXELS, len(self.digests), self.shape) if len(self.digests) else None
        found: Found = {}
        at = 0
        for role in ROLES:
            split, chosen = self.roles[role]
            kept = chosen[torch.from_numpy(self.there[self.first[role] : self.first[role] + len(chosen)])]
            part, at = slice(at, at + len(kept)), at + len(kept)
            mine = torch.empty((0, *self.shape), dtype=torch.uint8) if images is None else images[part]
            found[role] = split, mine, kept, self.digests[part]
        return found

    def _blocks(self, source: Source) -> Iterator[Block]:
        """The records that are wanted, in the order of the source."""
        for split, rows in self.rows.items():
            records, number = iter(source.splits[split].read()), 0
            while number * BLOCK < len(rows) and (items := list(islice(records, BLOCK))):
                mine = rows[number * BLOCK : number * BLOCK + len(items)]
                wanted = np.flatnonzero(mine >= 0)
                if len(wanted):
                    yield Block(f"{split} {number}", mine[wanted], [items[i] for i in wanted])
                number += 1

    def _keep(self, decoded: Decoded, note: Note, telling: Telling) -> None:
        """Write what became of a block, and note that it is done."""
        for name, error in decoded.errors:
            note(name, error)
        rows, broken = decoded.block.rows[decoded.good], np.flatnonzero(~decoded.good).tolist()
        order = np.argsort(rows)
        ends = (
            np.flatnonzero(np.diff(rows[order]) != 1) + 1
        )  # of runs that lie side by side in the file: one of each set
        for run, pixels in zip(np.split(rows[order], ends), np.split(decoded.pixels[order], ends), strict=True):
            if len(run):
                self._put(int(run[0]), pixels)
        words = {str(i): str(error) for i, (_, error) in zip(broken, decoded.errors, strict=True)}
        record = {"block": decoded.block.name, "errors": words, "check": _check(decoded.digests)}
        append_text(self.file.folder / JOURNAL, json.dumps(record) + "\n")
        self.digests[rows], self.there[rows] = decoded.digests, True
        done = int(self.there.sum())
        telling.at(done, lambda: f"{done:,} of {self.total:,} images")

    def _put(self, row: int, pixels: np.ndarray) -> None:
        # Written, not assigned to a mapping: on a full disk that would kill the process.
        content = memoryview(np.ascontiguousarray(pixels).reshape(-1).data)
        self.pixels.seek(row * self.size)
        while len(content):
            content = content[self.pixels.write(content) :]

    def _begun(self) -> dict[str, dict[str, str]]:
        """The blocks that an earlier process has written, and the images of each that it could not read, with the reasons.

        A block whose pixels are not those that were noted, as after a failure of power, is not among them.
        """
        chosen = [(role, split, _check(records)) for role, (split, records) in self.roles.items()]
        layout = cache_key(self.shape, chosen)
        lines, done = [{"layout": layout}], {}
        head, *records = _read_journal(self.file) or [{}]
        if head.get("layout") != layout:
            self.pixels.truncate(0)
            records = []
        for record in records:
            split, _, number = record["block"].rpartition(" ")
            rows = self.rows[split][int(number) * BLOCK : (int(number) + 1) * BLOCK]
            rows = rows[rows >= 0]
            rows = np.delete(rows, [int(i) for i in record["errors"]])
            digests = self._digests(rows)
            if digests is not None and _check(digests) == record["check"]:
                self.digests[rows], self.there[rows] = digests, True
                done[record["block"]] = record["errors"]
                lines.append(record)
        write_text(self.file.folder / JOURNAL, "".join(json.dumps(line) + "\n" for line in lines))
        return done

    def _digests(self, rows: np.ndarray) -> Tensor | None:
        """Of what the file holds in these rows; None where it is too short."""
        parts = []
        for row in rows.tolist():
            self.pixels.seek(row * self.size)
            content = self.pixels.read(self.size)
            if len(content) < self.size:
                return None
            parts.append(np.frombuffer(content, np.uint8))
        return image_digests(torch.from_numpy(np.stack(parts)) if parts else torch.zeros(0, 1))

    def _close_up(self) -> None:
        """Move images into the place of those before them that cannot be read.

        Cut off, it leaves blocks whose pixels are not those that were noted, which are decoded again.
        """
        kept = np.flatnonzero(self.there)
        for at, row in enumerate(kept.tolist()):
            if at != row:
                self.pixels.seek(row * self.size)
                self._put(at, np.frombuffer(self.pixels.read(self.size), np.uint8))
        self.pixels.truncate(len(kept) * self.size)
        self.digests = self.digests[torch.from_numpy(kept)]


def threads() -> int:
    """Threads that decode: one for every core that the process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _decode_block(block: Block, decode: Decode, shape: tuple[int, int, int]) -> Decoded:
    pixels = np.empty((len(block.items), *shape), np.uint8)
    good, errors = np.ones(len(block.items), bool), []
    for i, (name, item) in enumerate(block.items):
        try:
            if item is None:
                raise GoalgenError(f"{name} has no image; remove it")
            pixels[i] = decode(item, name=name).numpy()
        except GoalgenError as error:
            good[i] = False
            errors.append((name, error))
    pixels = pixels[good]
    return Decoded(block, good, pixels, image_digests(torch.from_numpy(pixels)), errors)


def _check(numbers: Tensor) -> str:
    return hashlib.blake2b(numbers.numpy().tobytes(), digest_size=8).hexdigest()


def _read_journal(file: Mapped) -> list[dict[str, Any]]:
    """Its lines, without a last one that was cut off."""
    path = file.folder / JOURNAL
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records
