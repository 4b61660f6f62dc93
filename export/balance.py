"""Activations that fill the range of a byte evenly, where a graph can have them for nothing.

The channels of a transformer's activations lie around different means, and some are many times as wide as others;
one scale for all leaves most of them a few of 256 steps. Around a dense layer, x W + b = ((x - c) / d) (d W) + b + c W
for any centre c and width d of each channel. The left factor costs nothing where x is a layer norm (another gain and
bias) or the output of attention (whose weights sum to one, so that the value projection can take c and d). What the
activation gains the weights lose, so the widths are tempered by an exponent, the best of a few for each layer (after
SmoothQuant, Xiao et al. 2023, https://arxiv.org/abs/2211.10438).

Between two dense layers with nothing but an elementwise function, the channels can be put in any order: widest first,
those that overflow the range of a byte are cut out as one block.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .calibrate import ActivationStats
from .dense import Dense, Site, dense_of, dense_sites
from .graph import add_constant, add_node, constant_of

__all__ = ["balance_channels"]

_EXPONENTS = (0.4, 0.6, 0.8, 1.0)
_ELEMENTWISE = frozenset(["Gelu", "FastGelu", "QuickGelu", "Relu", "Tanh", "Sigmoid", "Elu", "LeakyRelu", "Silu"])

Floats = NDArray[np.float32]


def balance_channels(model: ir.Model, stats: Mapping[str, ActivationStats]) -> dict[str, ActivationStats]:
    """Centre and narrow the activations of dense layers, in place; the graph's answers stay what they are.

    Args:
        model: The graph.
        stats: From calibration, by the name of the activation.

    Returns:
        The statistics of the activations that the layers take now, by name.
    """
    graph = model.graph
    found = dict(stats)
    for site in dense_sites(graph):
        old = stats[site.activation.name or ""]
        node = site.activation.producer()
        # Layers that share their weights with others keep them.
        own = all(len(list(_weights(layer).uses())) == 1 and _is_free(layer.table) for layer in site.layers)
        if node is None or not own or site.activation.is_graph_output():
            continue
        if (before := _only_before(node)) is not None:
            order = np.argsort(-np.maximum(old.high, -old.low), kind="stable")
            _set_dense(graph, before, before.weights[:, order], _bias(before)[order])
            for layer in site.layers:
                _set_dense(graph, layer, layer.weights[order], None)
            found[site.activation.name or ""] = old.ordered(order)
            continue
        centre: Floats = ((old.low + old.high) / 2).astype(np.float32)
        width = _widths(old, site)
        if node.op_type == "LayerNormalization" and _is_last_axis(node):
            activation = _normalized(graph, node, centre, width)
        elif node.op_type == "MultiHeadAttention" and (value := _only_value(node, site)) is not None:
            _set_dense(graph, value, value.weights / width, (_bias(value) - centre) / width)
            activation = site.activation
        else:
            continue
        for layer in site.layers:
            bias = _bias(layer) + centre @ layer.weights
            layer.node.replace_input_with(0, activation)
            if layer.table is not None:
                _scale_table(graph, layer.table, width)
            _set_dense(graph, layer, None if layer.table is not None else layer.weights * width[:, None], bias)
        found[activation.name or ""] = old.moved(centre, width)
    return found


def _widths(stats: ActivationStats, site: Site) -> Floats:
    """Return the widths to divide by that leave the least error in the outputs, activations and weights together."""
    spread = np.maximum(stats.high - stats.low, 1e-6)
    spread /= np.median(spread)
    weights = np.concatenate([layer.weights for layer in site.layers], axis=1)
    energy = (weights**2).sum(axis=1)
    moment = np.maximum(np.diagonal(stats.gram) / stats.rows - (stats.total / stats.rows) ** 2, 0)

    def error(width: Floats) -> float:
        step = float(((stats.high - stats.low) / width).max()) / 255
        steps = np.abs(weights * width[:, None]).max(axis=0) / 127
        return float((step * width) ** 2 @ energy + (moment / width**2).sum() * (steps**2).sum())

    widths: list[Floats] = [(spread**exponent).astype(np.float32) for exponent in _EXPONENTS]
    return min(widths, key=error)


def _only_before(node: ir.Node) -> Dense | None:
    """Return the dense layer that gives what an elementwise function takes, if nothing else takes either's output."""
    value = node.inputs[0] if node.op_type in _ELEMENTWISE else None
    layer = dense_of(value)
    if value is None or layer is None or layer.table is not None or len(list(value.uses())) != 1:
        return None
    return layer if len(list(_weights(layer).uses())) == 1 else None


