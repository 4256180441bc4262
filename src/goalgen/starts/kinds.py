"""The kinds of starts: states float32 (B, C, height, width) in [-1, 1] (noise goes beyond)."""

from __future__ import annotations

import hashlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor

from goalgen.config import DataConfig
from goalgen.data.files import find_images
from goalgen.data.images import EXTENSIONS, decode_image
from goalgen.data.levels import to_unit
from goalgen.errors import GoalgenError

_BYTE_LEVELS = 256  # of image files
_LARGEST = 20.0  # a state beyond it was surely given in bytes, not in [-1, 1]
Shape = tuple[int, int, int]
"""(C, height, width) of a state."""
Names = Sequence[str] | None
"""The names of goals, where they have any."""


@dataclass(repr=False, eq=False)
class Start(ABC):
    """Initial states of one shape.

    Attributes:
        spec: the string that :func:`make_start` makes this start from.
        shape: (C, height, width) of a state.
        needs_goal: states are a function of the goals, which must then be passed.
        drawn: states are drawn, or depend on how many there are; others can be asked for a part of a batch alone.
    """

    spec: str
    shape: Shape
    needs_goal = False
    drawn = True

    def __call__(
        self, batch: int, *, goals: Tensor | None = None, names: Names = None, generator: Generator | None = None
    ) -> Tensor:
        """Return ``batch`` initial states: (B, C, height, width) float32, on the device of ``goals`` if given.

        Args:
            batch: B.
            goals: (B, C, height, width) float in [-1, 1]; only starts with ``needs_goal`` look at their values.
            names: the names of the goals, by which a folder of images is paired with them.
            generator: source of all randomness; used only by starts that are drawn, in one draw for the batch.

        Raises:
            GoalgenError: what the start needs is missing, or of the wrong size.
        """
        if batch < 1:
            raise GoalgenError(f"the number of initial states must be at least 1, not {batch}")
        if goals is None and self.needs_goal:
            hint = "pass goals (--start-goals ...) or choose another start"
            raise GoalgenError(f"the start {self.spec!r} is a function of the goal: {hint}")
        if goals is not None and tuple(goals.shape) != (batch, *self.shape):
            raise GoalgenError(f"goals must be {(batch, *self.shape)}, not {tuple(goals.shape)}")
        if names is not None and len(names) != batch:
            raise GoalgenError(f"{batch} initial states need {batch} names, not {len(names)}")
        states = self._states(batch, goals, names, generator)
        return states if goals is None else states.to(goals.device)

    def pairs_with(self, names: Names) -> bool:
        """Return whether every one of the goals called ``names`` has an initial state of its own, by name."""
        return False

    def fingerprint(self) -> str | None:
        """Return a hash of the image files that it is made of; None where it is made of none."""
        return None

    @abstractmethod
    def _states(self, batch: int, goals: Tensor | None, names: Names, generator: Generator | None) -> Tensor:
        """Return the states; the arguments have been checked."""

    def _generator(self, generator: Generator | None) -> Generator:
        if generator is None:
            raise GoalgenError(f"the start {self.spec!r} is random: pass a torch.Generator")
        return generator

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.spec!r}, shape={self.shape})"


@dataclass(repr=False, eq=False)
class ImageStart(Start):
    """One image for all: the mean, a constant, an image file."""

    image: Tensor
    from_file: bool = False
    drawn = False

    def __post_init__(self) -> None:
        if tuple(self.image.shape) != self.shape:
            raise GoalgenError(
                f"the image of the start {self.spec!r} must be {self.shape}, not {tuple(self.image.shape)}"
            )
        self.image = self.image.to(torch.float32)

    @classmethod
    def of_file(cls, spec: str, shape: Shape, data: DataConfig) -> ImageStart:
        """Return the start of an image file; ``data.background`` shows through transparent pixels.

        Raises:
            GoalgenError: the file cannot be read, or is of another size.
        """
        path = Path(spec).expanduser()
        pixels = decode_image(path, channels=shape[0], background=data.background)
        _check_size(path, pixels, shape)
        return cls(spec, shape, to_unit(pixels, _BYTE_LEVELS), from_file=True)

    def fingerprint(self) -> str | None:
        """Return a hash of the image, if it came from a file."""
        return hashlib.blake2b(self.image.numpy().tobytes(), digest_size=16).hexdigest() if self.from_file else None

    def _states(self, batch: int, goals: Tensor | None, names: Names, generator: Generator | None) -> Tensor:
        return self.image.expand(batch, *self.shape).clone()


@dataclass(repr=False, eq=False)
class GoalStart(Start):
    """States that are a function of the goals: the goals, damaged."""

    function: Callable[[Tensor], Tensor]
    steady: bool = False
    """what it has damaged it leaves as it is, so that images that are damaged already may pass through it"""
    hidden: Tensor | None = None
    """(height, width) bool: the pixels that it hides, where it leaves all others as they are"""
    small: tuple[int, int] | None = None
    """(height, width) of the smaller images that its states are enlargements of"""
    needs_goal = True
    drawn = False

    def _states(self, batch: int, goals: Tensor | None, names: Names, generator: Generator | None) -> Tensor:
        assert goals is not None  # __call__ has checked
        return self.function(goals.to(torch.float32))


