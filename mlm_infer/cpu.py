"""What this machine's processor can do."""

import os
import platform
from functools import cache
from pathlib import Path
from typing import Literal

__all__ = ["CpuKind", "available_cpus", "cpu_flags", "cpu_kind", "cpu_name", "suits_this_cpu"]

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


def _cgroup_quota(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> float | None:
    """Return the least CPU quota in cores of this process's control group and those above it, or None without one.

    Within a container the group is usually the root of what can be seen. A group that cannot be seen is
    stepped over.

    Args:
        root: Where control groups are mounted.
        membership: Says which group this process is in: `0::PATH` in version 2, `N:cpu,...:PATH` in version 1.
    """
    try:
        rows = [line.split(":", 2) for line in membership.read_text(encoding="utf-8").splitlines()]
    except OSError:
        rows = []
    paths = {"": "/", "cpu": "/"} | {name: row[2] for row in rows if len(row) == 3 for name in row[1].split(",")}
    quotas = []
    for top, path, read in ((root, paths[""], _quota_2), (root / "cpu", paths["cpu"], _quota_1)):
        group = top / path.lstrip("/")
        for each in (group, *group.parents):
            quota = read(each)
            if quota is not None:
                quotas.append(quota)
            if each == top:
                break
    return min(quotas, default=None)


def _quota_2(group: Path) -> float | None:
    try:
        limit, period = (group / "cpu.max").read_text(encoding="ascii").split()[:2]
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_1(group: Path) -> float | None:
    try:
        limit = int((group / "cpu.cfs_quota_us").read_text(encoding="ascii"))
        return None if limit < 0 else limit / int((group / "cpu.cfs_period_us").read_text(encoding="ascii"))
    except (OSError, ValueError, ZeroDivisionError):
        return None


def suits_this_cpu(made_for: str | None) -> bool:
    """Tell whether this processor multiplies bytes made for a kind of processor without overflow."""
    return made_for not in ("avx512_vnni", "arm64") or cpu_kind() not in ("avx2", "avx512")
