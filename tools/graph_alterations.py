"""Alters ONNX files in ways that occur in third-party exports, without changing their results."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

__all__ = ["ALTERATIONS"]


def allow_zero(file: Path) -> None:
    """Set `allowzero` on every Reshape whose shape has no 0, as torch.export does."""
    model = onnx.load(file)
    constants = _constants(model)
    for node in model.graph.node:
        if node.op_type == "Reshape" and not (node.input[1] in constants and 0 in constants[node.input[1]]):
            kept = [each for each in node.attribute if each.name != "allowzero"]
            del node.attribute[:]
            node.attribute.extend([*kept, helper.make_attribute("allowzero", 1)])
    onnx.save(model, file)


def into_functions(file: Path) -> None:
    """Move every softmax and layer norm into a nested model-local function, as exporters that keep modules do."""
    model = onnx.load(file)
    opset = [each for each in model.opset_import if each.domain in ("", "ai.onnx")]
    inner, outer = "pkg.torch.nn.functional", "pkg.torch.nn.modules"
    seen: dict[tuple[str, ...], str] = {}
    for node in model.graph.node:
        if node.op_type != "Softmax" and node.op_type != "LayerNormalization":
            continue
        key = (node.op_type, str(len(node.input)), *(each.SerializeToString().hex() for each in node.attribute))
        name = seen.setdefault(key, f"{node.op_type}_{len(seen)}")
        if name == f"{node.op_type}_{len(seen) - 1}" and name not in {each.name for each in model.functions}:
            given = [f"x{number}" for number in range(len(node.input))]
            body = helper.make_node(node.op_type, given, ["y"])
            body.attribute.extend(node.attribute)
            call = helper.make_node(name, given, ["y"], domain=inner)
            own = helper.make_opsetid(inner, 1)
            model.functions.append(helper.make_function(inner, name, given, ["y"], [body], opset))
            model.functions.append(helper.make_function(outer, name, given, ["y"], [call], [*opset, own]))
        node.op_type, node.domain = name, outer
        del node.attribute[:]
    model.opset_import.extend([helper.make_opsetid(inner, 1), helper.make_opsetid(outer, 1)])
    model.ir_version = max(model.ir_version, 8)
    onnx.save(model, file)


def newest(file: Path) -> None:
    """Declare a newer opset, in which the operators of the file are unchanged."""
    model = ir.load(file)
    model.opset_imports[""], model.ir_version = 22, 10
    ir.save(model, file)


def half(file: Path) -> None:
    """Convert all weights and operators to fp16, and rename the file accordingly."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(file)), file.with_name("model_fp16.onnx"))
    file.unlink()


def half_unnamed(file: Path) -> None:
    """Convert to fp16, but keep the file name of an fp32 model."""
    half(file)
    file.with_name("model_fp16.onnx").rename(file)


def weights_outside(file: Path) -> None:
    """Store the weights in an external file."""
    ir.save(ir.load(file), file, external_data=f"{file.name}_data", size_threshold_bytes=0)


def symbols(file: Path) -> None:
    """Give the axes of each input different names, and annotate all values with shapes, as torch.export does."""
    model = onnx.shape_inference.infer_shapes(onnx.load(file))
    for number, value in enumerate(model.graph.input):
        for axis, size in zip(("s", "u"), value.type.tensor_type.shape.dim, strict=True):
            size.dim_param = f"{axis}{number}"
    onnx.save(model, file)


def narrow(file: Path) -> None:
    """Change the inputs to int32, as in exports from TensorFlow."""
    model = onnx.load(file)
    for value in model.graph.input:
        value.type.tensor_type.elem_type = TensorProto.INT32
        for node in model.graph.node:
            for index, name in enumerate(node.input):
                if name == value.name:
                    node.input[index] = f"{name}_wide"
        cast = helper.make_node("Cast", [value.name], [f"{value.name}_wide"], to=TensorProto.INT64)
        model.graph.node.insert(0, cast)
    onnx.save(model, file)


def more_outputs(file: Path) -> None:
    """Add the last hidden state as an output before the logits."""
    model = onnx.load(file)
    last = next(node for node in reversed(model.graph.node) if node.op_type == "LayerNormalization")
    hidden = helper.make_tensor_value_info(last.output[0], TensorProto.FLOAT, ["batch", "sequence", "width"])
    outputs = [hidden, *model.graph.output]
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    onnx.save(model, file)


def weights_as_inputs(file: Path) -> None:
    """List every weight as an optional input too, as IR version 3 requires."""
    model = onnx.load(file)
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    onnx.save(model, file)


def optimized(file: Path) -> None:
    """Fuse operators with ONNX Runtime's transformer optimizer, as Optimum's ORTOptimizer does."""
    from onnxruntime.transformers.optimizer import optimize_model

    optimize_model(str(file), "bert", num_heads=4, hidden_size=32).save_model_to_file(str(file))


def _constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    found = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return found


ALTERATIONS: dict[str, Callable[[Path], None]] = {
    "allowzero": allow_zero,
    "functions": into_functions,
    "newest": newest,
    "fp16": half,
    "fp16-unnamed": half_unnamed,
    "outside": weights_outside,
    "symbols": symbols,
    "int32": narrow,
    "outputs": more_outputs,
    "weights-as-inputs": weights_as_inputs,
    "optimized": optimized,
}
"""By name: a function that alters a file in place (`fp16` renames it too)."""
