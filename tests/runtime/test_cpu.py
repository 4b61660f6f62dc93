"""What is read of the processor and of a container's quota."""

from pathlib import Path

from mlm_infer.runtime.cpu import _cgroup_quota, available_cpus, cpu_kind, cpu_name


def test_machine() -> None:
    """What is reported of the processor is of the kinds that int8 is made for."""
    assert cpu_kind() in ("avx2", "avx512", "avx512_vnni", "arm64")
    assert available_cpus() >= 1
    assert cpu_name()


def test_container_quota(tmp_path: Path) -> None:
    """A control group's quota in cores, version 2 and 1, its own and those above it, and none."""
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
