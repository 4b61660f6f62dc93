"""docs/faults.md is what the faults print."""

import os
from pathlib import Path

import onnxruntime

from .soak.sizes import sizes

DOCUMENT = Path(__file__).resolve().parent.parent / "docs/faults.md"


@sizes("groups", short=("A bundle", "A text or an option"), full=("An export", "A training"))
def test_document_is_what_users_see(groups: tuple[str, ...]) -> None:
    """Every fault is provoked again. What needs the right to mount, or a CPU's onnxruntime, is left out without."""
    from faults import tables

    written = DOCUMENT.read_text(encoding="utf-8")
    missing = [line for line in tables(groups).splitlines() if line not in written.splitlines()]
    assert [line for line in missing if not line.startswith(elsewhere())] == []


def elsewhere() -> tuple[str, ...]:
    """Return how the lines begin that say something else on a machine like this."""
    lines = ["| CUDA, "] if "CUDAExecutionProvider" in onnxruntime.get_available_providers() else []
    return (*lines, *(["| a full disk |", "| a read-only folder |"] if os.geteuid() else []))


def test_document_has_every_fault() -> None:
    """No more and no fewer than are provoked."""
    from faults import GROUPS

    rows = [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert len(rows) == sum(1 + len(faults) for faults in GROUPS.values())
