"""Initial states x_0: what an episode begins from, in training and in sampling.

A start is named by a string, ``kind[:parameter]`` or a path, which is saved with the run. States are
float32 (B, C, height, width) in [-1, 1] (noise goes beyond).
"""

from __future__ import annotations

import math
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from goalgen.config import DataConfig
from goalgen.data.images import EXTENSIONS, decode_image, find_images, inspect_image, to_unit
from goalgen.errors import GoalgenError

KINDS = (
    "mean",
    "constant[:LEVEL]",
    "noise[:STD]",
    "grey",
    "blur[:SIGMA]",
    "downsample[:FACTOR]",
    "mask[:FRACTION]",
    "edges",
    "an image file",
    "a folder of images",
)
"""The starts that :func:`make_start` knows, as messages list them."""

_BYTE_LEVELS = 256  # of image files
_LARGEST = 20.0  # a state beyond it was surely given in bytes, not in [-1, 1]


# 1. The interface


class Start(ABC):
    """Initial states of one shape.

    Attributes:
        spec: the string that :func:`make_start` makes this start from.
        shape: (C, height, width) of a state.
        needs_goal: states are a function of the goals, which must then be passed.
        is_random: states are drawn, and a generator must then be passed.
    """

    needs_goal = False
    is_random = False

    def __init__(self, spec: str, shape: tuple[int, int, int]) -> None:
        self.spec = spec
        self.shape = shape

    def __call__(
        self,
        batch: int,
        *,
        goals: Tensor | None = None,
        names: Sequence[str] | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return ``batch`` initial states: (B, C, height, width) float32, on the device of ``goals`` if given.

        Args:
            batch: B.
            goals: (B, C, height, width) float in [-1, 1]; only starts with ``needs_goal`` look at their values.
            names: the names of the goals, by which a folder of images is paired with them.
            generator: source of all randomness; used only where ``is_random``, in one draw for the batch.

        Raises:
            GoalgenError: what the start needs is missing, or of the wrong size.
        """
        if batch < 1:
            raise GoalgenError(f"the number of initial states must be at least 1, not {batch}")
        if goals is None and self.needs_goal:
            raise GoalgenError(
                f"the start {self.spec!r} is a function of the goal: pass goals (--start-goals ...) "
                "or choose another start"
            )
        if goals is not None and tuple(goals.shape) != (batch, *self.shape):
            raise GoalgenError(f"goals must be {(batch, *self.shape)}, not {tuple(goals.shape)}")
        if names is not None and len(names) != batch:
            raise GoalgenError(f"{batch} initial states need {batch} names, not {len(names)}")
        states = self._states(batch, goals, names, generator)
        return states if goals is None else states.to(goals.device)

    @abstractmethod
    def _states(
        self, batch: int, goals: Tensor | None, names: Sequence[str] | None, generator: torch.Generator | None
    ) -> Tensor:
        """Return the states; the arguments have been checked."""

    def _generator(self, generator: torch.Generator | None) -> torch.Generator:
        if generator is None:
            raise GoalgenError(f"the start {self.spec!r} is random: pass a torch.Generator")
        return generator

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.spec!r}, shape={self.shape})"


def make_start(
    spec: str, shape: tuple[int, int, int], mean: Tensor | None = None, data: DataConfig | None = None
) -> Start:
    """Return the start that ``spec`` names.

    The name of a kind is always that kind; a file or folder that is called so is written ``./mean``.

    Args:
        spec: one of ``KINDS``.
        shape: (C, height, width) of the states.
        mean: (C, height, width) float in [-1, 1], the mean training image; needed by "mean" only.
        data: how image files are read (``background``, ``corrupt``).

    Raises:
        GoalgenError: no such kind, a parameter out of range, a path that cannot be read, images of another size.
    """
    kind, colon, parameter = spec.partition(":")
    if kind in _MAKERS:
        if kind in _WITHOUT_PARAMETER and colon:
            raise GoalgenError(f"the start {kind!r} takes no parameter; write {kind} instead of {spec}")
        if colon and not parameter:
            raise GoalgenError(
                f"the start {spec!r} lacks its parameter; write {kind}:NUMBER, or {kind} for the default"
            )
        return _MAKERS[kind](spec, parameter, shape, mean)
    path = Path(spec).expanduser()
    if spec and path.is_dir():
        return FolderStart(path, shape, data, spec=spec)
    if spec and path.exists():
        return ImageStart(spec, shape, _read(path, shape, data))
    if _looks_like_path(spec):
        raise GoalgenError(f"the start {spec} does not exist; check the path, or choose one of {', '.join(KINDS)}")
    raise GoalgenError(f"no start is called {spec!r}; there are: {', '.join(KINDS)}")


def _looks_like_path(spec: str) -> bool:
    windows_drive = re.match(r"[A-Za-z]:($|[\\/])", spec) is not None
    return (
        windows_drive or spec.startswith(("~", ".")) or "/" in spec or "\\" in spec or spec.lower().endswith(EXTENSIONS)
    )


def _number(spec: str, parameter: str, default: float, low: float, high: float, *, open_low: bool = True) -> float:
    """Return the parameter of ``spec``, which must lie in (low, high], or [low, high] unless ``open_low``."""
    if not parameter:
        return default
    try:
        value = float(parameter)
    except ValueError:
        raise GoalgenError(f"the start {spec!r} needs a number after the colon, not {parameter!r}") from None
    if not math.isfinite(value) or value > high or value < low or (open_low and value == low):
        bound = f"more than {low:g}" if open_low else f"at least {low:g}"
        raise GoalgenError(f"the start {spec!r} needs a number {bound} and at most {high:g}; try {default:g}")
    return value


# 2. Starts that ask nothing of the goal


class ImageStart(Start):
    """One image for all: the mean, a constant, an image file."""

    def __init__(self, spec: str, shape: tuple[int, int, int], image: Tensor) -> None:
        super().__init__(spec, shape)
        if tuple(image.shape) != shape:
            raise GoalgenError(f"the image of the start {spec!r} must be {shape}, not {tuple(image.shape)}")
        self.image = image.to(torch.float32)

    def _states(
        self, batch: int, goals: Tensor | None, names: Sequence[str] | None, generator: torch.Generator | None
    ) -> Tensor:
        return self.image.expand(batch, *self.shape).clone()


class NoiseStart(Start):
    """Gaussian noise around mid-grey, with a standard deviation in units of [-1, 1]."""

    is_random = True

    def __init__(self, spec: str, shape: tuple[int, int, int], std: float) -> None:
        super().__init__(spec, shape)
        self.std = std

    def _states(
        self, batch: int, goals: Tensor | None, names: Sequence[str] | None, generator: torch.Generator | None
    ) -> Tensor:
        source = self._generator(generator)
        return torch.randn((batch, *self.shape), generator=source, device=source.device) * self.std


class FolderStart(Start):
    """The images of a folder: each goal's partner of the same name, or images drawn at random.

    A partner has the goal's path in its folder, extension aside. A batch is paired when every goal in it
    has a partner; otherwise the whole batch is drawn. Callers that want one answer for a whole data set ask
    :meth:`pairs_with` once, and pass no names when it says no.
    """

    is_random = True

    def __init__(
        self, folder: Path, shape: tuple[int, int, int], data: DataConfig | None = None, spec: str | None = None
    ) -> None:
        """Read all images of ``folder``.

        Raises:
            GoalgenError: no images, images of another size, or unreadable ones that ``data.corrupt`` refuses.
        """
        super().__init__(spec or str(folder), shape)
        paths = find_images(folder)
        if not paths:
            raise GoalgenError(f"the start {folder} holds no images; looked for {' '.join(EXTENSIONS)}")
        config = data or DataConfig()
        images: list[Tensor] = []
        broken: list[str] = []
        kept: dict[str, int] = {}
        for path in paths:
            try:
                pixels = decode_image(path, channels=shape[0], background=config.background)
            except GoalgenError as error:
                if config.corrupt == "refuse":
                    raise
                broken.append(str(error))
                continue
            _check_size(path, pixels.shape[1], pixels.shape[2], shape)
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name in kept:
                raise GoalgenError(f"the start {folder} holds two images called {name}; rename or remove one")
            images.append(pixels)
            kept[name] = len(kept)
        if not images:
            raise GoalgenError(f"the start {folder}: none of its images can be read; the first: {broken[0]}")
        if broken:
            warnings.warn(f"the start {folder}: skipped {len(broken)} unreadable; the first: {broken[0]}", stacklevel=2)
        self.images = torch.stack(images)  # uint8 (n, C, height, width)
        self.position = kept

    def pairs_with(self, names: Sequence[str] | None) -> bool:
        """Return whether every one of the goals called ``names`` has a partner in the folder.

        Warns:
            UserWarning: some have one and some have not, which is hardly what the user meant.
        """
        if not names:
            return False
        partners = sum(name in self.position for name in names)
        if 0 < partners < len(names):
            # No counts: Python shows a repeated warning of the same words once.
            warnings.warn(
                f"the start {self.spec}: only some goals have a partner of the same name; drawing at random instead",
                stacklevel=2,
            )
        return partners == len(names)

    def _states(
        self, batch: int, goals: Tensor | None, names: Sequence[str] | None, generator: torch.Generator | None
    ) -> Tensor:
        if names is not None and self.pairs_with(names):
            chosen = torch.tensor([self.position[name] for name in names])
        else:
            source = self._generator(generator)
            chosen = torch.randint(len(self.images), (batch,), generator=source, device=source.device).cpu()
        return to_unit(self.images[chosen], _BYTE_LEVELS)


class TensorStart(Start):
    """States given as a tensor: one image for all, or one for each of the batch."""

    def __init__(self, tensor: Tensor, shape: tuple[int, int, int] | None = None) -> None:
        """Take ``tensor``: float (C, height, width) or (B, C, height, width) in [-1, 1].

        Args:
            tensor: the states.
            shape: (C, height, width) that they must have; None takes their own.

        Raises:
            GoalgenError: the tensor is not floating-point, of another shape, not finite, or far out of [-1, 1].
        """
        if not tensor.is_floating_point():
            raise GoalgenError(f"a start must be float in [-1, 1], not {tensor.dtype}; see goalgen.data.to_unit")
        if tensor.ndim not in (3, 4) or not tensor.numel():
            raise GoalgenError(f"a start must be (C, height, width) or (B, C, ...), not {tuple(tensor.shape)}")
        channels, height, width = tensor.shape[-3:]
        if shape is not None and (channels, height, width) != tuple(shape):
            raise GoalgenError(
                f"start of the wrong size: it is {(channels, height, width)} and the states are {tuple(shape)} "
                "(C, height, width); resize it"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise GoalgenError("the start holds NaN or infinite values; give finite ones in [-1, 1]")
        largest = float(tensor.abs().max())
        if largest > _LARGEST:
            raise GoalgenError(
                f"the start holds values up to {largest:g}; states are in [-1, 1]: use goalgen.data.to_unit"
            )
        super().__init__("tensor", (channels, height, width))
        self.tensor = tensor.to(torch.float32)

    def _states(
        self, batch: int, goals: Tensor | None, names: Sequence[str] | None, generator: torch.Generator | None
    ) -> Tensor:
        if self.tensor.ndim == 4 and len(self.tensor) not in (1, batch):
            raise GoalgenError(
                f"{len(self.tensor)} initial states were given for a batch of {batch}; give 1 or {batch}"
            )
        return self.tensor.expand(batch, *self.shape).clone()


def _check_size(path: Path, height: int, width: int, shape: tuple[int, int, int]) -> None:
    if (height, width) != shape[1:]:
        raise GoalgenError(
            f"start of the wrong size: {path} is {height}x{width} and the states are {shape[1]}x{shape[2]} "
            f"(height x width); resize it, or train with --image-size {height} {width}"
        )


def _read(path: Path, shape: tuple[int, int, int], data: DataConfig | None) -> Tensor:
    info = inspect_image(path)
    _check_size(path, info.height, info.width, shape)
    config = data or DataConfig()
    return to_unit(decode_image(path, channels=shape[0], background=config.background), _BYTE_LEVELS)


# 3. Functions of the goal


class GoalStart(Start):
    """States that are a function of the goals: the S-agent becomes a restorer."""

    needs_goal = True

    def __init__(self, spec: str, shape: tuple[int, int, int], function: Callable[[Tensor], Tensor]) -> None:
        super().__init__(spec, shape)
        self.function = function

    def _states(
        self, batch: int, goals: Tensor | None, names: Sequence[str] | None, generator: torch.Generator | None
    ) -> Tensor:
        assert goals is not None  # __call__ has checked
        return self.function(goals.to(torch.float32))


def grey(goals: Tensor) -> Tensor:
    """Return the luma (ITU-R 601) of RGB images (B, 3, height, width), repeated on the three channels."""
    weights = goals.new_tensor([0.299, 0.587, 0.114])
    return (goals * weights[:, None, None]).sum(1, keepdim=True).expand_as(goals).contiguous()


def blur(goals: Tensor, sigma: float) -> Tensor:
    """Return images convolved with a Gaussian of ``sigma`` pixels; beyond the edge the image repeats its edge."""
    channels = goals.shape[1]
    radius = math.ceil(3 * sigma)
    offset = torch.arange(-radius, radius + 1, dtype=torch.float32, device=goals.device)
    kernel = torch.exp(-0.5 * (offset / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(channels, 1, 1, -1)
    padded = functional.pad(goals, (radius, radius, radius, radius), mode="replicate")
    return functional.conv2d(
        functional.conv2d(padded, kernel, groups=channels), kernel.transpose(2, 3), groups=channels
    )


def downsample(goals: Tensor, factor: float) -> Tensor:
    """Return images averaged over blocks of about ``factor`` pixels and enlarged again by repetition."""
    height, width = goals.shape[-2:]
    small = (max(1, round(height / factor)), max(1, round(width / factor)))
    return functional.interpolate(
        functional.interpolate(goals, size=small, mode="area"), size=(height, width), mode="nearest"
    )


def mask(goals: Tensor, fraction: float) -> Tensor:
    """Return images with a centred rectangle of about ``fraction`` of their area set to mid-grey (0)."""
    height, width = goals.shape[-2:]
    rows, columns = max(1, round(height * math.sqrt(fraction))), max(1, round(width * math.sqrt(fraction)))
    top, left = (height - rows) // 2, (width - columns) // 2
    masked = goals.clone()
    masked[..., top : top + rows, left : left + columns] = 0
    return masked


def edges(goals: Tensor) -> Tensor:
    """Return the magnitude of the Sobel gradient of each channel: -1 where flat, 1 at a step from black to white."""
    channels = goals.shape[1]
    smooth, slope = goals.new_tensor([1.0, 2.0, 1.0]), goals.new_tensor([-1.0, 0.0, 1.0])
    across = torch.outer(smooth, slope).expand(channels, 1, 3, 3)
    padded = functional.pad(goals, (1, 1, 1, 1), mode="replicate")
    gradient_x = functional.conv2d(padded, across, groups=channels)
    gradient_y = functional.conv2d(padded, across.transpose(2, 3), groups=channels)
    # A straight step from -1 to 1 has magnitude (1 + 2 + 1) * 2 = 8; corners exceed it a little.
    return (torch.hypot(gradient_x, gradient_y) / 8).clamp(0, 1) * 2 - 1


# 4. From a string to a start

_Shape = tuple[int, int, int]


def _make_mean(spec: str, parameter: str, shape: _Shape, mean: Tensor | None) -> Start:
    if mean is None:
        raise GoalgenError("the start 'mean' needs the mean of the training images; pass it, or choose another start")
    return ImageStart(spec, shape, mean)


def _make_constant(spec: str, parameter: str, shape: _Shape, mean: Tensor | None) -> Start:
    level = _number(spec, parameter, 0.5, 0, 1, open_low=False)
    return ImageStart(spec, shape, torch.full(shape, 2 * level - 1))


def _make_noise(spec: str, parameter: str, shape: _Shape, mean: Tensor | None) -> Start:
    return NoiseStart(spec, shape, _number(spec, parameter, 1.0, 0, 10))


def _make_grey(spec: str, parameter: str, shape: _Shape, mean: Tensor | None) -> Start:
    if shape[0] != 3:
        raise GoalgenError("the start 'grey' needs RGB images: these are grey, nothing to colourise; choose another")
    return GoalStart(spec, shape, grey)


def _make_blur(spec: str, parameter: str, shape: _Shape, mean: Tensor | None) -> Start:
    sigma = _number(spec, parameter, 1.0, 0, max(shape[1:]))
    return GoalStart(spec, shape, partial(blur, sigma=sigma))


def _make_downsample(spec: str, parameter: str, shape: _Shape, mean: Tensor | None) -> Start:
    factor = _number(spec, parameter, 2.0, 1, max(2, *shape[1:]))
    return GoalStart(spec, shape, partial(downsample, factor=factor))


def _make_mask(spec: str, parameter: str, shape: _Shape, mean: Tensor | None) -> Start:
    fraction = _number(spec, parameter, 0.5, 0, 1)
    return GoalStart(spec, shape, partial(mask, fraction=fraction))


def _make_edges(spec: str, parameter: str, shape: _Shape, mean: Tensor | None) -> Start:
    return GoalStart(spec, shape, edges)


_MAKERS: dict[str, Callable[[str, str, _Shape, Tensor | None], Start]] = {
    "mean": _make_mean,
    "constant": _make_constant,
    "noise": _make_noise,
    "grey": _make_grey,
    "blur": _make_blur,
    "downsample": _make_downsample,
    "mask": _make_mask,
    "edges": _make_edges,
}
_WITHOUT_PARAMETER = ("mean", "grey", "edges")
