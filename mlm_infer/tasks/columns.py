"""Columns of tables: texts from those of any library, and answers that have the same Arrow type in every batch."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np

from mlm_infer.checks import shown
from mlm_infer.errors import InputError, TextError
from mlm_infer.results import FillResult

from .fill import Choice, fill_stream
from .open_model import OpenModel

__all__ = ["Column", "answer_schema", "fill_columns", "text_column", "texts_of"]


class Column(Protocol):
    """A column of numpy, pandas, polars or pyarrow: whatever becomes an array."""

    def __array__(self, *arguments: Any, **options: Any) -> Any:
        """Return the column as an array."""


def texts_of(texts: object) -> list[Any] | None:
    """Return the values of a list, another sequence or a column; None if it is none of these.

    Raises:
        InputError: It has rows and columns.
    """
    if isinstance(texts, list):
        return texts
    if isinstance(texts, str):
        return None
    if isinstance(texts, Sequence):
        return list(texts)
    if not hasattr(texts, "__array__"):
        return None
    # Iterating over an Arrow array gives pyarrow's scalars; in an array of objects they are Python's strings.
    values = np.asarray(texts, dtype=object)
    if values.ndim != 1:
        raise InputError(f"texts is a {type(texts).__name__} of {values.ndim} dimensions; give one column of strings")
    return list(values)


def answer_schema() -> Any:
    """Return the Arrow schema of answers: `masks`, as in `FillResult`, and `error`, of which one is null."""
    import pyarrow

    prediction = pyarrow.struct(
        [
            ("token", pyarrow.string()),
            ("token_id", pyarrow.int64()),
            ("text", pyarrow.string()),
            ("starts_word", pyarrow.bool_()),
            ("score", pyarrow.float64()),
            ("logprob", pyarrow.float64()),
            ("sequence", pyarrow.string()),
        ]
    )
    mask = pyarrow.struct(
        [
            ("position", pyarrow.int64()),
            ("span", pyarrow.list_(pyarrow.int64())),
            ("predictions", pyarrow.list_(prediction)),
            ("window", pyarrow.list_(pyarrow.int64())),
        ]
    )
    return pyarrow.schema([("masks", pyarrow.list_(mask)), ("error", pyarrow.string())])


class _Answers(list[Any]):
    """A column of answers.

    Arrow asks it for its type, because the values do not always show it: a batch may have no error, or nothing else.
    """

    def __init__(self, name: str, values: Iterable[Any]) -> None:
        super().__init__(values)
        self._name = name

    def __arrow_array__(self, type: Any = None) -> Any:
        import pyarrow

        return pyarrow.array(list(self), type or answer_schema().field(self._name).type)


def fill_columns(model: OpenModel, batch: Any, column: str, choice: Choice) -> Any:
    """Fill the masks of one column of a batch; see `MaskFiller.map_batch`.

    Raises:
        InputError: The batch is not a dictionary of columns or an Arrow table, or has no such column.
    """
    columns = batch
    if not isinstance(columns, Mapping):
        if not all(hasattr(batch, name) for name in ("column_names", "itercolumns")):
            raise InputError(f"batch is a {type(batch).__name__}; give a dictionary of columns or a pyarrow Table")
        columns = dict(zip(batch.column_names, batch.itercolumns(), strict=True))
    texts = text_column(columns, column)
    answers = list(fill_stream(model, iter(texts), choice, "return"))
    found = {
        "masks": _Answers("masks", (_masks(each) for each in answers)),
        "error": _Answers("error", (_error(each) for each in answers)),
    }
    if columns is batch:
        return found
    import pyarrow

    return pyarrow.table({**columns, **found})


def text_column(columns: Mapping[str, Any], name: object) -> list[Any]:
    """Return the values of one column of a batch.

    Raises:
        InputError: There is no such column, or it holds a value and not rows.
    """
    if not isinstance(name, str) or name not in columns:
        near = difflib.get_close_matches(name, map(str, columns), 1) if isinstance(name, str) else []
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(map(str, columns)) or 'none'};"
        raise InputError(f"the batch has no column {shown(name)}; {hint} name it with column=")
    values = columns[name]
    texts = texts_of(values)
    if texts is None:
        raise InputError(
            f"the column {name!r} is a {type(values).__name__}; give a batch of rows: map(..., batched=True)"
        )
    return texts


def _masks(answer: FillResult | InputError) -> list[dict[str, Any]] | None:
    if isinstance(answer, InputError):
        return None
    # Lists in place of tuples: not every library of tables takes a tuple for a list.
    return [
        {
            "position": mask.position,
            "span": list(mask.span),
            "predictions": [asdict(each) for each in mask.predictions],
            "window": mask.window and list(mask.window),
        }
        for mask in answer.masks
    ]


def _error(answer: FillResult | InputError) -> str | None:
    if isinstance(answer, FillResult):
        return None
    # The number of a text in its batch means nothing in a row of its own.
    return str(answer.named("the text") if isinstance(answer, TextError) else answer)
