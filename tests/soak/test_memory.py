"""Memory over many texts."""

import json
import subprocess
import sys

from tests.helpers.paths import ROOT
from tests.helpers.sizes import report, sizes


@sizes("count", short=3_000, full=100_000)
def test_memory_is_flat(count: int) -> None:
    """Texts of all lengths: resident memory stays within 10 % of that after a warm-up."""
    command = [sys.executable, "-m", "tests.soak.memory", str(count)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    report(
        f"{count:,} texts: resident {found['warm'] / 1e6:.1f} MB after the warm-up, at most "
        f"{found['largest'] / 1e6:.1f} MB, {found['end'] / 1e6:.1f} MB at the end"
    )
    assert found["largest"] <= 1.1 * found["warm"]
