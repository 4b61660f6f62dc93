"""Time the int8 product of a feed-forward layer with its weights in the cache and read from memory.

What one text asks of a model is one product after the other, each with weights that the cache no longer holds:
the speed of the second column bounds what a single text can reach, however little is done around the products.
"""

import statistics
import time

import click
import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from mlm_infer.tables import format_table

_INNER, _OUTER, _PRODUCTS = 768, 3072, 24
_ROWS = (1, 8, 25, 64, 128, 512)


def session(matrices: int, threads: int) -> onnxruntime.InferenceSession:
    """Return a session of 24 products of one input with as many different weights as asked for, in turns."""
    random = np.random.default_rng(0)
    weights = [random.integers(-127, 127, (_INNER, _OUTER)).astype(np.int8) for _ in range(matrices)]
    constants = [numpy_helper.from_array(each, f"w{number}") for number, each in enumerate(weights)]
    constants.append(numpy_helper.from_array(np.float32(0.01), "scale"))
    constants.append(numpy_helper.from_array(random.random(_OUTER).astype(np.float32), "scales"))
    constants.append(numpy_helper.from_array(np.uint8(128), "zero"))
    nodes = [
        helper.make_node(
            "MatMulIntegerToFloat",
            ["x", f"w{number % matrices}", "scale", "scales", "zero"],
            [f"y{number}"],
            domain="com.microsoft",
        )
        for number in range(_PRODUCTS)
    ]
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [None, _INNER])],
        [helper.make_tensor_value_info(f"y{number}", TensorProto.FLOAT, None) for number in range(_PRODUCTS)],
        constants,
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.force_spinning_stop", "1")
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@click.command()
@click.option("--threads", default=2, show_default=True)
def main(threads: int) -> None:
    """Print 1e9 multiply-adds a second by the number of tokens."""
    cases = (session(1, threads), session(_PRODUCTS, threads))
    table = []
    for rows in _ROWS:
        feed = {"x": np.random.default_rng(1).integers(0, 255, (rows, _INNER)).astype(np.uint8)}
        times: list[list[float]] = [[], []]
        for _ in range(16):
            for each, found in zip(cases, times, strict=True):
                started = time.perf_counter()
                each.run(None, feed)
                found.append(time.perf_counter() - started)
        work = _PRODUCTS * rows * _INNER * _OUTER / 1e9
        table.append([str(rows), *(f"{work / statistics.median(found[1:]):.0f}" for found in times)])
    click.echo(format_table(["tokens", "weights in the cache", "weights from memory"], table))


if __name__ == "__main__":
    main()
