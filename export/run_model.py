"""Running a graph in memory, as the run time would."""

import onnx
import onnx_ir as ir
import onnxruntime

from mlm_infer.errors import ExportError

__all__ = ["open_model"]


def open_model(model: ir.Model | onnx.ModelProto, *, optimize: bool = True) -> onnxruntime.InferenceSession:
    """Open a graph on the CPU.

    Args:
        model: The graph.
        optimize: Let ONNX Runtime fold constants; without, every value of the graph can be fetched by name.

    Raises:
        ExportError: ONNX Runtime refuses it.
    """
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_BASIC if optimize else levels.ORT_DISABLE_ALL
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base but Exception
        raise ExportError(f"ONNX Runtime refuses the graph: {str(error).strip().splitlines()[0]}") from error
