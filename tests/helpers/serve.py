"""A running `mlm-serve`, its processes, and requests to it."""

import json
import math
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["ask", "figure", "same", "serving", "until", "workers_of"]


@contextmanager
def serving(*options: str, **environment: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run `mlm-serve` on a free port, in a group of processes of its own; yield its address and its process."""
    command = [sys.executable, "-m", "mlm_infer.cli.serve_command", "--port", "0", *options]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | environment, start_new_session=True
    ) as server:
        try:
            line = server.stderr.readline() if server.stderr else ""
            found = re.search(r"answers on (http://\S+)", line)
            if found is None:
                raise AssertionError(f"mlm-serve said {line!r}")
            yield found[1], server
        finally:
            server.terminate()


def ask(url: str, question: Any = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
    """Return status, body and headers of a request: POST if there is a question, as JSON unless it is bytes."""
    data = question if isinstance(question, bytes) or question is None else json.dumps(question).encode()
    sent = {"content-type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, data, sent)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            content, status, told = answer.read(), answer.status, dict(answer.headers)
    except urllib.error.HTTPError as error:
        content, status, told = error.read(), error.code, dict(error.headers)
    kind = {name.lower(): value for name, value in told.items()}.get("content-type", "")
    return status, json.loads(content) if kind.split(";")[0].endswith(("/json", "+json")) else content.decode(), told


def figure(url: str, name: str) -> float:
    """Return a figure of `/metrics` by its name and labels, such as `mlm_tokens_total{path="/fill"}`; 0 without it."""
    found = re.search(f"^{re.escape(name)} (\\S+)", ask(f"{url}/metrics")[1], re.M)
    return float(found[1]) if found else 0.0


def until(condition: Callable[[], bool]) -> None:
    """Wait for something to happen."""
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it did not happen")


def workers_of(server: subprocess.Popen[str]) -> list[int]:
    """Return the processes that a server with several workers has started to answer."""
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text(encoding="ascii").split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def same(found: Any, expected: Any) -> bool:
    """Compare answers; texts that run together with others differ in the last digits."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[name], each) for name, each in expected.items())
    if isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(same, found, expected))
    return math.isclose(found, expected, rel_tol=1e-3) if isinstance(expected, float) else bool(found == expected)
