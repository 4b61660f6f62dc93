"""Columns and batches of datasets, pandas, polars and pyarrow, with the real libraries."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import polars
import pyarrow
import pyarrow.parquet
import pytest

from mlm_infer import InputError, MaskFiller
from mlm_infer.tasks.columns import answer_schema
from tests.helpers.fill_files import run, write

TEXTS = [f"Part {number} of the [MASK] was {'very ' * (number % 3)}good." for number in range(10)]
NO_MASK = "the text has no mask; write [MASK] where a word is missing: 'no mask'"

COLUMNS: dict[str, Any] = {
    "tuple": tuple(TEXTS),
    "numpy": np.array(TEXTS),
    "numpy objects": np.array(TEXTS, object),
    "numpy strings": np.array(TEXTS, np.dtypes.StringDType()),
    "pandas": pandas.Series(TEXTS, index=range(7, 17)),
    "pandas categories": pandas.Series(TEXTS, dtype="category"),
    "pandas with Arrow": pandas.Series(TEXTS, dtype=pandas.ArrowDtype(pyarrow.string())),
    "polars": polars.Series(TEXTS),
    "polars categories": polars.Series(TEXTS, dtype=polars.Categorical),
    "Arrow": pyarrow.array(TEXTS),
    "Arrow in chunks": pyarrow.chunked_array([TEXTS[:3], TEXTS[3:]]),
    "Arrow dictionary": pyarrow.array(TEXTS).dictionary_encode(),
    "datasets": datasets.Dataset.from_dict({"text": TEXTS})["text"],
}


@pytest.fixture(autouse=True)
def _no_bars() -> None:
    datasets.disable_progress_bars()


@pytest.mark.parametrize("kind", COLUMNS)
def test_a_column_is_as_good_as_a_list(shipped: MaskFiller, kind: str) -> None:
    """fill_batch and score take it as it is, and so does a batch."""
    column = COLUMNS[kind]
    assert shipped.fill_batch(column, top_k=2) == shipped.fill_batch(TEXTS, top_k=2)
    assert shipped.map_batch({"text": column}) == shipped.map_batch({"text": TEXTS})
    assert len(shipped.score(column[:0])) == 0


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (np.str_("A [MASK]."), "texts is a str_; give a list of strings, or one string to fill"),
        ({"text": TEXTS}, "texts is a dict; give a list of strings, or one string to fill"),
        (polars.col("text"), "texts is a Expr; give a list of strings, or one string to fill"),
        (pandas.DataFrame({"text": TEXTS}), "texts is a DataFrame of 2 dimensions; give one column of strings"),
        (polars.DataFrame({"text": TEXTS}), "texts is a DataFrame of 2 dimensions; give one column of strings"),
        (pandas.Series(["A [MASK].", None]), "text 1 of 2 is a float, nan; give strings"),
        (polars.Series(["A [MASK].", None]), "text 1 of 2 is a NoneType, None; give strings"),
        (np.arange(3), "text 0 of 3 is a int, 0; give strings"),
    ],
)
def test_what_is_no_column_of_texts(shipped: MaskFiller, texts: Any, message: str) -> None:
    """One line says what it is."""
    with pytest.raises(InputError) as caught:
        shipped.fill_batch(texts)
    assert str(caught.value) == message


BAD: list[Any] = ["no mask", None, "", "A [MASK]. " * 200]
ORDERS = {"none": TEXTS, "first": BAD + TEXTS, "last": TEXTS + BAD, "all": BAD, "alternating": [*BAD, *TEXTS] * 2}


@pytest.mark.parametrize("order", ORDERS)
def test_datasets_get_the_same_columns_from_every_batch(shipped: MaskFiller, order: str) -> None:
    """Whatever fails first, later, or not at all, the types are the same, and a bad row ends nothing."""
    texts = ORDERS[order]
    source = datasets.Dataset.from_dict({"id": range(len(texts)), "text": texts})
    filled = source.map(shipped.map_batch, batched=True, batch_size=4, fn_kwargs={"top_k": 2})
    assert filled.column_names == ["id", "text", "masks", "error"]
    expected = datasets.Features.from_arrow_schema(answer_schema())
    assert {name: filled.features[name] for name in ("masks", "error")} == expected
    for row, result in zip(filled, shipped.fill_stream(texts, on_error="return", top_k=2), strict=True):
        if isinstance(result, InputError):
            assert row["masks"] is None
            assert row["error"].startswith("the text ")
        else:
            assert row["error"] is None
            (mask,), (found,) = result.masks, row["masks"]
            assert (found["position"], found["span"], found["window"]) == (mask.position, list(mask.span), None)
            assert [each["sequence"] for each in found["predictions"]] == [each.sequence for each in mask.predictions]
            logprobs = [each["logprob"] for each in found["predictions"]]
            # The texts of other batches change the last digits.
            assert logprobs == pytest.approx([each.logprob for each in mask.predictions], abs=1e-4)


@pytest.mark.parametrize("kind", ["numpy", "torch", "arrow"])
def test_formats_of_datasets(shipped: MaskFiller, kind: str) -> None:
    """Formatted data sets give the same rows."""
    source = datasets.Dataset.from_dict({"text": [*TEXTS, "no mask"], "id": range(11)})
    plain = source.map(shipped.map_batch, batched=True, batch_size=4)
    formatted = source.with_format(kind).map(shipped.map_batch, batched=True, batch_size=4)
    assert formatted.with_format(None).to_list() == plain.to_list()
    assert formatted.features == plain.features


def test_a_stream_of_datasets(shipped: MaskFiller, tmp_path: Path) -> None:
    """A data set that is never whole in memory keeps the types with Arrow's format."""
    stream = datasets.Dataset.from_dict({"text": [*TEXTS, "no mask"]}).to_iterable_dataset().with_format("arrow")
    stream.map(shipped.map_batch, batched=True, batch_size=3).to_parquet(str(tmp_path / "filled.parquet"))
    table = pyarrow.parquet.read_table(tmp_path / "filled.parquet")
    assert pyarrow.schema(list(table.schema)[1:]).equals(answer_schema())
    assert table["error"].to_pylist() == [None] * 10 + [NO_MASK]


