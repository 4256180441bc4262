"""Measure a model on held-out images: the bound, and the quality and diversity of its samples."""

from __future__ import annotations

from typing import Any

import torch

from goalgen.data import Splits, binarize_images
from goalgen.errors import GoalgenError
from goalgen.metrics import make_features, sample_quality
from goalgen.model import Model
from goalgen.rng import generator
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
    seed: int = 0,
    iw_k: int = 16,
    iw_images: int = 500,
    features: str = "auto",
    start: str | None = None,
) -> dict[str, Any]:
    """Measure ``model`` against the held-out images of ``data``.

    Args:
        num_samples: samples to draw; unset: as many as there are test images, at most 10,000.
        seed: of the samples and of the GC-agent's noise.
        iw_k: trajectories an image in the tighter bound.
        iw_images: test images for the tighter bound (the first ones); it costs K rollouts each.
        features: see :func:`goalgen.metrics.make_features`.
        start: initial state, if not the one trained with.

    Returns:
        The numbers, JSON values. Nats are per image; every quality metric stands beside its ``_reference``, the same
        metric of held-out images.

    Raises:
        GoalgenError: the data do not fit the model.
    """
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
    terms = model.nll_bound(test, seed, start=start, names=names)
    part = test[:iw_images]
    tighter = model.iw_bound(part, iw_k, seed, start=start, names=None if names is None else names[:iw_images])
    count = num_samples or min(len(test), 10_000)
    index = torch.arange(count) % len(test)
    goals = test[index] if begin.needs_goal else None
    partners = None if names is None else [names[i] for i in index.tolist()]
    samples = model.sample(count, seed, start=start, goals=goals, names=partners)
    train = data.train.images
    if data.binarize:
        train = binarize_images(train, data.train.levels, generator(0, "binarised training images"))
    fingerprint = data.train.fingerprint() + ("-binary" if data.binarize else "")
    extractor = make_features(features, train, data.train.labels, model.levels, data=data.name, fingerprint=fingerprint)
    quality = sample_quality(samples.levels, train, test, model.levels, extractor, train_fingerprint=fingerprint)
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
        "network_evaluations": samples.network_evaluations,
        "start": samples.start,
        "weights": model.weights,
        "step": model.facts.get("step"),
        "data": data.name,
    }
