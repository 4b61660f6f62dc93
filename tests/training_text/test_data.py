"""Data of every kind: files, folders with splits, nested columns, encodings, and what cannot be read."""

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet
import pytest
from mlm_infer.training import TrainConfig
from mlm_infer.training.data import load_documents, load_splits

from mlm_infer import DataError, InputError

TEXTS = [f"Sentence number {number} is about a film." for number in range(40)]


def config(**values: Any) -> TrainConfig:
    """A configuration of which only the data matter."""
    return TrainConfig(model="nowhere", output=Path("nowhere"), **values)


def write_files(folder: Path) -> dict[str, Path]:
    """The same documents in every format."""
    folder.mkdir(exist_ok=True)
    data = datasets.Dataset.from_dict({"id": list(range(40)), "body": TEXTS})
    data.to_csv(folder / "a.csv")
    data.to_json(folder / "a.jsonl")
    data.to_parquet(folder / "a.parquet")
    (folder / "a.json").write_text(json.dumps([{"id": 1, "body": text} for text in TEXTS]))
    (folder / "a.txt").write_text("\n\n".join(TEXTS))
    (folder / "many").mkdir()
    for part in range(2):
        (folder / f"many/{part}.txt").write_text("\n".join(TEXTS[20 * part : 20 * part + 20]))
    return {path.suffix or path.name: path for path in folder.iterdir()}


def test_local_files(tmp_path: Path) -> None:
    """txt, csv, json, jsonl, parquet and a folder give the same documents."""
    files = write_files(tmp_path / "data")
    assert len(files) == 6
    for kind, path in files.items():
        column = "text" if kind in (".txt", "many") else "body"
        assert [*load_documents(str(path), text_column=column)] == TEXTS, kind
    assert [*load_documents(str(files[".csv"]), text_column="body", split="train[:5]")] == TEXTS[:5]


ANSWERS: dict[str, Any] = {
    "struct of lists": {"text": ["One.", " Two. "], "score": [1, 2]},
    "list of structs": [{"text": "One.", "score": 1}, {"text": " Two. ", "score": 2}],
    "list of structs of lists": [{"text": ["One.", ""], "score": 1}, {"text": ["Two."], "score": 2}],
}


@pytest.mark.parametrize("layout", ANSWERS)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_nested_column(layout: str, suffix: str, tmp_path: Path) -> None:
    """`answers.text` is found in structs and lists in any order, and joined with spaces."""
    answers = ANSWERS[layout]
    nothing = [] if isinstance(answers, list) else {"text": [], "score": []}
    rows = [{"title": "t", "answers": answers}, {"title": "u", "answers": nothing}]
    path = tmp_path / f"eli5.{suffix}"
    if suffix == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    found = load_documents(str(path), text_column="answers.text")
    assert ([*found], found.empty) == (["One. Two."], 1)
    with pytest.raises(
        DataError, match=r"no column 'answers\.body'; its columns are title, answers\.text, answers\.score"
    ):
        load_documents(str(path), text_column="answers.body")
    with pytest.raises(DataError, match="must hold strings"):
        load_documents(str(path), text_column="answers.score")


def test_column_with_a_dot_in_its_name(tmp_path: Path) -> None:
    """As `flatten` of `datasets` writes it."""
    (tmp_path / "flat.csv").write_text("answers.text,id\nOne.,1\n")
    assert [*load_documents(str(tmp_path / "flat.csv"), text_column="answers.text")] == ["One."]


@pytest.mark.parametrize(
    "names",
    [
        ("train-00000-of-00001", "test-00000-of-00001", "unsupervised-00000-of-00001"),
        ("plain_text/train-00000-of-00001", "plain_text/test-00000-of-00001", "plain_text/unsupervised-00000-of-00001"),
        ("train/0", "test/0", "unsupervised/0"),
        ("train/a/0", "test/a/0", "unsupervised/a/0"),
        ("my_train", "my_test", "unsupervised"),
        ("training", "eval", "unsupervised"),
    ],
)
def test_splits_of_a_folder(names: tuple[str, str, str], tmp_path: Path) -> None:
    """Files and sub-folders that are named after splits are splits."""
    for name, split in zip(names, ("train", "test", "unsupervised"), strict=True):
        path = tmp_path / "data" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict({"text": [f"{split} {number}" for number in range(9)]}).to_parquet(path)
    (tmp_path / "data/dataset_infos.json").write_text("{}")
    source = str(tmp_path / "data")
    for split in ("train", "test", "unsupervised"):
        found = load_documents(source, split=split)
        assert [*found] == [f"{split} {number}" for number in range(9)]
        assert set(found.unused_splits) == {"train", "test", "unsupervised"} - {split}
    assert [*load_documents(source, split="train[:2]+test[8:]")] == ["train 0", "train 1", "test 8"]
    both = load_splits(config(data=source, validation_split="test"))
    assert both.unused_splits == ("unsupervised",)
    with pytest.raises(DataError, match="has no split 'dev'; it has"):
        load_documents(source, split="dev")


