"""Measure a model on held-out images: the bound, and the quality and diversity of its samples."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, randperm

from goalgen.bound import Bound
from goalgen.config import Measurement
from goalgen.data import ImageSet, Splits, binarize_images, load_data
from goalgen.data.labels import match_labels
from goalgen.data.memory import from_memory
from goalgen.data.provenance import Provenance, unseen
from goalgen.errors import GoalgenError
from goalgen.family import check_least
from goalgen.metrics import make_features, sample_quality
from goalgen.model import CHUNK, Asked, Given, Model
from goalgen.processes import agreed, assists, shared
from goalgen.rng import generator
from goalgen.sampling import BLOCK, Sampled
from goalgen.size import count_operations, count_parameters
from goalgen.telling import Telling
from goalgen.training.batches import conditional_on

T = TypeVar("T")
Array = Tensor | np.ndarray
Data = Splits | str | Path | Array | tuple[Array, Array] | None
"""What a model can be measured on: see :func:`evaluate`."""

MEANING = {
    "bits_per_dim": "bound on the negative log-likelihood of test images, bits per dimension (lower is better)",
    "nll_bound_nats": "the same in nats an image: reconstruction + KL (equation 3)",
    "reconstruction_nats": "cost of the pixels, given the GC-agent's last canvas",
    "kl_nats": "cost of the actions: divergence of the two policies",
    "iw_bound_nats": "tighter bound from K trajectories an image (equation 4)",
    "frechet_distance": "distance of samples from training images in feature space (lower is better)",
    "kernel_distance": "another such distance, unbiased in the number of samples",
    "precision": "share of samples that lie among training images",
    "recall": "share of training images that lie among samples",
    "density": "how deep samples lie among training images",
    "coverage": "share of training images with a sample nearby",
    "nearest_train_distance": "root mean square distance to the nearest training image; far below its reference: copies",
}
"""What each number means, in the order of the table."""

OF_MODEL = ("bits_per_dim", "nll_bound_nats", "reconstruction_nats", "kl_nats", "iw_bound_nats")
"""Numbers of the model itself, whatever the sampler; the others are of samples."""

SAMPLE_BATCH = 256
"""Samples drawn at once, measured and let go: memory does not grow with their number."""

REPORT_IMAGES = 256
"""Images whose episodes a family reports on."""


def evaluate(model: Model, data: Data = None, **settings: Any) -> dict[str, Any]:
    """Measure ``model`` against the held-out images of ``data``.

    Args:
        data: from :func:`goalgen.load_data`, a source as --data, or the images that were given to :func:`goalgen.train`, or (images, labels); unset:
            the data of its run.
        settings: see :class:`goalgen.config.Measurement`.

    Returns:
        The numbers, JSON values. Nats are per image; every quality metric stands beside its ``_reference``, the same
        metric of held-out images.

    Raises:
        GoalgenError: the data do not fit the model, or a number is out of range.

    Warns:
        UserWarning: the data are others than the model was made from.
    """
    how = Measurement(**settings)
    check_least(how, num_test=6, num_samples=6, iw_images=1)
    data = data_of(model, data)
    same = model.provenance is not None and not model.provenance.differences(Provenance.of(data))
    data = held_out(model, data)
    if how.num_test is not None:
        data = dataclasses.replace(data, test=data.test.subset(range(min(how.num_test, len(data.test)))))
    if how.quick:
        data, how = made_quick(model, data, how)
    given = given_of(model, data.test, how.start)
    work = Work.of(how, data, model.family.bound_is_exact)
    with work.telling:
        bounds = measure_bound(model, data.test.images, how, given, work)
        quality, drawn = measure_samples(model, data, how, given, work)
    quality = agreed(quality)
    episodes = model.rollout(data.test.images[:REPORT_IMAGES], how.seed, **rows_of(given, REPORT_IMAGES))
    return {
        **bounds,
        "conditional_on": conditional_on(model.family, model.start(how.start), given["names"] is not None),
        "kl_is_upper_bound": any(decision.policy.kl_is_upper_bound for decision in episodes.decisions),
        **quality,
        "sampler": drawn.last.sampler,
        "pixels": drawn.last.pixels,
        "num_test": len(data.test),
        "quick": how.quick,
        **model.family.report(episodes),
        "parameters": count_parameters(model.family),
        "operations": count_operations(model.family),
        "network_evaluations": drawn.last.network_evaluations,
        "temperature": how.temperature,
        "start": drawn.last.start,
        "weights": model.weights,
        "step": model.facts.get("step"),
        "data": data.name,
        "data_of_model": None if model.provenance is None else same,
    }


def held_out(model: Model, data: Splits) -> Splits:
    """Return ``data`` as a model may be measured on them: no test image that it has seen, labels by its own numbers.

    Warns:
        UserWarning: the data are others than the model was made from.

    Raises:
        GoalgenError: they have another shape or other grey levels, lack labels, or have classes that the model does not know.
    """
    check_fit(model, data)
    data = unseen(data, model.provenance)
    if not model.classes or data.test.labels is None:
        return data
    names = data.label_names or tuple(map(str, range(int(data.test.labels.max()) + 1)))
    labels = match_labels(data.test.labels, names, model.classes)
    return dataclasses.replace(data, test=dataclasses.replace(data.test, labels=labels))


@dataclass
class Work:
    """The parts of a measurement and how far it is, in episodes."""

    parts: dict[str, int]
    """episodes of each part, in the order in which they are done"""
    telling: Telling

    @classmethod
    def of(cls, how: Measurement, data: Splits, exact: bool) -> Work:
        """... of measuring on these data, by a bound that is exact or not."""
        tighter = 0 if exact else min(how.iw_images, len(data.test)) * how.iw_k
        parts = {"bound": len(data.test), "tighter bound": tighter, "samples": samples_of(how, data)}
        return cls(parts, Telling(sum(parts.values()), title="evaluate", silent=how.quiet or assists()))

    def at(self, part: str, done: int, each: int = 1) -> None:
        """So many images of a part are done, of ``each`` episodes."""
        names = list(self.parts)
        before = sum(self.parts[name] for name in names[: names.index(part)])
        self.telling.at(before + done * each, lambda: f"{part}: {done:,} of {self.parts[part] // each:,} images")

    def following(self, part: str, pieces: Iterable[T], each: int = 1) -> Iterator[T]:
        """Pieces of ``CHUNK`` images of a part as they are done."""
        for number, piece in enumerate(pieces, 1):
            self.at(part, min(number * CHUNK, self.parts[part] // each), each)
            yield piece


def samples_of(how: Measurement, data: Splits) -> int:
    """Samples that are drawn."""
    return min(how.num_samples or 10_000, len(data.test))


QUICK_SECONDS, QUICK_TRAIN, FEWEST = 2.5, 5000, 6
"""Of a quick measurement: seconds for each of its parts, training images to compare with, and the least number of images."""


def made_quick(model: Model, data: Splits, how: Measurement) -> tuple[Splits, Measurement]:
    """As much of the data, and as few trajectories and samples, as give a first answer in a few seconds on this machine."""
    few = data.test.subset(range(min(FEWEST, len(data.test))))
    given = given_of(model, few, how.start)
    model.nll_bound(few.images, how.seed, **given)  # the first also warms up
    begun = time.perf_counter()
    model.nll_bound(few.images, how.seed, **given)
    seconds = (time.perf_counter() - begun) / len(few)  # of an image; in a larger batch it takes less
    stream = SampleStream(model, few, how, given)
    list(stream.batches(len(few)))
    begun = time.perf_counter()
    list(stream.batches(len(few)))
    block = time.perf_counter() - begun  # samples are drawn in whole blocks
    seconds, block = agreed((seconds, block))  # clocks differ between processes
    tests = min(max(int(QUICK_SECONDS / seconds), FEWEST), len(data.test), how.num_test or 1000)
    order = randperm(len(data.train), generator=generator(0, "quick training images"))[:QUICK_TRAIN].sort().values
    quick = dataclasses.replace(
        how,
        num_samples=min(max(int(QUICK_SECONDS / block) * BLOCK, FEWEST), tests, how.num_samples or tests),
        iw_k=min(how.iw_k, 4),
        iw_images=max(min(int(QUICK_SECONDS / seconds / min(how.iw_k, 4)), how.iw_images, tests, 64), 1),
        features="pixel-pca" if how.features == "auto" else how.features,
    )
    test = data.test.subset(range(tests))
    return dataclasses.replace(data, train=data.train.subset(order), test=test), quick


def data_of(model: Model, data: Data) -> Splits:
    """The data to measure on.

    Raises:
        GoalgenError: they cannot be read, or are other images in memory than the model was trained on.
    """
    source = model.config.data
    if isinstance(data, Splits):
        return data
    if isinstance(data, Tensor | np.ndarray | tuple):
        images, labels = data if isinstance(data, tuple) else (data, None)
        splits, named = from_memory(images, source, labels)
        if named != source:
            raise GoalgenError(
                "these are other images than the model was trained on; pass all that were given to train()"
            )
        return splits
    return load_data(source if data is None else dataclasses.replace(source, data=str(data)))


def check_fit(model: Model, data: Splits) -> None:
    """Refuse data that the model does not make.

    Raises:
        GoalgenError: they have another shape or other grey levels, or lack labels.
    """
    if data.train.shape != model.shape:
        raise GoalgenError(
            f"the model makes images of {model.shape}, the data are {data.train.shape}; give the data it was trained on"
        )
    if data.test.levels != model.levels:
        raise GoalgenError(
            f"the model makes images of {model.levels} grey levels, the data have {data.test.levels}; give the data it "
            "was trained on"
        )
    if model.family.num_labels and data.test.labels is None:
        raise GoalgenError("this model is conditioned on labels, and the test images have none")


def given_of(model: Model, images: ImageSet, start: str | None) -> Given:
    """What goes with held-out images: the initial state, their names where it is paired with them, their labels."""
    names = images.names if model.start(start).pairs_with(images.names) else None
    return {"start": start, "names": names, "labels": images.labels if model.family.num_labels else None}


def rows_of(given: Given, count: int, first: int = 0) -> Given:
    """... with ``count`` of the images."""
    rows, names, labels = slice(first, first + count), given["names"], given["labels"]
    return {
        **given,
        "names": None if names is None else names[rows],
        "labels": labels if labels is None or isinstance(labels, (int, str)) else labels[rows],
    }


def measure_bound(model: Model, images: Tensor, how: Measurement, given: Given, work: Work) -> dict[str, Any]:
    """The bound on all images, and the tighter one on some."""
    part = images[: how.iw_images]

    def asked(first: int, of: int) -> Asked:
        return {**rows_of(given, min(CHUNK, of - first), first), "first": first}

    def bound(first: int) -> Bound:
        return model.nll_bound(images[first : first + CHUNK], how.seed, **asked(first, len(images)))

    def iw_bound(first: int) -> Tensor:
        return model.iw_bound(part[first : first + CHUNK], how.iw_k, how.seed, **asked(first, len(part)))

    bounds = list(work.following("bound", shared(range(0, len(images), CHUNK), bound)))
    terms = Bound(torch.cat([b.reconstruction for b in bounds]), torch.cat([b.kl for b in bounds], 1))
    total = terms.total.double()
    exact = model.family.bound_is_exact
    parts = work.following("tighter bound", shared(range(0, 0 if exact else len(part), CHUNK), iw_bound), how.iw_k)
    tighter = torch.cat([total[: len(part)] if exact else total[:0], *parts])
    return {
        "bits_per_dim": float(model.bits_per_dim(total.mean())),
        "nll_bound_nats": total.mean().item(),
        "nll_bound_standard_error": (total.std() / len(total) ** 0.5).item(),
        "reconstruction_nats": terms.reconstruction.double().mean().item(),
        "kl_nats": terms.kl.double().sum(0).mean().item(),
        "kl_per_step_nats": terms.kl.double().mean(1).tolist(),
        "iw_bound_nats": tighter.mean().item(),
        "iw_k": how.iw_k,
        "iw_images": len(part),
        "nll_bound_nats_on_iw_images": total[: len(part)].mean().item(),
    }


def measure_samples(
    model: Model, data: Splits, how: Measurement, given: Given, work: Work
) -> tuple[dict[str, Any], SampleStream]:
    """Quality and diversity of samples, and the stream that they came from."""
    count = samples_of(how, data)
    drawn = SampleStream(model, data.test, how, given)
    if assists():  # one of several processes, which draws its share; the first measures them
        for _ in drawn.batches(count):
            pass
        return {}, drawn
    train = data.train.images
    if data.binarize:
        train = binarize_images(train, data.train.levels, generator(0, "binarised training images"))
    fingerprint = data.train.fingerprint() + ("-binary" if data.binarize else "")
    told = {"data": data.name, "fingerprint": fingerprint}
    extractor = make_features(how.features, train, data.train.labels, model.levels, **told)
    quality = sample_quality(
        drawn.batches(count, partial(work.at, "samples")), train, data.test.images, model.levels, extractor, train_fingerprint=fingerprint,
        num_samples=count,
        device=model.device if model.device.type == "cuda" else "cpu",
    )  # fmt: skip
    return quality, drawn


@dataclass
class SampleStream:
    """Samples of a model in batches, told about test images whatever its initial state or labels need."""

    model: Model
    test: ImageSet
    how: Measurement
    given: Given
    last: Sampled = field(init=False)
    """what was drawn last"""

    def batches(self, count: int, each: Callable[[int], object] | None = None) -> Iterator[Tensor]:
        """``count`` (at most the number of test images) samples in grey levels of the data, (B, C, height, width) uint8."""
        needs_goal = self.model.start(self.how.start).needs_goal

        def draw(first: int) -> Sampled:
            size = min(SAMPLE_BATCH, count - first)
            return self.model.sample(
                size,
                self.how.seed,
                **rows_of(self.given, size, first),
                goals=self.test.images[first : first + size] if needs_goal else None,
                temperature=self.how.temperature,
                steps=self.how.steps,
                correlation=self.how.correlation,
                draw_pixels=self.how.draw_pixels,
                first=first,
                canvases=False,
            )

        done = 0
        for self.last in shared(range(0, count, SAMPLE_BATCH), draw):
            done += len(self.last.levels)
            if each is not None:
                each(done)
            yield self.last.levels
