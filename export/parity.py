"""Compares an exported model with PyTorch, at the masked positions of real text."""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from mlm_infer.bundle.manifest import TORCHSCRIPT
from mlm_infer.errors import ExportError, ModelError
from mlm_infer.runtime.backend import Backend
from mlm_infer.shared.tables import format_table

from .batches import Batch, feeds, shape_batches, text_batches
from .budget import Budget
from .source import Source

__all__ = [
    "Batch",
    "ParityCase",
    "ParityReport",
    "check_case",
    "check_reads_text",
    "compare",
    "fp32_distance",
    "make_batches",
    "mixes_padding",
    "reference",
]

SCORE_TOLERANCE = 1e-5
"""Maximum difference of a probability between fp32 and PyTorch without further checks."""

LOGPROB_TOLERANCE = 1e-3
"""The same for log-probabilities, in which rounding differences are larger."""

FP32_FACTOR = 8.0
"""Maximum error of an fp32 export relative to that of PyTorch's own fp32, both against fp64. Sums in another order
round differently, with more effect on a model with confident predictions: 4.5 was found for a correct export."""

_SENTENCES = 250
_TIE = 1e-4
"""Two logits this close in PyTorch are a tie; either order is correct."""

_SAME = 1e-6
"""Log-probabilities that differ by less between texts do not depend on the text."""


Distance = tuple[float, float]
"""Maximum difference of a probability, and of a log-probability of tokens with a probability of at least 1e-4."""


@dataclass(frozen=True, slots=True)
class ParityCase:
    """One comparison with PyTorch.

    Attributes:
        precision: Name of the model in the bundle: `fp32`, `fp16`, `int8` or `torchscript`.
        case: Number of texts and length of the batch, or `sentences`.
        masks: Number of compared mask positions.
        score_difference: Maximum absolute difference of a probability, over the whole vocabulary.
        logprob_difference: The same for log-probabilities, of tokens with at least 1e-4 in PyTorch.
        top1: Top-1 agreement.
        top5: Mean share of PyTorch's top-5 tokens that are among the model's top-5.
        perplexity: Perplexity of the exported model on these masks.
        reference_perplexity: Perplexity of PyTorch on these masks.
    """

    precision: str
    case: str
    masks: int
    score_difference: float
    logprob_difference: float
    top1: float
    top5: float
    perplexity: float
    reference_perplexity: float


