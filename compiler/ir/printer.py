"""Text of the IR: MLIR's generic form, which `compiler.ir.parser` reads back to an equal module.

Graphs print as functions of a module. What MLIR has no notation for is an attribute of the `graph` dialect:
``#graph.dims<...>`` (symbolic sizes of a type) and ``#graph.dim<"N + 1">`` (a size by itself).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Sequence
from typing import Any

from flambeau.compiler.diagnostics import Location
from flambeau.compiler.dialects.graph.constants import Literal
from flambeau.compiler.ir.core import Block, Graph, Operation, Value
from flambeau.compiler.ir.dims import Dim
from flambeau.compiler.ir.types import FunctionType, Type


def print_module(items: Graph | Iterable[Graph | Operation], locations: bool = True) -> str:
    """The module that holds the given graphs and loop-level functions."""
    listed = [items] if isinstance(items, Graph) else list(items)
    lines = ['"builtin.module"() ({']
    for item in listed:
        printer = _Printer(locations)
        if isinstance(item, Graph):
            printer.graph(item)
        else:
            printer.operation(item, 1)
        lines += printer.lines
    lines.append("}) : () -> ()\n")
    return "\n".join(lines)


class _Printer:
    def __init__(self, locations: bool) -> None:
        self.locations = locations
        self.lines: list[str] = []
        self.names: dict[Value, str] = {}

    def name(self, value: Value) -> str:
        found = self.names.get(value)
        if found is None:
            found = self.names[value] = f"%{len(self.names)}"
        return found

    def graph(self, graph: Graph) -> None:
        """The graph as `func.func`, ended by `func.return`."""
        self.lines.append(
            f'  "func.func"() <{{function_type = {_type(graph.type)}, sym_name = {json.dumps(graph.name)}}}> ({{'
        )
        self._arguments(graph.parameters, 1)
        for operation in graph.operations:
            self.operation(operation, 2)
        self._end("func.return", graph, 2)
        self.lines.append("  }) : () -> ()")

    def _arguments(self, values: Sequence[Value], indent: int) -> None:
        inside = ", ".join(f"{self.name(v)}: {_type(v.type)}" for v in values)
        self.lines.append(f"{'  ' * indent}^bb0({inside}):")

    def operation(self, operation: Operation, indent: int) -> None:
        pad = "  " * indent
        operands = ", ".join(self.name(v) for v in operation.operands)
        results = ", ".join(self.name(v) for v in operation.results)
        head = f'{pad}{results + " = " if results else ""}"{operation.name}"({operands})'
        attributes = operation.definition.attributes
        bodies = [v for v in attributes.values() if isinstance(v, Graph)]
        items = ", ".join(f"{k} = {attribute(v)}" for k, v in attributes.items() if not isinstance(v, Graph))
        if items:
            head += f" <{{{items}}}>"
        tail = f" : {_signature(operation)}{self._location(operation.location)}"
        if not operation.regions and not bodies:
            self.lines.append(head + tail)
            return
        self.lines.append(head + " ({")
        for number, body in enumerate(bodies):
            if number:
                self.lines.append(f"{pad}}}, {{")
            self.body(body, indent)
        for number, region in enumerate(operation.regions):
            if number:
                self.lines.append(f"{pad}}}, {{")
            self.block(region.block, indent)
        self.lines.append(f"{pad}}}){tail}")

    def block(self, block: Block, indent: int) -> None:
        self._arguments(block.arguments, indent)
        for operation in block.operations:
            self.operation(operation, indent + 1)

    def body(self, graph: Graph, indent: int) -> None:
        """A graph that is an operation's attribute, as its region, ended by `scf.yield`."""
        self._arguments(graph.parameters, indent)
        for operation in graph.operations:
            self.operation(operation, indent + 1)
        self._end("scf.yield", graph, indent + 1)

    def _end(self, name: str, graph: Graph, indent: int) -> None:
        types = ", ".join(_type(r.type) for r in graph.results)
        values = ", ".join(self.name(r) for r in graph.results)
        self.lines.append(f'{"  " * indent}"{name}"({values}) : ({types}) -> ()')

    def _location(self, location: Location | None) -> str:
        if location is None or not self.locations:
            return ""
        return f" loc({json.dumps(location.file)}:{location.line}:{location.column})"


def _signature(operation: Operation) -> str:
    operands = ", ".join(_type(v.type) for v in operation.operands)
    results = ", ".join(_type(v.type) for v in operation.results)
    return f"({operands}) -> " + (results if len(operation.results) == 1 else f"({results})")


def _type(type: Type) -> str:
    return repr(type)


def attribute(value: Any) -> str:
    """An attribute's value. TypeError for what the text form cannot say."""
    if value is None:
        return "unit"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"{value} : i64"
    if isinstance(value, float):
        return f"{_float(value)} : f64"
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, tuple):
        return f"[{', '.join(attribute(v) for v in value)}]"
    if isinstance(value, Dim):
        return f'#graph.dim<"{value}">'
    if isinstance(value, Literal):
        return _literal(value)
    if isinstance(value, FunctionType | Type):
        return _type(value)
    raise TypeError(f"an attribute of type {type(value).__name__} has no text form: {value!r}")


def _float(value: float) -> str:
    """A literal that MLIR reads back to the same bits."""
    if math.isinf(value) or math.isnan(value):
        return f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}"
    text = repr(value)
    if "." not in text:
        mantissa, e, exponent = text.partition("e")
        text = f"{mantissa}.0{e}{exponent}"
    return text


def _literal(literal: Literal) -> str:
    shape = "".join(f"{d}x" for d in literal.shape)
    suffix = f" : tensor<{shape}{literal.element}>"
    splat = literal.splat
    if literal.array.size == 0:
        return "dense<>" + suffix
    if splat is not None and not (isinstance(splat, float) and not math.isfinite(splat)):
        inside = (
            "true"
            if splat is True
            else "false"
            if splat is False
            else _float(splat)
            if isinstance(splat, float)
            else str(splat)
        )
        return f"dense<{inside}>{suffix}"
    if literal.element.is_bool:
        return f"dense<{json.dumps(literal.array.tolist())}>{suffix}"
    little = literal.array.astype(literal.array.dtype.newbyteorder("<"))
    return f'dense<"0x{little.tobytes().hex().upper()}">{suffix}'
