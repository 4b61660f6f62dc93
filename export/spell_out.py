"""Operators that stand for several others, written as those, which the passes know.

Some exporters fuse a graph for the ONNX Runtime of a GPU, or for a version of ONNX that has attention. On a CPU most
of that is slower than its parts (docs/engine.md), and none of it shows its dense layers to int8 or its rows to the
selection of rows.
"""

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from .graph import add_constant, add_node, constant_of
from .shapes import Observed

__all__ = ["SPELLED_OUT"]

_KEPT_ATTRIBUTES = frozenset(["scale", "q_num_heads", "kv_num_heads", "qk_matmul_output_mode", "softmax_precision"])
"""What an Attention may say and still be plain attention; of the rest only zeros."""


class _Writer:
    """Adds nodes before one that is to be replaced."""

    def __init__(self, graph: ir.Graph, node: ir.Node, found: Observed) -> None:
        self.graph, self.node, self.found = graph, node, found
        self.inputs: list[ir.Value | None] = [*node.inputs, *[None] * 9][:9]
        self.kind = found.kinds[node.outputs[0].name or ""]

    def shape(self, value: ir.Value | None) -> tuple[int | str, ...]:
        """Return the shape of a value."""
        return self.found.shapes.get(value.name or "", ("?",)) if value is not None else ("?",)

    def number(self, name: str, value: float) -> ir.Value:
        """Add a constant of the type that the node gives."""
        return add_constant(self.graph, name, np.array(value, self.kind))

    def add(self, op: str, parts: Sequence[ir.Value | None], *, domain: str = "", **attributes: object) -> ir.Value:
        """Add a node."""
        return add_node(self.graph, op, parts, attributes, domain=domain, before=self.node)

    def replace(self, *results: ir.Value | None) -> None:
        """Put values in the place of the outputs of the node, and take it away."""
        for output, result in zip(self.node.outputs, results, strict=False):
            if result is not None:
                output.replace_all_uses_with(result, replace_graph_outputs=True)
        self.graph.remove(self.node, safe=True)

    def only(self, *places: int) -> bool:
        """Tell whether nothing takes any output of the node but those at some places."""
        outputs = enumerate(self.node.outputs)
        return all(at in places or not (each.uses() or each.is_graph_output()) for at, each in outputs)


def _spell_out_attention(graph: ir.Graph, node: ir.Node, found: Observed) -> None:
    """Attention of ONNX, of [batch, heads, length, width]: two products and a softmax."""
    write = _Writer(graph, node, found)
    query, key, value, mask, *more = write.inputs
    shape = write.shape(query)
    strange = [name for name, each in node.attributes.items() if name not in _KEPT_ATTRIBUTES and each.value]
    if len(shape) != 4 or not isinstance(shape[3], int) or strange or any(more) or not write.only(0):
        return
    if write.shape(key)[1:2] != shape[1:2]:
        return
    turned = write.add("Transpose", [key], perm=[0, 1, 3, 2])
    scale = write.number("attention_scale", node.attributes.get_float("scale", shape[3] ** -0.5))
    scores = write.add("Mul", [write.add("MatMul", [query, turned]), scale])
    if mask is not None:
        if found.kinds.get(mask.name or "") == np.bool_:
            least = float(np.finfo(write.kind).min)
            mask = write.add("Where", [mask, write.number("attended", 0), write.number("ignored", least)])
        scores = write.add("Add", [scores, mask])
    write.replace(write.add("MatMul", [write.add("Softmax", [scores], axis=-1), value]))


def _skip_norm(graph: ir.Graph, node: ir.Node, found: Observed) -> None:
    """SkipLayerNormalization: a sum, and the norm of it."""
    write = _Writer(graph, node, found)
    one, other, gain, shift, bias = write.inputs[:5]
    if not write.only(0, 3):
        return
    total = write.add("Add", [one, other])
    if bias is not None:
        total = write.add("Add", [total, bias])
    epsilon = node.attributes.get_float("epsilon", 1e-12)
    norm = write.add("LayerNormalization", [total, gain, shift], axis=-1, epsilon=epsilon)
    write.replace(norm, None, None, total)


def _bias_gelu(graph: ir.Graph, node: ir.Node, found: Observed) -> None:
    """BiasGelu: a sum, and the GELU of it."""
    write = _Writer(graph, node, found)
    write.replace(write.add("Gelu", [write.add("Add", write.inputs[:2])], domain="com.microsoft"))


def _fused_product(graph: ir.Graph, node: ir.Node, found: Observed) -> None:
    """FusedMatMul: a product with a matrix that is turned, and a factor."""
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
    """Attention of ONNX Runtime: three dense layers with their weights in one matrix, and a MultiHeadAttention."""
    write = _Writer(graph, node, found)
    source, packed, shifts, mask, past, bias, *more = write.inputs
    weights, offsets = constant_of(packed), constant_of(shifts)
    given = {name: each.value for name, each in node.attributes.items()}
    odd = given.get("unidirectional") or given.get("do_rotary") or given.get("qkv_hidden_sizes") or past or any(more)
    if weights is None or weights.shape[1] % 3 or odd or not write.only(0):
        return
    dense = []
    for name, matrix, offset in zip(
        ("query", "key", "value"),
        np.split(weights, 3, axis=1),
        [None] * 3 if offsets is None else np.split(offsets, 3),
        strict=True,
    ):
        held = add_constant(graph, f"{node.outputs[0].name}_{name}", np.ascontiguousarray(matrix))
        value = write.add("MatMul", [source, held])
        if offset is not None:
            value = write.add("Add", [value, add_constant(graph, f"{held.name}_bias", offset)])
        dense.append(value)
    wanted = {name: given[name] for name in ("num_heads", "scale", "mask_filter_value") if name in given}
    inputs = [*dense, None, mask, bias]
    write.replace(write.add("MultiHeadAttention", inputs, domain="com.microsoft", **wanted))


def _embeddings(graph: ir.Graph, node: ir.Node, found: Observed) -> None:
    """EmbedLayerNormalization: lookups, their sum and its norm, and how many tokens each text has."""
    write = _Writer(graph, node, found)
    ids, segments, words, places, kinds, gain, shift, mask, positions = write.inputs
    if positions is not None or not write.only(0, *([] if mask is None else [1]), 2):
        return
    first, last, axis = (add_constant(graph, f"embedding_{each}", np.array([each])) for each in (0, 1, 0))
    length = write.add("Shape", [ids], start=1, end=2)
    total = write.add("Add", [write.add("Gather", [words, ids]), write.add("Slice", [places, first, length, axis])])
    if segments is not None:
        total = write.add("Add", [total, write.add("Gather", [kinds, segments])])
    epsilon = node.attributes.get_float("epsilon", 1e-12)
    norm = write.add("LayerNormalization", [total, gain, shift], axis=-1, epsilon=epsilon)
    counts = None if mask is None else write.add("ReduceSum", [mask, last], keepdims=0)
    write.replace(norm, counts, total)


SPELLED_OUT: dict[str, dict[str, Callable[[ir.Graph, ir.Node, Observed], None]]] = {
    "": {"Attention": _spell_out_attention},
    "com.microsoft": {
        "Attention": _packed_attention,
        "BiasGelu": _bias_gelu,
        "EmbedLayerNormalization": _embeddings,
        "FusedMatMul": _fused_product,
        "SkipLayerNormalization": _skip_norm,
    },
}
"""By domain and operator: a function that writes one out in place, or leaves it where it holds more than its parts."""