@dataclass(repr=False, eq=False)
class NoiseStart(Start):
    """Gaussian noise around mid-grey, with a standard deviation in units of [-1, 1]."""

    std: float

    def _states(self, batch: int, goals: Tensor | None, names: Names, generator: Generator | None) -> Tensor:
        source = self._generator(generator)
        return torch.randn((batch, *self.shape), generator=source, device=source.device) * self.std


class FolderStart(Start):
    """The images of a folder: each goal's partner of the same name, or images drawn at random.

    A partner has the goal's path in its folder, extension aside. A batch is paired when every goal in it
    has a partner; otherwise the whole batch is drawn. Callers that want one answer for a whole data set ask
    :meth:`pairs_with` once, and pass no names when it says no.
    """

    def __init__(self, spec: str, shape: Shape, data: DataConfig) -> None:
        """Read all images of the folder ``spec``.

        Raises:
            GoalgenError: no images, images of another size, or unreadable ones that ``data.corrupt`` refuses.
        """
        super().__init__(spec, shape)
        folder = Path(spec).expanduser()
        paths = find_images(folder)
        if not paths:
            raise GoalgenError(f"the start {folder} holds no images; looked for {' '.join(EXTENSIONS)}")
        images: dict[str, Tensor] = {}
        broken: list[str] = []
        for path in paths:
            try:
                pixels = decode_image(path, channels=shape[0], background=data.background)
            except GoalgenError as error:
                if data.corrupt == "refuse":
                    raise
                broken.append(str(error))
                continue
            _check_size(path, pixels, shape)
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name in images:
                raise GoalgenError(f"the start {folder} holds two images called {name}; rename or remove one")
            images[name] = pixels
        if not images:
            raise GoalgenError(f"the start {folder}: none of its images can be read; the first: {broken[0]}")
        if broken:
            warnings.warn(f"the start {folder}: skipped {len(broken)} unreadable; the first: {broken[0]}", stacklevel=2)
        self.images = torch.stack(list(images.values()))  # uint8 (n, C, height, width)
        self.position = {name: i for i, name in enumerate(images)}

    def fingerprint(self) -> str | None:
        """Return a hash of the images and their names."""
        digest = hashlib.blake2b(repr(list(self.position)).encode(), digest_size=16)
        digest.update(self.images.numpy().tobytes())
        return digest.hexdigest()

    def pairs_with(self, names: Names) -> bool:
        """Return whether every one of the goals called ``names`` has a partner in the folder.

        Warns:
            UserWarning: some have one and some have not, which is hardly what the user meant.
        """
        if not names:
            return False
        partners = sum(name in self.position for name in names)
        if 0 < partners < len(names):
            # No counts: Python shows a repeated warning of the same words once.
            reason = "only some goals have a partner of the same name"
            warnings.warn(f"the start {self.spec}: {reason}; drawing at random instead", stacklevel=2)
        return partners == len(names)

    def _states(self, batch: int, goals: Tensor | None, names: Names, generator: Generator | None) -> Tensor:
        if names is not None and self.pairs_with(names):
            chosen = torch.tensor([self.position[name] for name in names])
        else:
            source = self._generator(generator)
            chosen = torch.randint(len(self.images), (batch,), generator=source, device=source.device).cpu()
        return to_unit(self.images[chosen], _BYTE_LEVELS)


class TensorStart(Start):
    """States given as a tensor: one image for all, or one for each of the batch."""

    def __init__(self, tensor: Tensor, shape: Shape) -> None:
        """Take ``tensor``: float (C, height, width) or (B, C, height, width) in [-1, 1], of this ``shape``.

        Raises:
            GoalgenError: the tensor is not floating-point, of another shape, not finite, or far out of [-1, 1].
        """
        if not tensor.is_floating_point():
            raise GoalgenError(f"a start must be float in [-1, 1], not {tensor.dtype}; see goalgen.data.to_unit")
        if tensor.ndim not in (3, 4) or not tensor.numel():
            raise GoalgenError(f"a start must be (C, height, width) or (B, C, ...), not {tuple(tensor.shape)}")
        if (found := tuple(tensor.shape[-3:])) != shape:
            sizes = f"it is {found} and the states are {shape} (C, height, width)"
            raise GoalgenError(f"start of the wrong size: {sizes}; resize it")
        if not bool(torch.isfinite(tensor).all()):
            raise GoalgenError("the start holds NaN or infinite values; give finite ones in [-1, 1]")
        if (largest := float(tensor.abs().max())) > _LARGEST:
            raise GoalgenError(
                f"the start holds values up to {largest:g}; states are in [-1, 1]: use goalgen.data.to_unit"
            )
        super().__init__("tensor", shape)
        self.tensor = tensor.to(torch.float32)

    def _states(self, batch: int, goals: Tensor | None, names: Names, generator: Generator | None) -> Tensor:
        if self.tensor.ndim == 4 and (given := len(self.tensor)) not in (1, batch):
            raise GoalgenError(f"{given} initial states were given for a batch of {batch}; give 1 or {batch}")
        return self.tensor.expand(batch, *self.shape).clone()


def _check_size(path: Path, pixels: Tensor, shape: Shape) -> None:
    height, width = pixels.shape[1:]
    if (height, width) != shape[1:]:
        raise GoalgenError(
            f"start of the wrong size: {path} is {height}x{width} and the model's images are {shape[1]}x{shape[2]} "
            f"(height x width); resize it to {shape[1]}x{shape[2]}"
        )
