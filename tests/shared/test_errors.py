"""Messages made from the errors of other libraries, and errors of one text of many."""

import pickle

import pytest

from mlm_infer import InputError, MaskFiller, TextError
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
    """An error without a message gives the name of its class."""
    assert first_line(error) == line


def test_a_text_error_says_which_text_and_can_be_renamed_and_pickled() -> None:
    """A reader of files can replace the number of a text by its place in the file."""
    with pytest.raises(TextError, match=r"^text 1 of 2 has no mask") as caught:
        MaskFiller().fill_batch(["A [MASK].", "None\nhere."])
    error = caught.value
    assert isinstance(error, InputError)
    assert str(error.named("a.txt, line 7")) == f"a.txt, line 7 {error.problem}"
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (type(again), str(again), again.subject) == (TextError, str(error), "text 1 of 2")
