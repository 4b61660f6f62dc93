"""Uploads a finished model to the Hub."""

from pathlib import Path

from huggingface_hub import HfApi

from mlm_infer.errors import InputError, MlmInferError, first_line
from mlm_infer.shared.folders import REPORT

__all__ = ["Repository"]


_LOCAL = [REPORT, "runs/*"]
"""What contains local paths, or the names of the machine."""


class Repository:
    """A repository to upload to. It is created at once, so that a missing login is not found after the training.

    Args:
        name: Id of the repository; without a namespace it is the user's own.

    Raises:
        InputError: It cannot be created.
    """

    def __init__(self, name: str) -> None:
        self._api = HfApi()
        try:
            self._name = self._api.create_repo(name, exist_ok=True).repo_id
        except (OSError, ValueError) as error:
            raise InputError(
                f"cannot create {name} on the Hub: {first_line(error)}; log in with `hf auth login`, name another "
                "--hub-model-id, or leave out --push-to-hub"
            ) from error

    def upload(self, folder: Path) -> None:
        """Upload a model with its card and report, but for what contains local names.

        Args:
            folder: The finished model.

        Raises:
            MlmInferError: The upload failed.
        """
        try:
            self._api.upload_folder(
                repo_id=self._name, folder_path=folder, ignore_patterns=_LOCAL, commit_message="Model of mlm-train"
            )
        except (OSError, ValueError) as error:
            raise MlmInferError(
                f"the model is in {folder}, but could not be uploaded: {first_line(error)}; repeat that with: "
                f"hf upload {self._name} {folder} --exclude {' '.join(_LOCAL)}"
            ) from error
