"""The dense layers of a graph, grouped by the activation that they share."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .graph import constant_of

__all__ = ["Dense", "Site", "dense_of", "dense_sites", "is_table"]


@dataclass(frozen=True, slots=True)
class Dense:
    """A matmul with constant weights, with its bias if there is one.

    Attributes:
        node: The MatMul.
        weights: [inputs, outputs].
        bias: The bias, [outputs], or None.
        last: The node that computes the layer's output: the addition of the bias, or the MatMul.
        table: The embedding table whose transpose the weights are, or None.
        name: Its name in the report.
    """

    node: ir.Node
    weights: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    last: ir.Node
    table: ir.Value | None
    name: str

    @property
    def weights_name(self) -> str:
        """Name of the weights in the graph, which several layers may share."""
        value = self.node.inputs[1]
        return (value.name if value is not None else None) or ""


@dataclass(frozen=True, slots=True)
class Site:
    """An activation and the dense layers that take it.

    Attributes:
        activation: The value; its last axis is the channels.
        layers: One or more.
    """

    activation: ir.Value
    layers: list[Dense]

    @property
    def name(self) -> str:
        """Name of its first layer."""
        return self.layers[0].name

    @property
    def tied(self) -> bool:
        """Whether the weights of a layer are also an embedding table."""
        return any(layer.table is not None for layer in self.layers)

    @property
    def weights(self) -> int:
        """Number of weights, which is the number of multiply-adds per row."""
        return sum(layer.weights.size for layer in self.layers)


def is_table(value: ir.Value | None) -> bool:
    """Return whether a value is an embedding table that is worth quantizing."""
    array = constant_of(value)
    return array is not None and array.ndim == 2 and array.dtype == np.float32 and array.shape[0] > 1024


def dense_sites(graph: ir.Graph) -> list[Site]:
    """Return the dense layers of a graph, grouped by their input activation, in the order of the graph."""
    # Query, key and value share an activation: it is quantized once, and they are rounded and searched together.
    sites: dict[ir.Value, Site] = {}
    for node in graph:
        layer = _dense(node) if node.op_type == "MatMul" else None
        activation = node.inputs[0] if node.inputs else None
        if layer is not None and activation is not None:
            sites.setdefault(activation, Site(activation, [])).layers.append(layer)
    return list(sites.values())


def dense_of(value: ir.Value | None) -> Dense | None:
    """Return the dense layer whose output is a value, or None."""
    node = value.producer() if value is not None else None
    if node is not None and node.op_type == "Add":
        products = [each.producer() for each in node.inputs if each is not None]
        node = next((each for each in products if each is not None and each.op_type == "MatMul"), None)
    layer = _dense(node) if node is not None and node.op_type == "MatMul" else None
    return layer if layer is not None and layer.last.outputs[0] is value else None


def _dense(node: ir.Node) -> Dense | None:
    weight = node.inputs[1]
    array, table = constant_of(weight), None
    # A tied head multiplies by the transposed embedding table.
    turned = weight.producer() if weight is not None else None
    if array is None and turned is not None and turned.op_type == "Transpose":
        table = turned.inputs[0]
        inner = constant_of(table)
        array = None if inner is None else inner.T
    if array is None or array.ndim != 2 or array.dtype != np.float32:
        return None
    # An addition counts as the bias only if nothing else uses the product; quantizing replaces both nodes by one.
    bias, last = None, node
    users = list(node.outputs[0].uses())
    if len(users) == 1 and users[0].node.op_type == "Add":
        constant = constant_of(users[0].node.inputs[1 - users[0].idx])
        if constant is not None and constant.shape == (array.shape[1],):
            bias, last = constant, users[0].node
    name = (node.name or node.outputs[0].name or "dense").strip("/").removesuffix("/MatMul").replace("/", ".")
    # Without a lookup in the same graph there is no table to share, just a transposed matrix.
    shared = table is not None and is_table(table) and any(use.node.op_type == "Gather" for use in table.uses())
    return Dense(node, array, bias, last, table if shared else None, name)
