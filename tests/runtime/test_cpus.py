"""CPU limits of Linux's control groups, read from files like the system's."""

from __future__ import annotations

from pathlib import Path

import pytest

from flambeau.runtime import cpus


def _write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_max", ".max").replace("cpu_cfs", "cpu.cfs")).write_text(text)


def _quota(tmp_path: Path, membership: str) -> float | None:
    file = tmp_path / "membership"
    file.write_text(membership)
    return cpus.quota(tmp_path, file)


def test_the_tightest_group_around_the_process_counts(tmp_path: Path) -> None:
    _write(tmp_path, cpu_max="max 100000\n")
    _write(tmp_path / "outer", cpu_max="150000 100000\n")
    _write(tmp_path / "outer" / "inner", cpu_max="400000 100000\n")
    _write(tmp_path / "other", cpu_max="1000 100000\n")
    assert _quota(tmp_path, "0::/outer/inner\n") == 1.5
    assert _quota(tmp_path, "0::/\n") is None


def test_a_container_reads_what_it_sees_as_the_root(tmp_path: Path) -> None:
    _write(tmp_path, cpu_max="200000 100000\n")
    assert _quota(tmp_path, "0::/kubepods/pod1/not-mounted-here\n") == 2


def test_version_one(tmp_path: Path) -> None:
    group = tmp_path / "cpu" / "docker" / "abc"
    _write(group, cpu_cfs_quota_us="50000\n", cpu_cfs_period_us="100000\n")
    _write(tmp_path / "cpu", cpu_cfs_quota_us="-1\n", cpu_cfs_period_us="100000\n")
    assert _quota(tmp_path, "5:cpuset:/\n4:cpu,cpuacct:/docker/abc\n0::/\n") == 0.5
    assert _quota(tmp_path, "4:cpu,cpuacct:/\n") is None


def test_no_control_groups(tmp_path: Path) -> None:
    assert cpus.quota(tmp_path, tmp_path / "absent") is None
    assert _quota(tmp_path, "0::/somewhere\n") is None


@pytest.mark.parametrize(("limit", "expected"), [(None, None), (0.5, 1), (1.5, 2), (1000.0, None)])
def test_threads_stay_within_the_limit(
    monkeypatch: pytest.MonkeyPatch, limit: float | None, expected: int | None
) -> None:
    monkeypatch.setattr(cpus, "quota", lambda: None)
    unlimited = cpus.available_cpus()
    monkeypatch.setattr(cpus, "quota", lambda: limit)
    assert cpus.available_cpus() == (unlimited if expected is None else min(expected, unlimited))
