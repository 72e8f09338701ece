"""`scf`: structured control flow."""

from __future__ import annotations

from flambeau.compiler.diagnostics import VerificationError
from flambeau.compiler.dialects.loops.base import LoopOp
from flambeau.compiler.ir.core import Operation
from flambeau.compiler.ir.types import IndexType, PointerType, Type, i1, index


def check_yield(operation: Operation, types: tuple[Type, ...]) -> None:
    """Raises VerificationError where a region does not end in a yield of `types`."""
    for region in operation.regions:
        last = region.block.operations[-1] if region.block.operations else None
        if last is None or not isinstance(last.definition, Yield):
            raise VerificationError(f"{operation.name}: a region must end in scf.yield", operation.location)
        actual = tuple(v.type for v in last.operands)
        if actual != types:
            raise VerificationError(f"{operation.name}: must yield {types}, got {actual}", operation.location)


class For(LoopOp):
    """Counts from operand 0 to below operand 1 by operand 2; the rest are carried from iteration to iteration.

    The hints: without `vectorize` LLVM leaves the loop scalar (the rest of explicit vector code, say); `independent`
    promises that no iteration reads what another writes; `unroll` is a factor (0: LLVM decides, 1: never).
    """

    name = "scf.for"
    vectorize: bool = True
    independent: bool = False
    unroll: int = 0

    def infer(self, *operands: Type) -> tuple[Type, ...]:
        if len(operands) < 3 or not all(isinstance(t, IndexType) for t in operands[:3]):
            raise self.reject("takes three indices (from, to, step) and the carried values", actual=operands)
        return operands[3:]

    def verify(self, operation: Operation) -> None:
        check_yield(operation, tuple(r.type for r in operation.results))


class If(LoopOp):
    """Runs its first region where operand 0 is set, else its second (if any). Results are what the regions yield.

    `weight` > 0 says that the condition holds `weight` times as often as not; < 0 the reverse.
    """

    name = "scf.if"
    explicit_results = True
    weight: int = 0

    def verify(self, operation: Operation) -> None:
        if len(operation.operands) != 1 or operation.operands[0].type is not i1:
            raise VerificationError("scf.if: takes one i1", operation.location)
        check_yield(operation, tuple(r.type for r in operation.results))


class While(LoopOp):
    """Runs the first region (it ends in scf.condition); while that holds, the second on the values passed along."""

    name = "scf.while"
    explicit_results = True


class Condition(LoopOp):
    """Ends the first region of scf.while: whether to go on, and the values passed along."""

    name = "scf.condition"
    is_terminator = True


class Parallel(LoopOp):
    """Independent iterations from operand 0 to below operand 1 by operand 2, on the pool that is operand 3.

    Without operand 3 the iterations run on the caller's thread.
    """

    name = "scf.parallel"

    def infer(self, *operands: Type) -> tuple[Type, ...]:
        if len(operands) not in (3, 4) or not all(isinstance(t, IndexType) for t in operands[:3]):
            raise self.reject("takes three indices (from, to, step) and a pool", actual=operands)
        if len(operands) == 4 and not isinstance(operands[3], PointerType):
            raise self.reject("takes a pointer as its pool", actual=operands[3])
        return ()


class Reduce(LoopOp):
    """Ends the body of scf.parallel."""

    name = "scf.reduce"
    is_terminator = True


class Yield(LoopOp):
    """Ends a region and gives its values."""

    name = "scf.yield"
    is_terminator = True


class Worker(LoopOp):
    """Inside a parallel body: the number of the thread that runs it, from 0; outside, 0."""

    name = "runtime.worker"

    def infer(self, *operands: Type) -> Type:
        return index


class Threads(LoopOp):
    """How many threads there may be in the bodies that run on the pool that is the operand; 1 for a null pointer."""

    name = "runtime.threads"

    def infer(self, *operands: Type) -> Type:
        if len(operands) != 1 or not isinstance(operands[0], PointerType):
            raise self.reject("takes a pointer as its pool", actual=operands)
        return index
