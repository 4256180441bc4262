"""Which family, network and sizes suit which images, where the user has not said. The one rule; its reasons are measured."""

from __future__ import annotations

from typing import Any

SMALL = 12
"""Pixels of a side up to which an mlp serves best."""

FEW = 5_000
"""Images below which dropout is worth what it costs."""


def suited(shape: tuple[int, int, int], images: int, gpu: bool) -> tuple[dict[str, Any], str]:
    """Settings by their names, and why.

    Args:
        shape: (C, height, width) of the images.
        images: number of training images.
        gpu: whether there is one to train on.
    """
    channels, height, width = shape
    settings: dict[str, Any] = {"batch_size": 64, "ema": 0.9995 if images < FEW else 0.999}
    if max(height, width) <= SMALL:
        settings |= {
            "environment": "latent",
            "network": "mlp",
            "horizon": 4,
            "width": 128,
            "head_width": 64,
            "depth": 4,
        }
        why = "a latent in each of four steps, by an mlp"
    else:
        settings |= {"environment": "code:1+bridge:3", "gc_agent": "fixed", "network": "unet", "learning_rate": 4e-3}
        settings |= {"code_size": 32 * channels, "code_modes": max(1, min(512, images // 50))}
        settings |= {"discount": 2.0, "log_snr": (-1.0, 4.0)}
        why = "a code lays them out, a bridge works them out from it, in four evaluations of a U-Net"
        if gpu:
            settings |= {"width": 64, "depth": 2, "batch_size": 256}
    if images < FEW:
        settings["dropout"] = 0.1
    return settings, why