def _weights(layer: Dense) -> ir.Value:
    value = layer.node.inputs[1]
    assert value is not None  # noqa: S101
    return value


def _is_free(table: ir.Value | None) -> bool:
    """Tell whether embeddings serve lookups and one head alone, so that they can be stored in another scale."""
    users = [] if table is None else [use.node for use in table.uses()]
    lookups = [each for each in users if each.op_type == "Gather" and each.attributes.get_int("axis", 0) == 0]
    return table is None or (len(users) == len(lookups) + 1 and all(each.outputs[0].uses() for each in lookups))


def _scale_table(graph: ir.Graph, table: ir.Value, width: Floats) -> None:
    """Store embeddings as the head wants them; what is looked up is scaled back."""
    array = constant_of(table)
    assert array is not None  # noqa: S101
    scaled = add_constant(graph, f"{table.name}_balanced", array * width)
    back = add_constant(graph, f"{table.name}_width", 1 / width)
    for use in list(table.uses()):
        use.node.replace_input_with(use.idx, scaled)
        if use.node.op_type == "Gather":
            rows = use.node.outputs[0]
            users = list(rows.uses())
            restored = ir.node("Mul", [rows, back])
            graph.insert_after(use.node, restored)
            for user in users:
                user.node.replace_input_with(user.idx, restored.outputs[0])


def _is_last_axis(node: ir.Node) -> bool:
    gain = constant_of(node.inputs[1])
    shift = constant_of(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else gain
    return gain is not None and gain.ndim == 1 and shift is not None


def _normalized(graph: ir.Graph, node: ir.Node, centre: Floats, width: Floats) -> ir.Value:
    """Add the layer norm that gives (x - centre) / width."""
    gain = constant_of(node.inputs[1])
    shift = constant_of(node.inputs[2]) if len(node.inputs) > 2 else None
    assert gain is not None  # noqa: S101
    name = node.outputs[0].name
    inputs = [
        node.inputs[0],
        add_constant(graph, f"{name}_gain", gain / width),
        add_constant(graph, f"{name}_shift", ((0 if shift is None else shift) - centre) / width),
    ]
    attributes = {each.name: each for each in node.attributes.values()}
    result = add_node(graph, node.op_type, inputs, attributes, domain=node.domain, before=node)
    result.name, result.type, result.shape = f"{name}_balanced", node.outputs[0].type, node.outputs[0].shape
    return result


def _only_value(attention: ir.Node, site: Site) -> Dense | None:
    """Return the projection that gives the values of an attention, if nothing else takes either's output."""
    value = attention.inputs[2]
    layer = dense_of(value)
    if value is None or layer is None or layer.table is not None:
        return None
    return layer if len(list(value.uses())) == 1 and len(list(site.activation.uses())) == len(site.layers) else None


def _bias(layer: Dense) -> Floats:
    return layer.bias if layer.bias is not None else np.zeros(layer.weights.shape[1], np.float32)


def _set_dense(graph: ir.Graph, layer: Dense, weights: NDArray[Any] | None, bias: NDArray[Any] | None) -> None:
    if weights is not None:
        layer.node.replace_input_with(1, add_constant(graph, f"{layer.name}_balanced", weights.astype(np.float32)))
    if bias is None:
        return
    bias_value = add_constant(graph, f"{layer.name}_bias", bias.astype(np.float32))
    if layer.last is not layer.node:
        place = next(index for index, each in enumerate(layer.last.inputs) if each is not layer.node.outputs[0])
        layer.last.replace_input_with(place, bias_value)
        return
    product = layer.node.outputs[0]
    users = list(product.uses())
    after = ir.node("Add", [product, bias_value])
    graph.insert_after(layer.node, after)
    after.outputs[0].type, after.outputs[0].shape = product.type, product.shape
    for use in users:
        use.node.replace_input_with(use.idx, after.outputs[0])
