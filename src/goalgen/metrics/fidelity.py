"""How near an image is to the true one: PSNR and SSIM, of torchmetrics."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from goalgen.errors import GoalgenError

SMALLEST_SSIM = 6
"""Pixels a side that SSIM needs: its window of 11x11 is continued over the edge by reflection."""
PEAK = 255.0


class Fidelity(NamedTuple):
    """How near an image is to the true one."""

    psnr: float | None
    """decibels; None where nothing differs, so that it is infinite"""
    ssim: float | None
    """at most 1; None for images of fewer than 6 pixels a side"""


def fidelity_library() -> Any:
    """What computes PSNR and SSIM: :mod:`torchmetrics.functional.image`.

    Raises:
        GoalgenError: torchmetrics is not installed.
    """
    try:
        return importlib.import_module("torchmetrics.functional.image")
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision of another PyTorch
        raise GoalgenError(f"PSNR and SSIM need torchmetrics ({error}): pip install torchmetrics") from None


def fidelity(image: Tensor, truth: Tensor) -> Fidelity:
    """Return PSNR and SSIM of an image to the true one, both uint8 (C, height, width) of 256 grey levels.

    PSNR is over all pixels and channels; SSIM has a Gaussian window of 1.5 pixels (Wang et al., 2004), and is a mean over
    pixels and channels.

    Raises:
        GoalgenError: torchmetrics is not installed.
    """
    library = fidelity_library()
    pair = [x[None].to(torch.float64) for x in (image, truth)]
    psnr = float(library.peak_signal_noise_ratio(*pair, data_range=PEAK))
    ssim = None
    if min(image.shape[1:]) >= SMALLEST_SSIM:
        ssim = float(library.structural_similarity_index_measure(*pair, data_range=PEAK))
    return Fidelity(psnr if psnr < float("inf") else None, ssim)
