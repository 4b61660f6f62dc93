"""Decomposes fused operators into the basic ones that the graph passes know.

Some exporters fuse operators for ONNX Runtime on a GPU, or use the Attention operator of newer ONNX versions. On a CPU
most of the fused operators are slower than the separate ones (docs/engine.md), and they hide their dense layers from
int8 and their rows from the row selection.

To support another operator, add a function to `DECOMPOSITIONS`.
"""

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from .graph import add_constant, add_node, constant_of
from .shapes import Observed

__all__ = ["DECOMPOSITIONS"]

_KEPT_ATTRIBUTES = frozenset(["scale", "q_num_heads", "kv_num_heads", "qk_matmul_output_mode", "softmax_precision"])
"""Attributes of Attention that the decomposition supports; all others must be 0, which is their default."""


class _Writer:
    """Adds the nodes that replace a fused node."""

    def __init__(self, graph: ir.Graph, node: ir.Node, found: Observed) -> None:
        self.graph, self.node, self.found = graph, node, found
        self.inputs: list[ir.Value | None] = [*node.inputs, *[None] * 9][:9]
        self.kind = found.kinds[node.outputs[0].name or ""]

    def shape(self, value: ir.Value | None) -> tuple[int | str, ...]:
        """Return the shape of a value."""
        return self.found.shapes.get(value.name or "", ("?",)) if value is not None else ("?",)

    def number(self, name: str, value: float) -> ir.Value:
        """Add a scalar constant of the node's output type."""
        return add_constant(self.graph, name, np.array(value, self.kind))

    def add(self, op: str, parts: Sequence[ir.Value | None], *, domain: str = "", **attributes: object) -> ir.Value:
        """Add a node."""
        return add_node(self.graph, op, parts, attributes, domain=domain, before=self.node)

    def replace(self, *results: ir.Value | None) -> None:
        """Replace the outputs of the node in order, None leaving one as it is, and remove the node."""
        for output, result in zip(self.node.outputs, results, strict=False):
            if result is not None:
                output.replace_all_uses_with(result, replace_graph_outputs=True)
        self.graph.remove(self.node, safe=True)

    def only(self, *places: int) -> bool:
        """Return whether only the outputs at the given indices are used."""
        outputs = enumerate(self.node.outputs)
        return all(at in places or not (each.uses() or each.is_graph_output()) for at, each in outputs)


def _attention(graph: ir.Graph, node: ir.Node, found: Observed) -> None:
    """Attention of the ONNX standard, on [batch, heads, length, width]: two matmuls and a softmax."""
    write = _Writer(graph, node, found)
    query, key, value, mask, *more = write.inputs
    shape = write.shape(query)
    unsupported = [name for name, each in node.attributes.items() if name not in _KEPT_ATTRIBUTES and each.value]
    if len(shape) != 4 or not isinstance(shape[3], int) or unsupported or any(more) or not write.only(0):
        return
    # Grouped-query attention, in which several heads share their keys, would need the keys repeated.
    if write.shape(key)[1:2] != shape[1:2]:
        return
    turned = write.add("Transpose", [key], perm=[0, 1, 3, 2])
    scale = write.number("attention_scale", node.attributes.get_float("scale", shape[3] ** -0.5))
    scores = write.add("Mul", [write.add("MatMul", [query, turned]), scale])
    if mask is not None:
        if found.kinds.get(mask.name or "") == np.bool_:
            # Boolean masks become additive ones: 0 for visible keys, the lowest finite number for hidden ones. With
            # -inf, a text without any visible key would give NaN.
            least = float(np.finfo(write.kind).min)
            mask = write.add("Where", [mask, write.number("attended", 0), write.number("ignored", least)])
        scores = write.add("Add", [scores, mask])
    write.replace(write.add("MatMul", [write.add("Softmax", [scores], axis=-1), value]))


def _skip_norm(graph: ir.Graph, node: ir.Node, found: Observed) -> None:
    """SkipLayerNormalization: an addition and a layer norm."""
    write = _Writer(graph, node, found)
    one, other, gain, shift, bias = write.inputs[:5]
    # Outputs 1 and 2, mean and variance, are for training; output 3 is the sum, the residual of the next layer.
    if not write.only(0, 3):
        return
    total = write.add("Add", [one, other])
    if bias is not None:
        total = write.add("Add", [total, bias])
    epsilon = node.attributes.get_float("epsilon", 1e-12)
    norm = write.add("LayerNormalization", [total, gain, shift], axis=-1, epsilon=epsilon)
    write.replace(norm, None, None, total)


