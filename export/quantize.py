"""Quantizes dense layers, the vocabulary head and embeddings, each in the step that the search selects for it.

Embeddings are looked up and not multiplied, so 16 bits cost nothing but size: a second int8 table holds the remainder
of the first. A tied head uses the first table as its weights.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .activations import ActivationPlan, add_quantized, plan_activation, simulate
from .calibrate import ActivationStats
from .dense import Dense, Site, dense_sites, is_table
from .graph import add_constant, add_node, clean, constant_of
from .weights import adjacent_pairs, column_scales, feedback_factor, round_columns, round_with_feedback

__all__ = [
    "TABLE",
    "LayerReport",
    "QuantizationPlan",
    "QuantizedWeights",
    "SitePlan",
    "Step",
    "StepPlan",
    "apply_plan",
    "make_plan",
]

Step = Literal["int8", "columns", "fp32"]
"""How a layer is computed: as int8 matmul, as int8 matmul with many outlier columns, or in fp32."""

TABLE = "embeddings"

_HALVES = 256
"""Steps of the lower byte of an embedding per step of the upper byte."""

_EXTRA_SHARES = (0.06, 0.25)
"""Outlier columns as a share of the channels: few in the step `int8`, many in the step `columns`."""

_WORTH_IT = 0.8
"""Outlier columns are used if they reduce the error at least to this share of the error without them."""


@dataclass(frozen=True, slots=True)
class LayerReport:
    """The quantization of one layer.

    Attributes:
        name: The layer.
        scheme: `int8`, `int8+columns` or `fp32`; for embeddings `int16` (two bytes) or `fp32`.
        extra_columns: Number of outlier columns, as a share of the channels.
        error: Relative error of the outputs on calibration text, from activations and weights together.
    """

    name: str
    scheme: str
    extra_columns: float
    error: float

    def to_dict(self) -> dict[str, Any]:
        """Return the values as a dictionary that can be written as JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class QuantizedWeights:
    """An int8 matrix with one scale per output."""

    weights: NDArray[np.int8]
    scales: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class QuantizedTable:
    """Embeddings in two bytes: (upper + lower / `_HALVES`) * scale.

    Attributes:
        upper: [tokens, width].
        lower: [tokens, width].
        scales: [tokens].
    """

    upper: NDArray[np.int8]
    lower: NDArray[np.int8]
    scales: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One way to compute the layers that share an activation.

    Attributes:
        ranges: The quantization of the activation.
        weights: Quantized weights by the name of the layer.
        error: Relative error of the outputs.
    """

    ranges: ActivationPlan
    weights: dict[str, QuantizedWeights]
    error: float


@dataclass(frozen=True, slots=True)
class SitePlan:
    """The possible ways to compute the layers that share an activation.

    Attributes:
        steps: The int8 steps; `columns` only if it has a much smaller error.
        channels: Number of channels of the activation.
        multiply_adds: Number of multiply-adds per row.
        tied: Whether the weights are also the embeddings.
    """

    steps: dict[Step, StepPlan]
    channels: int
    multiply_adds: int
    tied: bool

    def error(self, step: Step) -> float:
        """Return the relative error of the outputs."""
        return 0.0 if step == "fp32" else self.steps[step].error

    def further(self, step: Step) -> float:
        """Return the number of outlier columns as a share of the channels."""
        return len(self.steps[step].ranges.columns) / self.channels if step != "fp32" else 0.0


@dataclass(frozen=True, slots=True)
class QuantizationPlan:
    """How each part of a model would be quantized; which parts are is decided later.

    Attributes:
        sites: Sites by name.
        tables: Quantized embeddings by name.
    """

    sites: dict[str, SitePlan]
    tables: dict[str, QuantizedTable]

    def reports(self, steps: Mapping[str, Step]) -> list[LayerReport]:
        """Return the report of each layer, in the order of the graph."""
        found = []
        if self.tables:
            found.append(LayerReport(TABLE, "fp32" if _tables_stay(self, steps) else "int16", 0.0, 0.0))
        for name, site in self.sites.items():
            step = steps.get(name, "int8")
            extra = site.further(step)
            scheme = "fp32" if step == "fp32" else "int8+columns" if extra else "int8"
            found += [LayerReport(layer, scheme, extra, site.error(step)) for layer in site.steps["int8"].weights]
        return found


def _tables_stay(plan: QuantizationPlan, steps: Mapping[str, Step]) -> bool:
    """Return whether a tied head stays in fp32; the embeddings then stay in fp32 too, and are stored once."""
    return any(site.tied and steps.get(name) == "fp32" for name, site in plan.sites.items())


def make_plan(
    model: ir.Model,
    stats: Mapping[str, ActivationStats],
    on_weights: Callable[[int], None] | None = None,
) -> QuantizationPlan:
    """Compute int8 weights and activation ranges for every dense layer and embedding table.

    Args:
        model: The fp32 serving graph.
        stats: Calibration statistics by the name of each activation of `dense_sites`.
        on_weights: Called with the number of weights rounded so far.
    """
    sites = dense_sites(model.graph)
    # A tied table is rounded for the inputs of the head (GPTQ), which moves single weights further from their values.
    # The lower byte corrects this for the embeddings.
    grams = {
        layer.table.name: stats[site.activation.name or ""].gram
        for site in sites
        for layer in site.layers
        if layer.table is not None
    }
    tables: dict[str, QuantizedTable] = {}
    for node in model.graph:
        table = node.inputs[0] if node.op_type == "Gather" else None
        if table is not None and is_table(table) and table.name not in tables:
            tables[table.name or ""] = _round_table(table, grams.get(table.name))
    # Sites with the same weights, such as ALBERT's repeated layer, share their int8 weights too.
    groups: dict[tuple[str, ...], list[Site]] = {}
    for site in sites:
        groups.setdefault(tuple(_weights_name(layer) for layer in site.layers), []).append(site)
    plans: dict[str, SitePlan] = {}
    done = 0
    for group in groups.values():
        plans |= _plan_group(group, stats, tables)
        done += group[0].weights
        if on_weights is not None:
            on_weights(done)
    return QuantizationPlan({site.name: plans[site.name] for site in sites}, tables)


def _weights_name(layer: Dense) -> str:
    value = layer.node.inputs[1]
    return (value.name if value is not None else None) or ""


def _round_table(table: ir.Value, gram: NDArray[np.float32] | None) -> QuantizedTable:
    array = constant_of(table)
    assert array is not None  # noqa: S101
    pairs = adjacent_pairs(np.arange(array.shape[1]))
    scales = column_scales(array.T, pairs)
    if gram is None:
        upper = round_columns(array.T, scales, pairs).T
    else:
        upper = round_with_feedback(array.T, scales, feedback_factor(gram), pairs).T
    rest = array / scales[:, None]
    rest -= upper
    # GPTQ can leave a remainder of more than half a step, which does not fit in the lower byte.
    lower = np.clip(np.rint(rest * _HALVES), -128, 127).astype(np.int8)
    return QuantizedTable(np.ascontiguousarray(upper), lower, scales)


def _plan_group(
    group: Sequence[Site], stats: Mapping[str, ActivationStats], tables: Mapping[str, QuantizedTable]
) -> dict[str, SitePlan]:
    """Plan sites with the same weights, which are rounded and stored once."""
    layers = group[0].layers
    found = [stats[site.activation.name or ""] for site in group]
    exact = np.concatenate([layer.weights for layer in layers], axis=1)
    ranges: dict[Step, list[ActivationPlan]] = {"int8": [plan_activation(each, 0.0) for each in found]}
    # Outlier columns repeat rows of the weights, so they need weights that no other site or table uses.
    if len(group) == 1 and not group[0].tied:
        ranges |= _with_columns(found[0], exact, ranges["int8"][0])
    rounded: dict[Step, QuantizedWeights] = {}
    if group[0].tied:
        stored = tables[next(layer.table.name or "" for layer in layers if layer.table is not None)]
        rounded["int8"] = QuantizedWeights(stored.upper.T, stored.scales)
    else:
        factor = feedback_factor(np.sum([each.gram for each in found], axis=0) if len(found) > 1 else found[0].gram)
        for step in ("int8", "columns"):
            if step in ranges:
                # The stored matrix ends in copies of rows for the outlier columns, which form pairs of their own.
                pairs = adjacent_pairs(np.concatenate([np.arange(len(exact)), ranges[step][0].columns]))
                scales = column_scales(exact, pairs)
                rounded[step] = QuantizedWeights(round_with_feedback(exact, scales, factor, pairs), scales)
    ends = np.cumsum([0, *(layer.weights.shape[1] for layer in layers)]).tolist()
    return {
        site.name: SitePlan(
            steps={
                step: StepPlan(
                    ranges=each[number],
                    weights={
                        layer.name: QuantizedWeights(
                            rounded[step].weights[:, start:end], rounded[step].scales[start:end]
                        )
                        for layer, start, end in zip(site.layers, ends[:-1], ends[1:], strict=True)
                    },
                    error=_error(each[number], found[number].sample, exact, rounded[step]),
                )
                for step, each in ranges.items()
            },
            channels=len(exact),
            multiply_adds=site.weights,
            tied=site.tied,
        )
        for number, site in enumerate(group)
    }


def _with_columns(
    stats: ActivationStats, weights: NDArray[np.float32], plain: ActivationPlan
) -> dict[Step, list[ActivationPlan]]:
    """Return the steps for which outlier columns are worth their time."""
    few, many = (plan_activation(stats, share) for share in _EXTRA_SHARES)
    errors = [_activation_error(each, stats.sample, weights) for each in (plain, few, many)]
    best: dict[Step, list[ActivationPlan]] = {"int8": [few if errors[1] < _WORTH_IT * errors[0] else plain]}
    if errors[2] < _WORTH_IT * (errors[1] if best["int8"] == [few] else errors[0]):
        best["columns"] = [many]
    return best


def _error(
    ranges: ActivationPlan,
    sample: NDArray[np.float32],
    exact: NDArray[np.float32],
    rounded: QuantizedWeights,
) -> float:
    # For a vocabulary head, a part of the outputs is representative.
    exact, held = exact[:, :4096], rounded.weights[:, :4096] * rounded.scales[:4096]
    wanted = sample @ exact
    spread = np.maximum(wanted.var(axis=0), 1e-12)
    return float(np.sqrt((np.square(simulate(ranges, sample) @ held - wanted).mean(axis=0) / spread).mean()))


def _activation_error(plan: ActivationPlan, sample: NDArray[np.float32], weights: NDArray[np.float32]) -> float:
    difference = simulate(plan, sample) - sample
    weights = weights[:, :1024]
    return float(np.linalg.norm(difference @ weights) / max(float(np.linalg.norm(sample @ weights)), 1e-12))


def apply_plan(model: ir.Model, plan: QuantizationPlan, steps: Mapping[str, Step], *, switches: bool = False) -> None:
    """Replace dense layers and embedding tables by quantized ones, in place.

    Args:
        model: A copy of the graph that the plan was made for.
        plan: The plan.
        steps: The step of each site that is not plain int8.
        switches: Keep both versions, and add an input `quantized` [sites] that selects the sites to quantize.
    """
    graph = model.graph
    replace = _Switches(graph, list(plan.sites)) if switches else _replace
    stored: dict[str, ir.Value] = {}
    if not _tables_stay(plan, steps):
        for node in [each for each in graph if each.op_type == "Gather" and is_table(each.inputs[0])]:
            _replace("", node.outputs[0], _looked_up(graph, node, plan, stored))
    # Backwards, because the activation of a layer is the output of an earlier one, which must not be replaced yet.
    for site in reversed(dense_sites(graph)):
        step = steps.get(site.name, "int8")
        if step != "fp32":
            found = _products(graph, site, plan.sites[site.name].steps[step], stored)
            for layer, value in zip(site.layers, found, strict=True):
                replace(site.name, layer.last.outputs[0], value)
    graph.opset_imports.setdefault("com.microsoft", 1)
    clean(model)


_Replace = Callable[[str, ir.Value, ir.Value], None]
"""Replaces a value: its site, the old value, the new value."""


def _replace(_site: str, old: ir.Value, new: ir.Value) -> None:
    old.replace_all_uses_with(new, replace_graph_outputs=True)


class _Switches:
    """Selects between old and new values by an input of the graph."""

    def __init__(self, graph: ir.Graph, sites: Sequence[str]) -> None:
        self._graph = graph
        self._sites = list(sites)
        self._flags = ir.val("quantized", dtype=ir.DataType.BOOL, shape=[len(sites)])
        graph.inputs.append(self._flags)

    def __call__(self, site: str, old: ir.Value, new: ir.Value) -> None:
        place = add_constant(self._graph, "site", np.array([self._sites.index(site)]))
        users = list(old.uses())
        flag = add_node(self._graph, "Gather", [self._flags, place], {"axis": 0})
        chosen = add_node(self._graph, "Where", [flag, new, old])
        for use in users:
            use.node.replace_input_with(use.idx, chosen)


def _looked_up(graph: ir.Graph, node: ir.Node, plan: QuantizationPlan, stored: dict[str, ir.Value]) -> ir.Value:
    """Add nodes that look up both bytes and the scale of a row, and combine them."""
    table = node.inputs[0]
    assert table is not None  # noqa: S101
    name = table.name or ""
    held = plan.tables[name]
    if name not in stored:
        stored[name] = add_constant(graph, f"{name}_int8", held.upper)
        stored[f"{name}_lower"] = add_constant(graph, f"{name}_int8_lower", held.lower)

    def rows(constant: ir.Value) -> ir.Value:
        return add_node(graph, "Gather", [constant, node.inputs[1]], {"axis": 0})

    upper, lower = (
        add_node(graph, "Cast", [rows(each)], {"to": ir.DataType.FLOAT})
        for each in (stored[name], stored[f"{name}_lower"])
    )
    fine = add_constant(graph, "halves", np.array(1 / _HALVES, np.float32))
    whole = add_node(graph, "Add", [upper, add_node(graph, "Mul", [lower, fine])])
    return add_node(graph, "Mul", [whole, rows(add_constant(graph, f"{name}_scale", held.scales[:, None]))])


def _products(graph: ir.Graph, site: Site, plan: StepPlan, stored: dict[str, ir.Value]) -> list[ir.Value]:
    values, scale, zero_point = add_quantized(graph, site.activation, plan.ranges)
    found = []
    for layer in site.layers:
        matrix, scales = _weights(graph, layer, plan, stored)
        inputs = [values, matrix, scale, scales, zero_point, None, _bias(graph, layer)]
        found.append(add_node(graph, "MatMulIntegerToFloat", inputs, domain="com.microsoft"))
    return found


def _bias(graph: ir.Graph, layer: Dense) -> ir.Value | None:
    return None if layer.bias is None else add_constant(graph, f"{layer.name}_bias", layer.bias)


def _weights(graph: ir.Graph, layer: Dense, plan: StepPlan, stored: dict[str, ir.Value]) -> tuple[ir.Value, ir.Value]:
    """Return the int8 weights [inputs, outputs], with repeated rows for outlier columns, and the scales."""
    held = plan.weights[layer.name]
    scales = add_constant(graph, f"{layer.name}_scale", held.scales)
    table = stored.get(layer.table.name or "") if layer.table is not None else None
    if table is not None:
        # Stored once, together with the embeddings; ONNX Runtime folds the transposition when it loads the file.
        return add_node(graph, "Transpose", [table], {"perm": [1, 0]}), scales
    name = _weights_name(layer)
    if name not in stored:
        rows = np.concatenate([held.weights, held.weights[plan.ranges.columns]])
        stored[name] = add_constant(graph, f"{layer.name}_int8", np.ascontiguousarray(rows))
    return stored[name], scales
