"""Loading and unloading machine code."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
import weakref
from pathlib import Path

import pytest

from flambeau.compiler.targets.machine import emit_object, host_target
from flambeau.runtime.cache import DiskCache
from flambeau.runtime.engine import Engine, LinkError, default_engine
from tests.runtime.native import load

NEEDS_NOBODY = """
declare void @nobody()
define void @f() {
  call void @nobody()
  ret void
}
"""


def _returns(value: int) -> str:
    return f"""
@value = internal constant i32 {value}
define i32 @get() {{
  %v = load volatile i32, ptr @value
  ret i32 %v
}}
"""


def _call(address: int) -> int:
    return int(ctypes.CFUNCTYPE(ctypes.c_int)(address)())


def test_equal_names_in_different_objects_do_not_meet() -> None:
    modules = [load(_returns(value)) for value in range(5)]
    assert [_call(module.address("get")) for module in modules] == [0, 1, 2, 3, 4]


def test_address_is_stable_with_and_without_exports() -> None:
    module = load(_returns(3), exports=["get"])
    assert module.address("get") == module.address("get")
    late = load(_returns(4))
    first = late.address("get")
    gc.collect()
    assert late.address("get") == first and _call(first) == 4


def test_objects_see_libm_and_given_symbols() -> None:
    callback = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_double)(lambda x: x + 0.5)
    address = ctypes.cast(callback, ctypes.c_void_p).value
    assert address is not None
    code = emit_object(
        "declare double @cbrt(double)\ndeclare double @given(double)\n"
        "define double @f(double %x) {\n  %r = call double @cbrt(double %x)\n  %s = call double @given(double %r)\n"
        "  ret double %s\n}",
        host_target(),
    )
    module = default_engine().add_object(code, symbols={"given": address})
    assert ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_double)(module.address("f"))(27.0) == pytest.approx(3.5)


def test_defined_symbols_serve_later_objects() -> None:
    engine = Engine()
    inner = engine.add_object(emit_object("define i32 @inner() {\n  ret i32 5\n}", host_target()))
    engine.define("inner", inner.address("inner"))
    outer = engine.add_object(
        emit_object(
            "declare i32 @inner()\ndefine i32 @f() {\n  %r = call i32 @inner()\n  ret i32 %r\n}",
            host_target(),
        )
    )
    assert _call(outer.address("f")) == 5


def test_errors_name_what_is_wrong() -> None:
    code = emit_object(_returns(1), host_target())
    with pytest.raises(LinkError, match="nothing_of_this_name"):
        load(_returns(1)).address("nothing_of_this_name")
    for damaged in (b"", b"rubbish" * 100, code[:200]):
        with pytest.raises(LinkError):
            default_engine().add_object(damaged, exports=["get"])
    missing = emit_object(NEEDS_NOBODY, host_target())
    with pytest.raises(LinkError):
        default_engine().add_object(missing, exports=["f"])
    module = load(_returns(9))
    assert _call(module.address("get")) == 9  # the engine survives them


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_many_modules_come_and_go_without_leaking() -> None:
    code = emit_object(_returns(7) + "@big = constant [262144 x i8] zeroinitializer\n", host_target())
    engine = default_engine()

    def cycle(times: int) -> None:
        for _ in range(times):
            module = engine.add_object(code, exports=["get"])
            assert _call(module.address("get")) == 7

    cycle(50)
    gc.collect()
    before = _resident()
    cycle(400)
    gc.collect()
    assert _resident() - before < 16 << 20  # 400 leaked modules would be 100 MiB


def test_unload_and_last_reference() -> None:
    module = load(_returns(1))
    module.unload()
    module.unload()  # twice is harmless
    gone = weakref.ref(load(_returns(2)))
    gc.collect()
    assert gone() is None


def test_loading_from_several_threads() -> None:
    results: list[int] = []

    def work(start: int) -> None:
        for value in range(start, start + 10):
            module = load(_returns(value))
            results.append(_call(module.address("get")) - value)

    workers = [threading.Thread(target=work, args=(100 * k,)) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert results == [0] * 40


def test_text_is_compiled_once_for_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine()
    engine.cache = DiskCache(tmp_path)
    text = f'target triple = "{engine.triple}"\n{_returns(7)}'
    first = engine.add_text(text, exports=["get"])
    assert _call(first.address("get")) == 7 and engine.cache.stats().entries == 1
    monkeypatch.setattr(engine._llvm, "parse_assembly", None)
    again = engine.add_text(text, exports=["get"])
    assert _call(again.address("get")) == 7
    with pytest.raises(TypeError):
        engine.add_text(text.replace("7", "8"))
