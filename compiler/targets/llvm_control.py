"""LLVM text of functions, calls and structured control flow.

Structured control flow becomes blocks with phis. The body of a parallel loop becomes a function of its own, which gets
what it captures in a struct.
"""

from __future__ import annotations

from collections.abc import Sequence

from flambeau.compiler.diagnostics import CompilationError
from flambeau.compiler.dialects.loops import arith, func, gpu, scf
from flambeau.compiler.dialects.loops.base import scalar_of
from flambeau.compiler.ir.core import Block, Operation, Value
from flambeau.compiler.ir.opdef import OpDef
from flambeau.compiler.ir.types import ElementType
from flambeau.compiler.targets.llvm_body import Body, Handler
from flambeau.compiler.targets.llvm_types import literal, llvm_type
from flambeau.runtime import abi


def _constant(body: Body, operation: Operation, definition: arith.Constant) -> None:
    body.names[operation.results[0]] = literal(definition.value, definition.type)


def _select(body: Body, operation: Operation, definition: arith.Select) -> None:
    condition, x, y = operation.operands
    text = llvm_type(x.type)
    body.define(
        operation.results[0],
        f"select {llvm_type(condition.type)} {body.name(condition)}, {text} {body.name(x)}, {text} {body.name(y)}",
    )


def _resize(body: Body, operation: Operation, extend: str) -> None:
    (x,), (result,) = operation.operands, operation.results
    widths = [
        scalar.bits if isinstance(scalar := scalar_of(v.type), ElementType) else 64 for v in (x, result)
    ]
    if widths[0] == widths[1]:
        body.names[result] = body.name(x)
        return
    kind = extend if widths[0] < widths[1] else "trunc"
    body.define(result, f"{kind} {llvm_type(x.type)} {body.name(x)} to {llvm_type(result.type)}")


def _index_cast(body: Body, operation: Operation, definition: arith.IndexCast) -> None:
    _resize(body, operation, "sext")


def _index_cast_unsigned(body: Body, operation: Operation, definition: arith.IndexCastUI) -> None:
    _resize(body, operation, "zext")


def _return(body: Body, operation: Operation, definition: func.Return) -> None:
    if not operation.operands:
        body.line("ret void")
        return
    (value,) = operation.operands
    body.line(f"ret {llvm_type(value.type)} {body.name(value)}")


def _call(body: Body, operation: Operation, definition: func.Call) -> None:
    types = [llvm_type(v.type) for v in operation.operands]
    operands = ", ".join(f"{t} {body.name(v)}" for t, v in zip(types, operation.operands, strict=True))
    returned = llvm_type(operation.results[0].type) if operation.results else "void"
    name = definition.callee
    if name not in body.module.defined:
        known = abi.DECLARATIONS.get(name)
        body.module.declared[name] = known or f"declare {returned} @{name}({', '.join(types)})"
    text = f"call {returned} @{name}({operands})"
    if operation.results:
        body.define(operation.results[0], text)
    else:
        body.line(text)


def _loop_hints(body: Body, definition: scf.For, group: str | None) -> str:
    """`!llvm.loop` metadata for the hints, or nothing."""
    properties = []
    if not definition.vectorize:
        properties.append('!{!"llvm.loop.vectorize.enable", i1 false}')
    if definition.unroll == 1:
        properties.append('!{!"llvm.loop.unroll.disable"}')
    elif definition.unroll > 1:
        properties.append(f'!{{!"llvm.loop.unroll.count", i32 {definition.unroll}}}')
    if group is not None:
        properties.append(f'!{{!"llvm.loop.parallel_accesses", {group}}}')
    if not properties:
        return ""
    node = body.module.node(f"!{{{{self}}, {', '.join(properties)}}}", distinct=True)
    return f", !llvm.loop {node}"


