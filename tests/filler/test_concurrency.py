"""Threads, awaits and processes get the answers that a single caller gets."""

import asyncio
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from mlm_infer import AsyncMaskFiller, BundleError, FillResult, InputError, MaskFiller
from mlm_infer.shared.samples import movie_reviews
from tests.helpers.forks import ANSWERED, FORK
from tests.helpers.paths import SHIPPED
from tests.helpers.pipeline import masked_sentences

TEXTS = [f"{' '.join(text.split()[: 4 + row % 20])} [MASK]." for row, text in enumerate(movie_reviews()[:64])]


@pytest.fixture(scope="module")
def filler() -> MaskFiller:
    """The shipped model."""
    return MaskFiller()


def words(result: FillResult) -> list[tuple[int, float]]:
    """Tokens and scores to six digits, since int8 answers do not depend on the batch."""
    return [(each.token_id, round(each.score, 5)) for each in result.masks[0].predictions]


def first_words(filler: MaskFiller, texts: list[str]) -> list[Any]:
    """The answer of a worker process."""
    return [words(each) for each in filler.fill_batch(texts)]


def test_sixteen_threads(filler: MaskFiller) -> None:
    """One instance, sixteen threads, four calls each on every text."""
    alone = [filler.fill(text) for text in TEXTS]
    with ThreadPoolExecutor(16) as pool:
        for result, expected in zip(pool.map(filler.fill, TEXTS * 4), alone * 4, strict=True):
            assert result == expected


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes(filler: MaskFiller, method: str) -> None:
    """A filler can be sent to other processes, and a forked child opens its own session."""
    expected = first_words(filler, TEXTS[:8])
    with ProcessPoolExecutor(2, mp_context=get_context(method)) as pool:
        answers = list(pool.map(first_words, [filler] * 4, [TEXTS[:8]] * 4, timeout=120))
    assert answers == [expected] * 4


@pytest.mark.parametrize(
    ("inside", "parallel"),
    [
        ("pass", ""),
        ("filler.close()", ""),
        ("assert filler.fill('A [MASK] film.') == before; assert filler.fill_batch(texts)", ""),
        ("filler.fill_batch(texts); filler.close()", "true"),
    ],
)
def test_a_forked_child_answers_and_ends(inside: str, parallel: str) -> None:
    """A server that opens its model before it forks: the child answers and ends with `sys.exit`."""
    code = FORK.format(before=ANSWERED, inside=inside)
    environment = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    environment |= {"TOKENIZERS_PARALLELISM": parallel} if parallel else {}
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60, env=environment).returncode == 7


def test_a_fork_during_a_first_call() -> None:
    """A value that another thread was computing during the fork is computed again in the child."""
    before = "threading.Thread(target=filler.fill, args=['A [MASK] film.'], kwargs={'words_only': True}).start()"
    code = FORK.format(before=before, inside="filler.fill('A [MASK] film.', words_only=True)")
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 7


def test_an_inherited_async_filler_says_so() -> None:
    """Its threads and loop are the parent's: the child gets an error, and a new instance works."""
    before = """
import asyncio
from mlm_infer import AsyncMaskFiller, InputError

async def again():
    try:
        await server.fill('A [MASK] film.')
    except InputError as error:
        assert 'another event loop' in str(error)
        async with AsyncMaskFiller(filler) as own:
            assert await own.fill('A [MASK] film.') == before
            return
    sys.exit(1)

server = AsyncMaskFiller(filler)
before = asyncio.run(server.fill('A [MASK] film.'))
"""
    code = FORK.format(before=before, inside="asyncio.run(again())")
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 7


def test_a_pickle_is_small_and_opens(filler: MaskFiller) -> None:
    """It contains path and options, not the weights."""
    packed = pickle.dumps(filler)
    assert len(packed) < 1000
    assert pickle.loads(packed).fill(TEXTS[0]) == filler.fill(TEXTS[0])  # noqa: S301


