"""Random damage to an ONNX graph: what a broken exporter or a wrong edit may leave."""

from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, numpy_helper

__all__ = ["MUTATIONS"]


def _node(model: ModelProto, random: Random) -> NodeProto:
    return random.choice(list(model.graph.node))


def _replace(tensor: TensorProto, array: np.ndarray[Any, Any]) -> None:
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def drop_node(model: ModelProto, random: Random) -> None:
    """Remove a node."""
    model.graph.node.remove(_node(model, random))


def repeat_node(model: ModelProto, random: Random) -> None:
    """Append a copy of a node, so that its outputs exist twice."""
    model.graph.node.append(_node(model, random))


def swap_nodes(model: ModelProto, random: Random) -> None:
    """Exchange two nodes, which may then come before those whose outputs they use."""
    nodes = model.graph.node
    one, other = random.randrange(len(nodes)), random.randrange(len(nodes))
    first, second = NodeProto(), NodeProto()
    first.CopyFrom(nodes[one])
    second.CopyFrom(nodes[other])
    nodes[one].CopyFrom(second)
    nodes[other].CopyFrom(first)


def connect_elsewhere(model: ModelProto, random: Random) -> None:
    """Take an input from the output of another node."""
    node = _node(model, random)
    if node.input:
        node.input[random.randrange(len(node.input))] = random.choice(_node(model, random).output)


def drop_inputs(model: ModelProto, random: Random) -> None:
    """Remove the last inputs of a node."""
    node = _node(model, random)
    if node.input:
        del node.input[random.randrange(len(node.input)) :]


def rename_output(model: ModelProto, random: Random) -> None:
    """Rename an output, but not where it is used."""
    _node(model, random).output[0] += "_renamed"


def change_operator(model: ModelProto, random: Random) -> None:
    """Let a node be of the type of another."""
    _node(model, random).op_type = _node(model, random).op_type


def change_attribute(model: ModelProto, random: Random) -> None:
    """Change a number of an attribute, or remove the attribute."""
    node = random.choice([each for each in model.graph.node if each.attribute])
    attribute = random.choice(list(node.attribute))
    if attribute.type == AttributeProto.INT:
        attribute.i = random.choice([-1, 0, 1, 2, 5, 99])
    elif attribute.type == AttributeProto.INTS and attribute.ints:
        attribute.ints[random.randrange(len(attribute.ints))] = random.choice([0, 1, 2, 3, 7, -1])
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = random.choice([0.0, -1.0, float("nan"), 1e30])
    else:
        node.attribute.remove(attribute)


def halve_weight(model: ModelProto, random: Random) -> None:
    """Keep the first half of a tensor."""
    tensor = random.choice(list(model.graph.initializer))
    array = numpy_helper.to_array(tensor)
    _replace(tensor, array.reshape(-1)[: max(1, array.size // 2)].copy())


def change_type(model: ModelProto, random: Random) -> None:
    """Store a tensor in another type."""
    tensor = random.choice(list(model.graph.initializer))
    array = numpy_helper.to_array(tensor)
    _replace(tensor, array.astype(random.choice([np.float16, np.float64, np.int32, np.float32])))


def overwrite_weight(model: ModelProto, random: Random) -> None:
    """Fill a tensor with one value."""
    floats = [each for each in model.graph.initializer if each.data_type == TensorProto.FLOAT]
    tensor = random.choice(floats)
    _replace(tensor, np.full_like(numpy_helper.to_array(tensor), random.choice([np.nan, np.inf, 0, 1e30])))


def overwrite_shape(model: ModelProto, random: Random) -> None:
    """Fill an integer constant with one value."""
    held = [each.attribute[0].t for each in model.graph.node if each.op_type == "Constant"]
    integers = [each for each in [*model.graph.initializer, *held] if each.data_type == TensorProto.INT64]
    tensor = random.choice(integers)
    _replace(tensor, np.full_like(numpy_helper.to_array(tensor), random.choice([0, -1, 1, 2, 3, 1 << 31])))


def change_version(model: ModelProto, random: Random) -> None:
    """Declare another version of ONNX."""
    model.opset_import[0].CopyFrom(onnx.helper.make_opsetid("", random.choice([1, 7, 11, 13, 18, 20, 23, 25, 99])))


MUTATIONS: tuple[Callable[[ModelProto, Random], None], ...] = (
    drop_node,
    repeat_node,
    swap_nodes,
    connect_elsewhere,
    drop_inputs,
    rename_output,
    change_operator,
    change_attribute,
    halve_weight,
    change_type,
    overwrite_weight,
    overwrite_shape,
    change_version,
)
