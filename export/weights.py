"""Rounding weights to int8 so that no processor overflows.

Where a processor lacks a dot product for bytes (x86 without VNNI), ONNX Runtime adds the products of two adjacent
input channels in 16 bits, saturating: an unsigned byte of up to 255 times w0 and w1 overflows once |w0 + w1| passes
128. 7-bit weights avoid that at the price of half the resolution. Here only the sum over each such pair is limited:
the scale of an output is as fine as its largest pair allows, which is near that of 8 bits, and one file
gives the same integers on every processor (tests/runtime/test_emulated.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["Feedback", "adjacent_pairs", "column_scales", "feedback_factor", "round_columns", "round_with_feedback"]

_LARGEST = 127
_LARGEST_PAIR = 128
_BLOCK = 128
_DAMPING = 0.01

Pairs = NDArray[np.int64]
"""Channels whose products are added in 16 bits, [pairs, 2]."""


def adjacent_pairs(channels: Sequence[int] | NDArray[np.int64]) -> Pairs:
    """Return which channels share a 16-bit sum.

    Args:
        channels: The channel that each row of a stored matrix belongs to, in the order of the rows.
    """
    rows = np.asarray(channels)
    whole = rows[: len(rows) // 2 * 2].reshape(-1, 2)
    return np.unique(np.sort(whole, axis=1), axis=0)


def column_scales(weights: NDArray[np.float32], pairs: Pairs) -> NDArray[np.float32]:
    """Return the finest symmetric scale of each column at which nothing overflows.

    Args:
        weights: [inputs, outputs].
        pairs: Of inputs.

    Returns:
        [outputs].
    """
    # Half a step is kept for rounding both up.
    largest = np.abs(weights).max(axis=0) / _LARGEST
    for block in np.array_split(pairs, max(1, len(pairs) // 64)):
        sums = np.abs(weights[block[:, 0]] + weights[block[:, 1]]).max(axis=0, initial=0.0)
        # Of two signs, no sum is larger than its larger part, which has been looked at.
        largest = np.maximum(largest, sums / (_LARGEST_PAIR - 0.5))
    scales: NDArray[np.float32] = largest.astype(np.float32)
    scales[scales == 0] = 1.0
    return scales


def round_columns(weights: NDArray[np.float32], scales: NDArray[np.float32], pairs: Pairs) -> NDArray[np.int8]:
    """Round each weight to the nearest step of its column, and keep the pairs within their limit.

    Args:
        weights: [inputs, outputs].
        scales: As `column_scales` gives them.
        pairs: Of inputs; no input is in two of them.
    """
    rounded = np.clip(np.rint(weights / scales), -_LARGEST, _LARGEST).astype(np.int16)
    first, second = rounded[pairs[:, 0]], rounded[pairs[:, 1]]
    rounded[pairs[:, 1]] -= np.sign(second) * (np.abs(first + second) > _LARGEST_PAIR)
    result: NDArray[np.int8] = rounded.astype(np.int8)
    return result


@dataclass(frozen=True, slots=True)
class Feedback:
    """How the inputs of a layer go together.

    Attributes:
        order: The inputs, largest first.
        factor: Upper Cholesky factor of the inverse of their Gram matrix, in that order.
    """

    order: NDArray[np.int64]
    factor: NDArray[np.float32]


def feedback_factor(gram: NDArray[np.float32]) -> Feedback:
    """Prepare a Gram matrix for `round_with_feedback`.

    Args:
        gram: Sum of x x^T over the calibration text, [inputs, inputs].
    """
    order = np.argsort(-np.diagonal(gram), kind="stable")
    damped = torch.from_numpy(gram[np.ix_(order, order)]).double()
    damped.diagonal().add_(_DAMPING * max(float(np.diagonal(gram).mean()), 1e-12))
    # The upper factor of the inverse, without the inverse: turned around, it is that of the matrix turned around.
    lower = torch.linalg.cholesky(damped.flip(0, 1))
    inverse = torch.linalg.solve_triangular(lower, torch.eye(len(gram), dtype=lower.dtype), upper=False)
    return Feedback(order, inverse.flip(0, 1).float().numpy())


def round_with_feedback(
    weights: NDArray[np.float32], scales: NDArray[np.float32], feedback: Feedback, pairs: Pairs
) -> NDArray[np.int8]:
    """Round weights so that the layer's outputs, not the weights, stay close.

    Each input's rounding error is made up for by the inputs not yet rounded, as far as the calibration text
    says that they go together (GPTQ: Frantar et al. 2023, https://arxiv.org/abs/2210.17323, algorithm 1).

    Args:
        weights: [inputs, outputs].
        scales: [outputs].
        feedback: Of the calibration text.
        pairs: Of inputs.

    Returns:
        int8, [inputs, outputs].
    """
    order, factor = feedback.order, feedback.factor
    count = len(order)
    partners: list[list[int]] = [[] for _ in range(count)]
    place = np.empty(count, np.int64)
    place[order] = np.arange(count)
    for one, other in place[pairs].tolist():
        if one != other:
            partners[max(one, other)].append(min(one, other))
    left = weights[order] / scales
    rounded = np.empty(left.shape, np.float32)
    errors = np.empty((_BLOCK, left.shape[1]), np.float32)
    for start in range(0, count, _BLOCK):
        end = min(start + _BLOCK, count)
        for row in range(start, end):
            steps = np.clip(np.rint(left[row]), -_LARGEST, _LARGEST)
            for partner in partners[row]:
                # Only weights of one sign add up: the limit of the other sign is beyond what there is.
                held = rounded[partner]
                steps = np.clip(steps, -_LARGEST_PAIR - np.minimum(held, 0), _LARGEST_PAIR - np.maximum(held, 0))
            rounded[row] = steps
            error = (left[row] - steps) / factor[row, row]
            left[row + 1 : end] -= factor[row, row + 1 : end, None] * error
            errors[row - start] = error
        left[end:] -= factor[start:end, end:].T @ errors[: end - start]
    result = np.empty(rounded.shape, np.int8)
    result[order] = rounded
    return result
