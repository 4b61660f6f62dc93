"""Compares what `mlm-train --dry-run` estimates with what the run takes, on three shapes.

    python tools/plan_accuracy.py WORK

Each command runs in a process of its own, whose peak memory the operating system reports. On a machine that others use,
the time depends on what they do meanwhile.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from mlm_infer.benchmarks.shapes import make_checkpoint
from sources import base_checkpoint

from mlm_infer.shared.tables import format_table

# ruff: noqa: S603

RUNS = {
    "bert 2x128, batch 32": ("base", ["--batch-size", "32", "--epochs", "1", "--max-train-blocks", "640"]),
    "distilbert, batch 8": ("distilbert", ["--batch-size", "8", "--epochs", "1", "--max-train-blocks", "80"]),
    "distilroberta, batch 4 x 2": (
        "distilroberta",
        ["--batch-size", "4", "--gradient-accumulation-steps", "2", "--epochs", "1", "--max-train-blocks", "80"],
    ),
}


def run(options: list[str]) -> tuple[dict[str, Any], float, int]:
    """Run `mlm-train`; return its JSON, its seconds and its peak memory in bytes."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "mlm_infer.training", *options, "--json"]
    with tempfile.TemporaryFile() as answer:
        process = subprocess.Popen(command, stdout=answer, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise click.ClickException(f"{' '.join(command)} ended with {process.returncode}")
        answer.seek(0)
        return json.load(answer), time.perf_counter() - started, usage.ru_maxrss * 1024


def main() -> None:
    """Print estimate and truth of each run."""
    work = Path(sys.argv[1])
    rows = []
    for name, (shape, options) in RUNS.items():
        model = base_checkpoint(work / "base") if shape == "base" else make_checkpoint(shape, work / shape)
        line = [
            "movie-reviews",
            "--model",
            str(model),
            "--output",
            str(work / "out"),
            "--force",
            "--max-validation-blocks",
            "32",
        ]
        line += options
        plan, took, _ = run([*line, "--dry-run"])
        report, _, memory = run(line)
        ratios = plan["seconds"] / report["seconds"], plan["memory_bytes"] / memory
        rows.append(
            [
                name,
                f"{took:.0f} s",
                f"{plan['seconds']:.0f} s",
                f"{report['seconds']:.0f} s",
                f"{ratios[0] - 1:+.0%}",
                f"{plan['memory_bytes'] / 1e9:.2f} GB",
                f"{memory / 1e9:.2f} GB",
                f"{ratios[1] - 1:+.0%}",
            ]
        )
        click.echo(format_table(["run", "dry run", "estimate", "truth", "off", "estimate", "truth", "off"], rows))


if __name__ == "__main__":
    main()
