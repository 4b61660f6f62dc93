"""`AsyncMaskFiller`: batches concurrent requests from one event loop."""

import asyncio
import contextlib
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from numbers import Real
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from .checks import shown, whole_number
from .errors import BundleError, InputError
from .filler import MaskFiller
from .options import FillKeywords, FillOptions, check_names, fill_options
from .results import FillResult
from .runtime.best import Answer
from .runtime.predictor import TOKEN_BUDGET, Watch
from .tasks.fill import Choice, Wanted, ask_parts, build_result, check_top_k, encode_texts, wanted_ids
from .text.encoded_text import EncodedText

__all__ = ["AsyncMaskFiller"]

_T = TypeVar("_T")

_TEXT_THREADS = 4
"""Threads for tokenization, filters and results."""
_SHORT, _FEW = 1_000, 50
"""Characters of a text, and number of predictions, that are processed in a fraction of a millisecond."""

_DEFAULTS = FillOptions()
_RESTRICTING = frozenset(["targets", "allow", "deny", "words_only", "pattern"])

_OTHER_LOOP = "this AsyncMaskFiller belongs to another event loop; make one for each loop"
_MOST = 1_000_000_000

_MOST_REPEATED = 20_000_000
"""Maximum number of characters in an answer, in which every prediction contains the whole text."""


