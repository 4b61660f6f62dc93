"""Clients beyond the limits, slow and vanishing ones, searches that nobody waits for any more, and the end."""

import itertools
import json
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from tests.helpers.serve import ask, figure, serving, until

SEARCHES: dict[str, dict[str, Any]] = {
    "/infill": {"text": "[MASK] " * 200 + "a good film " * 60, "beam_size": 100},
    "/rank": {
        "text": "[MASK] " + "a " * 490,
        "candidates": [" ".join(each) for each in itertools.islice(itertools.product("abcdefghij", repeat=4), 7_000)],
        "others": "visible",
    },
    "/score": {"texts": ["a " * 495] * 20},
}
"""Questions that take many seconds, and minutes."""
NEXT = {"inputs": "A [MASK] film."}
"""A question for /fill-mask, which waits for its turn like those above."""


@pytest.fixture(scope="module")
def large() -> Iterator[str]:
    """A server that takes large bodies."""
    with serving("--max-body", "10000000") as (address, _):
        yield address


def head_of(path: str, length: int) -> bytes:
    """Return the head of a request with a body."""
    told = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    return told.encode()


def test_more_requests_than_places() -> None:
    """What is beyond the bound gets 429 at once, and the others their answers."""
    with serving("--max-requests", "2") as (url, _):
        slow = {"texts": ["a good film " * 120], "method": "pll_word_l2r"}
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda _: ask(f"{url}/score", slow), range(6)))
        counts = [status for status, _, _ in answers]
        assert sorted(set(counts)) == [200, 429]
        told, headers = next((told, headers) for status, told, headers in answers if status == 429)
        assert told["detail"] == "2 requests are in progress, as many as this server takes at once; ask again"
        assert headers["retry-after"] == "1"
        assert ask(f"{url}/fill", {"text": "A [MASK]."})[0] == 200


def test_clients_that_are_slow_or_vanish() -> None:
    """They lose their place after the timeout or at once, and nobody else notices."""
    with serving("--max-requests", "2", "--timeout", "2") as (url, _):
        place = ("127.0.0.1", int(url.rpartition(":")[2]))
        head = head_of("/fill", 50) + b"{"
        slow = socket.create_connection(place)
        slow.sendall(head)
        for _ in range(5):
            with socket.create_connection(place) as gone:
                gone.sendall(head)
        until(lambda: ask(f"{url}/fill", {"text": "A [MASK]."})[0] == 200)
        slow.settimeout(30)
        assert slow.recv(1000).startswith(b"HTTP/1.1 408")
        slow.close()


def test_client_that_takes_nothing_of_its_answer() -> None:
    """It loses its place after the timeout, however much of its answer is left."""
    with serving("--max-requests", "1", "--timeout", "2") as (url, _):
        body = json.dumps({"text": ["A [MASK] film. " + "good " * 3_000] * 60, "top_k": 20, "long_text": "window"})
        slow = socket.socket()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", int(url.rpartition(":")[2])))
        head = head_of("/fill", len(body)).replace(b"host: x", b"host: x\r\naccept: application/x-ndjson")
        slow.sendall(head + body.encode())
        assert slow.recv(15) == b"HTTP/1.1 200 OK"
        assert ask(f"{url}/fill", {"text": "A [MASK]."})[0] == 429
        until(lambda: ask(f"{url}/fill", {"text": "A [MASK]."})[0] == 200)
        slow.close()


@pytest.mark.parametrize(("path", "question"), SEARCHES.items())
def test_search_that_outlasts_the_timeout(path: str, question: dict[str, Any]) -> None:
    """It gets 503 and ends at its next run of the model, so that the next question is answered."""
    with serving("--timeout", "3", "--threads", "1") as (url, _):
        status, told, headers = ask(f"{url}{path}", question)
        assert (status, told["detail"]) == (503, "no answer in time; ask for less, or later")
        assert headers["retry-after"] == "1"
        # Within its own timeout, which begins when it is asked.
        assert ask(f"{url}/fill-mask", NEXT)[0] == 200
        runs = figure(url, f'mlm_batch_texts_count{{path="{path}"}}')
        assert runs > 0
        assert ask(f"{url}/fill-mask", NEXT)[0] == 200
        assert figure(url, f'mlm_batch_texts_count{{path="{path}"}}') == runs
        assert figure(url, 'mlm_run_seconds_count{path="/fill-mask"}') == 2
        assert figure(url, "mlm_waiting_questions") == 0


