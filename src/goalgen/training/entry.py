"""The way into a run: settings and data in, how it ended out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from goalgen.choice import choose, is_open
from goalgen.config import Config
from goalgen.data import Splits, load_data
from goalgen.data.memory import from_memory
from goalgen.settings import complete
from goalgen.training.loop import Outcome, Trainer
from goalgen.training.machine import has_gpu
from goalgen.training.preparation import check_config, check_data, in_full, own_folder


def train(
    config: Config | None = None,
    images: Tensor | np.ndarray | Splits | None = None,
    labels: Sequence[int] | Tensor | np.ndarray | None = None,
) -> Outcome:
    """Train, or resume, the run that ``config`` describes.

    Args:
        config: unset: the defaults.
        images: instead of the data that ``config`` names: integers 0 to 255, (N, C, height, width), (N, height, width, C) or
            (N, height, width); or :class:`goalgen.data.Splits`, whose three sets are taken as they are. They are not kept with
            the run; the same command with the same images resumes.
        labels: N whole numbers, where ``images`` have some.

    Raises:
        GoalgenError: bad data or configuration, a folder that holds another run, or a loss that is not finite.
    """
    config = config or Config()
    check_config(config)
    config = in_full(config)
    data: Splits | None = None
    chosen: list[str] = []
    if isinstance(images, Splits):
        data = images
    elif images is not None:
        data, named = from_memory(images, config.data, labels)
        config = replace(config, data=named)
    if is_open(config):
        data = data or load_data(config.data)
        check_data(config, data)  # before it is asked what suits them: that would be other settings
        config, chosen = choose(config, data, has_gpu(config.training.device))
    config = complete(config)
    with own_folder(config):
        return Trainer(config, data or load_data(config.data), chosen).run()
