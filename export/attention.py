"""Fuses attention into MultiHeadAttention nodes, by matching the graph instead of knowing architectures.

ONNX Runtime's own fusion matches the exports of BERT and RoBERTa, but not DistilBERT's. It also includes the
projections, which could then neither be quantized nor run for selected query rows.
"""

import math
from dataclasses import dataclass

import onnx_ir as ir

from .graph import add_node, constant_of
from .shapes import Shape

__all__ = ["fuse_attention"]

_HEADS_FIRST = (0, 2, 1, 3)
_HEADS_FIRST_TRANSPOSED = (0, 2, 3, 1)
"""Permutations of [batch, length, heads, width] for queries and values, and for keys."""

_BATCH, _KEYS = -4, -1
"""Axes of scores, [batch, heads, queries, keys]."""

_ELEMENTWISE = frozenset(
    ["Add", "And", "Cast", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "Mul"]
) | {"Not", "Or", "Sub", "Where", "Xor"}
_REDUCTIONS = frozenset(["ReduceMax", "ReduceMin", "ReduceSum"])
_COPIES = frozenset(["Cast", "Expand", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"])
"""Operators whose output elements are those of their input."""


@dataclass(slots=True)
class _Match:
    query: ir.Value
    key: ir.Value
    value: ir.Value
    heads: int
    scale: float
    masked: bool
    bias: ir.Value | None
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
    padding: ir.Value | None = None
    for match in found:
        if match.masked and padding is None:
            (mask,) = (each for each in graph.inputs if each.name == "attention_mask")
            # One cast for all layers: the operator takes the mask as int32 [batch, keys].
            padding = add_node(graph, "Cast", [mask], {"to": ir.DataType.INT32}, before=graph[0])
            padding.name = "key_padding_mask"
            shapes["key_padding_mask"] = ("B", "L")
        fused = add_node(
            graph,
            "MultiHeadAttention",
            [match.query, match.key, match.value, None, padding if match.masked else None, match.bias],
            {"num_heads": match.heads, "scale": match.scale},
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
    query_key, scale, masked, bias = scores
    query, key = _heads(query_key.inputs[0], _HEADS_FIRST), _heads(query_key.inputs[1], _HEADS_FIRST_TRANSPOSED)
    value = _heads(product.inputs[1], _HEADS_FIRST)
    if query is None or key is None or value is None:
        return None
    shape = shapes.get(query_key.inputs[0].name or "") if query_key.inputs[0] is not None else None
    joined = shapes.get(last.outputs[0].name or "", ())
    # Only whole texts: a local window splits the length into blocks, which the operator does not do.
    whole = all(shapes.get(each.name or "", ())[:2] == ("B", "L") for each in (query[0], key[0], value[0]))
    if shape is None or len(shape) != 4 or not isinstance(shape[1], int) or joined[:2] != ("B", "L") or not whole:
        return None
    # Some models scale the queries or keys before the product. A scaled value has no equivalent in the operator.
    total = scale * query[1] * key[1]
    return _Match(query[0], key[0], value[0], shape[1], total, masked, bias, last) if value[1] == 1 else None


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
    empty = _varying(condition, shapes) <= {_BATCH} and _sources(condition) == {"attention_mask"}
    return choice.outputs[0] if empty and users == [choice] else value


def _perm(node: ir.Node) -> tuple[int, ...]:
    return tuple(node.attributes.get_ints("perm", []))


def _scores(value: ir.Value | None, shapes: dict[str, Shape]) -> tuple[ir.Node, float, bool, ir.Value | None] | None:
    """Walk from the softmax back to Q K^T; return that node, the scale, whether padding is masked, and the bias."""
    scale, masked, bias = 1.0, False, None
    while value is not None and (node := value.producer()) is not None:
        if node.op_type == "MatMul":
            return node, scale, masked, bias
        scaled = _scalar_product(node)
        if scaled is not None:
            value, factor = scaled
            scale *= factor
            continue
        sides = [side for side in node.inputs if side is not None]
        biases: list[ir.Value] = []
        if node.op_type == "Add" and len(node.inputs) == 2:
            masks = [side for side in sides if _is_padding_mask(side, shapes)]
            biases = [source for side in sides if _is_bias(source := _unexpanded(side), shapes)]
        elif node.op_type == "Where" and _is_padding_mask(sides[0], shapes):
            masks = sides[:1]
            sides = [side for side in sides if constant_of(side) is None]
        else:
            return None
        rest = [side for side in sides if side not in masks and _unexpanded(side) not in biases]
        # A factor between the softmax and a sum also applies to the mask or bias, which the fused node does not scale.
        if len(masks) + len(biases) != 1 or len(rest) != 1 or scale != 1 or (masks and masked) or (biases and bias):
            return None
        masked, bias, value = masked or bool(masks), biases[0] if biases else bias, rest[0]
    return None


def _unexpanded(value: ir.Value) -> ir.Value:
    while (node := value.producer()) is not None and node.op_type == "Expand" and node.inputs[0] is not None:
        value = node.inputs[0]
    return value


def _is_bias(value: ir.Value, shapes: dict[str, Shape]) -> bool:
    shape = shapes.get(value.name or "", ())
    return len(shape) == 4 and shape[0] == 1 and isinstance(shape[1], int) and shape[2:] == ("L", "L")


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


def _heads(value: ir.Value | None, wanted: tuple[int, ...]) -> tuple[ir.Value, float] | None:
    """Walk from a value split into heads back to its [batch, length, width] form; return that and the scale."""
    order: tuple[int, ...] = (0, 1, 2, 3)
    factor = 1.0
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
            return node.inputs[0], factor
        else:
            return None
    return None


def _is_padding_mask(value: ir.Value, shapes: dict[str, Shape]) -> bool:
    """Return whether a value depends on `attention_mask` only and is the same for all queries, expanded or not."""
    value = _unexpanded(value)
    shape = shapes.get(value.name or "", ())
    if value.producer() is None or len(shape) != 4 or shape[1] != 1 or shape[3] != "L":
        return False
    return _varying(value, shapes) <= {_BATCH, _KEYS} and _sources(value) == {"attention_mask"}


def _sources(value: ir.Value) -> set[str]:
    """Return the inputs of the graph whose values, and not only shapes, a value depends on."""
    sources: set[str] = set()
    pending, seen = [value], set[ir.Value]()
    while pending:
        each = pending.pop()
        if each in seen:
            continue
        seen.add(each)
        producer = each.producer()
        if each.is_graph_input():
            sources.add(each.name or "")
        elif producer is not None and producer.op_type != "Shape":
            # The other inputs of these operators are shapes and indices.
            first_only = producer.op_type in ("Expand", "Reshape", "Unsqueeze", "Slice")
            inputs = producer.inputs[:1] if first_only else producer.inputs
            pending.extend(source for source in inputs if source is not None)
    return sources


def _varying(value: ir.Value, shapes: dict[str, Shape]) -> set[int]:
    """Return the axes, counted from the last (-1), along which the elements of a value may differ."""
    shape = shapes.get(value.name or "", ("?",) * 9)
    # An axis of size 1 cannot vary. From there on, a value varies where its inputs do.
    own = {axis - len(shape) for axis, size in enumerate(shape) if size != 1}
    node = value.producer()
    if node is None or not own:
        return own
    inputs = [each for each in node.inputs if each is not None]
    if node.op_type == "Expand":
        return own & _varying(inputs[0], shapes)
    if node.op_type in _REDUCTIONS and node.attributes.get_int("keepdims", 1) == 1:
        return own & _varying(inputs[0], shapes)
    if node.op_type not in _ELEMENTWISE:
        return own
    # Newer exporters build the mask from comparisons of positions, some of which are always true.
    if node.op_type == "GreaterOrEqual":
        least = constant_of(inputs[1])
        if least is not None and (least <= 0).all() and _is_not_negative(inputs[0]):
            return set()
    return own & set().union(*(_varying(each, shapes) for each in inputs))


def _is_not_negative(value: ir.Value) -> bool:
    """Return whether a value consists of non-negative positions: a Range, reshaped or with constants added."""
    node = value.producer()
    while node is not None and (node.op_type in _COPIES or _adds_to(node)) and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is None or node.op_type != "Range":
        return False
    start, step = (constant_of(node.inputs[at]) for at in (0, 2))
    return start is not None and step is not None and bool(start >= 0 and step > 0)


def _adds_to(node: ir.Node) -> bool:
    added = constant_of(node.inputs[1]) if node.op_type == "Add" else None
    return added is not None and bool((added >= 0).all())
