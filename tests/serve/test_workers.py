"""Several workers: same answers, figures of all, and what happens when processes end."""

import json
import os
import shutil
import signal
import struct
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from mlm_infer import MaskFiller
from mlm_infer.locate.find import shipped_model
from mlm_infer.serve.metrics import SHARED_FIGURES, Metrics
from tests.helpers.serve import ask, figure, same, serving, until, workers_of

QUESTION = {"text": "A [MASK] film."}
SLOW = {"texts": ["a good film " * 160]}
FILLED = 'mlm_requests_total{path="/fill",status="200"}'


def is_alive(process: int) -> bool:
    """Tell whether a process, of whatever parent, still runs."""
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def said(server: subprocess.Popen[str]) -> str:
    """Return the next line that a server writes to stderr."""
    if server.stderr is None:
        raise AssertionError("stderr is not read")
    return server.stderr.readline()


def ends_with(server: subprocess.Popen[str], workers: list[int]) -> int:
    """Wait until a server and its workers have ended, and return its exit status."""
    status = server.wait(60)
    until(lambda: not any(map(is_alive, workers)))
    return status


def test_workers_answer_as_the_library_and_tell_all_figures() -> None:
    """Whichever worker answers, and whichever of them is asked for the figures."""
    expected = json.loads(json.dumps(MaskFiller().fill("A [MASK] film.").to_dict()))
    with serving("--workers", "2") as (url, server):
        workers = workers_of(server)
        assert len(workers) == 2
        for number, stopped in enumerate(workers, 1):
            # One of them is stopped, so that the other answers.
            os.kill(stopped, signal.SIGSTOP)
            for _ in range(3):
                status, found, _ = ask(f"{url}/fill", QUESTION)
                assert status == 200
                assert same(found, expected)
            until(lambda: figure(url, FILLED) == 3 * number)  # noqa: B023
            assert figure(url, 'mlm_batch_texts_sum{path="/fill"}') == 3 * number
            os.kill(stopped, signal.SIGCONT)
        server.send_signal(signal.SIGTERM)
        assert ends_with(server, workers) == 0


def test_worker_that_is_killed_is_replaced(tmp_path: Path) -> None:
    """The others go on, one line tells it, and nothing that it counted is lost."""
    with serving("--workers", "2", TMPDIR=str(tmp_path)) as (url, server):
        first, second = workers_of(server)
        os.kill(second, signal.SIGSTOP)
        assert ask(f"{url}/fill", QUESTION)[0] == 200
        until(lambda: figure(url, FILLED) == 1)
        os.kill(second, signal.SIGCONT)
        os.kill(first, signal.SIGKILL)
        until(lambda: not is_alive(first))
        assert ask(f"{url}/fill", QUESTION)[0] == 200
        # It is counted after the answer was sent.
        until(lambda: figure(url, FILLED) == 2)
        assert said(server) == (f"WARNING: worker 1: process {first} ended by SIGKILL; a new process takes its place\n")
        until(lambda: len(workers_of(server)) == 2)
        (new,) = set(workers_of(server)) - {second}
        # The new one answers alone, once it has opened the model.
        os.kill(second, signal.SIGSTOP)
        assert ask(f"{url}/fill", QUESTION)[0] == 200
        until(lambda: figure(url, FILLED) == 3)
        assert figure(url, "mlm_requests_in_progress") == 0
        os.kill(second, signal.SIGCONT)
        server.send_signal(signal.SIGTERM)
        assert ends_with(server, [second, new]) == 0
        assert said(server) == ""
    # Nor is a folder left.
    assert not list(tmp_path.glob("mlm-serve-*"))


@pytest.mark.parametrize(
    "end",
    [
        lambda server: server.send_signal(signal.SIGTERM),
        # As Ctrl-C in a terminal and `systemctl stop` do.
        lambda server: os.killpg(server.pid, signal.SIGINT),
        lambda server: os.killpg(server.pid, signal.SIGTERM),
    ],
    ids=["SIGTERM", "Ctrl-C", "SIGTERM to all"],
)
def test_shutdown_answers_what_waits(end: Callable[[subprocess.Popen[str]], Any]) -> None:
    """Requests in progress get their answers from every worker; then all processes end, and nothing is said."""
    with serving("--workers", "2") as (url, server), ThreadPoolExecutor(4) as pool:
        workers = workers_of(server)
        asked = [pool.submit(ask, f"{url}/score", SLOW) for _ in range(4)]
        until(lambda: figure(url, "mlm_requests_in_progress") == 4)
        end(server)
        assert [each.result()[0] for each in asked] == [200] * 4
        assert ends_with(server, workers) == 0
        assert said(server) == ""


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    """Even if it is killed; what is in progress is answered, and no folder is left."""
    with serving("--workers", "2", TMPDIR=str(tmp_path)) as (url, server), ThreadPoolExecutor(1) as pool:
        workers = workers_of(server)
        asked = pool.submit(ask, f"{url}/score", SLOW)
        until(lambda: figure(url, "mlm_requests_in_progress") == 1)
        server.kill()
        assert asked.result()[0] == 200
        assert ends_with(server, workers) == -signal.SIGKILL
    until(lambda: not list(tmp_path.glob("mlm-serve-*")))


def test_worker_that_fails_again_and_again_ends_the_server(tmp_path: Path) -> None:
    """A model that is no longer there: a line for each of five tries, then one that says why, and exit status 1."""
    bundle = tmp_path / "bundle"
    shutil.copytree(shipped_model(), bundle)
    with serving(str(bundle), "--workers", "2") as (_, server):
        workers = workers_of(server)
        (bundle / "tokenizer.json").unlink()
        os.kill(workers[0], signal.SIGKILL)
        assert ends_with(server, workers) == 1
        lines = server.stderr.readlines() if server.stderr else []
    assert f"worker 1: process {workers[0]} ended by SIGKILL; a new process takes its place" in lines[0]
    assert len(lines) == 6
    assert all("worker 1: " in line and "tokenizer.json" in line for line in lines[1:5])
    assert lines[5].startswith("error: worker 1 failed 5 times at its start: ")
    assert "tokenizer.json" in lines[5]


def test_figures_of_a_process_that_has_just_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files are empty for a moment, which is no error."""
    monkeypatch.setenv(SHARED_FIGURES, str(tmp_path))
    empty = tmp_path / "counter_1.db"
    empty.touch()
    with pytest.raises(struct.error):
        list(MultiProcessCollector(CollectorRegistry(), str(tmp_path)).collect())
    timer = threading.Timer(0.1, empty.unlink)
    timer.start()
    assert Metrics().page()[0] == b""
    timer.join()
