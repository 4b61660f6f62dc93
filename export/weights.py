"""Rounds weights to int8 such that no processor overflows.

On processors without an 8-bit dot product (x86 without VNNI), ONNX Runtime adds the products of two adjacent input
channels in 16 bits with saturation. With activations of up to 255, the weights w0 and w1 of such a pair overflow once
|w0 + w1| exceeds 128. 7-bit weights avoid this at half the resolution. Here, only the sum of each pair is limited: the
scale of an output is as fine as its largest pair permits, which is close to 8 bits. One file then gives the same
integers on every processor (tests/runtime/test_emulated.py).
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
    """Return the pairs of channels that share a 16-bit sum.

    Args:
        channels: The channel of each row of the stored matrix, in the order of the rows; an outlier channel has
            several rows.
    """
    rows = np.asarray(channels)
    # The kernel pairs rows 0 and 1, 2 and 3, and so on; an odd last row is paired with zero.
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
    # Half a step remains for the case that both weights of a pair are rounded up.
    largest = np.abs(weights).max(axis=0) / _LARGEST
    for block in np.array_split(pairs, max(1, len(pairs) // 64)):
        sums = np.abs(weights[block[:, 0]] + weights[block[:, 1]]).max(axis=0, initial=0.0)
        # With different signs, a sum is no larger than its larger part, which the first limit already covers.
        largest = np.maximum(largest, sums / (_LARGEST_PAIR - 0.5))
    scales: NDArray[np.float32] = largest.astype(np.float32)
    scales[scales == 0] = 1.0
    return scales


def round_columns(weights: NDArray[np.float32], scales: NDArray[np.float32], pairs: Pairs) -> NDArray[np.int8]:
    """Round each weight to the nearest step of its column, within the limit of its pair.

    Args:
        weights: [inputs, outputs].
        scales: As `column_scales` gives them.
        pairs: Pairs of inputs; no input is in two of them.
    """
    rounded = np.clip(np.rint(weights / scales), -_LARGEST, _LARGEST).astype(np.int16)
    first, second = rounded[pairs[:, 0]], rounded[pairs[:, 1]]
    rounded[pairs[:, 1]] -= np.sign(second) * (np.abs(first + second) > _LARGEST_PAIR)
    result: NDArray[np.int8] = rounded.astype(np.int8)
    return result


@dataclass(frozen=True, slots=True)
class Feedback:
    """The correlations between the inputs of a layer, prepared for rounding.

    Attributes:
        order: The inputs by decreasing magnitude.
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
    damping = _DAMPING * max(float(np.diagonal(gram).mean()), 1e-12)
    damped.diagonal().add_(damping)
    # The upper Cholesky factor of the inverse, without computing the inverse: reversing rows and columns turns it into
    # the inverse of the lower factor of the reversed matrix.
    reversed_ = damped.flip(0, 1)
    # Sums in fp32 are rounded, which can leave the matrix of channels of very different sizes slightly indefinite.
    while torch.linalg.cholesky_ex(reversed_).info and damping < float(np.diagonal(gram).max()):
        reversed_.diagonal().add_(damping)
        damping *= 10
    lower = torch.linalg.cholesky(reversed_)
    inverse = torch.linalg.solve_triangular(lower, torch.eye(len(gram), dtype=lower.dtype), upper=False)
    return Feedback(order, inverse.flip(0, 1).float().numpy())


def round_with_feedback(
    weights: NDArray[np.float32], scales: NDArray[np.float32], feedback: Feedback, pairs: Pairs
) -> NDArray[np.int8]:
    """Round weights to minimize the error of the layer's outputs rather than that of the weights.

    The inputs that are not yet rounded compensate for the rounding error of each input, as far as they correlate with
    it on the calibration text (GPTQ: Frantar et al. 2023, https://arxiv.org/abs/2210.17323, algorithm 1). Inputs with
    large values are rounded first, while most of the others can still compensate.

    Args:
        weights: [inputs, outputs].
        scales: [outputs].
        feedback: Correlations on the calibration text.
        pairs: Pairs of inputs.

    Returns:
        int8, [inputs, outputs].
    """
    order, factor = feedback.order, feedback.factor
    count = len(order)
    # The second input of a pair, in order of rounding, is limited by what the first one became.
    partners: list[list[int]] = [[] for _ in range(count)]
    place = np.empty(count, np.int64)
    place[order] = np.arange(count)
    for one, other in place[pairs].tolist():
        if one != other:
            partners[max(one, other)].append(min(one, other))
    left = weights[order] / scales
    rounded = np.empty(left.shape, np.float32)
    errors = np.empty((_BLOCK, left.shape[1]), np.float32)
    # Within a block, errors are passed on row by row; beyond it once per block, as a matmul, which is much faster.
    for start in range(0, count, _BLOCK):
        end = min(start + _BLOCK, count)
        for row in range(start, end):
            steps = np.clip(np.rint(left[row]), -_LARGEST, _LARGEST)
            for partner in partners[row]:
                # Only weights of the same sign add up; the limit for the other sign has no effect.
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
