"""What every task needs of a model."""

from dataclasses import dataclass

from mlm_infer.bundle.manifest import Manifest
from mlm_infer.runtime.predictor import Predictor
from mlm_infer.text.encoder import TextEncoder

__all__ = ["OpenModel"]


@dataclass(frozen=True, slots=True)
class OpenModel:
    """An open model.

    Attributes:
        encoder: Converts texts to tokens and back.
        predictor: Computes log-probabilities from tokens.
        manifest: Describes the model.
    """

    encoder: TextEncoder
    predictor: Predictor
    manifest: Manifest
