"""Processes that fork with an open model: every child answers and exits."""

import itertools
import json
import subprocess
import sys
from collections import Counter

from tests.helpers.sizes import report, sizes

ENDS = ["", "fill", "batch", "words", "close", "fill,close", "batch,close", "open", "fill,batch,words,open,close"]


def forked(steps: str, count: int, seed: int) -> Counter[str]:
    """Run one case; a parent that hangs fails the test by its timeout."""
    command = [sys.executable, "-m", "tests.soak.forks", steps, str(count), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 0, done.stderr
    return Counter(json.loads(done.stdout))


@sizes("children", short=2, full=16)
def test_children_end(children: int) -> None:
    """Children that use the model, close it, open another, or do nothing, all exit by themselves."""
    found: Counter[str] = Counter()
    for steps in ENDS if children > 2 else ENDS[-1:]:
        found += forked(steps, children, 0)
    report(f"forked children of {children} each: {dict(found)}")
    assert set(found) == {"ended"}


@sizes("rounds", short=2, full=120)
def test_forks_during_first_calls(rounds: int) -> None:
    """A fork at any moment of another thread's first calls leaves no lock held."""
    found: Counter[str] = Counter()
    steps = itertools.cycle(["words,fill,batch,open,close", "batch,words", "open"])
    for seed, each in zip(range(1, rounds + 1), steps, strict=False):
        found += forked(each, 1, seed)
    report(f"forks during another thread's first calls: {dict(found)}")
    assert set(found) == {"ended"}
