"""Compares engines text by text in alternation, so that disturbances of the machine affect all of them alike."""

import json
import math
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mlm_infer.shared.samples import movie_reviews

__all__ = [
    "PIPELINE",
    "Machine",
    "Worker",
    "bulk_texts",
    "compare_quality",
    "compare_shape",
    "machine_peak",
    "texts_of_length",
]

PIPELINE = "transformers pipeline"
CALL_SIZES = (1, 8, 32)
"""Texts per call, or per batch of the pipeline."""
_WORKER = Path(__file__).with_name("worker.py")
# A thread pool may keep spinning after a call; it must be asleep before another engine is timed.
_REST_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Machine:
    """An instruction set to run engines on.

    Attributes:
        suffix: Suffix of the names of engines that run on it.
        instruction_set: Its name.
        environment: Environment variables that restrict engines to it.
    """

    suffix: str
    instruction_set: str
    environment: Mapping[str, str]


@dataclass(slots=True)
class Worker:
    """An engine in its own process.

    Attributes:
        name: Its name in the results.
        instruction_set: Its instruction set.
        base: Name of the pipeline on the same instruction set.
        process: The process.
    """

    name: str
    instruction_set: str
    base: str
    process: subprocess.Popen[str]

    @classmethod
    def start(
        cls, engine: str, python: Path, paths: Mapping[str, str], threads: int, machine: "Machine | None" = None
    ) -> "Worker":
        """Start an engine, which loads its model on the first request."""
        machine = machine or Machine("", "", {})
        command = [str(python), str(_WORKER), engine, str(threads), json.dumps(dict(paths))]
        environment = (
            os.environ
            | {
                "HF_HUB_OFFLINE": "1",
                "TOKENIZERS_PARALLELISM": "true",
                "OMP_NUM_THREADS": str(threads),
            }
            | dict(machine.environment)
        )
        process = subprocess.Popen(  # noqa: S603
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        return cls(engine + machine.suffix, machine.instruction_set, PIPELINE + machine.suffix, process)

    @classmethod
    @contextmanager
    def start_all(
        cls, pythons: Mapping[str, Path], paths: Mapping[str, str], threads: int, machines: Sequence["Machine"] = ()
    ) -> Iterator[list["Worker"]]:
        """Start every engine on every machine, and stop them all at the end."""
        workers = [
            cls.start(engine, python, paths, threads, machine)
            for machine in machines or (None,)
            for engine, python in pythons.items()
            # OpenVINO detects the instruction set itself and cannot be restricted.
            if machine is None or not machine.environment or not engine.startswith("OpenVINO")
        ]
        try:
            yield workers
        finally:
            for worker in workers:
                worker.stop()

    def ask(self, texts: Sequence[str], batch: int = 1, *, warm_up: int = 0) -> dict[str, Any]:
        """Have the engine fill texts with one mask each, after untimed warm-up runs, and return its answer."""
        if self.process.stdin is None or self.process.stdout is None:
            raise RuntimeError("the worker has no pipes")
        self.process.stdin.write(json.dumps({"texts": list(texts), "batch": batch, "warm_up": warm_up}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the engine {self.name!r} died; run benchmarks/worker.py by hand to see why")
        time.sleep(_REST_SECONDS)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self) -> None:
        """Stop the process."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait()


def bulk_texts(mask: str, count: int, split: Literal["train", "validation"] = "train") -> list[str]:
    """Return review sentences of a split, with the middle word masked."""
    texts = []
    for sentence in movie_reviews(split)[:count]:
        words = sentence.split()
        words[len(words) // 2] = mask
        texts.append(" ".join(words))
    return texts


def texts_of_length(count_tokens: Callable[[str], int], mask: str, length: int, count: int) -> list[str]:
    """Return texts of exactly `length` tokens, special tokens included, cut consecutively from the reviews."""
    words = [word for sentence in movie_reviews("validation") for word in sentence.split()]
    texts: list[str] = []
    start = 0
    while len(texts) < count and start + length < len(words):
        # A word is one or more tokens, so words are added until the text has the length. If a word jumps over it, the
        # text is dropped and the next one starts behind it.
        taken = length // 2
        text = ""
        while taken <= length:
            chosen = words[start : start + taken]
            chosen[taken // 2] = mask
            text = " ".join(chosen)
            if count_tokens(text) >= length:
                break
            taken += 1
        if count_tokens(text) == length:
            texts.append(text)
        start += taken
    return texts


def compare_shape(
    workers: Sequence[Worker],
    latency: Mapping[int, Sequence[str]],
    bulk: Sequence[str],
    on_step: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """Measure engines on single texts of given lengths and on many texts.

    Args:
        workers: The engines, ours among them.
        latency: Texts by their number of tokens.
        bulk: Many texts.
        on_step: Called with a line of text at the start of each step.

    Returns:
        For each engine: latency in milliseconds (p50, p95) by length, throughput in texts per second, seconds to load
        and answer the first text, peak memory and size of the imported packages in MB, and the top-1 agreement with
        the pipeline.
    """
    results: dict[str, dict[str, Any]] = {
        worker.name: {"instruction_set": worker.instruction_set, "base": worker.base, "latency_ms": {}}
        for worker in workers
    }
    for worker in workers:
        on_step(f"loading {worker.name}")
        answer = worker.ask([bulk[0]])
        results[worker.name]["load_and_first_seconds"] = answer["load_and_first"]
        results[worker.name]["installed_mb"] = answer["installed_mb"]
    best: dict[str, list[int]] = {name: [] for name in results}
    for length, texts in latency.items():
        on_step(f"{len(texts)} texts of {length} tokens, in turns")
        times: dict[str, list[float]] = {name: [] for name in results}
        for text in texts:
            # Engines in turns for every text, instead of one after the other for all: a disturbance hits all engines.
            for worker in workers:
                # The previous engine has filled the caches with its own weights: each turn starts with an untimed run.
                answer = worker.ask([text], warm_up=1)
                times[worker.name].append(answer["seconds"] * 1e3)
                best[worker.name].append(answer["ids"][0][0])
        for name, found in times.items():
            result = results[name]
            result["latency_ms"][str(length)] = {
                "p50": statistics.median(found),
                "p95": statistics.quantiles(found, n=20)[18],
                "each": [round(value, 3) for value in found],
            }
    for name, result in results.items():
        pairs = zip(best[name], best[result["base"]], strict=True)
        result["same_best_token"] = statistics.fmean(mine == theirs for mine, theirs in pairs)
    _bulk(workers, bulk, results, on_step)
    return results


def _bulk(
    workers: Sequence[Worker], bulk: Sequence[str], results: dict[str, dict[str, Any]], on_step: Callable[[str], None]
) -> None:
    """Measure throughput by call size, and then in bulk, in four rounds with the engines in alternation.

    In bulk, each peer uses its best batch size. This package gets all texts at once and batches them itself.
    """
    # Few texts suffice to find each peer's best size; the bulk measurement below uses all of them.
    some = bulk[:64]
    on_step(f"{len(some)} texts in calls of {', '.join(map(str, CALL_SIZES))}")
    by_size: dict[str, dict[str, float]] = {worker.name: {} for worker in workers}
    for size in CALL_SIZES:
        for worker in workers:
            by_size[worker.name][str(size)] = len(some) / worker.ask(some, size)["seconds"]
    # Every fourth text, so that the parts have the same mixture of lengths.
    parts = [bulk[part::4] for part in range(4)]
    batch = {name: int(max(found, key=found.__getitem__)) for name, found in by_size.items()}
    batch |= {name: len(parts[0]) for name in batch if name.startswith("mlm-infer")}
    seconds: dict[str, list[float]] = {worker.name: [] for worker in workers}
    for number, part in enumerate(parts, 1):
        on_step(f"bulk, round {number} of {len(parts)}: {len(part)} texts")
        for worker in workers:
            answer = worker.ask(part, batch[worker.name])
            seconds[worker.name].append(answer["seconds"])
            results[worker.name]["peak_memory_mb"] = answer["peak_mb"]
    for name, found in seconds.items():
        results[name]["texts_per_second_by_call_size"] = by_size[name]
        results[name]["bulk"] = {
            "texts_per_second": len(bulk) / math.fsum(found),
            "batch_size": batch[name],
            "rounds_seconds": found,
        }


def compare_quality(workers: Sequence[Worker], texts: Sequence[str]) -> dict[str, dict[str, float]]:
    """Compare each engine's top-5 predictions with the pipeline's.

    Args:
        workers: The engines, including the pipeline, on a trained model.
        texts: Texts with one mask that were not used for calibration.

    Returns:
        For each engine, the top-1 agreement and the mean overlap of the top-5 predictions.
    """
    found = {worker.name: worker.ask(texts, 32)["ids"] for worker in workers}
    base = {worker.name: worker.base for worker in workers}
    quality = {}
    for name, ids in found.items():
        pairs = list(zip(ids, found[base[name]], strict=True))
        quality[name] = {
            "top1": statistics.fmean(mine[0] == theirs[0] for mine, theirs in pairs),
            "top5": statistics.fmean(len(set(mine) & set(theirs)) / 5 for mine, theirs in pairs),
        }
    return quality


def machine_peak(threads: int) -> float:
    """Return the peak throughput of a single int8 matmul in ONNX Runtime on this machine, in GMAC/s."""
    import numpy as np
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    # The shape of BERT-base's feed-forward layer, with enough rows to reach the peak.
    rows, inner, outer = 1024, 768, 3072
    weights = np.ones((inner, outer), np.int8)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "peak",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [rows, inner])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [rows, outer])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(onnx.ModelProto.SerializeToString(model), options)
    feed = {"x": np.ones((rows, inner), np.uint8)}
    # The minimum: a peak is what the machine can do undisturbed.
    best = math.inf
    for _ in range(50):
        started = time.perf_counter()
        session.run(None, feed)
        best = min(best, time.perf_counter() - started)
    return rows * inner * outer / best / 1e9
