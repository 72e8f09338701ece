"""How many CPUs this process may use: its affinity, and the limits of the control groups that it is in."""

from __future__ import annotations

import os
from math import ceil
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def available_cpus() -> int:
    """CPUs that this process may run on at a time: those of its affinity, but no more than its control groups
    let it use in the long run, rounded up."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    limit = quota()
    return count if limit is None else max(1, min(count, ceil(limit)))


def quota(groups: Path = _GROUPS, membership: Path = _MEMBERSHIP) -> float | None:
    """CPU time per time that Linux's control groups allow, the tightest of the process's own and those around it; None
    without a limit. Version 2 says it in `cpu.max`, version 1 in `cpu.cfs_quota_us` and `cpu.cfs_period_us`.

    A container sees its own group as the root, and a path that is not there: then the root is read.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    limits = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, read = groups, _unified
        elif "cpu" in controllers.split(","):
            root, read = groups / "cpu", _legacy
        else:
            continue
        group = root / path.strip("/")
        limits += [read(folder) for folder in (group, *group.parents) if folder.is_relative_to(root)]
    return min((limit for limit in limits if limit is not None), default=None)


def _unified(folder: Path) -> float | None:
    try:
        allowed, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if allowed == "max" else int(allowed) / int(period)


def _legacy(folder: Path) -> float | None:
    try:
        allowed = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return None if allowed <= 0 else allowed / period
