"""From the graph that Optimum exports to the one that serves."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common

from .attention import fuse_attention
from .fuse import fuse
from .graph import add_serving_head, clean
from .rows import flat_rows, move_rows_up, text_rows
from .shapes import observe_shapes

__all__ = ["ENCODER_INPUTS", "ServingGraph", "build_serving_graph"]

ENCODER_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# Old ONNX Runtimes refuse newer files, and cannot say up to which they read.
_IR_VERSION = 9


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


def build_serving_graph(path: Path, vocabulary: int, token_id: int) -> ServingGraph:
    """Fuse, add the serving head, and move its selections of rows up the graph.

    Args:
        path: What `optimum_export` wrote.
        vocabulary: Width of the logits.
        token_id: An ordinary token, to run the graph with.
    """
    model, fusions = fuse(path)
    graph = model.graph
    inputs = tuple(each.name for each in graph.inputs if each.name in ENCODER_INPUTS)
    shapes = observe_shapes(model, inputs, token_id)
    fusions["MultiHeadAttention"] = fuse_attention(graph, shapes)
    common.RemoveUnusedNodesPass()(model)
    shapes["all_logits"] = ("B", "L", vocabulary)
    by_text, by_row = add_serving_head(model, vocabulary)
    named = {each.name: each for each in graph.inputs}
    texts = move_rows_up(graph, by_text, shapes, text_rows(named["mask_positions"]))
    shapes[by_text.outputs[0].name or ""] = ("B", "L", vocabulary)
    rows = move_rows_up(graph, by_row, shapes, flat_rows(named["mask_rows"]))
    clean(model)
    model.ir_version = _IR_VERSION
    return ServingGraph(model, inputs, fusions, (len(texts), len(rows)))
