"""Every knob, typed. The only place that reads the environment: each field is set by ``FLAMBEAU_<NAME>``, by
`configure`, or for a while by the context manager `override`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class Options:
    """What users may set.

    - `eager`: evaluate each operation at once, for debugging;
    - `interpret`: run graphs by the operations' NumPy rules instead of compiling them;
    - `debug`: 0 silent, 1 compilations and why, 2 also kernels, 3 also verification between passes, 4 also timings;
    - `dump`: folder that receives the text of every stage ("" for none);
    - `cache_dir`: folder of the persistent cache ("" for the platform's own; "off" for none);
    - `cache_mib`: how much the persistent cache may hold, in MiB; beyond it, what has not been used for longest goes;
    - `num_threads`: threads of parallel loops (0: all that the process may use);
    - `opt_level`: LLVM's optimisation level, 0 to 3. Kernels are vectorised before LLVM sees them, so 1, a short pipeline,
      gives nearly the code of 3 in less than half of the time. A library has the bits of this process only if both were
      compiled at one level: where a sum may be contracted, the levels choose differently;
    - `tune`: measure schedules of contractions instead of computing them (`flambeau.tuning`). Compiling takes seconds a kernel,
      once a machine: the cache keeps what is found. Sums are made in another order, so bits differ from untuned code;
    - `profile`: count each kernel's runs and seconds, and print them when the process ends (`flambeau.profiler`);
    - `cpu`: the CPU whose instructions code of this process may use, by LLVM's name ("haswell", "x86-64-v3"); "": all that this
      machine has. The machine must have what that CPU has;
    - `winograd`: 3 x 3 convolutions may be computed from tiles, with fewer products, where that is faster. Their error is about
      that of direct ones, but an infinity in the input gives NaN.
    """

    eager: bool = False
    interpret: bool = False
    debug: int = 0
    dump: str = ""
    cache_dir: str = ""
    cache_mib: int = 1024
    num_threads: int = 0
    opt_level: int = 1
    tune: bool = False
    profile: bool = False
    cpu: str = ""
    winograd: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.opt_level <= 3:
            raise ValueError(f"opt_level: expected 0 to 3, got {self.opt_level}")
        if self.cache_mib < 1:
            raise ValueError(f"cache_mib: expected at least 1, got {self.cache_mib}")

    @cached_property
    def code(self) -> tuple[Any, ...]:
        """What of these decides which code is made: a part of the key of whatever keeps code."""
        return (self.interpret, self.opt_level, self.tune, self.profile, self.cpu, self.winograd)


def _from_environment() -> Options:
    given: dict[str, Any] = {}
    for field in fields(Options):
        text = os.environ.get(f"FLAMBEAU_{field.name.upper()}")
        if text is not None:
            given[field.name] = _parsed(field.name, str(field.type), text)
    return Options(**given)


def _parsed(name: str, kind: str, text: str) -> Any:
    if kind == "str":
        return text
    if kind == "bool":
        if text.lower() in ("1", "true", "yes", "on"):
            return True
        if text.lower() in ("0", "false", "no", "off", ""):
            return False
        raise ValueError(f"FLAMBEAU_{name.upper()}: expected 0 or 1, got {text!r}")
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"FLAMBEAU_{name.upper()}: expected an integer, got {text!r}") from None


_current = _from_environment()


def current() -> Options:
    """The options in force."""
    return _current


def configure(**changes: Any) -> None:
    """Change options for the rest of the process. TypeError for an unknown name."""
    global _current
    _current = replace(_current, **changes)


@contextmanager
def override(**changes: Any) -> Iterator[Options]:
    """Change options inside the ``with`` block."""
    global _current
    saved = _current
    _current = replace(saved, **changes)
    try:
        yield _current
    finally:
        _current = saved
