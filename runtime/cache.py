"""A cache of bytes on disk: content-addressed, atomic, checksummed, bounded, for many processes at once.

Entries are files `ab/abcdef….fbc` named by the hash of their key: a 48-byte header (magic, version, length, BLAKE2b
checksum of the key and the data), then the data. A file is written under a temporary name and renamed, so a reader sees
a whole entry or none; whatever else is there (cut short, flipped bits, another format) is a miss and is
removed. Nothing here raises for the disk's sake: a directory that cannot be read or written makes a cache that
misses.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import struct
import time
from dataclasses import dataclass
from pathlib import Path

import platformdirs

_MAGIC = b"FLBCACHE"
_VERSION = 1
_HEADER = struct.Struct("<8sIIQ24s")  # magic, version, reserved, length, checksum
_SUFFIX = ".fbc"
_STALE_SECONDS = 3600.0  # a temporary file this old was left by a process that died
_TRIM_TO = 0.8  # eviction goes below the bound, so that not every `put` evicts


@dataclass(frozen=True)
class CacheStats:
    """What is on disk (`entries`, `nbytes`), and what this object has seen since it was made."""

    entries: int
    nbytes: int
    hits: int
    misses: int
    corrupted: int
    evicted: int
    writable: bool


def default_cache_dir() -> Path:
    """The user's cache directory for Flambeau, by the platform's rules."""
    return Path(platformdirs.user_cache_dir("flambeau", appauthor=False))


class DiskCache:
    """Keys are strings (any length), values are bytes. At most about `max_bytes` are kept; the least recently used go.

    The bound is checked when this process has written a sixteenth of it, and at the first write.
    """

    def __init__(self, path: str | os.PathLike[str], max_bytes: int = 1 << 30) -> None:
        if max_bytes <= 0:
            raise ValueError(f"DiskCache: expected max_bytes > 0, got {max_bytes}")
        self.path = Path(path)
        self.max_bytes = max_bytes
        self._unchecked: int | None = None  # bytes written since the last check; None: never checked
        self._writable = True
        self._hits = self._misses = self._corrupted = self._evicted = 0

    def get(self, key: str) -> bytes | None:
        """The value stored under `key`, or None. A damaged entry is removed and counts as a miss."""
        file = self._file(key)
        try:
            content = file.read_bytes()
        except OSError:
            self._misses += 1
            return None
        data = _unseal(key, content)
        if data is None:
            self._misses += 1
            self._corrupted += 1
            _remove(file)
            return None
        self._hits += 1
        try:
            os.utime(file)  # "recently used" is the modification time: access times are often switched off
        except OSError:
            pass
        return data

    def put(self, key: str, data: bytes) -> bool:
        """Stores `data`; returns whether it is on disk now: False on a read-only or full disk, or beyond the bound."""
        if not self._writable or _HEADER.size + len(data) > self.max_bytes:
            return False
        file = self._file(key)
        temporary = file.with_name(f"{file.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "xb") as stream:
                stream.write(_seal(key, data))
            os.replace(temporary, file)
        except OSError as error:
            _remove(temporary)
            # A directory that may not be written stays so; a full disk may recover.
            self._writable = not isinstance(error, PermissionError) and error.errno != errno.EROFS
            return False
        written = _HEADER.size + len(data)
        if self._unchecked is None or self._unchecked + written > self.max_bytes // 16:
            self._evict()
        else:
            self._unchecked += written
        return True

    def remove(self, key: str) -> None:
        """Forgets `key` if it is there."""
        _remove(self._file(key))

    def clear(self) -> None:
        """Removes every entry, and temporary files; other files in the directory stay."""
        for file, _, _ in self._entries(stale_after=0.0):
            _remove(file)

    def stats(self) -> CacheStats:
        """Counts the entries on disk (reads the directory) and this object's hits and misses."""
        sizes = [size for _, size, _ in self._entries()]
        return CacheStats(
            entries=len(sizes),
            nbytes=sum(sizes),
            hits=self._hits,
            misses=self._misses,
            corrupted=self._corrupted,
            evicted=self._evicted,
            writable=self._writable,
        )

    def _file(self, key: str) -> Path:
        name = hashlib.blake2b(key.encode(), digest_size=20).hexdigest()
        return self.path / name[:2] / (name + _SUFFIX)

    def _entries(self, stale_after: float = _STALE_SECONDS) -> list[tuple[Path, int, float]]:
        """(file, size, time of last use) of every entry; removes temporary files that nobody will rename any more."""
        found = []
        oldest = time.time() - stale_after
        try:
            folders = [
                entry.path for entry in os.scandir(self.path) if len(entry.name) == 2 and entry.is_dir()
            ]
        except OSError:
            return []
        for folder in folders:
            try:
                for entry in os.scandir(folder):
                    status = entry.stat()
                    if entry.name.endswith(_SUFFIX):
                        found.append((Path(entry.path), status.st_size, status.st_mtime))
                    elif entry.name.endswith(".tmp") and _SUFFIX in entry.name and status.st_mtime <= oldest:
                        _remove(Path(entry.path))
            except OSError:  # removed by another process meanwhile
                continue
        return found

    def _evict(self) -> None:
        self._unchecked = 0
        entries = self._entries()
        total = sum(size for _, size, _ in entries)
        if total <= self.max_bytes:
            return
        entries.sort(key=lambda entry: entry[2])
        for file, size, _ in entries[:-1]:  # never the newest: it is the one just written
            if total <= self.max_bytes * _TRIM_TO:
                break
            _remove(file)
            total -= size
            self._evicted += 1


def _checksum(key: str, data: bytes) -> bytes:
    # The key is hashed too: an entry under the wrong name is as damaged as one with wrong bytes.
    digest = hashlib.blake2b(data, digest_size=24, key=hashlib.blake2b(key.encode(), digest_size=32).digest())
    return digest.digest()


def _seal(key: str, data: bytes) -> bytes:
    return _HEADER.pack(_MAGIC, _VERSION, 0, len(data), _checksum(key, data)) + data


def _unseal(key: str, content: bytes) -> bytes | None:
    if len(content) < _HEADER.size:
        return None
    magic, version, reserved, length, checksum = _HEADER.unpack_from(content)
    data = content[_HEADER.size :]
    if (magic, version, reserved, length) != (_MAGIC, _VERSION, 0, len(data)):
        return None
    return data if checksum == _checksum(key, data) else None


def _remove(file: Path) -> None:
    try:
        file.unlink()
    except OSError:
        pass
