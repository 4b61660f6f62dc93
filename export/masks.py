"""Tells what an attention mask hides: padding, keys beyond a window, or both; and what is a bias."""

from dataclasses import dataclass

import onnx_ir as ir

from .graph import constant_of
from .shapes import Shape

__all__ = ["LOW", "Hidden", "Window", "addend_of", "is_padding_mask", "tells_empty_texts"]

_BATCH, _KEYS = -4, -1
"""Axes of scores, [batch, heads, queries, keys]."""

_ELEMENTWISE = frozenset(
    ["Add", "And", "Cast", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "Mul"]
) | {"Not", "Or", "Sub", "Where", "Xor"}
_REDUCTIONS = frozenset(["ReduceMax", "ReduceMin", "ReduceSum"])
_COPIES = frozenset(["Cast", "Expand", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"])
"""Operators whose output elements are those of their input."""

LOW = -1e4
"""Scores at most this low are hidden: it is what MultiHeadAttention itself adds to those of padding."""


@dataclass(frozen=True, slots=True)
class Window:
    """Keys that a query sees, the same for every text.

    Attributes:
        condition: A condition, [1, 1, queries, keys].
        visible: Whether it holds for the keys that are visible, or for those that are hidden.
    """

    condition: ir.Value
    visible: bool


@dataclass(frozen=True, slots=True)
class Hidden:
    """What is added to scores.

    Attributes:
        padding: Whether it hides padding.
        bias: A bias that is the same for every text, a window, or None.
    """

    padding: bool
    bias: ir.Value | Window | None


def addend_of(value: ir.Value, shapes: dict[str, Shape]) -> Hidden | None:
    """Return what a value adds to scores, or None if it is no mask and no bias."""
    if is_padding_mask(value, shapes):
        return Hidden(padding=True, bias=None)
    value = _unexpanded(value)
    if _is_bias(value, shapes):
        return Hidden(padding=False, bias=value)
    window = _window_and_padding(value, shapes)
    return Hidden(padding=True, bias=window) if window is not None else None


def _unexpanded(value: ir.Value) -> ir.Value:
    while (node := value.producer()) is not None and node.op_type == "Expand" and node.inputs[0] is not None:
        value = node.inputs[0]
    return value


def _is_bias(value: ir.Value, shapes: dict[str, Shape]) -> bool:
    shape = shapes.get(value.name or "", ())
    return len(shape) == 4 and shape[0] == 1 and isinstance(shape[1], int) and shape[2:] == ("L", "L")


def _window_and_padding(value: ir.Value, shapes: dict[str, Shape]) -> Window | None:
    """Return the window of a mask that hides padding and whatever is outside the window."""
    node = value.producer()
    if node is None or node.op_type != "Where":
        return None
    condition, *choices = (each for each in node.inputs if each is not None)
    hidden = [_is_low(each) for each in choices]
    if _is_window(condition, shapes) and True in hidden:
        # Inside the window, the padding mask.
        other = choices[hidden.index(False)] if False in hidden else None
        fits = other is not None and is_padding_mask(other, shapes)
        return Window(condition, visible=hidden[1]) if fits else None
    both = condition.producer()
    zero = constant_of(choices[0])
    if both is None or both.op_type != "And" or zero is None or zero.any() or hidden != [False, True]:
        return None
    for window, padding in (both.inputs, both.inputs[::-1]):
        if window is not None and padding is not None and _is_window(window, shapes):
            return Window(window, visible=True) if is_padding_mask(padding, shapes) else None
    return None


def _is_low(value: ir.Value) -> bool:
    constant = constant_of(value)
    return constant is not None and constant.size == 1 and bool(constant <= LOW)


def _is_window(value: ir.Value, shapes: dict[str, Shape]) -> bool:
    return shapes.get(value.name or "", ()) == (1, 1, "L", "L") and not _sources(value)


def is_padding_mask(value: ir.Value, shapes: dict[str, Shape]) -> bool:
    """Return whether a value depends on `attention_mask` only and is the same for all queries, expanded or not."""
    value = _unexpanded(value)
    shape = shapes.get(value.name or "", ())
    if value.producer() is None or len(shape) != 4 or shape[1] != 1 or shape[3] != "L":
        return False
    return _varying(value, shapes) <= {_BATCH, _KEYS} and _sources(value) == {"attention_mask"}


def tells_empty_texts(value: ir.Value, shapes: dict[str, Shape]) -> bool:
    """Return whether a value depends on `attention_mask` only and is one for all queries and keys of a text."""
    return _varying(value, shapes) <= {_BATCH} and _sources(value) == {"attention_mask"}


def _sources(value: ir.Value) -> set[str]:
    """Return the inputs of the graph whose values, and not only shapes, a value depends on."""
    found: set[str] = set()
    pending, seen = [value], set[ir.Value]()
    while pending:
        each = pending.pop()
        if each in seen:
            continue
        seen.add(each)
        producer = each.producer()
        if each.is_graph_input():
            found.add(each.name or "")
        elif producer is not None and producer.op_type != "Shape":
            # The other inputs of these operators are shapes and indices.
            first_only = producer.op_type in ("Expand", "Reshape", "Unsqueeze", "Slice")
            inputs = producer.inputs[:1] if first_only else producer.inputs
            pending.extend(source for source in inputs if source is not None)
    return found


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
