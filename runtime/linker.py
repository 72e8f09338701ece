"""Object files → shared libraries and static archives, for this machine or any other.

For this machine the system's C compiler driver is used as a linker if there is one; else, and for every other target,
the one inside the `ziglang` package (`pip install flambeau[cross]`), which brings lld and the C libraries of
all targets.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal

Linker = Literal["auto", "system", "zig"]
#: An object file: its path, its content, or a function that writes its content to a stream.
ObjectFile = str | os.PathLike[str] | bytes | Callable[[BinaryIO], None]

_REMEDIES = (
    "Two remedies: install a C compiler (Debian, Ubuntu: `apt install gcc`; macOS: `xcode-select --install`), "
    "or `pip install flambeau[cross]`, which brings a linker for every target as a Python package."
)
_SECONDS = 600  # zig builds the target's C library stubs the first time


class LinkerError(RuntimeError):
    """No linker, or the linker failed; the message has its output or the remedies."""


def link_shared(
    objects: Sequence[ObjectFile],
    output: str | os.PathLike[str],
    *,
    soname: str | None = None,
    exports: Iterable[str],
    target_triple: str | None = None,
    linker: Linker = "auto",
    libraries: Iterable[str] = (),
    strip: bool = True,
) -> Path:
    """Links object files into a shared library; returns its path.

    Only `exports` are visible. libm is linked if an object needs something from it, libc always; the result needs
    no other library but `libraries`. `output` appears whole or not at all. Raises LinkerError, or ValueError
    if there is nothing to export.
    """
    names = tuple(exports)
    if not names:
        raise ValueError("link_shared: expected at least one name to export, got none")
    output = Path(output)
    triple = target_triple or _host_triple()
    driver = _driver(linker, target_triple)
    with _work_folder(output) as work:
        files = _as_files(objects, work)
        result = work / output.name
        flags = _flags(
            triple, result, soname or output.name, names, work, strip, zig=driver[0] == sys.executable
        )
        command = [*driver, *flags, *map(str, files), *(f"-l{name}" for name in libraries)]
        if "windows" not in triple and "wasm" not in triple:
            command.append("-lm")  # under --as-needed: recorded only if something of it is used
        _run(command, output)
        _publish(result, output)
    return output


def archive_static(
    objects: Sequence[ObjectFile],
    output: str | os.PathLike[str],
    *,
    target_triple: str | None = None,
    linker: Linker = "auto",
) -> Path:
    """Packs object files into a static archive with a symbol index; returns its path. Raises LinkerError."""
    output = Path(output)
    archiver = _archiver(linker, target_triple)
    with _work_folder(output) as work:
        files = _as_files(objects, work)
        result = work / output.name
        _run([*archiver, "rcs", str(result), *map(str, files)], output)
        _publish(result, output)
    return output


def driver_for(target_triple: str | None = None) -> list[str]:
    """The command that would link for a target (this machine if None). Raises LinkerError if there is none."""
    return _driver("auto", target_triple)


def library_name(stem: str, target_triple: str | None = None) -> str:
    """The file name of a shared library on a target: "model.so", "model.dylib", "model.dll", "model.wasm"."""
    triple = target_triple or _host_triple()
    if "windows" in triple:
        return f"{stem}.dll"
    if _is_apple(triple):
        return f"{stem}.dylib"
    return f"{stem}.wasm" if "wasm" in triple else f"{stem}.so"


def _flags(
    triple: str, result: Path, soname: str, exports: Sequence[str], work: Path, strip: bool, zig: bool
) -> list[str]:
    base = ["-shared", "-o", str(result)]
    if "wasm" in triple:
        # A reactor: no entry point, the exported functions only; what is undefined (memcpy, say) becomes an import.
        base = ["--no-entry", "--allow-undefined", "-o", str(result)]
        return base + [f"--export={name}" for name in exports] + (["--strip-all"] if strip else [])
    if _is_apple(triple):
        # zig's linker for macOS has no export list: there, hidden visibility in the object has to do.
        visible = [] if zig else [f"-Wl,-exported_symbol,_{name}" for name in exports]
        return [*base, f"-Wl,-install_name,@rpath/{soname}", *visible]
    if "windows" in triple:
        definitions = work / "exports.def"
        definitions.write_text("EXPORTS\n" + "".join(f"  {name}\n" for name in exports))
        return [*base, str(definitions)]
    script = work / "exports.map"
    script.write_text("{ global: " + " ".join(f"{name};" for name in exports) + " local: *; };\n")
    hardening = ["-Wl,-z,noexecstack", "-Wl,-z,relro", "-Wl,-z,now", "-Wl,-z,defs"]
    base += [
        f"-Wl,-soname,{soname}",
        f"-Wl,--version-script={script}",
        "-Wl,--as-needed",
        "-Wl,--gc-sections",
    ]
    return base + hardening + (["-Wl,--strip-all"] if strip else [])


def _driver(linker: Linker, target_triple: str | None) -> list[str]:
    foreign = target_triple is not None and not _is_host(target_triple)
    if linker == "system" and foreign:
        raise LinkerError(
            f"the system's linker makes code for {_host_triple()} only, not for {target_triple}"
        )
    if linker != "zig" and not foreign:
        found = _system_driver()
        if found:
            return found
    if linker != "system" and _has_zig():
        if target_triple is not None and "wasm" in target_triple:
            return [sys.executable, "-m", "ziglang", "wasm-ld"]
        zig = [sys.executable, "-m", "ziglang", "cc"]
        return [*zig, "-target", _zig_triple(target_triple)] if target_triple is not None else zig
    target = f" for {target_triple}" if target_triple else ""
    wanted = {"auto": "no linker", "system": "no C compiler (cc, gcc, clang)", "zig": "no ziglang package"}
    raise LinkerError(f"{wanted[linker]} found to link a library{target}. {_REMEDIES}")


def _archiver(linker: Linker, target_triple: str | None) -> list[str]:
    foreign = target_triple is not None and not _is_host(target_triple)
    if linker != "zig" and not foreign:
        found = shutil.which("ar")
        if found:
            return [found]
    if linker != "system" and _has_zig():
        return [sys.executable, "-m", "ziglang", "ar"]
    raise LinkerError(f"no archiver (ar) found. {_REMEDIES}")


def _system_driver() -> list[str] | None:
    for name in ("cc", "gcc", "clang"):
        found = shutil.which(name)
        if found:
            return [found]
    return None


def _has_zig() -> bool:
    return importlib.util.find_spec("ziglang") is not None


def _host_triple() -> str:
    machine = os.uname().machine if hasattr(os, "uname") else "x86_64"
    system = {"darwin": "macos", "win32": "windows"}.get(sys.platform, "linux")
    return f"{machine}-{system}"


def _is_apple(triple: str) -> bool:
    return "darwin" in triple or "macos" in triple or "ios" in triple


def _is_host(triple: str) -> bool:
    """Whether a triple means this machine's architecture, system and C library."""
    ours, theirs = _zig_triple(_host_triple()).split("-"), _zig_triple(triple).split("-")
    if ours[:2] != theirs[:2]:
        return False
    return "musl" not in triple or _on_musl()


