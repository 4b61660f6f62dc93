"""The example server over real HTTP."""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mlm_infer import MaskFiller
from tests.helpers.paths import ROOT


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A running server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(ROOT / "examples"), "server:app", "--port", str(port)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        for _ in range(300):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/fill"
        server.terminate()


def ask(url: str, question: dict[str, Any]) -> Any:
    """Return status and body of a request."""
    data = json.dumps(question).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_many_clients_at_once(url: str) -> None:
    """Each client gets the answer of the filler."""
    questions: list[dict[str, Any]] = [
        {"text": f"Part {number} of the [MASK].", "top_k": 2 + number % 3} for number in range(40)
    ]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda question: ask(url, question), questions))
    filler = MaskFiller()
    for question, (status, answer) in zip(questions, answers, strict=True):
        assert status == 200
        expected = filler.fill(question["text"], top_k=question["top_k"]).masks[0].predictions
        assert [each["token_id"] for each in answer["masks"][0]["predictions"]] == [each.token_id for each in expected]


def test_wrong_questions(url: str) -> None:
    """The response says what is wrong."""
    status, answer = ask(url, {"text": "no mask"})
    assert (status, "no mask; write [MASK]" in answer["detail"]) == (422, True)
    assert ask(url, {"text": "A [MASK].", "top_k": 0})[0] == 422
    assert ask(url, {})[0] == 422


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b'{"text": "A [MASK].", "top_k": NaN}', "top_k: Input should be a finite number"),
        (b'{"text": "A [MASK].", "top_k": 1e999}', "top_k: Input should be a finite number"),
        (b'{"text": "A [MASK].", "targets": [NaN]}', "targets.0: Input should be a valid string"),
        (b"[NaN]", "the body: "),
        (b"{", "JSON decode error"),
        (b'{"text": "\\ud800 [MASK]"}', "surrogate"),
        (b'{"text": "' + b"good " * 30_000 + b'[MASK]"}', "150,006 characters"),
        (b'{"text": "' + b"[MASK] " * 10 + b'", "top_k": 30522}', "make 305,220"),
    ],
)
def test_questions_that_are_none(url: str, body: bytes, detail: str) -> None:
    """JSON that only Python accepts, and oversized requests, get a one-line error."""
    request = urllib.request.Request(url, body, {"content-type": "application/json"})  # noqa: S310
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=30)  # noqa: S310
    answer = json.load(refused.value)["detail"]
    assert refused.value.code == 422
    assert detail in answer
    assert "\n" not in answer
