"""One filler under many threads."""

import time
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

from mlm_infer import MaskFiller
from tests.helpers.sizes import report, sizes

from .texts import mixed_texts

_TARGETS = ["good", "bad", "long"]


@sizes("calls", short=60, full=10_000)
def test_sixteen_threads(calls: int) -> None:
    """Sixteen threads get bit-identical answers to one thread, from every kind of call."""
    filler = MaskFiller(device="cpu")
    texts = mixed_texts(200, seed=5, longest=128)
    texts[::4] = [f"{text} And a [MASK] one." for text in texts[::4]]

    def call(number: int) -> Any:
        text = texts[number % len(texts)]
        if number % 3 == 0:
            return filler.fill(text, top_k=3)
        if number % 3 == 1:
            return filler(text, top_k=2)
        return filler.fill(text, targets=_TARGETS)

    different = 3 * len(texts)
    expected = [call(number) for number in range(different)]

    def work(seed: int) -> int:
        random = Random(seed)
        wrong = 0
        for _ in range(calls):
            number = random.randrange(different)
            wrong += call(number) != expected[number]
        return wrong

    started = time.perf_counter()
    with ThreadPoolExecutor(16) as pool:
        wrong = sum(pool.map(work, range(16)))
    seconds = time.perf_counter() - started
    report(f"16 threads x {calls:,} calls: {wrong} differ from one thread's; {16 * calls / seconds:,.0f} calls/s")
    assert wrong == 0
