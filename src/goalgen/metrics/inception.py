"""Features of the FID's Inception network, and its published weights."""

from __future__ import annotations

import importlib
import io
import os
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from goalgen.cache import cache_key, fingerprint
from goalgen.errors import GoalgenError
from goalgen.metrics.images import Features


class InceptionFeatures(Features):
    """The 2,048 pooled features of the FID's Inception network, through torch-fidelity.

    The only features with which a Frechet distance may be called FID, and comparable with published
    numbers only with the official weights, which :attr:`name` tells apart.
    """

    batch_size = 32

    def __init__(self) -> None:
        """Build the network with the weights in $GOALGEN_INCEPTION, a state dictionary as .pth or .safetensors.

        Where that is not set, they are those of the official file, which is downloaded once (91 MB).

        Raises:
            GoalgenError: torch-fidelity is missing, or the weights are missing, unreadable or do not fit.
        """
        try:
            module: Any = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
        except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision of another PyTorch
            hint = "pip install torch-fidelity torchvision"
            raise GoalgenError(f"Inception features need torch-fidelity and torchvision ({error}); {hint}") from None
        path = os.environ.get("GOALGEN_INCEPTION")
        state = _read_weights(Path(path)) if path else _download_weights(module.URL_INCEPTION_V3)
        # torch-fidelity unpickles the file it is given. It gets our own copy of weights that were read safely.
        buffer = io.BytesIO()
        torch.save(state, buffer)
        buffer.seek(0)
        try:
            with torch.random.fork_rng(devices=[]):  # the constructor draws initial weights
                self._network = module.FeatureExtractorInceptionV3(
                    "goalgen", ["2048"], feature_extractor_weights_path=buffer
                )
        except (RuntimeError, AttributeError, TypeError) as error:
            raise GoalgenError(f"{path}: not weights of the FID's Inception network: {str(error)[:200]}") from None
        self.name = f"inception-2048 (weights {Path(path).name})" if path else "inception-2048 (torch-fidelity)"
        self.key = cache_key("inception", fingerprint(state))

    def extract(self, images: Tensor, levels: int) -> Tensor:
        if images.shape[1] not in (1, 3):
            raise GoalgenError(f"Inception features need grey or RGB images, not {images.shape[1]} channels")
        return self._network((images.float() * (255 / (levels - 1))).round().to(torch.uint8).expand(-1, 3, -1, -1))[0]


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise GoalgenError(f"{path} does not exist; give the file of Inception's weights") from None
    except Exception as error:  # torch.load raises whatever a damaged file leads it to
        raise GoalgenError(f"{path} cannot be read as weights: {str(error)[:200]}") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise GoalgenError(f"{path} holds no state dictionary; give the file of Inception's weights")
    return state


def _download_weights(url: str) -> dict[str, Tensor]:
    try:
        return torch.hub.load_state_dict_from_url(
            url, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError) as error:
        hint = "set GOALGEN_INCEPTION to a copy of the file"
        raise GoalgenError(f"{url} cannot be downloaded ({error}); {hint}") from None
