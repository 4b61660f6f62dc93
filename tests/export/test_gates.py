"""Gated feed-forward layers: packed in one dense layer, and balanced before quantization."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from mlm_infer.export.activations import plan_activation, simulate
from mlm_infer.export.balance import balance_channels
from mlm_infer.export.dense import dense_sites
from mlm_infer.export.packed import split_packed_layer
from mlm_infer.export.run_model import open_model
from numpy.typing import NDArray
from onnx import numpy_helper, parser

from mlm_infer.bundle.read_manifest import read_manifest
from tests.helpers.int8 import stats_of

_RANDOM = np.random.default_rng(0)
_WIDTH = 24


def gated(divided: str, *, bias: bool = False) -> ir.Model:
    """Return a gated feed-forward layer; the lines given compute `gate` and `up` from `packed`."""
    packed = "product = MatMul(x, wi)\npacked = Add(product, bi)" if bias else "packed = MatMul(x, wi)"
    model = parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 20, "com.microsoft" : 1]>
        feed_forward (float[B,L,8] x) => (float[B,L,8] out)
        <int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] two = {{2}},
            int64[1] before_half = {{{_WIDTH - 1}}}, int64[1] before_end = {{{2 * _WIDTH - 1}}},
            int64[1] half = {{{_WIDTH}}}, int64[1] whole = {{{2 * _WIDTH}}}, int64[1] end = {{{2**63 - 1}}},
            int64[1] last = {{-1}}, int64[2] sizes = {{{_WIDTH}, {_WIDTH}}}>
        {{ {packed}
           {divided}
           active = com.microsoft.Gelu(gate)
           product_of_both = Mul(active, up)
           out = MatMul(product_of_both, wo) }}"""
    )
    for name, shape in (("wi", (8, 2 * _WIDTH)), ("bi", (2 * _WIDTH,)), ("wo", (_WIDTH, 8))):
        model.graph.initializer.append(numpy_helper.from_array(_RANDOM.standard_normal(shape, np.float32), name))
    found: ir.Model = ir.from_proto(model)
    return found


def run(model: ir.Model, values: NDArray[np.float32], name: str = "out") -> NDArray[np.float32]:
    """Return a value of a graph."""
    (found,) = open_model(model, optimize=False, outputs=() if name == "out" else (name,)).run([name], {"x": values})
    return np.asarray(found)


def split(model: ir.Model) -> list[str]:
    """Split the packed layer, and return the operators of the nodes that are still used."""
    shapes = dict.fromkeys(("gate", "up"), ("B", "L", _WIDTH))
    for node in list(model.graph):
        split_packed_layer(model.graph, node, dict(shapes))
    ir.passes.common.RemoveUnusedNodesPass()(model)
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "divided",
    [
        "gate = Slice(packed, zero, half, last)\nup = Slice(packed, half, end, last, one)",
        "up = Slice(packed, zero, half, two)\ngate = Slice(packed, half, whole, two)",
        "gate, up = Split<axis = -1, num_outputs = 2>(packed)",
        "gate, up = Split<axis = 2>(packed, sizes)",
    ],
)
def test_a_packed_layer_becomes_two(divided: str, bias: bool) -> None:
    """No half is copied out of the output, and the result is the same."""
    model = gated(divided, bias=bias)
    values = _RANDOM.standard_normal((2, 5, 8), np.float32)
    expected = run(model, values)
    operators = split(model)
    assert operators.count("MatMul") == 3
    assert not {"Slice", "Split"} & set(operators)
    np.testing.assert_allclose(run(model, values), expected, atol=1e-5)


