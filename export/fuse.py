"""ONNX Runtime's transformer fusions, where they make the graph faster."""

from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common

from mlm_infer.shared.quiet import quiet

__all__ = ["fuse"]


def fuse(path: Path) -> tuple[ir.Model, dict[str, int]]:
    """Fuse layer norms and GELUs that the export left in pieces, with ONNX Runtime's optimizer.

    Its SkipLayerNormalization and BiasGelu are left out: on a CPU they take three times and twice as long as
    the addition and the norm or the GELU apart (docs/engine.md), and its attention is that of `fuse_attention`.

    Args:
        path: The model that Optimum exported.

    Returns:
        The fused model, and how often each fusion was made.
    """
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.optimizer import optimize_model

    options = FusionOptions("bert")
    options.enable_attention = False
    options.enable_embed_layer_norm = False
    options.enable_skip_layer_norm = False
    options.enable_bias_skip_layer_norm = False
    options.enable_bias_gelu = False
    # opt_level 0: onnxruntime itself would fuse for this machine, and number of heads 0: read from the graph.
    with quiet("onnxruntime.transformers"):
        fused = optimize_model(
            str(path), model_type="bert", num_heads=0, hidden_size=0, optimization_options=options, opt_level=0
        )
    counts = {name: count for name, count in fused.get_fused_operator_statistics().items() if count}
    model = ir.from_proto(fused.model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    return model, counts
