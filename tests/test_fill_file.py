"""`mlm-fill --input ... --output ...`: tables in and out, wrong texts in their place, runs taken up again."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from mlm_infer import InputError, MaskFiller
from mlm_infer.cli.fill_file import fill_file
from mlm_infer.cli.fill_job import FillJob
from mlm_infer.shared.samples import movie_reviews

TEXTS = [f"{sentence} [MASK], “quoted”" for sentence in movie_reviews("validation")[:300]]
OPTIONS = ("--column", "body", "-k", "2")


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run mlm-fill."""
    return subprocess.run(["mlm-fill", *arguments], capture_output=True, text=True, check=False)


def write(path: Path, texts: list[str]) -> Path:
    """A file of texts of the kind that its name says."""
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as stream:
            table = csv.DictWriter(stream, ["id", "body"])
            table.writeheader()
            table.writerows({"id": number, "body": text} for number, text in enumerate(texts))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"body": text}) + "\n" for text in texts), encoding="utf-8")
    elif path.suffix == ".parquet":
        parquet.write_table(pyarrow.table({"body": texts, "n": list(range(len(texts)))}), path)
    else:
        path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def rows(path: Path) -> list[Any]:
    """What was written."""
    if path.suffix == ".parquet":
        found: list[Any] = parquet.read_table(path).to_pylist()
        return found
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("kind", ["txt", "csv", "jsonl", "parquet"])
def test_every_kind_of_file(kind: str, tmp_path: Path) -> None:
    """In and out, the rows are those of `fill_batch`, in order."""
    expected = [result.to_dict() for result in MaskFiller().fill_batch(TEXTS, top_k=2)]
    output = tmp_path / ("out.parquet" if kind == "parquet" else "out.jsonl")
    done = run("--input", write(tmp_path / f"texts.{kind}", TEXTS), *OPTIONS, "--output", output)
    assert done.returncode == 0, done.stderr
    assert "300 texts" in done.stderr
    found = rows(output)
    assert [each["text"] for each in found] == TEXTS
    for mine, theirs in zip(found, expected, strict=True):
        ids = [each["token_id"] for each in mine["masks"][0]["predictions"]]
        assert ids == [each["token_id"] for each in theirs["masks"][0]["predictions"]]
    assert {path.name for path in tmp_path.iterdir()} == {f"texts.{kind}", output.name}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_wrong_text_has_its_error_in_place(suffix: str, tmp_path: Path) -> None:
    """The rest goes on."""
    texts = ["A [MASK] film.", "no mask", "Another [MASK]."]
    output = tmp_path / f"out.{suffix}"
    done = run("--input", write(tmp_path / "texts.jsonl", texts), *OPTIONS, "--output", output)
    assert done.returncode == 0, done.stderr
    assert "1 of them with an error" in done.stderr
    first, wrong, last = rows(output)
    assert first["masks"]
    assert last["masks"]
    assert f"{tmp_path}/texts.jsonl, line 2 has no mask" in wrong["error"]
    assert wrong["text"] == "no mask"


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_stopped_and_resumed_is_the_same_as_never_stopped(ending: int, tmp_path: Path) -> None:
    """Nothing lost, nothing twice, wherever it was stopped."""
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
    """A part without the job that it belongs to."""
    source = write(tmp_path / "texts.txt", TEXTS[:3])
    output = tmp_path / "out.jsonl"
    assert run("--input", source, "--output", output).returncode == 0
    output.rename(tmp_path / "out.jsonl.part")
    done = run("--input", source, "--output", output, "--resume")
    assert done.returncode == 2
    assert "is not of a run that can be taken up" in done.stderr
    assert len(rows(tmp_path / "out.jsonl.part")) == 3


