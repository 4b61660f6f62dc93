"""Awaits that are randomly cancelled, timed out, invalid or closed: every one ends."""

import asyncio
from collections import Counter
from random import Random
from typing import Any

from mlm_infer import AsyncMaskFiller, InputError, MaskFiller
from tests.helpers.sizes import report, sizes

from .texts import mixed_texts

_LONGEST = 120


def _options(random: Random) -> dict[str, Any]:
    return random.choice(
        (
            *({}, {}, {}, {"top_k": 50}, {"targets": ["good", "bad"]}, {"words_only": True}, {"pattern": "g.*"}),
            *({"top_k": 0}, {"pattern": "("}, {"top_k": 30_522}, {"targets": ["wonderfullest"]}),
            {"long_text": "window"},
        )
    )


async def _one(server: AsyncMaskFiller, text: str, random: Random) -> str:
    await asyncio.sleep(random.random() * 0.2)
    timeout = random.choice((None, None, 0.0, 0.001, 0.01, 10.0))
    try:
        result = await server.fill(text, timeout=timeout, **_options(random))
    except (InputError, TimeoutError) as error:
        return type(error).__name__
    assert result.text == text
    return "answered"


async def _loop(filler: MaskFiller, texts: list[str], random: Random) -> Counter[str]:
    """Make many requests at once, cancel some, and close at a random moment in a random way, or not at all."""
    server = AsyncMaskFiller(filler, max_wait_ms=random.choice((0, 2, 50)), max_pending=random.choice((1, 8, 1024)))
    asked = [asyncio.create_task(_one(server, random.choice(texts), random)) for _ in range(60)]
    await asyncio.sleep(random.random() * 0.3)
    for task in random.sample(asked, 10):
        task.cancel()
    way = random.randrange(4)
    if way == 0:
        for task in asyncio.all_tasks() - {asyncio.current_task(), *asked}:
            task.cancel()
    elif way == 1:
        await asyncio.wait([asyncio.create_task(server.aclose())], timeout=random.random() * 0.05)
    elif way == 2:
        return Counter(abandoned=len(asked))
    done, unanswered = await asyncio.wait(asked, timeout=_LONGEST)
    await asyncio.wait_for(server.aclose(), _LONGEST)
    found = Counter("cancelled" if task.cancelled() else task.result() for task in done)
    return found + Counter(unanswered=len(unanswered))


@sizes("loops", short=3, full=300)
def test_no_await_is_left(loops: int) -> None:
    """Each is answered, rejected, timed out or cancelled, and each loop ends."""
    filler = MaskFiller(device="cpu")
    random = Random(11)
    texts = [*mixed_texts(60, seed=3, longest=128), "no mask", "", "It was a [MASK] film. " * 200]
    expected = filler.fill(texts[0])
    found: Counter[str] = Counter()
    for _ in range(loops):
        found += asyncio.run(_loop(filler, texts, random))
    report(f"awaits on {loops} loops: {dict(found)}")
    assert found["unanswered"] == 0
    assert found["answered"] > 0
    assert filler.fill(texts[0]) == expected
