"""`mlm-fill --input ... --output ...`: table formats, invalid texts, lines of any length."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlm_infer import InputError, MaskFiller
from tests.helpers.fill_files import OPTIONS, TEXTS, rows, run, write


@pytest.mark.parametrize("kind", ["txt", "csv", "jsonl", "parquet"])
def test_every_kind_of_file(kind: str, tmp_path: Path) -> None:
    """For every input and output format, the rows are those of `fill_batch`, in order."""
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
    """An invalid text gives a row with its error; the other texts are filled."""
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
    """A one-line error that names the problem and the place."""
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


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_half_a_surrogate_pair(suffix: str, tmp_path: Path) -> None:
    """A lone surrogate, which JSON permits, gives a row with an error."""
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
    """An oversized line gives an error with its beginning, and is never held in memory as a whole."""
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
    """Read-ahead is bounded in characters too, and the order is kept."""
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
    """Byte-order marks, and file extensions in upper case."""
    (tmp_path / name).write_bytes(content)
    done = run("--input", tmp_path / name, "--json")
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == ["A [MASK]."]


def test_pipes(tmp_path: Path) -> None:
    """Pipes are read once, as lines; a run with a pipe can be resumed if it yields the same texts again."""
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
