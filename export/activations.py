"""Quantizes activations to uint8: one static scale, and outlier columns for the values that exceed its range.

With a dynamic scale, computed from the batch, the answer for a text would depend on the other texts, and each run would
need an additional pass for minimum and maximum. A static scale from calibration avoids both. A few channels of a
transformer have values many times larger than the others; one scale that covers them leaves few steps for the rest. So
the scale is chosen for the rest. A channel that exceeds it gets additional columns in the matmul with the same weights.
Each column carries what the one before clipped (after outlier channel splitting, Zhao et al. 2019,
https://arxiv.org/abs/1901.09504). Clipping then loses no accuracy, and a few more columns cost a few percent of time.
"""

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .calibrate import ActivationStats
from .graph import add_constant, add_node

__all__ = ["ActivationPlan", "add_quantized", "plan_activation", "simulate"]

_MARGIN = 1.1
"""Calibration sees a sample only: each channel gets this much more range than observed."""


@dataclass(frozen=True, slots=True)
class ActivationPlan:
    """How to quantize one activation to uint8.

    Attributes:
        low: Value of byte 0.
        scale: Width of a step.
        zero_point: Byte of the value 0.
        extra: For each round of outlier columns, the channels that still exceed the range, ascending.
    """

    low: float
    scale: float
    zero_point: int
    extra: tuple[NDArray[np.int64], ...] = ()

    @property
    def high(self) -> float:
        """Value of byte 255."""
        return self.low + 255 * self.scale

    @property
    def columns(self) -> NDArray[np.int64]:
        """The channel of each outlier column."""
        return np.concatenate([np.empty(0, np.int64), *self.extra])


def plan_activation(stats: ActivationStats, extra_share: float) -> ActivationPlan:
    """Choose the narrowest range whose overflow fits in a given number of outlier columns.

    Args:
        stats: Calibration statistics.
        extra_share: Maximum number of outlier columns per channel; 0 for a range that covers everything.
    """
    low = np.minimum(stats.low * _MARGIN, 0)
    high = np.maximum(stats.high * _MARGIN, 0)
    budget = int(len(low) * extra_share)
    floor, ceiling = 0.0, float(max(high.max(), -low.min()))

    def ends(largest: float) -> tuple[float, float]:
        """Limit the range to the observed values, so that a one-sided activation such as GELU wastes no steps."""
        return max(float(low.min()), -largest), min(float(high.max()), largest)

    # Bisection: a narrower range needs more columns.
    for _ in range(30 if budget else 0):
        middle = (floor + ceiling) / 2
        if sum(map(len, _overflow(low, high, *ends(middle), budget))) <= budget:
            ceiling = middle
        else:
            floor = middle
    bottom, top = ends(ceiling)
    # 254 instead of 255 steps: the range is shifted so that zero is exactly representable, and must still cover both
    # ends.
    scale = max((top - bottom) / 254, 1e-12)
    zero_point = min(math.ceil(-bottom / scale), 255)
    bottom = -zero_point * scale
    extra = _overflow(low, high, bottom, bottom + 255 * scale, budget) if budget else ()
    return ActivationPlan(bottom, scale, zero_point, extra)


def _overflow(
    low: NDArray[np.float32], high: NDArray[np.float32], bottom: float, top: float, budget: int
) -> tuple[NDArray[np.int64], ...]:
    """Return for each round the channels that still exceed the range; stop once the budget is exceeded."""
    rounds: list[NDArray[np.int64]] = []
    above, below, used = high - top, bottom - low, 0
    while used <= budget:
        over = (above > 0) & (top > 0) | (below > 0) & (bottom < 0)
        if not over.any():
            break
        rounds.append(np.flatnonzero(over))
        used += len(rounds[-1])
        above, below = above - top, below + bottom
    return tuple(rounds)


def simulate(plan: ActivationPlan, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return activations after quantization and dequantization, with outlier columns added."""
    result = _round(plan, values)
    # Each round of columns carries what the rounds before it clipped.
    rest = values
    for channels in plan.extra:
        rest = rest - np.clip(rest, plan.low, plan.high)
        result[:, channels] += _round(plan, rest[:, channels])
    return result


def _round(plan: ActivationPlan, values: NDArray[np.float32]) -> NDArray[np.float32]:
    # The same arithmetic as QuantizeLinear and DequantizeLinear, so that the estimate equals what the graph computes.
    steps = np.clip(np.rint(values / plan.scale) + plan.zero_point, 0, 255)
    result: NDArray[np.float32] = ((steps - plan.zero_point) * plan.scale).astype(np.float32)
    return result


def add_quantized(graph: ir.Graph, activation: ir.Value, plan: ActivationPlan) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Add the nodes that quantize an activation; return the bytes, their scale and their zero point."""
    scale = add_constant(graph, "activation_scale", np.array(plan.scale, np.float32))
    zero_point = add_constant(graph, "activation_zero_point", np.array(plan.zero_point, np.uint8))

    def quantized(value: ir.Value) -> ir.Value:
        return add_node(graph, "QuantizeLinear", [value, scale, zero_point])

    parts = [quantized(activation)]
    if plan.extra:
        low = add_constant(graph, "activation_low", np.array(plan.low, np.float32))
        high = add_constant(graph, "activation_high", np.array(plan.high, np.float32))
        rest = activation
        held = np.arange(activation_width(plan))
        for channels in plan.extra:
            # `rest` holds the channels of the last round only, so channel numbers become positions among those.
            index = np.searchsorted(held, channels)
            picked = _pick(graph, rest, index)
            cut = add_node(graph, "Clip", [picked, low, high])
            rest = add_node(graph, "Sub", [picked, cut])
            parts.append(quantized(rest))
            held = channels
    values = parts[0] if len(parts) == 1 else add_node(graph, "Concat", parts, {"axis": -1})
    return values, scale, zero_point


def _pick(graph: ir.Graph, value: ir.Value, channels: NDArray[np.int64]) -> ir.Value:
    """Extract channels of a value; a slice from the start is much faster than a gather."""
    if not np.array_equal(channels, np.arange(len(channels))):
        return add_node(graph, "Gather", [value, add_constant(graph, "channels", channels)], {"axis": -1})
    ends = [add_constant(graph, "slice", np.array([number])) for number in (0, len(channels), -1)]
    return add_node(graph, "Slice", [value, *ends])


def activation_width(plan: ActivationPlan) -> int:
    """Return an upper bound of the channel numbers, which suffices to look them up."""
    return int(max((channels.max() for channels in plan.extra), default=0)) + 1
