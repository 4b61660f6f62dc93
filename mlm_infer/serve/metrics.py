"""Figures of a running server, as Prometheus reads them."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

__all__ = ["Metrics"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """The figures of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter("mlm_requests", "Answered requests.", ["path", "status"], registry=self._registry)
        self.seconds = Histogram(
            "mlm_request_seconds", "Time from request to answer.", ["path"], registry=self._registry, buckets=_SECONDS
        )
        self.in_progress = Gauge("mlm_requests_in_progress", "Requests in progress.", registry=self._registry)
        self.batch = Histogram(
            "mlm_batch_texts", "Texts of a run of the model for /fill.", registry=self._registry, buckets=_TEXTS
        )
        self.tokens = Counter("mlm_tokens", "Tokens of these runs, padding not counted.", registry=self._registry)

    def run(self, texts: int, tokens: int) -> None:
        """Count a run of the model.

        Args:
            texts: Texts in it.
            tokens: Tokens in it.
        """
        self.batch.observe(texts)
        self.tokens.inc(tokens)

    def page(self) -> tuple[bytes, str]:
        """Return all figures, and the type of their text."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST
