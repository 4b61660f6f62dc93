"""Export and training killed at random moments: the output is absent or complete, and the next run works."""

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import pytest
from mlm_infer.training.checkpoints import last_checkpoint, work_folder
from transformers import AutoModelForMaskedLM

from mlm_infer import MaskFiller
from mlm_infer.inspection import verify_bundle
from tests.helpers.kills import COMMAND, few_texts, kill_after_steps, result_of
from tests.helpers.sizes import report, sizes

_TRAIN = "--data movie-reviews --max-train-blocks 64 --max-validation-blocks 16 --block-size 32 --epochs 2"


def kill(command: Sequence[str | Path], after: float, sign: Callable[[], bool] | None) -> bool:
    """Run a command and kill it, after a sign if one is given; return whether it was still running."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while sign is not None and not sign() and process.poll() is None:
            time.sleep(0.001)
        time.sleep(after)
        running = process.poll() is None
        process.kill()
    return running


def kill_often(
    command: list[str | Path], kills: int, output: Path, check: Callable[[], None], sign: Callable[[], bool]
) -> None:
    """Kill a command at random moments, every other time near its end, and check the output after each."""
    random = Random(kills)
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    seconds = time.perf_counter() - started
    check()
    forced = "--force" in command
    hit = left = 0
    for number in range(kills):
        if output.exists() and not forced:
            for path in output.iterdir():
                path.unlink()
            output.rmdir()
        if number % 2:
            hit += kill(command, random.uniform(0, 0.3), sign)
        else:
            hit += kill(command, random.uniform(0, seconds), None)
        if output.exists():
            check()
            left += 1
    done = subprocess.run([*command, *([] if forced else ["--force"])], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    check()
    assert [path.name for path in output.parent.iterdir()] == [output.name]
    report(f"{command[0]}{' --force' if forced else ''}: {hit} of {kills} kills in time, {left} left a whole output")


@sizes("kills", short=2, full=24)
@pytest.mark.parametrize("force", [False, True])
def test_killed_export(kills: int, force: bool, tiny: dict[str, Path], tmp_path: Path) -> None:
    """An existing bundle passes every check."""
    output = tmp_path / "out"

    def check() -> None:
        assert list(verify_bundle(output))
        MaskFiller(output).fill("A [MASK] film.")

    def written() -> bool:
        return any(tmp_path.glob(".out.export-*/bundle/mlm_infer.json"))

    command: list[str | Path] = ["mlm-export", tiny["bert"], output, *(["--force"] * force)]
    kill_often(command, kills, output, check, written)


@sizes("kills", short=2, full=16)
def test_killed_training(kills: int, tiny: dict[str, Path], tmp_path: Path) -> None:
    """A checkpoint that is there has its report and loads."""
    output = tmp_path / "out"

    def check() -> None:
        names = {path.name for path in output.iterdir()}
        assert {"model.safetensors", "tokenizer.json", "training_report.json", "README.md", "report"} <= names
        AutoModelForMaskedLM.from_pretrained(output)

    def saved() -> bool:
        return (tmp_path / ".out.training/result/model.safetensors").exists()

    # Without --force, a run that was killed after a checkpoint would be kept, and not started again.
    command: list[str | Path] = ["mlm-train", "--model", tiny["bert"], "--output", output, *_TRAIN.split(), "--force"]
    kill_often(command, kills, output, check, saved)


@sizes("kills", short=2, full=10)
def test_killed_training_resumes(kills: int, tiny: dict[str, Path], tmp_path: Path) -> None:
    """Killed with -9 again and again, at random moments, and resumed: the curve and weights of an unbroken run."""
    random = Random(kills)
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    whole, output = tmp_path / "whole/out", tmp_path / "killed/out"
    line: list[str | Path] = [*COMMAND, "--data", few_texts(tmp_path), "--model", tiny["bert"], "--epochs", "6"]
    subprocess.run([*line, "--output", whole], check=True, capture_output=True)
    line += ["--output", output]
    hit = at = 0
    for _ in range(kills):
        checkpoint = last_checkpoint(work_folder(output))
        # The Trainer numbers checkpoints by their steps; waiting for the next one lets each run get a bit further.
        at = 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])
        again = [*line, *(["--resume"] if checkpoint is not None else [])]
        hit += kill_after_steps(again, output, at + 1, delay=random.uniform(0, 0.1))
        if output.exists():
            break
    if not output.exists():
        checkpoint = last_checkpoint(work_folder(output))
        subprocess.run([*line, *(["--resume"] if checkpoint is not None else [])], check=True, capture_output=True)
    assert result_of(output) == result_of(whole)
    assert [path.name for path in output.parent.iterdir()] == ["out"]
    assert hit == kills
    report(f"mlm-train killed {hit} times, the last time after step {at}: the curve and weights of an unbroken run")
