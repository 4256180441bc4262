"""Whether a configuration and the weights of a file belong together: found out before memory is taken for either.

The model is built without numbers in its tensors, on torch's "meta" device, and compared with the header of the file. A file of
an unknown author may ask for any number of layers, so that building stops once there are more tensors than the file has.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registry

from goalgen.config import Config
from goalgen.errors import GoalgenError
from goalgen.families import make
from goalgen.family import Family

LARGEST_IMAGE = 2**24
"""Values in an image, at most."""
MODULES, TENSORS = 32, 4
"""Modules for every tensor of the file, and parameters for every one, from which it cannot be this model."""
BUFFERS = 2**26
"""Numbers in buffers, beyond those of the file: masks and tables that the model computes itself."""
LARGEST_WEIGHT = 1e18
"""Absolute value from which squares are infinite in float32: no training gives such weights."""

Facts = tuple[tuple[int, int, int], int, int]
"""Shape (C, height, width), grey levels and number of classes."""


class _TooLarge(Exception):
    """The model has more than the file can hold."""


def read_facts(facts: Any, where: str) -> Facts:
    """What a saved model says of its images, checked.

    Raises:
        GoalgenError: it says nothing of them, or what cannot be.
    """
    facts = facts if isinstance(facts, dict) else {}
    shape, levels, labels = facts.get("shape"), facts.get("levels"), facts.get("num_labels", 0)
    numbers = [*shape, levels] if isinstance(shape, list) and len(shape) == 3 else []
    if not numbers or not all(type(v) is int and v > 0 for v in numbers):
        raise GoalgenError(f"{where} is not the configuration of a saved model: it lacks shape and levels")
    wrong = []
    if math.prod(numbers[:3]) > LARGEST_IMAGE:
        wrong.append(f"shape {shape} (at most {LARGEST_IMAGE:,} values)")
    if not 2 <= numbers[3] <= 256:
        wrong.append(f"levels {levels} (2 to 256)")
    if type(labels) is not int or not 0 <= labels <= 10**6:
        wrong.append(f"num_labels {labels!r} (a whole number)")
    names, step, bits = (facts.get(key) for key in ("label_names", "step", "validation_bits_per_dim"))
    if names is not None and not (isinstance(names, list) and all(isinstance(n, str) for n in names)):
        wrong.append("label_names (a list of names)")
    if step is not None and type(step) is not int:
        wrong.append(f"step {step!r} (a whole number)")
    if bits is not None and type(bits) not in (int, float):
        wrong.append(f"validation_bits_per_dim {bits!r} (a number)")
    if wrong:
        raise GoalgenError(f"{where} is damaged: it says {', '.join(wrong)[:300]}; restore it")
    return (numbers[0], numbers[1], numbers[2]), numbers[3], labels


def check_fits(config: Config, facts: Facts, shapes: dict[str, tuple[int, ...]], where: str) -> None:
    """Refuse a configuration that is not that of the weights in a file, before either takes memory.

    Args:
        shapes: of the tensors of the file; the initial state, if it is one image, is "start.image".
        where: the file, for messages.

    Raises:
        GoalgenError: the configuration makes no model, or one with other tensors.
    """
    rest, (shape, levels, labels) = dict(shapes), facts
    image = rest.pop("start.image", None)
    if image is not None and image != shape:
        raise GoalgenError(f"{where} does not fit its configuration: start.image is {image}, the images are {shape}")
    try:
        try:
            with _bounded(rest), torch.device("meta"):
                family = make(config, shape, levels, num_labels=labels)
        except (RuntimeError, TypeError, NotImplementedError) as error:
            if "meta" not in str(error).lower():
                raise
            with _bounded(rest):  # a family of the user's that looks at numbers while it is built
                family = make(config, shape, levels, num_labels=labels)
    except _TooLarge as error:
        raise GoalgenError(f"{where} does not fit its configuration, which has {error}") from None
    except GoalgenError:
        raise
    except Exception as error:  # sizes beyond what torch can count, and the like
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise GoalgenError(f"{where} does not fit its configuration, which makes no model ({reason})") from None
    compare(family, rest, where)


def model_tensors(family: nn.Module) -> dict[str, Tensor]:
    """What of a family's tensors a saved model holds: all but the buffers that only training needs."""
    modules = family.named_modules()
    left = {f"{at}.{name}" if at else name for at, part in modules for name in getattr(part, "training_buffers", ())}
    return {name: tensor for name, tensor in family.state_dict().items() if name not in left}


def compare(family: Family, shapes: dict[str, tuple[int, ...]], where: str) -> None:
    """Refuse tensors of other names or shapes than the model's.

    Raises:
        GoalgenError: naming some of them.
    """
    known = {name: tuple(t.shape) for name, t in family.state_dict().items()}
    needed = model_tensors(family).keys()
    wrong = [f"{n} is missing" for n in needed if n not in shapes]
    # Empty ones are of earlier versions.
    wrong += [f"{n} is unknown" for n in shapes if n not in known and _size(shapes[n])]
    wrong += [f"{n} is {shapes[n]}, not {known[n]}" for n in shapes if n in known and shapes[n] != known[n]]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise GoalgenError(f"{where} does not fit its configuration: {', '.join(wrong[:3])}{more}")


def _size(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


@contextmanager
def _bounded(shapes: dict[str, tuple[int, ...]]) -> Iterator[None]:
    """Stop, inside the block, modules of more parameters, numbers or parts than a file of these tensors can hold."""
    tensors, numbers = len(shapes), sum(_size(shape) for shape in shapes.values())
    most = {
        "modules": MODULES * tensors + 1000,
        "parameters": TENSORS * tensors + 100,
        "weights": TENSORS * numbers + 10**6,
    }
    most["numbers in buffers"] = TENSORS * numbers + BUFFERS
    count = dict.fromkeys(most, 0)

    def add(what: str, number: int) -> None:
        count[what] += number
        if count[what] > most[what]:
            raise _TooLarge(f"more {what} than the file ({tensors} tensors, {numbers:,} numbers)")

    def module(*_: Any) -> None:
        add("modules", 1)

    def parameter(_: nn.Module, name: str, tensor: Tensor | None) -> None:
        if tensor is not None:
            add("parameters", 1)
            add("weights", tensor.numel())

    def buffer(_: nn.Module, name: str, tensor: Tensor | None) -> None:
        if tensor is not None:
            add("numbers in buffers", tensor.numel())

    with ExitStack() as stack:
        for hook in (
            registry.register_module_module_registration_hook(module),
            registry.register_module_parameter_registration_hook(parameter),
            registry.register_module_buffer_registration_hook(buffer),
        ):
            stack.callback(hook.remove)
        yield


def check_numbers(tensors: dict[str, Tensor], where: str) -> None:
    """Refuse weights that are no numbers, or larger than any training makes them.

    Raises:
        GoalgenError: naming the tensor.
    """
    for name, tensor in tensors.items():
        if tensor.is_complex():
            raise GoalgenError(f"{where}: the weights {name} are {tensor.dtype}; use another checkpoint")
        if not tensor.numel():
            continue
        if tensor.is_floating_point():
            tensor = tensor.float() if tensor.element_size() < 4 else tensor
            largest = tensor.abs().max().item()  # NaN if there is one
            if not math.isfinite(largest):
                raise GoalgenError(f"{where}: the weights {name} hold NaN or infinity; use another checkpoint")
            if largest >= LARGEST_WEIGHT:
                raise GoalgenError(
                    f"{where}: the weights {name} reach {largest:.0e}, and no model computes with those; use another checkpoint"
                )
