"""Rounding weights to int8."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["column_scales", "round_columns", "round_with_feedback"]

_BLOCK = 128
_DAMPING = 0.01


def column_scales(weights: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """Return the symmetric scale of each column that uses the whole range of `bits`.

    Args:
        weights: [inputs, outputs].
        bits: 8, or 7 where a product of 8 bits would overflow its 16-bit accumulator.

    Returns:
        [outputs].
    """
    scales: NDArray[np.float32] = (np.abs(weights).max(axis=0) / (2 ** (bits - 1) - 1)).astype(np.float32)
    scales[scales == 0] = 1.0
    return scales


def round_columns(weights: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.int8]:
    """Round each weight to the nearest step of its column."""
    rounded: NDArray[np.int8] = np.rint(weights / scales).astype(np.int8)
    return rounded


def round_with_feedback(
    weights: NDArray[np.float32], scales: NDArray[np.float32], gram: NDArray[np.float32], bits: int
) -> NDArray[np.int8]:
    """Round weights so that the layer's outputs, not the weights, stay close.

    Each input's rounding error is made up for by the inputs not yet rounded, as far as the calibration text
    says that they go together (GPTQ: Frantar et al. 2023, https://arxiv.org/abs/2210.17323, algorithm 1).

    Args:
        weights: [inputs, outputs].
        scales: [outputs].
        gram: Sum of x x^T over the calibration text, [inputs, inputs].
        bits: As for `column_scales`.

    Returns:
        int8, [inputs, outputs].
    """
    limit = 2 ** (bits - 1) - 1
    count = len(gram)
    diagonal = np.diagonal(gram)
    order = np.argsort(-diagonal, kind="stable")
    damped = gram[np.ix_(order, order)].astype(np.float64)
    damped[np.diag_indices(count)] += _DAMPING * max(float(diagonal.mean()), 1e-12)
    factor = np.linalg.cholesky(np.linalg.inv(damped)).T.astype(np.float32)
    left = weights[order].astype(np.float32)
    rounded = np.empty(left.shape, np.int8)
    errors = np.empty((_BLOCK, left.shape[1]), np.float32)
    for start in range(0, count, _BLOCK):
        end = min(start + _BLOCK, count)
        for row in range(start, end):
            steps = np.clip(np.rint(left[row] / scales), -limit, limit)
            rounded[row] = steps
            error = (left[row] - steps * scales) / factor[row, row]
            left[row + 1 : end] -= factor[row, row + 1 : end, None] * error
            errors[row - start] = error
        left[end:] -= factor[start:end, end:].T @ errors[: end - start]
    result = np.empty_like(rounded)
    result[order] = rounded
    return result
