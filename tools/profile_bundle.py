"""Profile a bundle by operator, with ONNX Runtime's profiler.

python tools/profile_bundle.py .work/benchmarks/distilroberta/bundle --texts 32 --tokens 25
"""

import json
import tempfile
from collections import Counter
from pathlib import Path

import click
import numpy as np
import onnxruntime

from mlm_infer.bundle.read_manifest import read_manifest
from mlm_infer.runtime.ort_session import SESSION_SETTINGS
from mlm_infer.shared.tables import format_table

_RUNS = 12


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--precision", default="int8", show_default=True)
@click.option("--texts", default=1, show_default=True)
@click.option("--tokens", default=25, show_default=True)
@click.option("--threads", default=2, show_default=True)
def main(bundle: Path, precision: str, texts: int, tokens: int, threads: int) -> None:
    """Print the operators of BUNDLE by time, as the mean of twelve runs with one batch shape."""
    manifest = read_manifest(bundle)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.enable_mem_pattern = False
    for key, value in SESSION_SETTINGS.items():
        options.add_session_config_entry(key, value)
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as scratch:
        options.profile_file_prefix = str(Path(scratch, "profile"))
        session = onnxruntime.InferenceSession(
            str(bundle / manifest.models[precision].file), options, providers=["CPUExecutionProvider"]
        )
        ids = np.random.default_rng(0).integers(5, min(1000, manifest.vocab_size), (texts, tokens))
        feeds = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "token_type_ids": np.zeros_like(ids),
            "mask_positions": np.arange(texts)[:, None] * tokens + tokens // 2,
            "mask_rows": np.arange(texts),
            "k": np.array([5]),
            "candidates": np.zeros((texts, 0), np.int64),
        }
        names = {each.name for each in session.get_inputs()}
        for _ in range(_RUNS):
            session.run(["top_ids", "top_logprobs"], {name: feeds[name] for name in names})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    times: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times[event["args"]["op_name"]] += event["dur"]
            counts[event["args"]["op_name"]] += 1
    total = sum(times.values())
    rows = [
        [name, str(counts[name] // _RUNS), f"{spent / _RUNS / 1e3:.2f}", f"{spent / total:.1%}"]
        for name, spent in times.most_common(10)
    ]
    click.echo(f"{texts} x {tokens} tokens, {precision}, {threads} threads: {total / _RUNS / 1e3:.1f} ms in operators")
    click.echo(format_table(["operator", "nodes", "ms a run", "share"], rows))


if __name__ == "__main__":
    main()
