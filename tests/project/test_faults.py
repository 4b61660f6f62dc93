"""docs/faults.md and docs/devices.md match the output of their commands."""

import os
import sys
from pathlib import Path

import onnxruntime
import pytest
from devices import Messages, has_driver, make_bundle, probe, rows

from tests.helpers.paths import ROOT
from tests.helpers.sizes import sizes

DOCUMENT = ROOT / "docs/faults.md"


@pytest.mark.slow
@sizes(
    "groups",
    short=("Bundles", "Texts and options", "Folders of files, and the server"),
    full=("Export", "Training", "Third-party models"),
)
def test_document_is_what_users_see(groups: tuple[str, ...]) -> None:
    """Every fault is provoked again, except those that this machine cannot produce."""
    from faults import tables

    written = DOCUMENT.read_text(encoding="utf-8")
    missing = [line for line in tables(groups).splitlines() if line not in written.splitlines()]
    assert [line for line in missing if not line.startswith(elsewhere())] == []


def elsewhere() -> tuple[str, ...]:
    """Return the beginnings of lines that may differ on a machine like this."""
    lines = ["| CUDA, "] if "CUDAExecutionProvider" in onnxruntime.get_available_providers() else []
    return (*lines, *(["| a full disk |", "| a read-only folder |"] if os.geteuid() else []))


@pytest.mark.skipif(has_driver(), reason="the table is that of a machine without an NVIDIA driver")
def test_device_table_is_true_of_this_installation(tmp_path: Path) -> None:
    """The rows for the extras installed here, and their messages; `make gpu-wheel` checks the others."""
    bundle, messages = make_bundle(tmp_path), Messages()
    shown = list(rows("`[cpu,torchscript]`", probe(sys.executable, bundle), messages, bundle))
    document = (DOCUMENT.parent / "devices.md").read_text(encoding="utf-8").splitlines()
    assert [line for line in document if line.startswith("| `[cpu,torchscript]`")] == shown
    numbered = [f"{number}. `{message}`" for number, message in enumerate(messages.seen, 1)]
    assert [line for line in document if line[0:1].isdigit()][: len(numbered)] == numbered


def test_document_has_every_fault() -> None:
    """It has exactly the faults that the tool provokes."""
    from faults import GROUPS

    rows = [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert len(rows) == sum(1 + len(faults) for faults in GROUPS.values())
