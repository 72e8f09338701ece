"""Contraction kernels: the operation's description, bound to buffers and element functions, given to the template."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from flambeau.compiler.diagnostics import CompilationError
from flambeau.compiler.dialects.graph.blocked_convolution import BlockedConvolution
from flambeau.compiler.dialects.graph.contraction import DotGeneral, SideAxes, accumulator_of
from flambeau.compiler.dialects.graph.convolution import Convolution
from flambeau.compiler.dialects.graph.expanded_depthwise import ExpandedDepthwise
from flambeau.compiler.dialects.graph.im2col import SHORT_RUN
from flambeau.compiler.dialects.graph.packing import UnpackPanels
from flambeau.compiler.dialects.graph.winograd import WinogradConvolution
from flambeau.compiler.ir.core import Operation, Value
from flambeau.compiler.ir.dims import Index, Symbol, of_symbol, recombine
from flambeau.compiler.ir.types import ElementType, TensorType, VectorType, bf16
from flambeau.compiler.lowering import contraction as template
from flambeau.compiler.lowering.blocked_convolution import blocked_workspace, lower_blocked_convolution
from flambeau.compiler.lowering.blocked_problem import FROM_AFAR
from flambeau.compiler.lowering.context import LoweringContext, definition_of, tensor_of
from flambeau.compiler.lowering.contraction_emitter import LoopEmitter
from flambeau.compiler.lowering.contraction_problem import Contraction, Operand, Panels, Plain, Touches
from flambeau.compiler.lowering.depthwise_convolution import (
    DepthwisePlan,
    depthwise_plan,
    lower_depthwise_convolution,
)
from flambeau.compiler.lowering.depthwise_gradient import (
    DepthwiseGradientPlan,
    depthwise_gradient_plan,
    lower_depthwise_gradient,
)
from flambeau.compiler.lowering.elements import Scalar
from flambeau.compiler.lowering.expanded_depthwise import expanded_plan, lower_expanded_depthwise
from flambeau.compiler.lowering.grouped_convolution import DirectPlan, direct_plan, lower_grouped_convolution
from flambeau.compiler.lowering.grouped_kernel_gradient import (
    GroupedGradientPlan,
    grouped_gradient_plan,
    lower_grouped_gradient,
)
from flambeau.compiler.lowering.in_place import holder_of_sums
from flambeau.compiler.lowering.kernel_gradient import lower_kernel_gradient, pixel_index
from flambeau.compiler.lowering.probe import Accessor
from flambeau.compiler.lowering.shallow_convolution import (
    ShallowPlan,
    lower_shallow_convolution,
    shallow_plan,
)
from flambeau.compiler.lowering.small_convolution import lower_small_convolution, small_workspace
from flambeau.compiler.lowering.views import coefficient_of, view_of
from flambeau.compiler.lowering.winograd import lower_winograd, winograd_workspace
from flambeau.compiler.lowering.words import narrowed, word_of
from flambeau.compiler.schedule.cpu_contraction import CpuShape, cpu_shape
from flambeau.compiler.schedule.cpu_kernel_gradient import GradientPlan, gradient_plan, numbers_of
from flambeau.compiler.schedule.cpu_small_convolution import SmallConvolution, small_convolution
from flambeau.compiler.targets.dots import DotInstruction, dot_instruction


def workspace_bytes(ctx: LoweringContext, operation: Operation) -> Index:
    """Scratch memory that the kernel needs."""
    if isinstance(operation.definition, BlockedConvolution):
        return blocked_workspace(ctx, operation)
    if isinstance(operation.definition, WinogradConvolution):
        return winograd_workspace(ctx, operation)
    if isinstance(operation.definition, ExpandedDepthwise):
        return 0
    plan = _plan(ctx, operation)
    if isinstance(plan, GradientPlan):
        return plan.workspace_elements * _accumulator(operation).itemsize
    if isinstance(plan, SmallConvolution):
        return small_workspace(operation, plan)
    if plan is not None:
        return 0
    problem = _problem(ctx, operation, LoopEmitter(ctx.b, ctx.e.half))
    elements: Index = template.workspace_elements(problem, cpu_shape(ctx.target), ctx.chooser)
    return elements * problem.accumulator.itemsize


def lower_contraction(ctx: LoweringContext, operation: Operation, workspace: Value | None) -> None:
    """Emit a `dot_general` or a convolution."""
    if isinstance(operation.definition, WinogradConvolution):
        lower_winograd(ctx, operation, workspace)
        return
    if isinstance(operation.definition, BlockedConvolution):
        lower_blocked_convolution(ctx, operation, workspace)
        return
    if isinstance(operation.definition, ExpandedDepthwise):
        expanded = expanded_plan(operation.definition, cpu_shape(ctx.target))
        if expanded is None:
            raise CompilationError(f"{operation.definition.name} of these sizes is not for this target")
        lower_expanded_depthwise(ctx, operation, expanded)
        return
    plan = _plan(ctx, operation)
    if isinstance(plan, DepthwiseGradientPlan):
        lower_depthwise_gradient(ctx, operation, plan)
    elif isinstance(plan, GroupedGradientPlan):
        lower_grouped_gradient(ctx, operation, plan)
    elif isinstance(plan, DepthwisePlan):
        lower_depthwise_convolution(ctx, operation, plan)
    elif isinstance(plan, ShallowPlan):
        lower_shallow_convolution(ctx, operation, plan)
    elif isinstance(plan, DirectPlan):
        lower_grouped_convolution(ctx, operation, plan)
    elif isinstance(plan, GradientPlan):
        _lower_gradient(ctx, operation, plan, workspace)
    elif isinstance(plan, SmallConvolution):
        lower_small_convolution(ctx, operation, plan, workspace)
    if plan is not None:
        return
    emitter = LoopEmitter(ctx.b, ctx.e.half)
    problem = _problem(ctx, operation, emitter)
    cpu = cpu_shape(ctx.target)
    if workspace is not None:
        elements = template.workspace_elements(problem, cpu, ctx.chooser)
        workspace = ctx.b.from_pointer(workspace, (elements,), problem.accumulator)
    template.emit(emitter, problem, cpu, workspace, ctx.chooser)


#: How a convolution runs without the template.
Plan = (
    DepthwiseGradientPlan
    | GroupedGradientPlan
    | DepthwisePlan
    | ShallowPlan
    | DirectPlan
    | GradientPlan
    | SmallConvolution
)


def plan_of(
    op: Convolution, x: TensorType, w: TensorType, cpu: CpuShape, lanes: int, in_memory: bool
) -> Plan | None:
    """The first schedule, in this order, that is for the convolution of `x`, which may lie in memory, with `w`; None for the
    template's."""
    return (
        (depthwise_gradient_plan(op, x, w, cpu) if in_memory else None)
        or grouped_gradient_plan(op, x, w, cpu)
        or (depthwise_plan(op, x, w, cpu) if in_memory else None)
        or shallow_plan(op, x, w, cpu)
        or direct_plan(op, x, w, lanes)
        or gradient_plan(op, x, w, cpu)
        or small_convolution(op, x, w, cpu)
    )


