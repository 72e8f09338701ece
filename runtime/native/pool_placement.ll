declare i32 @sched_getcpu() nounwind
declare i32 @pthread_getaffinity_np(i64, i64, ptr) nounwind
declare i32 @pthread_setaffinity_np(i64, i64, ptr) nounwind

; The bits of a CPU number in word number `w` of a CPU set
define internal i64 @fb_pool_cpu_bit(i64 %cpu, i64 %w) nounwind {
  %word = lshr i64 %cpu, 6
  %here = icmp eq i64 %word, %w
  %place = and i64 %cpu, 63
  %bit = shl i64 1, %place
  %found = select i1 %here, i64 %bit, i64 0
  ret i64 %found
}

; Keeps one worker off `cpu`. If somebody else chose its CPUs meanwhile, those count from now on.
define internal void @fb_pool_avoid(ptr %worker, i64 %cpu) nounwind {
entry:
  %now = alloca [16 x i64], align 64
  %thread.p = getelementptr %fb.worker, ptr %worker, i32 0, i32 4
  %avoids.p = getelementptr %fb.worker, ptr %worker, i32 0, i32 5
  %base.p = getelementptr %fb.worker, ptr %worker, i32 0, i32 7
  %thread = load i64, ptr %thread.p
  %avoids = load i64, ptr %avoids.p
  store i64 %cpu, ptr %avoids.p
  %failed = call i32 @pthread_getaffinity_np(i64 %thread, i64 128, ptr %now)
  %ok = icmp eq i32 %failed, 0
  br i1 %ok, label %compare, label %exit
compare:
  %w = phi i64 [ 0, %entry ], [ %w.next, %compare ]
  %foreign = phi i64 [ 0, %entry ], [ %foreign.next, %compare ]
  %now.p = getelementptr i64, ptr %now, i64 %w
  %own.p = getelementptr i64, ptr %base.p, i64 %w
  %have = load i64, ptr %now.p
  %own = load i64, ptr %own.p
  %hole = call i64 @fb_pool_cpu_bit(i64 %avoids, i64 %w)
  %kept = xor i64 %hole, -1
  %expected = and i64 %own, %kept
  %difference = xor i64 %have, %expected
  %foreign.next = or i64 %foreign, %difference
  %w.next = add i64 %w, 1
  %compared = icmp eq i64 %w.next, 16
  br i1 %compared, label %choose, label %compare
choose:
  %theirs = icmp ne i64 %foreign.next, 0
  br label %build
build:
  %v = phi i64 [ 0, %choose ], [ %v.next, %build ]
  %any = phi i64 [ 0, %choose ], [ %any.next, %build ]
  %set.p = getelementptr i64, ptr %now, i64 %v
  %known.p = getelementptr i64, ptr %base.p, i64 %v
  %set = load i64, ptr %set.p
  %known = load i64, ptr %known.p
  %base = select i1 %theirs, i64 %set, i64 %known
  store i64 %base, ptr %known.p
  %bit = call i64 @fb_pool_cpu_bit(i64 %cpu, i64 %v)
  %others = xor i64 %bit, -1
  %new = and i64 %base, %others
  store i64 %new, ptr %set.p
  %any.next = or i64 %any, %new
  %v.next = add i64 %v, 1
  %built = icmp eq i64 %v.next, 16
  br i1 %built, label %apply, label %build
apply:
  %only = icmp eq i64 %any.next, 0
  br i1 %only, label %exit, label %set.it
set.it:
  %s0 = call i32 @pthread_setaffinity_np(i64 %thread, i64 128, ptr %now)
  br label %exit
exit:
  ret void
}

; Keeps the workers off the CPU that the caller is on. Only the pool's owner calls this.
define internal void @fb_pool_place(ptr %pool) nounwind {
entry:
  %cpu.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $cpu
  %cpu = call i32 @sched_getcpu()
  %before = load i32, ptr %cpu.p
  %same = icmp eq i32 %cpu, %before
  br i1 %same, label %exit, label %moved
moved:
  store i32 %cpu, ptr %cpu.p
  %threads.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $threads
  %threads = load i32, ptr %threads.p
  %many = icmp ugt i32 %threads, $placed
  %unknown = icmp ugt i32 %cpu, 1023
  %leave = or i1 %many, %unknown
  br i1 %leave, label %exit, label %all
all:
  %count = zext i32 %threads to i64
  %where = zext i32 %cpu to i64
  %workers = getelementptr %fb.pool, ptr %pool, i32 1
  br label %next
next:
  %i = phi i64 [ 1, %all ], [ %i.next, %avoid ]
  %more = icmp ult i64 %i, %count
  br i1 %more, label %avoid, label %exit
avoid:
  %worker = getelementptr %fb.worker, ptr %workers, i64 %i
  call void @fb_pool_avoid(ptr %worker, i64 %where)
  %i.next = add i64 %i, 1
  br label %next
exit:
  ret void
}