def test_search_whose_client_goes_away() -> None:
    """It ends at its next run of the model; a question that waited for it and whose client has gone never begins."""
    with serving() as (url, _):
        place = ("127.0.0.1", int(url.rpartition(":")[2]))
        runs = 'mlm_run_seconds_count{path="/infill"}'
        with socket.create_connection(place) as searching, socket.create_connection(place) as waiting:
            body = json.dumps(SEARCHES["/infill"]).encode()
            searching.sendall(head_of("/infill", len(body)) + body)
            until(lambda: figure(url, runs) > 0)
            body = json.dumps(SEARCHES["/score"]).encode()
            waiting.sendall(head_of("/score", len(body)) + body)
            until(lambda: figure(url, "mlm_waiting_questions") == 1)
            assert figure(url, "mlm_requests_in_progress") == 2
        until(lambda: figure(url, "mlm_requests_in_progress") == 0)
        assert ask(f"{url}/fill-mask", NEXT)[0] == 200
        ended = figure(url, runs)
        assert ask(f"{url}/fill-mask", NEXT)[0] == 200
        assert figure(url, runs) == ended
        assert figure(url, 'mlm_requests_total{path="/infill",status="499"}') == 1
        assert figure(url, 'mlm_run_seconds_count{path="/score"}') == 0
        assert figure(url, "mlm_waiting_questions") == 0


@pytest.mark.parametrize(
    ("path", "question", "detail"),
    [
        ("fill", {"text": "[MASK]" * 1_000_000}, "the limit of predictions is 100,000 here, and this needs 5,000,000"),
        ("fill-mask", {"inputs": "[MASK]" * 1_000_000}, "the limit of characters is 20,000 here, and this needs 6,0"),
        ("infill", {"text": "[MASK]" * 1_000_000}, "the limit of characters is 20,000 here, and this needs 6,000,000"),
        ("infill", {"text": "[MASK:1-16]" * 1_000}, "the spans of the text have more than 64 combinations of lengths"),
        ("rank", {"text": "[MASK]" * 1_000_000, "candidates": ["a"]}, "the limit of characters is 20,000 here"),
        ("score", {"texts": ["[MASK]" * 1_000_000]}, "the limit of characters is 20,000 here"),
    ],
)
def test_million_masks(large: str, path: str, question: dict[str, Any], detail: str) -> None:
    """Refused before anything is computed, even where bodies may be as large as that."""
    status, told, _ = ask(f"{large}/{path}", question)
    assert status == 422
    assert told["detail"].startswith(detail), told


def test_body_without_a_length(large: str) -> None:
    """A body in chunks is refused as soon as it is too large, whatever is to come."""
    with socket.create_connection(("127.0.0.1", int(large.rpartition(":")[2]))) as client:
        client.sendall(head_of("/fill", 0).replace(b"content-length: 0", b"transfer-encoding: chunked"))
        chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        # The server may close the connection while chunks are still sent.
        with suppress(ConnectionError):
            for _ in range(10_000_000 // 0x10000 + 1):
                client.sendall(chunk)
        assert client.recv(100).startswith(b"HTTP/1.1 413")


def test_shutdown_answers_what_waits() -> None:
    """SIGTERM: a request in progress gets its answer, and the process ends with 0."""
    with serving() as (url, server):
        answers: list[Any] = []
        slow = {"texts": ["a good film " * 160]}
        asking = threading.Thread(target=lambda: answers.append(ask(f"{url}/score", slow)))
        asking.start()
        until(lambda: "mlm_requests_in_progress 1.0" in ask(f"{url}/metrics")[1])
        server.send_signal(signal.SIGTERM)
        asking.join(60)
        assert answers[0][0] == 200
        assert server.wait(30) == 0