def _counted(
    body: Body,
    low: str,
    high: str,
    step: str,
    block: Block,
    init: Sequence[Value],
    results: Sequence[Value],
    definition: scf.For,
) -> None:
    """A loop whose block has the counter and the carried values as its arguments."""
    group = body.module.node("!{}", distinct=True) if definition.independent else None
    if group is not None:
        body.groups.append(group)
    head, inside, out = body.new_label("head"), body.new_label("body"), body.new_label("exit")
    before = body.label
    starts = [body.name(v) for v in init]
    body.line(f"br label %{head}")
    body.start(head)
    counter, *carried = block.arguments
    counter_name = body.names[counter] = body.fresh("i")
    place = len(body.lines)
    body.lines.append("")
    for value in carried:
        body.names[value] = body.fresh()
        body.lines.append("")
    test = body.fresh()
    body.line(f"{test} = icmp slt i64 {counter_name}, {high}")
    body.line(f"br i1 {test}, label %{inside}, label %{out}")
    body.start(inside)
    terminator = body.block(block)
    yielded = [body.name(v) for v in terminator.operands] if terminator is not None else []
    following = body.fresh("i")
    body.line(f"{following} = add nsw i64 {counter_name}, {step}")
    body.line(f"br label %{head}{_loop_hints(body, definition, group)}")
    body.lines[place] = f"  {counter_name} = phi i64 [ {low}, %{before} ], [ {following}, %{body.label} ]"
    for i, (value, start, end) in enumerate(zip(carried, starts, yielded, strict=True)):
        type = llvm_type(value.type)
        body.lines[place + 1 + i] = (
            f"  {body.names[value]} = phi {type} [ {start}, %{before} ], [ {end}, %{body.label} ]"
        )
    if group is not None:
        body.groups.pop()
    body.start(out)
    for result, value in zip(results, carried, strict=True):
        body.names[result] = body.names[value]


def _for(body: Body, operation: Operation, definition: scf.For) -> None:
    low, high, step, *init = operation.operands
    block = operation.regions[0].block
    _counted(
        body, body.name(low), body.name(high), body.name(step), block, init, operation.results, definition
    )


def _if(body: Body, operation: Operation, definition: scf.If) -> None:
    (condition,) = operation.operands
    labels = [body.new_label("then"), body.new_label("else")][: len(operation.regions)]
    join = body.new_label("join")
    weights = ""
    if definition.weight:
        pair = (definition.weight, 1) if definition.weight > 0 else (1, -definition.weight)
        weights = ", !prof " + body.module.node(f'!{{!"branch_weights", i32 {pair[0]}, i32 {pair[1]}}}')
    otherwise = labels[1] if len(labels) > 1 else join
    body.line(f"br i1 {body.name(condition)}, label %{labels[0]}, label %{otherwise}{weights}")
    incoming: list[tuple[list[str], str]] = []
    for region, label in zip(operation.regions, labels, strict=True):
        body.start(label)
        terminator = body.block(region.block)
        values = [body.name(v) for v in terminator.operands] if terminator is not None else []
        incoming.append((values, body.label))
        body.line(f"br label %{join}")
    body.start(join)
    for i, result in enumerate(operation.results):
        pairs = ", ".join(f"[ {values[i]}, %{label} ]" for values, label in incoming)
        body.define(result, f"phi {llvm_type(result.type)} {pairs}")


def _while(body: Body, operation: Operation, definition: scf.While) -> None:
    before, after = (region.block for region in operation.regions)
    head, inside, out = body.new_label("head"), body.new_label("body"), body.new_label("exit")
    entry, starts = body.label, [body.name(v) for v in operation.operands]
    body.line(f"br label %{head}")
    body.start(head)
    place = len(body.lines)
    for value in before.arguments:
        body.names[value] = body.fresh()
        body.lines.append("")
    terminator = body.block(before)
    assert terminator is not None
    condition, *passed = [body.name(v) for v in terminator.operands]
    body.line(f"br i1 {condition}, label %{inside}, label %{out}")
    body.start(inside)
    body.names.update(zip(after.arguments, passed, strict=True))
    terminator = body.block(after)
    assert terminator is not None
    ends = [body.name(v) for v in terminator.operands]
    body.line(f"br label %{head}")
    for i, (value, start, end) in enumerate(zip(before.arguments, starts, ends, strict=True)):
        body.lines[place + i] = (
            f"  {body.names[value]} = phi {llvm_type(value.type)} [ {start}, %{entry} ], [ {end}, %{body.label} ]"
        )
    body.start(out)
    body.names.update(zip(operation.results, passed, strict=True))


def _worker(body: Body, operation: Operation, definition: scf.Worker) -> None:
    body.names[operation.results[0]] = body.worker


def _threads(body: Body, operation: Operation, definition: scf.Threads) -> None:
    body.module.declared[abi.POOL_THREADS] = abi.DECLARATIONS[abi.POOL_THREADS]
    body.define(operation.results[0], f"call i64 @{abi.POOL_THREADS}(ptr {body.name(operation.operands[0])})")


