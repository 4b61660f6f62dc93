"""Time the int8 and fp32 matmuls of a feed-forward layer, with weights in the cache and read from memory.

A single text runs one matmul after the other, each with weights that are no longer in the cache. The throughput with
weights from memory is therefore an upper bound for single texts, whatever else is optimized.
"""

import os
import statistics
import sys
import time
from pathlib import Path

import click
import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from mlm_infer.shared.tables import format_table

_INNER, _OUTER, _PRODUCTS = 768, 3072, 24
_ROWS = (1, 8, 25, 64, 128, 512)


def session(matrices: int, threads: int, *, int8: bool = True) -> onnxruntime.InferenceSession:
    """Return a session of 24 matmuls of one input, cycling through a number of different weights."""
    random = np.random.default_rng(0)
    kind = TensorProto.UINT8 if int8 else TensorProto.FLOAT
    held = np.int8 if int8 else np.float32
    weights = [random.integers(-64, 65, (_INNER, _OUTER)).astype(held) for _ in range(matrices)]
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
        if int8
        else helper.make_node("MatMul", ["x", f"w{number % matrices}"], [f"y{number}"])
        for number in range(_PRODUCTS)
    ]
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("x", kind, [None, _INNER])],
        [helper.make_tensor_value_info(f"y{number}", TensorProto.FLOAT, None) for number in range(_PRODUCTS)],
        constants,
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.force_spinning_stop", "1")
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@click.command()
@click.option("--threads", default=2, show_default=True)
@click.option("--avx2", is_flag=True, help="Use no more than AVX2.")
def main(threads: int, avx2: bool) -> None:
    """Print the throughput in GMAC/s by number of tokens."""
    if avx2 and "MLM_INFER_CPU" not in os.environ:
        from mlm_infer.benchmarks.avx2 import avx2_environment

        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | avx2_environment(Path(".work/avx2")))  # noqa: S606
    cases = (
        session(1, threads),
        session(_PRODUCTS, threads),
        session(1, threads, int8=False),
        session(_PRODUCTS, threads, int8=False),
    )
    table = []
    for rows in _ROWS:
        values = np.random.default_rng(1).integers(0, 255, (rows, _INNER))
        feeds = [{"x": values.astype(kind)} for kind in (np.uint8, np.uint8, np.float32, np.float32)]
        times: list[list[float]] = [[] for _ in cases]
        for _ in range(16):
            for each, feed, found in zip(cases, feeds, times, strict=True):
                started = time.perf_counter()
                each.run(None, feed)
                found.append(time.perf_counter() - started)
        work = _PRODUCTS * rows * _INNER * _OUTER / 1e9
        table.append([str(rows), *(f"{work / statistics.median(found[1:]):.0f}" for found in times)])
    header = ["tokens", "int8, weights in the cache", "from memory", "fp32, weights in the cache", "from memory"]
    click.echo(format_table(header, table))


if __name__ == "__main__":
    main()
