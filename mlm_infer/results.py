"""The results of a `MaskFiller`: frozen, typed, with the same structure for one mask and for several."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "Candidate",
    "FillResult",
    "FillerInfo",
    "Infilling",
    "MaskResult",
    "Prediction",
    "RankResult",
    "ScoreResult",
    "TokenScore",
]

Span = tuple[int, int]


class _AsDict:
    """Conversion of a result to plain dictionaries."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the result as a dictionary that can be written as JSON."""
        return asdict(self)  # type: ignore[call-overload,no-any-return]


@dataclass(frozen=True, slots=True)
class Prediction:
    """One token for one mask.

    Attributes:
        token: The token as spelled in the vocabulary, such as `##ing` or `Ġspiral`.
        token_id: Its id.
        text: The token without the tokenizer's word marker, such as `ing` or `spiral`.
        starts_word: Whether the token begins a word, according to that marker.
        score: Its probability, normalized over the whole vocabulary unless `renormalize` is set.
        logprob: The natural logarithm of the probability.
        sequence: The user's text with this mask replaced; case and spacing are kept.
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
        position: Index of the mask among the tokens of the text, special tokens included.
        span: Start and end of the mask in the user's text, in characters; the end is exclusive.
        predictions: Predictions, best first.
        window: Start and end of the part of the text that the model saw, if the text was too long; else None.
    """

    position: int
    span: Span
    predictions: tuple[Prediction, ...]
    window: Span | None = None


@dataclass(frozen=True, slots=True)
class FillResult(_AsDict):
    """The answer for one text.

    Attributes:
        text: The input text.
        masks: One result per mask, in the order of the text.
    """

    text: str
    masks: tuple[MaskResult, ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A word or phrase as a filling of a mask.

    Attributes:
        text: The candidate as given.
        tokens: Its tokens as spelled in the vocabulary.
        logprobs: The log-probability of each token.
        logprob: Their sum.
        score: The ranking criterion: the sum, or the mean with `normalize=True`.
        sequence: The user's text with the mask replaced by the candidate.
    """

    text: str
    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]
    logprob: float
    score: float
    sequence: str


@dataclass(frozen=True, slots=True)
class RankResult(_AsDict):
    """Ranked candidates for each mask of a text.

    Attributes:
        text: The input text.
        masks: For each mask, its candidates, best first.
    """

    text: str
    masks: tuple[tuple[Candidate, ...], ...]


@dataclass(frozen=True, slots=True)
class Infilling(_AsDict):
    """A joint filling of all masks of a text.

    Attributes:
        sequence: The user's text with every mask replaced.
        fillings: The filling of each mask.
        tokens: The tokens of each filling.
        logprob: Sum of the log-probabilities of the tokens, each conditioned on those filled before it.
        score: Their mean, by which fillings of different lengths are compared.
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
        token: The token as spelled in the vocabulary.
        token_id: Its id.
        span: Start and end of the token in the text, in characters; the end is exclusive.
        logprob: Its natural log-probability.
        unknown: Whether it is the unknown token, which stands for all text without a token in the vocabulary:
            "nice 😀" and "nice 🎉" get the same score.
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
        text: The input text.
        tokens: Its tokens, without special tokens.
        logprob: Sum of their log-probabilities.
    """

    text: str
    tokens: tuple[TokenScore, ...]
    logprob: float

    @property
    def pseudo_perplexity(self) -> float:
        """Exponential of the mean negative log-probability per token."""
        return math.exp(-self.logprob / len(self.tokens))


@dataclass(frozen=True, slots=True)
class FillerInfo:
    """Describes the model that a `MaskFiller` runs.

    Attributes:
        path: The bundle.
        source: The checkpoint that was exported.
        architecture: Its `model_type`.
        backend: `onnx`, `openvino` or `torchscript`.
        precision: `fp32`, `fp16`, `bf16` or `int8`.
        provider: ONNX Runtime's execution provider, or OpenVINO or TorchScript and the device.
        mask_token: The model's own mask token; `[MASK]` and `<mask>` are accepted as well.
        max_length: Maximum number of tokens in a text.
        vocab_size: Size of the vocabulary.
        cpu: Type of this processor: `avx2`, `avx512`, `avx512_vnni` or `arm64`. int8 gives the same answers on all
            of them and is fastest on the last two.
    """

    path: Path
    source: str
    architecture: str
    backend: str
    precision: str
    provider: str
    mask_token: str
    max_length: int
    vocab_size: int
    cpu: str
