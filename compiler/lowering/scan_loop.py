"""Loops over steps: the body is cut into kernels like a program of its own, and a function calls them in each step.

Nothing is copied from step to step where that can be avoided: a slice of a sequence is an address in it, an output is
written where it lies in the stacked result, and a carry is the address of what the last step wrote. What a carry becomes
is written into the stacked result if it is also an output (then the next step reads it there), or alternately into the
workspace and into the scan's result, so that the last step writes the result.

Where the rows of a batch have nothing to do with one another, threads take some of them through all steps (`Rows`): they
meet once instead of in every kernel of every step, and none reads what another has just written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from flambeau.compiler.dialects.graph.scan import Scan
from flambeau.compiler.ir.core import Graph, Operation, Value
from flambeau.compiler.ir.dims import Index, Symbol, of_symbol
from flambeau.compiler.ir.types import TensorType, u8
from flambeau.compiler.lowering.context import LoweringContext, tensor_of
from flambeau.compiler.passes.fuse import Kernel, KernelCall, Program, fuse
from flambeau.compiler.passes.plan import MemoryPlan, aligned, plan
from flambeau.compiler.signature import byte_size


@dataclass(frozen=True)
class StepKernel:
    """A kernel of the body: its name, its functions, the symbols that it takes and the bytes of its workspace."""

    name: str
    functions: tuple[Operation, ...]
    symbols: tuple[Symbol, ...]
    workspace: Index


@dataclass
class Step:
    """A scan's body as kernels, and where the workspace has what."""

    scan: Scan
    program: Program
    kernels: list[StepKernel]
    memory: MemoryPlan
    #: Byte offsets in the workspace of the second place of carries that alternate.
    spare: dict[int, Index] = field(default_factory=dict)
    workspace: Index = 0

    @property
    def functions(self) -> tuple[Operation, ...]:
        """The functions of the body's different kernels."""
        found = {k.name: k.functions for k in self.kernels}
        return tuple([f for functions in found.values() for f in functions])


def cut_body(scan: Scan, lower: Callable[[Kernel, int], StepKernel]) -> Step:
    """The body's kernels; `lower` lowers the one with a number."""
    body = scan.body
    parameters = set(body.parameters)
    computed = list(dict.fromkeys(r for r in body.results if r not in parameters))
    program = fuse(Graph(body.parameters, computed, body.name))
    known: dict[object, StepKernel] = {}
    kernels = []
    for call in program.calls:
        key = call.kernel.key()
        if key not in known:
            known[key] = lower(call.kernel, len(known))
        kernels.append(known[key])
    step = Step(scan, program, kernels, plan(program, [k.workspace for k in kernels]))
    step.workspace = step.memory.size
    for i in alternating(scan):
        step.spare[i] = step.workspace
        step.workspace = step.workspace + aligned(byte_size(body.results[i]))
    return step


def alternating(scan: Scan) -> list[int]:
    """The carries that are written alternately to two places."""
    results, n = scan.body.results, scan.carries
    outputs = set(results[n:])
    found = []
    for i in range(n):
        value, before = results[i], scan.body.parameters[i]
        if value in outputs and value not in scan.body.parameters:
            continue  # the next step reads the stacked result
        if value in scan.body.parameters[n:]:
            continue  # a slice of a sequence, or an invariant: read where it is
        if value not in scan.body.parameters and before in outputs and results.index(value) == i:
            continue  # lies in the stack of what the carry was
        if value in results[:i] and value not in scan.body.parameters:
            continue  # another carry has it
        found.append(i)
    return found


@dataclass(frozen=True)
class Rows:
    """Of the rows of `whole`, those from number `part` times the rows of a step's body on."""

    whole: Scan
    part: Index = 0

    def offset(self, whole: Value, own: Value, position: Index) -> Index:
        """Where the part's rows begin in slice `position` of a stack, in elements; of values of the whole body, and of one of the
        part's."""
        full, type = tensor_of(whole), tensor_of(own)
        return position * full.size + (0 if full is type else self.part * type.size)


