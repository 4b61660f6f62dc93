"""The accuracy budget of int8 in the tests, and counts of int8 layers in a graph."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from mlm_infer.export import Budget
from mlm_infer.export.calibrate import ActivationStats
from numpy.typing import NDArray

from mlm_infer.results import FillResult

__all__ = ["BUDGET", "LEAST_AGREEMENT", "agreement", "least_of", "products", "stats_of"]

LEAST_AGREEMENT = 0.9

BUDGET = Budget(max_perplexity_increase=0.05, min_agreement=LEAST_AGREEMENT)
"""What every int8 model of the tests is exported with.

It is wide: how many layers a tight one puts back is another question, and may hang on a rounding.
"""


def least_of(masks: int, asked: float = LEAST_AGREEMENT) -> float:
    """Return the minimum top-1 agreement that so few masks may show for a model that meets its budget.

    A share of n masks has a standard deviation of sqrt(p (1 - p) / n) around its p; three of them are allowed.

    Args:
        masks: How many.
        asked: What the budget asks for.
    """
    return asked - 3 * math.sqrt(asked * (1 - asked) / masks)


def agreement(some: list[FillResult], others: list[FillResult]) -> tuple[float, int]:
    """Return the top-1 agreement, as the budget defines it, and the number of masks."""
    same = [
        one.predictions[0].token_id == other.predictions[0].token_id
        for mine, theirs in zip(some, others, strict=True)
        for one, other in zip(mine.masks, theirs.masks, strict=True)
    ]
    return float(np.mean(same)), len(same)


def products(path: Path) -> list[NDArray[Any]]:
    """Return the int8 weight matrices of a graph, [inputs, outputs]."""
    graph = onnx.load(path).graph
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    turned = {
        node.output[0]: constants[node.input[0]].T
        for node in graph.node
        if node.op_type == "Transpose" and node.input[0] in constants
    }
    return [(constants | turned)[node.input[1]] for node in graph.node if node.op_type == "MatMulIntegerToFloat"]


def stats_of(values: NDArray[Any]) -> ActivationStats:
    """Return the calibration statistics of an array whose last axis is the channels."""
    rows = values.reshape(-1, values.shape[-1]).astype(np.float32)
    count = len(rows)
    return ActivationStats(rows.min(0), rows.max(0), count, rows.T @ rows, rows.sum(0), count, rows)
