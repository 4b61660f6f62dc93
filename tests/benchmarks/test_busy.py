"""A busy machine is noticed, by real processes that keep it busy."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlm_infer.benchmarks.busy import MOST_BUSY, BusyError, OtherLoad, refuse_busy

from mlm_infer.runtime.cpu import available_cpus
from tests.helpers.busy import busy_processes


def test_others_are_told_from_our_own() -> None:
    """The same process is another one, or one of ours, by whose child it is."""
    with busy_processes(1) as (busy,):
        # This process is the parent of the busy one; the busy one has no children, so the others are all but itself.
        with_child, alone, strange = OtherLoad(), OtherLoad(busy), OtherLoad(os.getppid() + 10**9)
        before = time.process_time()
        while time.process_time() < before + 1:
            pass
        everything, without_busy, without_both = strange.share(), alone.share(), with_child.share()
    assert 0 <= without_both < without_busy < everything <= 1


def test_a_child_that_ended_counts_as_ours() -> None:
    """What it used is in the times of its parent, so it does not look like another process."""
    ours, everything = OtherLoad(), OtherLoad(os.getppid() + 10**9)
    used = "import time\nwhile time.process_time() < 1: pass"
    subprocess.run([sys.executable, "-c", used], check=True)
    assert ours.share() < everything.share()


def test_refusal_says_what_to_do() -> None:
    """One line with the share; none below the limit, or with --even-if-busy."""
    refuse_busy(MOST_BUSY, allowed=False, what="bulk")
    refuse_busy(0.34, allowed=True, what="bulk")
    with pytest.raises(BusyError) as refused:
        refuse_busy(0.34, allowed=False, what="bulk")
    assert str(refused.value) == (
        "other processes took 34% of the processors' time during bulk, and at most 5% is allowed: stop them (see top) "
        "and run this again, or take --even-if-busy, which writes the share into the table"
    )


@pytest.mark.slow
def test_benchmark_refuses_a_busy_machine(base: Path, tmp_path: Path) -> None:
    """Status 1 and one line, before models are made, and no table."""
    command = [sys.executable, "-m", "mlm_infer.benchmarks.peers", "--shape", str(base), "--engine", "mlm-infer fp32"]
    output = tmp_path / "results/found.json"
    with busy_processes(available_cpus()):
        done = subprocess.run(
            [*command, "--work", str(tmp_path / "work"), "--output", str(output)],
            check=False,
            capture_output=True,
            text=True,
        )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: other processes took ")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
