"""`AsyncMaskFiller`: concurrent awaits share the runs of one model."""

import asyncio
import contextlib
import re
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from .encoding import EncodedText, LongText
from .errors import InputError
from .filler import MaskFiller
from .filling import Choice, answer_parts, encode_texts
from .predict import TOKEN_BUDGET
from .results import FillResult

__all__ = ["AsyncMaskFiller"]


@dataclass(frozen=True, slots=True, eq=False)
class _Request:
    parts: list[EncodedText]
    tokens: int
    choice: Choice
    answer: asyncio.Future[FillResult]


class AsyncMaskFiller:
    """Answers awaits from one event loop; those that come together are answered by one run of the model.

    A request that finds the model idle waits up to `max_wait_ms` for company; while the model runs, what comes
    is gathered for the next run. The model runs on a thread of its own, so the loop stays free.

    Args:
        filler: What answers. It stays open when this is closed.
        max_wait_ms: Longest wait of a request for others, in milliseconds; 0 takes what is there.
        max_tokens: Most tokens in a run, padding included; what is more waits for the next, those that differ most
            in length from the oldest first.
        max_pending: Most requests that wait; further awaits pause before they are taken (back-pressure).

    Raises:
        InputError: An argument is out of its range.
    """

    def __init__(
        self,
        filler: MaskFiller,
        *,
        max_wait_ms: float = 2.0,
        max_tokens: int = TOKEN_BUDGET,
        max_pending: int = 1024,
    ) -> None:
        for name, value, least in (
            ("max_wait_ms", max_wait_ms, 0),
            ("max_tokens", max_tokens, 1),
            ("max_pending", max_pending, 1),
        ):
            if not isinstance(value, int | float) or isinstance(value, bool) or value < least:
                raise InputError(f"{name} is {value!r}; it must be {least} or more")
        self.filler = filler
        self._max_wait = max_wait_ms / 1e3
        self._max_tokens = max_tokens
        self._room = asyncio.Semaphore(int(max_pending))
        self._waiting: list[_Request] = []
        self._arrived = asyncio.Event()
        self._full = asyncio.Event()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="mlm-infer")
        self._worker: asyncio.Task[None] | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Answer what waits, then take nothing more."""
        self._closed = True
        self._arrived.set()
        self._full.set()
        if self._worker is not None:
            await self._worker
        self._executor.shutdown()

    async def fill(
        self,
        text: str,
        *,
        top_k: int = 5,
        targets: str | Sequence[str] | None = None,
        allow: Collection[str] | None = None,
        deny: Collection[str] | None = None,
        words_only: bool = False,
        pattern: str | re.Pattern[str] | None = None,
        min_score: float = 0.0,
        renormalize: bool = False,
        long_text: LongText = "error",
        timeout: float | None = None,
    ) -> FillResult:
        """Fill the masks of one text, as `MaskFiller.fill` does.

        A cancelled await is taken out of what waits; one whose run has begun is dropped when that ends.

        Args:
            text: A text with one or more masks.
            top_k: As for `MaskFiller.fill`, and so are the others.
            targets: Words to choose among.
            allow: Words that may be given.
            deny: Words that are never given.
            words_only: Whole words alone.
            pattern: What a word has to match.
            min_score: Least probability of a prediction.
            renormalize: Scores over what may be given.
            long_text: What to do with a text that is too long.
            timeout: Most seconds from the call to the answer.

        Raises:
            InputError: The text or an argument cannot be used, or this is closed.
            TimeoutError: There was no answer in time.
        """
        engine = self.filler.engine
        choice = Choice.of(
            engine,
            top_k=top_k,
            targets=targets,
            allow=allow,
            deny=deny,
            words_only=words_only,
            pattern=pattern,
            min_score=min_score,
            renormalize=renormalize,
            long_text=long_text,
        )
        async with asyncio.timeout(timeout), self._room:
            (parts,) = encode_texts(engine, [text], choice)
            if isinstance(parts, InputError):
                raise parts
            if self._closed:
                raise InputError("this AsyncMaskFiller is closed; open a new one")
            loop = asyncio.get_running_loop()
            if self._worker is None:
                self._worker = loop.create_task(self._work())
            request = _Request(parts, sum(len(part.ids) for part in parts), choice, loop.create_future())
            self._waiting.append(request)
            self._arrived.set()
            self._note_if_full()
            return await request.answer

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            if not self._waiting and self._closed:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._full.wait(), self._max_wait)
            for choice, requests in self._take().items():
                texts = [each.parts for each in requests]
                try:
                    results = await loop.run_in_executor(
                        self._executor, answer_parts, self.filler.engine, texts, choice
                    )
                except Exception as error:  # whatever it is, each await gets it
                    for each in requests:
                        if not each.answer.done():
                            each.answer.set_exception(error)
                else:
                    for each, result in zip(requests, results, strict=True):
                        if not each.answer.done():
                            each.answer.set_result(result)

    def _take(self) -> dict[Choice, list[_Request]]:
        """Take the oldest request and those nearest to it in length, within the token budget, by what they ask for."""
        waiting = [each for each in self._waiting if not each.answer.done()]
        nearest = sorted(waiting, key=lambda each: abs(each.tokens - waiting[0].tokens))
        taken: list[_Request] = []
        longest = 0
        for each in nearest:
            longest = max(longest, each.tokens)
            if taken and longest * (len(taken) + 1) > self._max_tokens:
                break
            taken.append(each)
        chosen: dict[Choice, list[_Request]] = {}
        for each in taken:
            chosen.setdefault(each.choice, []).append(each)
        gone = set(taken)
        self._waiting = [each for each in waiting if each not in gone]
        self._full.clear()
        self._note_if_full()
        if not self._waiting and not self._closed:
            self._arrived.clear()
        return chosen

    def _note_if_full(self) -> None:
        """End the wait for company where a run is full without it."""
        if not self._full.is_set() and sum(each.tokens for each in self._waiting) >= self._max_tokens:
            self._full.set()
