"""What is made of the errors of other libraries."""

import pytest

from mlm_infer.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one line"), "one line"),
        (ValueError("\n  first\nsecond"), "first"),
        (RuntimeError(), "RuntimeError"),
        (OSError("  \n "), "OSError"),
    ],
)
def test_first_line(error: Exception, line: str) -> None:
    """An error that says nothing has its kind for a line."""
    assert first_line(error) == line
