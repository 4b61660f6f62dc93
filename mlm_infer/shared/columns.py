"""Results as Arrow columns: the same columns and types in every table that this package writes."""

from collections.abc import Sequence
from typing import Any

from mlm_infer.errors import DependencyError, InputError
from mlm_infer.results import FillResult, ScoreResult

__all__ = ["fill_columns", "import_pyarrow", "score_columns"]


def import_pyarrow() -> Any:
    """Return `pyarrow`.

    Raises:
        DependencyError: It is not installed.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise DependencyError("tables need pyarrow; install it with: pip install pyarrow") from error
    return pyarrow


def fill_columns(results: Sequence[FillResult | InputError]) -> Any:
    """Return a `pyarrow.Table` with the columns `masks` and `error`, of which one is null in each row.

    Args:
        results: The results, or errors of texts that could not be filled.
    """
    arrow = import_pyarrow()
    prediction = arrow.struct(
        [
            ("token", arrow.string()),
            ("token_id", arrow.int64()),
            ("text", arrow.string()),
            ("starts_word", arrow.bool_()),
            ("score", arrow.float64()),
            ("logprob", arrow.float64()),
            ("sequence", arrow.string()),
        ]
    )
    mask = arrow.struct(
        [
            ("position", arrow.int64()),
            ("span", arrow.list_(arrow.int64())),
            ("predictions", arrow.list_(prediction)),
            ("window", arrow.list_(arrow.int64())),
        ]
    )
    rows = [None if isinstance(each, InputError) else each.to_dict()["masks"] for each in results]
    return arrow.table({"masks": arrow.array(rows, arrow.list_(mask)), "error": _errors(results)})


def score_columns(results: Sequence[ScoreResult | InputError]) -> Any:
    """Return a `pyarrow.Table` with the columns `logprob`, `pseudo_perplexity`, `tokens` and `error`.

    Args:
        results: The results, or errors of texts that could not be scored; then the other columns are null.
    """
    arrow = import_pyarrow()
    token = arrow.struct(
        [
            ("token", arrow.string()),
            ("token_id", arrow.int64()),
            ("span", arrow.list_(arrow.int64())),
            ("logprob", arrow.float64()),
            ("unknown", arrow.bool_()),
        ]
    )
    scored = [None if isinstance(each, InputError) else each for each in results]
    return arrow.table(
        {
            "logprob": arrow.array([each and each.logprob for each in scored], arrow.float64()),
            "pseudo_perplexity": arrow.array([each and each.pseudo_perplexity for each in scored], arrow.float64()),
            "tokens": arrow.array([each and each.to_dict()["tokens"] for each in scored], arrow.list_(token)),
            "error": _errors(results),
        }
    )


def _errors(results: Sequence[object]) -> Any:
    # Lone surrogates, which only a text with an error can contain, have no UTF-8.
    told = [
        str(each).encode(errors="backslashreplace").decode() if isinstance(each, InputError) else None
        for each in results
    ]
    return import_pyarrow().array(told, import_pyarrow().string())