def _plan(ctx: LoweringContext, operation: Operation) -> Plan | None:
    definition = operation.definition
    if not isinstance(definition, Convolution):
        return None
    x, w = operation.operands
    in_memory = x in ctx.memory
    return plan_of(definition, tensor_of(x), tensor_of(w), cpu_shape(ctx.target), ctx.lanes, in_memory)


def _accumulator(operation: Operation) -> ElementType:
    return accumulator_of(tensor_of(operation.operands[0]).element, tensor_of(operation.results[0]).element)


def _lower_gradient(
    ctx: LoweringContext, operation: Operation, plan: GradientPlan, workspace: Value | None
) -> None:
    op, accumulator = definition_of(operation), _accumulator(operation)

    def side(
        number: int, grid: Sequence[int], steps: Sequence[int], image_axis: int, feature_axis: int
    ) -> Operand:
        value = operation.operands[number]
        type = tensor_of(value)
        index = pixel_index(grid, steps, image_axis, feature_axis)

        def load(_: Any, batch: Sequence[Index], row: Index, k: Index) -> Value:
            return ctx.spread(ctx.e.convert(ctx.read(value, index(batch, row, k)), accumulator).value)

        extents = type.shape[feature_axis], math.prod(grid)
        # Every other element of a row is read in vectors.
        run = ("depth", grid[-1]) if steps[-1] <= 2 and grid[-1] >= SHORT_RUN else None
        return _operand(ctx, value, load, index, extents, (plan.images,), run)

    assert workspace is not None
    buffer = ctx.b.from_pointer(workspace, (plan.workspace_elements,), accumulator)
    # Of the convolution that the gradient is, the images are the features and the input's features the batch.
    images, pixels = (numbers_of(tensor_of(v).shape[2:]) for v in operation.operands)
    each = (1,) * op.spatial_rank
    grid, steps = (pixels, op.rhs_dilation) if plan.sampled else (images, each)
    x = side(0, grid, steps, op.input_feature, op.input_batch)
    g = side(1, pixels, each, op.kernel_input_feature, op.kernel_output_feature)
    lower_kernel_gradient(ctx, operation, plan, (x, g), buffer)


