"""What filling a mask gives: frozen, typed, and of the same shape for one mask and for many."""

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["FillResult", "MaskResult", "Prediction"]


@dataclass(frozen=True, slots=True)
class Prediction:
    """One token for one mask.

    Attributes:
        token: The token as the vocabulary spells it, such as `##ing` or `Ġspiral`.
        token_id: Its id.
        text: The token without its tokenizer's marker, such as `ing` or `spiral`.
        score: Its probability over the whole vocabulary.
        logprob: The natural logarithm of that.
        sequence: The user's text with this mask replaced, its case and spacing kept.
    """

    token: str
    token_id: int
    text: str
    score: float
    logprob: float
    sequence: str


@dataclass(frozen=True, slots=True)
class MaskResult:
    """The predictions for one mask.

    Attributes:
        position: Index of the mask among the text's tokens, the special ones included.
        span: Where the mask stands in the user's text: first character, and the one after the last.
        predictions: Best first.
    """

    position: int
    span: tuple[int, int]
    predictions: tuple[Prediction, ...]


@dataclass(frozen=True, slots=True)
class FillResult:
    """The answer for one text.

    Attributes:
        text: The text as it was given.
        masks: One result a mask, in the order of the text.
    """

    text: str
    masks: tuple[MaskResult, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON can hold it."""
        return asdict(self)
