"""Symbolic shapes of every value in a graph, found by running it."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mlm_infer.errors import ExportError, first_line

from .run_model import open_model

__all__ = ["Observed", "Shape", "observe", "observe_shapes"]

Shape = tuple[int | str, ...]
"""A dimension is a number, `B` (batch), `L` (length) or `?` (anything else that varies)."""

_PROBES = ((2, 11), (3, 17))
"""Batch sizes and lengths of the runs: a dimension that changes as they do is one of them."""
_LONG_PROBE = (1, 131)
"""Longer than the windows of local attention, and than the multiples to which some models pad; optional, since a model
may not accept this length."""

_SMALL = 64
"""Maximum number of elements of a value that is kept although it may depend on the input, such as a shape."""


@dataclass(frozen=True, slots=True)
class Observed:
    """What was observed of the values of a graph when it ran.

    Attributes:
        shapes: Symbolic shapes by name, initializers included.
        values: By name, the values that were equal in all runs, if they are small or depend on constants only.
        kinds: Element types by name.
    """

    shapes: dict[str, Shape]
    values: dict[str, NDArray[Any]]
    kinds: dict[str, np.dtype[Any]]


def observe(model: ir.Model, inputs: Sequence[str], token_id: int) -> Observed:
    """Run a model on a few batches to find which dimensions are the batch, which the length, and which are fixed.

    Args:
        model: A model whose inputs are all [batch, length].
        inputs: Names of its inputs.
        token_id: An ordinary token to fill the batches with.

    Raises:
        ExportError: ONNX Runtime cannot run the model.
    """
    # All intermediate values become outputs, in a session that optimizes nothing away.
    names = [output.name or "" for node in model.graph for output in node.outputs if output.name]
    kept = {output.name for output in model.graph.outputs}
    session = open_model(model, optimize=False, outputs=tuple(name for name in names if name not in kept))
    probes = list(_PROBES)
    try:
        runs = [session.run(names, _feeds(inputs, *probe, token_id)) for probe in probes]
    except Exception as error:  # onnxruntime's exceptions share no base but Exception
        raise ExportError(f"the exported graph cannot be run: {first_line(error)}") from error
    with contextlib.suppress(Exception):
        runs.append(session.run(names, _feeds(inputs, *_LONG_PROBE, token_id)))
        probes.append(_LONG_PROBE)
    shapes: dict[str, Shape] = dict.fromkeys(inputs, ("B", "L"))
    for name, value in model.graph.initializers.items():
        shapes[name] = tuple(value.const_value.shape.numpy()) if value.const_value is not None else ("?",)
    # Values are kept only if small, or if they follow from constants: all activations would take too much memory.
    fixed = _following(model.graph)
    values: dict[str, NDArray[Any]] = {}
    kinds: dict[str, np.dtype[Any]] = {}
    for name, *found in zip(names, *runs, strict=True):
        arrays = [np.asarray(each) for each in found]
        shapes[name] = _symbolic([each.shape for each in arrays], probes)
        kinds[name] = arrays[0].dtype
        if (arrays[0].size <= _SMALL or name in fixed) and all(np.array_equal(arrays[0], each) for each in arrays[1:]):
            values[name] = arrays[0]
    return Observed(shapes, values, kinds)


def _following(graph: ir.Graph) -> set[str]:
    """Return the names of the values that depend on constants only."""
    found = set(graph.initializers)
    for node in graph:
        if node.inputs and all(each is None or each.name in found for each in node.inputs):
            found.update(output.name or "" for output in node.outputs)
    return found - set(graph.initializers)


def observe_shapes(model: ir.Model, inputs: Sequence[str], token_id: int) -> dict[str, Shape]:
    """Return the shapes that `observe` finds."""
    return observe(model, inputs, token_id).shapes


def _feeds(inputs: Sequence[str], batch: int, length: int, token_id: int) -> dict[str, NDArray[Any]]:
    arrays = {
        "input_ids": np.full((batch, length), token_id, np.int64),
        "attention_mask": np.ones((batch, length), np.int64),
        "token_type_ids": np.zeros((batch, length), np.int64),
    }
    return {name: arrays[name] for name in inputs}


def _symbolic(shapes: Sequence[tuple[int, ...]], probes: Sequence[tuple[int, int]]) -> Shape:
    if len({len(each) for each in shapes}) != 1:
        return ("?",)
    # A dimension that changes from run to run as the batch does is the batch; likewise for the length.
    batches, lengths = zip(*probes, strict=True)
    symbols = {batches: "B", lengths: "L"}
    return tuple(sizes[0] if len(set(sizes)) == 1 else symbols.get(sizes, "?") for sizes in zip(*shapes, strict=True))