def _problem(ctx: LoweringContext, operation: Operation, emitter: LoopEmitter) -> Contraction:
    lhs, rhs = (tensor_of(v) for v in operation.operands)
    d = definition_of(operation).contraction(lhs, rhs)
    left, right = operation.operands[d.operands[0]], operation.operands[d.operands[1]]
    result = tensor_of(operation.results[0])
    e = ctx.e
    dot = None
    if isinstance(operation.definition, DotGeneral):
        dot = dot_instruction(lhs.element, rhs.element, ctx.target)

    def load_a(_: Any, batch: Sequence[Index], m: Index, k: Index) -> Value:
        x = d.lhs_element(e, Accessor(left, ctx.read), batch, m, k)
        return ctx.spread(e.convert(x, d.accumulator).value)

    def load_b(_: Any, batch: Sequence[Index], n: Index, k: Index) -> Value:
        x = d.rhs_element(e, Accessor(right, ctx.read), batch, k, n)
        return ctx.spread(e.convert(x, d.accumulator).value)

    made = operation.results[0]

    def store(_: Any, batch: Sequence[Index], m: Index, n: Index, value: Value) -> None:
        index = tuple(
            0 if extent == 1 else i
            for extent, i in zip(result.shape, d.result_index(batch, m, n), strict=True)
        )
        if (
            dot is not None
            and dot.narrowing
            and result.element is bf16
            and isinstance(value.type, VectorType)
        ):
            ctx.finish(made, index, Scalar(narrowed(ctx.b, value, dot), bf16))
            return
        ctx.finish(made, index, e.convert(Scalar(value, d.accumulator), result.element))

    a = _operand(ctx, left, load_a, d.lhs_index, (d.m, d.k), d.batch, d.lhs_run)
    a = _in_panels(ctx, left, a, d.lhs_axes, d.accumulator, None)
    rhs_index = None if d.rhs_index is None else lambda bt, n, k: d.rhs_index(bt, k, n)
    b = _operand(ctx, right, load_b, rhs_index, (d.n, d.k), d.batch, d.rhs_run)
    b = _in_panels(ctx, right, b, d.rhs_axes, d.accumulator, dot)
    place = _strides(result.shape, d.result_index, (d.m, d.n), d.batch)
    partial = None
    # Nothing else reads or writes this result before it is finished, so it may hold unfinished sums.
    holder = holder_of_sums(ctx.results, made)
    if place is not None and place[1] == 1 and tensor_of(holder).element is d.accumulator:
        partial = Plain(ctx.memory[holder], d.accumulator, d.result_index, place[0] == 1, True)
    long = ctx.results != (made,)
    contiguous = place is not None and place[1] == 1
    small = isinstance(result.size, int) and result.size * result.element.itemsize < FROM_AFAR
    touches = _touches(ctx, made, d) if contiguous and not small else None
    return Contraction(
        d.batch, d.m, d.n, d.k, d.accumulator, a, b, store, partial, d.inner, contiguous, long, touches, dot
    )


