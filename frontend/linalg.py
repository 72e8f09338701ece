"""Matrix products and what is built on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flambeau.arithmetic import add, mul
from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.contraction import DotGeneral
from flambeau.compiler.ir import types as ir
from flambeau.compiler.ir.core import Value
from flambeau.evaluation import record
from flambeau.operands import broadcast_shapes, deliver
from flambeau.tensor import Tensor, method, read, wrap

_MM = DotGeneral((), (), (1,), (0,))
_INT_MM = DotGeneral((), (), (1,), (0,), ir.i32)
_DOT = DotGeneral((), (), (0,), (0,))
_NAMES = {
    "f64": "double",
    "f32": "float",
    "f16": "c10::Half",
    "bf16": "c10::BFloat16",
    "i64": "long long",
    "i32": "int",
    "i16": "short int",
    "i8": "signed char",
    "ui8": "unsigned char",
    "i1": "bool",
}


def _same(x: Value, y: Value) -> None:
    a, b = build.element_of(x), build.element_of(y)
    if a is not b:
        raise RuntimeError(
            f"expected m1 and m2 to have the same dtype, but got: {_NAMES.get(a.name, a.name)} != "
            f"{_NAMES.get(b.name, b.name)}"
        )


@method("matmul", "__matmul__")
def matmul(input: Tensor, other: Tensor, *, out: Tensor | None = None) -> Tensor:
    """The matrix product over the last two dimensions; vectors and batches as in PyTorch."""
    if not isinstance(other, Tensor):
        return NotImplemented  # type: ignore[return-value]
    x, y = read(input), read(other)
    a, b = build.shape_of(x), build.shape_of(y)
    _same(x, y)
    if not a or not b:
        raise RuntimeError(
            f"both arguments to matmul need to be at least 1D, but they are {len(a)}D and {len(b)}D"
        )
    if build.element_of(x) is ir.i1:
        raise RuntimeError("\"addmm_impl_cpu_\" not implemented for 'Bool'")
    if len(a) == 2 and len(b) == 2:
        _check(a, b)
        return deliver(record(_MM, x, y), "Mm", out)
    if len(a) == 1 and len(b) == 1:
        if a != b:
            raise RuntimeError(
                f"inconsistent tensor size, expected tensor [{a[0]}] and src [{b[0]}] to have the same "
                f"number of "
                f"elements, but got {a[0]} and {b[0]} elements respectively"
            )
        return deliver(record(_DOT, x, y), "Dot", out)
    if len(b) == 1:
        if a[-1] != b[0]:
            raise RuntimeError(f"size mismatch, got input ({a[-2]}), mat ({a[-2]}x{a[-1]}), vec ({b[0]})")
        return deliver(
            record(DotGeneral((), (), (len(a) - 1,), (0,)), x, y), "Mv" if len(a) == 2 else "UnsafeView", out
        )
    if len(a) == 1:
        x = build.expand_dims(x, 0)
        a = build.shape_of(x)
        squeeze = True
    else:
        squeeze = False
    if len(b) == 2:
        _check(a, b)
        found = record(DotGeneral((), (), (len(a) - 1,), (0,)), x, y)
    else:
        if a[-1] != b[-2]:
            raise RuntimeError(
                f"Expected size for first two dimensions of batch2 tensor to be: [{b[0]}, {a[-1]}] but got: "
                f"[{b[0]}, {b[-2]}]."
            )
        batch = broadcast_shapes(a[:-2], b[:-2])
        x = build.broadcast_to(x, (*batch, *a[-2:]))
        y = build.broadcast_to(y, (*batch, *b[-2:]))
        found = build.matmul(x, y)
    if squeeze:
        found = build.squeeze(found, build.type_of(found).rank - 2)
    return deliver(found, "UnsafeView", out)


def _check(a: Sequence[Any], b: Sequence[Any]) -> None:
    if a[-1] != b[-2]:
        rows = a[-2] if len(a) == 2 else "x".join(map(str, a[:-1]))
        raise RuntimeError(f"mat1 and mat2 shapes cannot be multiplied ({rows}x{a[-1]} and {b[-2]}x{b[-1]})")


@method("__rmatmul__")
def _rmatmul(self: Tensor, other: Tensor) -> Tensor:
    return matmul(other, self)


@method("mm")
def mm(input: Tensor, mat2: Tensor) -> Tensor:
    """The product of two matrices."""
    if input.ndim != 2 or mat2.ndim != 2:
        raise RuntimeError(f"{'self' if input.ndim != 2 else 'mat2'} must be a matrix")
    return matmul(input, mat2)


def _int_mm(input: Tensor, mat2: Tensor, *, out: Tensor | None = None) -> Tensor:
    """The product of two matrices of bytes, summed in int32: exact, up to wrapping.

    `input` (m, k) is int8 or uint8, `mat2` (k, n) int8. Where the CPU has instructions for it (AVX512_VNNI, Armv8.4's dot
    products), four times as fast as float32. RuntimeError for other dtypes, ranks and sizes, as in PyTorch.
    """
    x, y = read(input), read(mat2)
    for name, value, allowed in (("self", x, "int8 or uint8"), ("mat2", y, "type int8")):
        rank = build.type_of(value).rank
        if rank != 2:
            raise RuntimeError(f"int_mm_out_cpu: Expected {name} to be of dimension 2 but got {rank}")
        element = build.element_of(value)
        if element is not ir.i8 and not (value is x and element is ir.u8):
            raise RuntimeError(
                f"int_mm_out_cpu: Expected {name} dtype to be {'of ' if value is y else ''}{allowed} but got "
                f"{_NAMES.get(element.name, element.name)}"
            )
    (_, inner), (outer, _) = build.shape_of(x), build.shape_of(y)
    if inner != outer:
        raise RuntimeError(
            f"int_mm_out_cpu: self.size(1) needs to match mat2.size(0) but got {inner} and {outer}"
        )
    result = record(_INT_MM, x, y)
    if out is not None:
        given = build.type_of(read(out))
        if given.element is not ir.i32:
            raise RuntimeError(
                "int_mm_out_cpu: Expected result dtype to be of type kInt but got "
                f"{_NAMES.get(given.element.name, given.element.name)}"
            )
        if given.shape != build.shape_of(result):
            raise RuntimeError(
                f"int_mm_out_cpu: Expected result of shape {list(build.shape_of(result))} but got "
                f"{list(given.shape)}"
            )
    return deliver(result, "", out)


@method("bmm")
def bmm(input: Tensor, mat2: Tensor) -> Tensor:
    """Products of the matrices of two batches."""
    if input.ndim != 3 or mat2.ndim != 3:
        raise RuntimeError("batch1 must be a 3D tensor" if input.ndim != 3 else "batch2 must be a 3D tensor")
    if input.shape[0] != mat2.shape[0]:
        raise RuntimeError(
            f"Expected size for first two dimensions of batch2 tensor to be: [{input.shape[0]}, "
            f"{input.shape[2]}] but got: "
            f"[{mat2.shape[0]}, {mat2.shape[1]}]."
        )
    made = matmul(input, mat2)
    if made.requires_grad:
        read(made).hooks = "Bmm"
    return made


@method("mv")
def mv(input: Tensor, vec: Tensor) -> Tensor:
    """A matrix times a vector."""
    return matmul(input, vec)


@method("dot", "inner")
def dot(input: Tensor, tensor: Tensor) -> Tensor:
    """The inner product of two vectors."""
    if input.ndim != 1 or tensor.ndim != 1:
        raise RuntimeError(f"1D tensors expected, but got {input.ndim}D and {tensor.ndim}D tensors")
    return matmul(input, tensor)


@method("outer", "ger")
def outer(input: Tensor, vec2: Tensor) -> Tensor:
    """The outer product of two vectors."""
    return mul(input.reshape(-1, 1), vec2.reshape(1, -1))  # type: ignore[attr-defined]


@method("addmm")
def addmm(input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    """beta * input + alpha * mat1 @ mat2"""
    product = mm(mat1, mat2)
    if alpha != 1:
        product = mul(product, alpha)
    found = add(product, input if beta == 1 else mul(input, beta))
    if found.requires_grad:
        read(found).hooks = "Addmm"
    return found


@method("baddbmm")
def baddbmm(input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    """beta * input + alpha * batch1 @ batch2"""
    product = bmm(batch1, batch2)
    return add(mul(product, alpha) if alpha != 1 else product, mul(input, beta) if beta != 1 else input)


@method("trace")
def trace(input: Tensor) -> Tensor:
    """The sum of the diagonal of a matrix."""
    return input.diagonal().sum()  # type: ignore[attr-defined, no-any-return]


def tensordot(a: Tensor, b: Tensor, dims: Any = 2) -> Tensor:
    """Products summed over the given dimensions of both (or the last of one and the first of the other)."""
    if isinstance(dims, int):
        left, right = tuple(range(a.ndim - dims, a.ndim)), tuple(range(dims))
    else:
        left = tuple(d % a.ndim for d in ([dims[0]] if isinstance(dims[0], int) else dims[0]))
        right = tuple(d % b.ndim for d in ([dims[1]] if isinstance(dims[1], int) else dims[1]))
        # A contracted dimension of size 1 goes with any size: the other side is summed.
        for d, e in zip(left, right):
            if a.shape[d] == 1 != b.shape[e]:
                b = b.sum(e, keepdim=True)  # type: ignore[attr-defined]
            elif b.shape[e] == 1 != a.shape[d]:
                a = a.sum(d, keepdim=True)  # type: ignore[attr-defined]
    return wrap(record(DotGeneral((), (), left, right), read(a), read(b)), "View")


def einsum(equation: str, *operands: Any) -> Tensor:
    """Einstein summation by pairs, from the left; `...` and repeated indices as in PyTorch."""
    tensors = (
        list(operands[0]) if len(operands) == 1 and isinstance(operands[0], (list, tuple)) else list(operands)
    )
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(tensors):
        raise RuntimeError(
            f"einsum(): {'more' if len(terms) < len(tensors) else 'fewer'} operands were provided than "
            f"specified in the equation"
        )
    hidden = max(
        (t.ndim - len(s.replace("...", "")) for s, t in zip(terms, tensors) if "..." in s), default=0
    )
    dots = "".join(chr(0x391 + i) for i in range(hidden))
    expanded = []
    for s, t in zip(terms, tensors):
        if "..." in s:
            count = t.ndim - len(s.replace("...", ""))
            s = s.replace("...", dots[hidden - count :] if count else "")
        if len(s) != t.ndim:
            raise RuntimeError(
                f"einsum(): the number of subscripts in the equation ({len(s)}) does not match the number "
                f"of dimensions "
                f"({t.ndim}) for operand {len(expanded)} and no ellipsis was given"
            )
        expanded.append(s)
    if arrow:
        output = right.replace("...", dots)
    else:
        letters = "".join(expanded)
        output = dots + "".join(sorted(c for c in set(letters) if letters.count(c) == 1 and c not in dots))
    sizes: dict[str, Any] = {}
    for s, t in zip(expanded, tensors):
        for c, d in zip(s, t.shape):
            if sizes.get(c, 1) not in (1, d) and d != 1:
                raise RuntimeError(
                    f"einsum(): subscript {c} has size {d} for operand which does not broadcast with previously "
                    f"seen size {sizes[c]}"
                )
            sizes[c] = d if sizes.get(c, 1) == 1 else sizes[c]
    current, now = "", None
    for k, (s, t) in enumerate(zip(expanded, tensors)):
        later = set(output).union(*expanded[k + 1 :]) if k + 1 < len(expanded) else set(output)
        s, x = _diagonals(s, read(t))
        x = build.broadcast_in_dim(x, [sizes[c] for c in s], range(len(s))) if s else x
        if now is None:
            drop = [i for i, c in enumerate(s) if c not in later]
            current, now = "".join(c for c in s if c in later), build.reduce_sum(x, drop) if drop else x
            continue
        current, now = _pair(current, now, s, x, later)
    assert now is not None
    missing = [c for c in output if c not in current]
    if missing:
        raise RuntimeError(
            f"einsum(): output subscript {missing[0]} does not appear in the equation for any input operand"
        )
    found = build.transpose(now, [current.index(c) for c in output]) if output != current else now
    return wrap(found, "View")


def _diagonals(s: str, x: Value) -> tuple[str, Value]:
    """A subscript that occurs twice takes the diagonal."""
    while len(set(s)) < len(s):
        c = next(c for c in s if s.count(c) > 1)
        i, j = s.index(c), s.index(c, s.index(c) + 1)
        x = read(wrap(x).diagonal(0, i, j))  # type: ignore[attr-defined]
        s = s[:i] + s[i + 1 : j] + s[j + 1 :] + c
    return s, x


def _pair(s: str, x: Value, t: str, y: Value, later: set[str]) -> tuple[str, Value]:
    lonely = [i for i, c in enumerate(s) if c not in t and c not in later]
    if lonely:
        x, s = build.reduce_sum(x, lonely), "".join(c for c in s if c in t or c in later)
    lonely = [i for i, c in enumerate(t) if c not in s and c not in later]
    if lonely:
        y, t = build.reduce_sum(y, lonely), "".join(c for c in t if c in s or c in later)
    batch = [c for c in s if c in t and c in later]
    summed = [c for c in s if c in t and c not in later]
    definition = DotGeneral(
        tuple(s.index(c) for c in batch),
        tuple(t.index(c) for c in batch),
        tuple(s.index(c) for c in summed),
        tuple(t.index(c) for c in summed),
    )
    free = [c for c in s if c not in t] + [c for c in t if c not in s]
    return "".join(batch + free), record(definition, x, y)