def test_what_save_to_disk_wrote(tmp_path: Path) -> None:
    """A data set, and several splits of one, with slices."""
    data = datasets.Dataset.from_dict({"text": TEXTS})
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": data.select(range(30)), "test": data.select(range(30, 40))}).save_to_disk(
        tmp_path / "more"
    )
    assert [*load_documents(str(tmp_path / "one"), split="train[:25%]")] == TEXTS[:10]
    found = load_splits(config(data=str(tmp_path / "more"), validation_split="test"))
    assert ([*found.train], [*found.validation]) == (TEXTS[:30], TEXTS[30:])
    with pytest.raises(DataError, match="has no split 'validation'; it has train, test"):
        load_documents(str(tmp_path / "more"), split="validation")


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_separators_and_byte_order_marks(separator: str, tmp_path: Path) -> None:
    """CSV of other locales and spreadsheets, with the mark that they begin with; text with commas in quotes."""
    rows = ["id", "body"], ["1", '"One, two; three."'], ["2", "Four."]
    path = tmp_path / ("a.tsv" if separator == "\t" else "a.csv")
    path.write_text("\n".join(separator.join(row) for row in rows), encoding="utf-8-sig")
    assert [*load_documents(str(path), text_column="body")] == ["One, two; three.", "Four."]


def test_byte_order_marks_of_text_and_json(tmp_path: Path) -> None:
    """The mark is no part of the first text."""
    (tmp_path / "a.txt").write_text("One.\nTwo.", encoding="utf-8-sig")
    (tmp_path / "a.jsonl").write_text('{"text": "One."}\n{"text": "Two."}', encoding="utf-8-sig")
    for name in ("a.txt", "a.jsonl"):
        assert [*load_documents(str(tmp_path / name))] == ["One.", "Two."], name


def test_empty_and_repeated_documents_are_counted(tmp_path: Path) -> None:
    """Empty ones are left out, and with `deduplicate` what both splits contain is left out of the validation."""
    for name, texts in (("train", ["a", "b", "", "c", None]), ("test", ["b", "d", " "])):
        datasets.Dataset.from_dict({"text": texts}).to_parquet(tmp_path / f"{name}.parquet")
    settings = {"data": str(tmp_path), "validation_split": "test"}
    found = load_splits(config(**settings))
    assert (found.empty, found.repeated, [*found.validation]) == (3, 1, ["b", "d"])
    found = load_splits(config(**settings, deduplicate=True))
    assert (found.repeated, [*found.train], [*found.validation]) == (1, ["a", "b", "c"], ["d"])
    with pytest.raises(DataError, match="all 2 validation documents are training documents"):
        load_splits(config(**settings, train_split="train+test", deduplicate=True))


def test_validation_documents_are_held_out(tmp_path: Path) -> None:
    """No document is on both sides, and the built-in set has its own split."""
    path = tmp_path / "t.txt"
    path.write_text("\n".join(TEXTS))
    found = load_splits(config(data=str(path), validation_fraction=0.25))
    assert (len(found.train), len(found.validation)) == (30, 10)
    assert {*found.train} | {*found.validation} == set(TEXTS)
    found = load_splits(config())
    assert (len(found.train), len(found.validation), found.repeated) == (9543, 1060, 0)
    found = load_splits(config(data=str(path), validation_data="movie-reviews"))
    assert len(found.validation) == 1060
    with pytest.raises(InputError, match=r"validation_fraction is 0\.9999, which leaves no training document of 40"):
        load_splits(config(data=str(path), validation_fraction=0.9999))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"id,body\n1,x\n", "no column 'text'; its columns are id, body"),
        ("a.txt", b"", "is empty"),
        ("a.txt", b"\n  \n\n", "holds no text"),
        ("a.txt", b"caf\xe9 au lait\n", "not UTF-8: byte 0xe9 near byte 3; .*iconv -f latin1"),
        ("a.txt", "Ein Satz.".encode("utf-16"), "is UTF-16, not UTF-8; .*iconv -f utf-16 -t utf-8"),
        ("a.csv", "text\nEin Satz.".encode("utf-16-le"), "is UTF-16LE, not UTF-8; .*iconv -f utf-16le"),
        ("a.txt", "Ein Satz.".encode("utf-32"), "is UTF-32, not UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{"text": ', "cannot read"),
        ("a.parquet", b"not parquet", "cannot read"),
        ("a.doc", b"x", "not of a kind"),
        ("a.parquet.gz", b"x", "not of a kind that can be read: .*, all but the last also .gz"),
        ("a.jsonl", b'{"text": null}\n' * 800_000 + b'{"text": "x"}', "cannot read"),
        ("a.jsonl", b'{"text": 3}\n', "must hold strings"),
    ],
)
def test_wrong_data(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    """One line that says what is wrong with the file."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load_documents(str(path))
    assert "\n" not in str(caught.value)


def test_numbers_among_texts(tmp_path: Path) -> None:
    """Rows of a long file that hold nothing but numbers are texts, too; other columns may hold anything."""
    rows = [(number, "a film" if number < 15_000 else 1984) for number in range(30_000)]
    text = "id,text\n" + "".join(f"{number if number < 20_000 else 'x'},{value}\n" for number, value in rows)
    (tmp_path / "a.csv").write_text(text)
    assert [*load_documents(str(tmp_path / "a.csv"))] == [str(value) for _, value in rows]


def test_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    """The number of rows tells."""
    path = tmp_path / "a.txt"
    path.write_text("\n".join(TEXTS))
    documents = load_documents(str(path))
    path.write_text("\n".join(TEXTS[:30]))
    with pytest.raises(DataError, match=r"a\.txt was changed while it was read; start again"):
        list(documents)