def test_a_pickle_knows_its_model(tmp_path: Path) -> None:
    """Fillers of a bundle have the same pickle; another bundle in its place has another, and is not taken for it."""
    home = tmp_path / "model"
    shutil.copytree(SHIPPED, home)
    packed = pickle.dumps(MaskFiller(home, device="cpu"))
    assert pickle.dumps(MaskFiller(home, device="cpu")) == packed
    manifest = json.loads((home / "mlm_infer.json").read_text(encoding="utf-8"))
    with (home / "tokenizer.json").open("a", encoding="utf-8") as tokenizer:
        tokenizer.write(" ")
    content = (home / "tokenizer.json").read_bytes()
    manifest["files"]["tokenizer.json"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (home / "mlm_infer.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert pickle.dumps(MaskFiller(home, device="cpu")) != packed
    with pytest.raises(BundleError, match="was replaced since this MaskFiller was pickled; open it again with"):
        pickle.loads(packed)  # noqa: S301


def test_awaits_share_runs(filler: MaskFiller, monkeypatch: pytest.MonkeyPatch) -> None:
    """Concurrent awaits with different options give the answers of single calls, in far fewer runs."""
    from mlm_infer.runtime import predictor as predict

    runs = 0
    original = predict.Predictor.top

    def counted(self: Any, queries: Any, k: int) -> Any:
        nonlocal runs
        runs += 1
        return original(self, queries, k)

    async def ask() -> list[FillResult]:
        async with AsyncMaskFiller(filler, max_wait_ms=50) as server:
            return await asyncio.gather(*(server.fill(text, top_k=3 + row % 2) for row, text in enumerate(TEXTS)))

    alone = [filler.fill(text, top_k=3 + row % 2) for row, text in enumerate(TEXTS)]
    monkeypatch.setattr(predict.Predictor, "top", counted)
    together = asyncio.run(ask())
    assert [each.text for each in together] == TEXTS
    assert [words(each) for each in together] == [words(each) for each in alone]
    assert runs <= 8


def test_a_wrong_await_harms_nobody(filler: MaskFiller) -> None:
    """Invalid, cancelled and timed-out awaits do not affect the others."""

    async def ask() -> list[Any]:
        async with AsyncMaskFiller(filler, max_wait_ms=100) as server:
            cancelled = asyncio.create_task(server.fill(TEXTS[3]))
            calls = [
                server.fill(TEXTS[0]),
                server.fill("no mask"),
                server.fill(TEXTS[1], timeout=0.001),
                server.fill(TEXTS[2], top_k=0),
            ]
            waiting = asyncio.gather(*calls, return_exceptions=True)
            await asyncio.sleep(0.01)
            cancelled.cancel()
            answers = await waiting
            with pytest.raises(asyncio.CancelledError):
                await cancelled
            return [*answers, await server.fill(TEXTS[4])]

    good, wrong, late, range_error, after = asyncio.run(ask())
    assert words(good) == words(filler.fill(TEXTS[0]))
    assert isinstance(wrong, InputError)
    assert isinstance(late, TimeoutError)
    assert isinstance(range_error, InputError)
    assert words(after) == words(filler.fill(TEXTS[4]))


def test_back_pressure_and_closing(filler: MaskFiller) -> None:
    """At most `max_pending` requests wait, and closing answers them before it rejects further ones."""

    async def ask() -> None:
        server = AsyncMaskFiller(filler, max_pending=4, max_wait_ms=20)
        tasks = [asyncio.create_task(server.fill(text)) for text in TEXTS[:12]]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(server._waiting) <= 4
        assert len(await asyncio.gather(*tasks)) == 12
        last = asyncio.create_task(server.fill(TEXTS[0]))
        await asyncio.sleep(0)
        await asyncio.gather(last, server.aclose())
        assert words(last.result()) == words(filler.fill(TEXTS[0]))
        with pytest.raises(InputError, match="closed"):
            await server.fill(TEXTS[0])

    asyncio.run(ask())


@pytest.mark.parametrize("options", [{"max_wait_ms": -1}, {"max_tokens": 0}, {"max_pending": "many"}])
def test_wrong_options(filler: MaskFiller, options: Any) -> None:
    """The error names the option that is out of range."""
    with pytest.raises(InputError, match=next(iter(options))):
        AsyncMaskFiller(filler, **options)


def test_closing_twice(filler: MaskFiller) -> None:
    """Closing again does nothing."""
    other = MaskFiller(filler.info.path)
    other.close()
    other.close()
    with pytest.raises(InputError, match="closed"):
        other.fill(TEXTS[0])


def test_closing_during_calls(filler: MaskFiller) -> None:
    """Each running call is answered or raises an error that the filler is closed."""
    texts = TEXTS * 4
    expected = filler.fill_batch(texts)
    outcomes = []
    for _ in range(4):
        other = MaskFiller(filler.info.path)
        begun = threading.Semaphore(0)

        def ask(other: MaskFiller = other, begun: threading.Semaphore = begun) -> str:
            while True:
                begun.release()
                try:
                    assert other.fill_batch(texts) == expected
                except InputError as error:
                    return str(error)

        with ThreadPoolExecutor(9) as pool:
            asked = [pool.submit(ask) for _ in range(9)]
            for _ in range(12):
                begun.acquire()
            other.close()
            outcomes += [each.result() for each in asked]
    assert outcomes == ["this MaskFiller is closed; open a new one"] * 36


@pytest.mark.parametrize("name", ["base", "roberta"])
def test_sixteen_threads_give_what_one_gives(name: str, bundles: dict[str, Path]) -> None:
    """Shared tokenizer and session: bit-identical answers."""
    filler = MaskFiller(bundles[name], precision="fp32", threads=1)
    texts = masked_sentences(filler.info.mask_token, 80, seed=11)
    expected = [filler.fill(text) for text in texts]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(filler.fill, texts)) == expected
