"""The OpenVINO backend: the ONNX models of a bundle, run by OpenVINO instead of ONNX Runtime."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlm_infer.errors import BundleError, DependencyError, DeviceError, first_line

from .cpu import available_cpus
from .forks import generation, outlive_forks

__all__ = ["OpenVino", "OpenVinoBf16"]


def _openvino() -> Any:
    # Its import sends usage data, unless this package, which is optional, is not there.
    modules: dict[str, Any] = sys.modules
    absent = modules.setdefault("openvino_telemetry", None) is None
    try:
        import openvino
    except ImportError as error:
        raise DependencyError(
            "the openvino backend needs OpenVINO; install it with: pip install 'mlm-infer[openvino]'"
        ) from error
    finally:
        if absent:
            modules.pop("openvino_telemetry", None)
    return openvino


class OpenVino:
    """Runs one ONNX model file on the CPU. Thread-safe; concurrent runs take turns.

    Args:
        path: The model file.
        kind: `cpu`.
        number: Not used.
        threads: Threads per run; None uses all processors available to this process.

    Raises:
        DependencyError: OpenVINO is not installed.
        DeviceError: The device is no CPU, or the process was forked.
        BundleError: OpenVINO cannot load the file.
    """

    package = "openvino"

    # By default OpenVINO would take bfloat16 wherever the processor has it.
    _precision = "f32"

    def __init__(self, path: Path, *, kind: str, number: int = 0, threads: int | None = None) -> None:
        openvino = _openvino()
        if kind != "cpu":
            raise DeviceError("the openvino backend runs on the CPU; take device='cpu'")
        if generation() > 0:
            # Its threads do not survive a fork, and it would wait for them.
            raise DeviceError("OpenVINO cannot run in a forked process; start processes with 'spawn'")
        core = openvino.Core()
        if self._precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise DeviceError("this processor has no bfloat16; take precision='int8' or 'fp32'")
        settings = {
            "INFERENCE_NUM_THREADS": threads or available_cpus(),
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": self._precision,
            # Threads that are bound to cores would compete with those of other processes.
            "ENABLE_CPU_PINNING": False,
        }
        try:
            self._model = core.compile_model(core.read_model(path), "CPU", settings)
        except Exception as error:  # OpenVINO raises RuntimeError, and its bindings others
            raise BundleError(
                f"OpenVINO {openvino.__version__} cannot load {path}: {_reason(error)}; take backend='onnx'"
            ) from error
        self._path = path
        self._idle: SimpleQueue[Any] = SimpleQueue()
        self.provider: str = "OpenVINO CPU"
        # It holds the model and the requests, whose destructors wait for threads that a forked child lacks.
        outlive_forks(self)

    @staticmethod
    def version() -> str:
        """Return OpenVINO's version."""
        return str(_openvino().__version__)

    @staticmethod
    def why_no_cuda() -> str | None:
        """Return why CUDA is not available."""
        return "the openvino backend runs on the CPU; take device='cpu'"

    def run(self, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Run the model; see `Backend.run`.

        Raises:
            BundleError: OpenVINO cannot run the model.
        """
        feeds = dict(feeds)
        # Every output is computed, and this search takes no 0.
        feeds["k"] = np.maximum(feeds["k"], 1)
        try:
            request = self._idle.get_nowait()
        except Empty:
            request = self._model.create_infer_request()
        try:
            request.infer(feeds, share_inputs=True)
            # Copies: the next run writes to the same memory.
            return [np.array(request.get_tensor(name).data) for name in outputs]
        except Exception as error:  # OpenVINO raises RuntimeError, and its bindings others
            raise BundleError(f"OpenVINO cannot run {self._path}: {_reason(error)}") from error
        finally:
            self._idle.put(request)


class OpenVinoBf16(OpenVino):
    """Runs an fp32 model with products in bfloat16, which the processor must have.

    Raises:
        DeviceError: As for `OpenVino`, and on a processor without bfloat16.
    """

    _precision = "bf16"


def _reason(error: Exception) -> str:
    """Return the line that says what is wrong; those before it name source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("Exception from", "Check "))]
    return (told or lines or [first_line(error)])[-1]