def _on_musl() -> bool:
    return any(Path("/lib").glob("ld-musl-*"))


def _zig_triple(triple: str) -> str:
    """LLVM's triple in zig's spelling, `architecture-system[-abi]`: without vendor and version."""
    parts = triple.lower().split("-")
    architecture = {"arm64": "aarch64", "amd64": "x86_64", "i686": "x86", "i386": "x86"}.get(
        parts[0], parts[0]
    )
    rest = [part for part in parts[1:] if part not in ("unknown", "pc", "apple", "w64", "none", "")]
    system = rest[0] if rest else "freestanding"
    system = re.sub(r"^(darwin|macosx|macos)[\d.]*$", "macos", system)
    if system == "mingw32":
        system = "windows"
    # zig links the GNU flavour without Microsoft's files.
    abi = ["gnu" if part == "msvc" else part for part in rest[1:]]
    return "-".join([architecture, system, *abi])


def _as_files(objects: Sequence[ObjectFile], work: Path) -> list[Path]:
    if not objects:
        raise ValueError("expected at least one object file, got none")
    files = []
    for number, item in enumerate(objects):
        file = work / f"part{number}.o"
        if isinstance(item, bytes):
            file.write_bytes(item)
        elif callable(item):
            with open(file, "wb") as stream:
                item(stream)
        else:
            file = Path(item).resolve()
        files.append(file)
    return files


@contextmanager
def _work_folder(output: Path) -> Iterator[Path]:
    """A folder beside `output`, so that what is made there need only be renamed: libraries with weights are large."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as folder:
        yield Path(folder).resolve()


def _run(command: list[str], output: Path) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, stdin=subprocess.DEVNULL
        )
    except OSError as error:
        raise LinkerError(f"linking {output.name}: cannot start {command[0]}: {error}. {_REMEDIES}") from None
    except subprocess.TimeoutExpired:
        raise LinkerError(f"linking {output.name}: {command[0]} took more than {_SECONDS} s") from None
    if done.returncode != 0:
        detail = (done.stderr or done.stdout).strip()
        raise LinkerError(
            f"linking {output.name} failed (status {done.returncode}):\n{detail}\n{' '.join(command)}"
        )


def _publish(result: Path, output: Path) -> None:
    """Moves a finished file to its place in one step."""
    os.chmod(result, 0o666 & ~_umask() | (result.stat().st_mode & 0o111 & ~_umask()))
    os.replace(result, output)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
