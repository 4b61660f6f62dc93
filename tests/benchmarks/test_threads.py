"""The speed of several numbers of threads, with the small model in the package."""

import re
import subprocess
import sys

import pytest

from mlm_infer import MaskFiller
from mlm_infer.runtime.cpu import available_cpus, cpu_kind
from tests.helpers.busy import busy_processes

COMMAND = [sys.executable, "-m", "mlm_infer.benchmarks.threads"]


@pytest.fixture(scope="module")
def bundle() -> str:
    """The bundle in the package."""
    with MaskFiller() as filler:
        return str(filler.info.path)


@pytest.mark.slow
def test_a_row_for_each_number_of_threads(bundle: str) -> None:
    """One thread, and as many as there are processors, with each way of waiting; quiet, and beside busy processes."""
    command = [*COMMAND, bundle, "--minutes", "0", "--even-if-busy"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    counts = [count for count in (1, 2, 4, 8) if count <= available_cpus()]
    ways = {count: ("short", "long", "off") if count > 1 else ("-",) for count in counts}
    expected = [f"| {count} | {way} |" for count in counts for way in ways[count]]
    for kept in (
        re.findall(r"^(\| \d \| [a-z-]+ \|) [\d.]+ ms", done.stdout, re.M),
        re.findall(r"^(\| \d \| [a-z-]+ \|) [\d.]+x, ", done.stdout, re.M),
    ):
        assert kept == expected
    assert f"({cpu_kind()}), {available_cpus()} processors" in done.stdout
    # One thread against itself.
    assert re.search(r"^\| 1 \| - \| [\d.]+ ms \(1\.00x\)", done.stdout, re.M)


@pytest.mark.slow
def test_threads_refuse_a_busy_machine(bundle: str) -> None:
    """Status 1 and one line."""
    with busy_processes(available_cpus()):
        done = subprocess.run([*COMMAND, bundle], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: other processes took ")
