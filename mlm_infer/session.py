"""One ONNX Runtime session: the device that was asked for, or an error."""

import importlib.metadata
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .cpu import available_cpus
from .errors import BundleError, DependencyError, DeviceError, InputError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = ["Session", "resolve_device"]

logger = logging.getLogger(__name__)


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise DependencyError(
            "filling masks needs onnxruntime; install it with: pip install 'mlm-infer[cpu]' (or 'mlm-infer[gpu]')"
        ) from error
    return onnxruntime


def resolve_device(device: str) -> tuple[str, int]:
    """Return the kind (`cpu` or `cuda`) and the number of the device to use.

    Args:
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        InputError: It is none of these.
        DeviceError: CUDA was asked for and this ONNX Runtime was built without it.
    """
    kind, _, number = device.partition(":") if isinstance(device, str) else ("", "", "")
    if kind not in ("auto", "cpu", "cuda") or (number and (kind != "cuda" or not number.isdecimal())):
        raise InputError(f"device is {device!r}; it must be 'auto', 'cpu', 'cuda' or 'cuda:N'")
    has_cuda = "CUDAExecutionProvider" in _onnxruntime().get_available_providers()
    if kind == "cuda" and not has_cuda:
        raise DeviceError(f"device is {device!r}, but {_why_no_cuda()}")
    if kind == "auto":
        kind = "cuda" if has_cuda else "cpu"
    return kind, int(number or 0)


def _why_no_cuda() -> str:
    installed = {
        each.name.lower() for each in importlib.metadata.distributions() if each.name.startswith("onnxruntime")
    }
    if {"onnxruntime", "onnxruntime-gpu"} <= installed:
        return (
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other; "
            "pip uninstall both, then pip install 'mlm-infer[gpu]'"
        )
    return (
        "the installed onnxruntime is built for the CPU; pip uninstall onnxruntime, then pip install 'mlm-infer[gpu]'"
    )


class Session:
    """Runs one model file. Safe to share between threads.

    Args:
        path: The model file.
        kind: `cpu` or `cuda`, as `resolve_device` gives it.
        number: Which CUDA device.
        fall_back: Use the CPU, with one line in the log, where CUDA cannot be started.
        threads: Threads of one run; None takes all the processors this process may use.

    Raises:
        DeviceError: CUDA cannot be started and `fall_back` is false.
        BundleError: ONNX Runtime cannot load the file.
    """

    def __init__(
        self, path: Path, *, kind: str, number: int = 0, fall_back: bool = False, threads: int | None = None
    ) -> None:
        onnxruntime = _onnxruntime()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or available_cpus()
        options.inter_op_num_threads = 1
        # Threads wait for each other awake while a run lasts, and sleep between runs: ONNX Runtime's own default
        # would burn the cores of an idle server.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if kind == "cpu":
            # The export has fused what pays here; ONNX Runtime would fuse on, to nodes that are slower on a CPU.
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        # A memory plan is kept for each shape of input, and texts come in all lengths: it would grow on and on.
        options.enable_mem_pattern = False
        # Its errors come as exceptions; its own log would say them again, over several lines.
        options.log_severity_level = 4
        if kind == "cuda" and hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()
        providers: list[Any] = [("CUDAExecutionProvider", {"device_id": number})] if kind == "cuda" else []
        try:
            self._session: InferenceSession = onnxruntime.InferenceSession(
                str(path), options, providers=[*providers, "CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's exceptions share no base but Exception
            reason = str(error).strip().splitlines()[0]
            raise BundleError(f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {reason}") from error
        self._path = path
        self._session.disable_fallback()
        self.provider: str = self._session.get_providers()[0]
        if kind == "cuda" and self.provider != "CUDAExecutionProvider":
            # ONNX Runtime lists what it was built with, and quietly takes the CPU where that cannot start.
            if not fall_back:
                raise DeviceError(
                    f"device is 'cuda:{number}', but ONNX Runtime could not start CUDA there (no such GPU, or its "
                    "driver, CUDA or cuDNN libraries are missing); see nvidia-smi, or take device='cpu'"
                )
            logger.warning("CUDA cannot be started here; filling masks on the CPU")

    def run(self, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Run the model.

        Args:
            outputs: Names of the outputs to fetch.
            feeds: Input arrays by name.

        Returns:
            The outputs in the order asked for.

        Raises:
            BundleError: ONNX Runtime cannot run the model.
        """
        try:
            return [np.asarray(value) for value in self._session.run(list(outputs), dict(feeds))]
        except Exception as error:  # onnxruntime's exceptions share no base but Exception
            reason = str(error).strip().splitlines()[0]
            raise BundleError(f"ONNX Runtime cannot run {self._path}: {reason}") from error
