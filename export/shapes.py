"""Symbolic shapes of every value in a graph, found by running it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mlm_infer.errors import ExportError, first_line

from .run_model import open_model

__all__ = ["Shape", "observe_shapes"]

Shape = tuple[int | str, ...]
"""A dimension is a number, `B` (batch), `L` (length) or `?` (anything else that varies)."""

_PROBES = ((2, 11), (3, 17))


def observe_shapes(model: ir.Model, inputs: Sequence[str], token_id: int) -> dict[str, Shape]:
    """Run a model on two batches and tell which dimensions follow the batch and which the length.

    Args:
        model: A model whose inputs are all [batch, length].
        inputs: Names of its inputs.
        token_id: An ordinary token to fill the batches with.

    Returns:
        A shape for every value by name, initializers included.

    Raises:
        ExportError: ONNX Runtime cannot run the model.
    """
    names = [output.name or "" for node in model.graph for output in node.outputs if output.name]
    kept = {output.name for output in model.graph.outputs}
    try:
        session = open_model(model, optimize=False, outputs=tuple(name for name in names if name not in kept))
        runs = [session.run(names, _feeds(inputs, *probe, token_id)) for probe in _PROBES]
    except Exception as error:  # onnxruntime's exceptions share no base but Exception
        raise ExportError(f"the exported graph cannot be run: {first_line(error)}") from error
    shapes: dict[str, Shape] = dict.fromkeys(inputs, ("B", "L"))
    for name, value in model.graph.initializers.items():
        shapes[name] = tuple(value.const_value.shape.numpy()) if value.const_value is not None else ("?",)
    for name, *values in zip(names, *runs, strict=True):
        shapes[name] = _symbolic(*(np.shape(value) for value in values))
    return shapes


def _feeds(inputs: Sequence[str], batch: int, length: int, token_id: int) -> dict[str, NDArray[Any]]:
    arrays = {
        "input_ids": np.full((batch, length), token_id, np.int64),
        "attention_mask": np.ones((batch, length), np.int64),
        "token_type_ids": np.zeros((batch, length), np.int64),
    }
    return {name: arrays[name] for name in inputs}


def _symbolic(first: tuple[int, ...], second: tuple[int, ...]) -> Shape:
    if len(first) != len(second):
        return ("?",)
    batches, lengths = zip(*_PROBES, strict=True)
    symbols = {batches: "B", lengths: "L"}
    return tuple(
        one if one == other else symbols.get((one, other), "?") for one, other in zip(first, second, strict=True)
    )
