"""int8 for the dense layers, the embeddings and the vocabulary head, layer by layer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mlm_infer.cpu import CpuKind

from .activations import ActivationPlan, add_quantized, plan_activation, simulate
from .calibrate import ActivationStats
from .dense import Dense, dense_sites, is_table
from .graph import add_constant, add_node, clean, constant_of
from .weights import column_scales, round_columns, round_with_feedback

__all__ = ["LayerReport", "QuantizationPlan", "QuantizedWeights", "apply_plan", "make_plan"]

_WORTH_IT = 0.8
"""Further columns are used where they leave at most this share of the error of a plain scale."""

TABLE = "embeddings"


@dataclass(frozen=True, slots=True)
class LayerReport:
    """What was chosen for one layer.

    Attributes:
        name: The layer.
        scheme: `int8`, `int8+columns`, or `fp32`.
        extra_columns: Share of further columns for outlier channels.
        error: Relative error of its outputs on calibration text, activations and weights together.
    """

    name: str
    scheme: str
    extra_columns: float
    error: float

    def to_dict(self) -> dict[str, Any]:
        """Return the values as JSON can hold them."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class QuantizedWeights:
    """An int8 matrix and the scale of each of its outputs."""

    weights: NDArray[np.int8]
    scales: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class QuantizationPlan:
    """How each layer would be quantized, by name, before deciding which are.

    Attributes:
        activations: By the name of the activation.
        layers: int8 weights and scales by the name of the layer.
        tables: The same for embedding tables by their names, [tokens, width] and [tokens].
        reports: What quantizing it would do, by the name of the layer; embeddings included.
    """

    activations: dict[str, ActivationPlan]
    layers: dict[str, QuantizedWeights]
    tables: dict[str, QuantizedWeights]
    reports: dict[str, LayerReport]


def make_plan(
    model: ir.Model,
    stats: Mapping[ir.Value, ActivationStats],
    cpu: CpuKind,
    extra_share: float,
    weights: Mapping[str, QuantizedWeights] | None = None,
    on_layer: Callable[[int, int], None] | None = None,
) -> QuantizationPlan:
    """Work out int8 weights and activation ranges for every dense layer and embedding table.

    Args:
        model: The fp32 serving graph.
        stats: From calibration, for every value of `dense_sites`.
        cpu: The processor to make it for: without VNNI, 8-bit products overflow and weights keep 7 bits.
        extra_share: Further columns for outlier channels, as a share of the channels.
        weights: The `layers` of an earlier plan for the same model and processor, to use again.
        on_layer: Called with the number of layers done and the number there are.
    """
    bits = 8 if cpu in ("avx512_vnni", "arm64") else 7
    plan = QuantizationPlan({}, {}, {}, {})
    for node in model.graph:
        table = node.inputs[0] if node.op_type == "Gather" else None
        if table is not None and is_table(table) and table.name not in plan.tables:
            _plan_table(plan, table, bits)
    sites = dense_sites(model.graph)
    total = sum(map(len, sites.values()))
    for activation, layers in sites.items():
        found = stats[activation]
        plain, split = plan_activation(found, 0.0), plan_activation(found, extra_share)
        errors = [_activation_error(each, found.sample, layers) for each in (plain, split)]
        chosen = split if errors[1] < _WORTH_IT * errors[0] else plain
        plan.activations[activation.name or ""] = chosen
        for layer in layers:
            known = (weights or {}).get(layer.name) or _round(plan, layer, found, bits)
            _plan_layer(plan, layer, chosen, found, known)
            if on_layer is not None:
                on_layer(len(plan.layers), total)
    return plan


def _plan_table(plan: QuantizationPlan, table: ir.Value, bits: int) -> None:
    array = constant_of(table)
    assert array is not None  # noqa: S101
    scales = column_scales(array.T, bits)
    rounded = round_columns(array.T, scales)
    plan.tables[table.name or ""] = QuantizedWeights(np.ascontiguousarray(rounded.T), scales)
    error = float(np.linalg.norm(rounded * scales - array.T) / np.linalg.norm(array))
    plan.reports[TABLE] = LayerReport(TABLE, "int8", 0.0, error)


def _round(plan: QuantizationPlan, layer: Dense, stats: ActivationStats, bits: int) -> QuantizedWeights:
    if layer.table is not None and layer.table.name in plan.tables:
        stored = plan.tables[layer.table.name]
        return QuantizedWeights(stored.weights.T, stored.scales)
    scales = column_scales(layer.weights, bits)
    return QuantizedWeights(round_with_feedback(layer.weights, scales, stats.gram, bits), scales)


def _plan_layer(
    plan: QuantizationPlan, layer: Dense, chosen: ActivationPlan, stats: ActivationStats, weights: QuantizedWeights
) -> None:
    plan.layers[layer.name] = weights
    exact = stats.sample @ layer.weights
    found = simulate(chosen, stats.sample) @ (weights.weights * weights.scales)
    error = float(np.linalg.norm(found - exact) / max(float(np.linalg.norm(exact)), 1e-12))
    scheme = "int8+columns" if chosen.extra else "int8"
    share = len(chosen.columns) / len(layer.weights)
    plan.reports[layer.name] = LayerReport(layer.name, scheme, share, error)


