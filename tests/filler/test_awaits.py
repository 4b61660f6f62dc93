"""Awaits that are cancelled, too large, on other event loops, or whose run fails end in an answer or an error."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from mlm_infer import AsyncMaskFiller, BundleError, FillResult, InputError, MaskFiller

TEXT = "A [MASK] film."


@pytest.fixture(scope="module")
def filler() -> MaskFiller:
    """The shipped model."""
    return MaskFiller()


def run(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run a coroutine with a time limit."""

    async def limited() -> Any:
        async with asyncio.timeout(60):
            return await main()

    return asyncio.run(limited())


def test_one_event_loop(filler: MaskFiller) -> None:
    """Use on another loop, later or in another thread, is rejected; the first loop continues."""
    server = AsyncMaskFiller(filler)
    expected = filler.fill(TEXT)

    async def ask() -> FillResult:
        return await server.fill(TEXT)

    async def ask_elsewhere() -> None:
        await server.fill(TEXT)
        for wrong in (ask, server.aclose):
            with pytest.raises(InputError, match="belongs to another event loop; make one for each loop"):
                await asyncio.to_thread(run, wrong)
        assert await server.fill(TEXT) == expected

    run(ask_elsewhere)
    with pytest.raises(InputError, match="belongs to another event loop"):
        run(ask)
    run(server.aclose)


def test_closing_out_of_time_answers_what_was_taken(filler: MaskFiller) -> None:
    """A cancelled `aclose()` stops waiting; accepted requests are still answered."""

    async def main() -> None:
        server = AsyncMaskFiller(filler, max_wait_ms=200)
        asked = [asyncio.create_task(server.fill(TEXT)) for _ in range(8)]
        await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(server.aclose(), 0)
        closing = asyncio.create_task(server.aclose())
        for _ in range(5):
            await asyncio.sleep(0)
        closing.cancel()
        assert await asyncio.gather(*asked) == [filler.fill(TEXT)] * 8
        await server.aclose()
        with pytest.raises(InputError, match="closed"):
            await server.fill(TEXT)

    run(main)


def test_cancelled_tasks_of_a_loop(filler: MaskFiller) -> None:
    """If all other tasks of a loop are cancelled, the awaits fail with our error, and the next one is answered."""

    async def main() -> None:
        server = AsyncMaskFiller(filler, max_wait_ms=5_000)
        asked = [asyncio.create_task(server.fill(TEXT)) for _ in range(4)]
        while server._worker is None:
            await asyncio.sleep(0)
        for task in asyncio.all_tasks() - {asyncio.current_task(), *asked}:
            task.cancel()
        found = await asyncio.gather(*asked, return_exceptions=True)
        cancelled = [each for each in found if isinstance(each, InputError)]
        assert cancelled
        assert all("tasks were cancelled" in str(each) for each in cancelled)
        server._max_wait = 0
        assert await server.fill(TEXT) == filler.fill(TEXT)
        await server.aclose()

    async def abandoned() -> None:
        server = AsyncMaskFiller(filler, max_wait_ms=5_000)
        tasks = [asyncio.create_task(server.fill(TEXT)) for _ in range(4)]
        await asyncio.sleep(0.01)
        assert not any(task.done() for task in tasks)

    run(main)
    run(abandoned)


class Panic(BaseException):
    """Like PanicException of tokenizers, which is no Exception."""


@pytest.mark.parametrize("error", [Panic("index out of bounds"), StopIteration(), KeyError("x"), GeneratorExit()])
@pytest.mark.parametrize("place", ["model.predictor.top", "model.encoder.try_encode"])
def test_whatever_a_thread_raises_is_handed_on(error: BaseException, place: str) -> None:
    """Errors in the model and in the tokenizer reach the await, and the next one is answered."""
    filler = MaskFiller()
    model, part, name = place.split(".")
    owner = getattr(getattr(filler, model), part)
    expected = filler.fill(TEXT)

    def broken(*_: Any, **__: Any) -> Any:
        raise error

    async def main() -> None:
        async with AsyncMaskFiller(filler) as server:
            setattr(owner, name, broken)
            kind = KeyError if isinstance(error, KeyError) else BundleError
            for outcome in await asyncio.gather(*(server.fill(TEXT) for _ in range(3)), return_exceptions=True):
                assert isinstance(outcome, kind)
                assert kind is KeyError or type(error).__name__ in str(outcome)
            delattr(owner, name)
            assert await server.fill(TEXT) == expected

    run(main)


