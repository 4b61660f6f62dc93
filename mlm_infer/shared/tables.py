"""Plain-text tables for the command lines."""

import re
from collections.abc import Sequence

__all__ = ["format_table", "without_controls"]


# Control characters, line separators, overrides of the writing direction, and lone surrogates.
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def without_controls(text: str) -> str:
    """Escape characters that a terminal interprets; an untrusted vocabulary or manifest may contain them."""
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format rows under a header, with numbers right-aligned and text left-aligned.

    Args:
        header: One title per column.
        rows: One cell per column.

    Returns:
        The table, without a final newline.
    """
    columns = list(zip(header, *rows, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]
    numeric = [bool(rows) and all(_is_number(cell) for cell in column[1:]) for column in columns]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(cells, widths, numeric, strict=True)
        ).rstrip()

    return "\n".join([line(header), line(["-" * width for width in widths]), *(line(row) for row in rows)])


def _is_number(cell: str) -> bool:
    return cell in ("", "-") or cell.lstrip("+-").replace(",", "")[:1].isdigit()
