"""Full disks, read-only folders, two processes with one output, and a container's quota."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from places import full_disk, read_only

from mlm_infer import MaskFiller
from mlm_infer.inspection import verify_bundle
from mlm_infer.runtime.cpu import _cgroup_quota
from tests.helpers.paths import SHIPPED
from tests.helpers.sizes import report, sizes

_TRAIN = "--data movie-reviews --max-train-blocks 64 --max-validation-blocks 16 --block-size 32 --epochs 1"
_TOO_LITTLE = 160_000


def commands(checkpoint: Path, output: Path) -> dict[str, list[str | Path]]:
    """Return commands that write a folder."""
    return {
        "mlm-export": ["mlm-export", checkpoint, output, "--quantize"],
        "mlm-train": ["mlm-train", "--model", checkpoint, "--output", output, *_TRAIN.split()],
    }


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return the one-line error of a command, after checking that there is no traceback."""
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    return errors[0]


@sizes("steps", short=2, full=24)
@pytest.mark.parametrize("command", ["mlm-export", "mlm-train"])
def test_full_disk(command: str, steps: int, tiny: dict[str, Path], tmp_path: Path) -> None:
    """Full at any point of the run: a one-line error, and no output."""
    disk = tmp_path / "disk"
    for step in range(steps):
        size = 4096 * (1 + step * _TOO_LITTLE // 4096 // steps)
        with full_disk(disk, size) as prepare:
            line = commands(tiny["bert"], disk / "out")[command]
            done = subprocess.run(line, capture_output=True, text=True, check=False, preexec_fn=prepare)
            error = one_line(done)
            assert not (disk / "out").exists()
            if command == "mlm-export":
                assert list(disk.iterdir()) == []
        shutil.rmtree(disk)
    report(f"{command} on {steps} full disks: {error}")


@sizes("runs", short=1, full=4)
@pytest.mark.parametrize("command", ["mlm-export", "mlm-train"])
def test_read_only_folder(command: str, runs: int, tiny: dict[str, Path], tmp_path: Path) -> None:
    """A one-line error that names the folder; a bundle in such a folder can be read."""
    folder = tmp_path / "folder"
    shutil.copytree(SHIPPED, folder / "b")
    with read_only(folder) as prepare:
        for _ in range(runs):
            line = commands(tiny["bert"], folder / "out")[command]
            done = subprocess.run(line, capture_output=True, text=True, check=False, preexec_fn=prepare)
            error = one_line(done)
            assert str(folder) in error
        MaskFiller(folder / "b", self_test=True)
    report(f"{command} into a read-only folder: {error.replace(str(tmp_path), '')}")


@sizes("rounds", short=1, full=10)
@pytest.mark.parametrize("force", [False, True])
def test_two_exports_to_one_place(rounds: int, force: bool, tiny: dict[str, Path], tmp_path: Path) -> None:
    """One writes the bundle, the other reports it; the bundle is complete and nothing else is left."""
    output = tmp_path / "out"
    command: list[str | Path] = ["mlm-export", tiny["bert"], output, *(["--force"] * force)]
    won = 0
    for _ in range(rounds):
        both = [subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) for _ in "12"]
        errors = [process.communicate()[1] for process in both]
        statuses = sorted(process.returncode for process in both)
        assert statuses in ([[0, 0], [0, 2]] if force else [[0, 2]]), errors
        won += statuses.count(0)
        assert all("Traceback" not in text for text in errors)
        assert list(verify_bundle(output))
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        shutil.rmtree(output)
    report(
        f"two exports at once{' with --force' if force else ''}, {rounds} times: {won} of {2 * rounds} wrote the bundle"
    )


def test_quota_of_one_core(tmp_path: Path) -> None:
    """In a control group of one core, one thread is used; without the right to make one, its files are faked."""
    root = Path("/sys/fs/cgroup")
    if (root / "cgroup.controllers").is_file():
        group, quota = root / f"mlm-infer-soak-{os.getpid()}", ("cpu.max", "100000 100000")
    else:
        group, quota = root / f"cpu/mlm-infer-soak-{os.getpid()}", ("cpu.cfs_quota_us", "100000")
    try:
        group.mkdir()
    except OSError:
        (tmp_path / "cpu.max").write_text("100000 100000\n")
        assert _cgroup_quota(tmp_path, tmp_path / "membership") == 1
        report("no control group can be made here: read from a folder laid out like one")
        return
    code = (
        f"import os; open({str(group / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))\n"
        "from mlm_infer.runtime.cpu import available_cpus; print(available_cpus())"
    )
    try:
        (group / quota[0]).write_text(quota[1])
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    finally:
        group.rmdir()
    report(f"a process in a control group with {quota[0]} {quota[1]} takes {done.stdout.strip()} thread")
    assert done.stdout == "1\n"
