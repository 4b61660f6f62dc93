"""What the methods of a `MaskFiller` give: frozen, typed, and of the same shape for one mask and for many."""

import math
from dataclasses import asdict, dataclass
from typing import Any

__all__ = [
    "Candidate",
    "FillResult",
    "Infilling",
    "MaskResult",
    "Prediction",
    "RankResult",
    "ScoreResult",
    "TokenScore",
]

Span = tuple[int, int]


class _AsDict:
    """Results turn into what JSON can hold."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON can hold it."""
        return asdict(self)  # type: ignore[call-overload,no-any-return]


@dataclass(frozen=True, slots=True)
class Prediction:
    """One token for one mask.

    Attributes:
        token: The token as the vocabulary spells it, such as `##ing` or `Ġspiral`.
        token_id: Its id.
        text: The token without its tokenizer's marker, such as `ing` or `spiral`.
        starts_word: Whether the token begins a word, by that marker.
        score: Its probability, over the whole vocabulary unless `renormalize` was asked for.
        logprob: The natural logarithm of that.
        sequence: The user's text with this mask replaced, its case and spacing kept.
    """

    token: str
    token_id: int
    text: str
    starts_word: bool
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
        window: The characters of the text that the model saw, where the text was too long; None for all.
    """

    position: int
    span: Span
    predictions: tuple[Prediction, ...]
    window: Span | None = None


@dataclass(frozen=True, slots=True)
class FillResult(_AsDict):
    """The answer for one text.

    Attributes:
        text: The text as it was given.
        masks: One result per mask, in the order of the text.
    """

    text: str
    masks: tuple[MaskResult, ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A word or phrase in the place of a mask.

    Attributes:
        text: As it was given.
        tokens: Its tokens as the vocabulary spells them.
        logprobs: The log-probability of each.
        logprob: Their sum.
        score: What candidates are ordered by: the sum, or the mean with `normalize=True`.
        sequence: The user's text with the candidate in the mask's place.
    """

    text: str
    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]
    logprob: float
    score: float
    sequence: str


@dataclass(frozen=True, slots=True)
class RankResult(_AsDict):
    """Candidates in order, for each mask of a text.

    Attributes:
        text: The text as it was given.
        masks: For each mask its candidates, best first.
    """

    text: str
    masks: tuple[tuple[Candidate, ...], ...]


@dataclass(frozen=True, slots=True)
class Infilling(_AsDict):
    """All masks of a text filled together.

    Attributes:
        sequence: The user's text with every mask replaced.
        fillings: What came in the place of each mask.
        tokens: The tokens of each.
        logprob: Sum of the log-probabilities of the tokens, each given those that were filled before it.
        score: Mean of them, by which fillings of different lengths are compared.
    """

    sequence: str
    fillings: tuple[str, ...]
    tokens: tuple[tuple[str, ...], ...]
    logprob: float
    score: float


@dataclass(frozen=True, slots=True)
class TokenScore:
    """One token of a scored text.

    Attributes:
        token: The token as the vocabulary spells it.
        token_id: Its id.
        span: Where it stands in the text: first character, and the one after the last.
        logprob: Its natural log-probability in its place.
        unknown: Whether it stands for text that the model has no token for. Its log-probability is then that of
            any such text: "nice 😀" and "nice 🎉" score alike.
    """

    token: str
    token_id: int
    span: Span
    logprob: float
    unknown: bool = False


@dataclass(frozen=True, slots=True)
class ScoreResult(_AsDict):
    """The pseudo-log-likelihood of a text.

    Attributes:
        text: The text as it was given.
        tokens: Its tokens, special ones left out.
        logprob: Sum of their log-probabilities.
    """

    text: str
    tokens: tuple[TokenScore, ...]
    logprob: float

    @property
    def pseudo_perplexity(self) -> float:
        """Exponential of the mean negative log-probability of a token."""
        return math.exp(-self.logprob / len(self.tokens))
