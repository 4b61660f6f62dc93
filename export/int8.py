"""int8 within a budget: as many layers as the answers allow."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from mlm_infer.cpu import CpuKind
from mlm_infer.errors import DataError, ExportError, InputError
from mlm_infer.samples import movie_reviews

from .batches import Batch, feeds, sentence_batches
from .calibrate import calibrate
from .dense import dense_sites
from .quantize import LayerReport, apply_plan, make_plan
from .run_model import open_model

__all__ = ["Budget", "Int8Report", "calibration_sentences", "quantize_within"]

_CALIBRATION = 600
_HELD_OUT = 600
_SHORTEST = 40
_EXTRA_SHARES = (0.06, 0.25)
"""Further columns for outlier channels, as a share of the channels: what is tried first, and what next."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What int8, and fp16, may cost, measured on text that calibration did not see.

    Attributes:
        max_perplexity_increase: Relative to fp32: 0.01 is one percent.
        min_agreement: Share of masks with the same best token as fp32.
        strict: Raise an error rather than leave int8 layers in fp32; fp16 has none to leave.
    """

    max_perplexity_increase: float = 0.01
    min_agreement: float = 0.96
    strict: bool = False

    def __post_init__(self) -> None:
        if self.max_perplexity_increase < 0:
            raise InputError(f"max_perplexity_increase is {self.max_perplexity_increase}; it must be 0 or more")
        if not 0 <= self.min_agreement <= 1:
            raise InputError(f"min_agreement is {self.min_agreement}; it must be from 0 to 1")


@dataclass(frozen=True, slots=True)
class Int8Report:
    """What was chosen, and what it costs.

    Attributes:
        layers: The choice for each layer.
        perplexity: On held-out text.
        fp32_perplexity: Of fp32 on the same.
        agreement: Share of its masks with the same best token as fp32.
        masks: How many masks that is.
    """

    layers: tuple[LayerReport, ...]
    perplexity: float
    fp32_perplexity: float
    agreement: float
    masks: int

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON can hold it."""
        return {
            "layers": [layer.to_dict() for layer in self.layers],
            "perplexity": self.perplexity,
            "fp32_perplexity": self.fp32_perplexity,
            "agreement": self.agreement,
            "masks": self.masks,
        }

    def summary(self) -> str:
        """Return one line for a person."""
        schemes = [layer.scheme for layer in self.layers]
        counts = ", ".join(f"{schemes.count(each)} {each}" for each in dict.fromkeys(schemes))
        return (
            f"int8 layers: {counts}; on {self.masks} held-out masks perplexity {self.perplexity:.2f} "
            f"({self.perplexity / self.fp32_perplexity - 1:+.2%}), same best token {self.agreement:.1%}"
        )


def calibration_sentences(path: Path | None) -> list[str]:
    """Return text to calibrate on: the lines of a file, or the built-in reviews.

    Raises:
        DataError: The file cannot be read or has too few lines.
    """
    if path is None:
        return movie_reviews()[: _CALIBRATION + _HELD_OUT]
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError as error:
        raise DataError(f"there is no calibration file {path}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"the calibration file {path} is not UTF-8; convert it first") from error
    if len(lines) < _SHORTEST:
        raise DataError(
            f"the calibration file {path} has {len(lines)} lines of text; give at least {_SHORTEST}, better some "
            "hundreds, or leave --calibration-data out for the built-in text"
        )
    return lines[: _CALIBRATION + _HELD_OUT]


def quantize_within(
    model: ir.Model,
    inputs: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    room: int,
    cpu: CpuKind,
    budget: Budget,
    sentences: Sequence[str],
    on_step: Callable[[str], None],
) -> tuple[ir.Model, Int8Report]:
    """Quantize as many layers of a model as a budget allows.

    Half of the text calibrates, half measures. Where the budget is not met, outlier channels get more columns,
    and then the layers with the largest errors go back to fp32, twice as many at each try.

    Args:
        model: The fp32 serving graph; left as it is.
        inputs: Names of the encoder's inputs.
        tokenizer: The model's tokenizer.
        room: Most tokens a text, without the special ones.
        cpu: The processor to make it for.
        budget: What it may cost.
        sentences: Text.
        on_step: Called with a line of text as each step begins.

    Raises:
        ExportError: The budget is strict, or cannot be met, and by how much.
    """
    middle = len(sentences) // 2
    seen = sentence_batches(tokenizer, sentences[:middle], room, share=0.15)
    unseen = sentence_batches(tokenizer, sentences[middle:], room, share=0.15)
    stats = calibrate(model, list(dense_sites(model.graph)), inputs, seen)

    def rounded(done: int, total: int) -> None:
        if done % max(1, total // 4) == 0:
            on_step(f"rounding weights, {done} of {total} layers")

    plan = make_plan(model, stats, cpu, _EXTRA_SHARES[0], on_layer=rounded)
    exact = _answers(model, inputs, unseen)
    fp32_perplexity = _perplexity(exact)
    shares = list(_EXTRA_SHARES[1:])
    kept = 0
    while True:
        worst_first = sorted(plan.reports.values(), key=lambda report: -report.error)
        names = frozenset(report.name for report in worst_first[:kept])
        small = ir.from_proto(ir.to_proto(model))
        layers = apply_plan(small, plan, names)
        found = _answers(small, inputs, unseen)
        agreement = float(np.mean(_same_best(exact, found)))
        report = Int8Report(tuple(layers), _perplexity(found), fp32_perplexity, agreement, len(found[1]))
        increase = report.perplexity / fp32_perplexity - 1
        if increase <= budget.max_perplexity_increase and agreement >= budget.min_agreement:
            return small, report
        nearness = (
            f"perplexity {increase:+.2%} (at most {budget.max_perplexity_increase:+.2%}), "
            f"same best token {agreement:.1%} (at least {budget.min_agreement:.1%})"
        )
        if shares:
            plan = make_plan(model, stats, cpu, shares.pop(0), plan.layers)
            on_step(f"int8 misses its budget, {nearness}: giving outliers more columns")
            continue
        if budget.strict or kept >= len(worst_first):
            raise ExportError(
                f"int8 does not meet its budget: {nearness}; allow more with --max-perplexity-increase and "
                "--min-agreement, or leave the worst layers in fp32 (without --strict)"
            )
        kept = min(max(1, 2 * kept), len(worst_first))
        on_step(f"int8 misses its budget, {nearness}: leaving {kept} of {len(worst_first)} layers in fp32")


_Answers = tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]


def _answers(model: ir.Model, inputs: Sequence[str], batches: Sequence[Batch]) -> _Answers:
    """Return the two best tokens and their log-probabilities, and those of the answers, for each mask."""
    session = open_model(model)
    outputs = ["top_ids", "candidate_logprobs", "top_logprobs"]
    runs = [session.run(outputs, feeds(batch, inputs, top_k=2)) for batch in batches]
    ids, answers, best = (np.concatenate(part) for part in zip(*runs, strict=True))
    return ids, answers, best


def _same_best(exact: _Answers, found: _Answers) -> NDArray[np.bool_]:
    """Tell for which masks the best token is the same; either of a tie will do."""
    tied = exact[2][:, 0] - exact[2][:, 1] < 1e-4
    same: NDArray[np.bool_] = (exact[0][:, 0] == found[0][:, 0]) | tied & (exact[0][:, 1] == found[0][:, 0])
    return same


def _perplexity(answers: _Answers) -> float:
    return math.exp(-float(answers[1].mean()))
