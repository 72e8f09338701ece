"""Reads the IR's text. Anything that is not IR gives a ParseError with its place, never another exception."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import flambeau.compiler.dialects.graph  # registers the graph operations
import flambeau.compiler.dialects.loops  # noqa: F401  registers the loop operations
from flambeau.compiler.diagnostics import FlambeauError, Location, ParseError
from flambeau.compiler.dialects.graph.base import GraphOp
from flambeau.compiler.dialects.graph.constants import Literal
from flambeau.compiler.ir import types
from flambeau.compiler.ir.core import Block, Graph, Operation, Region, Value, infer_types
from flambeau.compiler.ir.dims import Index, parse
from flambeau.compiler.ir.lexer import Source, Token, tokens
from flambeau.compiler.ir.opdef import REGISTRY
from flambeau.compiler.ir.types import FunctionType, MemRefType, ShapedType, TensorType, Type, VectorType

_SHAPE = re.compile(r"((?:(?:[0-9]{1,18}|\?)x)*)([a-z]\w*)", re.ASCII)

#: Regions and attributes nest at most this deep: beyond it is no program, and Python's stack would end first.
DEEPEST = 60


@dataclass(frozen=True)
class Module:
    """What a text holds: graphs, and loop-level functions."""

    graphs: tuple[Graph, ...]
    functions: tuple[Operation, ...]


def parse_module(text: str, file: str = "<string>") -> Module:
    """Read a module. Raises ParseError."""
    return _Parser(Source(text, file)).module()


def parse_graph(text: str, file: str = "<string>") -> Graph:
    """Read a module that holds one graph. Raises ParseError."""
    source = Source(text, file)
    module = _Parser(source).module()
    if len(module.graphs) != 1:
        raise source.error(f"expected a module with one graph, found {len(module.graphs)}", 0)
    return module.graphs[0]


#: Name, operands, attributes, regions' blocks and type of an operation.
_Parts = tuple[str, list[Token], dict[str, Any], list[Block], FunctionType]


class _Parser:
    def __init__(self, source: Source) -> None:
        self.source = source
        self.tokens = tokens(source)
        self.at = 0
        self.depth = 0
        self.scopes: list[dict[str, Value]] = []

    # -- tokens --------------------------------------------------------------------------------------------------------
    @property
    def token(self) -> Token:
        return self.tokens[self.at]

    def error(self, message: str, token: Token | None = None) -> ParseError:
        return self.source.error(message, (token or self.token).position)

    def take(self, text: str) -> Token:
        token = self.token
        if token.text != text:
            raise self.error(f"expected {text!r}, found {token.text or 'the end'!r}")
        self.at += 1
        return token

    def accept(self, text: str) -> bool:
        if self.token.text == text and self.token.kind != "string":
            self.at += 1
            return True
        return False

    def take_kind(self, kind: str, what: str) -> Token:
        token = self.token
        if token.kind != kind:
            raise self.error(f"expected {what}, found {token.text or 'the end'!r}")
        self.at += 1
        return token

    def string(self) -> str:
        token = self.take_kind("string", "a string")
        try:
            return str(json.loads(token.text))
        except ValueError:
            raise self.error(f"malformed string {token.text}", token) from None

    def listed(self, close: str, item: Callable[[], Any]) -> list[Any]:
        """Items separated by commas, up to and including `close`."""
        found: list[Any] = []
        if self.accept(close):
            return found
        while True:
            found.append(item())
            if self.accept(close):
                return found
            self.take(",")

    def nested(self) -> _Nesting:
        return _Nesting(self)

    # -- structure -----------------------------------------------------------------------------------------------------
    def module(self) -> Module:
        token = self.token
        if self.string() != "builtin.module":
            raise self.error('expected "builtin.module"', token)
        for mark in ("(", ")", "(", "{"):
            self.take(mark)
        graphs: list[Graph] = []
        functions: list[Operation] = []
        while not self.accept("}"):
            item = self.function()
            if isinstance(item, Graph):
                graphs.append(item)
            else:
                functions.append(item)
        self.take(")")
        self.take(":")
        self.function_type()
        if self.token.kind != "end":
            raise self.error(f"expected the end, found {self.token.text!r}")
        return Module(tuple(graphs), tuple(functions))

    def function(self) -> Graph | Operation:
        start = self.token
        self.scopes = [{}]
        operation, location = self.operation_parts()
        name, operands, attributes, blocks, types_ = operation
        if name != "func.func":
            raise self.error(f'expected "func.func" in a module, found "{name}"', start)
        if operands or types_.inputs or types_.results:
            raise self.error('"func.func" has no operands and no results', start)
        if len(blocks) != 1:
            raise self.error('"func.func" has one region', start)
        block = blocks[0]
        last = block.operations[-1] if block.operations else None
        if last is None or last.name != "func.return":
            raise self.error('a function ends in "func.return"', start)
        body = block.operations[:-1]
        if (body and not isinstance(body[0].definition, GraphOp)) or set(attributes) - {
            "function_type",
            "sym_name",
        }:
            return self.build("func.func", [], attributes, blocks, types_, location, start)
        if any(not isinstance(o.definition, GraphOp) for o in body):
            raise self.error("a function holds graph operations or loop operations, not both", start)
        graph_name = attributes.get("sym_name")
        if not isinstance(graph_name, str):
            raise self.error('"func.func" needs sym_name, a string', start)
        graph = Graph(block.arguments, last.operands, graph_name)
        if attributes.get("function_type") is not graph.type:
            declared = attributes.get("function_type")
            raise self.error(f"the function's type is {graph.type}, its function_type says {declared}", start)
        return graph

    def operation(self) -> Operation:
        start = self.token
        names: list[Token] = []
        if self.token.kind == "value":
            names.append(self.take_kind("value", "a value"))
            while self.accept(","):
                names.append(self.take_kind("value", "a value"))
            self.take("=")
        head = self.token
        parts, location = self.operation_parts()
        name, operands, attributes, blocks, type = parts
        if len(operands) != len(type.inputs):
            raise self.error(
                f'"{name}" has {len(operands)} operands and {len(type.inputs)} operand types', head
            )
        values = []
        for token, expected in zip(operands, type.inputs, strict=True):
            value = self.lookup(token)
            if value.type is not expected:
                raise self.error(f"{token.text} is a {value.type}, not a {expected}", token)
            values.append(value)
        if len(names) != len(type.results):
            raise self.error(
                f'"{name}" has {len(type.results)} results and {len(names)} names for them', start
            )
        made = self.build(name, values, attributes, blocks, type, location, head)
        for token, result in zip(names, made.results, strict=True):
            self.define(token, result)
        return made

    def operation_parts(self) -> tuple[_Parts, Location | None]:
        """Everything of an operation but its results' names."""
        name = self.string()
        self.take("(")
        operands = self.listed(")", lambda: self.take_kind("value", "a value"))
        attributes: dict[str, Any] = {}
        if self.accept("<"):
            self.take("{")
            for key, value in self.listed("}", self.entry):
                attributes[key] = value
            self.take(">")
        blocks: list[Block] = []
        if self.accept("("):
            with self.nested():
                outside = self.scopes
                if _graph_attributes(name):  # a graph refers to nothing outside of it
                    self.scopes = []
                blocks = self.listed(")", self.region)
                self.scopes = outside
        self.take(":")
        type = self.function_type()
        return (name, operands, attributes, blocks, type), self.location()

    def entry(self) -> tuple[str, Any]:
        key = self.take_kind("word", "an attribute's name")
        self.take("=")
        return key.text, self.attribute()

    def region(self) -> Block:
        self.take("{")
        self.scopes.append({})
        block = Block()
        if self.token.kind == "label":
            self.at += 1
            names: list[tuple[Token, Type]] = []
            self.take("(")
            names = self.listed(
                ")", lambda: (self.take_kind("value", "a value"), self.take(":"), self.type())[::2]
            )
            self.take(":")
            block = Block([t for _, t in names])
            for (token, _), argument in zip(names, block.arguments, strict=True):
                self.define(token, argument)
        while not self.accept("}"):
            block.operations.append(self.operation())
        self.scopes.pop()
        return block

    def body(self, name: str, block: Block, token: Token) -> Graph:
        """The graph that a region of a graph operation is."""
        last = block.operations[-1] if block.operations else None
        if last is None or last.name != "scf.yield":
            raise self.error(f'a region of "{name}" ends in "scf.yield"', token)
        if any(not isinstance(o.definition, GraphOp) for o in block.operations[:-1]):
            raise self.error(f'a region of "{name}" holds graph operations', token)
        if any(not isinstance(v.type, TensorType) for v in (*block.arguments, *last.operands)):
            raise self.error(f'the arguments and results of a region of "{name}" are tensors', token)
        return Graph(block.arguments, last.operands, "body")

    def location(self) -> Location | None:
        if not (self.token.text == "loc" and self.token.kind == "word"):
            return None
        self.at += 1
        self.take("(")
        file = self.string()
        numbers = []
        for _ in range(2):
            self.take(":")
            numbers.append(self.number())
        self.take(")")
        return Location(file, *numbers)

    def number(self) -> int:
        token = self.take_kind("int", "a number")
        if len(token.text) > 20:
            raise self.error("the number is too large", token)
        return int(token.text)

    def lookup(self, token: Token) -> Value:
        for scope in reversed(self.scopes):
            if token.text in scope:
                return scope[token.text]
        raise self.error(f"{token.text} is not defined here", token)

    def define(self, token: Token, value: Value) -> None:
        if any(token.text in scope for scope in self.scopes):
            raise self.error(f"{token.text} is defined twice", token)
        self.scopes[-1][token.text] = value

    def build(
        self,
        name: str,
        operands: Sequence[Value],
        attributes: dict[str, Any],
        blocks: Sequence[Block],
        type: FunctionType,
        location: Location | None,
        token: Token,
    ) -> Operation:
        """The operation, its attributes and types checked by its own class."""
        cls = REGISTRY.get(name)
        if cls is None:
            raise self.error(f'there is no operation "{name}"', token)
        graphs = _graph_attributes(name)
        if graphs:
            if len(graphs) != len(blocks):
                raise self.error(f'"{name}" has {len(graphs)} regions, found {len(blocks)}', token)
            bodies = [self.body(name, block, token) for block in blocks]
            attributes, blocks = {**attributes, **dict(zip(graphs, bodies, strict=True))}, ()
        try:
            definition = cls(**attributes)
            if not getattr(definition, "explicit_results", False):
                inferred = infer_types(definition, tuple([v.type for v in operands]))
                if inferred != type.results:
                    expected = FunctionType.get(type.inputs, inferred)
                    raise self.error(f'"{name}" has the type {expected}, the text says {type}', token)
            return Operation(definition, operands, type.results, location, [Region([b]) for b in blocks])
        except ParseError:
            raise
        except FlambeauError as error:
            raise self.error(error.message, token) from None
        except Exception as error:  # attributes of a wrong kind fail wherever the class first uses them
            raise self.error(f'"{name}": bad attributes or operands: {error}', token) from None

    # -- types ---------------------------------------------------------------------------------------------------------
    def function_type(self) -> FunctionType:
        with self.nested():
            self.take("(")
            inputs = self.listed(")", self.type)
            self.take_kind("arrow", "'->'")
            results = self.listed(")", self.type) if self.accept("(") else [self.type()]
        return FunctionType.get(tuple(inputs), tuple(results))

    def type(self) -> Type:
        token = self.token
        if token.text == "(":
            return self.function_type()
        if token.kind == "bang" and token.text == "!llvm.ptr":
            self.at += 1
            return types.pointer
        if token.kind != "word":
            raise self.error(f"expected a type, found {token.text or 'the end'!r}")
        self.at += 1
        if token.text == "index":
            return types.index
        shaped: Any = {"tensor": TensorType, "memref": MemRefType, "vector": VectorType}.get(token.text)
        if shaped is not None:
            return self.shaped(shaped)
        return self.element(token)

    def element(self, token: Token) -> types.ElementType:
        try:
            return types.element_type(token.text)
        except KeyError:
            raise self.error(f"there is no type {token.text!r}", token) from None

    def shaped(self, cls: Any) -> Type:
        opening = self.take("<")
        # A shape such as 2x?x3xf32 is one word to MLIR and several tokens here: read it from the text.
        start = opening.position + 1
        end = start
        text = self.source.text
        while end < len(text) and (text[end].isalnum() or text[end] == "?"):
            end += 1
        match = _SHAPE.fullmatch(text[start:end])
        if match is None:
            raise self.source.error(f"expected a shape such as 2x?xf32, found {text[start:end]!r}", start)
        sizes, name = match.group(1).split("x")[:-1], match.group(2)
        while self.token.position < end:
            self.at += 1
        element: Any = types.index
        if name != "index" or cls is not VectorType:
            element = self.element(Token("word", name, end - len(name)))
        shape: list[Index] = [0 if s == "?" else int(s) for s in sizes]
        if self.accept(","):
            marker = self.token
            if marker.text != "#graph.dims":
                raise self.error("expected #graph.dims")
            self.at += 1
            self.take("<")
            names = self.listed(">", lambda: (self.token, self.string()))
            if len(names) != len(sizes):
                raise self.error(f"{len(sizes)} sizes, but {len(names)} names", marker)
            for axis, (place, given) in enumerate(names):
                if (given == "_") != (sizes[axis] != "?"):
                    raise self.error("a name stands for each '?', '_' for each number", place)
                if given != "_":
                    shape[axis] = self.expression(given, place)
        elif "?" in sizes:
            raise self.error("a shape with '?' needs #graph.dims")
        self.take(">")
        made: ShapedType = cls.get(tuple(shape), element)
        return made

    def expression(self, text: str, token: Token) -> Index:
        if len(text) > 400:
            raise self.error("the expression is too long", token)
        try:
            return parse(text)
        except (ValueError, ZeroDivisionError, RecursionError) as error:
            raise self.error(str(error) or "malformed expression", token) from None

    # -- attributes ----------------------------------------------------------------------------------------------------
    def attribute(self) -> Any:
        token = self.token
        if token.kind == "string":
            return self.string()
        if token.kind in ("int", "float", "hex"):
            return self.numeric()
        if self.accept("["):
            with self.nested():
                return tuple(self.listed("]", self.attribute))
        for text, constant in (("true", True), ("false", False), ("unit", None)):
            if self.accept(text):
                return constant
        if self.accept("dense"):
            return self.dense()
        if self.accept("#graph.dim"):
            self.take("<")
            place = self.token
            value = self.expression(self.string(), place)
            self.take(">")
            return value
        return self.type()

    def numeric(self) -> int | float:
        token = self.token
        self.at += 1
        self.take(":")
        type = self.type()
        if not isinstance(type, types.ElementType):
            raise self.error("a number's type is an element type", token)
        if type.is_float:
            return self.floating(token)
        if token.kind != "int" or len(token.text) > 20:
            raise self.error(f"expected an integer, found {token.text}", token)
        return int(token.text)

    def floating(self, token: Token) -> float:
        if token.kind == "hex":
            if len(token.text) > 18:
                raise self.error("a float has at most 16 hexadecimal digits", token)
            return float(struct.unpack("<d", struct.pack("<Q", int(token.text, 16)))[0])
        return float(token.text)

    def dense(self) -> Literal:
        start = self.token
        self.take("<")
        content = None if self.token.text == ">" else self.elements()
        self.take(">")
        self.take(":")
        type = self.type()
        if not isinstance(type, TensorType) or not type.is_static:
            raise self.error("dense<...> has the type of a tensor of known shape", start)
        shape = tuple(d for d in type.shape if isinstance(d, int))
        try:
            if isinstance(content, bytes):
                little = np.frombuffer(content, type.element.numpy.newbyteorder("<")).reshape(shape)
                return Literal(little.astype(type.element.numpy), type.element)
            if content is None:
                return Literal(
                    np.zeros(shape, type.element.numpy).reshape(shape)
                    if 0 in shape
                    else np.empty((0,)).reshape(shape)
                )
            if isinstance(content, list):
                array = np.array(content, type.element.numpy)
                if array.shape != shape:
                    raise ValueError(f"the elements have the shape {array.shape}")
                return Literal(array, type.element)
            if int(np.prod(shape, dtype=object)) > 1 << 28:
                raise ValueError("the literal is too large")
            return Literal(np.full(shape, content, type.element.numpy), type.element)
        except (ValueError, TypeError, OverflowError, MemoryError) as error:
            raise self.error(f"dense<...>: {error}", start) from None

    def elements(self) -> Any:
        token = self.token
        if token.kind == "string":
            text = self.string()
            try:
                if not text.startswith("0x"):
                    raise ValueError
                return bytes.fromhex(text[2:])
            except ValueError:
                raise self.error('expected hexadecimal digits after "0x"', token) from None
        if self.accept("["):
            with self.nested():
                return self.listed("]", self.elements)
        if self.accept("true"):
            return True
        if self.accept("false"):
            return False
        if token.kind == "int" and len(token.text) <= 20:
            self.at += 1
            return int(token.text)
        if token.kind in ("float", "hex"):
            self.at += 1
            return self.floating(token)
        raise self.error(f"expected an element, found {token.text or 'the end'!r}")


def _graph_attributes(name: str) -> list[str]:
    """The attributes of an operation that are graphs, which text shows as regions."""
    cls = REGISTRY.get(name)
    return [] if cls is None else [f.name for f in cls.attribute_fields() if f.type in ("Graph", Graph)]


class _Nesting:
    """Counts how deep the text nests."""

    def __init__(self, parser: _Parser) -> None:
        self.parser = parser

    def __enter__(self) -> None:
        self.parser.depth += 1
        if self.parser.depth > DEEPEST:
            raise self.parser.error(f"nested deeper than {DEEPEST}")

    def __exit__(self, *_: object) -> None:
        self.parser.depth -= 1
