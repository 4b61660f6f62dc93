"""Fuses attention into MultiHeadAttention nodes, by matching the graph instead of knowing architectures.

ONNX Runtime's own fusion matches the exports of BERT and RoBERTa, but not DistilBERT's. It also includes the
projections, which could then neither be quantized nor run for selected query rows.
"""

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .graph import add_constant, add_node, constant_of
from .masks import LOW, Hidden, Window, addend_of, is_padding_mask, tells_empty_texts
from .rotary import Rotation, Rotator, rotation_of
from .shapes import Shape

__all__ = ["fuse_attention"]

_HEADS_FIRST = (0, 2, 1, 3)
_HEADS_FIRST_TRANSPOSED = (0, 2, 3, 1)
"""Permutations of [batch, length, heads, width] for queries and values, and for keys."""
_AFTER_ROTATION: dict[tuple[int, ...], tuple[int, ...]] = {
    _HEADS_FIRST: (0, 1, 2, 3),
    _HEADS_FIRST_TRANSPOSED: (0, 1, 3, 2),
}
"""Permutations of [batch, heads, length, width], in which queries and keys are rotated, for the same."""


@dataclass(slots=True)
class _Heads:
    """A value before it is split into heads, [batch, length, heads * width], with what is done to it after that."""

    value: ir.Value
    scale: float
    rotation: Rotation | None


@dataclass(slots=True)
class _Scores:
    """Q K^T, and what is done to it before the softmax."""

    product: ir.Node
    scale: float
    masked: bool
    bias: ir.Value | Window | None


@dataclass(slots=True)
class _Match:
    query: _Heads
    key: _Heads
    value: _Heads
    heads: int
    scores: _Scores
    last: ir.Node


def fuse_attention(graph: ir.Graph, shapes: dict[str, Shape]) -> int:
    """Replace every softmax(scale * Q K^T + bias + padding mask) V by a MultiHeadAttention node.

    A mask is a padding mask if it depends on `attention_mask` alone and is the same for every query. A bias must be the
    same for every text, such as MPNet's relative positions. Any other attention is not changed. Padding must be on the
    right or left of whole texts, as given by `attention_mask`.

    Args:
        graph: The graph, modified in place; unused nodes remain.
        shapes: Symbolic shapes by value name; those of the new values are added.

    Returns:
        The number of fused attentions.
    """
    found = [match for node in graph if node.op_type == "Softmax" if (match := _match(node, shapes))]
    writer = _Writer(graph, shapes)
    for match in found:
        scores = match.scores
        fused = add_node(
            graph,
            "MultiHeadAttention",
            [
                *(writer.rotated(each, match.last) for each in (match.query, match.key)),
                match.value.value,
                None,
                writer.padding() if scores.masked else None,
                writer.bias(scores.bias, match.last) if isinstance(scores.bias, Window) else scores.bias,
            ],
            {"num_heads": match.heads, "scale": scores.scale * match.query.scale * match.key.scale},
            domain="com.microsoft",
            before=match.last,
        )
        old = match.last.outputs[0]
        fused.name = f"{old.name}_attention"
        shapes[fused.name] = shapes[old.name or ""]
        old.replace_all_uses_with(fused, replace_graph_outputs=True)
    if found:
        graph.opset_imports.setdefault("com.microsoft", 1)
    return len(found)


class _Writer:
    """Adds the inputs of fused nodes, each of which all layers share."""

    def __init__(self, graph: ir.Graph, shapes: dict[str, Shape]) -> None:
        self._graph, self._shapes = graph, shapes
        self._rotator = Rotator(graph, shapes)
        self._padding: ir.Value | None = None
        self._biases: dict[tuple[ir.Value, bool], ir.Value] = {}

    def rotated(self, heads: _Heads, before: ir.Node) -> ir.Value:
        """Return queries or keys, rotated if the model rotates them."""
        return self._rotator.rotate(heads.value, heads.rotation, before) if heads.rotation else heads.value

    def padding(self) -> ir.Value:
        """Return the padding mask, which the operator takes as int32 [batch, keys]."""
        if self._padding is None:
            graph = self._graph
            (mask,) = (each for each in graph.inputs if each.name == "attention_mask")
            self._padding = add_node(graph, "Cast", [mask], {"to": ir.DataType.INT32}, before=graph[0])
            self._padding.name = "key_padding_mask"
            self._shapes["key_padding_mask"] = ("B", "L")
        return self._padding

    def bias(self, window: Window, before: ir.Node) -> ir.Value:
        """Return the bias that hides what is outside a window, [1, 1, queries, keys]."""
        key = (window.condition, window.visible)
        if key not in self._biases:
            graph = self._graph
            inside, outside = (
                add_constant(graph, name, np.array(number, np.float32))
                for name, number in (("inside_window", 0), ("outside_window", LOW))
            )
            choices = (inside, outside) if window.visible else (outside, inside)
            bias = self._biases[key] = add_node(graph, "Where", [window.condition, *choices], before=before)
            bias.name = f"{window.condition.name}_bias"
            self._shapes[bias.name] = self._shapes[window.condition.name or ""]
        return self._biases[key]