class StepEmitter:
    """Writes the loop. `operands` and `results` are the scan's buffers, `arena` the step's workspace."""

    def __init__(
        self,
        ctx: LoweringContext,
        step: Step,
        rows: Rows,
        operands: Sequence[Value],
        results: Sequence[Value],
        arena: Value | None,
        pool: Value,
    ) -> None:
        self.b, self.step, self.scan, self.rows = ctx.b, step, step.scan, rows
        self.operands, self.results, self.arena, self.pool = operands, results, arena, pool
        self.body = step.scan.body
        self.n = step.scan.carries

    def emit(self) -> None:
        """The loop over all steps, and the results that it has not written."""
        b, n = self.b, self.n
        starts = [self._operand(i, 0) for i in range(n)]
        for i in range(n):
            stack = self._history(i)
            if stack is not None:
                self._copy(starts[i], self._result(stack, self._at(0)), i)
        with b.for_(0, self.scan.length, init=starts, vectorize=False) as loop:
            loop.yield_(*self._one_step(loop.index, loop.carried))
        for i, pointer in enumerate(loop.results):
            if i not in self.step.spare and self._history(i) is None:
                self._copy(pointer, self._result(i, 0), i)

    # -- places --------------------------------------------------------------------------------------------------------
    def _at(self, step: Index) -> Index:
        """The position along axis 0 of a step."""
        return self.scan.length - 1 - step if self.scan.reverse else step

    def _operand(self, i: int, position: Index) -> Value:
        """The address of the rows in operand `i`, in slice `position` if it is a sequence."""
        own = self.body.parameters[i]
        offset = self.rows.offset(self.rows.whole.body.parameters[i], own, position)
        return self.b.to_pointer(self.b.subview(self.operands[i], offset, tensor_of(own).shape))

    def _result(self, i: int, position: Index) -> Value:
        """The address of the rows in result `i`, in slice `position` if it is stacked."""
        own = self.body.results[i]
        offset = self.rows.offset(self.rows.whole.body.results[i], own, position)
        return self.b.to_pointer(self.b.subview(self.results[i], offset, tensor_of(own).shape))

    def _view(self, offset: Index, type: TensorType) -> Value:
        assert self.arena is not None
        return self.b.to_pointer(self.b.view(self.arena, offset, type.shape, type.element))

    def _history(self, i: int) -> int | None:
        """The stacked result that has what carry `i` was before each step and in which the next is written, if any."""
        value, before = self.body.results[i], self.body.parameters[i]
        outputs = self.body.results[self.n :]
        own = (
            value not in self.body.parameters and value not in outputs and self.body.results.index(value) == i
        )
        return self.n + outputs.index(before) if own and before in outputs else None

    def _copy(self, source: Value, target: Value, number: int) -> None:
        type = tensor_of(self.body.results[number])
        if type.size == 0:
            return
        flat = [self.b.from_pointer(p, (type.size,), type.element) for p in (source, target)]
        self.b.copy(flat[0], flat[1], type.size)

    # -- one step ------------------------------------------------------------------------------------------------------
    def _one_step(self, step: Index, carried: Sequence[Value]) -> list[Value]:
        n, body = self.n, self.body
        at = self._at(step)
        places: dict[Value, Value] = {}
        for i, parameter in enumerate(body.parameters):
            if i < n:
                places[parameter] = carried[i]
            elif i < n + self.scan.sequences:
                places[parameter] = self._operand(i, at)
            else:
                places[parameter] = self._operand(i, 0)
        copies: list[tuple[Value, Value, int]] = []
        stacked: dict[Value, int] = {}
        for i, value in enumerate(body.results[n:], n):
            if value in body.parameters:
                before = body.parameters.index(value)
                if before >= n or self._history(before) != i:
                    copies.append((places[value], self._result(i, at), i))
            elif value in stacked:
                copies.append((self._result(stacked[value], at), self._result(i, at), i))
            else:
                stacked[value] = i
                places[value] = self._result(i, at)
        following: list[Value] = []
        for i, value in enumerate(body.results[:n]):
            if i in self.step.spare:
                target = self._alternate(step, i)
                if value in body.parameters:
                    copies.append((places[value], target, i))
                else:
                    places[value] = target
                following.append(target)
                continue
            history = self._history(i)
            if history is not None:
                places[value] = self._next_in_stack(step, i, history)
            following.append(places[value])
        for call, kernel, workspace in zip(
            self.step.program.calls, self.step.kernels, self.step.memory.workspaces, strict=True
        ):
            self._call(call, kernel, workspace, places)
        for source, target, number in copies:
            self._copy(source, target, number)
        return following

    def _alternate(self, step: Index, i: int) -> Value:
        """Where step `step` writes carry `i`: the result, or the workspace, so that the last step writes the result."""
        b = self.b
        odd = b.icmp("ne", b.index((self.scan.length - 1 - step) % 2), b.index(0))
        spare = self._view(self.step.spare[i], tensor_of(self.body.results[i]))
        return b.select(odd, spare, self._result(i, 0))

    def _next_in_stack(self, step: Index, i: int, stack: int) -> Value:
        """Where step `step` writes a carry that lies in a stack: at the next step's place, at last in the result."""
        b, last = self.b, self.scan.length - 1
        following = self._result(stack, self._at(step + 1))
        is_last = b.icmp("eq", b.index(step), b.index(last))
        return b.select(is_last, self._result(i, 0), following)

    def _call(
        self, call: KernelCall, kernel: StepKernel, workspace: Index | None, places: dict[Value, Value]
    ) -> None:
        b = self.b
        buffers = []
        for value in (*call.operands, *call.results):
            type = tensor_of(value)
            if value not in places:
                places[value] = self._view(self.step.memory.offsets[value], type)
            buffers.append(b.from_pointer(places[value], type.shape, type.element))
        scratch = self.pool if workspace is None else self._workspace(workspace)
        b.call(kernel.name, [*buffers, scratch, self.pool, *[b.index(of_symbol(s)) for s in kernel.symbols]])

    def _workspace(self, offset: Index) -> Value:
        """The address of a kernel's workspace."""
        assert self.arena is not None
        return self.b.to_pointer(self.b.view(self.arena, offset, (1,), u8))
