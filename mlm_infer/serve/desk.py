"""Answers questions: texts to fill share runs of the model, all other questions take turns."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Self, TypeVar, Unpack

from mlm_infer.async_filler import AsyncMaskFiller
from mlm_infer.errors import InputError, TextError
from mlm_infer.filler import MaskFiller
from mlm_infer.options import FillKeywords
from mlm_infer.results import FillResult

from .limits import Limits

__all__ = ["Desk"]

_T = TypeVar("_T")
_AHEAD = 256
"""Texts of one request that wait at a time; other requests come in between."""


class Desk:
    """Answers questions about one model, from one event loop.

    Args:
        filler: The model.
        limits: The limits.
        on_run: Called with the numbers of texts and tokens of each run of the model for `fill`.
    """

    def __init__(self, filler: MaskFiller, limits: Limits, on_run: Callable[[int, int], None]) -> None:
        self._filler, self._limits = filler, limits
        self._shared = AsyncMaskFiller(
            filler,
            max_pending=max(limits.requests, _AHEAD),
            max_characters=limits.characters,
            max_predictions=limits.predictions,
            on_run=on_run,
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
                waiting = [
                    asyncio.create_task(self._shared.fill(text, timeout=self._limits.seconds, **options))
                    for text in part
                ]
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

    async def in_turn(self, question: Callable[[], _T]) -> _T:
        """Ask the model on a thread, one question at a time.

        Raises:
            TimeoutError: There is no answer in time.
        """
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._limits.seconds):
            return await loop.run_in_executor(self._turns, question)

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