@dataclass(frozen=True, slots=True)
class ParityReport:
    """The result of an export.

    Attributes:
        cases: Comparisons of each precision on several batch shapes, and on sentences with one mask each.
        bytes: Model size by precision.
        output: The bundle.
    """

    cases: tuple[ParityCase, ...]
    bytes: dict[str, int]
    output: Path

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a dictionary that can be written as JSON."""
        return {"cases": [asdict(case) for case in self.cases], "bytes": self.bytes}

    def table(self) -> str:
        """Return the comparison as a table."""
        rows = [
            [
                case.precision,
                case.case,
                str(case.masks),
                f"{case.score_difference:.1e}",
                f"{case.logprob_difference:.1e}",
                f"{case.top1:.1%}",
                f"{case.top5:.1%}",
                f"{case.perplexity:.2f}",
                f"{case.perplexity / case.reference_perplexity - 1:+.2%}",
            ]
            for case in self.cases
        ]
        header = [
            "",
            "batch",
            "masks",
            "max score diff",
            "max logprob diff",
            "top-1",
            "top-5",
            "perplexity",
            "change",
        ]
        sizes = ", ".join(f"{precision} {size / 1e6:.1f} MB" for precision, size in self.bytes.items())
        return f"{format_table(header, rows)}\n\nmodel files: {sizes}"


def make_batches(
    tokenizer: PreTrainedTokenizerBase, longest: int, texts: Sequence[list[int]]
) -> dict[str, list[Batch]]:
    """Return the batches to compare on: several shapes filled with text, and single-mask sentences.

    Args:
        tokenizer: The model's tokenizer.
        longest: Maximum number of tokens of the model.
        texts: Token ids without special tokens; the first 250 are the sentences, the rest fills the shapes.
    """
    room = longest - tokenizer.num_special_tokens_to_add()
    sentences = texts[:_SENTENCES]
    batches = {name: [batch] for name, batch in shape_batches(tokenizer, texts[_SENTENCES:] or texts, longest)}
    batches["sentences"] = text_batches(tokenizer, sentences, room, share=0.0)
    return batches


def reference(source: Source, batch: Batch, inputs: Sequence[str], *, everywhere: bool) -> NDArray[np.float32]:
    """Return the log-probabilities of the exported model at the masks, [masks, vocabulary].

    Args:
        source: The model.
        batch: The batch to run.
        inputs: Names of the inputs to use.
        everywhere: Compute logits at every token, as users of the model do, instead of at the masks only.
    """
    if not everywhere:
        return source.row_logprobs(feeds(batch, inputs), inputs, batch.flat)
    found = source.logprobs(feeds(batch, inputs), inputs)
    result: NDArray[np.float32] = found.reshape(-1, found.shape[-1])[batch.flat]
    return result


def check_reads_text(name: str, source: Source, batch: Batch, inputs: Sequence[str]) -> None:
    """Reject a model that predicts the same for every text.

    transformers loads a head that is tied in another way than it expects as zeros, without a warning
    (huggingface/transformers#44931).

    Args:
        name: What the user calls the model.
        source: The model.
        batch: Texts that differ.
        inputs: Names of the inputs to use.

    Raises:
        ModelError: Its predictions do not depend on the text.
    """
    if float(np.ptp(reference(source, batch, inputs, everywhere=True), axis=0).max()) >= _SAME:
        return
    if source.foreign:
        raise ModelError(f"{name} predicts the same for every text; export it from its checkpoint again")
    raise ModelError(
        f"{name} predicts the same for every text: this version of transformers does not load the weights of "
        "its head; use the version that the checkpoint was saved with (transformers_version in its config.json)"
    )


def mixes_padding(source: Source, batch: Batch, inputs: Sequence[str]) -> bool:
    """Return whether padding changes a model's answers, by comparing the shortest text of a batch with and without it.

    Args:
        source: The model.
        batch: Texts of several lengths.
        inputs: Names of the inputs to use.
    """
    lengths = batch.attention_mask.sum(axis=1)
    row, length = int(lengths.argmin()), int(lengths.min())
    arrays = feeds(batch, inputs)
    padded, alone = (
        source.logprobs({name: arrays[name][row : row + 1, :end] for name in inputs}, inputs)[0, :length]
        for end in (None, length)
    )
    return float(np.abs(padded - alone).max()) > LOGPROB_TOLERANCE


def compare(
    precision: str,
    case: str,
    session: Backend,
    inputs: Sequence[str],
    pairs: Iterator[tuple[Batch, NDArray[np.float32]]],
) -> ParityCase:
    """Compare a session with PyTorch's log-probabilities.

    Args:
        precision: Name of the model, for the report.
        case: Name of the case, for the report.
        session: The exported model.
        inputs: Names of its encoder inputs.
        pairs: Batches, each with its result of `reference`.
    """
    masks = score_difference = logprob_difference = top1 = top5 = 0.0
    loss = reference_loss = 0.0
    for batch, expected in pairs:
        outputs = ("logits", "log_normalizer", "top_ids", "candidate_logprobs")
        logits, normalizer, top_ids, answer_logprobs = session.run(outputs, feeds(batch, inputs))
        found = logits - normalizer
        count = len(expected)
        masks += count
        score_difference, logprob_difference = _larger(
            (score_difference, logprob_difference), _distance(found, expected)
        )
        # A prediction is correct if PyTorch's score for it reaches that of PyTorch's first (or fifth) token.
        best = np.take_along_axis(expected, top_ids, 1)
        order = -np.sort(-np.partition(expected, -5, axis=1)[:, -5:])
        top1 += float((best[:, 0] >= order[:, 0] - _TIE).sum())
        top5 += float((best >= order[:, -1:] - _TIE).mean(axis=1).sum())
        loss -= float(answer_logprobs.sum())
        reference_loss -= float(np.take_along_axis(expected, batch.answers[:, None], 1).sum())
    return ParityCase(
        precision=precision,
        case=case,
        masks=int(masks),
        score_difference=score_difference,
        logprob_difference=logprob_difference,
        top1=top1 / masks,
        top5=top5 / masks,
        perplexity=math.exp(loss / masks),
        reference_perplexity=math.exp(reference_loss / masks),
    )


def fp32_distance(
    source: Source, session: Backend, inputs: Sequence[str], pairs: Sequence[tuple[Batch, NDArray[np.float32]]]
) -> tuple[Distance, Distance] | None:
    """Return how far the exported model and what it was made of are from fp64.

    Args:
        source: What was exported.
        session: The exported model.
        inputs: Names of its encoder inputs.
        pairs: Batches, each with what `reference` gave for it.

    Returns:
        The two distances; None where the source cannot be run in fp64.
    """
    found = []
    for batch, expected in pairs:
        logits, normalizer = session.run(("logits", "log_normalizer"), feeds(batch, inputs))
        found.append((logits - normalizer, expected, batch))
    # fp64 is slow, so it runs only on the batches with the largest difference in either measure.
    worst = {int(np.argmax(each)) for each in zip(*(_distance(mine, other) for mine, other, _ in found), strict=True)}
    ours = theirs = (0.0, 0.0)
    for mine, other, batch in (found[index] for index in sorted(worst)):
        everywhere = source.exact_logprobs(feeds(batch, inputs), inputs)
        if everywhere is None:
            return None
        exact = everywhere.reshape(-1, everywhere.shape[-1])[batch.flat]
        ours = _larger(ours, _distance(mine, exact))
        theirs = _larger(theirs, _distance(other, exact))
    return ours, theirs


def _distance(found: NDArray[Any], expected: NDArray[Any]) -> Distance:
    likely = expected > math.log(1e-4)
    return (
        float(np.abs(np.exp(found) - np.exp(expected)).max()),
        float(np.abs(found - expected)[likely].max(initial=0.0)),
    )


def _larger(one: Distance, other: Distance) -> Distance:
    return max(one[0], other[0]), max(one[1], other[1])


def check_case(
    case: ParityCase,
    budget: Budget,
    rounded: Collection[str],
    distance: Callable[[], tuple[Distance, Distance] | None],
) -> None:
    """Reject an fp32 model with an error beyond fp32 rounding, and other precisions that miss the accuracy budget.

    Args:
        case: A result of `compare`.
        budget: The accuracy budget, applied to the sentences.
        rounded: Precisions that must meet the budget.
        distance: Computes `fp32_distance`; called only if the model differs from PyTorch's fp32.

    Raises:
        ExportError: The model is rejected.
    """
    if case.precision in ("fp32", TORCHSCRIPT):
        near = case.score_difference <= SCORE_TOLERANCE and case.logprob_difference <= LOGPROB_TOLERANCE
        if near:
            return
        found = distance()
        ours, theirs = found or ((case.score_difference, case.logprob_difference), (0.0, 0.0))
        for name, mine, other, least in zip(
            ("probabilities", "log-probabilities"), ours, theirs, (SCORE_TOLERANCE, LOGPROB_TOLERANCE), strict=True
        ):
            limit = max(least, FP32_FACTOR * other)
            if not mine <= limit:
                off = (
                    f"{other:.1e} off the same in fp64, this one's {mine:.1e}"
                    if found
                    else f"{mine:.1e} off this one's"
                )
                raise ExportError(
                    f"the exported {case.precision} model differs too much from what it was made of on {case.case}: "
                    f"the {name} of that are {off} (at most {limit:.1e}); no bundle was written"
                )
    met = budget.met(case.perplexity, case.reference_perplexity, case.top1)
    if case.precision in rounded and case.case == "sentences" and not met:
        raise ExportError(
            f"{case.precision} does not meet its budget: "
            f"{budget.nearness(case.perplexity, case.reference_perplexity, case.top1)}; allow more with "
            "--max-perplexity-increase and --min-agreement"
        )