def _bias_gelu(graph: ir.Graph, node: ir.Node, found: Observed) -> None:
    """BiasGelu: an addition and a GELU."""
    write = _Writer(graph, node, found)
    write.replace(write.add("Gelu", [write.add("Add", write.inputs[:2])], domain="com.microsoft"))


def _fused_matmul(graph: ir.Graph, node: ir.Node, found: Observed) -> None:
    """FusedMatMul: a transposition of the second matrix, a matmul and a scale factor."""
    write = _Writer(graph, node, found)
    left, right = write.inputs[:2]
    given = {name: each.value for name, each in node.attributes.items()}
    if given.get("transA") or given.get("transBatchA") or given.get("transBatchB"):
        return
    if given.get("transB"):
        axes = list(range(len(write.shape(right))))
        right = write.add("Transpose", [right], perm=[*axes[:-2], axes[-1], axes[-2]])
    product = write.add("MatMul", [left, right])
    factor = float(given.get("alpha", 1.0))
    write.replace(product if factor == 1 else write.add("Mul", [product, write.number("product_scale", factor)]))


def _packed_attention(graph: ir.Graph, node: ir.Node, found: Observed) -> None:
    """Attention of ONNX Runtime: Q, K and V projections with their weights in one matrix, and MultiHeadAttention."""
    write = _Writer(graph, node, found)
    source, packed, shifts, mask, past, bias, *more = write.inputs
    weights, offsets = constant_of(packed), constant_of(shifts)
    given = {name: each.value for name, each in node.attributes.items()}
    options = ("unidirectional", "do_rotary", "qkv_hidden_sizes")
    unsupported = past or any(more) or any(given.get(name) for name in options)
    if weights is None or weights.shape[1] % 3 or unsupported or not write.only(0):
        return
    dense = []
    for name, matrix, offset in zip(
        ("query", "key", "value"),
        np.split(weights, 3, axis=1),
        [None] * 3 if offsets is None else np.split(offsets, 3),
        strict=True,
    ):
        # A slice of the packed matrix refers to all of it, so each part needs its own memory.
        held = add_constant(graph, f"{node.outputs[0].name}_{name}", np.ascontiguousarray(matrix))
        value = write.add("MatMul", [source, held])
        if offset is not None:
            value = write.add("Add", [value, add_constant(graph, f"{held.name}_bias", offset)])
        dense.append(value)
    wanted = {name: given[name] for name in ("num_heads", "scale", "mask_filter_value") if name in given}
    inputs = [*dense, None, mask, bias]
    write.replace(write.add("MultiHeadAttention", inputs, domain="com.microsoft", **wanted))


def _embeddings(graph: ir.Graph, node: ir.Node, found: Observed) -> None:
    """EmbedLayerNormalization: embedding lookups, their sum, a layer norm, and the number of tokens of each text."""
    write = _Writer(graph, node, found)
    ids, segments, words, places, kinds, gain, shift, mask, positions = write.inputs
    # Without `positions`, the positions are 0, 1, 2, ...: the first rows of the position table.
    if positions is not None or not write.only(0, *([] if mask is None else [1]), 2):
        return
    first, last, axis = (add_constant(graph, f"embedding_{each}", np.array([each])) for each in (0, 1, 0))
    length = write.add("Shape", [ids], start=1, end=2)
    total = write.add("Add", [write.add("Gather", [words, ids]), write.add("Slice", [places, first, length, axis])])
    if segments is not None:
        total = write.add("Add", [total, write.add("Gather", [kinds, segments])])
    epsilon = node.attributes.get_float("epsilon", 1e-12)
    norm = write.add("LayerNormalization", [total, gain, shift], axis=-1, epsilon=epsilon)
    # Output 1 is the number of tokens of each text, which ONNX Runtime's fused attention takes as its mask.
    counts = None if mask is None else write.add("ReduceSum", [mask, last], keepdims=0)
    write.replace(norm, counts, total)


DECOMPOSITIONS: dict[str, dict[str, Callable[[ir.Graph, ir.Node, Observed], None]]] = {
    "": {"Attention": _attention},
    "com.microsoft": {
        "Attention": _packed_attention,
        "BiasGelu": _bias_gelu,
        "EmbedLayerNormalization": _embeddings,
        "FusedMatMul": _fused_matmul,
        "SkipLayerNormalization": _skip_norm,
    },
}
"""By domain and operator: the function that replaces a node in place.

It leaves a node unchanged that uses an input or attribute that the decomposition does not support.
"""
