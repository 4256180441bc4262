"""Measure a model on held-out images: the bound, and the quality and diversity of its samples."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from goalgen.data import ImageSet, Splits, binarize_images
from goalgen.environments import LatentEnvironment
from goalgen.errors import GoalgenError
from goalgen.learners import active_units
from goalgen.metrics import make_features, sample_quality
from goalgen.model import Model
from goalgen.rng import generator
from goalgen.size import count_operations, count_parameters
from goalgen.starts import Start
from goalgen.training.batches import pairing_names

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

REFERENCE = {"nearest_train_distance": "nearest_train_reference"}


def reference_key(key: str) -> str:
    """The key under which the held-out reference of a metric stands."""
    return REFERENCE.get(key, key.replace("_distance", "") + "_reference")


def evaluate(
    model: Model,
    data: Splits,
    *,
    num_samples: int | None = None,
    num_test: int | None = None,
    seed: int = 0,
    iw_k: int = 16,
    iw_images: int = 500,
    features: str = "auto",
    start: str | None = None,
    temperature: float = 1.0,
    steps: int | None = None,
) -> dict[str, Any]:
    """Measure ``model`` against the held-out images of ``data``.

    Args:
        num_samples: samples to draw; unset: 10,000; never more than there are test images, as a metric and its
            reference must be of equally many.
        num_test: measure on the first so many test images; unset: all.
        seed: of the samples and of the GC-agent's noise.
        iw_k: trajectories an image in the tighter bound.
        iw_images: test images for the tighter bound (the first ones); it costs K rollouts each.
        features: see :func:`goalgen.metrics.make_features`.
        start: initial state, if not the one trained with.
        temperature: of the samples.
        steps: actions of a sample, where the model can skip steps; the bound is that of all steps.

    Returns:
        The numbers, JSON values. Nats are per image; every quality metric stands beside its ``_reference``, the same
        metric of held-out images.

    Raises:
        GoalgenError: the data do not fit the model.
    """
    if num_test is not None:
        if num_test < 6:
            raise GoalgenError(f"--num-test must be at least 6, not {num_test}")
        data = dataclasses.replace(data, test=data.test.subset(range(min(num_test, len(data.test)))))
    test = data.test.images
    if data.train.shape != model.shape:
        raise GoalgenError(
            f"the model makes images of {model.shape}, the data are {data.train.shape}; give the data it was trained on"
        )
    if data.test.levels != model.levels:
        raise GoalgenError(
            f"the model makes images of {model.levels} grey levels, the data have {data.test.levels}; give the data it "
            "was trained on"
        )
    if iw_images < 1:
        raise GoalgenError(f"--iw-images must be at least 1, not {iw_images}")
    if num_samples is not None and num_samples < 6:
        raise GoalgenError(f"--num-samples must be at least 6, not {num_samples}")
    begin = model.start(start)
    names = pairing_names(begin, data.test)
    labels = data.test.labels if model.agents.num_labels else None
    if model.agents.num_labels and labels is None:
        raise GoalgenError("this model is conditioned on labels, and the test images have none")
    terms = model.nll_bound(test, seed, start=start, names=names, labels=labels)
    part = test[:iw_images]
    first = slice(iw_images)
    tighter = model.iw_bound(
        part, iw_k, seed, start=start, names=names and names[first], labels=None if labels is None else labels[first]
    )
    count = min(num_samples or 10_000, len(test))
    drawn = SampleStream(model, data.test, begin, names, labels, seed, start, temperature, steps)
    train = data.train.images
    if data.binarize:
        train = binarize_images(train, data.train.levels, generator(0, "binarised training images"))
    fingerprint = data.train.fingerprint() + ("-binary" if data.binarize else "")
    extractor = make_features(features, train, data.train.labels, model.levels, data=data.name, fingerprint=fingerprint)
    quality = sample_quality(
        drawn.batches(count), train, test, model.levels, extractor, train_fingerprint=fingerprint, num_samples=count
    )
    total = terms.total.double()
    return {
        "bits_per_dim": float(model.bits_per_dim(total.mean())),
        "nll_bound_nats": total.mean().item(),
        "nll_bound_standard_error": (total.std() / len(total) ** 0.5).item(),
        "reconstruction_nats": terms.reconstruction.double().mean().item(),
        "kl_nats": terms.kl.double().sum(0).mean().item(),
        "kl_per_step_nats": terms.kl.double().mean(1).tolist(),
        "iw_bound_nats": tighter.double().mean().item(),
        "iw_k": iw_k,
        "iw_images": len(part),
        "nll_bound_nats_on_iw_images": total[: len(part)].mean().item(),
        **quality,
        "num_test": len(test),
        **latent_use(model, test[:UNITS_IMAGES], seed, start, names, labels),
        "parameters": count_parameters(model.agents),
        "operations": count_operations(model.agents),
        "network_evaluations": drawn.network_evaluations,
        "temperature": temperature,
        "start": drawn.start_name,
        "weights": model.weights,
        "step": model.facts.get("step"),
        "data": data.name,
    }


SAMPLE_BATCH = 256
"""Samples drawn at once, measured and let go: memory does not grow with their number."""


@dataclass
class SampleStream:
    """Samples of a model in batches, told about test images whatever its initial state or labels need."""

    model: Model
    test: ImageSet
    begin: Start
    names: Sequence[str] | None
    labels: Tensor | None
    seed: int
    start: str | None
    temperature: float
    steps: int | None
    network_evaluations: int = 0
    start_name: str = ""

    def batches(self, count: int) -> Iterator[Tensor]:
        """``count`` (at most the number of test images) samples in grey levels of the data, (B, C, height, width) uint8."""
        for first in range(0, count, SAMPLE_BATCH):
            part = slice(first, min(first + SAMPLE_BATCH, count))
            sampled = self.model.sample(
                part.stop - first,
                self.seed,
                start=self.start,
                goals=self.test.images[part] if self.begin.needs_goal else None,
                names=None if self.names is None else self.names[part],
                labels=None if self.labels is None else self.labels[part],
                temperature=self.temperature,
                steps=self.steps,
                first=first,
            )
            self.network_evaluations, self.start_name = sampled.network_evaluations, sampled.start
            yield sampled.levels


UNITS_IMAGES = 256
"""Images over which the use of latents is counted."""


def latent_use(
    model: Model,
    images: Tensor,
    seed: int,
    start: str | None,
    names: Sequence[str] | None,
    labels: Tensor | None,
) -> dict[str, Any]:
    """Active units of every step, and how many there are; nothing for a model without latents."""
    if not isinstance(model.agents.environment, LatentEnvironment):
        return {}
    count = len(images)
    trajectory = model.rollout(
        images, seed, start=start, names=names and names[:count], labels=None if labels is None else labels[:count]
    )
    units = math.prod(model.agents.environment.action_space.shape)
    return {"active_units_per_step": active_units(trajectory).tolist(), "units_per_step": units}
