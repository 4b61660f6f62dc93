"""Runs over folders give each row the answer of the library, once, and can be continued."""

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
from places import full_disk
from pyarrow import parquet

from mlm_infer import MaskFiller, MlmInferError
from mlm_infer.errors import DataError, InputError, OutputExistsError
from mlm_infer.ray import FillQuestion, FillTexts, ScoreQuestion, ScoreTexts, run_files
from tests.helpers.bulk import masked_reviews, results, write_csv, write_jsonl, write_parquet
from tests.helpers.serve import same


@pytest.fixture(scope="module", autouse=True)
def address() -> Iterator[str]:
    """A cluster on this machine."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    told = ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200_000_000)
    yield told.address_info["gcs_address"]
    ray.shutdown()


@pytest.fixture(scope="module")
def filler() -> MaskFiller:
    """The small model."""
    return MaskFiller(device="cpu", threads=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of each kind, with rows that cannot be filled."""
    texts = [*masked_reviews(60), "no mask", "", "[MASK] [MASK]"]
    rows: list[dict[str, Any]] = [{"id": number, "text": text} for number, text in enumerate(texts)]
    home = tmp_path / "in"
    home.mkdir()
    write_parquet(home / "a.parquet", [*rows, {"id": 63, "text": None}], 13)
    write_csv(home / "b.csv", rows)
    write_jsonl(home / "c.jsonl", rows)
    with (home / "c.jsonl").open("a") as stream:
        stream.write("{oops\n")
    return home


def check(found: list[dict[str, Any]], filler: MaskFiller, **options: Any) -> None:
    """Compare rows with the answers of the library."""
    for row in found:
        if row["error"] is not None:
            with pytest.raises(InputError) as told:
                filler.fill(row["text"], **options)
            assert row["masks"] is None
            assert row["error"] == str(told.value) or row["text"] is None
            continue
        wanted = filler.fill(row["text"], **options)
        assert same(row["masks"], [dict(each) for each in wanted.to_dict()["masks"]])


def test_every_row_gets_the_answer_of_the_library(folder: Path, filler: MaskFiller, tmp_path: Path) -> None:
    """For each kind of file, in the order of the file, with its other columns and its errors in their places."""
    out = tmp_path / "out"
    question = FillQuestion({"top_k": 3, "words_only": True, "deny": {"the", "a"}})
    report = run_files([str(folder)], str(out), question=question, rows_per_part=20)
    assert (report.parts, report.rows, report.wrong, report.before, report.broken) == (12, 191, 8, 0, [])
    assert 0 < report.seconds < math.inf
    options = {"top_k": 3, "words_only": True, "deny": ["the", "a"]}
    for stem, kind, count in (("a.parquet", int, 64), ("b.csv", str, 63), ("c.jsonl", int, 64)):
        rows = results(out, stem)
        assert [row["id"] for row in rows[:63]] == list(map(kind, range(63)))
        assert len(rows) == count
        check(rows if stem != "c.jsonl" else rows[:-1], filler, **options)
    parquet_rows, jsonl_rows = results(out, "a.parquet"), results(out, "c.jsonl")
    assert parquet_rows[60]["error"].startswith("the text has no mask")
    assert parquet_rows[63]["error"].startswith("the text is a NoneType")
    assert jsonl_rows[63]["error"].startswith("the row is not JSON")
    assert {table.schema.field("masks").type for table in map(parquet.read_table, out.glob("*.parquet"))} == {
        parquet.read_table(next(out.glob("a*"))).schema.field("masks").type
    }


def test_scores(folder: Path, filler: MaskFiller, tmp_path: Path) -> None:
    """The other question, over the same files."""
    (folder / "b.csv").write_text("text,note\nA good film.,x\n,y\nA [MASK] film.,z\nWell acted.,w\n")
    run_files([f"{folder}/b.csv"], str(tmp_path / "out"), question=ScoreQuestion("pll_word_l2r"))
    rows = results(tmp_path / "out")
    first, last = filler.score(["A good film.", "Well acted."], method="pll_word_l2r")
    assert [row["note"] for row in rows] == ["x", "y", "z", "w"]
    for row, wanted in ((rows[0], first), (rows[3], last)):
        assert row["error"] is None
        assert same(row["logprob"], wanted.logprob)
        assert same(row["pseudo_perplexity"], wanted.pseudo_perplexity)
        assert same(row["tokens"], wanted.to_dict()["tokens"])
    assert rows[1]["error"].startswith("the text is empty")
    assert rows[2]["error"].startswith("the text has a mask")
    assert rows[1]["logprob"] is rows[2]["tokens"] is None


