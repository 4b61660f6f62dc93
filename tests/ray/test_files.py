"""Input files are found, and split into parts that hold each row once, in order."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from mlm_infer.errors import DataError, InputError
from mlm_infer.ray.files import InputFile, find_files
from mlm_infer.ray.rows import read_part, split_file
from tests.helpers.bulk import write_csv, write_jsonl, write_parquet

NEW = ("masks", "error")
ROWS: list[dict[str, Any]] = [
    {"id": number, "text": f'Row {number}, "quoted"\n[MASK] end é 😀' if number % 3 else f"Row {number} [MASK]"}
    for number in range(29)
]


def only(path: Path) -> InputFile:
    """Return one file."""
    (file,) = find_files([str(path)])
    return file


def read(path: Path, rows: int) -> tuple[list[dict[str, Any]], list[int], dict[int, str]]:
    """Return all rows of a file through its parts, the sizes of the parts, and the rows that are wrong."""
    found: list[dict[str, Any]] = []
    sizes: list[int] = []
    wrong: dict[int, str] = {}
    for part in split_file(only(path), "text", NEW, rows):
        assert part.start == len(found)
        for table, errors in read_part(part):
            wrong |= {len(found) + row: why for row, why in errors.items()}
            found += table.to_pylist()
        sizes.append(len(found) - part.start)
        assert sizes[-1] == part.rows
    return found, sizes, wrong


@pytest.mark.parametrize("rows", [1, 2, 7, 28, 29, 30, 10_000])
def test_parts_hold_each_row_once(tmp_path: Path, rows: int) -> None:
    """Whatever the size of the parts, and of row groups; a csv file holds texts only."""
    sizes = [min(rows, 29 - start) for start in range(0, 29, rows)]
    for group in (1, 4, 29):
        write_parquet(tmp_path / "a.parquet", ROWS, group)
        assert read(tmp_path / "a.parquet", rows) == (ROWS, sizes, {})
    write_csv(tmp_path / "a.csv", ROWS)
    assert read(tmp_path / "a.csv", rows) == ([{"id": str(row["id"]), "text": row["text"]} for row in ROWS], sizes, {})
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    assert read(tmp_path / "a.jsonl", rows) == (ROWS, sizes, {})


def test_large_parts_come_in_pieces(tmp_path: Path) -> None:
    """A part is never in memory as a whole."""
    rows = [{"text": f"{number} " + "x" * 1000} for number in range(3000)]
    for name, write in (("a.parquet", write_parquet), ("a.csv", write_csv), ("a.jsonl", write_jsonl)):
        write(tmp_path / name, rows)
        (part,) = split_file(only(tmp_path / name), "text", NEW, 3000)
        tables = [table for table, _ in read_part(part)]
        assert max(table.num_rows for table in tables) <= 512
        assert [row for table in tables for row in table.to_pylist()] == rows


def test_blank_lines_byte_order_marks_and_windows_line_ends(tmp_path: Path) -> None:
    """None of them is a row, or a part of one."""
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfid,text\r\n\r\n1,a\r\n2,b\r\n\r\n")
    assert read(tmp_path / "a.csv", 1) == ([{"id": "1", "text": "a"}, {"id": "2", "text": "b"}], [1, 1], {})
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\n{"text": "b"}')
    assert read(tmp_path / "a.jsonl", 1) == ([{"text": "a"}, {"text": "b"}], [1, 1], {})


def test_json_rows_of_different_keys_and_numbers_are_one_table(tmp_path: Path) -> None:
    """Missing keys are null, and whole numbers become fractions where there is a fraction, in every part."""
    rows: list[dict[str, Any]] = [
        {"text": "a", "x": 1},
        {"text": "b", "y": []},
        {"text": "c", "x": 1.5, "y": ["z"]},
        {"text": "d", "y": None},
    ]
    write_jsonl(tmp_path / "a.jsonl", rows * 300)
    found, _, wrong = read(tmp_path / "a.jsonl", 1)
    assert not wrong
    assert found == [{**dict.fromkeys(("text", "x", "y")), **row} for row in rows] * 300
    types = {
        table.schema for part in split_file(only(tmp_path / "a.jsonl"), "text", NEW, 1) for table, _ in read_part(part)
    }
    assert len(types) == 1


def test_a_broken_row_keeps_its_place(tmp_path: Path) -> None:
    """It costs neither the rows beside it nor the file."""
    lines = ['{"text": "a"}', "{oops", "[1]", '{"text": "\\ud800"}', '{"text": "b"}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    for rows in (1, 2, 10):
        found, _, wrong = read(tmp_path / "a.jsonl", rows)
        assert [row["text"] for row in found] == ["a", None, None, None, "b"]
        assert set(wrong) == {1, 2, 3}
        assert "is not JSON" in wrong[1]
        assert "is no JSON object, but [1]" in wrong[2]
        assert "half a surrogate pair" in wrong[3]
    (tmp_path / "a.csv").write_text("id,text\n1,a\n2,b,c\n3\n4,d\n")
    found, _, wrong = read(tmp_path / "a.csv", 2)
    assert [row["text"] for row in found] == ["a", "b", None, "d"]
    assert wrong.keys() == {1, 2}
    assert "has 3 fields, and the header 2" in wrong[1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.parquet", b"no parquet", "a.parquet: cannot be read"),
        ("a.csv", b"text\n\xff\xfe\n", "a.csv: cannot be read: 'utf-8'"),
        ("a.csv", b"texts,id\na,b\n", "a.csv has no column 'text'; did you mean 'texts'?"),
        ("a.csv", b"x,id\na,b\n", "a.csv has no column 'text'; there are x, id"),
        ("a.csv", b"text,text\na,b\n", "a.csv has the column 'text' twice; rename one"),
        ("a.csv", b"text,masks\na,b\n", "a.csv has a column 'masks', which the results need; rename it first"),
        ("a.jsonl", b'{"text": "a", "x": 1}\n{"text": "a", "x": "y"}\n', "a key has values of several types"),
        ("a.jsonl", b'{"text": 123456789012345678901234567890}\n', "a key has values of several types"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    """It says which file, and why."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as told:
        split_file(only(tmp_path / name), "text", NEW, 10)
    assert message in str(told.value)


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    """Its parts would mix two versions."""
    write_parquet(tmp_path / "a.parquet", ROWS)
    (part,) = split_file(only(tmp_path / "a.parquet"), "text", NEW, 100)
    write_parquet(tmp_path / "a.parquet", ROWS[:-1])
    with pytest.raises(DataError, match=r"a.parquet has changed since the run began"):
        list(read_part(part))


