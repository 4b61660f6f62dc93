"""What is asked about each text: to fill its masks, or to score it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, get_args

import pyarrow

from mlm_infer.checks import check_choice
from mlm_infer.errors import InputError
from mlm_infer.filler import MaskFiller
from mlm_infer.options import FillKeywords, fill_options
from mlm_infer.results import ScoreResult
from mlm_infer.tasks.columns import text_column
from mlm_infer.tasks.fill import Choice
from mlm_infer.tasks.score import ScoreMethod, score_texts, whole_texts
from mlm_infer.text.encoded_text import WholeText
from mlm_infer.text.encoder import LongText, check_long_text

__all__ = ["FillQuestion", "Question", "ScoreQuestion"]


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

    def ask(self, filler: MaskFiller, table: Any, column: str) -> Any:
        """Return a `pyarrow.Table` with the columns of the answer added; an invalid text costs its own row."""
        return filler.map_batch(table, column=column, **self.options)


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

    def ask(self, filler: MaskFiller, table: Any, column: str) -> Any:
        """Return a `pyarrow.Table` with the columns of the answer added; an invalid text costs its own row."""
        columns = dict(zip(table.column_names, table.itercolumns(), strict=True))
        wholes = [self._whole(filler, text) for text in text_column(columns, column)]
        good = [each for each in wholes if not isinstance(each, InputError)]
        results = score_texts(filler.model, good, method=self.method)
        return pyarrow.table(
            columns | _score_columns([each if isinstance(each, InputError) else next(results) for each in wholes])
        )

    def _whole(self, filler: MaskFiller, text: Any) -> WholeText | InputError:
        try:
            (whole,) = whole_texts(filler.model, [text], self.long_text)
        except InputError as error:
            return error
        return whole


def _score_columns(results: Sequence[ScoreResult | InputError]) -> dict[str, Any]:
    token = pyarrow.struct(
        [
            ("token", pyarrow.string()),
            ("token_id", pyarrow.int64()),
            ("span", pyarrow.list_(pyarrow.int64())),
            ("logprob", pyarrow.float64()),
            ("unknown", pyarrow.bool_()),
        ]
    )
    scored = [None if isinstance(each, InputError) else each for each in results]
    errors = [str(each) if isinstance(each, InputError) else None for each in results]
    return {
        "logprob": pyarrow.array([each and each.logprob for each in scored], pyarrow.float64()),
        "pseudo_perplexity": pyarrow.array([each and each.pseudo_perplexity for each in scored], pyarrow.float64()),
        "tokens": pyarrow.array([each and each.to_dict()["tokens"] for each in scored], pyarrow.list_(token)),
        "error": pyarrow.array(errors, pyarrow.string()),
    }


Question = FillQuestion | ScoreQuestion


def _as_json(value: Any) -> Any:
    """Return an option as JSON: sets in an order, and a compiled expression as it was written."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    return getattr(value, "pattern", list(value) if isinstance(value, tuple) else value)
