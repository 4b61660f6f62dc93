"""What every question to a model needs."""

from dataclasses import dataclass

from .bundle import Manifest
from .encoding import TextEncoder
from .predict import Predictor

__all__ = ["Engine"]


@dataclass(frozen=True, slots=True)
class Engine:
    """An open model.

    Attributes:
        encoder: Texts to tokens and back.
        predictor: Tokens to log-probabilities.
        manifest: What the model is.
    """

    encoder: TextEncoder
    predictor: Predictor
    manifest: Manifest
