"""Validation of options that several methods share, and display of values in errors."""

import math
import operator
from collections.abc import Sequence
from numbers import Real

from .errors import InputError, TextError

__all__ = [
    "MOST_CHARACTERS",
    "check_choice",
    "check_copies",
    "check_flag",
    "check_length",
    "fraction",
    "shown",
    "whole_number",
]

MOST_CHARACTERS = 1_000_000
"""Longer texts are rejected before tokenization, which takes seconds and up to half a gigabyte at this length."""

_SHOWN = 60

_MOST_COPIED = 1_000_000_000


def shown(value: object) -> str:
    """Return the beginning of a value's repr, whatever the value is and however large."""
    try:
        text = repr(value[:_SHOWN] if isinstance(value, str) else value)
    except Exception:  # raised by an object's own repr, or by Python for an integer of more than 4,300 digits
        return f"<{type(value).__name__} that cannot be written out>"
    return text[:_SHOWN]


def whole_number(name: str, value: object, *, least: int, most: int, rest: str = "") -> int:
    """Return an option as an int. Accepts Python and numpy integers, but not bool.

    Args:
        name: The option.
        value: The given value.
        least: Minimum.
        most: Maximum.
        rest: Text that the error appends to the range.

    Raises:
        InputError: It is not an integer, or out of range.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or not least <= number <= most:
        raise InputError(f"{name} is {shown(value)}; it must be from {least} to {most}{rest}")
    return number


def fraction(name: str, value: object) -> float:
    """Return a probability option as a float. Accepts Python and numpy numbers, but not bool.

    Raises:
        InputError: It is not a number from 0 to 1.
    """
    try:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:  # an integer too large for a float
        number = math.inf
    if not 0 <= number <= 1:
        raise InputError(f"{name} is {shown(value)}; it must be a probability from 0 to 1")
    return number


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise InputError unless an option is one of the choices."""
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{name} is {shown(value)}; it must be {' or '.join(map(repr, choices))}")


def check_flag(name: str, value: object) -> None:
    """Raise InputError unless an option is a bool."""
    if not isinstance(value, bool):
        raise InputError(f"{name} is {shown(value)}; it must be True or False")


def check_length(name: str, text: str) -> None:
    """Raise TextError if a part of an argument is too long to be tokenized."""
    if len(text) > MOST_CHARACTERS:
        raise TextError(
            name, f"has {len(text):,} characters, and may have at most {MOST_CHARACTERS:,}; shorten it: {shown(text)}"
        )


def check_copies(name: str, text: str, copies: int) -> None:
    """Raise TextError if an answer, which contains the whole text once per sequence, would not fit in memory."""
    if copies * len(text) > _MOST_COPIED:
        raise TextError(
            name,
            f"has {len(text):,} characters, and its answer would hold it {copies:,} times, which is more than "
            f"{_MOST_COPIED:,} characters; cut the text into several, or ask for fewer answers: {shown(text)}",
        )
