"""Random input gives a right answer or an error of this package, and never ends the process."""

import json
import subprocess
import sys
from collections import Counter

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.sizes import report, sizes

_BATCH = 5_000
_SHARES = {"texts": 0.7, "arguments": 0.2, "bundles": 0.1, "tokenizers": 0.02, "graphs": 0.02, "exports": 0.01}
_ANSWERED = {"texts": 0.5, "arguments": 0.08, "bundles": 0.01, "tokenizers": 0.3, "graphs": 0.08, "exports": 0.1}
"""The least share of each that is answered; of damaged bundles only what a forger put right, and may be, is."""


@sizes("count", short=1_000, full=100_000)
@pytest.mark.parametrize("part", _SHARES)
def test_fuzzed(part: str, count: int) -> None:
    """Random texts and arguments, damaged bundles and ONNX files, hostile tokenizers and graphs."""
    outcomes: Counter[str] = Counter()
    cases = int(count * _SHARES[part])
    for start in range(0, cases, _BATCH):
        batch = str(min(_BATCH, cases - start))
        command = [sys.executable, "-m", "tests.soak.fuzz", part, batch, str(start)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1800)
        assert done.returncode == 0, f"status {done.returncode}: {done.stderr[-2000:]}"
        outcomes.update(json.loads(done.stdout))
    report(f"{cases:,} fuzzed {part}: " + ", ".join(f"{number:,} {name}" for name, number in outcomes.most_common()))
    assert sum(outcomes.values()) == cases
    answered = sum(number for name, number in outcomes.items() if name.startswith("answered"))
    assert _ANSWERED[part] * cases <= answered < cases
