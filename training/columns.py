"""The column of the text, which may be nested in structs and lists."""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow

from mlm_infer.errors import DataError

__all__ = ["find_column", "texts_of"]


def find_column(source: str, schema: pyarrow.Schema, text_column: str) -> tuple[str, list[str]]:
    """Return the column, and the keys of the structs in it that lead to the text.

    Args:
        source: Name of the data, for the message.
        schema: Its columns.
        text_column: Name of a column, with dots for nested ones, within lists too.

    Raises:
        DataError: There is no such column, or it holds no strings.
    """
    parts = text_column.split(".")
    for length in range(len(parts), 0, -1):
        column, keys = ".".join(parts[:length]), parts[length:]
        if column not in schema.names:
            continue
        kind = _inner_type(schema.field(column).type, keys)
        if kind is None:
            continue
        if kind not in (pyarrow.string(), pyarrow.large_string(), pyarrow.null()):
            raise DataError(
                f"the column {text_column!r} of {source} holds {kind}; it must hold strings or lists of strings"
            )
        return column, keys
    columns = ", ".join(name for field in schema for name in _leaves(field.name, field.type)) or "none"
    raise DataError(f"{source} has no column {text_column!r}; its columns are {columns}: name one with --text-column")


def texts_of(column: pyarrow.ChunkedArray, keys: Sequence[str]) -> list[str]:
    """Return the text of each row, stripped; strings of a list are joined with spaces, and none is an empty text.

    Args:
        column: The column.
        keys: Keys of the structs in it that lead to the text.
    """
    return [" ".join(_strings(value, keys)) for value in column.to_pylist()]


def _inner_type(kind: pyarrow.DataType, keys: Sequence[str]) -> pyarrow.DataType | None:
    while _is_list(kind):
        kind = kind.value_type
    if not keys:
        return kind
    if not pyarrow.types.is_struct(kind) or kind.get_field_index(keys[0]) < 0:
        return None
    return _inner_type(kind.field(keys[0]).type, keys[1:])


def _is_list(kind: pyarrow.DataType) -> bool:
    checks = (pyarrow.types.is_list, pyarrow.types.is_large_list, pyarrow.types.is_fixed_size_list)
    return any(check(kind) for check in checks)


def _leaves(name: str, kind: pyarrow.DataType) -> Iterator[str]:
    while _is_list(kind):
        kind = kind.value_type
    if not pyarrow.types.is_struct(kind):
        yield name
        return
    for field in kind:
        yield from _leaves(f"{name}.{field.name}", field.type)


def _strings(value: Any, keys: Sequence[str]) -> Iterator[str]:
    """Yield the texts in a cell: of a string, of a list, or of the structs that the keys lead into."""
    if isinstance(value, list):
        for each in value:
            yield from _strings(each, keys)
    elif isinstance(value, dict):
        yield from _strings(value[keys[0]], keys[1:])
    elif value is not None:
        # Readers take some rows of numbers for numbers, and leave the byte order mark of compressed text files.
        text = str(value).strip().lstrip("\ufeff")
        if text:
            yield text
