"""What every question to a model needs."""

from dataclasses import dataclass

from mlm_infer.bundle.manifest import Manifest
from mlm_infer.runtime.predictor import Predictor
from mlm_infer.text.encoder import TextEncoder

__all__ = ["OpenModel"]


@dataclass(frozen=True, slots=True)
class OpenModel:
    """An open model.

    Attributes:
        encoder: Texts to tokens and back.
        predictor: Tokens to log-probabilities.
        manifest: What the model is.
    """

    encoder: TextEncoder
    predictor: Predictor
    manifest: Manifest
