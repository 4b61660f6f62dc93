"""`mlm-fill`, interactive and in scripts."""

import json
import re
import subprocess
from pathlib import Path

import pytest


def run(*arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run mlm-fill."""
    return subprocess.run(["mlm-fill", *arguments], input=stdin, capture_output=True, text=True, check=False)


def test_table_for_people() -> None:
    """The text, then a table; nothing on stderr."""
    done = run("This is a great [MASK].", "--top-k", "3")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "This is a great [MASK]."
    assert lines[1].split() == ["score", "word", "sequence"]
    assert len([line for line in lines if line.startswith("0.")]) == 3


def test_json_from_arguments_stdin_and_files(tmp_path: Path) -> None:
    """One object per text, in order; blank lines are skipped."""
    path = tmp_path / "texts.txt"
    path.write_text("A <mask> from a file.\n\nAnother [MASK].\n")
    done = run("First [MASK].", "-", "--input", path, "--json", "-k", "2", stdin="From [MASK] stdin\n")
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    texts = ["First [MASK].", "From [MASK] stdin", "A <mask> from a file.", "Another [MASK]."]
    assert [each["text"] for each in found] == texts
    assert all(len(each["masks"][0]["predictions"]) == 2 for each in found)


def test_targets(tmp_path: Path) -> None:
    """Comma-separated, or with a repeated option."""
    done = run("A [MASK] film.", "-t", "good,bad", "-t", "long", "--json")
    assert {each["text"] for each in json.loads(done.stdout)["masks"][0]["predictions"]} == {"good", "bad", "long"}


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "no text"),
        (["no mask"], 2, "no mask"),
        (["A [MASK].", "--top-k", "0"], 2, "top_k is 0"),
        (["A [MASK].", "--top-k", "x"], 2, "not a valid integer"),
        (["A [MASK].", "--device", "cuda:x"], 2, "device is 'cuda:x'"),
        (["A [MASK].", "--device", "cuda:" + "9" * 5000], 2, "device is 'cuda:999"),
        (["A [MASK].", "--model", "nowhere"], 1, "no folder nowhere"),
        (["--input", "nowhere.txt"], 1, "no file nowhere.txt"),
    ],
)
def test_errors(arguments: list[str], status: int, message: str) -> None:
    """Exit status 2 for wrong usage and 1 otherwise, one line on stderr, nothing on stdout."""
    done = run(*arguments)
    assert done.returncode == status
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_wrong_line_of_a_file(tmp_path: Path) -> None:
    """The answers before the invalid line are printed; the error names file and line."""
    path = tmp_path / "texts.txt"
    path.write_text("Good [MASK].\nno mask here\nGood [MASK].\n")
    done = run("--input", path, "--json")
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 1
    assert f"{path}, line 2 has no mask" in done.stderr
    path.write_bytes(b"caf\xe9 [MASK]\n")
    done = run("--input", path)
    assert done.returncode == 1
    assert "not UTF-8" in done.stderr


def test_reader_that_goes_away(tmp_path: Path) -> None:
    """`| head -1` causes no error."""
    path = tmp_path / "texts.txt"
    path.write_text("A [MASK].\n" * 3000)
    command = f"set -o pipefail; mlm-fill --input {path} | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("A [MASK].\n", "")


def test_closed_streams(tmp_path: Path) -> None:
    """With `2>&-`, answers and exit status are correct, and no file reuses the closed descriptor."""
    (tmp_path / "texts.txt").write_text("A [MASK].\n")
    whole = run("A [MASK].", "--json").stdout
    for command, status, output in (
        ("mlm-fill 'A [MASK].' --json 2>&-", 0, whole),
        ("mlm-fill 'no mask' --json 2>&-", 2, ""),
        ("mlm-fill --input nowhere.txt --json 2>&-", 1, ""),
        ("mlm-fill - --json <&- 2>&-", 0, ""),
        ("mlm-fill --input texts.txt --output out.jsonl <&- >&- 2>&-", 0, ""),
    ):
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (status, output), command
    assert (tmp_path / "out.jsonl").read_text() == whole


def test_control_characters_are_shown_to_a_person_not_obeyed() -> None:
    """Control characters of a text are escaped in the table and unchanged with --json."""
    text = "The \x1b[31mfilm\x1b]0;title\x07 is\n[MASK]."
    done = run(text)
    assert done.returncode == 0
    assert "\\x1b[31mfilm\\x1b]0;title\\x07 is\\n" in done.stdout
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", done.stdout)
    assert json.loads(run(text, "--json").stdout)["text"] == text
