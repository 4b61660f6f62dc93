"""Computes how each part of a model could be quantized: activation ranges, rounded weights and the resulting errors.

The plan is computed once. The search (`int8`) selects a step for each part, and `quantize` rewrites the graph.

Embeddings are looked up and not multiplied, so 16 bits cost nothing but size: a second int8 table holds the remainder
of the first. A tied head uses the first table as its weights.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .activations import ActivationPlan, plan_activation, simulate
from .calibrate import ActivationStats
from .dense import Site, dense_sites, is_table
from .graph import constant_of
from .weights import adjacent_pairs, column_scales, feedback_factor, round_columns, round_with_feedback

__all__ = [
    "LOWER_STEPS",
    "TABLE",
    "LayerReport",
    "QuantizationPlan",
    "QuantizedTable",
    "QuantizedWeights",
    "SitePlan",
    "Step",
    "StepPlan",
    "make_plan",
]

Step = Literal["int8", "columns", "fp32"]
"""How a layer is computed: as int8 matmul, as int8 matmul with many outlier columns, or in fp32."""

TABLE = "embeddings"
"""Name of the embedding tables in the report."""

LOWER_STEPS = 256
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
    """Embeddings in two bytes: (upper + lower / `LOWER_STEPS`) * scale.

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

    def keeps_tables(self, steps: Mapping[str, Step]) -> bool:
        """Return whether a tied head stays in fp32; the embeddings then stay in fp32 too, and are stored once."""
        return any(site.tied and steps.get(name) == "fp32" for name, site in self.sites.items())

    def reports(self, steps: Mapping[str, Step]) -> list[LayerReport]:
        """Return the report of each layer, in the order of the graph."""
        found = []
        if self.tables:
            found.append(LayerReport(TABLE, "fp32" if self.keeps_tables(steps) else "int16", 0.0, 0.0))
        for name, site in self.sites.items():
            step = steps.get(name, "int8")
            extra = site.further(step)
            scheme = "fp32" if step == "fp32" else "int8+columns" if extra else "int8"
            found += [LayerReport(layer, scheme, extra, site.error(step)) for layer in site.steps["int8"].weights]
        return found


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
        groups.setdefault(tuple(layer.weights_name for layer in site.layers), []).append(site)
    plans: dict[str, SitePlan] = {}
    done = 0
    for group in groups.values():
        plans |= _plan_group(group, stats, tables)
        done += group[0].weights
        if on_weights is not None:
            on_weights(done)
    return QuantizationPlan({site.name: plans[site.name] for site in sites}, tables)


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
    lower = np.clip(np.rint(rest * LOWER_STEPS), -128, 127).astype(np.int8)
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
    # The layers of a site are rounded as one matrix; each gets its columns.
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
    # `columns` must be better than what `int8` already does, or the search would pay for it in vain.
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
    # Relative to the variance of each output, so that the errors of different layers can be compared.
    spread = np.maximum(wanted.var(axis=0), 1e-12)
    return float(np.sqrt((np.square(simulate(ranges, sample) @ held - wanted).mean(axis=0) / spread).mean()))


def _activation_error(plan: ActivationPlan, sample: NDArray[np.float32], weights: NDArray[np.float32]) -> float:
    difference = simulate(plan, sample) - sample
    weights = weights[:, :1024]
    return float(np.linalg.norm(difference @ weights) / max(float(np.linalg.norm(sample @ weights)), 1e-12))