@pytest.mark.parametrize(
    ("options", "text", "asked", "message"),
    [
        ({}, "[MASK] " * 10, {"top_k": 30522}, "10 masks with 30,522 predictions each make 305,220, .* 10,000 here"),
        ({}, "[MASK] " * 2001, {}, "2,001 masks with 5 .* 1,427 here"),
        ({"max_predictions": 6}, "A [MASK] and a [MASK].", {"top_k": 4}, "make 8, .* there may be 6 here"),
        ({}, "good " * 20_000 + "[MASK]", {}, r"100,006 characters, and may have 100,000 here \(max_characters\)"),
        ({}, " " * 90_000 + "[MASK]", {"top_k": 300}, "make 300, .* 222 here"),
        ({"max_characters": 9}, TEXT, {}, "14 characters, and may have 9 here"),
        ({}, TEXT, {"timeout": "5"}, "timeout is '5'"),
        ({}, TEXT, {"timeout": float("nan")}, "timeout is nan"),
        ({}, TEXT, {"timeout": -1}, "timeout is -1"),
        ({}, TEXT, {"top_k": float("nan")}, "top_k is nan"),
        ({}, 5, {}, "text is a int; give a string"),
    ],
)
def test_what_is_too_much_is_refused(
    filler: MaskFiller, options: dict[str, Any], text: Any, asked: dict[str, Any], message: str
) -> None:
    """With a one-line error before anything is tokenized or run; other requests are answered."""

    async def main() -> None:
        async with AsyncMaskFiller(filler, **options) as server:
            with pytest.raises(InputError, match=message) as refused:
                await server.fill(text, **asked)
            assert "\n" not in str(refused.value)
            assert await server.fill("[MASK].", top_k=1) == filler.fill("[MASK].", top_k=1)

    run(main)


def test_a_text_of_many_windows_lets_others_pass(filler: MaskFiller) -> None:
    """One window per run: later requests are answered first, and the answer equals that of `fill`."""
    long = "It was a good film and a [MASK] one. " * 120

    async def main() -> tuple[list[str], FillResult]:
        order = []
        async with AsyncMaskFiller(filler, max_wait_ms=0) as server:

            async def ask(name: str, text: str) -> FillResult:
                result = await server.fill(text, top_k=1, long_text="window")
                order.append(name)
                return result

            whole = asyncio.create_task(ask("long", long))
            while not server._running:
                await asyncio.sleep(0)
            for _ in range(3):
                await ask("short", TEXT)
            return order, await whole

    order, result = run(main)
    assert order == ["short"] * 3 + ["long"]
    alone = filler.fill(long, top_k=1, long_text="window")
    assert [mask.window for mask in result.masks] == [mask.window for mask in alone.masks]
    assert ids(result) == ids(alone)


def ids(result: FillResult) -> list[int]:
    """The top-1 token of each mask."""
    return [mask.predictions[0].token_id for mask in result.masks]


def test_the_loop_is_left_alone(filler: MaskFiller, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokenizing long texts, filtering and building results run outside the event loop's thread."""
    seen: dict[str, set[str]] = {}
    encoder = filler.model.encoder

    def watched(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watch(*arguments: Any, **options: Any) -> Any:
            seen.setdefault(name, set()).add(threading.current_thread().name.partition("_")[0])
            return call(*arguments, **options)

        return watch

    for owner, name in ((encoder, "try_encode"), (encoder, "splice"), (encoder.vocabulary, "permitted")):
        monkeypatch.setattr(owner, name, watched(name, getattr(owner, name)))

    async def main() -> Sequence[FillResult]:
        async with AsyncMaskFiller(filler) as server:
            return await asyncio.gather(server.fill(f"{TEXT:2000}"), server.fill(TEXT, pattern="g.*"))

    assert len(run(main)) == 2
    assert seen == {name: {"mlm-infer-texts"} for name in ("try_encode", "splice", "permitted")}