@pytest.mark.parametrize(
    "divided",
    [
        "gate = Slice(packed, zero, half, last)\nover = Slice(packed, before_half, before_end, last)\n"
        "rest = Slice(packed, half, whole, last)\nup = Add(over, rest)",
        "gate = Slice(packed, zero, whole, last, two)\nup = Slice(packed, one, whole, last, two)",
        "halved = Slice(packed, half, whole, last)\nup = Slice(packed, zero, half, last)\n"
        "all = ReduceSum<keepdims = 1>(packed, last)\ngate = Add(halved, all)",
        "gate = Slice(packed, zero, half, last)\nturned = Slice(packed, zero, end, one)\n"
        "up = Slice(turned, half, whole, last)",
    ],
    ids=["overlapping", "interleaved", "used-whole", "other-axis"],
)
def test_no_other_use_is_split(divided: str) -> None:
    """Parts that overlap or are interleaved, uses of the whole output, and slices of the length stay as they are."""
    model = gated(divided)
    before = [node.op_type for node in model.graph]
    assert split(model) == before


def test_the_layer_that_a_gate_multiplies_absorbs_the_scale() -> None:
    """With two channels thirty times as wide, a fifth of the error is left; the result without int8 is the same."""
    model = gated("gate = Slice(packed, zero, half, last)\nup = Slice(packed, half, whole, last)")
    scale = np.ones(_WIDTH, np.float32)
    scale[[3, 17]] = 30
    for name, factor in (("wi", np.concatenate([np.ones_like(scale), scale])), ("wo", 1 / scale[:, None])):
        weights = model.graph.initializers[name]
        assert weights.const_value is not None
        weights.const_value = ir.tensor(weights.const_value.numpy() * factor, name=name)
    split(model)
    values = _RANDOM.standard_normal((64, 16, 8), np.float32)
    expected, before = run(model, values), int8_error(model, values)
    stats = {"x": stats_of(values), "product_of_both": stats_of(run(model, values, "product_of_both"))}
    balance_channels(model, stats)
    np.testing.assert_allclose(run(model, values), expected, atol=1e-4)
    assert int8_error(model, values) < before / 5


def test_a_layer_that_something_else_uses_absorbs_nothing() -> None:
    """Its output would change for the other user."""
    model = gated("base = Slice(packed, zero, half, last)\nup = Slice(packed, half, whole, last)\ngate = Add(base, up)")
    split(model)
    values = _RANDOM.standard_normal((2, 5, 8), np.float32)
    stats = {"x": stats_of(values), "product_of_both": stats_of(run(model, values, "product_of_both"))}
    before = [layer.weights for site in dense_sites(model.graph) for layer in site.layers]
    balance_channels(model, stats)
    after = [layer.weights for site in dense_sites(model.graph) for layer in site.layers]
    assert all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))


def int8_error(model: ir.Model, values: NDArray[np.float32]) -> float:
    """Return the relative error of the output if the input of the last layer is quantized."""
    site = dense_sites(model.graph)[-1]
    exact = run(model, values, site.activation.name or "").reshape(-1, _WIDTH)
    difference = simulate(plan_activation(stats_of(exact), 0.0), exact) - exact
    (layer,) = site.layers
    return float(np.linalg.norm(difference @ layer.weights) / np.linalg.norm(exact @ layer.weights))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_modernbert_has_no_slices(precision: str, bundles: dict[str, Path]) -> None:
    """Its feed-forward layers have a dense layer for each half, which the manifest names after the packed one."""
    graph = onnx.load(bundles["modernbert"] / f"model.{precision}.onnx", load_external_data=False).graph
    made = {output: node for node in graph.node for output in node.output}
    gates = [made[name].op_type for node in graph.node if node.op_type == "Gelu" for name in node.input]
    dense = {"fp32": "MatMul", "int8": "MatMulIntegerToFloat"}[precision]
    assert gates.count(dense) >= 2
    assert "Slice" not in gates
    if precision == "int8":
        names = [each["name"] for each in read_manifest(bundles["modernbert"]).models["int8"].details["layers"]]
        # Queries, keys and values of two layers, and two halves each.
        parts = Counter(name.rpartition(".")[2] for name in names)
        assert (parts["0"], parts["1"], parts["2"]) == (4, 4, 2)
