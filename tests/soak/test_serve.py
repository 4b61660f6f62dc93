"""`mlm-serve` under many clients, some of which ask nonsense or go away."""

import asyncio
import json
import random
import re
from pathlib import Path
from typing import Any

import httpx

from mlm_infer import MaskFiller
from tests.helpers.serve import same, serving
from tests.helpers.sizes import report, sizes

_CLIENTS = 256


def resident(process: int) -> float:
    """Return the resident memory of a process in megabytes."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process}/status").read_text(encoding="ascii"))
    return int(found[1]) / 1024 if found else 0.0


@sizes("requests", short=1_000, full=10_000)
def test_clients_of_every_kind(requests: int) -> None:
    """Of all requests 1 % are no JSON and 1 % are given up; the others are answered right, and memory stays flat."""
    texts = [f"The {word} of the {place} was [MASK]." for word in ("end", "film", "cast") for place in ("day", "city")]
    filler = MaskFiller()
    expected = [json.loads(json.dumps(filler.fill(text).to_dict())) for text in texts]
    counts = dict.fromkeys(("answered", "refused", "given up"), 0)

    async def ask(client: httpx.AsyncClient, url: str, number: int) -> None:
        kind, at = number % 100, number % len(texts)
        if kind == 0:
            answer = await client.post(
                f"{url}/fill", content=b'{"text": ', headers={"content-type": "application/json"}
            )
            assert answer.status_code == 400
            counts["refused"] += 1
        elif kind == 1:
            task = asyncio.create_task(client.post(f"{url}/fill", json={"text": texts[at]}))
            await asyncio.sleep(random.random() / 200)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            counts["given up"] += 1
        else:
            answer = await client.post(f"{url}/fill", json={"text": texts[at]})
            assert answer.status_code == 200, answer.text
            assert same(answer.json(), expected[at])
            counts["answered"] += 1

    async def clients(url: str, first: int, count: int) -> None:
        numbers = iter(range(first, first + count))

        async def one(client: httpx.AsyncClient) -> None:
            for number in numbers:
                await ask(client, url, number)

        # A place for each client, and for those that were given up and are still being answered.
        limits = httpx.Limits(max_connections=_CLIENTS)
        async with httpx.AsyncClient(limits=limits, timeout=60) as client:
            await asyncio.gather(*(one(client) for _ in range(_CLIENTS)))

    with serving("--max-requests", str(2 * _CLIENTS)) as (url, server):
        asyncio.run(clients(url, 0, requests // 2))
        middle = resident(server.pid)
        asyncio.run(clients(url, requests // 2, requests - requests // 2))
        end = resident(server.pid)
    told: Any = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    report(f"serve: {told}; resident memory {middle:.1f} MB half-way, {end:.1f} MB at the end")
    assert counts == {"answered": requests * 98 // 100, "refused": requests // 100, "given up": requests // 100}
    assert end < middle + 30
