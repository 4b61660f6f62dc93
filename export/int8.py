"""int8 within an accuracy budget: searches for the layers that need more than plain int8."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mlm_infer.errors import ExportError, MlmInferError, first_line

from .balance import balance_channels
from .batches import Batch, feeds
from .budget import Budget
from .calibrate import calibrate
from .dense import dense_sites
from .quantization_plan import LayerReport, QuantizationPlan, Step, make_plan
from .quantize import apply_plan
from .run_model import copy_model, open_model

__all__ = ["Int8Report", "quantize_within"]

_LARGEST_SHARE = 0.6
"""Maximum size of an int8 file relative to fp32; a larger one has too little advantage."""

_CALIBRATED, _ROUNDED = 0.3, 0.7
"""Progress at the end of calibration, and at the end of the rounding of weights."""

_WAYS_OUT = (
    "allow more with --max-perplexity-increase and --min-agreement, or calibrate on text like yours with "
    "--calibration-data"
)

_FP32_TIME = 2.5
"""Time of an fp32 multiply-add relative to int8: between the values for processors with and without VNNI
(tools/product_times.py). Choosing layers for either one specifically is hardly faster there."""

_BYTE_TIME = 8
"""Time to read a byte of weights from memory, in the same unit: half of what a single short text waits."""

_SAFETY = 0.95
"""Factor that ensures progress in each round, even close to the budget."""


@dataclass(frozen=True, slots=True)
class Int8Report:
    """The scheme of each layer and the resulting accuracy.

    Attributes:
        layers: The choice for each layer.
        perplexity: Perplexity on held-out text.
        fp32_perplexity: Perplexity of fp32 on the same text.
        agreement: Top-1 agreement with fp32.
        masks: Number of masks.
    """

    layers: tuple[LayerReport, ...]
    perplexity: float
    fp32_perplexity: float
    agreement: float
    masks: int

    @property
    def in_fp32(self) -> int:
        """Number of layers in fp32."""
        return sum(layer.scheme == "fp32" for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a dictionary that can be written as JSON."""
        return {
            "layers": [layer.to_dict() for layer in self.layers],
            "perplexity": self.perplexity,
            "fp32_perplexity": self.fp32_perplexity,
            "agreement": self.agreement,
            "masks": self.masks,
        }

    def summary(self) -> str:
        """Return a one-line summary."""
        schemes = [layer.scheme for layer in self.layers]
        counts = ", ".join(f"{schemes.count(each)} {each}" for each in dict.fromkeys(schemes))
        return (
            f"int8 layers: {counts}; on {self.masks} held-out masks perplexity {self.perplexity:.2f} "
            f"({self.perplexity / self.fp32_perplexity - 1:+.2%}), top-1 agreement {self.agreement:.1%}"
        )


def quantize_within(
    model: ir.Model,
    inputs: Sequence[str],
    seen: Sequence[Batch],
    unseen: Sequence[Batch],
    budget: Budget,
    on_step: Callable[[str], None],
    within: Callable[[float], None],
) -> tuple[ir.Model, Int8Report]:
    """Quantize a model as far as a budget allows.

    All layers are int8 at first. If that misses the budget, each part of the model is quantized alone to measure its
    effect on the answers. The parts that gain the most accuracy per additional run time then get more outlier columns
    or are kept in fp32, one at a time, until the budget is met.

    Args:
        model: The fp32 serving graph; not modified.
        inputs: Names of the encoder's inputs.
        seen: Text for calibration.
        unseen: Text for measurement.
        budget: The accuracy budget.
        on_step: Called with a line of text at the start of each step.
        within: Called with the finished share of the work.

    Returns:
        The quantized graph and the report.

    Raises:
        ExportError: The budget cannot be met, or a model that meets it would not be much smaller than fp32.
    """
    try:
        return _Search(model, inputs, seen, unseen, budget, on_step, within).choose()
    except MlmInferError:
        raise
    except Exception as error:  # what ONNX Runtime or numpy make of a graph that nobody has seen
        raise ExportError(
            f"quantizing to int8 failed ({type(error).__name__}: {first_line(error):.300}); export fp32 alone, "
            "without int8"
        ) from error


