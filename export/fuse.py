"""ONNX Runtime's transformer fusions, where they make the graph faster."""

import onnx_ir as ir
from onnx_ir.passes import common

from mlm_infer.shared.quiet import quiet

__all__ = ["fuse"]


def fuse(model: ir.Model) -> tuple[ir.Model, dict[str, int]]:
    """Fuse layer norms and GELUs that the export left in pieces, with ONNX Runtime's optimizer.

    Its SkipLayerNormalization and BiasGelu are left out: on a CPU they take three times and twice as long as
    the addition and the norm or the GELU apart (docs/engine.md), and its attention is that of `fuse_attention`.

    Args:
        model: The model, as `normalize` left it; it is not changed.

    Returns:
        The fused model, and how often each fusion was made.
    """
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.optimizer import optimize_by_fusion

    options = FusionOptions("bert")
    options.enable_attention = False
    options.enable_embed_layer_norm = False
    options.enable_skip_layer_norm = False
    options.enable_bias_skip_layer_norm = False
    options.enable_bias_gelu = False
    proto = ir.to_proto(model)
    # Number of heads 0: read from the graph.
    with quiet("onnxruntime.transformers"):
        fused = optimize_by_fusion(proto, "bert", num_heads=0, hidden_size=0, optimization_options=options)
    counts = {name: count for name, count in fused.get_fused_operator_statistics().items() if count}
    found = ir.from_proto(fused.model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(found)
    return found, counts
