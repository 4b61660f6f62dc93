"""`mlm-serve` under many clients, some of which ask nonsense or go away, and with a worker that is killed."""

import asyncio
import json
import os
import random
import re
import signal
from collections import Counter
from pathlib import Path

import httpx

from mlm_infer import MaskFiller
from tests.helpers.serve import same, serving, workers_of
from tests.helpers.sizes import report, sizes

_CLIENTS = 256
_TEXTS = [f"The {word} of the {place} was [MASK]." for word in ("end", "film", "cast") for place in ("day", "city")]


def resident(process: int) -> float:
    """Return the resident memory of a process in megabytes."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process}/status").read_text(encoding="ascii"))
    return int(found[1]) / 1024 if found else 0.0


class Clients:
    """Many clients, which count what becomes of their requests."""

    def __init__(self) -> None:
        filler = MaskFiller()
        self._expected = [json.loads(json.dumps(filler.fill(text).to_dict())) for text in _TEXTS]
        self.counts: Counter[str] = Counter()

    async def ask(self, client: httpx.AsyncClient, url: str, number: int) -> None:
        """Ask for one thing: every hundredth is no JSON, and every hundredth is given up."""
        kind, at = number % 100, number % len(_TEXTS)
        if kind == 0:
            answer = await client.post(
                f"{url}/fill", content=b'{"text": ', headers={"content-type": "application/json"}
            )
            assert answer.status_code == 400
            self.counts["refused"] += 1
        elif kind == 1:
            task = asyncio.create_task(client.post(f"{url}/fill", json={"text": _TEXTS[at]}))
            await asyncio.sleep(random.random() / 200)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self.counts["given up"] += 1
        else:
            answer = await client.post(f"{url}/fill", json={"text": _TEXTS[at]})
            assert answer.status_code == 200, answer.text
            assert same(answer.json(), self._expected[at])
            self.counts["answered"] += 1

    async def run(self, url: str, first: int, count: int) -> None:
        """Ask for `count` things, from the number `first` on."""
        numbers = iter(range(first, first + count))

        async def one(client: httpx.AsyncClient) -> None:
            for number in numbers:
                try:
                    await self.ask(client, url, number)
                except httpx.TransportError:
                    self.counts["cut off"] += 1

        # A place for each client, and for those that were given up and are still being answered.
        limits = httpx.Limits(max_connections=_CLIENTS)
        async with httpx.AsyncClient(limits=limits, timeout=60) as client:
            await asyncio.gather(*(one(client) for _ in range(_CLIENTS)))

    def told(self) -> str:
        """Return the counts for the report."""
        return ", ".join(f"{count:,} {name}" for name, count in sorted(self.counts.items()))


@sizes("requests", short=1_000, full=10_000)
def test_clients_of_every_kind(requests: int) -> None:
    """Of all requests 1 % are no JSON and 1 % are given up; the others are answered right, and memory stays flat."""
    clients = Clients()
    with serving("--max-requests", str(2 * _CLIENTS)) as (url, server):
        asyncio.run(clients.run(url, 0, requests // 2))
        middle = resident(server.pid)
        asyncio.run(clients.run(url, requests // 2, requests - requests // 2))
        end = resident(server.pid)
    report(f"serve: {clients.told()}; resident memory {middle:.1f} MB half-way, {end:.1f} MB at the end")
    assert clients.counts == {
        "answered": requests * 98 // 100,
        "refused": requests // 100,
        "given up": requests // 100,
    }
    assert end < middle + 30


@sizes("requests", short=1_000, full=10_000)
def test_worker_killed_under_load(requests: int) -> None:
    """It costs what is in progress at that worker and nothing else, and the next clients are all answered."""
    clients = Clients()

    async def kill_one(url: str, worker: int) -> None:
        asking = asyncio.create_task(clients.run(url, 0, requests))
        while clients.counts["answered"] < requests // 2:
            await asyncio.sleep(0.001)
        os.kill(worker, signal.SIGKILL)
        await asking

    with serving("--workers", "2", "--max-requests", str(2 * _CLIENTS)) as (url, server):
        asyncio.run(kill_one(url, workers_of(server)[0]))
        lost = clients.counts.pop("cut off", 0)
        assert clients.counts.total() == requests - lost
        # A client has one request in progress.
        assert lost <= _CLIENTS
        asyncio.run(clients.run(url, requests, requests))
        report(f"serve --workers 2, one of them killed: {clients.told()}, {lost:,} cut off")
        assert clients.counts.total() == 2 * requests - lost
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
