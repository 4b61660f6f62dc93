"""Runs an ONNX Runtime session with inputs and outputs in device memory that is reused between runs."""

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
    """Runs a session on buffers that are allocated once per batch shape. Thread-safe.

    Each thread has its own binding and buffers, since ONNX Runtime's bindings must not be shared.

    Args:
        session: The session.
        device: Device of the buffers, `cuda` or `cpu`.
        number: Device number.
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
            outputs: Names of the outputs to fetch; only these are copied from the device.
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
        # Output buffers are allocated before the run, so output shapes are derived from those of the inputs. `k` is
        # special: the value of this input is the width of the top-k outputs.
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
        # A copy, because the next run of this shape overwrites the buffer, and on the CPU `numpy()` is a view of it.
        return [np.array(each.numpy()) for each in found]

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> "OrtValue":
        """Return a buffer of this thread; the least recently used one is dropped if there are too many."""
        from onnxruntime import OrtValue

        buffers: dict[tuple[str, tuple[int, ...]], OrtValue] = self._threads.buffers
        # Popped and inserted again at the end: the dictionary's order is the order of use.
        buffer = buffers.pop((name, shape), None)
        if buffer is None:
            buffer = OrtValue.ortvalue_from_shape_and_type(shape, dtype.type, *self._device)
        # Large buffers are rare shapes; keeping one per shape and thread would fill the device's memory.
        if int(np.prod(shape)) * dtype.itemsize <= _LARGEST_BUFFER:
            buffers[name, shape] = buffer
            if len(buffers) > _MOST_BUFFERS:
                del buffers[next(iter(buffers))]
        return buffer
