"""SOURCE arguments: `file.py:name`, IR text files, and the inputs that go with them."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from flambeau.compiler.diagnostics import FlambeauError
from flambeau.export import Exported, export, from_text

Array = np.ndarray[Any, Any]

LIBRARY_SUFFIXES = (".so", ".dylib", ".dll")
TEXT_SUFFIXES = (".mlir", ".fbir", ".ir")

_DTYPES = {
    "f64": "float64",
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
    "i64": "int64",
    "i32": "int32",
    "i16": "int16",
    "i8": "int8",
    "u8": "uint8",
    "bool": "bool",
    "i1": "bool",
}

#: What a symbolic size is while a function is captured: a number that no other size is likely to be.
_SIZE = 4


class SourceError(RuntimeError):
    """A SOURCE or an input cannot be used; the message says why."""


@dataclass(frozen=True)
class InputSpec:
    """An input's shape (sizes or names of sizes) and NumPy dtype."""

    shape: tuple[int | str, ...]
    dtype: np.dtype[Any]

    @property
    def dynamic(self) -> dict[int, str]:
        return {axis: d for axis, d in enumerate(self.shape) if isinstance(d, str)}

    def random(self, rng: np.random.Generator, sizes: dict[str, int] | None = None) -> Array:
        """Values such as a model may get: normal numbers, small non-negative integers, both truth values."""
        shape = [d if isinstance(d, int) else (sizes or {}).get(d, _SIZE) for d in self.shape]
        if self.dtype.kind == "b":
            return np.asarray(rng.integers(0, 2, shape)).astype(bool)
        if self.dtype.kind in "iu":
            return np.asarray(rng.integers(0, 8, shape)).astype(self.dtype)
        return np.asarray(rng.standard_normal(shape)).astype(self.dtype)


def dtype_named(name: str) -> np.dtype[Any]:
    """A NumPy dtype from f32 or float32."""
    import ml_dtypes

    full = _DTYPES.get(name, name)
    if full not in _DTYPES.values():
        raise click.BadParameter(f"there is no dtype {name!r}; there are {', '.join(_DTYPES)}")
    return np.dtype(ml_dtypes.bfloat16) if full == "bfloat16" else np.dtype(full)


def parse_input(text: str) -> InputSpec:
    """`1x8x8:f32`, `Nx8` (f32), `:i64` (a scalar). BadParameter for anything else."""
    shape, _, kind = text.partition(":")
    parts = shape.split("x") if shape else []
    for part in parts:
        if not re.fullmatch(r"[0-9]+|[A-Z_]\w*", part, re.ASCII):
            raise click.BadParameter(
                f"{text!r}: expected a shape such as 1x8x8:f32 or Nx8:f32 (capital letters name sizes), not {part!r}"
            )
    return InputSpec(tuple(int(p) if p[0].isdigit() else p for p in parts), dtype_named(kind or "f32"))


def input_specs(ctx: click.Context, option: click.Parameter, values: Sequence[str]) -> list[InputSpec]:
    """Callback of `--input` where only shapes make sense."""
    return [parse_input(v) for v in values]


def exported(source: str, inputs: Sequence[InputSpec | Array], name: str | None = None) -> Exported:
    """What SOURCE is, captured with `inputs` or its own `example_inputs`. SourceError if that cannot be."""
    if source.endswith(LIBRARY_SUFFIXES):
        raise SourceError(f"{source} is a library already; expected file.py:name or an IR text file")
    path, colon, attribute = _split(source)
    if not path.is_file():
        raise SourceError(f"{path}: no such file")
    if path.suffix != ".py":
        if colon:
            raise SourceError(f"{source}: only Python files have names in them")
        return _from_text(path, inputs, name)
    if not attribute:
        raise SourceError(f"{source}: expected file.py:name, where name is a module, a function or a factory")
    return _from_object(*_resolve(load_python(path), attribute, path), inputs, name, source, path)


def _split(source: str) -> tuple[Path, str, str]:
    head, colon, tail = source.rpartition(":")
    if colon and re.fullmatch(r"\w*(\.\w+)*", tail) and not Path(source).exists() and len(head) > 1:
        return Path(head), colon, tail
    return Path(source), "", ""


