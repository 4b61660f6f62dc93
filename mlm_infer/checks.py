"""Checks of options that several methods take, and how a value is shown in an error."""

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
"""What is longer is refused before it is tokenized: that many take a second or two and up to half a gigabyte."""

_SHOWN = 60

_MOST_COPIED = 1_000_000_000


def shown(value: object) -> str:
    """Return the beginning of a value as Python writes it, whatever the value is and however large."""
    try:
        text = repr(value[:_SHOWN] if isinstance(value, str) else value)
    except Exception:  # an object's own, or Python's at a number of more than 4,300 digits
        return f"<{type(value).__name__} that cannot be written out>"
    return text[:_SHOWN]


def whole_number(name: str, value: object, *, least: int, most: int, rest: str = "") -> int:
    """Return an option as an int: Python's or numpy's whole numbers, and no bool.

    Args:
        name: The option.
        value: What was given.
        least: Least value.
        most: Greatest value.
        rest: What the error says after the range.

    Raises:
        InputError: It is no whole number, or out of the range.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or not least <= number <= most:
        raise InputError(f"{name} is {shown(value)}; it must be from {least} to {most}{rest}")
    return number


def fraction(name: str, value: object) -> float:
    """Return an option that is a probability as a float: Python's or numpy's numbers, and no bool.

    Raises:
        InputError: It is no number from 0 to 1.
    """
    try:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:  # a whole number beyond any float
        number = math.inf
    if not 0 <= number <= 1:
        raise InputError(f"{name} is {shown(value)}; it must be a probability from 0 to 1")
    return number


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise InputError unless an option is one of some words."""
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{name} is {shown(value)}; it must be {' or '.join(map(repr, choices))}")


def check_flag(name: str, value: object) -> None:
    """Raise InputError unless an option is a bool."""
    if not isinstance(value, bool):
        raise InputError(f"{name} is {shown(value)}; it must be True or False")


def check_length(name: str, text: str) -> None:
    """Raise InputError if a part of an argument is too long to be tokenized."""
    if len(text) > MOST_CHARACTERS:
        raise TextError(
            name, f"has {len(text):,} characters, and may have at most {MOST_CHARACTERS:,}; shorten it: {shown(text)}"
        )


def check_copies(name: str, text: str, copies: int) -> None:
    """Raise TextError where an answer, each of whose sequences holds the whole text, would not fit into memory."""
    if copies * len(text) > _MOST_COPIED:
        raise TextError(
            name,
            f"has {len(text):,} characters, and its answer would hold it {copies:,} times, which is more than "
            f"{_MOST_COPIED:,} characters; cut the text into several, or ask for fewer answers: {shown(text)}",
        )
