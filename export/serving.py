"""From the graph of an exporter to the one that serves."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from mlm_infer.bundle.interface import ENCODER_INPUTS
from mlm_infer.errors import ExportError, MlmInferError, ModelError, first_line

from .attention import fuse_attention
from .batches import Batch, feeds
from .fuse import fuse
from .graph import add_serving_head, clean, forget_shapes
from .normalize import normalize
from .rows import flat_rows, move_rows_up, text_rows
from .run_model import copy_model, open_model
from .shapes import Shape, observe_shapes

__all__ = ["PASSES", "ServingGraph", "build_serving_graph"]

PASSES = ("normalize", "fusions", "attention", "rows")
"""What is done to a graph for speed alone, in this order; each is checked and can be left out."""

_Shapes = dict[str, Shape]

# Older versions of ONNX Runtime reject newer files, and do not report the latest version that they read.
_IR_VERSION = 9
_TOLERANCE = 1e-3


class _PassError(Exception):
    """A graph pass failed or changed the logits; the message completes "the pass, which"."""


@dataclass(frozen=True, slots=True)
class ServingGraph:
    """A graph with the serving head.

    Attributes:
        model: The graph.
        inputs: Names of the encoder's inputs.
        fusions: Number of fusions by kind.
        row_nodes: Number of nodes that run at the masks of each text only, and of those that run on one row per mask.
    """

    model: ir.Model
    inputs: tuple[str, ...]
    fusions: dict[str, int]
    row_nodes: tuple[int, int]

    def details(self) -> dict[str, Any]:
        """Return the details for the manifest."""
        return {"fusions": self.fusions, "nodes_at_masks": self.row_nodes[0], "nodes_at_rows": self.row_nodes[1]}


def build_serving_graph(
    path: Path,
    vocabulary: int,
    batch: Batch,
    *,
    without: Sequence[str] = (),
    on_step: Callable[[str], None],
) -> ServingGraph:
    """Apply each pass to an exported graph, compare its logits with those before, and add the serving head.

    A pass that fails on this graph, or changes its logits, is left out: the graph is right without it, only slower.

    Args:
        path: The exported graph.
        vocabulary: Width of the logits.
        batch: Texts of several lengths, to check each pass on.
        without: Names of `PASSES` to leave out.
        on_step: Called with a line for each pass that does not fit this graph.

    Raises:
        ModelError: The logits are not numbers.
        ExportError: ONNX Runtime cannot run the graph.
    """
    build = _Build(path, vocabulary, batch)
    steps = (_Build.normalize, _Build.fuse, _Build.attend, _Build.move_rows)
    for name, apply in zip(PASSES, steps, strict=True):
        if name in without:
            continue
        # A pass modifies the graph in place: a copy is kept to return to if it does not fit.
        before = copy(build)
        before.model, before.fusions, before.shapes = copy_model(build.model), dict(build.fusions), dict(build.shapes)
        try:
            with _failures():
                apply(build)
                found = build.logits()
            _check(found, build.expected)
        except _PassError as error:
            on_step(f"leaving out the graph pass {name}, which {error}")
            build = before
    return build.finish()


class _Build:
    """A graph between export and serving, with the passes applied so far."""

    def __init__(self, path: Path, vocabulary: int, batch: Batch) -> None:
        self.fusions: dict[str, int] = {}
        self._vocabulary, self._batch = vocabulary, batch
        self._rows: tuple[int, int] | None = None
        self.shapes: _Shapes = {}
        try:
            self.model = ir.load(path)
            ir.external_data.load_to_model(self.model)
            # ONNX Runtime accepts nodes in any order, onnx-ir only after those whose outputs they use.
            common.TopologicalSortPass()(self.model)
            self.expected = self.logits()
        except MlmInferError:
            raise
        except Exception as error:  # onnxruntime's and onnx-ir's exceptions share no base but Exception
            raise ExportError(f"the exported graph cannot be run: {first_line(error)}") from error
        if np.isnan(self.expected).any():
            raise ModelError("the logits of the model are not numbers (NaN), so its weights are damaged; copy it again")
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(self.model)

    @property
    def _inputs(self) -> tuple[str, ...]:
        """Names of the encoder's inputs; `normalize` removes those that no node uses."""
        return tuple(each.name for each in self.model.graph.inputs if each.name in ENCODER_INPUTS)

    def logits(self) -> NDArray[np.float32]:
        """Return the logits at the masks of the batch."""
        arrays = feeds(self._batch, self._inputs)
        if self._rows is not None:
            (served,) = open_model(self.model).run(["logits"], arrays)
            return np.asarray(served)
        name = self.model.graph.outputs[0].name or ""
        (found,) = open_model(self.model).run([name], {each: arrays[each] for each in self._inputs})
        chosen: NDArray[np.float32] = found.reshape(-1, found.shape[-1])[self._batch.flat]
        return chosen

    def normalize(self) -> None:
        """Settle what exporters do differently."""
        normalize(self.model, self._inputs, self._token)

    def fuse(self) -> None:
        """Fuse layer norms and GELUs."""
        self.model, self.fusions = fuse(self.model)

    def attend(self) -> None:
        """Put attention together."""
        fuse_attention(self.model.graph, self._observed())
        # Some come with the file.
        kinds = [node.op_type for node in self.model.graph]
        self.fusions["MultiHeadAttention"] = kinds.count("MultiHeadAttention")
        common.RemoveUnusedNodesPass()(self.model)

    def move_rows(self) -> None:
        """Add the serving head, and move its row selections towards the inputs."""
        self._add_head(self._observed())

    def finish(self) -> ServingGraph:
        """Return the serving graph."""
        if self._rows is None:
            # Without the pass the rows are selected where they are asked for: at the logits.
            try:
                with _failures():
                    self._add_head({})
                    found = self.logits()
                _check(found, self.expected)
            except _PassError as error:
                raise ExportError(f"the serving head cannot be added to this graph: it {error}") from error
        assert self._rows is not None  # noqa: S101
        return ServingGraph(self.model, self._inputs, self.fusions, self._rows)

    @property
    def _token(self) -> int:
        return int(self._batch.answers[0])

    def _observed(self) -> _Shapes:
        """Return the shapes of all values after the fusions; they are observed only once."""
        if not self.shapes:
            self.shapes = observe_shapes(self.model, self._inputs, self._token)
        return self.shapes

    def _add_head(self, movable: _Shapes) -> None:
        graph, vocabulary = self.model.graph, self._vocabulary
        # Two selections: first the masks of each text with the batch axis kept, which attention needs, then the rows of
        # all masks, without the slots that texts with fewer masks leave unused. The marker nodes are where each starts.
        by_text, by_row = add_serving_head(self.model, vocabulary)
        named = {each.name: each for each in graph.inputs}
        logits = ("B", "L", vocabulary)
        shapes = movable | {"all_logits": logits} if movable else {}
        texts = move_rows_up(graph, by_text, shapes, text_rows(named["mask_positions"]), vocabulary)
        if shapes:
            shapes[by_text.outputs[0].name or ""] = logits
        rows = move_rows_up(graph, by_row, shapes, flat_rows(named["mask_rows"]), vocabulary)
        for marker in (by_row, by_text):
            source = marker.inputs[0]
            assert source is not None  # noqa: S101
            marker.outputs[0].replace_all_uses_with(source)
            graph.remove(marker, safe=True)
        clean(self.model)
        forget_shapes(graph)
        self.model.ir_version = _IR_VERSION
        self._rows = (len(texts), len(rows))


@contextmanager
def _failures() -> Iterator[None]:
    """Turn any failure into that of the pass: a third-party graph may contain what no pass was tested on."""
    try:
        yield
    except Exception as error:
        kind = "" if isinstance(error, MlmInferError) else f"{type(error).__name__}: "
        raise _PassError(f"failed ({kind}{first_line(error):.300})") from error


def _check(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    difference = float(np.abs(found - expected).max()) if found.shape == expected.shape else float("inf")
    if not difference <= _TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise _PassError(f"changed the logits by {difference:.1e}")
