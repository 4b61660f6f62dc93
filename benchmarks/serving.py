"""`python -m mlm_infer.benchmarks.serving BUNDLE CHECKPOINT`: measures `mlm-serve` under concurrent clients.

The clients are those of wrk, which must be installed (Debian: apt-get install wrk). The server is compared with the
library's own `fill_batch` and with a plain FastAPI application around the transformers pipeline.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from mlm_infer import MaskFiller
from mlm_infer.errors import DependencyError
from mlm_infer.runtime.cpu import cpu_name
from mlm_infer.shared.command import command_errors
from mlm_infer.shared.tables import format_table

from .texts import bulk_texts

_SCRIPT = """
local bodies = {BODIES}
local at = 0
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
request = function() at = at % #bodies + 1; return wrk.format(nil, nil, nil, bodies[at]) end
done = function(summary, latency)
  local wrong = summary.errors.status + summary.errors.timeout + summary.errors.read + summary.errors.connect
  io.write(string.format("RESULT %f %d %d %d %d\\n", 1e6 * summary.requests / summary.duration, wrong,
    latency:percentile(50), latency:percentile(95), latency:percentile(99)))
end
"""
_PLAIN = """
import sys, torch, uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import pipeline

class Question(BaseModel):
    text: str

torch.set_num_threads(int(sys.argv[2]))
fill, app = pipeline("fill-mask", model=sys.argv[1], device="cpu"), FastAPI()

@app.post("/fill")
def answer(question: Question):
    return fill(question.text)

"""


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--clients", type=int, multiple=True, default=[1, 16, 256], show_default=True)
@click.option("--seconds", default=8, show_default=True, help="Time of one measurement.")
@click.option("--rounds", default=2, show_default=True, help="Measurements of each, in turns.")
@click.option("--threads", default=2, show_default=True)
@command_errors
def main(bundle: Path, checkpoint: Path, clients: tuple[int, ...], seconds: int, rounds: int, threads: int) -> None:
    """Print texts a second and latencies for each number of clients; CHECKPOINT is the same model as BUNDLE."""
    if shutil.which("wrk") is None:
        raise DependencyError("this benchmark needs wrk; on Debian: apt-get install wrk")
    with MaskFiller(bundle, threads=threads) as filler:
        texts = bulk_texts(filler.info.mask_token, 500, "validation")
        precision = filler.info.precision
        tokens = sum(map(filler.count_tokens, texts)) / len(texts)
        bulk = [_bulk(filler, texts) for _ in range(rounds + 1)][1:]
    found: dict[tuple[str, int], list[list[float]]] = {}
    with _serving(bundle, threads) as ours, _plain(checkpoint, threads) as theirs:
        for _ in range(rounds):
            for number in clients:
                for name, url in (("mlm-serve", ours), ("FastAPI and the pipeline", theirs)):
                    found.setdefault((name, number), []).append(_load(url, texts, number, seconds))
    best = max(bulk)
    rows = [["fill_batch", "-", f"{best:.0f}", "1.00", "-", "-", "-", "0"]]
    for (name, number), runs in found.items():
        rate, wrong, *latencies = max(runs)
        told = [f"{each / 1e3:.1f} ms" for each in latencies]
        rows.append([name, str(number), f"{rate:.0f}", f"{rate / best:.2f}", *told, f"{wrong:.0f}"])
    click.echo(f"{bundle.name}, {precision}, {cpu_name()}, {threads} threads, {tokens:.0f} tokens a text")
    click.echo(format_table(["", "clients", "texts/s", "of fill_batch", "p50", "p95", "p99", "errors"], rows))


def _bulk(filler: MaskFiller, texts: Sequence[str]) -> float:
    started = time.perf_counter()
    filler.fill_batch(texts)
    return len(texts) / (time.perf_counter() - started)


@contextmanager
def _serving(bundle: Path, threads: int) -> Iterator[str]:
    command = [sys.executable, "-m", "mlm_infer.cli.serve_command", str(bundle), "--port", "0"]
    command += ["--threads", str(threads), "--max-requests", "1024"]
    with _running(command, r"answers on (http://\S+)") as url:
        yield url


@contextmanager
def _plain(checkpoint: Path, threads: int) -> Iterator[str]:
    code = _PLAIN + 'uvicorn.run(app, port=0, log_level="info", access_log=False)\n'
    with _running([sys.executable, "-c", code, str(checkpoint), str(threads)], r"running on (http://\S+)") as url:
        yield url


@contextmanager
def _running(command: Sequence[str], sign: str) -> Iterator[str]:
    with (
        tempfile.TemporaryFile("w+") as told,
        subprocess.Popen(command, stdout=told, stderr=told, text=True) as process,  # noqa: S603
    ):
        try:
            while True:
                told.seek(0)
                lines = told.read()
                found = re.search(sign, lines)
                if found is not None:
                    break
                if process.poll() is not None:
                    raise RuntimeError(f"a server did not start: {lines}")
                time.sleep(0.1)
            yield found[1]
        finally:
            process.terminate()


def _load(url: str, texts: Sequence[str], clients: int, seconds: int) -> list[float]:
    """Return requests a second, errors, and three percentiles of the latency in microseconds."""
    bodies = ", ".join(f"[==[{json.dumps({'text': text})}]==]" for text in texts)
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(_SCRIPT.replace("{BODIES}", f"{{{bodies}}}"))
        script.flush()
        command = ["wrk", "-t", "1", "-c", str(clients), "-d", f"{seconds}s", "--timeout", "60s", "-s", script.name]
        done = subprocess.run([*command, f"{url}/fill"], capture_output=True, text=True, check=True)  # noqa: S603
    found = re.search(r"RESULT (.*)", done.stdout)
    if found is None:
        raise RuntimeError(f"wrk said {done.stdout}")
    return [float(each) for each in found[1].split()]


if __name__ == "__main__":
    main()
