"""Answers questions: texts to fill share runs of the model, all other questions take turns."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from contextvars import copy_context
from typing import Self, TypeVar, Unpack

from mlm_infer.async_filler import AsyncMaskFiller
from mlm_infer.errors import InputError, TextError
from mlm_infer.filler import MaskFiller
from mlm_infer.options import FillKeywords
from mlm_infer.results import FillResult
from mlm_infer.runtime.predictor import watch

from .limits import Limits
from .metrics import Metrics

__all__ = ["Desk"]

_T = TypeVar("_T")
_AHEAD = 256
"""Texts of one request that wait at a time; other requests come in between."""


class Desk:
    """Answers questions about one model, from one event loop.

    Args:
        filler: The model.
        limits: The limits.
        metrics: Counts what waits, and the runs of the model.
    """

    def __init__(self, filler: MaskFiller, limits: Limits, metrics: Metrics) -> None:
        self._filler, self._limits, self._metrics = filler, limits, metrics
        self._texts = self._texts_in_run = 0
        self._shared = AsyncMaskFiller(
            filler,
            max_pending=max(limits.requests, _AHEAD),
            max_characters=limits.characters,
            max_predictions=limits.predictions,
            on_run=self._run_for_fill,
        )
        # One thread: two searches at once would compete for the same cores.
        self._turns = ThreadPoolExecutor(1, thread_name_prefix="mlm-serve")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        """Answer what waits, and end."""
        await self._shared.aclose()
        self._turns.shutdown(wait=True)

    async def fill(
        self, texts: Sequence[str], **options: Unpack[FillKeywords]
    ) -> AsyncIterator[FillResult | InputError]:
        """Yield the answer of each text in its order, or its error.

        Raises:
            BundleError: The model failed.
            TimeoutError: There is no answer in time.
        """
        waiting: list[asyncio.Task[FillResult]] = []
        try:
            for start in range(0, len(texts), _AHEAD):
                part = texts[start : start + _AHEAD]
                waiting = [asyncio.create_task(self._fill_one(text, options)) for text in part]
                for number, task in enumerate(waiting, start + 1):
                    try:
                        yield await task
                    except TextError as error:
                        yield error if len(texts) == 1 else error.named(f"text {number} of {len(texts)}")
                    except InputError as error:
                        yield error
        finally:
            for task in waiting:
                task.cancel()

    async def _fill_one(self, text: str, options: FillKeywords) -> FillResult:
        self._texts += 1
        self._note_waiting()
        try:
            return await self._shared.fill(text, timeout=self._limits.seconds, **options)
        finally:
            self._texts -= 1
            self._note_waiting()

    @contextmanager
    def _run_for_fill(self, texts: int, tokens: int) -> Iterator[None]:
        self._texts_in_run = texts
        self._note_waiting()
        try:
            with self._metrics.run("/fill", texts, tokens):
                yield
        finally:
            self._texts_in_run = 0
            self._note_waiting()

    def _note_waiting(self) -> None:
        # Texts that were given up may still be in a run.
        self._metrics.waiting_texts.set(max(0, self._texts - self._texts_in_run))

    async def in_turn(self, path: str, question: Callable[[], _T]) -> _T:
        """Ask the model on a thread, one question at a time.

        A question that nobody waits for any more, since the time is over or the client has gone, ends before its next
        run of the model.

        Args:
            path: Path of the request.
            question: Asks the model.

        Raises:
            TimeoutError: There is no answer in time.
        """
        given_up = threading.Event()

        def watched(texts: int, tokens: int) -> AbstractContextManager[None]:
            if given_up.is_set():
                raise CancelledError
            return self._metrics.run(path, texts, tokens)

        def ask() -> _T:
            self._metrics.waiting_questions.dec()
            watch.set(watched)
            return question()

        self._metrics.waiting_questions.inc()
        turn = self._turns.submit(copy_context().run, ask)
        try:
            async with asyncio.timeout(self._limits.seconds):
                return await asyncio.wrap_future(turn)
        finally:
            given_up.set()
            if turn.cancel():
                # It never began.
                self._metrics.waiting_questions.dec()

    def check(self, **values: int) -> None:
        """Refuse what is beyond a limit.

        Args:
            **values: Numbers, by the names of the limits.

        Raises:
            InputError: A number is higher than its limit.
        """
        for name, value in values.items():
            most = getattr(self._limits, name)
            if value > most:
                raise InputError(
                    f"the limit of {name} is {most:,} here, and this needs {value:,}; ask for less at once"
                )

    def check_predictions(self, texts: Sequence[str], top_k: int) -> None:
        """Refuse texts whose answers would not fit, before any of them is computed.

        Args:
            texts: The texts of a request.
            top_k: Predictions for each mask; the model checks it.

        Raises:
            InputError: A limit is exceeded.
        """
        self.check(texts=len(texts))
        masks = [len(self._filler.model.encoder.mask_spans(text)) for text in texts]
        # Each prediction contains its whole text.
        repeated = sum(count * len(text) for count, text in zip(masks, texts, strict=True))
        each = min(top_k, self._filler.info.vocab_size)
        self.check(predictions=each * sum(masks), answer=each * repeated)