def test_rows_are_those_of_the_command(shipped: MaskFiller, tmp_path: Path) -> None:
    """mlm-fill writes the same columns into a .parquet file."""
    source, output = write(tmp_path / "in.jsonl", [*TEXTS, "no mask"]), tmp_path / "out.parquet"
    assert run("--input", source, "--column", "body", "--output", output, "--top-k", "2").returncode in (0, 1)
    written = pyarrow.parquet.read_table(output)
    table = shipped.map_batch(pyarrow.table({"text": [*TEXTS, "no mask"]}), top_k=2)
    assert table.schema.equals(written.schema)
    assert table["masks"].to_pylist() == written["masks"].to_pylist()


def test_columns_of_that_name_are_replaced(shipped: MaskFiller) -> None:
    """As by any function of a map: filling again gives one column, not two."""
    table = pyarrow.table({"text": TEXTS, "error": range(10), "id": range(10)})
    assert shipped.map_batch(table).column_names == ["text", "error", "id", "masks"]
    assert shipped.map_batch(shipped.map_batch(table)).equals(shipped.map_batch(table))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batched": True, "fn_kwargs": {"column": "txt"}}, "no column 'txt'; did you mean 'text'? name it with c"),
        ({"batched": True, "fn_kwargs": {"column": "zz"}}, "no column 'zz'; there are id, text; name it with column="),
        (
            {"batched": True, "fn_kwargs": {"column": ["text"]}},
            "no column ['text']; there are id, text; name it with c",
        ),
        ({"batched": True, "fn_kwargs": {"column": np.array(["a", "b"])}}, "there are id, text; name it with column="),
        ({"batched": True, "fn_kwargs": {"topk": 3}}, "there is no option 'topk'; did you mean 'top_k'?"),
        ({}, "the column 'text' is a str; give a batch of rows: map(..., batched=True)"),
        ({"batched": True, "input_columns": ["text"]}, "batch is a list; give a dictionary of columns or a pya"),
    ],
)
def test_a_map_that_cannot_work(shipped: MaskFiller, options: dict[str, Any], message: str) -> None:
    """What concerns every row is raised."""
    with pytest.raises(InputError) as caught:
        datasets.Dataset.from_dict({"id": [1], "text": ["A [MASK]."]}).map(shipped.map_batch, **options)
    assert message in str(caught.value)


MAP = """
import sys
from datasets import disable_progress_bars, load_dataset
from mlm_infer import MaskFiller

disable_progress_bars()
source = load_dataset("json", data_files=sys.argv[1], split="train")
filler = MaskFiller(device="cpu", threads=1)
options = {"column": "body", "top_k": int(sys.argv[3])}
filled = source.map(filler.map_batch, batched=True, batch_size=4, num_proc=int(sys.argv[2]), fn_kwargs=options)
print(len(filled), sum(error is None for error in filled["error"]))
"""


def test_a_second_map_takes_the_first_ones_answers(tmp_path: Path) -> None:
    """In another process too; several processes fill a part each, and other options are other answers."""
    source, cache = write(tmp_path / "in.jsonl", [*TEXTS, "no mask"]), tmp_path / "cache"

    def caches(processes: int, top_k: int) -> dict[Path, int]:
        command = [sys.executable, "-c", MAP, str(source), str(processes), str(top_k)]
        environment = os.environ | {"HF_DATASETS_CACHE": str(cache)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["11", "10"]
        return {path: path.stat().st_mtime_ns for path in cache.rglob("cache-*.arrow")}

    first = caches(1, 2)
    assert len(first) == 1
    assert caches(1, 2) == first
    others = caches(1, 3)
    assert len(others) == 2
    several = caches(2, 4)
    assert len(several) == 4
    assert caches(2, 4) == several


def test_a_frame_gets_columns(shipped: MaskFiller) -> None:
    """The same types in polars, and in pandas with Arrow's; an expression of polars calls fill_batch."""
    frame = polars.DataFrame({"text": [*TEXTS, "no mask"]})
    filled = polars.from_arrow(shipped.map_batch(frame.to_arrow(), top_k=1))
    assert isinstance(filled, polars.DataFrame)
    assert filled["error"].to_list() == [None] * 10 + [NO_MASK]
    expected = [result.masks[0].predictions[0].text for result in shipped.fill_batch(TEXTS)]
    best = polars.element().struct["predictions"].list.first().struct["text"]
    assert filled.head(10).select(polars.col("masks").list.eval(best).list.first())["masks"].to_list() == expected
    table = pandas.DataFrame({"text": TEXTS}, index=range(5, 15))
    table["filled"] = [result.masks[0].predictions[0].text for result in shipped.fill_batch(table["text"])]
    assert table["filled"].tolist() == expected
