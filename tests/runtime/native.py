"""LLVM IR functions that the tests of the runtime run."""

from __future__ import annotations

from collections.abc import Sequence

from flambeau.compiler.targets.machine import emit_object, host_target
from flambeau.runtime.engine import LoadedModule, default_engine

# ctx of every body: { ptr workers, ptr visits, ptr pool, ptr values, ptr partials }
BODIES = """
%ctx = type { ptr, ptr, ptr, ptr }
declare void @fb_parallel_for(ptr, ptr, ptr, i64)
declare i32 @sched_yield()
declare i32 @sched_getcpu()

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

; as mark, but index 2 waits until `visits` has the four others of [0, 5), and says in values[0] that it saw them
define void @gather(ptr %ctx, i64 %begin, i64 %end, i64 %worker) {
entry:
  %visits.p = getelementptr %ctx, ptr %ctx, i32 0, i32 1
  %visits = load ptr, ptr %visits.p
  %values.p = getelementptr %ctx, ptr %ctx, i32 0, i32 3
  %values = load ptr, ptr %values.p
  br label %loop
loop:
  %i = phi i64 [ %begin, %entry ], [ %next, %done ]
  %special = icmp eq i64 %i, 2
  br i1 %special, label %wait, label %done
wait:
  %tries = phi i64 [ 0, %loop ], [ %tries.next, %more ]
  %sum = phi i64 [ 0, %loop ], [ %sum.1, %more ]
  %v0.p = getelementptr i64, ptr %visits, i64 0
  %v1.p = getelementptr i64, ptr %visits, i64 1
  %v3.p = getelementptr i64, ptr %visits, i64 3
  %v4.p = getelementptr i64, ptr %visits, i64 4
  %v0 = load atomic i64, ptr %v0.p acquire, align 8
  %v1 = load atomic i64, ptr %v1.p acquire, align 8
  %v3 = load atomic i64, ptr %v3.p acquire, align 8
  %v4 = load atomic i64, ptr %v4.p acquire, align 8
  %a = add i64 %v0, %v1
  %b = add i64 %v3, %v4
  %sum.1 = add i64 %a, %b
  %all = icmp eq i64 %sum.1, 4
  br i1 %all, label %seen, label %more
more:
  %y = call i32 @sched_yield()
  %tries.next = add i64 %tries, 1
  %again = icmp ult i64 %tries.next, 10000000
  br i1 %again, label %wait, label %done
seen:
  store float 1.0, ptr %values
  br label %done
done:
  %v = getelementptr i64, ptr %visits, i64 %i
  store atomic i64 1, ptr %v release, align 8
  %next = add i64 %i, 1
  %left = icmp ult i64 %next, %end
  br i1 %left, label %loop, label %exit
exit:
  ret void
}

; workers[i] = the CPU that index i ran on, after some microseconds of work
define void @where(ptr %ctx, i64 %begin, i64 %end, i64 %worker) {
entry:
  %workers = load ptr, ptr %ctx
  %visits.p = getelementptr %ctx, ptr %ctx, i32 0, i32 1
  %visits = load ptr, ptr %visits.p
  br label %loop
loop:
  %i = phi i64 [ %begin, %entry ], [ %next, %step ]
  br label %spin
spin:
  %k = phi i64 [ 0, %loop ], [ %k.next, %spin ]
  %k.next = add i64 %k, 1
  %v = getelementptr i64, ptr %visits, i64 %i
  store volatile i64 %k, ptr %v
  %more = icmp ult i64 %k.next, 20000
  br i1 %more, label %spin, label %step
step:
  %cpu = call i32 @sched_getcpu()
  %wide = sext i32 %cpu to i64
  %cpu.by.worker = shl i64 %wide, 16
  %both = or i64 %cpu.by.worker, %worker
  %w = getelementptr i64, ptr %workers, i64 %i
  store i64 %both, ptr %w
  %next = add i64 %i, 1
  %left = icmp ult i64 %next, %end
  br i1 %left, label %loop, label %exit
exit:
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
define void @run_gather(ptr %pool, ptr %ctx, i64 %n) {
  call void @fb_parallel_for(ptr %pool, ptr @gather, ptr %ctx, i64 %n)
  ret void
}
define void @run_where(ptr %pool, ptr %ctx, i64 %n) {
  call void @fb_parallel_for(ptr %pool, ptr @where, ptr %ctx, i64 %n)
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
