"""Runs of an ONNX Runtime session whose inputs and outputs lie in a device's memory from run to run."""

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlm_infer.bundle.interface import HOST_INPUTS

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, OrtValue

__all__ = ["BoundRuns"]

_MOST_BUFFERS = 256
_LARGEST_BUFFER = 1 << 20
_TYPES = {"tensor(int64)": np.int64, "tensor(float)": np.float32}


class BoundRuns:
    """Runs a session on buffers that are allocated once for each shape of batch. Safe to share between threads.

    Each thread has a binding and buffers of its own: ONNX Runtime's bindings may not be shared.

    Args:
        session: The session.
        device: Where the buffers lie, `cuda` or `cpu`.
        number: Which of these devices.
    """

    def __init__(self, session: "InferenceSession", device: str, number: int = 0) -> None:
        self._session = session
        self._device = (device, number)
        self._inputs = {each.name: each.shape for each in session.get_inputs()}
        self._outputs = {each.name: (each.shape, each.type) for each in session.get_outputs()}
        self._threads = threading.local()

    def run(self, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Run the session.

        Args:
            outputs: Names of the outputs; only these are copied from the device.
            feeds: Input arrays by name.

        Returns:
            The outputs in the order asked for.
        """
        if not hasattr(self._threads, "binding"):
            self._threads.binding = self._session.io_binding()
            self._threads.buffers = {}
        binding = self._threads.binding
        binding.clear_binding_inputs()
        binding.clear_binding_outputs()
        # `k` is both an input and the width of the best tokens.
        sizes: dict[str | int, int] = {"k": int(feeds["k"][0])}
        for name, array in feeds.items():
            sizes.update(zip(self._inputs[name], array.shape, strict=True))
            if name in HOST_INPUTS:
                binding.bind_cpu_input(name, array)
                continue
            buffer = self._buffer(name, array.shape, array.dtype)
            buffer.update_inplace(array)
            binding.bind_ortvalue_input(name, buffer)
        found = []
        for name in outputs:
            shape, kind = self._outputs[name]
            buffer = self._buffer(name, tuple(sizes.get(each, each) for each in shape), np.dtype(_TYPES[kind]))
            binding.bind_ortvalue_output(name, buffer)
            found.append(buffer)
        binding.synchronize_inputs()
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        # A copy: the buffer is written again by the next run of this shape, and on the CPU `numpy` shows it itself.
        return [np.array(each.numpy()) for each in found]

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> "OrtValue":
        """Return a buffer of this thread, the longest unused making room."""
        from onnxruntime import OrtValue

        buffers: dict[tuple[str, tuple[int, ...]], OrtValue] = self._threads.buffers
        buffer = buffers.pop((name, shape), None)
        if buffer is None:
            buffer = OrtValue.ortvalue_from_shape_and_type(shape, dtype.type, *self._device)
        if int(np.prod(shape)) * dtype.itemsize <= _LARGEST_BUFFER:
            buffers[name, shape] = buffer
            if len(buffers) > _MOST_BUFFERS:
                del buffers[next(iter(buffers))]
        return buffer
