"""Compares engines text by text in alternation, so that disturbances of the machine affect all of them alike."""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from typing import Any

from .busy import OtherLoad, refuse_busy
from .ratios import repeat_until_narrow
from .workers import EngineError, Worker, is_ours

__all__ = ["Comparison", "Limits", "compare_quality", "machine_peak", "paired_ratios"]

CALL_SIZES = (1, 8, 32)
"""Texts per call, or per batch of the pipeline."""
_LEAST_ROUNDS = 6
"""Rounds in bulk: fewer ratios have no interval."""
_ROUND_SECONDS, _FEWEST, _MOST = 10, 32, 500
"""A round in bulk has as many texts as the pipeline answers in this time, within these limits."""

Engines = dict[str, dict[str, Any]]
"""The figures of each engine."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is measured.

    Attributes:
        singles: Fewest single texts of each length.
        sentences: Texts of a round in bulk; None for as many as the pipeline answers in ten seconds.
        minutes: Longest time for the single texts of a length, and for the rounds in bulk.
        even_if_busy: Whether a busy machine is accepted.
    """

    singles: int
    sentences: int | None
    minutes: float
    even_if_busy: bool


def paired_ratios(engine: Mapping[str, Any], base: Mapping[str, Any], length: str | None) -> list[float]:
    """Return how many times as fast an engine was as another one, for each pair of times.

    Args:
        engine: Figures of the engine.
        base: Figures of an engine that was measured in turns with it.
        length: Length of single texts, or None for the rounds in bulk.
    """
    if length is None:
        ours, theirs = engine["bulk"]["rounds_seconds"], base["bulk"]["rounds_seconds"]
    else:
        ours, theirs = engine["latency_ms"][length]["each"], base["latency_ms"][length]["each"]
    return [slow / quick for quick, slow in zip(ours, theirs, strict=True)]


