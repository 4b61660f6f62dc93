"""Time rotated attention: as exporters write it, with the rotation fused, and with both fused (export/attention.py).

From the outputs of three dense layers to the input of the next, padding masked, in turns on one thread. FusedMatMul
reads heads where they lie if the length is the first axis, so no heads are moved before the products. `Attention` of
opset 23 is no choice for a bundle, which older versions of ONNX Runtime must read.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import parser

from mlm_infer.shared.tables import format_table

_SHAPES = {"ModernBERT-base": (12, 64), "ESM-2 35M": (20, 24)}
"""Heads and their width."""
_BATCHES = ((1, 25), (1, 128), (2, 128), (20, 25))
_ROUNDS = 100

_ROTATED = """
    {x}_cos = Mul({x}_heads, cos)
    {x}_low = Slice({x}_heads, zero, half, axis)
    {x}_high = Slice({x}_heads, half, width, axis)
    {x}_negative = Neg({x}_high)
    {x}_turned = Concat<axis = -1>({x}_negative, {x}_low)
    {x}_sin = Mul({x}_turned, sin)
    {x}_rotated = Add({x}_cos, {x}_sin)
"""
_FUSED_ROTATION = "{x}_rotated = com.microsoft.RotaryEmbedding<num_heads = {heads}>({x}, places, cosines, sines)\n"
_SPLIT = """
    {x}_axes = Reshape({x}, split)
    {x}_heads = Transpose<perm = [0, 2, 1, 3]>({x}_axes)
"""
_ATTENTION = """
    turned_keys = Transpose<perm = [0, 1, 3, 2]>({key})
    products = MatMul({query}, turned_keys)
    scaled = Mul(products, scale)
    masked = Add(scaled, mask)
    weights = Softmax<axis = -1>(masked)
    sums = MatMul(weights, v_heads)
    moved = Transpose<perm = [0, 2, 1, 3]>(sums)
    out = Reshape(moved, join)
"""
_STANDARD_ATTENTION = """
    whole_mask = Expand(mask, whole)
    out = Attention<q_num_heads = {heads}, kv_num_heads = {heads}>(q_rotated, k_rotated, v, whole_mask)
"""
_LENGTH_FIRST = """
    {x}_turned = Transpose<perm = [1, 0, 2]>({x})
    {x}_first = Reshape({x}_turned, split)
"""
_PRODUCTS = """
    products = com.microsoft.FusedMatMul<alpha = {scale}, transBatchA = 1, transBatchB = 1, transB = 1>(
        q_rotated_first, k_rotated_first)
    masked = Add(products, mask)
    weights = Softmax<axis = -1>(masked)
    sums = com.microsoft.FusedMatMul<transBatchB = 1>(weights, v_first)
    moved = Transpose<perm = [0, 2, 1, 3]>(sums)
    out = Reshape(moved, join)
"""
_FUSED_ATTENTION = "out = com.microsoft.MultiHeadAttention<num_heads = {heads}>(q_rotated, k_rotated, v, , padding)\n"


def bodies(heads: int, width: int) -> tuple[str, ...]:
    """Return the nodes of each case."""
    split = {each: _SPLIT.format(x=each) for each in ("q", "k", "v", "q_rotated", "k_rotated")}
    rotated, fused = (
        "".join(each.format(x=x, heads=heads) for x in ("q", "k")) for each in (_ROTATED, _FUSED_ROTATION)
    )
    apart = split["q"] + split["k"] + split["v"] + rotated + _ATTENTION.format(query="q_rotated", key="k_rotated")
    inner = split["q_rotated"] + split["k_rotated"] + split["v"]
    half = fused + inner + _ATTENTION.format(query="q_rotated_heads", key="k_rotated_heads")
    first = "".join(_LENGTH_FIRST.format(x=each) for each in ("q_rotated", "k_rotated", "v"))
    products = first + _PRODUCTS.format(scale=width**-0.5)
    whole = (each.format(heads=heads) for each in (_FUSED_ATTENTION, _STANDARD_ATTENTION))
    return apart, half, *(fused + each for each in (products, *whole))


def session(body: str, heads: int, width: int) -> onnxruntime.InferenceSession:
    """Return a session of these nodes on one thread."""
    model = parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : {23 if " Attention<" in body else 18}, "com.microsoft" : 1]>
        attention (float[B,L,D] q, float[B,L,D] k, float[B,L,D] v, float[1,1,L,W] cos, float[1,1,L,W] sin,
            int64[B,L] places, float[L,H] cosines, float[L,H] sines, float[B,1,1,L] mask, int64[4] whole,
            int32[B,L] padding)
            => (float[B,L,D] out)
        <int64[4] split = {{0, 0, {heads}, {width}}}, int64[3] join = {{0, 0, {heads * width}}}, int64[1] zero = {{0}},
            int64[1] half = {{{width // 2}}}, int64[1] width = {{{width}}}, int64[1] axis = {{3}},
            float scale = {{{width**-0.5}}}> {{ {body} }}"""
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def inputs(texts: int, tokens: int, heads: int, width: int) -> dict[str, NDArray[Any]]:
    """Return random queries, keys and values of texts of several lengths, with their positions and masks."""
    random = np.random.default_rng(0)
    angles = np.arange(tokens)[:, None] * 1e4 ** (-np.arange(width // 2) / (width // 2))
    lengths = random.integers(tokens * 3 // 4, tokens + 1, texts)
    padding = (np.arange(tokens) < lengths[:, None]).astype(np.int32)
    cosines, sines = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    return {each: random.standard_normal((texts, tokens, heads * width), np.float32) for each in "qkv"} | {
        "cos": np.tile(cosines, 2)[None, None],
        "sin": np.tile(sines, 2)[None, None],
        "places": np.tile(np.arange(tokens), (texts, 1)),
        "cosines": cosines,
        "sines": sines,
        "mask": np.where(padding[:, None, None], 0, -1e4).astype(np.float32),
        "whole": np.array([texts, 1, tokens, tokens]),
        "padding": padding,
    }


@click.command()
@click.option("--avx2", is_flag=True, help="Use no more than AVX2.")
def main(avx2: bool) -> None:
    """Print the microseconds of each, the least of a hundred runs, since other programs only ever add time."""
    if avx2 and "MLM_INFER_CPU" not in os.environ:
        from mlm_infer.benchmarks.avx2 import avx2_environment

        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | avx2_environment(Path(".work/avx2")))  # noqa: S606
    rows = []
    for name, (heads, width) in _SHAPES.items():
        sessions = [session(body, heads, width) for body in bodies(heads, width)]
        for texts, tokens in _BATCHES:
            feeds = inputs(texts, tokens, heads, width)
            least = [float("inf")] * len(sessions)
            for _ in range(_ROUNDS):
                for index, each in enumerate(sessions):
                    given = {value.name: feeds[value.name] for value in each.get_inputs()}
                    started = time.perf_counter()
                    each.run(None, given)
                    least[index] = min(least[index], 1e6 * (time.perf_counter() - started))
            rows.append([name, f"{texts} x {tokens}", *(f"{found:.0f}" for found in least)])
    header = [
        "heads of",
        "texts x tokens",
        "separate",
        "RotaryEmbedding",
        "and FusedMatMul",
        "and MultiHeadAttention",
        "and Attention",
    ]
    click.echo(format_table(header, rows))


if __name__ == "__main__":
    main()
