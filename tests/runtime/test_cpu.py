"""Detection of the processor type and of a container's CPU quota."""

import os
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


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor has no pool of threads")
def test_each_thread_has_a_processor_where_a_run_takes_all() -> None:
    """Those of the pool have one each, the first stays free for the caller; fewer threads are free to move."""
    code = (
        "import os; from pathlib import Path; from mlm_infer import MaskFiller\n"
        "from mlm_infer.runtime.cpu import available_cpus\n"
        "allowed = os.sched_getaffinity(0)\n"
        "def bound():\n"
        "    held = [os.sched_getaffinity(int(each.name)) for each in Path('/proc/self/task').iterdir()]\n"
        "    return sorted(min(each) for each in held if each != allowed)\n"
        "with MaskFiller(threads=1) as filler:\n"
        "    filler.fill('A [MASK].')\n"
        "    assert bound() == [], bound()\n"
        "with MaskFiller() as filler:\n"
        "    filler.fill('A [MASK].')\n"
        # Fewer threads than processors, if a container has a quota.
        "    assert bound() == (sorted(allowed)[1:] if available_cpus() == len(allowed) else []), bound()\n"
        "    assert os.sched_getaffinity(0) == allowed\n"
        "os.sched_setaffinity(0, set(sorted(allowed)[1:]))\n"
        "with MaskFiller(threads=len(allowed)) as filler:\n"
        "    filler.fill('A [MASK].')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


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