class _Search:
    """The state of the search for the step of each part."""

    def __init__(
        self,
        model: ir.Model,
        inputs: Sequence[str],
        seen: Sequence[Batch],
        unseen: Sequence[Batch],
        budget: Budget,
        on_step: Callable[[str], None],
        within: Callable[[float], None],
    ) -> None:
        self._inputs, self._seen, self._unseen = inputs, seen, unseen
        self._budget, self._step = budget, on_step
        self._model = copy_model(model)
        sites = dense_sites(self._model.graph)
        stats = calibrate(self._model, [site.activation for site in sites], inputs, seen)
        self._rows = _rows_a_text({site.name: stats[site.activation.name or ""].seen for site in sites}, seen)
        stats = balance_channels(self._model, stats)
        within(_CALIBRATED)
        on_step("rounding weights")
        share = (_ROUNDED - _CALIBRATED) / max(1, sum(site.weights for site in sites))
        self._plan = make_plan(self._model, stats, lambda weights: within(_CALIBRATED + share * weights))
        if not self._plan.sites:
            raise ExportError("there is nothing in this model to quantize; export fp32 alone, without int8")
        self._exact = _answers(model, inputs, unseen)
        self._fp32_bytes = weight_bytes(model)
        self._effects: dict[str, float] = {}

    def choose(self) -> tuple[ir.Model, Int8Report]:
        """Return the model that meets the budget, and its report.

        Raises:
            ExportError: The budget cannot be met, or a model that meets it would not be much smaller than fp32.
        """
        steps: dict[str, Step] = {}
        while True:
            small, report = self._measure(steps)
            nearness = self._budget.nearness(report.perplexity, report.fp32_perplexity, report.agreement)
            if self._budget.met(report.perplexity, report.fp32_perplexity, report.agreement):
                share = weight_bytes(small) / self._fp32_bytes
                if share > _LARGEST_SHARE:
                    reason = (
                        f"with {report.in_fp32} of {len(report.layers)} layers in fp32: {_WAYS_OUT}, or"
                        if report.in_fp32
                        else "since most of its weights are in no dense layer:"
                    )
                    raise ExportError(
                        f"int8 within its budget ({nearness}) would take {share:.0%} of the size of fp32, {reason} "
                        "export fp32 alone, without int8"
                    )
                return small, report
            # Measuring the whole model is slow, so each round makes as many upgrades as the sum of the single effects
            # suggests. The next round measures whether they suffice.
            before = dict(steps)
            allowed = self._effect(steps) * self._allowed_share(report)
            while not self._budget.strict and (upgrade := self._upgrade(steps)) is not None:
                steps[upgrade[0]] = upgrade[1]
                if self._effect(steps) <= allowed:
                    break
            if steps == before:
                raise ExportError(f"int8 does not meet its budget: {nearness}; {_WAYS_OUT}")
            chosen = list(steps.values())
            self._step(
                f"int8 misses its budget, {nearness}: of {len(self._plan.sites)} parts now "
                f"{chosen.count('columns')} with further columns, {chosen.count('fp32')} in fp32"
            )

    def _measure(self, steps: Mapping[str, Step]) -> tuple[ir.Model, Int8Report]:
        small = copy_model(self._model)
        apply_plan(small, self._plan, steps)
        found = _answers(small, self._inputs, self._unseen)
        agreement = float(np.mean(_same_best(self._exact, found)))
        layers = tuple(self._plan.reports(steps))
        return small, Int8Report(layers, _perplexity(found), _perplexity(self._exact), agreement, len(found[1]))

    def _allowed_share(self, report: Int8Report) -> float:
        """Return the permitted share of the present effect of int8."""
        # Top-1 disagreement grows with the square root of the effect, perplexity in proportion to it.
        wanted = 1 - self._budget.agreement(report.fp32_perplexity)
        share = (wanted / max(1 - report.agreement, 1e-9)) ** 2
        increase = report.perplexity / report.fp32_perplexity - 1
        if increase > self._budget.max_perplexity_increase:
            share = min(share, self._budget.max_perplexity_increase / increase)
        # Only half of the way, on a logarithmic scale: upgrades that turn out to be unnecessary would cost speed.
        return _SAFETY * math.sqrt(min(share, 1.0))

    def _upgrade(self, steps: Mapping[str, Step]) -> tuple[str, Step] | None:
        """Return the part and step with the best ratio of removed effect to additional time; None if none is left."""
        best: float = 0.0
        chosen: tuple[str, Step] | None = None
        for part, site in self._plan.sites.items():
            now = steps.get(part, "int8")
            # Per weight: one multiply-add per row, plus reading the weight once. Outlier columns add to both.
            rows = self._rows[part]
            times = {step: (rows + _BYTE_TIME) * (1 + site.further(step)) for step in site.steps}
            times["fp32"] = rows * _FP32_TIME + 4 * _BYTE_TIME
            for step, time in times.items():
                won = self._effect_of(part, now) - self._effect_of(part, step)
                taken = max(time - times[now], 1e-9) * site.multiply_adds
                if won / taken > best:
                    best, chosen = won / taken, (part, step)
        return chosen

    def _effect(self, steps: Mapping[str, Step]) -> float:
        return math.fsum(self._effect_of(part, steps.get(part, "int8")) for part in self._plan.sites)

    def _effect_of(self, part: str, step: Step) -> float:
        """Return the effect of quantizing one part alone; small effects of several parts add up."""
        if not self._effects:
            self._step(f"measuring what each of {len(self._plan.sites)} parts does to the answers")
            self._effects = _effects(self._model, self._plan, self._inputs, self._seen)
        # Measured for plain int8 only. For small errors the divergence grows with the square of the layer's error.
        site = self._plan.sites[part]
        return self._effects[part] * (site.error(step) / max(site.error("int8"), 1e-12)) ** 2


