"""Fill masks with a masked language model, fast and without torch.

from mlm_infer import MaskFiller

MaskFiller().fill("This is a great [MASK].").masks[0].predictions[0].text
"""

from typing import TYPE_CHECKING, Any

from .errors import (
    BundleError,
    DataError,
    DependencyError,
    DeviceError,
    ExportError,
    InputError,
    MlmInferError,
    ModelError,
    OutputExistsError,
    TextError,
    TrainingError,
)

if TYPE_CHECKING:
    from .async_filler import AsyncMaskFiller
    from .filler import MaskFiller
    from .results import (
        Candidate,
        FillerInfo,
        FillResult,
        Infilling,
        MaskResult,
        Prediction,
        RankResult,
        ScoreResult,
        TokenScore,
    )

__all__ = [
    "AsyncMaskFiller",
    "BundleError",
    "Candidate",
    "DataError",
    "DependencyError",
    "DeviceError",
    "ExportError",
    "FillResult",
    "FillerInfo",
    "Infilling",
    "InputError",
    "MaskFiller",
    "MaskResult",
    "MlmInferError",
    "ModelError",
    "OutputExistsError",
    "Prediction",
    "RankResult",
    "ScoreResult",
    "TextError",
    "TokenScore",
    "TrainingError",
]


def __getattr__(name: str) -> Any:
    """Import numpy, tokenizers and the rest when first used, so that `mlm-fill --help` answers at once."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import async_filler, filler, results

    return next(getattr(module, name) for module in (filler, results, async_filler) if hasattr(module, name))