def _parallel(body: Body, operation: Operation, definition: scf.Parallel) -> None:
    low, high, step, *pool = (body.name(v) for v in operation.operands)
    block = operation.regions[0].block
    if not pool:
        _counted(body, low, high, step, block, (), (), scf.For())
        return
    if (low, step) != ("0", "1"):
        raise CompilationError("scf.parallel on a pool must count from 0 by 1", operation.location)
    body.children += 1
    name = f"{body.name_}.parallel{body.children}"
    inner = Body(body.module, f"{name}.body", body)
    inner.worker = "%worker"
    _counted(inner, "%begin", "%end", "1", block, (), (), scf.For())
    inner.line("ret void")
    captures = [(outer, own, type) for outer, (own, type) in inner.captures.items()]
    roots = [body.root(outer) for outer, _, type in captures if type == "ptr"]
    parameters = []
    for outer, own, type in captures:
        root = body.root(outer)
        alone = type == "ptr" and root in body.unaliased and roots.count(root) == 1
        parameters.append(f"{type} {'noalias ' if alone else ''}{own}")
    parameters += ["i64 %begin", "i64 %end", "i64 %worker"]
    inner.finish(f"define internal void @{name}.body({', '.join(parameters)}) #0")
    _outlined(body, name, captures, operation)


def _outlined(body: Body, name: str, captures: list[tuple[str, str, str]], operation: Operation) -> None:
    """The function that unpacks the captured values, and the call of the pool on it."""
    type = "{ " + ", ".join(t for _, _, t in captures) + " }" if captures else "{ i8 }"
    lines = [f"define internal void @{name}(ptr %ctx, i64 %begin, i64 %end, i64 %worker) #0 {{", "entry:"]
    context = body.fresh("ctx")
    body.allocas.append(f"  {context} = alloca {type}, align 64")
    for i, (outer, own, kind) in enumerate(captures):
        lines.append(f"  {own}.p = getelementptr inbounds {type}, ptr %ctx, i32 0, i32 {i}")
        lines.append(f"  {own} = load {kind}, ptr {own}.p")
        field = body.fresh("p")
        body.line(f"{field} = getelementptr inbounds {type}, ptr {context}, i32 0, i32 {i}")
        body.line(f"store {kind} {outer}, ptr {field}")
    operands = [f"{kind} {own}" for _, own, kind in captures] + ["i64 %begin", "i64 %end", "i64 %worker"]
    lines += [f"  call void @{name}.body({', '.join(operands)})", "  ret void", "}"]
    body.module.texts.append("\n".join(lines))
    body.module.declared[abi.PARALLEL_FOR] = abi.DECLARATIONS[abi.PARALLEL_FOR]
    count, pool = body.name(operation.operands[1]), body.name(operation.operands[3])
    body.line(f"call void @{abi.PARALLEL_FOR}(ptr {pool}, ptr @{name}, ptr {context}, i64 {count})")


def _barrier(body: Body, operation: Operation, definition: gpu.Barrier) -> None:
    body.line("call void @llvm.nvvm.barrier.cta.sync.aligned.all(i32 0)")


_SHUFFLES = {"xor": ("bfly", 31), "down": ("down", 31), "up": ("up", 0), "idx": ("idx", 31)}


def _gpu_shuffle(body: Body, operation: Operation, definition: gpu.Shuffle) -> None:
    """Words of 32 bits; wider numbers in two halves."""
    (x,), (result,) = operation.operands, operation.results
    mode, clamp = _SHUFFLES[definition.mode]
    type, name = llvm_type(x.type), body.name(x)

    def exchanged(word: str, kind: str) -> str:
        suffix = "f32" if kind == "float" else "i32"
        return (
            f"call {kind} @llvm.nvvm.shfl.sync.{mode}.{suffix}"
            f"(i32 -1, {kind} {word}, i32 {definition.offset}, i32 {clamp})"
        )

    if type in ("float", "i32"):
        body.define(result, exchanged(name, type))
        return
    if type not in ("double", "i64"):
        raise CompilationError(
            f"gpu.shuffle exchanges words of 32 or 64 bits, got {x.type}", operation.location
        )
    pair, moved = body.fresh(), "poison"
    body.line(f"{pair} = bitcast {type} {name} to <2 x i32>")
    for half in range(2):
        word, other, joined = body.fresh(), body.fresh(), body.fresh()
        body.line(f"{word} = extractelement <2 x i32> {pair}, i64 {half}")
        body.line(f"{other} = {exchanged(word, 'i32')}")
        body.line(f"{joined} = insertelement <2 x i32> {moved}, i32 {other}, i64 {half}")
        moved = joined
    body.define(result, f"bitcast <2 x i32> {moved} to {type}")


HANDLERS: dict[type[OpDef], Handler] = {
    arith.Constant: _constant,
    arith.Select: _select,
    arith.IndexCast: _index_cast,
    arith.IndexCastUI: _index_cast_unsigned,
    func.Return: _return,
    func.Call: _call,
    scf.For: _for,
    scf.If: _if,
    scf.While: _while,
    scf.Worker: _worker,
    scf.Threads: _threads,
    scf.Parallel: _parallel,
    gpu.Barrier: _barrier,
    gpu.Shuffle: _gpu_shuffle,
}
