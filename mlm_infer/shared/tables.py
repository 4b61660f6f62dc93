"""Plain-text tables for the command lines."""

import re
from collections.abc import Sequence

__all__ = ["format_table", "without_controls"]


# Control characters, line separators, what overrides the direction of writing, and halves of surrogate pairs.
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def without_controls(text: str) -> str:
    """Write out the characters that a terminal would obey, which a token or a manifest of anybody's may hold."""
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out rows under a header, numbers to the right and words to the left.

    Args:
        header: One title a column.
        rows: As many cells a row as there are titles.

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
