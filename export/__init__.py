"""Export a masked language model: `export_bundle(model, output)`, or `mlm-export` in a shell.

Needs the extra `[export]`: torch, transformers, onnx and onnx-ir, and an exporter (see `exporters`).
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .budget import Budget
    from .parity import ParityCase, ParityReport
    from .run import export_bundle

__all__ = ["Budget", "ParityCase", "ParityReport", "export_bundle"]


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is first used, so that `mlm-export --help` answers at once."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mlm_infer.errors import DependencyError

    try:
        from . import budget, parity, run
    except ImportError as error:
        raise DependencyError(
            f"exporting needs {error.name}; install it with: pip install 'mlm-infer[export,cpu]', or with Optimum: "
            "pip install 'mlm-infer[optimum,cpu]'"
        ) from error
    return getattr({"export_bundle": run, "Budget": budget}.get(name, parity), name)