def test_an_interrupted_run_is_continued(folder: Path, tmp_path: Path) -> None:
    """Parts that are there stay as they are; those that are missing are made, and no row is there twice."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    run_files([str(folder)], str(whole), rows_per_part=20)
    names = sorted(path.name for path in whole.glob("*.parquet"))
    shutil.copytree(whole, out)
    for name in names[::2]:
        (out / name).unlink()
    (out / "_1234.unfinished").write_bytes(b"half")
    kept = {name: (out / name).stat().st_mtime_ns for name in names[1::2]}
    with pytest.raises(OutputExistsError, match="exists; go on with --resume, or name another folder"):
        run_files([str(folder)], str(out), rows_per_part=20)
    report = run_files([str(folder)], str(out), rows_per_part=20, resume=True)
    assert (report.parts, report.before) == (6, 6)
    assert results(out) == results(whole)
    assert kept == {name: (out / name).stat().st_mtime_ns for name in kept}
    assert sorted(path.name for path in out.iterdir()) == sorted([*names, "_mlm_fill.json"])
    # New files may join, and a finished run finds nothing to do.
    write_parquet(folder / "d.parquet", [{"text": "A [MASK]."}])
    assert run_files([str(folder)], str(out), rows_per_part=20, resume=True).parts == 1
    assert run_files([str(folder)], str(out), rows_per_part=20, resume=True).parts == 0


def test_an_output_of_another_run_is_refused(folder: Path, tmp_path: Path) -> None:
    """Other options, other files, or a file that has changed, would make rows of two kinds, or rows twice."""
    out, source = tmp_path / "out", [f"{folder}/a.parquet", f"{folder}/b.csv"]
    run_files(source, str(out))

    def refused(message: str, inputs: list[str], **options: Any) -> None:
        with pytest.raises(InputError, match=message):
            run_files(inputs, str(out), resume=True, **options)

    refused("belongs to a run with another options", source, question=FillQuestion({"top_k": 3}))
    refused("belongs to a run with another question", source, question=ScoreQuestion())
    refused("belongs to a run with another column", source, column="id")
    refused("belongs to a run with another rows_per_part", source, rows_per_part=7)
    refused(r"has parts of a file that is not in the input \(b.csv-", source[:1])
    write_csv(folder / "b.csv", [{"text": "A [MASK]."}])
    refused("b.csv has changed since", source)
    (out / "_mlm_fill.json").write_text("{")
    refused("is damaged", source)
    with pytest.raises(InputError, match="lies in the input"):
        run_files([str(folder)], str(folder / "out"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    with pytest.raises(OutputExistsError, match="is not of mlm-fill --engine ray"):
        run_files(source, str(tmp_path / "other"))


def test_a_broken_file_costs_its_own_rows(folder: Path, filler: MaskFiller, tmp_path: Path) -> None:
    """They are reported and the rest is done; once it is mended, its rows are added."""
    out = tmp_path / "out"
    good = (folder / "a.parquet").read_bytes()
    # The last quarter of the pages is damaged, the footer is whole.
    (folder / "a.parquet").write_bytes(good[:200] + bytes(byte ^ 255 for byte in good[200:900]) + good[900:])
    (folder / "b.csv").write_text("texts\nA [MASK].\n")
    report = run_files([str(folder)], str(out), rows_per_part=20)
    assert len(results(out, "c.jsonl")) == 64
    told = sorted(report.broken)
    assert told[-1] == "b.csv has no column 'text'; is it 'texts'; name it with --column"
    assert told[:-1]
    assert all(line.startswith("a.parquet, rows ") and "cannot be read" in line for line in told[:-1])
    lost = {int(line.split("rows ")[1].split()[0]) - 1 for line in told[:-1]}
    assert {path.name[-20:-8] for path in out.glob("a.parquet*")} == {
        f"{start:012d}" for start in range(0, 64, 20) if start not in lost
    }
    for path in out.glob("a.parquet*"):
        path.unlink()
    (folder / "a.parquet").write_bytes(good)
    write_csv(folder / "b.csv", [{"text": "A [MASK]."}])
    assert run_files([str(folder)], str(out), rows_per_part=20, resume=True).broken == []
    assert [len(results(out, stem)) for stem in ("a.parquet", "b.csv", "c.jsonl")] == [64, 1, 64]


def test_nothing_that_can_be_read_is_an_error(folder: Path, tmp_path: Path) -> None:
    """The first reason is told."""
    with pytest.raises(DataError, match=r"a.parquet has no column 'body'; there are id, text"):
        run_files([f"{folder}/a.parquet"], str(tmp_path / "out"), column="body")
    with pytest.raises(InputError, match="there is no option 'topk'; did you mean 'top_k'"):
        run_files([str(folder)], str(tmp_path / "out"), question=FillQuestion({"topk": 3}))  # type: ignore[typeddict-unknown-key]


def test_a_full_disk_ends_the_run_and_leaves_whole_parts(folder: Path, tmp_path: Path, address: str) -> None:
    """One line; with room again, the run goes on."""
    out = tmp_path / "disk"
    command = [sys.executable, "-c", "from mlm_infer.cli.fill_command import main; main()", "--engine", "ray"]
    command += ["--input", str(folder), "--rows-per-part", "10", "--address", address]
    with full_disk(out, 60_000) as prepare:
        if prepare.__name__ != "_nothing":
            pytest.skip("a disk of limited size needs the right to mount, as the workers are not our children")
        done = subprocess.run([*command, "--output", str(out / "o")], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        last = done.stderr.splitlines()[-1]
        assert "No space left on device; the same command with --resume goes on from here" in last
        whole = results(out / "o")
        shutil.copytree(out / "o", tmp_path / "o")
    assert 0 < len(whole) < 191
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "o"), "--resume"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(results(tmp_path / "o")) == 191


def test_a_model_that_differs_between_machines_is_refused(folder: Path, tmp_path: Path) -> None:
    """The worker compares the hashes of the files."""
    from mlm_infer.ray.actors import Job, PartMaker

    job = Job(FillQuestion(), None, "text", "auto", "auto", {"model": "other"}, str(tmp_path))
    with pytest.raises(MlmInferError, match="is another model than where the run began"):
        PartMaker(job, [])


def test_a_part_made_twice_is_there_once(folder: Path, tmp_path: Path) -> None:
    """As by a machine that was taken for dead, and went on."""
    from mlm_infer.ray.actors import Job, PartMaker, identity_of
    from mlm_infer.ray.files import find_files
    from mlm_infer.ray.rows import split_file

    (tmp_path / "out").mkdir()
    hashes = identity_of(MaskFiller())
    job = Job(FillQuestion(), None, "text", "auto", "auto", hashes, str(tmp_path / "out"))
    (file,) = find_files([f"{folder}/b.csv"])
    parts = split_file(file, "text", ("masks", "error"), 1000)
    first, second = PartMaker(job, parts), PartMaker(job, parts)
    with ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(lambda maker: maker({"number": 0}), (first, second)))
    assert [report["rows"] for report in reports] == [63, 63]
    assert not any(report["failed"] or report["broken"] for report in reports)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [parts[0].name]
    assert len(results(tmp_path / "out")) == 63


@pytest.mark.parametrize("batch_format", ["numpy", "pandas", "pyarrow"])
def test_callable_classes_for_own_pipelines(filler: MaskFiller, batch_format: str) -> None:
    """`map_batches` with every format of batches; each actor has as many threads as CPUs."""
    texts = [*masked_reviews(30), "no mask"]
    rows = ray.data.from_items([{"id": number, "body": text} for number, text in enumerate(texts)])
    filled = rows.map_batches(
        FillTexts,
        fn_constructor_kwargs={"column": "body", "top_k": 2},
        batch_format=batch_format,
        batch_size=8,
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=1,
    ).take_all()
    filled.sort(key=lambda row: int(row["id"]))
    for row, text in zip(filled, texts, strict=True):
        if row["error"]:
            assert text == "no mask"
            continue
        wanted = filler.fill(text, top_k=2)
        assert [each["token"] for each in row["masks"][0]["predictions"]] == [
            each.token for each in wanted.masks[0].predictions
        ]
    scored = rows.limit(3).map_batches(
        ScoreTexts,
        fn_constructor_kwargs={"column": "id"},
        batch_format=batch_format,
        compute=ray.data.ActorPoolStrategy(size=1),
    )
    assert ["give strings" in row["error"] for row in scored.take_all()] == [True] * 3


def test_callable_classes_tell_what_is_wrong() -> None:
    """Before the first batch, or with the columns that there are."""
    with pytest.raises(InputError, match="top_k"):
        FillTexts(top_k=0)
    with pytest.raises(InputError, match="method"):
        ScoreTexts(method="none")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="the batch has no column 'text'; there are body"):
        FillTexts()(pa.table({"body": ["A [MASK]."]}))
