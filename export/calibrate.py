"""Collects statistics of activations on real text: ranges, and correlations between channels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .batches import Batch, feeds
from .run_model import open_model

__all__ = ["ActivationStats", "calibrate"]

_ROWS = 4096
"""Number of rows for the correlations, whose computation takes longer than the model itself."""


@dataclass(slots=True)
class ActivationStats:
    """One activation over the calibration text.

    Attributes:
        low: Smallest value of each channel.
        high: Largest value of each channel.
        seen: Number of rows.
        gram: Sum of x x^T over a subset of the rows, [channels, channels].
        total: Sum of x over the same subset, [channels].
        rows: Size of the subset.
        sample: A smaller subset, to measure errors on.
    """

    low: NDArray[np.float32]
    high: NDArray[np.float32]
    seen: int
    gram: NDArray[np.float32]
    total: NDArray[np.float32]
    rows: int
    sample: NDArray[np.float32]

    def moved(self, centre: NDArray[np.float32], width: NDArray[np.float32]) -> "ActivationStats":
        """Return the statistics of (x - centre) / width."""
        cross = np.outer(self.total, centre)
        # (x - c)(x - c)^T = x x^T - x c^T - c x^T + c c^T, summed over the rows: no second run over the text is needed.
        gram = self.gram - cross - cross.T + self.rows * np.outer(centre, centre)
        return ActivationStats(
            low=(self.low - centre) / width,
            high=(self.high - centre) / width,
            seen=self.seen,
            gram=gram / np.outer(width, width),
            total=(self.total - self.rows * centre) / width,
            rows=self.rows,
            sample=(self.sample - centre) / width,
        )

    def ordered(self, order: NDArray[np.int64]) -> "ActivationStats":
        """Return the statistics of the channels in another order."""
        return ActivationStats(
            low=self.low[order],
            high=self.high[order],
            seen=self.seen,
            gram=self.gram[np.ix_(order, order)],
            total=self.total[order],
            rows=self.rows,
            sample=self.sample[:, order],
        )


def calibrate(
    model: ir.Model, activations: Sequence[ir.Value], inputs: Sequence[str], batches: Sequence[Batch]
) -> dict[str, ActivationStats]:
    """Run a model and collect statistics of some of its values, without padding.

    Args:
        model: The fp32 serving graph.
        activations: Values whose last axis is the channels.
        inputs: Names of the encoder's inputs.
        batches: Calibration text.

    Returns:
        The statistics by the name of the value.
    """
    names = [value.name or "" for value in activations]
    session = open_model(model, outputs=tuple(names))
    stats: dict[str, ActivationStats] = {}
    # Batches are sorted by text length, so the subset must be drawn from batches in random order.
    for number in np.random.default_rng(0).permutation(len(batches)):
        batch = batches[number]
        keep = batch.attention_mask.reshape(-1).astype(bool)
        for name, found in zip(names, session.run(names, feeds(batch, inputs)), strict=True):
            rows = found.reshape(-1, found.shape[-1])
            # After the row selection there is no padding.
            rows = rows[keep] if len(rows) == len(keep) and not keep.all() else rows
            _add(stats, name, rows)
    return stats


def _add(stats: dict[str, ActivationStats], name: str, rows: NDArray[np.float32]) -> None:
    low, high, width = rows.min(axis=0), rows.max(axis=0), rows.shape[1]
    old = stats.get(name)
    if old is None:
        nothing = np.zeros(width, np.float32)
        old = stats[name] = ActivationStats(
            low, high, 0, np.zeros((width, width), np.float32), nothing, 0, np.empty((0, width), np.float32)
        )
    np.minimum(old.low, low, out=old.low)
    np.maximum(old.high, high, out=old.high)
    old.seen += len(rows)
    if old.rows < _ROWS:
        old.gram += rows.T @ rows
        old.total += rows.sum(axis=0)
        old.rows += len(rows)
    # A few rows of many batches are a better sample than all rows of the first ones.
    if len(old.sample) < 1024:
        old.sample = np.concatenate([old.sample, rows[:64]])
