"""The contraction template: matrix products and convolutions, forward and gradients, as loops.

The operands are read through element functions or, where they simply lie in memory, directly; the result leaves
through an epilogue. Five schemes, chosen by `schedule.cpu_contraction`:

- *direct*: both operands as they lie, register tiles over M and N (`contraction_direct.py`);
- *panel*: the same with a panel of B, packed on the stack by each task;
- *dot*: both operands have K along memory and one of M and N is small: vectors run along K (`contraction_dot.py`);
- *few*: A packed, few rows, and a large B, which is read once, as it lies (`contraction_few.py`);
- *packed*: blocks of K; both operands packed into the workspace, by all tasks together, then tiles
  (`contraction_packed.py`).

A B that lies in panels already (a weight) is read from there, in the schemes *direct* and *packed*.
"""

from __future__ import annotations

from dataclasses import replace

from flambeau.compiler.ir.dims import Index
from flambeau.compiler.lowering.contraction_direct import Direct
from flambeau.compiler.lowering.contraction_dot import Dot
from flambeau.compiler.lowering.contraction_emitter import Buffer, Emitter
from flambeau.compiler.lowering.contraction_few import Few, FewLayout
from flambeau.compiler.lowering.contraction_packed import Packed
from flambeau.compiler.lowering.contraction_problem import Contraction, Operand, ceil_div, exchanged
from flambeau.compiler.lowering.contraction_tiles import Layout
from flambeau.compiler.lowering.words import in_words
from flambeau.compiler.schedule.cpu_contraction import (
    Chooser,
    ContractionSchedule,
    CpuShape,
    OperandFacts,
    choose,
)


def schedule_of(
    problem: Contraction, cpu: CpuShape, chooser: Chooser = choose
) -> tuple[Contraction, ContractionSchedule]:
    """The problem, its operands exchanged where that helps, and its schedule."""
    a, b = _facts(problem, problem.a), _facts(problem, problem.b)
    if problem.n == 1 and problem.m != 1 and not (a.plain and a.unit_depth):
        problem, a, b = exchanged(problem), b, a
    dot = problem.dot
    k = problem.k if dot is None else ceil_div(problem.k, dot.group)
    batched = any(extent != 1 for extent in problem.batch)
    schedule = chooser(problem.m, problem.n, k, problem.accumulator, a, b, cpu, batched, dot is not None)
    schedule = replace(schedule, by_lane=cpu.by_lane and schedule.lanes > 1 and (dot is None or dot.of_bytes))
    if b.panel != schedule.columns:  # another machine's panels: read as any other element function
        problem = replace(problem, b=replace(problem.b, panels=None))
    if dot is not None:
        if problem.b.panels is not None and problem.b.panels.flip:
            problem = replace(problem, dot=dot.with_flipped_b())
        problem = in_words(problem)
    return problem, schedule


def _facts(problem: Contraction, operand: Operand) -> OperandFacts:
    plain = operand.plain
    if plain is None:
        width = 0 if operand.panels is None else operand.panels.width
        return OperandFacts(False, False, False, width)
    # Without a loss of time only words that need no change, and without a mask only whole ones.
    dot, k = problem.dot, problem.k
    whole = dot is not None and isinstance(k, int) and k % dot.group == 0 and not dot.flip
    in_words = whole and plain.unit_depth and dot is not None and plain.element.bits == dot.piece.bits
    return OperandFacts(
        plain.element is problem.accumulator, plain.unit_row, plain.unit_depth, in_words=in_words
    )


def workspace_elements(problem: Contraction, cpu: CpuShape, chooser: Chooser = choose) -> Index:
    """How many elements of the accumulator's type `emit` needs as workspace, aligned to 64 bytes; 0 for none."""
    problem, s = schedule_of(problem, cpu, chooser)
    if s.scheme == "few":
        return FewLayout(problem, s).size
    return Layout(problem, s).size if s.scheme == "packed" else 0


def emit(
    b: Emitter,
    problem: Contraction,
    cpu: CpuShape,
    workspace: Buffer | None = None,
    chooser: Chooser = choose,
) -> ContractionSchedule:
    """Emit the loops of `problem`; returns the schedule that was used.

    `workspace`: a one-dimensional buffer of `workspace_elements` elements, if there are any. Not inside a parallel
    body: the scheme *packed* runs one parallel loop after another.
    """
    problem, s = schedule_of(problem, cpu, chooser)
    if 0 in (*problem.batch, problem.m, problem.n):
        return s  # an empty result
    if s.scheme == "dot":
        Dot(b, problem, s).emit()
    elif s.scheme == "few":
        Few(b, problem, s, workspace).emit()
    elif s.scheme == "packed":
        Packed(b, problem, s, workspace).emit()
    else:
        Direct(b, problem, s, workspace).emit()
    return s