@dataclass(slots=True)
class Comparison:
    """Measures a model with the engines of one group after the other.

    Attributes:
        limits: How much is measured.
        on_step: Called with a line of text at the start of each step.
        engines: For each engine: latency in milliseconds (p50, p95) by length, throughput in texts per second, seconds
            to load and answer the first text, peak memory and size of the imported packages in MB, and the top-1
            agreement with the pipeline.
        others: Largest share of the processors' time that other processes took, by what was measured.
        left_out: Engines that cannot run this model, and why.
    """

    limits: Limits
    on_step: Callable[[str], None]
    engines: Engines = field(default_factory=dict)
    others: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def measure(self, workers: Sequence[Worker], latency: Mapping[int, Sequence[str]], bulk: Sequence[str]) -> None:
        """Measure the engines of a group on single texts of given lengths and on many texts.

        Args:
            workers: The engines, the pipeline among them.
            latency: Texts by their number of tokens.
            bulk: Many texts.

        Raises:
            EngineError: The pipeline or this package cannot run the model.
            BusyError: Other processes were busy.
        """
        workers = [worker for worker in workers if self._load(worker, bulk[0])]
        best: dict[str, list[int]] = {worker.name: [] for worker in workers}
        for length, texts in latency.items():
            self.on_step(f"single texts of {length} tokens, in turns")
            load = OtherLoad()
            self._single_texts(workers, str(length), texts, best)
            self._check(f"single texts of {length} tokens", load)
        for name, found in best.items():
            pairs = zip(found, best[self.engines[name]["base"]], strict=True)
            self.engines[name]["same_best_token"] = statistics.fmean(mine == theirs for mine, theirs in pairs)
        # Few texts suffice to find the best size, and of a large model more would take as long as the rounds in bulk.
        batch = self._call_sizes(workers, bulk[: max(CALL_SIZES)])
        load = OtherLoad()
        self._bulk(workers, bulk, batch)
        self._check("bulk", load)

    def _load(self, worker: Worker, text: str) -> bool:
        """Have an engine load its model; return whether it can."""
        self.on_step(f"loading {worker.name}")
        try:
            answer = worker.ask([text])
        except EngineError as error:
            if is_ours(worker.name) or worker.name == worker.base:
                raise
            # Without the name of the engine, under which it is kept.
            self.left_out[worker.name] = str(error).removeprefix(f"{worker.name} ")
            return False
        self.engines[worker.name] = {
            "instruction_set": worker.instruction_set,
            "base": worker.base,
            "latency_ms": {},
            "load_and_first_seconds": answer["load_and_first"],
            "installed_mb": answer["installed_mb"],
        }
        return True

    def _check(self, what: str, load: OtherLoad) -> None:
        share = load.share()
        self.others[what] = max(share, self.others.get(what, 0.0))
        refuse_busy(share, allowed=self.limits.even_if_busy, what=what)

    def _ratios(self, workers: Sequence[Worker], length: str | None) -> Iterator[list[float]]:
        """Yield the ratios that must become narrow: those of every engine against the pipeline."""
        for worker in workers:
            yield paired_ratios(self.engines[worker.name], self.engines[worker.base], length)

    def _single_texts(
        self, workers: Sequence[Worker], length: str, texts: Sequence[str], best: dict[str, list[int]]
    ) -> None:
        times: dict[str, list[float]] = {worker.name: [] for worker in workers}
        for name, found in times.items():
            self.engines[name]["latency_ms"][length] = {"each": found}

        def turn(text: str) -> None:
            # Engines in turns for every text, instead of one after the other for all: a disturbance hits all engines.
            for worker in workers:
                # The previous engine has filled the caches with its own weights: each turn starts with an untimed run.
                answer = worker.ask([text], warm_up=1)
                times[worker.name].append(round(answer["seconds"] * 1e3, 3))
                best[worker.name].append(answer["ids"][0][0])

        turns = (partial(turn, text) for text in cycle(texts))
        ratios = partial(self._ratios, workers, length)
        repeat_until_narrow(turns, ratios, self.limits.singles, self.limits.minutes * 60)
        for name, found in times.items():
            figures = {"p50": statistics.median(found), "p95": statistics.quantiles(found, n=20)[18], "each": found}
            self.engines[name]["latency_ms"][length] = figures

    def _call_sizes(self, workers: Sequence[Worker], some: Sequence[str]) -> dict[str, int]:
        """Measure throughput by call size on a few texts, and return each engine's best size."""
        self.on_step(f"calls of {', '.join(map(str, CALL_SIZES))} texts")
        batch = {}
        for worker in workers:
            found = {str(size): len(some) / worker.ask(some, size)["seconds"] for size in CALL_SIZES}
            self.engines[worker.name]["texts_per_second_by_call_size"] = found
            batch[worker.name] = int(max(found, key=found.__getitem__))
        return batch

    def _bulk(self, workers: Sequence[Worker], bulk: Sequence[str], batch: Mapping[str, int]) -> None:
        """Measure throughput in rounds, with the engines in turns.

        Each peer uses its best batch size. This package gets all texts at once and batches them itself.
        """
        fastest = max(self.engines[workers[0].base]["texts_per_second_by_call_size"].values())
        size = self.limits.sentences or min(_MOST, max(_FEWEST, round(fastest * _ROUND_SECONDS)))
        # No text twice, and the same texts for all engines of a round.
        parts = [bulk[start : start + size] for start in range(0, len(bulk) - size + 1, size)]
        seconds: dict[str, list[float]] = {worker.name: [] for worker in workers}
        for worker in workers:
            given = size if is_ours(worker.name) else batch[worker.name]
            self.engines[worker.name]["bulk"] = {"batch_size": given, "rounds_seconds": seconds[worker.name]}

        def turn(number: int, part: Sequence[str]) -> None:
            self.on_step(f"bulk, round {number}: {len(part)} texts")
            for worker in workers:
                answer = worker.ask(part, self.engines[worker.name]["bulk"]["batch_size"])
                seconds[worker.name].append(answer["seconds"])
                self.engines[worker.name]["peak_memory_mb"] = answer["peak_mb"]

        turns = (partial(turn, number, part) for number, part in enumerate(parts, 1))
        ratios = partial(self._ratios, workers, None)
        repeat_until_narrow(turns, ratios, _LEAST_ROUNDS, self.limits.minutes * 60)
        for name, found in seconds.items():
            speed = size * len(found) / math.fsum(found)
            self.engines[name]["bulk"] |= {"texts_per_second": speed, "texts_per_round": size}


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
