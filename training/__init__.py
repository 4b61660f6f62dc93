"""Fine-tune a masked language model: `fine_tune(TrainConfig(...))`, or `mlm-train` in a shell.

Needs the extra `[train]`: torch, transformers, datasets, accelerate and matplotlib.
"""

from typing import TYPE_CHECKING, Any

from .config import TrainConfig, load_recipe, recipe_names

if TYPE_CHECKING:
    from .report import Evaluation, TrainReport
    from .run import fine_tune

__all__ = ["Evaluation", "TrainConfig", "TrainReport", "fine_tune", "load_recipe", "recipe_names"]


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is first used, so that `mlm-train --help` answers at once."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mlm_infer.errors import DependencyError

    try:
        if name == "fine_tune":
            from .run import fine_tune

            return fine_tune
        from . import report
    except ImportError as error:
        raise DependencyError(
            f"training needs {error.name}; install it with: pip install 'mlm-infer[train]'"
        ) from error
    return getattr(report, name)
