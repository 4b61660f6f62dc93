"""What the activations of a model look like on real text: their ranges, and how their channels go together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from .batches import Batch, feeds
from .run_model import open_model

__all__ = ["ActivationStats", "calibrate"]


@dataclass(slots=True)
class ActivationStats:
    """One activation over the calibration text.

    Attributes:
        low: Smallest value of each channel.
        high: Largest value of each channel.
        gram: Sum of x x^T over all rows, [channels, channels].
        rows: How many rows that is.
        sample: Some of the rows, to measure errors on.
    """

    low: NDArray[np.float32]
    high: NDArray[np.float32]
    gram: NDArray[np.float32]
    rows: int
    sample: NDArray[np.float32]


def calibrate(
    model: ir.Model, activations: Sequence[ir.Value], inputs: Sequence[str], batches: Sequence[Batch]
) -> dict[ir.Value, ActivationStats]:
    """Run a model and gather the statistics of some of its values; padding is left out.

    Args:
        model: The fp32 serving graph.
        activations: Values of which the last axis is the channels.
        inputs: Names of the encoder's inputs.
        batches: Calibration text.
    """
    proto = ir.to_proto(model)
    names = [value.name or "" for value in activations]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = open_model(proto)
    stats: dict[ir.Value, ActivationStats] = {}
    for batch in batches:
        keep = batch.attention_mask.reshape(-1).astype(bool)
        for value, found in zip(activations, session.run(names, feeds(batch, inputs)), strict=True):
            rows = found.reshape(-1, found.shape[-1])
            rows = rows[keep] if len(rows) == len(keep) else rows
            _add(stats, value, rows)
    return stats


def _add(stats: dict[ir.Value, ActivationStats], value: ir.Value, rows: NDArray[np.float32]) -> None:
    low, high, gram = rows.min(axis=0), rows.max(axis=0), rows.T @ rows
    old = stats.get(value)
    if old is None:
        stats[value] = ActivationStats(low, high, gram, len(rows), rows[:64].copy())
        return
    np.minimum(old.low, low, out=old.low)
    np.maximum(old.high, high, out=old.high)
    old.gram += gram
    old.rows += len(rows)
    if len(old.sample) < 1024:
        old.sample = np.concatenate([old.sample, rows[:64]])
