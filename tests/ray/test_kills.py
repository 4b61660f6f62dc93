"""Whatever is killed during a run, its result equals that of an unbroken one, row by row."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from ray.cluster_utils import Cluster

from tests.helpers.bulk import masked_reviews, results, write_parquet

pytestmark = pytest.mark.slow

ROWS = 3000
COMMAND = [sys.executable, "-c", "from mlm_infer.cli.fill_command import main; main()", "--engine", "ray"]
COMMAND += ["--rows-per-part", "100"]


@pytest.fixture(scope="module")
def machines() -> Iterator[Cluster]:
    """A cluster of three machines with a processor each, of which two may be killed."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 100_000_000})
    for _ in range(2):
        cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two files."""
    home = tmp_path_factory.mktemp("in")
    rows = [{"id": number, "text": text} for number, text in enumerate(masked_reviews(ROWS))]
    write_parquet(home / "a.parquet", rows[:1000], 300)
    write_parquet(home / "b.parquet", rows[1000:], 700)
    return home


@pytest.fixture(scope="module")
def unbroken(source: Path, machines: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("out") / "whole"
    subprocess.run(
        [*COMMAND, "--input", str(source), "--output", str(out), "--address", machines.address],
        check=True,
        capture_output=True,
    )
    return out


def run_until(parts: int, source: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    """Start a run, and return once some of its parts are there."""
    run = subprocess.Popen(
        [*COMMAND, "--input", str(source), "--output", str(out), *options], stderr=subprocess.PIPE, text=True
    )
    while len(list(out.glob("*.parquet"))) < parts:
        assert run.poll() is None, run.stderr and run.stderr.read()[-2000:]
        time.sleep(0.02)
    return run


def workers() -> list[psutil.Process]:
    """Return the processes that make parts."""
    running = psutil.process_iter(["cmdline"])
    return [process for process in running if "PartMaker" in " ".join(process.info["cmdline"] or [])]


def check(out: Path, unbroken: Path) -> None:
    """Compare two results, names and rows."""
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in unbroken.iterdir())
    found = results(out)
    assert [row["id"] for row in found] == list(range(ROWS))
    assert found == results(unbroken)


@pytest.mark.parametrize("what", ["worker", "machine"])
def test_a_worker_or_a_machine_is_killed(
    what: str, source: Path, machines: Cluster, unbroken: Path, tmp_path: Path
) -> None:
    """Its parts are made by the others; the run ends as if nothing had been."""
    run = run_until(3, source, tmp_path / "out", "--address", machines.address)
    if what == "worker":
        workers()[0].kill()
    else:
        machines.remove_node(next(iter(machines.worker_nodes)), allow_graceful=False)
    _, told = run.communicate(timeout=300)
    assert run.returncode == 0, told[-2000:]
    assert f"written: {tmp_path / 'out'}, 30 parts, {ROWS} rows" in told.splitlines()[-1]
    check(tmp_path / "out", unbroken)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_run_itself_is_ended(how: signal.Signals, source: Path, unbroken: Path, tmp_path: Path) -> None:
    """The same command with --resume makes what is missing; the cluster of the first one ends with it."""
    out = tmp_path / "out"
    run = run_until(3, source, out)
    run.send_signal(how)
    _, told = run.communicate(timeout=300)
    if how == signal.SIGKILL:
        assert run.returncode == -how
    else:
        assert run.returncode == 1
        assert "stopped; the same command with --resume goes on from here" in told.splitlines()
    done = subprocess.run(
        [*COMMAND, "--input", str(source), "--output", str(out), "--resume"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "were there before" in done.stderr.splitlines()[-1]
    check(out, unbroken)
