"""A training command, killed after a number of steps, and what it comes to."""

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlm_infer.shared.samples import movie_reviews

__all__ = ["COMMAND", "few_texts", "kill_after_steps", "result_of"]

_OPTIONS = "--batch-size 8 --block-size 32 --epochs 3 --save-steps 2 --max-train-blocks 40 --max-validation-blocks 8"
COMMAND: list[str | Path] = [sys.executable, "-m", "mlm_infer.training", *_OPTIONS.split()]
"""Three epochs of five steps, with a checkpoint at every other step."""


def few_texts(folder: Path) -> Path:
    """Write 200 sentences, of which most runs need no more."""
    path = folder / "few.txt"
    path.write_text("\n".join(movie_reviews()[:200]), encoding="utf-8")
    return path


def kill_after_steps(command: Sequence[str | Path], output: Path, steps: int, *, delay: float = 0.0) -> bool:
    """Run a command, kill it with -9 some time after its first checkpoint with so many steps, and tell if it ran."""
    work = output.with_name(f".{output.name}.training")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            found = [int(path.parent.name.rpartition("-")[2]) for path in work.glob("checkpoint-*/mlm_train.json")]
            if found and max(found) >= steps:
                break
            time.sleep(0.002)
        time.sleep(delay)
        process.kill()
    return process.returncode == -signal.SIGKILL


def result_of(output: Path) -> tuple[Any, Any, str]:
    """Loss curve, evaluations and a digest of the weights."""
    report = json.loads((output / "training_report.json").read_text(encoding="utf-8"))
    weights = hashlib.sha256((output / "model.safetensors").read_bytes()).hexdigest()
    return report["train_curve"], report["evaluations"], weights
