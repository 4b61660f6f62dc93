"""Reads and checks the graph of a plain ONNX export before it is run."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from mlm_infer.errors import BundleError, ModelError, first_line

__all__ = ["check_operators", "check_task", "input_types", "precision_in", "read_graph", "with_wide_inputs"]

_STANDARD = frozenset(["", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc"])
"""Operator domains that ONNX Runtime implements by itself."""

_GENERATION = ("ForCausalLM", "ForConditionalGeneration", "GPTLMHeadModel", "GPT2LMHeadModel")
"""Class name endings of text-generation models. `LMHeadModel` alone would also match XLM's masked language model."""

_TYPES = onnx.TensorProto
_BYTES = frozenset([_TYPES.INT8, _TYPES.UINT8, _TYPES.INT4, _TYPES.UINT4])
_MATRIX = 1024
"""Minimum number of elements of a weight, as opposed to a shape or a scale."""


def read_graph(path: Path) -> onnx.ModelProto:
    """Read a graph without its external weights.

    Raises:
        BundleError: The file is not an ONNX file.
    """
    try:
        return onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's errors share no base but Exception
        raise BundleError(f"{path} cannot be read as ONNX: {first_line(error)}; copy it again") from error


def check_task(path: Path, config: Mapping[str, Any]) -> None:
    """Reject a causal (text-generation) model, even if its tokenizer has a mask token.

    Raises:
        ModelError: The configuration names a causal model class, or sets `is_decoder`.
    """
    # The file is a third party's: no field is certain to be there, or to have the right type.
    kinds = config.get("architectures") or []
    named = [each for each in kinds if isinstance(each, str)] if isinstance(kinds, list) else []
    causal = [each for each in named if each.endswith(_GENERATION)]
    if causal or config.get("is_decoder") is True:
        raise ModelError(
            f"{path} is a text-generation model ({', '.join(causal) or 'is_decoder in its config.json'}), which does "
            "not look behind a mask; export a masked language model (optimum-cli export onnx --task fill-mask)"
        )


def check_operators(path: Path, model: onnx.ModelProto) -> None:
    """Reject operators that need a custom-operator library.

    Raises:
        ModelError: The graph contains such an operator.
    """
    own = {(each.domain, each.name) for each in model.functions}
    for node in _nodes(model):
        if node.domain not in _STANDARD and (node.domain, node.op_type) not in own:
            raise ModelError(
                f"{path} has the custom operator {node.domain}:{node.op_type} (node {node.name or node.output[0]!r}), "
                "which ONNX Runtime alone cannot run; export it with the operators of ONNX"
            )


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield all nodes, including those in functions and subgraphs."""
    pending = [*model.graph.node, *(node for each in model.functions for node in each.node)]
    while pending:
        node = pending.pop()
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                pending.extend(graph.node)


def precision_in(model: onnx.ModelProto) -> str:
    """Return the precision of a graph's weights; third-party file names are not reliable."""
    # Counted in elements: a graph of any precision also has shapes and scales in other types.
    sizes: dict[int, int] = {}
    for tensor in model.graph.initializer:
        if (count := int(np.prod(tensor.dims))) >= _MATRIX:
            sizes[tensor.data_type] = sizes.get(tensor.data_type, 0) + count
    if _BYTES & set(sizes):
        return "int8"
    halves, floats = (sizes.get(each, 0) for each in (_TYPES.FLOAT16, _TYPES.FLOAT))
    return "fp16" if halves > floats else "fp32"


def input_types(path: Path, model: onnx.ModelProto) -> dict[str, np.dtype[Any]]:
    """Return the element type of each input by name.

    Raises:
        ModelError: An input is not a tensor of numbers.
    """
    found: dict[str, np.dtype[Any]] = {}
    for value in model.graph.input:
        try:
            found[value.name] = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
        except (KeyError, TypeError) as error:
            raise ModelError(
                f"{path} takes no tensor as {value.name}; export it with the inputs input_ids, attention_mask and "
                "token_type_ids"
            ) from error
    return found


def with_wide_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """Convert all inputs of a graph to int64 in place, with casts to their former types; return the graph."""
    casts = []
    # Older files also list their weights as inputs.
    own = {each.name for each in model.graph.initializer}
    for value in model.graph.input:
        kind = value.type.tensor_type.elem_type
        if kind == _TYPES.INT64 or value.name in own:
            continue
        narrow = f"{value.name}_as_given"
        for node in model.graph.node:
            for index, name in enumerate(node.input):
                if name == value.name:
                    node.input[index] = narrow
        casts.append(onnx.helper.make_node("Cast", [value.name], [narrow], to=kind))
        value.type.tensor_type.elem_type = _TYPES.INT64
    for cast in casts:
        model.graph.node.insert(0, cast)
    return model
