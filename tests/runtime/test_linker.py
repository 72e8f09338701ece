"""Shared libraries and archives, with the system's linker and with zig's."""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flambeau.compiler.targets.machine import cross_target, emit_object, host_target
from flambeau.runtime import abi, linker
from flambeau.runtime.linker import LinkerError, archive_static, library_name, link_shared

# out[i] = 2 * i for i < n, in parallel on two threads of the library's own
LIBRARY = """
declare ptr @fb_pool_create(i32)
declare void @fb_pool_destroy(ptr)
declare void @fb_parallel_for(ptr, ptr, ptr, i64)
define hidden void @body(ptr %out, i64 %begin, i64 %end, i64 %worker) {
entry:
  br label %loop
loop:
  %i = phi i64 [ %begin, %entry ], [ %next, %loop ]
  %p = getelementptr i64, ptr %out, i64 %i
  %v = mul i64 %i, 2
  store i64 %v, ptr %p
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, %end
  br i1 %more, label %loop, label %exit
exit:
  ret void
}
define void @model_run(ptr %out, i64 %n) {
  %pool = call ptr @fb_pool_create(i32 2)
  call void @fb_parallel_for(ptr %pool, ptr @body, ptr %out, i64 %n)
  call void @fb_pool_destroy(ptr %pool)
  ret void
}
define void @not_exported() {
  ret void
}
"""
# libm is needed here, and must be recorded in the library.
MATHS = """
declare double @cbrt(double)
define double @root(double %x) {
  %r = call double @cbrt(double %x)
  ret double %r
}
"""
USES_MATHS = MATHS.replace("@root", "@use").replace("@cbrt", "@root")
NEEDS_NOBODY = """
declare void @nobody()
define void @f() {
  call void @nobody()
  ret void
}
"""

needs_cc = pytest.mark.skipif(linker._system_driver() is None, reason="needs a C compiler")
needs_zig = pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="needs ziglang")
linkers = pytest.mark.parametrize(
    "kind", [pytest.param("system", marks=needs_cc), pytest.param("zig", marks=needs_zig)]
)
only_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ELF")


def _object(text: str) -> bytes:
    host = host_target()
    return emit_object(text, host, link=[abi.pool_ir(host.triple)])


@linkers
def test_library_runs_and_shows_only_its_exports(kind: linker.Linker, tmp_path: Path) -> None:
    path = link_shared(
        [_object(LIBRARY)], tmp_path / "deep" / library_name("model"), exports=["model_run"], linker=kind
    )
    library = ctypes.CDLL(str(path))
    out = np.zeros(1000, np.int64)
    library.model_run(ctypes.c_void_p(out.ctypes.data), ctypes.c_int64(1000))
    assert out.tolist() == list(range(0, 2000, 2))
    for hidden in ("not_exported", "body", "fb_parallel_for", "fb_pool_create"):
        assert not hasattr(library, hidden)
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # nothing temporary is left


@only_linux
@linkers
@pytest.mark.skipif(shutil.which("nm") is None or shutil.which("readelf") is None, reason="needs binutils")
def test_symbols_and_needed_libraries(kind: linker.Linker, tmp_path: Path) -> None:
    path = link_shared(
        [_object(LIBRARY)], tmp_path / "m.so", soname="m.so.1", exports=["model_run"], linker=kind
    )
    symbols = subprocess.run(["nm", "-D", path], capture_output=True, text=True, check=True).stdout
    defined = [line.split()[-1] for line in symbols.splitlines() if line.split()[-2] in "TDBRVW"]
    assert defined == ["model_run"]
    undefined = {line.split()[-1].split("@")[0] for line in symbols.splitlines() if line.split()[-2] == "U"}
    allowed = (
        "pthread_",
        "posix_memalign",
        "free",
        "getpid",
        "memset",
        "sigfillset",
        "sched_",
        "clock_gettime",
    )
    assert all(name.startswith(allowed) for name in undefined), undefined
    dynamic = subprocess.run(["readelf", "-dlW", path], capture_output=True, text=True, check=True).stdout
    needed = [line.split("[")[1].rstrip("]") for line in dynamic.splitlines() if "(NEEDED)" in line]
    assert [name.split(".")[0] for name in needed] == ["libc"]
    assert "[m.so.1]" in dynamic and "BIND_NOW" in dynamic and "GNU_RELRO" in dynamic
    stack = next(line for line in dynamic.splitlines() if "GNU_STACK" in line)
    assert "RWE" not in stack


