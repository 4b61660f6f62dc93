"""Recognizes rotary positions in a graph, and writes them as RotaryEmbedding nodes.

Exporters write a rotation as eight nodes on [batch, heads, length, width]. The operator of ONNX Runtime takes
[batch, length, heads * width], as dense layers give it and MultiHeadAttention takes it, so no axes are moved.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .graph import add_constant, add_node, constant_of
from .shapes import Shape

__all__ = ["Rotation", "Rotator", "rotation_of"]


@dataclass(frozen=True, slots=True)
class Rotation:
    """A rotation of pairs of channels by angles that grow with the position.

    Attributes:
        source: What is rotated, [batch, heads, length, width].
        cos: Cosines of the angles by position, each twice: [..., length, width], the axes before being 1.
        sin: The sines.
        interleaved: Whether the pairs are neighbours, instead of channel i and i + width / 2.
    """

    source: ir.Value
    cos: ir.Value
    sin: ir.Value
    interleaved: bool


def rotation_of(value: ir.Value, shapes: dict[str, Shape]) -> Rotation | None:
    """Return the rotation that computes a value as source * cos + turned(source) * sin, or None."""
    node = value.producer()
    shape = shapes.get(value.name or "", ())
    if node is None or node.op_type != "Add" or len(shape) != 4 or shape[2] != "L" or not isinstance(shape[3], int):
        return None
    factors = [_factors(each, shape, shapes) for each in node.inputs]
    for plain, turned in (factors, factors[::-1]):
        if plain is None or turned is None:
            continue
        interleaved = _turns(turned[0], plain[0], shape[3])
        if interleaved is not None:
            return Rotation(plain[0], plain[1], turned[1], interleaved)
    return None


def _factors(product: ir.Value | None, shape: Shape, shapes: dict[str, Shape]) -> tuple[ir.Value, ir.Value] | None:
    """Return the factors of a product: a value of the given shape, and a table with one row per position."""
    node = product.producer() if product is not None else None
    if node is None or node.op_type != "Mul":
        return None
    for value, table in (node.inputs, node.inputs[::-1]):
        if value is None or table is None or shapes.get(value.name or "") != shape:
            continue
        found = shapes.get(table.name or "", ())
        if found[-2:] == shape[2:] and all(size == 1 for size in found[:-2]):
            return value, table
    return None


def _turns(value: ir.Value, source: ir.Value, width: int) -> bool | None:
    """Return how a value is the source with each pair (a, b) replaced by (-b, a): whether interleaved, or None."""
    node, half = value.producer(), width // 2
    interleaved = node is not None and node.op_type == "Reshape"
    if interleaved and node is not None:
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    if node is None or node.op_type != "Concat" or len(node.inputs) != 2:
        return None
    if node.attributes.get_int("axis", 0) not in (-1, 4 if interleaved else 3):
        return None
    taken = []
    for each, op_type in zip(node.inputs, ("Neg", None), strict=True):
        part = _behind(each, "Unsqueeze") if interleaved else each
        part = _behind(part, op_type) if op_type is not None else part
        taken.append(_slice(part, source, width))
    if interleaved:
        return True if taken == [range(1, width, 2), range(0, width, 2)] else None
    return False if taken == [range(half, width), range(half)] else None


def _behind(value: ir.Value | None, op_type: str) -> ir.Value | None:
    node = value.producer() if value is not None else None
    if node is None or node.op_type != op_type:
        return None
    if (
        op_type == "Unsqueeze"
        and (axes := constant_of(node.inputs[1])) is not None
        and axes.tolist() not in ([-1], [4])
    ):
        return None
    return node.inputs[0]


def _slice(value: ir.Value | None, source: ir.Value, width: int) -> range | None:
    """Return the channels of the source that a value consists of."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type not in ("Slice", "Split") or node.inputs[0] is not source:
        return None
    if node.op_type == "Split":
        sizes = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
        even = sizes is None or len(set(sizes.tolist())) == 1
        if node.attributes.get_int("axis", 0) not in (-1, 3) or width % len(node.outputs) or not even:
            return None
        index, size = node.outputs.index(value), width // len(node.outputs)
        return range(index * size, (index + 1) * size)
    bounds = [constant_of(each) for each in node.inputs[1:]]
    if len(bounds) < 3 or any(each is None or each.size != 1 for each in bounds):
        return None
    start, end, axis, *step = (int(each.item()) for each in bounds if each is not None)
    return range(*slice(start, end, *step).indices(width)) if axis in (-1, 3) else None


