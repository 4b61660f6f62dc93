"""The ONNX Runtime backend: one session on the requested device, or an error."""

import contextlib
import ctypes
import importlib.metadata
import io
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlm_infer.errors import BundleError, DependencyError, DeviceError, first_line

from .cpu import available_cpus
from .forks import outlive_forks
from .ort_binding import BoundRuns

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = ["SESSION_SETTINGS", "Session", "load_onnxruntime"]

_CUDA_OPTIONS = {
    # fp32 must mean fp32: TF32's rounding is visible in the scores. fp16 is the option for speed.
    "use_tf32": "0",
    # Text lengths vary, and the default strategy doubles the memory pool each time it grows.
    "arena_extend_strategy": "kSameAsRequested",
}

SESSION_SETTINGS = {
    # Longer than most waits within a run. By default threads spin for longer, and on a machine that does other work
    # they then take the time of the thread that they wait for. ONNX Runtime before 1.26 ignores this setting.
    "session.intra_op.spin_duration_us": "30",
    # By default they keep spinning after a run, which would use the cores of an idle server.
    "session.force_spinning_stop": "1",
}
"""Threads spin briefly while they wait within a run, and sleep between runs (docs/engine.md has the figures)."""


def load_onnxruntime() -> Any:
    """Return the `onnxruntime` module.

    Raises:
        DependencyError: It is not installed.
    """
    # Its official builds send usage data to Microsoft (Privacy.md in the wheel), and read this variable once.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise DependencyError(
            "filling masks needs onnxruntime; install it with: pip install 'mlm-infer[cpu]' (or 'mlm-infer[gpu]')"
        ) from error
    return onnxruntime


class Session:
    """Runs one model file. Thread-safe.

    Args:
        path: The model file.
        kind: `cpu` or `cuda`.
        number: Which CUDA device.
        threads: Threads per run; None uses all processors available to this process.
        serving: Whether the file is a serving graph, which the export has already fused.

    Attributes:
        inputs: Shape of each input by name; a dynamic dimension is a name or None.
        outputs: Names of the outputs.

    Raises:
        DependencyError: ONNX Runtime is not installed.
        DeviceError: CUDA cannot be started.
        BundleError: ONNX Runtime cannot load the file.
    """

    package = "onnxruntime"

    def __init__(
        self, path: Path, *, kind: str, number: int = 0, threads: int | None = None, serving: bool = True
    ) -> None:
        onnxruntime = load_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or available_cpus()
        options.inter_op_num_threads = 1
        places = _processors_of_pool(options.intra_op_num_threads) if kind == "cpu" else ""
        for key, value in ({"session.intra_op_thread_affinities": places} | SESSION_SETTINGS).items():
            # An empty one is ONNX Runtime's default.
            if value:
                options.add_session_config_entry(key, value)
        # A memory plan is cached for each input shape. Text lengths vary, so the cache would grow without bound.
        options.enable_mem_pattern = False
        # Errors are raised as exceptions; the log would repeat them over several lines.
        options.log_severity_level = 4
        providers: list[Any] = ["CPUExecutionProvider"]
        if kind == "cpu" and serving:
            # The export has applied the fusions that pay off. Higher levels add ones that are slower on a CPU.
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        if kind == "cuda":
            _preload_cuda(onnxruntime, number)
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": str(number)} | _CUDA_OPTIONS))
        try:
            # ONNX Runtime's own fallback would print to stdout and silently use the CPU.
            self._session: InferenceSession = onnxruntime.InferenceSession(
                str(path), options, providers=providers, enable_fallback=0
            )
        except Exception as error:  # onnxruntime's exceptions share no base but Exception
            reason = first_line(error)
            failure = re.search(r"CU\w+ failure[^;]*", str(error))
            if failure is not None:
                raise DeviceError(_cannot_start(number, failure[0].strip())) from error
            raise BundleError(f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {reason}") from error
        self._path = path
        outlive_forks(self._session)
        self._session.disable_fallback()
        self.provider: str = self._session.get_providers()[0]
        if kind == "cuda" and self.provider != "CUDAExecutionProvider":
            # Even without the fallback, ONNX Runtime uses the CPU if CUDA libraries are missing; stderr names them.
            raise DeviceError(_cannot_start(number, "its CUDA or cuDNN libraries are missing"))
        self.inputs: dict[str, list[str | int | None]] = {each.name: each.shape for each in self._session.get_inputs()}
        self.outputs = [each.name for each in self._session.get_outputs()]
        self._bound = BoundRuns(self._session, "cuda", number) if kind == "cuda" and serving else None

    @staticmethod
    def version() -> str:
        """Return ONNX Runtime's version."""
        return str(load_onnxruntime().__version__)

    @staticmethod
    def why_no_cuda() -> str | None:
        """Return why CUDA is not available; None if ONNX Runtime was built with it."""
        if "CUDAExecutionProvider" in load_onnxruntime().get_available_providers():
            return None
        installed = {
            each.name.lower() for each in importlib.metadata.distributions() if each.name.startswith("onnxruntime")
        }
        if {"onnxruntime", "onnxruntime-gpu"} <= installed:
            return (
                "onnxruntime and onnxruntime-gpu are both installed and overwrite each other; "
                "pip uninstall both, then pip install 'mlm-infer[gpu]'"
            )
        return (
            "the installed onnxruntime is built for the CPU; "
            "pip uninstall onnxruntime, then pip install 'mlm-infer[gpu]'"
        )

    def run(self, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Run the model; see `Backend.run`.

        Raises:
            DeviceError: The device has no memory left, or failed.
            BundleError: ONNX Runtime cannot run the model.
        """
        try:
            if self._bound is not None:
                return self._bound.run(outputs, feeds)
            return [np.asarray(value) for value in self._session.run(list(outputs), dict(feeds))]
        except Exception as error:  # onnxruntime's exceptions share no base but Exception
            reason = first_line(error)
            if re.search(r"CU\w+ failure|out of memory|[Ff]ailed to allocate", str(error)):
                raise DeviceError(f"{self.provider} failed: {reason}; try fewer or shorter texts at once") from error
            raise BundleError(f"ONNX Runtime cannot run {self._path}: {reason}") from error


def _processors_of_pool(threads: int) -> str:
    """Return a processor for each thread of a session's pool, in ONNX Runtime's format, or nothing.

    Linux may wake a thread on the processor of the one that wakes it, where both take turns: on a virtual machine it
    may not see that another processor is idle. So where a run takes all processors that this process may use, each
    thread gets one of its own; the first is left to the calling thread, which stays free. Fewer threads than processors
    stay free as well, since those of several processes would meet on the same ones.
    """
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    # ONNX Runtime counts processors from 1.
    return ";".join(str(number + 1) for number in allowed[1:]) if len(allowed) == threads else ""


def _preload_cuda(onnxruntime: Any, number: int) -> None:
    """Check for the driver, which everything else needs, and load CUDA and cuDNN from pip packages."""
    driver = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        ctypes.CDLL(driver)
    except OSError as error:
        raise DeviceError(_cannot_start(number, f"there is no NVIDIA driver: {error}")) from error
    if hasattr(onnxruntime, "preload_dlls"):
        # It prints the libraries that it does not find. If one of them is needed, the session fails to start.
        with contextlib.redirect_stdout(io.StringIO()):
            onnxruntime.preload_dlls()


def _cannot_start(number: int, reason: str) -> str:
    return f"ONNX Runtime cannot start CUDA on 'cuda:{number}' ({reason}); see nvidia-smi, or take device='cpu'"
