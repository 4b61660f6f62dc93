"""ONNX Runtime's transformer fusions, where they make the graph faster."""

import onnx_ir as ir
from onnx_ir.passes import common

from mlm_infer.shared.quiet import quiet

__all__ = ["fuse"]


def fuse(model: ir.Model) -> tuple[ir.Model, dict[str, int]]:
    """Fuse the operators of layer norms and GELUs with ONNX Runtime's optimizer.

    Its SkipLayerNormalization and BiasGelu are excluded, because on a CPU they take three times and twice as long as
    the separate operators (docs/engine.md). Attention is fused by `fuse_attention` instead.

    Args:
        model: The normalized model; not modified.

    Returns:
        The fused model, and the number of fusions by kind.
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
    # With 0 heads, the optimizer reads the number from the graph.
    with quiet("onnxruntime.transformers"):
        fused = optimize_by_fusion(proto, "bert", num_heads=0, hidden_size=0, optimization_options=options)
    counts = {name: count for name, count in fused.get_fused_operator_statistics().items() if count}
    found = ir.from_proto(fused.model)
    # The fusions write their constants as nodes; the passes after this one look for initializers.
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(found)
    return found, counts