class Rotator:
    """Adds RotaryEmbedding nodes that share positions and tables of cosines and sines.

    Args:
        graph: The graph, modified in place.
        shapes: Symbolic shapes by value name; those of the new values are added.
    """

    def __init__(self, graph: ir.Graph, shapes: dict[str, Shape]) -> None:
        self._graph, self._shapes = graph, shapes
        self._counted: tuple[ir.Value, ir.Value] | None = None
        self._tables: dict[tuple[ir.Value, bool], ir.Value] = {}

    def rotate(self, value: ir.Value, rotation: Rotation, before: ir.Node) -> ir.Value:
        """Add the rotation of a value [batch, length, heads * width], before a node.

        Args:
            value: What `rotation.source` is, with its heads joined.
            rotation: The rotation.
            before: A node after those that compute the cosines and sines.
        """
        heads = self._shapes[rotation.source.name or ""][1]
        tables = [self._table(each, before, interleaved=rotation.interleaved) for each in (rotation.cos, rotation.sin)]
        result = add_node(
            self._graph,
            "RotaryEmbedding",
            [value, self._count()[1], *tables],
            {"num_heads": heads, "interleaved": int(rotation.interleaved)},
            domain="com.microsoft",
            before=before,
        )
        result.name = f"{rotation.source.name}_rotated"
        self._shapes[result.name] = self._shapes[value.name or ""]
        return result

    def _count(self) -> tuple[ir.Value, ir.Value]:
        """Return the length of the batch, and the position of every token, [batch, length]."""
        if self._counted is None:
            graph, first = self._graph, self._graph[0]
            (ids,) = (each for each in graph.inputs if each.name == "input_ids")
            shape = add_node(graph, "Shape", [ids], before=first)
            one, zero = (add_constant(graph, f"position_{number}", np.array(number)) for number in (1, 0))
            length = add_node(graph, "Gather", [shape, one], {"axis": 0}, before=first)
            counted = add_node(graph, "Range", [zero, length, one], before=first)
            # With the batch, so that the row selection can select from it as from any activation.
            positions = add_node(graph, "Expand", [counted, shape], before=first)
            positions.name = "positions"
            self._shapes["positions"] = ("B", "L")
            self._counted = length, positions
        return self._counted

    def _read_length_from_input(self, table: ir.Value) -> None:
        """Replace lengths that a table takes from the queries of its layer, so that all layers can share the table."""
        pending, seen = [table], set[ir.Value]()
        while pending:
            value = pending.pop()
            node = value.producer()
            if node is None or value in seen:
                continue
            seen.add(value)
            shape = node.inputs[0].producer() if node.op_type == "Gather" and node.inputs[0] is not None else None
            if shape is None or shape.op_type != "Shape":
                pending.extend(each for each in node.inputs if each is not None)
                continue
            index, source = constant_of(node.inputs[1]), shape.inputs[0]
            dims = self._shapes.get(source.name or "", ()) if source is not None else ()
            if index is not None and index.ndim == 0 and dims and dims[int(index)] == "L":
                value.replace_all_uses_with(self._count()[0])

    def _table(self, table: ir.Value, before: ir.Node, *, interleaved: bool) -> ir.Value:
        """Return a table with each angle once, [length, width / 2]."""
        if (table, interleaved) not in self._tables:
            graph = self._graph
            self._read_length_from_input(table)
            width = self._shapes[table.name or ""][-1]
            assert isinstance(width, int)  # noqa: S101
            bounds = (0, width, -1, 2) if interleaved else (0, width // 2, -1, 1)
            parts = [add_constant(graph, "angle_part", np.array([number])) for number in bounds]
            flat = add_constant(graph, "angle_shape", np.array([-1, width // 2]))
            halved = add_node(graph, "Slice", [table, *parts], before=before)
            found = self._tables[table, interleaved] = add_node(graph, "Reshape", [halved, flat], before=before)
            found.name = f"{table.name}_by_position"
            self._shapes[found.name] = ("L", width // 2)
        return self._tables[table, interleaved]
