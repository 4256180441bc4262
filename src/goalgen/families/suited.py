"""Which family, network and sizes suit which images, where the user has not said. The one rule; its reasons are measured."""

from __future__ import annotations

from typing import Any

SMALL = 12
"""Pixels of a side up to which an mlp serves best."""

FEW = 5_000
"""Images below which dropout is worth what it costs."""


COLOURS = 24
"""Colours of an image up to which it is as if drawn from a palette: a chance for each, and nothing between."""


def suited(shape: tuple[int, int, int], images: int, gpu: bool, colours: int = 256) -> tuple[dict[str, Any], str]:
    """Settings by their names, and why.

    Args:
        shape: (C, height, width) of the images.
        images: number of training images.
        gpu: whether there is one to train on.
        colours: of an image, the median.
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
    elif colours <= COLOURS:
        settings |= {"environment": "reveal", "network": "unet", "batch_size": 32}
        settings |= {"optimizer": "muon", "learning_rate": 4e-3, "horizon": 16, "reveal_values": "levels"}
        why = (
            f"of few colours ({colours} an image): sixteen groups of pixels are revealed, each value one of the levels"
        )
        if gpu:
            settings |= {"width": 64, "depth": 2, "batch_size": 128}
    else:
        settings |= {"environment": "code:1+bridge:3", "gc_agent": "fixed", "network": "unet"}
        settings |= {"optimizer": "muon", "learning_rate": 4e-3}
        settings |= {"code_size": 32 * channels, "code_modes": max(1, min(2048, images // 25))}
        settings |= {"discount": 2.0, "log_snr": (-1.0, 4.0)}
        why = "a code lays them out, a bridge works them out from it, in four evaluations of a U-Net"
        if gpu:
            settings |= {"width": 64, "depth": 2, "batch_size": 256}
    if images < FEW:
        settings["dropout"] = 0.1
    return settings, why
