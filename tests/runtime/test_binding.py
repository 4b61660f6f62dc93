"""I/O binding, which CUDA uses, on the CPU: the answers of plain runs for all shapes and threads."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from mlm_infer.bundle.read_manifest import read_manifest
from mlm_infer.runtime import ort_binding as binding
from mlm_infer.runtime.ort_binding import BoundRuns

OUTPUTS = ("top_ids", "top_logprobs", "candidate_logprobs", "logits", "log_normalizer")


@pytest.fixture(scope="module")
def session(bundles: dict[str, Path]) -> onnxruntime.InferenceSession:
    """A model of the bundle, opened with ONNX Runtime directly."""
    return onnxruntime.InferenceSession(bundles["bert"] / "model.fp32.onnx", providers=["CPUExecutionProvider"])


def some_feeds(bundle: Path, batch: int, length: int, top_k: int, seed: int) -> dict[str, NDArray[Any]]:
    """Random texts with one mask each, the last ones padded."""
    random = np.random.default_rng(seed)
    ids = random.integers(10, 500, (batch, length))
    attention = (np.arange(length) < random.integers(2, length + 1, (batch, 1))).astype(np.int64)
    arrays = {"input_ids": ids, "attention_mask": attention, "token_type_ids": np.zeros_like(ids)}
    return {name: arrays[name] for name in read_manifest(bundle).inputs} | {
        "mask_positions": np.arange(batch)[:, None] * length + 1,
        "mask_rows": np.arange(batch),
        "k": np.array([top_k]),
        "candidates": random.integers(0, 500, (batch, seed % 3)),
    }


def test_same_as_plain_runs(session: onnxruntime.InferenceSession, bundles: dict[str, Path]) -> None:
    """Every output for every shape, and later runs do not overwrite it."""
    bound = BoundRuns(session, "cpu")
    kept = []
    for seed in range(60):
        given = some_feeds(bundles["bert"], 1 + seed % 4, 3 + seed % 5, seed % 6, seed)
        kept.append((bound.run(OUTPUTS, given), session.run(OUTPUTS, given)))
    for found, expected in kept:
        for mine, theirs in zip(found, expected, strict=True):
            assert mine.dtype == theirs.dtype
            np.testing.assert_array_equal(mine, theirs)


def test_only_what_is_asked_for(session: onnxruntime.InferenceSession, bundles: dict[str, Path]) -> None:
    """Outputs in the requested order."""
    given = some_feeds(bundles["bert"], 2, 9, 5, 1)
    logprobs, ids = BoundRuns(session, "cpu").run(["top_logprobs", "top_ids"], given)
    np.testing.assert_array_equal(ids, session.run(["top_ids"], given)[0])
    np.testing.assert_array_equal(logprobs, session.run(["top_logprobs"], given)[0])


def test_buffers_are_kept_and_bounded(
    session: onnxruntime.InferenceSession, bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repeated shape reuses its buffers; many or large shapes do not exhaust memory."""
    bound = BoundRuns(session, "cpu")
    given = some_feeds(bundles["bert"], 2, 9, 5, 1)
    bound.run(["top_ids"], given)
    first = dict(bound._threads.buffers)
    bound.run(["top_ids"], given)
    assert all(bound._threads.buffers[key] is value for key, value in first.items())
    monkeypatch.setattr(binding, "_MOST_BUFFERS", 12)
    monkeypatch.setattr(binding, "_LARGEST_BUFFER", 1000)
    for length in range(3, 40):
        given = some_feeds(bundles["bert"], 3, length, 5, length)
        (logits,) = bound.run(["logits"], given)
        np.testing.assert_array_equal(logits, session.run(["logits"], given)[0])
    assert len(bound._threads.buffers) == 12
    assert all(name != "logits" for name, _ in list(bound._threads.buffers)[1:])


def test_threads_share_no_binding(session: onnxruntime.InferenceSession, bundles: dict[str, Path]) -> None:
    """Sixteen threads, each with its own binding, get the answers of one."""
    bound = BoundRuns(session, "cpu")
    many = [some_feeds(bundles["bert"], 1 + seed % 3, 3 + seed % 7, 5, seed) for seed in range(160)]
    expected = [session.run(OUTPUTS, given) for given in many]
    seen: dict[int, Any] = {}

    def run(given: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        found = bound.run(OUTPUTS, given)
        seen[threading.get_ident()] = bound._threads.binding
        return found

    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(run, many))
    for found, wanted in zip(results, expected, strict=True):
        for mine, theirs in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(mine, theirs)
    assert len({id(each) for each in seen.values()}) == len(seen)
