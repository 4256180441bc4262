"""A model as the Hugging Face hub takes it: a folder of config.json and safetensors, up and down."""

from __future__ import annotations

import shutil
import tempfile
from abc import abstractmethod
from pathlib import Path
from typing import Any

from huggingface_hub import ModelHubMixin

from goalgen.errors import GoalgenError
from goalgen.saved import check_place
from goalgen.storage import one_line


class HubModel(ModelHubMixin):
    """What a model can do with the hub."""

    @abstractmethod
    def _write(self, path: Path) -> None:
        """Write a saved model to a folder."""

    def save_pretrained(self, save_directory: str | Path, **settings: Any) -> Any:
        """Write the model as the hub wants it; see :meth:`huggingface_hub.ModelHubMixin.save_pretrained`.

        Raises:
            GoalgenError: the folder holds a run or another model, or cannot be written.
        """
        check_place(Path(save_directory), beside=True)  # the mixin would delete any config.json
        return super().save_pretrained(save_directory, **settings)

    def _save_pretrained(self, save_directory: Path) -> None:
        # The hub mixin owns the folder, so the files go in one by one.
        with one_line(), tempfile.TemporaryDirectory() as temporary:
            self._write(Path(temporary) / "model")
            for file in (Path(temporary) / "model").iterdir():
                shutil.copy(file, save_directory / file.name)

    def push_to_hub(self, repo_id: str, **settings: Any) -> Any:
        """Upload the model to the hub; see :meth:`huggingface_hub.ModelHubMixin.push_to_hub`.

        Raises:
            GoalgenError: the hub cannot be reached, or does not take it.
        """
        try:
            return super().push_to_hub(repo_id, **settings)
        except GoalgenError:
            raise
        except Exception as error:  # hub and network libraries each have their own
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
            raise GoalgenError(
                f"the hub does not take {repo_id} ({reason}); check name, network and `hf auth login`, or use save()"
            ) from None
