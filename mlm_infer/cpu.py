"""What this machine's processor can do."""

import os
import platform
from functools import cache
from pathlib import Path
from typing import Literal

__all__ = ["CpuKind", "available_cpus", "cpu_flags", "cpu_kind", "cpu_name"]

CpuKind = Literal["avx2", "avx512", "avx512_vnni", "arm64"]
"""The kinds of processor for which int8 files differ."""


@cache
def _cpuinfo() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    first = text.split("\n\n", 1)[0]
    return {key.strip(): value.strip() for key, _, value in (row.partition(":") for row in first.splitlines())}


def cpu_flags() -> frozenset[str]:
    """Return the instruction-set flags that Linux reports; empty on other systems."""
    info = _cpuinfo()
    return frozenset((info.get("flags") or info.get("Features") or "").split())


def cpu_name() -> str:
    """Return the processor's name as the system gives it."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def cpu_kind() -> CpuKind:
    """Return the kind of this processor; `avx2` where it cannot be told, which is safe on every x86-64."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        return "arm64"
    flags = cpu_flags()
    if "avx512_vnni" in flags or "avx_vnni" in flags:
        return "avx512_vnni"
    return "avx512" if "avx512f" in flags else "avx2"


def available_cpus() -> int:
    """Return how many processors this process may use: its affinity, cut by a container's quota.

    ONNX Runtime's own default ignores a cgroup quota and takes every core of the host.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, min(cpus, int(quota)) if quota else cpus)


def _cgroup_quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Return the CPU quota in cores (cgroup v2, then v1), or None without one."""
    try:
        limit, period = (root / "cpu.max").read_text(encoding="ascii").split()[:2]
    except (OSError, ValueError):
        try:
            limit = (root / "cpu/cpu.cfs_quota_us").read_text(encoding="ascii").strip()
            period = (root / "cpu/cpu.cfs_period_us").read_text(encoding="ascii").strip()
        except OSError:
            return None
    if limit in ("max", "-1"):
        return None
    return int(limit) / int(period)
