"""Balances the channels of activations before quantization, where this needs no additional computation.

The channels of a transformer's activations have different means, and some have a range many times larger than others.
With one scale for all channels, most of them use only a few of the 256 steps. For any centre c and width d of each
channel, x W + b = ((x - c) / d) (d W) + b + c W. The left factor needs no additional operation if x is the output of a
layer norm (which gets another gain and bias) or of attention (whose weights sum to one, so that the value projection
can absorb c and d). The dense layer that a gate multiplies can absorb d alone. Narrower activations mean wider weights,
so the width is the range to the power of an exponent, the best of a few for each layer (after SmoothQuant, Xiao et al.
2023, https://arxiv.org/abs/2211.10438).

Between two dense layers with only an elementwise function in between, x cannot be scaled, but its channels can be
sorted by range. The outlier channels are then one contiguous block, which a slice extracts much faster than a gather.
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
    """Centre and scale the inputs of dense layers, in place; the outputs of the graph do not change.

    Args:
        model: The graph.
        stats: Calibration statistics by the name of the activation.

    Returns:
        The statistics of the new activations, by name.
    """
    graph = model.graph
    found = dict(stats)
    for site in dense_sites(graph):
        old = stats[site.activation.name or ""]
        node = site.activation.producer()
        # Weights that other layers or lookups share cannot absorb the scale of one activation.
        own = all(len(list(_weights(layer).uses())) == 1 and _is_free(layer.table) for layer in site.layers)
        if node is None or not own or site.activation.is_graph_output():
            continue
        if (before := _only_before(node)) is not None:
            # A permutation of the channels between two layers, absorbed by the weights of both.
            order = np.argsort(-np.maximum(old.high, -old.low), kind="stable")
            _set_dense(graph, before, before.weights[:, order], _bias(before)[order])
            for layer in site.layers:
                _set_dense(graph, layer, layer.weights[order], None)
            found[site.activation.name or ""] = old.ordered(order)
            continue
        centre: Floats = ((old.low + old.high) / 2).astype(np.float32)
        width = _widths(old, site)
        if node.op_type == "LayerNormalization" and _is_last_axis(node):
            # The residual stream takes the original output, so only this layer's input is replaced.
            activation = _normalized(graph, node, centre, width)
        elif (value := _only_value(node, site)) is not None:
            _set_dense(graph, value, value.weights / width, (_bias(value) - centre) / width)
            activation = site.activation
        elif (factor := _only_factor(node, site)) is not None:
            # A product cannot be centred by one of its factors.
            centre = np.zeros_like(centre)
            _set_dense(graph, factor, factor.weights / width, None if factor.bias is None else factor.bias / width)
            activation = site.activation
        else:
            continue
        for layer in site.layers:
            # x W + b = ((x - c) / d) (d W) + (b + c W), with c the centre and d the width.
            bias = _bias(layer) + centre @ layer.weights if centre.any() else None
            layer.node.replace_input_with(0, activation)
            if layer.table is not None:
                _scale_table(graph, layer.table, width)
            _set_dense(graph, layer, None if layer.table is not None else layer.weights * width[:, None], bias)
        found[activation.name or ""] = old.moved(centre, width)
    return found


def _widths(stats: ActivationStats, site: Site) -> Floats:
    """Return the widths that minimize the expected output error, from activations and weights together."""
    spread = np.maximum(stats.high - stats.low, 1e-6)
    # Relative to the median, so that the usual channel keeps its scale.
    spread /= np.median(spread)
    weights = np.concatenate([layer.weights for layer in site.layers], axis=1)
    energy = (weights**2).sum(axis=1)
    moment = np.maximum(np.diagonal(stats.gram) / stats.rows - (stats.total / stats.rows) ** 2, 0)

    # The error of an output is the sum of activation errors times weights and of activations times weight errors. Both
    # errors are proportional to their step; the common factor of uniform rounding is left out.
    def error(width: Floats) -> float:
        step = float(((stats.high - stats.low) / width).max()) / 255
        steps = np.abs(weights * width[:, None]).max(axis=0) / 127
        return float((step * width) ** 2 @ energy + (moment / width**2).sum() * (steps**2).sum())

    widths: list[Floats] = [(spread**exponent).astype(np.float32) for exponent in _EXPONENTS]
    return min(widths, key=error)


def _only_before(node: ir.Node) -> Dense | None:
    """Return the dense layer before an elementwise function, if nothing else uses its output or its weights."""
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
    """Return whether embeddings are used by lookups and one head only, so that they can be stored scaled."""
    users = [] if table is None else [use.node for use in table.uses()]
    lookups = [each for each in users if each.op_type == "Gather" and each.attributes.get_int("axis", 0) == 0]
    return table is None or (len(users) == len(lookups) + 1 and all(each.outputs[0].uses() for each in lookups))


def _scale_table(graph: ir.Graph, table: ir.Value, width: Floats) -> None:
    """Store embeddings scaled for the head, and undo the scale after each lookup."""
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
    """Add a layer norm whose output is (x - centre) / width; the original one keeps its other users."""
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


def _only_value(node: ir.Node, site: Site) -> Dense | None:
    """Return the value projection of an attention, if nothing else uses its output or that of the attention."""
    return _absorbing(node.inputs[2], site) if node.op_type == "MultiHeadAttention" else None


def _only_factor(node: ir.Node, site: Site) -> Dense | None:
    """Return the dense layer that a gate multiplies, if nothing else uses its output or the product."""
    found = [_absorbing(value, site) for value in node.inputs] if node.op_type == "Mul" else []
    channels = site.layers[0].weights.shape[0]
    return next((each for each in found if each is not None and each.weights.shape[1] == channels), None)


def _absorbing(value: ir.Value | None, site: Site) -> Dense | None:
    """Return the dense layer that computes a value, if the scale of the activation of a site can be put into it."""
    layer = dense_of(value)
    if value is None or layer is None or layer.table is not None:
        return None
    alone = len(list(value.uses())) == 1 and len(list(_weights(layer).uses())) == 1
    return layer if alone and len(list(site.activation.uses())) == len(site.layers) else None


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
