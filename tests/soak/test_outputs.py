"""Outputs are complete and no other file is lost: killed runs over files, and `--force`."""

import json
import shutil
import signal
import subprocess
from pathlib import Path
from random import Random

import pyarrow
import pytest
from pyarrow import parquet

from mlm_infer.shared.samples import movie_reviews
from tests.helpers.outputs import RELATIONS, contents
from tests.helpers.sizes import report, sizes

_LIMIT = 120
"""Seconds after which a command counts as hanging."""


def lines_of(output: Path) -> list[str]:
    """Return the texts of the written rows."""
    if output.suffix == ".parquet":
        texts: list[str] = parquet.read_table(output)["text"].to_pylist()
        return texts
    return [json.loads(line)["text"] for line in output.read_text(encoding="utf-8").splitlines()]


def source_of(folder: Path, suffix: str, count: int) -> tuple[Path, list[str]]:
    """Write a file of texts, one in ten of them invalid."""
    sentences = movie_reviews()
    texts = [f"{n}: {sentences[n % len(sentences)]} {'[MASK]' if n % 10 else 'no mask'}" for n in range(count)]
    source = folder / f"texts.{suffix}"
    if suffix == "parquet":
        parquet.write_table(pyarrow.table({"text": texts}), source)
    else:
        source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return source, texts


def kill_after(command: list[str | Path], seconds: float, runs: int) -> list[int]:
    """Start a command several times at once, kill those still running, and return their exit statuses."""
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(runs)]
    for process in processes:
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
    return [process.wait(_LIMIT) for process in processes]


@sizes("size", short=(1, 1500), full=(12, 6000))
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_killed_fill(size: tuple[int, int], suffix: str, tmp_path: Path) -> None:
    """Killed at random, every third time two at once, and resumed until done: each row once, in order."""
    rounds, count = size
    kills = together = 0
    random = Random(rounds)
    source, texts = source_of(tmp_path, suffix, count)
    output = tmp_path / f"out.{suffix}"
    command: list[str | Path] = ["mlm-fill", "--input", source, "--output", output, "-k", "1", "--resume"]
    for _ in range(rounds):
        for attempt in range(200):
            runs = 2 if attempt % 3 == 2 else 1
            # Longer from time to time: a run that is always killed before its first row gets nowhere.
            ends = kill_after(command, random.uniform(0.3, 2.0 + attempt / 5), runs)
            kills += ends.count(-signal.SIGKILL)
            together += runs == 2
            if 0 in ends:
                break
        assert output.exists()
        assert lines_of(output) == texts
        # Killed between the last rename and the removal of the record, or finished.
        assert {path.name for path in tmp_path.iterdir()} - {f"{output.name}.job.json"} == {source.name, output.name}
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_LIMIT)
        assert done.returncode in (0, 2), done.stderr
        output.unlink()
    report(f"mlm-fill to .{suffix}: {rounds} runs of {len(texts):,} texts, {kills} kills, {together} times two at once")


@sizes("relations", short=["somebody's work", "equal, with a forged manifest"], full=[*RELATIONS])
@pytest.mark.parametrize("command", ["mlm-export", "mlm-train"])
def test_forced(command: str, relations: list[str], tiny: dict[str, Path], tmp_path: Path) -> None:
    """For every relation of output and input: a one-line error or a replacement, and no file is lost."""
    for number, relation in enumerate(relations):
        prepare, source, target = RELATIONS[relation]
        home = tmp_path / str(number)
        shutil.copytree(tiny["bert"], home / "deep/ck")
        prepare(home)
        before = contents(home)
        line = (
            [command, source, target] if command == "mlm-export" else [command, "--model", source, "--output", target]
        )
        if command == "mlm-train" and (home / source).is_file():
            line[2:3] = ["deep/ck", "--data", source]
        done = subprocess.run([*line, "--force"], cwd=home, capture_output=True, text=True, check=False, timeout=_LIMIT)
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        assert contents(home) == before
    report(f"{command} --force: {len(relations)} relations of output and input, 0 bytes lost")
