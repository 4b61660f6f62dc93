"""The TorchScript backend. It needs torch only, neither transformers nor ONNX Runtime."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlm_infer.bundle.interface import HOST_INPUTS
from mlm_infer.errors import BundleError, DependencyError, DeviceError, first_line

from .forks import generation

__all__ = ["TorchScript"]


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise DependencyError(
            "the torchscript backend needs torch; install it with: pip install 'mlm-infer[torchscript]'"
        ) from error
    return torch


class TorchScript:
    """Runs one TorchScript file. Thread-safe.

    Such a file is code: loading it runs what its author wrote. It must be opened on explicit request only.

    Args:
        path: The model file.
        kind: `cpu` or `cuda`.
        number: Which CUDA device.
        threads: Threads per operation on the CPU. torch has one setting for the whole process, so this changes it for
            all other code too; None leaves it unchanged. In a forked process it is 1.

    Raises:
        DependencyError: torch is not installed.
        DeviceError: The CUDA device does not exist.
        BundleError: torch cannot load the file.
    """

    package = "torch"

    def __init__(self, path: Path, *, kind: str, number: int = 0, threads: int | None = None) -> None:
        torch = _torch()
        if kind == "cuda" and number >= torch.cuda.device_count():
            raise DeviceError(f"there is no 'cuda:{number}': torch sees {torch.cuda.device_count()} CUDA devices")
        if generation() > 0:
            # OpenMP's threads do not survive a fork; with more than one, torch would wait for the missing ones.
            threads = 1
        if threads is not None:
            torch.set_num_threads(threads)
        self._device = torch.device("cuda", number) if kind == "cuda" else torch.device("cpu")
        with warnings.catch_warnings():
            # The export already warns that PyTorch has deprecated TorchScript.
            warnings.simplefilter("ignore", DeprecationWarning)
            try:
                self._module = torch.jit.load(str(path), map_location=self._device).eval()
            except (RuntimeError, ValueError) as error:
                reason = first_line(error)
                raise BundleError(f"torch {torch.__version__} cannot load {path}: {reason}") from error
        self._path = path
        self.provider: str = f"TorchScript {self._device}"

    @staticmethod
    def version() -> str:
        """Return torch's version."""
        return str(_torch().__version__)

    @staticmethod
    def why_no_cuda() -> str | None:
        """Return why CUDA is not available; None if it is."""
        torch = _torch()
        if torch.cuda.is_available():
            return None
        if torch.version.cuda is None:
            return "the installed torch is built for the CPU; install one for CUDA, see https://pytorch.org"
        return "torch finds no CUDA device; see nvidia-smi, or take device='cpu'"

    def run(self, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Run the model; see `Backend.run`.

        Raises:
            DeviceError: The device has no memory left.
            BundleError: torch cannot run the model.
        """
        torch = _torch()
        try:
            with torch.inference_mode():
                inputs = {
                    name: torch.from_numpy(array) if name in HOST_INPUTS else torch.from_numpy(array).to(self._device)
                    for name, array in feeds.items()
                }
                found = self._module(inputs)
                return [np.asarray(found[name].cpu()) for name in outputs]
        except torch.OutOfMemoryError as error:
            reason = first_line(error)
            raise DeviceError(f"{self.provider} failed: {reason}; try fewer or shorter texts at once") from error
        except Exception as error:  # the code in the file may raise anything
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise BundleError(f"torch cannot run {self._path}: {reason}") from error
