"""Reports the progress of an export: its steps, and the finished share."""

import typing
from collections.abc import Callable, Sequence

import numpy as np

__all__ = ["Progress"]


class Progress:
    """Reports which part of an export is running, and the finished share of the whole.

    Args:
        wanted: The requested precisions and formats.
        on_step: Called with a line of text.
        on_progress: Called with a share from 0 to 1.
    """

    # Seconds for DistilRoBERTa's shape on two cores; only their ratios matter.
    _SECONDS: typing.ClassVar = {
        "load": 2.0,
        "onnx": 15.0,
        "fp16": 6.0,
        "int8": 35.0,
        "torchscript": 5.0,
        "parity": 10.0,
    }
    _GRAPH: typing.ClassVar = {"graph": "onnx", "passes": "onnx", "text": "onnx", "write": "parity"}

    def __init__(
        self,
        wanted: Sequence[str],
        on_step: Callable[[str], None] | None,
        on_progress: Callable[[float], None] | None,
    ) -> None:
        # Only the stages of this export, so that the shares add up to the whole.
        names = [name for name in self._SECONDS if name in ("load", "parity", *wanted)]
        total = sum(self._SECONDS[name] for name in names)
        ends = np.cumsum([self._SECONDS[name] / total for name in names]).tolist()
        self._spans = dict(zip(names, zip([0.0, *ends], ends, strict=False), strict=True))
        self._span = (0.0, 0.0)
        self._on_step, self._on_progress = on_step, on_progress

    def begin(self, name: str, text: str) -> None:
        """Start a part."""
        # These stages share the span of another one and start within it.
        halfway = {"passes": 0.5, "text": 0.9, "write": 0.95}.get(name, 0.0)
        self._span = self._spans.get(self._GRAPH.get(name, name), self._span)
        self.within(halfway)
        self.say(text)

    def say(self, text: str) -> None:
        """Report the current step."""
        if self._on_step is not None:
            self._on_step(text)

    def within(self, share: float) -> None:
        """Report the finished share of the current part."""
        if self._on_progress is not None:
            start, end = self._span
            self._on_progress(min(1.0, start + share * (end - start)))
