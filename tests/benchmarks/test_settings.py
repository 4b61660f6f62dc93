"""The benchmark of settings that are no options, with the small model in the package."""

import re
import subprocess
import sys

import pytest

from mlm_infer import MaskFiller

COMMAND = [sys.executable, "-m", "mlm_infer.benchmarks.settings"]


@pytest.mark.slow
def test_a_row_for_each_change() -> None:
    """A setting of sessions, a constant and an environment variable; what is no change is one line."""
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
    wrong = subprocess.run([*COMMAND, bundle, "what", "--even-if-busy"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.splitlines()[-1].startswith("error: 'what' is no change; write NAME=VALUE")
