"""What this machine is: processor, cores, memory, and what a container allows of them. Reads /proc and /sys; no jax."""

import math
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_PROC, _CGROUP = Path("/proc"), Path("/sys/fs/cgroup")

# Instruction sets that kernels care about, as /proc/cpuinfo spells them, narrow to wide.
_ISA = ("avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
_ARM_ISA = {"asimd": "neon", "asimddp": "dotprod", "i8mm": "i8mm", "bf16": "bf16", "sve": "sve"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes of memory this process may use, the smaller of machine and container; 0 where the system does not say."""

    total: int
    available: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Processor:
    """A processor. `usable_cores` counts what this process may run on; `quota` is a container's limit in cores."""

    name: str
    isa: tuple[str, ...]
    cores: int
    usable_cores: int
    quota: float | None


def memory() -> Memory:
    """Return the memory of this machine, or of the container where that is less."""
    total, available = _system_memory()
    limit, used = _cgroup_memory()
    if limit is not None and limit < total:
        total, available = limit, min(available, max(limit - used, 0))
    return Memory(total=total, available=available)


def processor() -> Processor:
    """Return the processor of this machine."""
    name, isa = _cpu_name_and_isa()
    cores = os.cpu_count() or 1
    return Processor(name=name, isa=isa, cores=cores, usable_cores=usable_cores(), quota=_cgroup_cores())


def threads() -> int:
    """Return how many threads can run at once here: the affinity mask, or a container's quota where that is less."""
    usable, quota = usable_cores(), _cgroup_cores()
    return max(1, usable if quota is None else min(usable, math.ceil(quota)))


def usable_cores() -> int:
    """Return the number of cores in this process's affinity mask."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _system_memory() -> tuple[int, int]:
    text = _text(_PROC / "meminfo")
    found = {name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB", text, re.M)}
    if found:
        return found["MemTotal"], found.get("MemAvailable", found.get("MemFree", 0))
    if sys.platform == "darwin":
        total = int(_command("sysctl", "-n", "hw.memsize") or 0)
        return total, total
    return 0, 0


def _cgroup_memory() -> tuple[int | None, int]:
    """(limit, used) of this container in bytes; the page cache does not count as used."""
    if limit := _number(_CGROUP / "memory.max"):  # version 2
        used = _number(_CGROUP / "memory.current") or 0
        cached = re.search(r"^inactive_file (\d+)", _text(_CGROUP / "memory.stat"), re.M)
    elif limit := _number(_CGROUP / "memory/memory.limit_in_bytes"):
        used = _number(_CGROUP / "memory/memory.usage_in_bytes") or 0
        cached = re.search(r"^total_inactive_file (\d+)", _text(_CGROUP / "memory/memory.stat"), re.M)
    else:
        return None, 0
    return limit, used - (int(cached.group(1)) if cached else 0)


def _cgroup_cores() -> float | None:
    quota, _, period = _text(_CGROUP / "cpu.max").partition(" ")
    if not quota:
        quota = _text(_CGROUP / "cpu/cpu.cfs_quota_us").strip()
        period = _text(_CGROUP / "cpu/cpu.cfs_period_us").strip()
    if not quota.isdecimal() or not period.strip().isdecimal():  # "max", "-1": no limit
        return None
    return int(quota) / int(period)


def _cpu_name_and_isa() -> tuple[str, tuple[str, ...]]:
    text = _text(_PROC / "cpuinfo")
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.M)
    flags = set(" ".join(re.findall(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.M)[:1]).split())
    isa = [flag for flag in _ISA if flag in flags] + [ours for flag, ours in _ARM_ISA.items() if flag in flags]
    if not text and sys.platform == "darwin":
        arm = platform.machine() == "arm64"
        return _command("sysctl", "-n", "machdep.cpu.brand_string") or "unknown", ("neon", "dotprod") if arm else ()
    return name.group(1).strip() if name else platform.processor() or platform.machine(), tuple(isa)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None  # "max" is no limit


def _command(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