def _from_text(path: Path, inputs: Sequence[InputSpec | Array], name: str | None) -> Exported:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise SourceError(f"{path}: not a text file; expected IR text, a .py file or a library") from None
    if any(isinstance(i, InputSpec) and i.dynamic for i in inputs):
        raise SourceError(f"{path}: IR text has its own symbolic sizes; --input takes numbers here")
    return from_text(text, str(path), name)


def load_python(path: Path) -> Any:
    """The module in a Python file, run with its folder on the path. SourceError with the place if it fails."""
    folder = str(path.resolve().parent)
    spec = importlib.util.spec_from_file_location(f"flambeau_source_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise SourceError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise SourceError(f"{error.filename}:{error.lineno}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        raise SourceError(f"{path} does not load: {_place(error, path)}") from error
    return module


def _place(error: BaseException, path: Path) -> str:
    """The error's kind and message, with the line of `path` where it came from."""
    line, trace = 0, error.__traceback__
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename).resolve() == path.resolve():
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"{type(error).__name__}: {error}" + (f" (line {line})" if line else "")


def _resolve(module: Any, attribute: str, path: Path) -> tuple[Any, Any]:
    """The object called `attribute`, and what it was made of (itself, or its factory)."""
    found = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
            offered = ", ".join(
                n
                for n in public
                if getattr(vars(module)[n], "__module__", "") == module.__name__
                or hasattr(vars(module)[n], "named_parameters")
            )
            raise SourceError(f"{path} has no {attribute!r}; it has {offered or 'nothing callable'}")
        found = getattr(found, part)
    if isinstance(found, Exported) or (hasattr(found, "named_parameters") and not isinstance(found, type)):
        return found, found
    if not callable(found):
        raise SourceError(
            f"{path}:{attribute} is a {type(found).__name__}; expected a module, a function or a factory"
        )
    if not isinstance(found, type) and _required(found) > 0:
        return found, found
    if not isinstance(found, type) and _positional(found) > 0 and hasattr(found, "example_inputs"):
        return found, found
    try:
        made = found()
    except (Exception, SystemExit) as error:
        raise SourceError(f"{path}:{attribute}() failed: {_place(error, path)}") from error
    return made, found


def _parameters(function: Any) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return []


def _positional(function: Any) -> int:
    return sum(
        p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)
        for p in _parameters(function)
    )


def _required(function: Any) -> int:
    return sum(
        p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        for p in _parameters(function)
    )


def _from_object(
    found: Any, maker: Any, inputs: Sequence[InputSpec | Array], name: str | None, source: str, path: Path
) -> Exported:
    examples: Any = None
    if isinstance(found, tuple) and len(found) == 2:  # a factory may give its inputs too
        found, examples = found
    if isinstance(found, Exported):
        return found
    if not callable(found):
        raise SourceError(
            f"{source} gave a {type(found).__name__}; expected a module, a function or (either, inputs)"
        )
    for holder in (found, maker):
        if examples is None:
            examples = getattr(holder, "example_inputs", None)
    dynamic: dict[int, dict[int, str]] = {}
    arguments: list[Any] = []
    if inputs:
        rng = np.random.default_rng(0)
        for number, spec in enumerate(inputs):
            if isinstance(spec, InputSpec):
                arguments.append(spec.random(rng))
                if spec.dynamic:
                    dynamic[number] = spec.dynamic
            else:
                arguments.append(spec)
    elif examples is not None:
        arguments = list(examples() if callable(examples) else examples)
        dynamic = getattr(found, "dynamic_shapes", None) or getattr(maker, "dynamic_shapes", None) or {}
    elif _required(getattr(found, "forward", found)) > 0:
        raise SourceError(
            f"{source}: what are its inputs? Give --input (such as --input 1x8x8:f32, once for each), "
            "or set the attribute example_inputs"
        )
    try:
        return export(found, arguments, dynamic, name)
    except (FlambeauError, ImportError):
        raise  # says all that there is to say
    except Exception as error:  # the user's code, run on symbolic inputs
        raise SourceError(f"{source}: {_place(error, path)}") from error
