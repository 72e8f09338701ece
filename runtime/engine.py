"""The JIT engine: object files in, addresses of functions out.

One LLVM linker (`LLJIT`) serves the process; each object becomes a library of its own in it, so equal names in
different objects never meet. Code stays loaded as long as its `LoadedModule` lives, and its memory is given
back after.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Mapping
from typing import Any

from flambeau.runtime import abi
from flambeau.runtime.cache import DiskCache


class LinkError(RuntimeError):
    """An object could not be loaded: damaged, for another machine, or it needs a symbol that nobody defines."""


class LoadedModule:
    """Machine code in memory. Addresses are valid while this object lives, so whoever calls keeps it.

    Thread-safe. `size` is the object file's size in bytes.
    """

    __slots__ = ("_tracker", "_addresses", "_engine", "_library", "size", "__weakref__")

    def __init__(
        self, engine: Engine, tracker: Any, library: str, addresses: dict[str, int], size: int
    ) -> None:
        self._engine, self._tracker, self._library = engine, tracker, library
        self._addresses, self.size = addresses, size

    def address(self, name: str) -> int:
        """Address of an external symbol of the object. Raises LinkError if there is none of this name."""
        found = self._addresses.get(name)
        if found is None:
            found = self._addresses[name] = self._engine._lookup(self._library, name)
        return found

    def unload(self) -> None:
        """Frees the code now; no address of it may be used any more. Else it happens with the last reference."""
        if self._tracker is not None:
            tracker, self._tracker = self._tracker, None
            self._addresses = {}
            tracker.close()


class Engine:
    """Loads objects for this machine. `symbols` maps names to addresses that every object may refer to; besides them,
    objects see what the process has loaded (libc, libm). Thread-safe: llvmlite holds a lock of its own.
    """

    def __init__(self, symbols: Mapping[str, int] | None = None) -> None:
        import llvmlite.binding as llvm

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        self._llvm = llvm
        self._jit = llvm.create_lljit_compiler()
        self._symbols = dict(symbols or {})
        self._serial = itertools.count()
        self._native: LoadedModule | None = None
        self._native_lock = threading.Lock()
        #: Keeps what `add_text` compiles, for other processes; None: nothing does.
        self.cache: DiskCache | None = None
        self.triple: str = llvm.get_process_triple()

    def define(self, name: str, address: int) -> None:
        """Lets objects that are added from now on call `name` at `address`."""
        self._symbols[name] = address

    def add_object(
        self, object_code: bytes, *, symbols: Mapping[str, int] | None = None, exports: Iterable[str] = ()
    ) -> LoadedModule:
        """Links an object file of this machine into memory. `symbols` are known to this object only.

        The thread pool's functions are there for objects that name them. `exports` are looked up at once, others at
        `LoadedModule.address`. About 0.2 ms for a small object. Raises LinkError.
        """
        if not object_code:
            raise LinkError("the object file is empty")
        if b"fb_p" in object_code:
            symbols = {**self.native_symbols(), **(symbols or {})}
        builder = self._llvm.JITLibraryBuilder().add_object_img(object_code)
        return self._link(builder, symbols, exports, len(object_code))

    def native(self) -> LoadedModule:
        """The thread pool (`abi.NATIVE_FUNCTIONS`), compiled for this machine at the first call."""
        if self._native is None:
            with self._native_lock:
                if self._native is None:
                    self._native = self._compile_native()
        return self._native

    def native_symbols(self) -> dict[str, int]:
        """Addresses of the native functions by name."""
        native = self.native()
        return {name: native.address(name) for name in abi.NATIVE_FUNCTIONS}

    def _compile_native(self) -> LoadedModule:
        return self.add_text(abi.pool_ir(self.triple, abi.EXTERNAL), None, abi.NATIVE_FUNCTIONS)

    def add_text(
        self, text: str, symbols: Mapping[str, int] | None = None, exports: Iterable[str] = ()
    ) -> LoadedModule:
        """Compiles LLVM IR for this machine and links it, see `add_object`. Code generation only: the text is written as
        the optimiser would leave it."""
        llvm, cache = self._llvm, self.cache
        cpu, features = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
        key = f"native:{llvm.llvm_version_info}:{self.triple}:{cpu}:{features}:{text}"
        object_code = None if cache is None else cache.get(key)
        if object_code is None:
            module = llvm.parse_assembly(text, llvm.create_context())
            module.verify()
            machine = llvm.Target.from_triple(self.triple).create_target_machine(
                cpu=cpu, features=features, opt=2, reloc="pic", codemodel="default"
            )
            object_code = machine.emit_object(module)
            if cache is not None:
                cache.put(key, object_code)
        builder = llvm.JITLibraryBuilder().add_object_img(object_code)
        return self._link(builder, symbols, exports, len(object_code))

    def _link(
        self, builder: Any, symbols: Mapping[str, int] | None, exports: Iterable[str], size: int
    ) -> LoadedModule:
        for name, address in {**self._symbols, **(symbols or {})}.items():
            builder.import_symbol(name, address)
        builder.add_current_process()
        names = tuple(exports)
        for name in names:
            builder.export_symbol(name)
        library = f"module{next(self._serial)}"
        try:
            tracker = builder.link(self._jit, library)
        except RuntimeError as error:
            raise LinkError(f"cannot load the object ({size} bytes): {str(error).strip()}") from None
        return LoadedModule(self, tracker, library, {name: tracker[name] for name in names}, size)

    def _lookup(self, library: str, name: str) -> int:
        try:
            tracker = self._jit.lookup(library, name)
        except RuntimeError as error:
            raise LinkError(f"symbol {name!r}: {str(error).strip()}") from None
        address: int = tracker[name]
        tracker.detach()  # disposing of a lookup's tracker would unload the library it looked into
        return address


_default: Engine | None = None
_default_lock = threading.Lock()


def default_engine() -> Engine:
    """The process's engine, made on first use."""
    global _default
    if _default is None:
        with _default_lock:
            if _default is None:
                _default = Engine()
    return _default
