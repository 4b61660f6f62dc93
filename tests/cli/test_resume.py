"""Interrupted, resumed and simultaneous runs over files: each row once, and other files untouched."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlm_infer import MaskFiller
from mlm_infer.cli.fill_file import fill_file
from mlm_infer.cli.fill_job import FillJob
from tests.helpers.fill_files import OPTIONS, TEXTS, rows, run, write


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_stopped_and_resumed_is_the_same_as_never_stopped(ending: int, tmp_path: Path) -> None:
    """Wherever a run is interrupted, resuming gives every row exactly once."""
    source = write(tmp_path / "texts.csv", TEXTS * 20)
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    assert run("--input", source, *OPTIONS, "--output", whole).returncode == 0
    part = tmp_path / "out.jsonl.part"
    command = ["mlm-fill", "--input", str(source), *OPTIONS, "--output", str(output)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        while process.poll() is None and (not part.exists() or part.stat().st_size < 100_000):
            time.sleep(0.01)
        process.send_signal(ending)
        process.wait()
    assert process.returncode
    assert not output.exists()
    again = run(*command[1:])
    assert again.returncode == 2
    assert "--resume" in again.stderr
    other = run(*command[1:], "-k", "3", "--resume")
    assert other.returncode == 2
    assert "belongs to another model or other options" in other.stderr
    with part.open("a") as stream:
        stream.write('{"text": "half a row')
    assert run(*command[1:], "--resume").returncode == 0
    found, expected = rows(output), rows(whole)
    assert [each["text"] for each in found] == [each["text"] for each in expected]
    for mine, theirs in zip(found, expected, strict=True):
        # Other batches round otherwise in the last digits.
        scores = [[each["score"] for each in row["masks"][0]["predictions"]] for row in (mine, theirs)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    assert not part.exists()


def test_rows_of_nobody_are_not_taken_up(tmp_path: Path) -> None:
    """Rows without the job file that describes their run are rejected."""
    source = write(tmp_path / "texts.txt", TEXTS[:3])
    output = tmp_path / "out.jsonl"
    assert run("--input", source, "--output", output).returncode == 0
    output.rename(tmp_path / "out.jsonl.part")
    done = run("--input", source, "--output", output, "--resume")
    assert done.returncode == 2
    assert "is not of a run that can be taken up" in done.stderr
    assert len(rows(tmp_path / "out.jsonl.part")) == 3


def stopped_at_the_end(source: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupt a run after all rows are written and before the output is renamed."""

    def stop(_job: FillJob) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(FillJob, "check_free", stop)
        with pytest.raises(KeyboardInterrupt):
            fill_file(
                MaskFiller(), source, output, column="text", options={}, resume=False, on_text=lambda _number: None
            )


def resume(source: Path, output: Path) -> subprocess.CompletedProcess[str]:
    """Resume a run that `stopped_at_the_end` interrupted."""
    code = (
        "import sys; from pathlib import Path; from mlm_infer import MaskFiller, MlmInferError\n"
        "from mlm_infer.cli.fill_file import fill_file\n"
        "try: print(*fill_file(MaskFiller(), *map(Path, sys.argv[1:]), column='text', options={}, resume=True, "
        "on_text=lambda _number: None))\n"
        "except MlmInferError as error: sys.exit(str(error))"
    )
    return subprocess.run(
        [sys.executable, "-c", code, source, output], capture_output=True, text=True, check=False, timeout=120
    )


def test_two_at_once(tmp_path: Path) -> None:
    """The second run is rejected, and the first writes every row once."""
    texts = TEXTS * 20
    source, output = write(tmp_path / "texts.csv", texts), tmp_path / "out.jsonl"
    command = ["mlm-fill", "--input", str(source), *OPTIONS, "--output", str(output)]
    part = tmp_path / "out.jsonl.part"
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        while process.poll() is None and (not part.exists() or part.stat().st_size < 10_000):
            time.sleep(0.01)
        process.send_signal(signal.SIGSTOP)
        second = run(*command[1:], "--resume")
        process.send_signal(signal.SIGCONT)
    assert process.returncode == 0
    assert second.returncode == 2
    assert "another mlm-fill is writing" in second.stderr
    assert [each["text"] for each in rows(output)] == texts
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "texts.csv"]


def test_stopped_between_the_last_steps_of_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted at each of the last steps, the run is completed with all of its rows."""
    source, output = (
        write(tmp_path / "texts.txt", ["A [MASK] film.", "no mask", "Another [MASK]."]),
        tmp_path / "o.parquet",
    )
    stopped_at_the_end(source, output, monkeypatch)
    record = (tmp_path / "o.parquet.job.json").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"texts.txt", "o.parquet.part.parquet", "o.parquet.job.json"}
    done = resume(source, output)
    assert done.stdout == "3 1\n", done.stderr
    (tmp_path / "o.parquet.job.json").write_bytes(record)
    assert resume(source, output).stdout == "3 1\n"
    assert {path.name for path in tmp_path.iterdir()} == {"texts.txt", "o.parquet"}
    assert [each["text"] for each in rows(output)] == ["A [MASK] film.", "no mask", "Another [MASK]."]
    output.unlink()
    (tmp_path / "o.parquet.job.json").write_bytes(record)
    (tmp_path / "o.parquet.part").write_text('{"text": "A [MASK] film.", "error": "x"}\n{"te')
    (tmp_path / "o.parquet.part.parquet").write_text("half a table")
    assert resume(source, output).stdout == "3 2\n"


def test_an_edit_of_what_is_done_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Edits of the finished part are detected, in large files too; the rest of the input may change."""
    # Longer texts are refused at once, so that megabytes take no time.
    texts = ["A [MASK].", *(f"{number} {'x' * 1_000_000}" for number in range(6)), "Another [MASK].", "Last [MASK]."]
    source, output = write(tmp_path / "texts.txt", texts[:8]), tmp_path / "out.jsonl"
    stopped_at_the_end(source, output, monkeypatch)
    for edited in ([*texts[:4], texts[4].replace("3 ", "4 "), *texts[5:8]], texts[:7], texts[1:]):
        write(source, edited)
        done = resume(source, output)
        assert "belongs to another input: row " in done.stderr
        assert done.stderr.count("\n") == 1
    write(source, texts)
    assert resume(source, output).stdout == "9 6\n"
    assert [each["text"] for each in rows(output)] == texts


@pytest.mark.parametrize("name", ["out.parquet.job.json", "out.parquet.part", "out.parquet.part.parquet"])
@pytest.mark.parametrize("content", [b'{"mine": 1}', b"\xff\xfe"])
def test_files_of_the_user_are_not_touched(name: str, content: bytes, tmp_path: Path) -> None:
    """Not even a user's file with the name of a temporary file."""
    write(tmp_path / "texts.txt", TEXTS[:2])
    (tmp_path / name).write_bytes(content)
    for more in ([], ["--resume"]):
        done = run("--input", tmp_path / "texts.txt", "--output", tmp_path / "out.parquet", *more)
        assert done.returncode == 2
        assert f"{name} is not of " in done.stderr
        assert done.stderr.count("\n") == 1
        assert {path.name for path in tmp_path.iterdir()} == {"texts.txt", name}
        assert (tmp_path / name).read_bytes() == content
