"""Relations between an output folder and the inputs, for tests that `--force` loses no file."""

import shutil
from collections.abc import Callable
from pathlib import Path

from tests.helpers.paths import SHIPPED

__all__ = ["RELATIONS", "bundle", "contents"]


def nothing(_home: Path) -> None:
    """The checkpoint only."""


def a_file(home: Path) -> None:
    """A file at the output path."""
    (home / "notes").write_text("thesis")


def foreign(home: Path) -> None:
    """A folder with a user's files."""
    (home / "notes/.git").mkdir(parents=True)
    (home / "notes/.git/HEAD").write_text("ref")
    (home / "notes/thesis.tex").write_text("thesis")


def bundle(home: Path) -> None:
    """A bundle that may be replaced, beside others that may not."""
    # The README is not of the bundle's own making.
    shutil.copytree(SHIPPED, home / "bundle", ignore=shutil.ignore_patterns("README.md"))


def bundle_with_more(home: Path) -> None:
    """A bundle to which a user has added a folder."""
    bundle(home)
    (home / "bundle/data").mkdir()
    (home / "bundle/data/thesis.tex").write_text("thesis")


def links(home: Path) -> None:
    """Links to the checkpoint, to a bundle, and to nothing."""
    bundle(home)
    for name, to in (("to-ck", "deep/ck"), ("to-bundle", "bundle"), ("to-nothing", "nowhere"), ("to-deep", "deep")):
        (home / name).symlink_to(to)


def forged(home: Path) -> None:
    """A checkpoint with a manifest that lists all of its files as a bundle's."""
    names = ", ".join(f'"{path.name}": 0' for path in (home / "deep/ck").iterdir())
    (home / "deep/ck/mlm_infer.json").write_text(f'{{"files": {{{names}}}}}')


RELATIONS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "equal": (nothing, "deep/ck", "deep/ck"),
    "equal, with a slash": (nothing, "deep/ck", "deep/ck/"),
    "equal, by its parent": (nothing, "deep/ck", "deep/../deep/ck"),
    "the parent": (nothing, "deep/ck", "deep"),
    "a parent by dots": (nothing, "deep/ck", "deep/ck/.."),
    "here": (nothing, "deep/ck", "."),
    "a link to it": (links, "deep/ck", "to-ck"),
    "read through a link": (links, "to-ck", "deep/ck"),
    "below a link to its parent": (links, "deep/ck", "to-deep/ck"),
    "a link to a bundle": (links, "deep/ck", "to-bundle"),
    "a link to nothing": (links, "deep/ck", "to-nothing"),
    "a file": (a_file, "deep/ck", "notes"),
    "somebody's work": (foreign, "deep/ck", "notes"),
    "a bundle and more": (bundle_with_more, "deep/ck", "bundle"),
    "equal, with a forged manifest": (forged, "deep/ck", "deep/ck"),
    "the bundle of the file that is read": (bundle, "bundle/model.int8.onnx", "bundle"),
}


def contents(home: Path) -> dict[str, bytes | str]:
    """Return every file and link below a folder."""
    found: dict[str, bytes | str] = {}
    for path in home.rglob("*"):
        if path.is_symlink():
            found[str(path)] = str(path.readlink())
        elif path.is_file():
            found[str(path)] = path.read_bytes()
    return found
