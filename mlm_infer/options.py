"""The options of a fill: what each means, its default, and its check."""

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
    """How to fill masks.

    Attributes:
        top_k: Most predictions per mask, from 1 to the size of the vocabulary.
        targets: Words to choose among, each one token of the model; with or without a leading space. Text that the
            model has no token for (an emoji, to most English models) is an error.
        allow: Words that may be given; those that are no single token are passed over.
        deny: Words that are never given.
        words_only: Leave out special tokens, punctuation, numbers and tokens that continue a word.
        pattern: Regular expression that the word has to match as a whole.
        min_score: Least probability of a prediction, from 0 to 1; there may be fewer than `top_k`.
        renormalize: Scores over what may be given instead of the whole vocabulary.
        long_text: `error`, or `window` to show the model only the surroundings of each mask where the text has more
            tokens than it takes; `MaskResult.window` says which.
        restriction: Which tokens the options above leave.

    Raises:
        InputError: A value cannot be used.
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
    """The fields of `FillOptions` as keyword arguments, which editors and mypy check by name."""

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
    """Return the options that keyword arguments stand for.

    Args:
        keywords: `FillKeywords`, as a method got them.

    Raises:
        InputError: A name or a value cannot be used.
    """
    check_names(keywords)
    return FillOptions(**keywords)


def check_names(keywords: Mapping[str, Any]) -> None:
    """Raise InputError where a keyword argument is no option, and name the nearest that is."""
    known = FillKeywords.__annotations__
    for name in keywords:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise InputError(f"there is no option {name!r}; {hint}")