@only_linux
@linkers
def test_libm_is_recorded_where_it_is_used(kind: linker.Linker, tmp_path: Path) -> None:
    path = link_shared([_object(MATHS)], tmp_path / "m.so", exports=["root"], linker=kind)
    assert b"libm.so" in path.read_bytes()
    root = ctypes.CDLL(str(path)).root
    root.restype, root.argtypes = ctypes.c_double, [ctypes.c_double]
    assert root(27.0) == pytest.approx(3.0)


@linkers
def test_failure_leaves_no_file_and_shows_the_linkers_words(kind: linker.Linker, tmp_path: Path) -> None:
    with pytest.raises(LinkerError, match=r"linking bad\.so failed"):
        link_shared([b"not an object"], tmp_path / "bad.so", exports=["f"], linker=kind)
    missing = emit_object(NEEDS_NOBODY, host_target())
    with pytest.raises(LinkerError, match="nobody"):
        link_shared([missing], tmp_path / "bad.so", exports=["f"], linker=kind)
    assert list(tmp_path.iterdir()) == []


@linkers
def test_failure_keeps_the_previous_library(kind: linker.Linker, tmp_path: Path) -> None:
    path = link_shared([_object(LIBRARY)], tmp_path / "m.so", exports=["model_run"], linker=kind)
    before = path.read_bytes()
    with pytest.raises(LinkerError):
        link_shared([b"not an object"], path, exports=["model_run"], linker=kind)
    assert path.read_bytes() == before


def test_no_linker_names_both_remedies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linker, "_system_driver", lambda: None)
    monkeypatch.setattr(linker, "_has_zig", lambda: False)
    with pytest.raises(LinkerError, match=r"(?s)no linker found.*C compiler.*flambeau\[cross\]"):
        link_shared([b"x"], tmp_path / "m.so", exports=["f"])
    with pytest.raises(LinkerError, match="not for riscv64"):
        link_shared(
            [b"x"], tmp_path / "m.so", exports=["f"], target_triple="riscv64-linux-gnu", linker="system"
        )
    with pytest.raises(ValueError, match="at least one name"):
        link_shared([b"x"], tmp_path / "m.so", exports=[])


@linkers
def test_static_archive_links_into_a_library(kind: linker.Linker, tmp_path: Path) -> None:
    second = tmp_path / "second.o"
    second.write_bytes(_object(MATHS))
    archive = archive_static([_object(LIBRARY), second], tmp_path / "libmodel.a", linker=kind)
    assert archive.read_bytes().startswith(b"!<arch>\n")
    path = link_shared([_object(USES_MATHS), archive], tmp_path / "use.so", exports=["use"], linker=kind)
    use = ctypes.CDLL(str(path)).use
    use.restype, use.argtypes = ctypes.c_double, [ctypes.c_double]
    assert use(8.0) == pytest.approx(2.0)


@needs_zig
@pytest.mark.slow  # zig builds each target's C library stubs once
@pytest.mark.parametrize(
    ("triple", "magic"),
    [
        ("aarch64-linux-gnu", b"\x7fELF"),
        ("x86_64-linux-musl", b"\x7fELF"),
        ("riscv64-linux-gnu", b"\x7fELF"),
        ("x86_64-windows-gnu", b"MZ"),
        ("aarch64-macos", b"\xcf\xfa\xed\xfe"),
        ("wasm32-unknown-unknown", b"\0asm"),
    ],
)
def test_cross_linking(triple: str, magic: bytes, tmp_path: Path) -> None:
    target = cross_target(triple)
    code = emit_object(LIBRARY, target, link=[abi.pool_ir(target.triple)])
    path = link_shared(
        [code], tmp_path / library_name("m", triple), exports=["model_run"], target_triple=target.triple
    )
    content = path.read_bytes()
    assert content.startswith(magic) and b"model_run" in content


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("x86_64-unknown-linux-gnu", "x86_64-linux-gnu"),
        ("x86_64-pc-windows-msvc", "x86_64-windows-gnu"),
        ("arm64-apple-macosx11.0", "aarch64-macos"),
        ("arm64-apple-darwin23", "aarch64-macos"),
        ("wasm32-unknown-unknown", "wasm32-freestanding"),
        ("x86_64-linux-gnu.2.17", "x86_64-linux-gnu.2.17"),
    ],
)
def test_zig_triples(given: str, expected: str) -> None:
    assert linker._zig_triple(given) == expected
