"""Networks of the agents: an image and a step in, features to draw from out. See :mod:`goalgen.networks.base`."""

from goalgen.errors import GoalgenError
from goalgen.networks.base import (
    LARGEST_LOG_STD,
    ImageHead,
    Middle,
    NetworkSpec,
    Top,
    Torso,
    Trunk,
    bounded,
    draw,
    layer_weights,
    matrices,
)
from goalgen.networks.mlp import MLPOpening, MLPTop, MLPTrunk
from goalgen.networks.transformer import TransformerTop, TransformerTrunk
from goalgen.networks.unet import UNetTop, UNetTrunk

KINDS: dict[str, tuple[type[Trunk], type[Top]]] = {
    "mlp": (MLPTrunk, MLPTop),
    "transformer": (TransformerTrunk, TransformerTop),
    "unet": (UNetTrunk, UNetTop),
}
"""Trunk and top of every kind of network."""


SIZES: dict[str, tuple[int, int, int]] = {"mlp": (256, 2, 128), "transformer": (128, 4, 64), "unet": (32, 1, 64)}
"""Width, depth and head width where none are given: what a laptop trains."""


def default_patch(height: int, width: int) -> int:
    """The least side of a square of pixels that makes a map of at most 16x16 positions of an image."""
    dividers = [n for n in range(1, min(height, width) + 1) if height % n == 0 and width % n == 0]
    return next((n for n in dividers if max(height, width) <= 16 * n), dividers[-1])


def make_trunk(spec: NetworkSpec, channels: int, depth: int) -> Trunk:
    """The first half of a network for images of so many channels.

    Raises:
        GoalgenError: no network has this name, or its patch does not divide the image.
    """
    if spec.kind not in KINDS:
        raise GoalgenError(f"no network is called {spec.kind!r}; there are: {', '.join(sorted(KINDS))}")
    return KINDS[spec.kind][0](spec, channels, depth)


def make_torso(spec: NetworkSpec, channels: int | None = None, reads: bool = True) -> Torso:
    """A whole network for canvases of so many channels (unset: those of the images it draws).

    The U-Net has ``depth`` blocks at every size on both ways; the others share theirs between the halves.

    Args:
        reads: whether it looks at the canvas at all; an mlp that does not has no trunk.

    Raises:
        GoalgenError: no network has this name, its patch does not divide the image, or only an mlp can do without a trunk.
    """
    if not reads and spec.kind != "mlp":
        raise GoalgenError(f"--no-read-start needs --network mlp, not {spec.kind}")
    first, second = (spec.depth, spec.depth) if spec.kind == "unet" else (spec.depth // 2, spec.depth - spec.depth // 2)
    trunk = make_trunk(spec, spec.shape[0] if channels is None else channels, first) if reads else MLPOpening(spec)
    return Torso(spec, trunk, KINDS[spec.kind][1](spec, second))


__all__ = [
    "LARGEST_LOG_STD",
    "SIZES",
    "ImageHead",
    "Middle",
    "NetworkSpec",
    "Top",
    "Torso",
    "Trunk",
    "bounded",
    "default_patch",
    "draw",
    "layer_weights",
    "make_torso",
    "make_trunk",
    "matrices",
]
