"""The benchmark of settings that are no options, with the small model in the package."""

import re
import subprocess
import sys

import pytest

from mlm_infer import MaskFiller

COMMAND = [sys.executable, "-m", "mlm_infer.benchmarks.settings"]


@pytest.mark.slow
def test_a_row_for_each_change() -> None:
    """A setting of sessions, a constant and an environment variable; in turns with none."""
    with MaskFiller() as filler:
        bundle = str(filler.info.path)
    changes = [
        "session.intra_op.allow_spinning=0",
        "mlm_infer.runtime.predictor.TOKEN_BUDGET=64",
        "GLIBC_TUNABLES=glibc.malloc.hugetlb=1",
    ]
    command = [*COMMAND, bundle, *changes, "--bulk", "100", "--minutes", "0", "--even-if-busy"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = re.findall(r"^\| `?([^`|]+?)`? \| [\d.]+ ms", done.stdout, re.M)
    assert rows == ["as it is", *changes]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "status", "told"),
    [
        ("what", 2, "'what' is no change; write NAME=VALUE"),
        ("mlm_infer.runtime.predictor.NONE=1", 1, "mlm_infer.runtime.predictor has no whole number NONE"),
        # ONNX Runtime's own complaint: the setting got there.
        ("session.intra_op_thread_affinities=nonsense", 1, "ffinit"),
    ],
)
def test_a_wrong_change_is_one_line(change: str, status: int, told: str) -> None:
    """No change, a constant that is not there, and a value that ONNX Runtime refuses."""
    with MaskFiller() as filler:
        command = [*COMMAND, str(filler.info.path), change, "--threads", "2", "--minutes", "0", "--even-if-busy"]
    wrong = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stdout) == (status, "")
    last = wrong.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert told in last
