"""Detects the processor's instruction set and the number of processors available to this process."""

import ctypes
import os
import platform
import typing
from functools import cache
from pathlib import Path
from typing import Literal

from mlm_infer.errors import InputError

__all__ = ["CPU_VARIABLE", "CpuKind", "available_cpus", "cpu_flags", "cpu_kind", "cpu_name", "multiplies_bytes"]

CpuKind = Literal["avx2", "avx512", "avx512_vnni", "arm64"]
"""Processor types with different int8 kernels. `avx2` is any x86-64 processor without AVX-512, `avx512_vnni` any with
VNNI, including AVX-VNNI."""

CPU_VARIABLE = "MLM_INFER_CPU"
"""Environment variable that overrides the detected type of processor."""


@cache
def _cpuinfo() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    # One block per core; all cores of a machine are alike for this purpose.
    first = text.split("\n\n", 1)[0]
    return {key.strip(): value.strip() for key, _, value in (row.partition(":") for row in first.splitlines())}


class _CpuidLeaf(ctypes.Structure):
    """`struct cpuid_feature` of glibc's sys/platform/x86.h: features present, and features usable under this system."""

    _fields_: typing.ClassVar = [("present", ctypes.c_uint32 * 4), ("active", ctypes.c_uint32 * 4)]


_CPUID = {
    # Name in /proc/cpuinfo: index of the leaf in glibc (7, or 7 with ECX = 1), register and bit.
    "avx2": (1, 1, 5),
    "avx512f": (1, 1, 16),
    "avx512_vnni": (1, 2, 11),
    "avx_vnni": (6, 0, 4),
}


def _cpuid_flags() -> frozenset[str] | None:
    """Return the features of `_CPUID` that this process can use, or None without a glibc that reports them.

    Under an emulator, this gives the emulated processor, whereas /proc/cpuinfo shows the host's.
    """
    try:
        leaf = ctypes.CDLL(None).__x86_get_cpuid_feature_leaf
    except (AttributeError, OSError, TypeError):
        return None
    leaf.restype, leaf.argtypes = ctypes.POINTER(_CpuidLeaf), [ctypes.c_uint]
    found = []
    for name, (index, register, bit) in _CPUID.items():
        answer = leaf(index)
        if answer and answer.contents.active[register] >> bit & 1:
            found.append(name)
    return frozenset(found)


def cpu_flags() -> frozenset[str]:
    """Return the instruction-set flags in /proc/cpuinfo; empty on systems other than Linux."""
    info = _cpuinfo()
    return frozenset((info.get("flags") or info.get("Features") or "").split())


def cpu_name() -> str:
    """Return the processor's name as reported by the system."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def cpu_kind() -> CpuKind:
    """Return the type of this processor; `avx2` if it cannot be detected.

    Raises:
        InputError: The environment variable `MLM_INFER_CPU` has an invalid value.
    """
    chosen = os.environ.get(CPU_VARIABLE)
    if chosen:
        for kind in typing.get_args(CpuKind):
            if chosen == kind:
                return typing.cast("CpuKind", kind)
        raise InputError(f"{CPU_VARIABLE} is {chosen!r}; it must be one of {', '.join(typing.get_args(CpuKind))}")
    if platform.machine().lower() in ("arm64", "aarch64"):
        return "arm64"
    # A hypervisor or emulator may mask features that the host's /proc/cpuinfo shows, so the instruction is asked first.
    flags = _cpuid_flags()
    flags = cpu_flags() if flags is None else flags
    if "avx512_vnni" in flags or "avx_vnni" in flags:
        return "avx512_vnni"
    return "avx512" if "avx512f" in flags else "avx2"


def multiplies_bytes() -> bool:
    """Return whether this processor has an 8-bit dot product that cannot overflow."""
    return cpu_kind() in ("avx512_vnni", "arm64")


def available_cpus() -> int:
    """Return the number of processors available to this process: its CPU affinity, limited by a container's quota.

    ONNX Runtime's own default ignores a cgroup quota and uses every core of the host.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota()
    # Rounded down: a thread more than the quota would be throttled together with all others.
    return max(1, min(cpus, int(quota)) if quota else cpus)


def _cgroup_quota(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> float | None:
    """Return the smallest CPU quota, in cores, of this process's control group and its ancestors; None without one.

    Within a container, the group is usually the root of the visible hierarchy. Groups that are not visible are
    skipped.

    Args:
        root: Mount point of the control groups.
        membership: File that names the group of this process: `0::PATH` in version 2, `N:cpu,...:PATH` in version 1.
    """
    try:
        rows = [line.split(":", 2) for line in membership.read_text(encoding="utf-8").splitlines()]
    except OSError:
        rows = []
    # Version 2 has one hierarchy with an empty controller name; version 1 has one per controller, such as `cpu`.
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
