"""The options of `fill`: meaning, default and validation."""

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

from mlm_infer.text.encoder import LongText, check_long_text
from mlm_infer.text.vocabulary import Restriction

from .checks import check_flag, fraction
from .errors import InputError

__all__ = ["FillKeywords", "FillOptions", "check_names", "fill_options"]


@dataclass(frozen=True, slots=True)
class FillOptions:
    """Options of `fill`.

    Attributes:
        top_k: Maximum number of predictions per mask, from 1 to the size of the vocabulary.
        targets: Predict only these words, each of which must be one token; with or without a leading space. Text
            without a token in the vocabulary (an emoji, in most English models) is an error.
        allow: Permitted words; words that are not a single token are ignored.
        deny: Excluded words.
        words_only: Exclude special tokens, punctuation, numbers and tokens that continue a word.
        pattern: Regular expression that must match the whole word.
        min_score: Minimum probability of a prediction, from 0 to 1; there may be fewer than `top_k`.
        renormalize: Normalize the scores over the permitted tokens instead of the whole vocabulary.
        long_text: `error`, or `window` to predict each mask from the window around it if the text has more tokens than
            the model accepts; `MaskResult.window` gives the window.
        restriction: The filters above, validated.

    Raises:
        InputError: A value is invalid.
    """

    top_k: int = 5
    targets: str | Sequence[str] | None = None
    allow: Collection[str] | None = None
    deny: Collection[str] | None = None
    words_only: bool = False
    pattern: str | re.Pattern[str] | None = None
    min_score: float = 0.0
    renormalize: bool = False
    long_text: LongText = "error"
    restriction: Restriction = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        restriction = Restriction.of(self.targets, self.allow, self.deny, self.words_only, self.pattern)
        object.__setattr__(self, "restriction", restriction)
        object.__setattr__(self, "min_score", fraction("min_score", self.min_score))
        check_flag("renormalize", self.renormalize)
        check_long_text(self.long_text)


class FillKeywords(TypedDict, total=False):
    """The fields of `FillOptions` as typed keyword arguments, which editors and mypy check by name."""

    top_k: int
    targets: str | Sequence[str] | None
    allow: Collection[str] | None
    deny: Collection[str] | None
    words_only: bool
    pattern: str | re.Pattern[str] | None
    min_score: float
    renormalize: bool
    long_text: LongText


def fill_options(keywords: Mapping[str, Any]) -> FillOptions:
    """Return the options given as keyword arguments.

    Args:
        keywords: `FillKeywords`, as passed to a method.

    Raises:
        InputError: A name or a value is invalid.
    """
    check_names(keywords)
    return FillOptions(**keywords)


def check_names(keywords: Mapping[str, Any]) -> None:
    """Raise InputError for a keyword argument that is not an option, and suggest the closest one."""
    known = FillKeywords.__annotations__
    for name in keywords:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise InputError(f"there is no option {name!r}; {hint}")
