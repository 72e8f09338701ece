"""LLVM IR functions that the tests of the runtime run."""

from __future__ import annotations

from collections.abc import Sequence

from flambeau.compiler.targets.machine import emit_object, host_target
from flambeau.runtime.engine import LoadedModule, default_engine

# ctx of every body: { ptr workers, ptr visits, ptr pool, ptr values, ptr partials }
BODIES = """
%ctx = type { ptr, ptr, ptr, ptr, ptr }
declare void @fb_parallel_for(ptr, ptr, ptr, i64)

; workers[i] = worker and visits[i] += 1 (not atomically: each i has one owner) for i in [begin, end)
define void @mark(ptr %ctx, i64 %begin, i64 %end, i64 %worker) {
entry:
  %workers = load ptr, ptr %ctx
  %visits.p = getelementptr %ctx, ptr %ctx, i32 0, i32 1
  %visits = load ptr, ptr %visits.p
  br label %loop
loop:
  %i = phi i64 [ %begin, %entry ], [ %next, %loop ]
  %w = getelementptr i64, ptr %workers, i64 %i
  store i64 %worker, ptr %w
  %v = getelementptr i64, ptr %visits, i64 %i
  %old = load i64, ptr %v
  %new = add i64 %old, 1
  store i64 %new, ptr %v
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, %end
  br i1 %more, label %loop, label %exit
exit:
  ret void
}

; for each of its own i: a nested loop over i's row of 8 of the arrays
define void @nest(ptr %ctx, i64 %begin, i64 %end, i64 %worker) {
entry:
  %inner = alloca %ctx
  %pool.p = getelementptr %ctx, ptr %ctx, i32 0, i32 2
  %pool = load ptr, ptr %pool.p
  %workers = load ptr, ptr %ctx
  %visits.p = getelementptr %ctx, ptr %ctx, i32 0, i32 1
  %visits = load ptr, ptr %visits.p
  %inner.visits = getelementptr %ctx, ptr %inner, i32 0, i32 1
  br label %loop
loop:
  %i = phi i64 [ %begin, %entry ], [ %next, %loop ]
  %row = mul i64 %i, 8
  %w = getelementptr i64, ptr %workers, i64 %row
  %v = getelementptr i64, ptr %visits, i64 %row
  store ptr %w, ptr %inner
  store ptr %v, ptr %inner.visits
  call void @fb_parallel_for(ptr %pool, ptr @mark, ptr %inner, i64 8)
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, %end
  br i1 %more, label %loop, label %exit
exit:
  ret void
}

; partials[worker] = sum of values[begin:end], in f32, in order
define void @sum(ptr %ctx, i64 %begin, i64 %end, i64 %worker) {
entry:
  %values.p = getelementptr %ctx, ptr %ctx, i32 0, i32 3
  %values = load ptr, ptr %values.p
  %partials.p = getelementptr %ctx, ptr %ctx, i32 0, i32 4
  %partials = load ptr, ptr %partials.p
  br label %loop
loop:
  %i = phi i64 [ %begin, %entry ], [ %next, %loop ]
  %s = phi float [ 0.0, %entry ], [ %t, %loop ]
  %p = getelementptr float, ptr %values, i64 %i
  %x = load float, ptr %p
  %t = fadd float %s, %x
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, %end
  br i1 %more, label %loop, label %exit
exit:
  %q = getelementptr float, ptr %partials, i64 %worker
  store float %t, ptr %q
  ret void
}

define void @run_mark(ptr %pool, ptr %ctx, i64 %n) {
  call void @fb_parallel_for(ptr %pool, ptr @mark, ptr %ctx, i64 %n)
  ret void
}
define void @run_nest(ptr %pool, ptr %ctx, i64 %n) {
  call void @fb_parallel_for(ptr %pool, ptr @nest, ptr %ctx, i64 %n)
  ret void
}
define void @run_sum(ptr %pool, ptr %ctx, i64 %n) {
  call void @fb_parallel_for(ptr %pool, ptr @sum, ptr %ctx, i64 %n)
  ret void
}
define void @repeat_mark(ptr %pool, ptr %ctx, i64 %n, i64 %times) {
entry:
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]
  call void @fb_parallel_for(ptr %pool, ptr @mark, ptr %ctx, i64 %n)
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, %times
  br i1 %more, label %loop, label %exit
exit:
  ret void
}
"""


def load(ir_text: str, exports: Sequence[str] = ()) -> LoadedModule:
    """The module's code, optimised for this machine, in memory."""
    return default_engine().add_object(emit_object(ir_text, host_target()), exports=exports)
