"""How many bytes this process has and had resident."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident() -> int:
    """Bytes now; where the system does not tell, the most that there were."""
    return _field("VmRSS") or _most()


def peak() -> int:
    """The most bytes since `reset_peak`, or since the process began where the system cannot reset."""
    return _field("VmHWM") or _most()


def reset_peak() -> None:
    """Linux forgets the peak when 5 is written here (`man 5 proc`)."""
    with suppress(OSError):
        _CLEAR.write_text("5")


def _field(name: str) -> int:
    with suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith(name + ":"):
                return 1024 * int(line.split()[1])
    return 0


def _most() -> int:
    if sys.platform == "win32":
        return 0
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
