"""The disk cache: what is damaged is a miss, what is written is whole, and it stays within its bound."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flambeau.runtime.cache import DiskCache, default_cache_dir


@pytest.fixture
def cache(tmp_path: Path) -> DiskCache:
    return DiskCache(tmp_path / "cache", 1 << 20)


def _files(cache: DiskCache) -> list[Path]:
    return sorted(path for path in cache.path.rglob("*") if path.is_file())


def test_round_trip(cache: DiskCache) -> None:
    for key, data in {
        "a": b"one",
        "": b"",
        "long " * 1000: os.urandom(10_000),
        "naïve/../key": b"\0",
    }.items():
        assert cache.get(key) is None
        assert cache.put(key, data)
        assert cache.get(key) == data
        assert cache.put(key, data + b"!")
        assert DiskCache(cache.path).get(key) == data + b"!"
    stats = cache.stats()
    assert (stats.entries, stats.hits, stats.misses, stats.corrupted) == (4, 4, 4, 0)
    assert stats.nbytes == sum(path.stat().st_size for path in _files(cache))


def test_any_flipped_bit_is_a_miss(cache: DiskCache) -> None:
    cache.put("key", b"some machine code")
    (file,) = _files(cache)
    whole = file.read_bytes()
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        file.write_bytes(damaged)
        assert cache.get("key") is None, position
        assert not file.exists()
    assert cache.stats().corrupted == len(whole)
    cache.put("key", b"some machine code")
    assert cache.get("key") == b"some machine code"


@pytest.mark.parametrize("keep", [0, 1, 47, 48, 50])
def test_truncated_entry_is_a_miss(cache: DiskCache, keep: int) -> None:
    cache.put("key", b"some machine code")
    (file,) = _files(cache)
    file.write_bytes(file.read_bytes()[:keep])
    assert cache.get("key") is None and not file.exists()


def test_longer_entry_and_entry_of_another_key_are_misses(cache: DiskCache) -> None:
    cache.put("one", b"1")
    (one,) = _files(cache)
    content = one.read_bytes()
    one.write_bytes(content + b"x")
    assert cache.get("one") is None
    cache.put("two", b"2")
    (two,) = _files(cache)
    two.write_bytes(content)
    assert cache.get("two") is None


def test_bound_evicts_the_least_recently_used(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 100_000)
    start = time.time() - 1000
    for number in range(40):
        assert cache.put(f"key{number}", bytes([number]) * 10_000)
        cache.get("key0")
        for age, file in enumerate(sorted(_files(cache), key=lambda path: path.stat().st_mtime)):
            os.utime(file, (start + 10 * number + age / 100,) * 2)  # coarse clocks must not decide this test
    stats = cache.stats()
    assert stats.nbytes <= 110_000 and stats.evicted >= 28
    assert cache.get("key39") is not None and cache.get("key1") is None
    assert cache.get("key0") is not None  # the oldest, but used all the time


def test_entry_beyond_the_bound_is_not_kept(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 1000)
    assert not cache.put("key", b"x" * 1000)
    assert cache.stats().entries == 0
    with pytest.raises(ValueError, match="max_bytes"):
        DiskCache(tmp_path, 0)


def test_clear_and_remove_leave_foreign_files(cache: DiskCache) -> None:
    cache.put("a", b"1")
    cache.put("b", b"2")
    foreign = cache.path / "notes.txt"
    foreign.write_text("mine")
    cache.remove("a")
    assert cache.get("a") is None and cache.get("b") == b"2"
    cache.clear()
    assert cache.stats().entries == 0 and foreign.read_text() == "mine"


def test_abandoned_temporary_files_are_removed(cache: DiskCache) -> None:
    cache.put("a", b"1")
    (file,) = _files(cache)
    fresh, stale = file.with_name(file.name + ".1-aa.tmp"), file.with_name(file.name + ".2-bb.tmp")
    for path in (fresh, stale):
        path.write_bytes(b"half an en")
    os.utime(stale, (time.time() - 7200,) * 2)
    cache.stats()
    assert fresh.exists() and not stale.exists()


def test_directory_that_cannot_be_made(tmp_path: Path) -> None:
    """A file is in the way: works as root too, for whom no directory is read-only."""
    (tmp_path / "file").write_text("")
    cache = DiskCache(tmp_path / "file" / "cache")
    assert not cache.put("key", b"data")
    assert cache.get("key") is None
    assert cache.stats().entries == 0
    cache.clear()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_directory_still_reads(cache: DiskCache) -> None:
    cache.put("key", b"data")
    folders = [cache.path, *(path for path in cache.path.iterdir() if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        again = DiskCache(cache.path)
        assert again.get("key") == b"data"
        assert not again.put("key", b"other") and not again.stats().writable
    finally:
        for folder in folders:
            folder.chmod(0o755)


_WORKER = """
import sys
from flambeau.runtime.cache import DiskCache
cache = DiskCache(sys.argv[1], 60_000)
wrong = hits = 0
for turn in range(300):
    key = str(turn % 20)
    data = cache.get(key)
    if data is None:
        cache.put(key, key.encode() * 2000)
    else:
        hits += 1
        wrong += data != key.encode() * 2000
print(wrong, cache.stats().corrupted, hits > 0)
"""


def test_many_processes_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _WORKER, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for process in processes:
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0 and out.split() == ["0", "0", "True"]
    assert DiskCache(tmp_path).stats().nbytes <= 70_000


def test_default_directory_is_absolute_and_ours() -> None:
    assert default_cache_dir().is_absolute() and "flambeau" in str(default_cache_dir())
