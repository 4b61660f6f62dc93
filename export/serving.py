"""From the graph that Optimum exports to the one that serves."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from mlm_infer.errors import ExportError, MlmInferError

from .attention import fuse_attention
from .batches import Batch, feeds
from .fuse import fuse
from .graph import add_serving_head, clean
from .rows import flat_rows, move_rows_up, text_rows
from .run_model import open_model
from .shapes import observe_shapes
from .to_onnx import ENCODER_INPUTS

__all__ = ["PASSES", "PassError", "ServingGraph", "build_serving_graph"]

PASSES = ("fusions", "attention", "rows")
"""What is done to a graph for speed alone, in this order; each is checked and can be left out."""

# Old ONNX Runtimes refuse newer files, and cannot say up to which they read.
_IR_VERSION = 9
_TOLERANCE = 1e-3


class PassError(ExportError):
    """A graph pass that does not fit a graph.

    Attributes:
        name: The pass, one of `PASSES`.
    """

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"the graph pass {name!r} {problem}; export without it: --no-pass {name}")
        self.name = name


@dataclass(frozen=True, slots=True)
class ServingGraph:
    """A graph with the serving head.

    Attributes:
        model: The graph.
        inputs: Names of the encoder's inputs.
        fusions: How often each fusion was made.
        row_nodes: How many nodes run at the masks of each text only, and how many of them at mask rows alone.
    """

    model: ir.Model
    inputs: tuple[str, ...]
    fusions: dict[str, int]
    row_nodes: tuple[int, int]

    def details(self) -> dict[str, Any]:
        """Return what was done to the graph, as JSON can hold it."""
        return {"fusions": self.fusions, "nodes_at_masks": self.row_nodes[0], "nodes_at_rows": self.row_nodes[1]}


def build_serving_graph(path: Path, vocabulary: int, batch: Batch, *, without: Sequence[str] = ()) -> ServingGraph:
    """Fuse, add the serving head, and move its selections of rows up the graph.

    Args:
        path: What `optimum_export` wrote.
        vocabulary: Width of the logits.
        batch: Texts of several lengths, to check each pass on.
        without: Names of `PASSES` to leave out.

    Raises:
        PassError: A pass changed the answers, or failed.
        ExportError: ONNX Runtime cannot run the graph.
    """
    model = ir.load(path)
    inputs = tuple(each.name for each in model.graph.inputs if each.name in ENCODER_INPUTS)
    expected = _logits(model, inputs, batch)
    fusions: dict[str, int] = {}
    if "fusions" in without:
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    else:
        with _named("fusions"):
            model, fusions = fuse(path)
        _check("fusions", _logits(model, inputs, batch), expected)
    graph = model.graph
    shapes = observe_shapes(model, inputs, int(batch.answers[0]))
    if "attention" not in without:
        with _named("attention"):
            fusions["MultiHeadAttention"] = fuse_attention(graph, shapes)
            common.RemoveUnusedNodesPass()(model)
        _check("attention", _logits(model, inputs, batch), expected)
    shapes["all_logits"] = ("B", "L", vocabulary)
    by_text, by_row = add_serving_head(model, vocabulary)
    named = {each.name: each for each in graph.inputs}
    # Without the pass the rows are selected where they are asked for: at the logits.
    movable = {} if "rows" in without else shapes
    with _named("rows"):
        texts = move_rows_up(graph, by_text, movable, text_rows(named["mask_positions"]), vocabulary)
        shapes[by_text.outputs[0].name or ""] = ("B", "L", vocabulary)
        rows = move_rows_up(graph, by_row, movable, flat_rows(named["mask_rows"]), vocabulary)
    for marker in (by_row, by_text):
        source = marker.inputs[0]
        assert source is not None  # noqa: S101
        marker.outputs[0].replace_all_uses_with(source)
        graph.remove(marker, safe=True)
    clean(model)
    model.ir_version = _IR_VERSION
    (found,) = open_model(model).run(["logits"], feeds(batch, inputs))
    _check("rows", found, expected)
    return ServingGraph(model, inputs, fusions, (len(texts), len(rows)))


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Say of any failure which pass it was in: a graph may hold what nobody has seen."""
    try:
        yield
    except MlmInferError:
        raise
    except Exception as error:
        raise PassError(name, f"failed ({type(error).__name__}: {error!s:.100})") from error


def _logits(model: ir.Model, inputs: Sequence[str], batch: Batch) -> NDArray[np.float32]:
    """Return the logits at the masks of a graph that gives them everywhere."""
    everything = feeds(batch, inputs)
    name = model.graph.outputs[0].name or ""
    (found,) = open_model(model).run([name], {each: everything[each] for each in inputs})
    chosen: NDArray[np.float32] = found.reshape(-1, found.shape[-1])[batch.flat]
    return chosen


def _check(name: str, found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    difference = float(np.abs(found - expected).max()) if found.shape == expected.shape else float("inf")
    if not difference <= _TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise PassError(name, f"changed the logits by {difference:.1e}")