def _touches(ctx: LoweringContext, made: Value, d: Any) -> Touches:
    """What the epilogue reads and writes where it is as large as the result, at the element's own position."""
    return lambda batch, m, n: ctx.touched(made, tuple(d.result_index(batch, m, n)))


def _operand(
    ctx: LoweringContext,
    value: Value,
    load: Any,
    index: Any,
    extents: tuple[Index, Index],
    batch: tuple[Index, ...],
    run: tuple[str, int] | None,
) -> Operand:
    """`plain` where the operand, or what it is a view of, simply lies in memory with a unit stride somewhere; else by
    runs, if it has any."""
    view = view_of(value, ctx.memory)
    if view is None:
        return Operand(load)
    base, position = view
    strides, at = None, index
    if index is not None:
        if base is not value:
            at = lambda bt, row, k: position(index(bt, row, k))  # noqa: E731
        strides = _strides(tensor_of(base).shape, at, extents, batch)
    if base is value and strides is None and run is not None:
        return Operand(load, None, "row" if run[0] == "row" else "depth", run[1])
    if strides is None:
        return Operand(load)
    along: Literal["", "row", "depth"] = "row" if strides[0] == 1 else "depth" if strides[1] == 1 else ""
    if not along:
        return Operand(load)
    plain = Plain(ctx.memory[base], tensor_of(base).element, at, strides[0] == 1, strides[1] == 1)
    return Operand(load, plain, along)


def _in_panels(
    ctx: LoweringContext,
    value: Value,
    operand: Operand,
    axes: SideAxes | None,
    accumulator: ElementType,
    dot: DotInstruction | None,
) -> Operand:
    """`operand`, with its panels if `value` is unpacked from some that lie in memory as the side needs them."""
    owner = value.owner
    if owner is None or not isinstance(owner.definition, UnpackPanels):
        return operand
    (packed,), layout = owner.operands, owner.definition
    element, group = tensor_of(packed).element, 1 if dot is None else dot.group
    if (layout.batch, layout.rows, layout.depth) != axes or packed not in ctx.memory or layout.group != group:
        return operand
    if layout.flip != (dot is not None and dot.correction != 0):
        return operand
    buffer, width = ctx.memory[packed], layout.width
    if dot is None:
        if element is not accumulator:
            return operand
        panels = Panels(buffer, width, lambda batch, panel, k, row: (*batch, panel, k, row))
    else:
        panels = Panels(
            buffer,
            width,
            lambda batch, panel, k, row: (*batch, panel, k, row, 0),
            group,
            lambda b, x: word_of(b, x, element, accumulator, dot),
            layout.flip,
        )
    return replace(operand, plain=None, panels=panels)


def _strides(
    shape: Sequence[Index], index: Any, extents: tuple[Index, Index], batch: tuple[Index, ...]
) -> tuple[Index, Index] | None:
    """Memory strides of the two positions, if the element's offset is linear in both; 1 for an extent of 1."""
    row, column = (Symbol(name, 0, extent - 1, 0) for name, extent in zip("rc", extents, strict=True))
    at_row: Index = of_symbol(row)
    at_column: Index = of_symbol(column)
    batches = [of_symbol(Symbol(f"b{i}", 0, extent - 1, 0)) for i, extent in enumerate(batch)]
    offset: Index = 0
    for size, position in zip(shape, index(batches, at_row, at_column), strict=True):
        offset = offset * size + position
    offset = recombine(offset)  # a position split into digits and put together again is linear
    strides: list[Index] = []
    for symbol, extent in ((row, extents[0]), (column, extents[1])):
        if extent == 1:
            strides.append(1)
            continue
        stride = coefficient_of(offset, symbol)
        if stride is None:
            return None
        strides.append(stride)
    return strides[0], strides[1]
