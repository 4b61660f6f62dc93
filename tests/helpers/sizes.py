"""Sizes of soak tests: short in the test suite, full under the marker `soak`."""

from typing import Any

import click
import pytest

__all__ = ["report", "sizes"]


def sizes(name: str, *, short: Any, full: Any) -> pytest.MarkDecorator:
    """Parametrize a test by size.

    Args:
        name: The test's argument.
        short: Its value in the test suite.
        full: Its value under `make soak`, which takes minutes.
    """
    marks = [pytest.mark.soak, pytest.mark.timeout(3600)]
    return pytest.mark.parametrize(name, [pytest.param(short, id="short"), pytest.param(full, id="full", marks=marks)])


def report(text: str) -> None:
    """Print a figure of a run; pytest shows it with -s, as in `make soak`."""
    click.echo(f"\n{text}", err=True)
