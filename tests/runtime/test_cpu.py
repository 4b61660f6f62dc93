"""Detection of the processor type and of a container's CPU quota."""

import subprocess
import sys
from pathlib import Path

import pytest

from mlm_infer.runtime.cpu import _CPUID, _cgroup_quota, _cpuid_flags, cpu_flags


def test_a_process_takes_no_more_cores_than_it_may() -> None:
    """A process bound to one core uses one, regardless of the machine."""
    code = (
        "import os; from mlm_infer.runtime.cpu import available_cpus\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); print(available_cpus())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


@pytest.mark.skipif(_cpuid_flags() is None, reason="glibc tells the flags of x86 processors only")
def test_glibc_and_linux_tell_the_same_flags() -> None:
    """Flags from glibc match /proc/cpuinfo where there is no emulator."""
    assert _cpuid_flags() == cpu_flags() & _CPUID.keys()


def test_container_quota(tmp_path: Path) -> None:
    """The CPU quota of a control group, version 2 and 1, of the group itself and its ancestors; and none."""
    membership = tmp_path / "membership"
    assert _cgroup_quota(tmp_path, membership) is None
    (tmp_path / "cpu/user/job").mkdir(parents=True)
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("50000\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert _cgroup_quota(tmp_path, membership) == 0.5
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("-1\n")
    assert _cgroup_quota(tmp_path, membership) is None
    (tmp_path / "cpu/user/job/cpu.cfs_quota_us").write_text("250000\n")
    (tmp_path / "cpu/user/job/cpu.cfs_period_us").write_text("100000\n")
    membership.write_text("2:cpuacct,cpu:/user/job\n1:memory:/elsewhere\n0::/out/of/sight\n")
    assert _cgroup_quota(tmp_path, membership) == 2.5
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert _cgroup_quota(tmp_path, membership) == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert _cgroup_quota(tmp_path, membership) == 2.5
    (tmp_path / "cpu/user/cpu.cfs_quota_us").write_text("what\n")
    assert _cgroup_quota(tmp_path, membership) == 2.5