def _match(softmax: ir.Node, shapes: dict[str, Shape]) -> _Match | None:
    # From the softmax forwards: weights times V, then heads moved back and joined.
    weights = _past_guards(softmax.outputs[0], shapes)
    product = _only_user(weights, "MatMul")
    if product is None or product.inputs[0] is not weights:
        return None
    turned = _only_user(_past_guards(product.outputs[0], shapes), "Transpose")
    last = _only_user(turned.outputs[0], "Reshape") if turned is not None and _perm(turned) == _HEADS_FIRST else None
    # And backwards: mask or bias, scale, Q K^T, and the projections split into heads.
    scores = _scores(softmax.inputs[0], shapes)
    if last is None or scores is None:
        return None
    left, right = scores.product.inputs
    query, key = _heads(left, _HEADS_FIRST, shapes), _heads(right, _HEADS_FIRST_TRANSPOSED, shapes)
    value = _heads(product.inputs[1], _HEADS_FIRST, shapes)
    if query is None or key is None or value is None:
        return None
    shape = shapes.get(left.name or "") if left is not None else None
    joined = shapes.get(last.outputs[0].name or "", ())
    # Only whole texts: some local windows split the length into blocks, which the operator does not do.
    whole = all(shapes.get(each.value.name or "", ())[:2] == ("B", "L") for each in (query, key, value))
    if shape is None or len(shape) != 4 or not isinstance(shape[1], int) or joined[:2] != ("B", "L") or not whole:
        return None
    # Some models scale the queries or keys before the product. Values that are scaled or rotated have no equivalent in
    # the operator.
    plain = value.scale == 1 and value.rotation is None
    return _Match(query, key, value, shape[1], scores, last) if plain else None


def _only_user(value: ir.Value, op_type: str) -> ir.Node | None:
    """Return the only user of a value, not counting nodes that read its shape."""
    users = [use.node for use in value.uses() if use.node.op_type != "Shape"]
    return users[0] if len(users) == 1 and users[0].op_type == op_type else None


def _past_guards(value: ir.Value, shapes: dict[str, Shape]) -> ir.Value:
    """Return the value behind a guard that replaces the attention of a text without tokens by zeros, if there is one.

    Newer exporters add such guards against the NaN of a softmax over masked keys only. No text is without tokens here,
    and MultiHeadAttention gives no NaN, so the guard can be dropped. It is a Where whose condition is IsNaN of the
    value, or follows from `attention_mask` for a whole text.
    """
    users = [use.node for use in value.uses() if use.node.op_type != "Shape"]
    choice = next((each for each in users if each.op_type == "Where" and each.inputs[2] is value), None)
    zero = constant_of(choice.inputs[1]) if choice is not None else None
    if choice is None or zero is None or zero.any():
        return value
    condition = choice.inputs[0]
    test = condition.producer() if condition is not None else None
    if condition is None or test is None:
        return value
    if test.op_type == "IsNaN":
        return choice.outputs[0] if test.inputs[0] is value and set(users) == {choice, test} else value
    return choice.outputs[0] if tells_empty_texts(condition, shapes) and users == [choice] else value


def _perm(node: ir.Node) -> tuple[int, ...]:
    return tuple(node.attributes.get_ints("perm", []))


def _scores(value: ir.Value | None, shapes: dict[str, Shape]) -> _Scores | None:
    """Walk from the softmax back to Q K^T."""
    scale, masked = 1.0, False
    bias: ir.Value | Window | None = None
    while value is not None and (node := value.producer()) is not None:
        if node.op_type == "MatMul":
            return _Scores(node, scale, masked, bias)
        scaled = _scalar_product(node)
        if scaled is not None:
            value, factor = scaled
            scale *= factor
            continue
        sides = [side for side in node.inputs if side is not None]
        if node.op_type == "Add" and len(sides) == 2:
            parts = [addend_of(side, shapes) for side in sides]
            rest = [side for side, part in zip(sides, parts, strict=True) if part is None]
            hidden = next((part for part in parts if part is not None), None)
        elif node.op_type == "Where" and is_padding_mask(sides[0], shapes):
            rest = [side for side in sides[1:] if constant_of(side) is None]
            hidden = Hidden(padding=True, bias=None)
        else:
            return None
        # A factor between the softmax and a sum also applies to the mask or bias, which the fused node does not scale.
        if len(rest) != 1 or hidden is None or scale != 1 or (masked and hidden.padding) or (bias and hidden.bias):
            return None
        masked, bias, value = masked or hidden.padding, bias or hidden.bias, rest[0]
    return None


def _scalar_product(node: ir.Node) -> tuple[ir.Value, float] | None:
    """Return the value and the factor of a multiplication or division by a constant scalar."""
    if node.op_type not in ("Mul", "Div") or len(node.inputs) != 2:
        return None
    constants = [constant_of(each) for each in node.inputs]
    index = next((index for index, each in enumerate(constants) if each is not None and each.size == 1), None)
    if index is None or (node.op_type == "Div" and index == 0):
        return None
    number, value = constants[index], node.inputs[1 - index]
    if number is None or value is None or not math.isfinite(float(number.item())):
        return None
    return value, 1 / float(number.item()) if node.op_type == "Div" else float(number.item())


def _heads(value: ir.Value | None, wanted: tuple[int, ...], shapes: dict[str, Shape]) -> _Heads | None:
    """Walk from a value split into heads back to its [batch, length, width] form."""
    order: tuple[int, ...] = (0, 1, 2, 3)
    factor, rotation = 1.0, None
    while value is not None and (node := value.producer()) is not None:
        scaled = _scalar_product(node)
        if scaled is not None:
            value, number = scaled
            factor *= number
        elif node.op_type == "Transpose":
            perm = _perm(node)
            if len(perm) != 4:
                return None
            order = tuple(perm[axis] for axis in order)
            value = node.inputs[0]
        elif node.op_type == "Reshape" and order == wanted and node.inputs[0] is not None:
            return _Heads(node.inputs[0], factor, rotation)
        elif rotation is None and order == _AFTER_ROTATION[wanted]:
            rotation = rotation_of(value, shapes)
            value = rotation.source if rotation is not None else None
            order, wanted = (0, 1, 2, 3), _HEADS_FIRST
        else:
            return None
    return None