@pytest.mark.parametrize(
    ("name", "content", "arguments", "message"),
    [
        ("a.csv", b"id,body\n1,x [MASK]\n", ["--output", "out.jsonl"], "no column 'text', but id, body; name it with"),
        ("a.jsonl", b'{"text": 3}\n', ["--output", "out.jsonl"], "text is 3, not a text"),
        ("a.jsonl", b"{\n", ["--output", "out.jsonl"], "line 1 is not JSON"),
        ("a.jsonl", b'{"text": ' + b"[" * 100_000, ["--output", "out.jsonl"], "line 1 is JSON that is nested too deep"),
        ("a.csv", b"text\n" + b"x" * 9_000_000, ["--output", "out.jsonl"], "line 2 has 8,388,608 characters or more"),
        ("a.parquet", b"PAR", ["--output", "out.jsonl"], "no parquet file"),
        ("a.txt", b"\xff [MASK]\n", ["--output", "out.jsonl"], "not UTF-8"),
        ("a.txt", b"x [MASK]\n", ["--output", "out.txt"], "must end in .jsonl or .parquet"),
        ("a.txt", b"x [MASK]\n", ["--output", "a.jsonl"], "a.jsonl exists"),
        ("a.txt", b"x [MASK]\n", ["--output", "out.jsonl", "one [MASK]"], "the texts of one --input"),
    ],
)
def test_wrong_files(name: str, content: bytes, arguments: list[str], message: str, tmp_path: Path) -> None:
    """One line that says what and where."""
    (tmp_path / name).write_bytes(content)
    if "a.jsonl" in arguments:
        (tmp_path / "a.jsonl").touch()
    done = subprocess.run(
        ["mlm-fill", "--input", name, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def stopped_at_the_end(source: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop a run when all of its rows are written, and before the first of them has its last name."""

    def stop(_job: FillJob) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(FillJob, "check_free", stop)
        with pytest.raises(KeyboardInterrupt):
            fill_file(
                MaskFiller(), source, output, column="text", options={}, resume=False, on_text=lambda _number: None
            )


def resume(source: Path, output: Path) -> subprocess.CompletedProcess[str]:
    """Go on with what `stopped_at_the_end` left."""
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
    """The second is refused, and the first has every row once."""
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
    """Rows and table there, the table alone, the output and the record: each is finished, with all of its rows."""
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
    """In the middle of a large file too; what comes after the done part may change, as a fresh run would read it."""
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
    """Not even where a name of theirs is one that is written first."""
    write(tmp_path / "texts.txt", TEXTS[:2])
    (tmp_path / name).write_bytes(content)
    for more in ([], ["--resume"]):
        done = run("--input", tmp_path / "texts.txt", "--output", tmp_path / "out.parquet", *more)
        assert done.returncode == 2
        assert f"{name} is not of " in done.stderr
        assert done.stderr.count("\n") == 1
        assert {path.name for path in tmp_path.iterdir()} == {"texts.txt", name}
        assert (tmp_path / name).read_bytes() == content


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_half_a_surrogate_pair(suffix: str, tmp_path: Path) -> None:
    """JSON may hold one; it is an error in its place."""
    (tmp_path / "texts.jsonl").write_text('{"text": "Half [MASK] \\ud800"}\n{"text": "Whole [MASK]."}\n')
    output = tmp_path / f"out.{suffix}"
    done = run("--input", tmp_path / "texts.jsonl", "--output", output)
    assert done.returncode == 0, done.stderr
    half, whole = rows(output)
    assert "line 1 holds half a surrogate pair" in half["error"]
    assert half["text"] == ("Half [MASK] \ud800" if suffix == "jsonl" else "Half [MASK] \\ud800")
    assert whole["masks"]


@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_a_line_of_any_length_takes_bounded_memory(kind: str, tmp_path: Path) -> None:
    """It is an error in its place, of which the beginning is kept; a third of its size is never held."""
    source, output = tmp_path / f"texts.{kind}", tmp_path / "out.jsonl"
    with source.open("w", encoding="utf-8") as stream:
        stream.write("A [MASK] “line”. ")
        for _ in range(300):
            stream.write("x" * 1_000_000)
        stream.write('\n{"text": "A [MASK]."}\n')
    command = f"""
from pathlib import Path
from mlm_infer.cli.fill_command import main
main(["--input", {str(source)!r}, "--output", {str(output)!r}], standalone_mode=False)
print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True, timeout=300)
    long, short = rows(output)
    assert "texts." + kind + ", line 1 has 8,388,608 characters or more" in long["error"]
    assert long["text"] == ("A [MASK] “line”. " + "x" * 1000)[:1000]
    assert short["masks"]
    # In kilobytes: the model, the libraries, and a few times a line of 8 million characters.
    assert int(done.stdout) < 300_000
    done = run("--input", source)
    assert done.returncode == 1
    assert "line 1 has 8,388,608 characters or more" in done.stderr


def test_a_stream_of_long_texts_is_not_taken_ahead() -> None:
    """A chunk is bounded by its characters too; every text keeps its place."""
    taken = 0

    def texts() -> Iterator[str]:
        nonlocal taken
        for number in range(40):
            taken += 1
            yield "A [MASK]." if number % 10 == 9 else "x" * 1_000_001

    stream = MaskFiller().fill_stream(texts(), on_error="return")
    found = [next(stream)]
    assert taken <= 3
    found += stream
    assert [isinstance(each, InputError) for each in found] == [number % 10 != 9 for number in range(40)]
    assert [str(each)[:8] for each in found if isinstance(each, InputError)][-1] == "text 38 "


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"\xef\xbb\xbftext,n\r\nA [MASK].,1\r\n"),
        ("a.jsonl", b'\xef\xbb\xbf{"text": "A [MASK]."}\n'),
        ("a.txt", b"\xef\xbb\xbfA [MASK].\n"),
        ("A.CSV", b"text,n\nA [MASK].,1\n"),
        ("A.JSONL", b'{"text": "A [MASK]."}\n'),
    ],
)
def test_as_other_programs_write_them(name: str, content: bytes, tmp_path: Path) -> None:
    """Byte-order marks, and endings in capitals."""
    (tmp_path / name).write_bytes(content)
    done = run("--input", tmp_path / name, "--json")
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == ["A [MASK]."]


def test_pipes(tmp_path: Path) -> None:
    """They are read once, as lines; a run of one is taken up where it has the same texts again."""
    code = "mlm-fill --input <(printf 'A [MASK].\\nAnother [MASK].\\n')"
    for more in ("--json", f"--output {tmp_path}/out.jsonl --resume"):
        done = subprocess.run(
            ["bash", "-c", f"{code} {more}"], capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stderr
        found = done.stdout or (tmp_path / "out.jsonl").read_text()
        assert [json.loads(line)["text"] for line in found.splitlines()] == ["A [MASK].", "Another [MASK]."]
    os.mkfifo(tmp_path / "a.parquet")
    done = run("--input", tmp_path / "a.parquet")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "is a pipe, and parquet is read from a file" in done.stderr
