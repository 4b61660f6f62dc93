"""Time fused operators of ONNX Runtime against separate ones, interleaved, to justify export/fuse.py."""

import statistics
import time

import click
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from mlm_infer.shared.tables import format_table

_TOKENS, _WIDTH, _INNER = 800, 768, 3072


def session(nodes: list[onnx.NodeProto], inputs: int, width: int) -> onnxruntime.InferenceSession:
    """Return a session of a few nodes over [1, tokens, width] inputs a, b, with the result c."""
    names = ["a", "b"][:inputs]
    constants = [numpy_helper.from_array(np.ones(width, np.float32), name) for name in ("scale", "bias")]
    graph = helper.make_graph(
        nodes,
        "operator",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, None, width]) for name in names],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, None)],
        constants,
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@click.command()
def main() -> None:
    """Print the median microseconds of each, for 800 tokens."""
    node = helper.make_node
    contrib = "com.microsoft"
    cases = {
        "SkipLayerNormalization": session(
            [node("SkipLayerNormalization", ["a", "b", "scale", "bias"], ["c"], domain=contrib)], 2, _WIDTH
        ),
        "Add, LayerNormalization": session(
            [node("Add", ["a", "b"], ["s"]), node("LayerNormalization", ["s", "scale", "bias"], ["c"])], 2, _WIDTH
        ),
        "BiasGelu": session([node("BiasGelu", ["a", "bias"], ["c"], domain=contrib)], 1, _INNER),
        "Gelu (bias in the product)": session([node("Gelu", ["a"], ["c"], domain=contrib)], 1, _INNER),
    }
    times: dict[str, list[float]] = {name: [] for name in cases}
    random = np.random.default_rng(0)
    for _ in range(40):
        for name, each in cases.items():
            width = _WIDTH if "Norm" in name else _INNER
            feeds = {value.name: random.standard_normal((1, _TOKENS, width), np.float32) for value in each.get_inputs()}
            started = time.perf_counter()
            each.run(None, feeds)
            times[name].append(1e6 * (time.perf_counter() - started))
    rows = [[name, f"{statistics.median(found):.0f}"] for name, found in times.items()]
    click.echo(format_table(["operators", "microseconds"], rows))


if __name__ == "__main__":
    main()
