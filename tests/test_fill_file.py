"""`mlm-fill --input ... --output ...`: tables in and out, wrong texts in their place, runs taken up again."""

import csv
import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from mlm_infer import MaskFiller
from mlm_infer.samples import movie_reviews

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
    assert "belongs to another input, model or options" in other.stderr
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
    assert "belongs to another input" in done.stderr


@pytest.mark.parametrize(
    ("name", "content", "arguments", "message"),
    [
        ("a.csv", b"id,body\n1,x [MASK]\n", ["--output", "out.jsonl"], "no column 'text', but id, body; name it with"),
        ("a.jsonl", b'{"text": 3}\n', ["--output", "out.jsonl"], "text is 3, not a text"),
        ("a.jsonl", b"{\n", ["--output", "out.jsonl"], "line 1 is not JSON"),
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