def weight_bytes(model: ir.Model) -> int:
    """Return the size of a graph's weights."""
    return sum(each.const_value.nbytes for each in model.graph.initializers.values() if each.const_value is not None)


def _rows_a_text(rows: Mapping[str, int], batches: Sequence[Batch]) -> dict[str, float]:
    """Return the number of rows that each part computes for a text with one mask: all tokens, or one."""
    tokens = sum(int(batch.attention_mask.sum()) for batch in batches)
    texts = sum(len(batch.input_ids) for batch in batches)
    return {name: tokens / texts if count >= tokens else 1.0 for name, count in rows.items()}


def _effects(
    model: ir.Model, plan: QuantizationPlan, inputs: Sequence[str], batches: Sequence[Batch]
) -> dict[str, float]:
    """Return the mean Kullback-Leibler divergence over masks, with one part quantized at a time."""
    # One graph with a switch for each part, so that a single session serves all measurements.
    both = copy_model(model)
    apply_plan(both, plan, {}, switches=True)
    session = open_model(both)
    # Two batches of medium length: representative, and every part takes a run of each.
    middle = [batches[len(batches) * share // 3] for share in (1, 2)]
    parts = list(plan.sites)

    def logprobs(batch: Batch, part: int | None) -> NDArray[np.float64]:
        flags = np.zeros(len(parts), bool)
        if part is not None:
            flags[part] = True
        logits, normalizer = session.run(["logits", "log_normalizer"], feeds(batch, inputs) | {"quantized": flags})
        found: NDArray[np.float64] = logits.astype(np.float64) - normalizer
        return found

    effects = dict.fromkeys(parts, 0.0)
    for batch in middle:
        exact = logprobs(batch, None)
        weights = np.exp(exact)
        for index, part in enumerate(parts):
            difference = exact - logprobs(batch, index)
            effects[part] += float((weights * difference).sum()) / len(exact) / len(middle)
    return {part: max(effect, 1e-12) for part, effect in effects.items()}


_Answers = tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]


def _answers(model: ir.Model, inputs: Sequence[str], batches: Sequence[Batch]) -> _Answers:
    """Return, for each mask, the top-2 tokens and the log-probabilities of the masked token and of the top-2."""
    session = open_model(model)
    outputs = ["top_ids", "candidate_logprobs", "top_logprobs"]
    runs = [session.run(outputs, feeds(batch, inputs, top_k=2)) for batch in batches]
    ids, answers, best = (np.concatenate(part) for part in zip(*runs, strict=True))
    return ids, answers, best


def _same_best(exact: _Answers, found: _Answers) -> NDArray[np.bool_]:
    """Return for which masks the top-1 prediction agrees; in a tie, either token counts."""
    # Two tokens whose fp32 probabilities differ by less than rounding can change places on any machine.
    tied = exact[2][:, 0] - exact[2][:, 1] < 1e-4
    same: NDArray[np.bool_] = (exact[0][:, 0] == found[0][:, 0]) | tied & (exact[0][:, 1] == found[0][:, 0])
    return same


def _perplexity(answers: _Answers) -> float:
    return math.exp(-float(answers[1].mean()))
