"""What is asked about each text: to fill its masks, or to score it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, get_args

from mlm_infer.checks import check_choice
from mlm_infer.errors import InputError, TextError
from mlm_infer.filler import MaskFiller
from mlm_infer.options import FillKeywords, fill_options
from mlm_infer.shared.columns import fill_columns, score_columns
from mlm_infer.tasks.fill import Choice
from mlm_infer.tasks.score import ScoreMethod, score_texts, whole_texts
from mlm_infer.text.encoded_text import WholeText
from mlm_infer.text.encoder import LongText, check_long_text

__all__ = ["FillQuestion", "Question", "ScoreQuestion"]

Names = Callable[[int], str]
"""Returns what a text is called in an error, from its number."""


@dataclass(frozen=True, slots=True)
class FillQuestion:
    """Fill the masks.

    Attributes:
        options: As for `MaskFiller.fill`.
    """

    options: FillKeywords = field(default_factory=FillKeywords)
    columns: ClassVar = ("masks", "error")
    """The columns of the answer."""

    def check(self, filler: MaskFiller) -> None:
        """Raise InputError if an option is invalid for a model."""
        Choice.of(filler.model, fill_options(self.options))

    def identity(self) -> dict[str, Any]:
        """Return what must be the same for the same answers, apart from the model; as JSON."""
        return {name: _as_json(value) for name, value in self.options.items()}

    def ask(self, filler: MaskFiller, texts: Sequence[Any], names: Names) -> Any:
        """Return a `pyarrow.Table` with a row for each text; an invalid text costs its own row."""
        results = filler.fill_stream(texts, on_error="return", **self.options)
        return fill_columns(
            [each.named(names(row)) if isinstance(each, TextError) else each for row, each in enumerate(results)]
        )


@dataclass(frozen=True, slots=True)
class ScoreQuestion:
    """Score the texts.

    Attributes:
        method: As for `MaskFiller.score`.
        long_text: As for `MaskFiller.score`.
    """

    method: ScoreMethod = "pll"
    long_text: LongText = "error"
    columns: ClassVar = ("logprob", "pseudo_perplexity", "tokens", "error")
    """The columns of the answer."""

    def check(self, filler: MaskFiller) -> None:
        """Raise InputError if an option is invalid for a model."""
        check_choice("method", self.method, get_args(ScoreMethod))
        check_long_text(self.long_text)

    def identity(self) -> dict[str, Any]:
        """Return what must be the same for the same answers, apart from the model; as JSON."""
        return {"method": self.method, "long_text": self.long_text}

    def ask(self, filler: MaskFiller, texts: Sequence[Any], names: Names) -> Any:
        """Return a `pyarrow.Table` with a row for each text; an invalid text costs its own row."""
        wholes = [self._whole(filler, text, names(row)) for row, text in enumerate(texts)]
        good = [each for each in wholes if not isinstance(each, InputError)]
        results = score_texts(filler.model, good, method=self.method)
        return score_columns([each if isinstance(each, InputError) else next(results) for each in wholes])

    def _whole(self, filler: MaskFiller, text: Any, name: str) -> WholeText | InputError:
        try:
            (whole,) = whole_texts(filler.model, [text], self.long_text)
        except TextError as error:
            return error.named(name)
        except InputError as error:
            return error
        return whole


Question = FillQuestion | ScoreQuestion


def _as_json(value: Any) -> Any:
    """Return an option as JSON: sets in an order, and a compiled expression as it was written."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    return getattr(value, "pattern", list(value) if isinstance(value, tuple) else value)