def test_files_folders_and_patterns(tmp_path: Path) -> None:
    """Names are those below the folder, or the folder of the pattern; records and other kinds are left out."""
    for name in ("b/x.parquet", "b/c/y.CSV", "b/notes.txt", "b/_record.jsonl", "b/.hidden/z.csv", "d/x.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    folder = str(tmp_path)
    assert [file.name for file in find_files([f"{folder}/b"])] == ["c/y.CSV", "x.parquet"]
    assert [file.name for file in find_files([f"{folder}/b/"])] == ["c/y.CSV", "x.parquet"]
    assert [file.name for file in find_files([f"file://{folder}/b/*.parquet"])] == ["x.parquet"]
    assert [file.name for file in find_files([f"{folder}/*/x.parquet"])] == ["b/x.parquet", "d/x.parquet"]
    assert [file.name for file in find_files([f"{folder}/b/x.parquet", f"{folder}/b/*.parquet"])] == ["x.parquet"]
    for given, kind, message in (
        ([f"{folder}/b/x.parquet", f"{folder}/d/x.parquet"], InputError, "have the same name"),
        ([f"{folder}/b/*"], DataError, "notes.txt does not end in .parquet"),
        ([f"{folder}/b/*.arrow"], DataError, "no file matches"),
        ([f"{folder}/none.csv"], DataError, "there is no file"),
        ([f"{folder}/b/.hidden/empty"], DataError, "does not end in"),
        (["nosuch://x/y.csv"], DataError, "nosuch://x/y.csv cannot be opened"),
    ):
        with pytest.raises(kind, match=message):
            find_files(given)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty has no file that ends in .parquet, .csv, .jsonl"):
        find_files([f"{folder}/empty"])


def test_names_of_parts_follow_from_the_input(tmp_path: Path) -> None:
    """The same in a copied folder; another one for other content, and for a file of the same name elsewhere."""
    (tmp_path / "a/sub").mkdir(parents=True)
    write_parquet(tmp_path / "a/x.parquet", ROWS)
    write_parquet(tmp_path / "a/sub/x.parquet", ROWS)
    first, second = (
        [part.name for part in split_file(file, "text", NEW, 10)] for file in find_files([f"{tmp_path}/a"])
    )
    assert len({*first, *second}) == 6
    assert first == sorted(first)
    (tmp_path / "a").rename(tmp_path / "b")
    again = [part.name for file in find_files([f"{tmp_path}/b"]) for part in split_file(file, "text", NEW, 10)]
    assert again == first + second
    write_parquet(tmp_path / "b/x.parquet", ROWS[:-1])
    changed = [part.name for file in find_files([f"{tmp_path}/b"]) for part in split_file(file, "text", NEW, 10)]
    assert len({*changed} - {*again}) == 3


def test_types_of_columns_travel_unchanged(tmp_path: Path) -> None:
    """Nested, categorical and decimal ones, from parquet."""
    table = pa.table(
        {
            "text": pa.array(["a", "b"]).dictionary_encode(),
            "nested": pa.array([{"x": [1]}, None]),
            "money": pa.array([1, 2], pa.decimal128(10, 2)),
            "when": pa.array([0, 1], pa.timestamp("us", "UTC")),
        }
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    (part,) = split_file(only(tmp_path / "a.parquet"), "text", NEW, 10)
    ((found, _),) = read_part(part)
    assert found.equals(table)
    assert json.dumps(found.schema.names) == json.dumps(table.schema.names)