@dataclass(frozen=True, slots=True, eq=False)
class _Request:
    """A waiting request. A text has one part, a long one several windows; each run of the model takes one part."""

    parts: list[EncodedText]
    wanted: list[Wanted] | None
    choice: Choice
    answer: asyncio.Future[list[list[Answer]]]
    found: list[list[Answer]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Number of tokens in the next part."""
        return len(self.parts[len(self.found)].ids)


class AsyncMaskFiller:
    """Answers requests from one event loop; concurrent requests share runs of the model.

    A request that finds the model idle waits up to `max_wait_ms` for others. Requests that arrive during a run are
    collected for the next one. The model runs on its own thread. Except for short texts, tokenization, filtering and
    building of results run on a small thread pool, so they do not block the event loop and `timeout` covers them. If
    a request ends early, work that a thread has started for it (one run, one text) still completes.

    Untrusted users may choose texts and numbers, within the limits below, but not `pattern`: Python's `re` holds the
    interpreter lock while it matches, so catastrophic backtracking blocks the whole process.

    Args:
        filler: The filler to use. It stays open when this instance is closed.
        max_wait_ms: Maximum time that a request waits for others, in milliseconds; 0 does not wait.
        max_tokens: Maximum number of tokens per run, padding included. If more are waiting, the requests closest in
            length to the oldest one run first.
        max_pending: Maximum number of requests in progress; further calls pause until there is room (back-pressure).
        max_characters: Maximum number of characters per text.
        max_predictions: Maximum number of predictions per answer, `top_k` for each mask. It is lower for texts of more
            than 2,000 characters, since each prediction contains the whole text.
        on_run: Called on the event loop with the numbers of texts and of tokens before each run of the model; returns a
            context manager, which is entered around the run.

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
        max_characters: int = 100_000,
        max_predictions: int = 10_000,
        on_run: Watch | None = None,
    ) -> None:
        wait = _seconds("max_wait_ms", max_wait_ms)
        limits = {
            "max_tokens": max_tokens,
            "max_pending": max_pending,
            "max_characters": max_characters,
            "max_predictions": max_predictions,
        }
        for name, value in limits.items():
            limits[name] = whole_number(name, value, least=1, most=_MOST)
        self.filler = filler
        self._max_wait, self._on_run = wait / 1e3, on_run
        self._max_tokens = limits["max_tokens"]
        self._max_characters = limits["max_characters"]
        self._max_predictions = limits["max_predictions"]
        self._room = asyncio.Semaphore(limits["max_pending"])
        self._taken: set[asyncio.Future[None]] = set()
        self._waiting: list[_Request] = []
        self._running: list[_Request] = []
        self._full = asyncio.Event()
        # One thread for the model: two runs at once would compete for the same cores.
        self._model = ThreadPoolExecutor(1, thread_name_prefix="mlm-infer")
        self._texts = ThreadPoolExecutor(_TEXT_THREADS, thread_name_prefix="mlm-infer-texts")
        self._worker: asyncio.Task[None] | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop accepting requests and wait until all accepted ones are answered, which a cancellation does not prevent.

        Raises:
            InputError: The instance is in use on another event loop.
        """
        owner = self._owner()
        if owner is not asyncio.get_running_loop() and not owner.is_closed():
            raise InputError(_OTHER_LOOP)
        self._closed = True
        self._full.set()
        # A loop that has been closed can complete none of its futures, so waiting for them would never end.
        while self._taken and not owner.is_closed():
            await asyncio.wait(self._taken)
        for executor in (self._model, self._texts):
            executor.shutdown(wait=False, cancel_futures=True)

    async def fill(
        self,
        text: str,
        *,
        timeout: float | None = None,
        **options: Unpack[FillKeywords],
    ) -> FillResult:
        """Fill the masks of one text, as `MaskFiller.fill` does.

        A cancelled request is removed from the queue; if its run has started, its answer is discarded.

        Args:
            text: A text with one or more masks.
            timeout: Maximum time from the call to the answer, in seconds.
            **options: As for `MaskFiller.fill`. Do not let untrusted users choose `pattern`, see above.

        Raises:
            InputError: The text or an argument is invalid, the answer would exceed `max_predictions`, the instance is
                closed, or it belongs to another event loop.
            BundleError: The model or its tokenizer failed.
            TimeoutError: There was no answer in time.
        """
        loop = asyncio.get_running_loop()
        if self._owner() is not loop:
            raise InputError(_OTHER_LOOP)
        if timeout is not None:
            timeout = _seconds("timeout", timeout)
        check_names(options)
        predictions = self._check_size(text, options.get("top_k", _DEFAULTS.top_k))
        # Handing a short text to a thread takes longer than tokenizing it here.
        aside = self._texts if options.keys() & _RESTRICTING or predictions > _FEW or len(text) > _SHORT else None
        async with asyncio.timeout(timeout), self._room:
            if self._closed:
                raise InputError("this AsyncMaskFiller is closed; open a new one")
            # `answer` ends with the run; `taken` ends when the caller has its result, which is what `aclose` waits for.
            taken, answer = loop.create_future(), loop.create_future()
            self._taken.add(taken)
            try:
                request = await _on(aside, self._prepare, text, options, answer)
                self._waiting.append(request)
                self._note_if_full()
                self._start()
                found = await answer
                return await _on(aside, build_result, self.filler.model, request.parts, found, request.choice)
            finally:
                # After a timeout or a cancellation this removes the request from the queue: `_take` skips it.
                answer.cancel()
                self._taken.discard(taken)
                taken.set_result(None)

    def _owner(self) -> asyncio.AbstractEventLoop:
        """Return the event loop that this instance belongs to, the first one that used it."""
        # `setdefault` is atomic: of two threads with two loops, one becomes the owner.
        owner: asyncio.AbstractEventLoop = self.__dict__.setdefault("_loop", asyncio.get_running_loop())
        return owner

    def _check_size(self, text: object, top_k: int) -> int:
        """Return the number of requested predictions; raise InputError if they or the text exceed the limits."""
        if not isinstance(text, str):
            raise InputError(f"text is a {type(text).__name__}; give a string")
        if len(text) > self._max_characters:
            raise InputError(
                f"the text has {len(text):,} characters, and may have {self._max_characters:,} here (max_characters); "
                f"shorten it: {text[:40]!r}"
            )
        model = self.filler.model
        top_k = check_top_k(model, top_k)
        masks, each = len(model.encoder.mask_spans(text)), min(top_k, model.manifest.vocab_size)
        most = min(self._max_predictions, _MOST_REPEATED // max(1, len(text)))
        if masks * each > most:
            raise InputError(
                f"{masks:,} masks with {each:,} predictions each make {masks * each:,}, and for {len(text):,} "
                f"characters there may be {most:,} here (see max_predictions); take a smaller top_k or fewer masks"
            )
        return masks * each

    def _prepare(self, text: str, options: FillKeywords, answer: asyncio.Future[list[list[Answer]]]) -> _Request:
        model = self.filler.model
        choice = Choice.of(model, fill_options(options))
        (parts,) = encode_texts(model, [text], choice)
        if isinstance(parts, InputError):
            raise parts
        return _Request(parts, wanted_ids(model, parts, choice), choice, answer)

    def _start(self) -> None:
        """Start the worker task unless it is running."""
        if self._worker is None:
            self._worker = asyncio.get_running_loop().create_task(self._work())
            self._worker.add_done_callback(self._ended)

    def _ended(self, worker: asyncio.Task[None]) -> None:
        """Fail all waiting requests if the worker was cancelled or failed; restart it if new ones arrived."""
        self._worker, running, self._running = None, self._running, []
        error: BaseException | None = (
            InputError("the event loop's tasks were cancelled, and the run of the model with them; ask again")
            if worker.cancelled()
            else worker.exception()
        )
        if error is not None:
            _fail([*running, *self._waiting], error)
            self._waiting.clear()
        elif self._waiting:
            self._start()

    async def _work(self) -> None:
        """Answer requests in batches until none waits."""
        while self._waiting:
            # Wait for company, unless the waiting requests already fill a run.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._full.wait(), self._max_wait)
            self._running = self._take()
            # One run of the graph has one `k` and one kind of output, so requests with equal options run together.
            by_choice: dict[Choice, list[_Request]] = {}
            for each in self._running:
                by_choice.setdefault(each.choice, []).append(each)
            for choice, requests in by_choice.items():
                parts = [each.parts[len(each.found)] for each in requests]
                wanted = [each.wanted[len(each.found)] for each in requests if each.wanted is not None] or None
                run = self._on_run or _unwatched
                try:
                    with run(len(parts), sum(len(part.ids) for part in parts)):
                        answers = await _on(self._model, ask_parts, self.filler.model, parts, wanted, choice)
                except Exception as error:  # whatever it is, every caller must get it
                    _fail(requests, error)
                    continue
                for each, answer in zip(requests, answers, strict=True):
                    each.found.append(answer)
                    if len(each.found) < len(each.parts):
                        # Back to the end of the queue: a text of many windows delays others by one run at most.
                        self._waiting.append(each)
                    elif not each.answer.done():
                        each.answer.set_result(each.found)

    def _take(self) -> list[_Request]:
        """Remove and return the oldest request and those closest to it in length, within the token budget."""
        # Similar lengths need little padding; starting from the oldest, no request waits for ever.
        waiting = [each for each in self._waiting if not each.answer.done()]
        nearest = sorted(waiting, key=lambda each: abs(each.tokens - waiting[0].tokens))
        taken: list[_Request] = []
        # A batch is padded to its longest text, so its cost is that length times the number of texts.
        longest = 0
        for each in nearest:
            longest = max(longest, each.tokens)
            if taken and longest * (len(taken) + 1) > self._max_tokens:
                break
            taken.append(each)
        gone = set(taken)
        # Requests in `_waiting` are in order of arrival, which the next batch starts from.
        self._waiting = [each for each in waiting if each not in gone]
        self._full.clear()
        self._note_if_full()
        return taken

    def _note_if_full(self) -> None:
        """End the wait for further requests if those waiting fill a run."""
        if not self._full.is_set() and sum(each.tokens for each in self._waiting) >= self._max_tokens:
            self._full.set()


def _unwatched(_texts: int, _tokens: int) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


async def _on(executor: Executor | None, function: Callable[..., _T], *arguments: Any) -> _T:
    """Call a function on an executor, or directly if it is None."""
    if executor is None:
        return _guarded(function, *arguments)
    return await asyncio.get_running_loop().run_in_executor(executor, partial(_guarded, function, *arguments))


def _guarded(function: Callable[..., _T], *arguments: Any) -> _T:
    """Call a function; turn exceptions that a future cannot hold or asyncio does not deliver into a BundleError."""
    try:
        return function(*arguments)
    except BaseException as error:
        # A future rejects StopIteration; SystemExit and KeyboardInterrupt would end the event loop; and a panic of the
        # tokenizers library is a BaseException as well.
        if isinstance(error, Exception) and not isinstance(error, StopIteration):
            raise
        name = type(error).__name__
        raise BundleError(f"the model or its tokenizer broke ({name}: {error!s:.200}); export it again") from error


def _fail(requests: Sequence[_Request], error: BaseException) -> None:
    for each in requests:
        if not each.answer.done():
            each.answer.set_exception(error)


def _seconds(name: str, value: object) -> float:
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not 0 <= number < math.inf:
        raise InputError(f"{name} is {shown(value)}; it must be a number from 0")
    return number
