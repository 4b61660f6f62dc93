"""Measures how much more memory a training takes on a large text than on a small one.

    python tools/training_memory.py WORK --gigabytes 2

Writes both texts to the folder WORK, sentences of the built-in reviews with a number each, one a line, and removes
them. Each training is a process of its own with an empty cache. `resident` is the peak of its resident memory, mapped
files included (VmHWM of /proc/PID/status), and `own` the peak without them (RssAnon).
"""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
from sources import base_checkpoint

from mlm_infer.shared.samples import movie_reviews
from mlm_infer.shared.tables import format_table

# ruff: noqa: S311, S603

ROOT = Path(__file__).resolve().parent.parent
_SMALL = 1_000_000
_OPTIONS = "--max-steps 8 --max-validation-blocks 64 --precision fp32 --json"


def write_text(path: Path, size: int) -> None:
    """Write at least so many bytes."""
    sentences, numbers = movie_reviews(), random.Random(0)
    written = 0
    with path.open("w", encoding="utf-8") as stream:
        while written < size:
            lines = [f"{numbers.choice(sentences)} {numbers.randrange(10**6)}\n" for _ in range(10_000)]
            stream.writelines(lines)
            written += sum(len(line.encode()) for line in lines)


def train(text: Path, model: Path, output: Path, options: list[str]) -> dict[str, Any]:
    """Train on a text, and return peaks of memory in bytes, the seconds and the number of blocks."""
    command = [sys.executable, "-m", "mlm_infer.training", str(text), "--model", str(model), "--output", str(output)]
    environment = os.environ | {"HF_DATASETS_CACHE": str(output.with_name("cache"))}
    resident = own = 0
    started = time.perf_counter()
    with output.with_name("report.json").open("w") as report:
        process = subprocess.Popen([*command, *_OPTIONS.split(), *options], stdout=report, env=environment, cwd=ROOT)
        while process.poll() is None:
            rows = dict(row.split(":") for row in Path(f"/proc/{process.pid}/status").read_text().splitlines())
            # A process that has just ended has no memory.
            resident, own = (
                max(before, 1024 * int(rows.get(name, "0").split()[0]))
                for before, name in ((resident, "VmHWM"), (own, "RssAnon"))
            )
            time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"the training failed with status {process.returncode}")
    found = json.loads(output.with_name("report.json").read_text())
    seconds = time.perf_counter() - started
    return {"resident": resident, "own": own, "seconds": seconds, "blocks": found["train_blocks"]}


def measure(work: Path, size: int, options: list[str]) -> dict[str, dict[str, Any]]:
    """Train on a small text and on one of `size` bytes, and remove what was written."""
    work.mkdir(parents=True, exist_ok=True)
    model = base_checkpoint(ROOT / ".work" / "base")
    found = {}
    for name, wanted in (("small", _SMALL), ("large", size)):
        folder = work / name
        folder.mkdir()
        try:
            write_text(folder / "text.txt", wanted)
            found[name] = train(folder / "text.txt", model, folder / "out", options)
        finally:
            shutil.rmtree(folder)
    return found


@click.command()
@click.argument("work", type=click.Path(path_type=Path))
@click.option("--gigabytes", type=float, default=2.0, show_default=True)
@click.option("--workers", type=int, default=0, show_default=True, help="Processes that tokenize.")
def main(work: Path, gigabytes: float, workers: int) -> None:
    """Print the table."""
    found = measure(work, int(gigabytes * 1e9), ["--workers", str(workers)])
    rows = [
        [name, f"{each['blocks']}", f"{each['seconds']:.0f}", *(f"{each[kind] / 1e6:.0f}" for kind in _KINDS)]
        for name, each in found.items()
    ]
    more = [f"{(found['large'][kind] - found['small'][kind]) / 1e6:.0f}" for kind in _KINDS]
    header = ["text", "training blocks", "seconds", "resident MB", "own MB"]
    click.echo(format_table(header, [*rows, ["difference", "", "", *more]]))


_KINDS = ("resident", "own")

if __name__ == "__main__":
    main()