def _activation_error(plan: ActivationPlan, sample: NDArray[np.float32], layers: Sequence[Dense]) -> float:
    difference = simulate(plan, sample) - sample
    weights = layers[0].weights[:, :1024]
    return float(np.linalg.norm(difference @ weights) / max(float(np.linalg.norm(sample @ weights)), 1e-12))


def apply_plan(model: ir.Model, plan: QuantizationPlan, keep_fp32: frozenset[str]) -> list[LayerReport]:
    """Replace dense layers and embedding tables by int8 ones, in place.

    Args:
        model: A copy of the graph that the plan was made for.
        plan: What to do.
        keep_fp32: Names of layers, or of the embeddings, to leave as they are.

    Returns:
        What was chosen for each layer.
    """
    graph = model.graph
    reports = []
    stored: dict[str, ir.Value] = {}
    if TABLE not in keep_fp32:
        for node in [each for each in graph if each.op_type == "Gather" and is_table(each.inputs[0])]:
            _replace_lookup(graph, node, plan, stored)
    if TABLE in plan.reports:
        reports.append(_chosen(plan, TABLE, keep_fp32))
    # Backwards: a layer that feeds another must still be there when the other is replaced.
    for activation, layers in reversed(dense_sites(graph).items()):
        wanted = [layer for layer in layers if layer.name not in keep_fp32]
        reports.extend(_chosen(plan, layer.name, keep_fp32) for layer in layers)
        if not wanted:
            continue
        how = plan.activations[activation.name or ""]
        quantized = add_quantized(graph, activation, how, before=wanted[0].node)
        for layer in wanted:
            _replace_dense(graph, layer, plan.layers[layer.name], how, quantized, stored)
    graph.opset_imports.setdefault("com.microsoft", 1)
    clean(model)
    order = {name: place for place, name in enumerate(plan.reports)}
    return sorted(reports, key=lambda report: order[report.name])


def _chosen(plan: QuantizationPlan, name: str, keep_fp32: frozenset[str]) -> LayerReport:
    return LayerReport(name, "fp32", 0.0, 0.0) if name in keep_fp32 else plan.reports[name]


def _replace_lookup(graph: ir.Graph, node: ir.Node, plan: QuantizationPlan, stored: dict[str, ir.Value]) -> None:
    """Look up bytes and the scale of their row, and multiply."""
    table = node.inputs[0]
    assert table is not None  # noqa: S101
    name = table.name or ""
    if name not in stored:
        stored[name] = add_constant(graph, f"{name}_int8", plan.tables[name].weights)
    scales = add_constant(graph, f"{name}_scale", plan.tables[name].scales[:, None])
    rows = add_node(graph, "Gather", [stored[name], node.inputs[1]], {"axis": 0}, before=node)
    row_scales = add_node(graph, "Gather", [scales, node.inputs[1]], {"axis": 0}, before=node)
    floats = add_node(graph, "Cast", [rows], {"to": ir.DataType.FLOAT}, before=node)
    node.outputs[0].replace_all_uses_with(add_node(graph, "Mul", [floats, row_scales], before=node))
    graph.remove(node, safe=True)


def _replace_dense(
    graph: ir.Graph,
    layer: Dense,
    weights: QuantizedWeights,
    plan: ActivationPlan,
    quantized: tuple[ir.Value, ir.Value, ir.Value],
    stored: dict[str, ir.Value],
) -> None:
    values, scale, zero_point = quantized
    tied = stored.get(layer.table.name or "") if layer.table is not None else None
    if tied is not None:
        # Stored once with the embeddings; ONNX Runtime folds the rest when it loads the file.
        matrix = add_node(graph, "Transpose", [tied], {"perm": [1, 0]}, before=layer.last)
        if plan.extra:
            columns = add_constant(graph, "outlier_columns", plan.columns)
            more = add_node(graph, "Gather", [matrix, columns], {"axis": 0}, before=layer.last)
            matrix = add_node(graph, "Concat", [matrix, more], {"axis": 0}, before=layer.last)
    else:
        rows = np.concatenate([weights.weights, weights.weights[plan.columns]])
        matrix = add_constant(graph, f"{layer.name}_int8", np.ascontiguousarray(rows))
    scales = add_constant(graph, f"{layer.name}_scale", weights.scales)
    inputs = [values, matrix, scale, scales, zero_point, None, layer.bias]
    result = add_node(graph, "MatMulIntegerToFloat", inputs, domain="com.microsoft", before=layer.last)
    layer.last.outputs[0].replace_all_uses_with(result, replace_graph_outputs=True)
    graph.remove(layer.last, safe=True)
    if layer.last is not layer.node:
        graph.remove(layer.node, safe=True)
