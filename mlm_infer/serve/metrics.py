"""Figures of a running server, as Prometheus reads them."""

import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector

__all__ = ["SHARED_FIGURES", "Metrics"]

SHARED_FIGURES = "PROMETHEUS_MULTIPROC_DIR"
"""The variable that names the folder in which several processes share their figures."""

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)

_TRIES = 100


class Metrics:
    """The figures of one server."""

    def __init__(self) -> None:
        own = self._registry = CollectorRegistry()
        self.requests = Counter("mlm_requests", "Answered requests.", ["path", "status"], registry=own)
        self.seconds = Histogram(
            "mlm_request_seconds", "Time from request to answer.", ["path"], registry=own, buckets=_SECONDS
        )
        self.in_progress = _gauge("mlm_requests_in_progress", "Requests in progress.", own)
        self.waiting_texts = _gauge("mlm_waiting_texts", "Texts of /fill that wait for a run of the model.", own)
        self.waiting_questions = _gauge("mlm_waiting_questions", "Questions of other paths that wait their turn.", own)
        self._run_seconds = Histogram(
            "mlm_run_seconds", "Time of a run of the model.", ["path"], registry=own, buckets=_SECONDS
        )
        self._texts = Histogram(
            "mlm_batch_texts", "Token sequences of a run of the model.", ["path"], registry=own, buckets=_TEXTS
        )
        self._tokens = Counter("mlm_tokens", "Tokens of the runs, padding not counted.", ["path"], registry=own)

    @contextmanager
    def run(self, path: str, texts: int, tokens: int) -> Iterator[None]:
        """Measure a run of the model, unless it fails.

        Args:
            path: Path of the requests that it answers.
            texts: Token sequences in it.
            tokens: Tokens in it.
        """
        started = time.perf_counter()
        yield
        self._run_seconds.labels(path).observe(time.perf_counter() - started)
        self._texts.labels(path).observe(texts)
        self._tokens.labels(path).inc(tokens)

    def page(self) -> tuple[bytes, str]:
        """Return the figures of all processes that share them, and the type of the text."""
        if SHARED_FIGURES not in os.environ:
            return generate_latest(self._registry), CONTENT_TYPE_LATEST
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        for _ in range(_TRIES):
            # A process that has just begun has files without content for a moment.
            with suppress(struct.error):
                return generate_latest(registry), CONTENT_TYPE_LATEST
            time.sleep(0.01)
        return generate_latest(registry), CONTENT_TYPE_LATEST


def _gauge(name: str, text: str, registry: CollectorRegistry) -> Gauge:
    # Several processes: the sum over those that live.
    return Gauge(name, text, registry=registry, multiprocess_mode="livesum")
