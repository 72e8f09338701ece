; The thread pool of flambeau.runtime.native.pool, where the protocol is described and the $$names are filled in.

; The job's word, fn, ctx, n, units: one cache line. Then lines of: workers inside the job, and whether the caller sleeps;
; what only the pool's owner writes; sleeping workers; the locks.
%fb.pool = type {
  i64, ptr, ptr, i64, i64, [24 x i8],
  i32, i32, [56 x i8],
  i32, i32, i32, i32, i64, i64, [32 x i8],
  i32, [60 x i8],
  [128 x i8], [128 x i8], [128 x i8]
}
; A thread's share of the units, `end << 32 | begin`, alone on a line; the pool, the thread's number, its handle, and the CPU
; that it must not use; the CPUs that it had when it began.
%fb.worker = type { i64, [56 x i8], ptr, i64, i64, i64, [32 x i8], [16 x i64] }
declare i32 @posix_memalign(ptr, i64, i64) nounwind
declare void @free(ptr) nounwind
declare i32 @getpid() nounwind
declare i32 @pthread_create(ptr, ptr, ptr, ptr) nounwind
declare i32 @pthread_join(i64, ptr) nounwind
declare i32 @pthread_attr_init(ptr) nounwind
declare i32 @pthread_attr_setstacksize(ptr, i64) nounwind
declare i32 @pthread_attr_destroy(ptr) nounwind
declare i32 @pthread_mutex_init(ptr, ptr) nounwind
declare i32 @pthread_mutex_lock(ptr) nounwind
declare i32 @pthread_mutex_unlock(ptr) nounwind
declare i32 @pthread_mutex_destroy(ptr) nounwind
declare i32 @pthread_cond_init(ptr, ptr) nounwind
declare i32 @pthread_cond_wait(ptr, ptr) nounwind
declare i32 @pthread_cond_signal(ptr) nounwind
declare i32 @pthread_cond_broadcast(ptr) nounwind
declare i32 @pthread_cond_destroy(ptr) nounwind
declare i32 @pthread_sigmask(i32, ptr, ptr) nounwind
declare i32 @sigfillset(ptr) nounwind
declare i32 @sched_yield() nounwind
declare i32 @clock_gettime(i32, ptr) nounwind
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
declare i64 @llvm.umin.i64(i64, i64)
declare i64 @llvm.umax.i64(i64, i64)
$pause_declaration

define internal i64 @fb_pool_now() nounwind {
  %time = alloca { i64, i64 }
  %failed = call i32 @clock_gettime(i32 $monotonic, ptr %time)
  %seconds = load i64, ptr %time
  %nanoseconds.p = getelementptr { i64, i64 }, ptr %time, i32 0, i32 1
  %nanoseconds = load i64, ptr %nanoseconds.p
  %whole = mul i64 %seconds, 1000000000
  %now = add i64 %whole, %nanoseconds
  ret i64 %now
}

; fn(ctx, begin, end, worker) over the units [first, last) of the job
define internal void @fb_pool_run(ptr %pool, i64 %first, i64 %last, i64 %worker) nounwind {
  %fn.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $fn
  %ctx.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $ctx
  %n.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $n
  %units.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $units
  %fn = load ptr, ptr %fn.p
  %ctx = load ptr, ptr %ctx.p
  %n = load i64, ptr %n.p
  %units = load i64, ptr %units.p
  %size = udiv i64 %n, %units
  %rest = urem i64 %n, %units
  %low = mul i64 %size, %first
  %low.extra = call i64 @llvm.umin.i64(i64 %first, i64 %rest)
  %begin = add i64 %low, %low.extra
  %high = mul i64 %size, %last
  %high.extra = call i64 @llvm.umin.i64(i64 %last, i64 %rest)
  %end = add i64 %high, %high.extra
  call void %fn(ptr %ctx, i64 %begin, i64 %end, i64 %worker) nounwind
  ret void
}

; Claims some units for thread `self` of `parts`: of its own share from the front, less and less; else half of what another has
; left, from the back, which becomes its own share. (first, last), equal if there are none.
define internal { i64, i64 } @fb_pool_claim(ptr %workers, i64 %self, i64 %parts) nounwind {
entry:
  %own.p = getelementptr %fb.worker, ptr %workers, i64 %self
  br label %own
own:
  %share = load atomic i64, ptr %own.p monotonic, align 8
  %begin = and i64 %share, 4294967295
  %end = lshr i64 %share, 32
  %left = sub i64 %end, %begin
  %none = icmp eq i64 %left, 0
  br i1 %none, label %others, label %take
take:
  %eighth = lshr i64 %left, 3
  %count = call i64 @llvm.umax.i64(i64 %eighth, i64 1)
  %next = add i64 %begin, %count
  %share.next = add i64 %share, %count
  %pair = cmpxchg ptr %own.p, i64 %share, i64 %share.next monotonic monotonic
  %taken = extractvalue { i64, i1 } %pair, 1
  br i1 %taken, label %got, label %own
got:
  %mine.0 = insertvalue { i64, i64 } poison, i64 %begin, 0
  %mine = insertvalue { i64, i64 } %mine.0, i64 %next, 1
  ret { i64, i64 } %mine
others:
  %i = phi i64 [ 1, %own ], [ %i.next, %following ]
  %more = icmp ult i64 %i, %parts
  br i1 %more, label %look, label %nothing
look:
  %sum = add i64 %self, %i
  %over = icmp uge i64 %sum, %parts
  %wrapped = sub i64 %sum, %parts
  %victim = select i1 %over, i64 %wrapped, i64 %sum
  %victim.p = getelementptr %fb.worker, ptr %workers, i64 %victim
  br label %try
try:
  %theirs = load atomic i64, ptr %victim.p monotonic, align 8
  %their.begin = and i64 %theirs, 4294967295
  %their.end = lshr i64 %theirs, 32
  %their.left = sub i64 %their.end, %their.begin
  %empty = icmp eq i64 %their.left, 0
  br i1 %empty, label %following, label %steal
steal:
  %kept = lshr i64 %their.left, 1
  %cut = add i64 %their.begin, %kept
  %cut.high = shl i64 %cut, 32
  %theirs.next = or i64 %cut.high, %their.begin
  %stolen.pair = cmpxchg ptr %victim.p, i64 %theirs, i64 %theirs.next monotonic monotonic
  %stolen = extractvalue { i64, i1 } %stolen.pair, 1
  br i1 %stolen, label %store, label %try
store:
  %high = shl i64 %their.end, 32
  %share.stolen = or i64 %high, %cut
  store atomic i64 %share.stolen, ptr %own.p monotonic, align 8
  br label %own
following:
  %i.next = add i64 %i, 1
  br label %others
nothing:
  ret { i64, i64 } zeroinitializer
}

; Runs what thread `self` can claim, until there is nothing left
define internal void @fb_pool_work(ptr %pool, i64 %self, i64 %parts) nounwind {
entry:
  %workers = getelementptr %fb.pool, ptr %pool, i32 1
  br label %claim
claim:
  %range = call { i64, i64 } @fb_pool_claim(ptr %workers, i64 %self, i64 %parts)
  %first = extractvalue { i64, i64 } %range, 0
  %last = extractvalue { i64, i64 } %range, 1
  %none = icmp eq i64 %first, %last
  br i1 %none, label %exit, label %run
run:
  call void @fb_pool_run(ptr %pool, i64 %first, i64 %last, i64 %self)
  br label %claim
exit:
  ret void
}

$placement

; Wakes the workers
define internal void @fb_pool_wake(ptr %pool) nounwind {
  %mutex = getelementptr %fb.pool, ptr %pool, i32 0, i32 $mutex
  %work = getelementptr %fb.pool, ptr %pool, i32 0, i32 $work
  call void @fb_pool_place(ptr %pool)
  %l0 = call i32 @pthread_mutex_lock(ptr %mutex)
  %c0 = call i32 @pthread_cond_broadcast(ptr %work)
  %l1 = call i32 @pthread_mutex_unlock(ptr %mutex)
  ret void
}

; The caller's part of a job that begins while workers sleep: it wakes them once there seems to be work enough
define internal void @fb_pool_begin(ptr %pool, i64 %parts) nounwind {
entry:
  %workers = getelementptr %fb.pool, ptr %pool, i32 1
  %units.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $units
  %units = load i64, ptr %units.p
  %debt.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $debt
  %ended.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $ended
  %start = call i64 @fb_pool_now()
  %ended = load i64, ptr %ended.p
  %gap = sub i64 %start, %ended
  %recent = icmp ult i64 %gap, $memory
  %debt.old = load i64, ptr %debt.p
  %debt = select i1 %recent, i64 %debt.old, i64 0
  %debt.left = sub i64 $debt_limit, %debt
  br label %claim
claim:
  %done = phi i64 [ 0, %entry ], [ %done.next, %run ]
  %range = call { i64, i64 } @fb_pool_claim(ptr %workers, i64 0, i64 %parts)
  %first = extractvalue { i64, i64 } %range, 0
  %last = extractvalue { i64, i64 } %range, 1
  %none = icmp eq i64 %first, %last
  br i1 %none, label %alone, label %run
run:
  call void @fb_pool_run(ptr %pool, i64 %first, i64 %last, i64 0)
  %now = call i64 @fb_pool_now()
  %elapsed = sub i64 %now, %start
  %count = sub i64 %last, %first
  %done.next = add i64 %done, %count
  %left = sub i64 %units, %done.next
  %product = mul i64 %elapsed, %left
  %rest = udiv i64 %product, %done.next
  %total = add i64 %rest, %elapsed
  %long = icmp ugt i64 %rest, $worthwhile
  %many = icmp ugt i64 %total, %debt.left
  %some = icmp ne i64 %left, 0
  %due = and i1 %many, %some
  %wake = or i1 %long, %due
  br i1 %wake, label %together, label %claim
together:
  store i64 0, ptr %debt.p
  call void @fb_pool_wake(ptr %pool)
  call void @fb_pool_work(ptr %pool, i64 0, i64 %parts)
  ret void
alone:
  %end = call i64 @fb_pool_now()
  %took = sub i64 %end, %start
  %debt.sum = add i64 %debt, %took
  %debt.next = call i64 @llvm.umin.i64(i64 %debt.sum, i64 $debt_limit)
  store i64 %debt.next, ptr %debt.p
  store i64 %end, ptr %ended.p
  ret void
}

define internal ptr @fb_pool_worker(ptr %self) nounwind {
entry:
  %pool.p = getelementptr %fb.worker, ptr %self, i32 0, i32 2
  %pool = load ptr, ptr %pool.p
  %index.p = getelementptr %fb.worker, ptr %self, i32 0, i32 3
  %index = load i64, ptr %index.p
  %word.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $word
  %active.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $active
  %waiting.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $waiting
  %sleepers.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $sleepers
  %mutex = getelementptr %fb.pool, ptr %pool, i32 0, i32 $mutex
  %work = getelementptr %fb.pool, ptr %pool, i32 0, i32 $work
  %done = getelementptr %fb.pool, ptr %pool, i32 0, i32 $done
  br label %idle
idle:
  %last = phi i64 [ 0, %entry ], [ %word, %got ], [ %word, %leave ], [ %word, %signal ]
  br label %spin
spin:
  %i = phi i32 [ 0, %idle ], [ %i.next, %again ], [ %i.next, %yield ]
  %seen = load atomic i64, ptr %word.p acquire, align 8
  %open = and i64 %seen, 1
  %is.open = icmp ne i64 %open, 0
  %other = icmp ne i64 %seen, %last
  %new = and i1 %is.open, %other
  br i1 %new, label %got, label %again
again:
  $pause
  %i.next = add i32 %i, 1
  %turn = and i32 %i.next, $yield_mask
  %due = icmp eq i32 %turn, 0
  br i1 %due, label %yield, label %spin
yield:
  %y0 = call i32 @sched_yield()
  %more = icmp ult i32 %i.next, $spins
  br i1 %more, label %spin, label %sleep
sleep:
  %l0 = call i32 @pthread_mutex_lock(ptr %mutex)
  %s0 = atomicrmw add ptr %sleepers.p, i32 1 seq_cst
  br label %check
check:
  %seen.2 = load atomic i64, ptr %word.p seq_cst, align 8
  %open.2 = and i64 %seen.2, 1
  %is.open.2 = icmp ne i64 %open.2, 0
  %other.2 = icmp ne i64 %seen.2, %last
  %new.2 = and i1 %is.open.2, %other.2
  br i1 %new.2, label %wake, label %wait
wait:
  %w0 = call i32 @pthread_cond_wait(ptr %work, ptr %mutex)
  br label %check
wake:
  %s1 = atomicrmw sub ptr %sleepers.p, i32 1 seq_cst
  %l1 = call i32 @pthread_mutex_unlock(ptr %mutex)
  br label %got
got:
  %word = phi i64 [ %seen, %spin ], [ %seen.2, %wake ]
  %half = lshr i64 %word, 1
  %parts = and i64 %half, 65535
  %mine = icmp ult i64 %index, %parts
  br i1 %mine, label %take, label %idle
take:
  %stop = icmp eq i64 %parts, 65535
  br i1 %stop, label %exit, label %enter
enter:
  %a0 = atomicrmw add ptr %active.p, i32 1 seq_cst
  %seen.3 = load atomic i64, ptr %word.p seq_cst, align 8
  %same = icmp eq i64 %seen.3, %word
  br i1 %same, label %run, label %left
run:
  call void @fb_pool_work(ptr %pool, i64 %index, i64 %parts)
  br label %left
left:
  %a1 = atomicrmw sub ptr %active.p, i32 1 seq_cst
  %last.one = icmp eq i32 %a1, 1
  br i1 %last.one, label %notify, label %leave
notify:
  %waiting = load atomic i32, ptr %waiting.p seq_cst, align 4
  %sleeping = icmp ne i32 %waiting, 0
  br i1 %sleeping, label %signal, label %leave
signal:
  %l2 = call i32 @pthread_mutex_lock(ptr %mutex)
  %c0 = call i32 @pthread_cond_signal(ptr %done)
  %l3 = call i32 @pthread_mutex_unlock(ptr %mutex)
  br label %idle
leave:
  br label %idle
exit:
  ret ptr null
}

define $linkage ptr @fb_pool_create(i32 %wanted) nounwind {
entry:
  %memory = alloca ptr
  %attr = alloca [128 x i8], align 16
  %all = alloca [128 x i8], align 16
  %old = alloca [128 x i8], align 16
  %few = icmp sle i32 %wanted, 1
  br i1 %few, label %none, label %allocate
allocate:
  %over = icmp sgt i32 %wanted, $max_threads
  %threads = select i1 %over, i32 $max_threads, i32 %wanted
  %count = zext i32 %threads to i64
  %header = ptrtoint ptr getelementptr (%fb.pool, ptr null, i32 1) to i64
  %record = ptrtoint ptr getelementptr (%fb.worker, ptr null, i32 1) to i64
  %records = mul i64 %count, %record
  %bytes = add i64 %header, %records
  %failed = call i32 @posix_memalign(ptr %memory, i64 64, i64 %bytes)
  %ok = icmp eq i32 %failed, 0
  br i1 %ok, label %init, label %none
init:
  %pool = load ptr, ptr %memory
  call void @llvm.memset.p0.i64(ptr align 64 %pool, i8 0, i64 %bytes, i1 false)
  %pid.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $pid
  %threads.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $threads
  %cpu.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $cpu
  %mutex = getelementptr %fb.pool, ptr %pool, i32 0, i32 $mutex
  %work = getelementptr %fb.pool, ptr %pool, i32 0, i32 $work
  %done = getelementptr %fb.pool, ptr %pool, i32 0, i32 $done
  %pid = call i32 @getpid()
  store i32 %pid, ptr %pid.p
  store i32 -1, ptr %cpu.p
  %e0 = call i32 @pthread_mutex_init(ptr %mutex, ptr null)
  %e1 = call i32 @pthread_cond_init(ptr %work, ptr null)
  %e2 = call i32 @pthread_cond_init(ptr %done, ptr null)
  ; Workers take no signals (the host's own threads handle those) and get a known stack (musl's default is 128 KiB).
  %e3 = call i32 @sigfillset(ptr %all)
  %e4 = call i32 @pthread_sigmask(i32 $sig_setmask, ptr %all, ptr %old)
  %e5 = call i32 @pthread_attr_init(ptr %attr)
  %e6 = call i32 @pthread_attr_setstacksize(ptr %attr, i64 2097152)
  %workers = getelementptr %fb.pool, ptr %pool, i32 1
  br label %start
start:
  %i = phi i64 [ 1, %init ], [ %i.next, %started ]
  %left = icmp ult i64 %i, %count
  br i1 %left, label %spawn, label %finish
spawn:
  %self = getelementptr %fb.worker, ptr %workers, i64 %i
  %pool.p = getelementptr %fb.worker, ptr %self, i32 0, i32 2
  %index.p = getelementptr %fb.worker, ptr %self, i32 0, i32 3
  %thread.p = getelementptr %fb.worker, ptr %self, i32 0, i32 4
  %avoids.p = getelementptr %fb.worker, ptr %self, i32 0, i32 5
  store ptr %pool, ptr %pool.p
  store i64 %i, ptr %index.p
  store i64 -1, ptr %avoids.p
  %error = call i32 @pthread_create(ptr %thread.p, ptr %attr, ptr @fb_pool_worker, ptr %self)
  %good = icmp eq i32 %error, 0
  br i1 %good, label %started, label %finish
started:
  %i.next = add i64 %i, 1
  br label %start
finish:
  %e7 = call i32 @pthread_attr_destroy(ptr %attr)
  %e8 = call i32 @pthread_sigmask(i32 $sig_setmask, ptr %old, ptr null)
  %got = trunc i64 %i to i32
  store i32 %got, ptr %threads.p
  %alone = icmp eq i32 %got, 1
  br i1 %alone, label %giveup, label %ready
ready:
  ret ptr %pool
giveup:
  call void @free(ptr %pool)
  br label %none
none:
  ret ptr null
}

define $linkage void @fb_pool_destroy(ptr %pool) nounwind {
entry:
  %null = icmp eq ptr %pool, null
  br i1 %null, label %exit, label %check
check:
  %pid.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $pid
  %owner = load i32, ptr %pid.p
  %pid = call i32 @getpid()
  %alive = icmp eq i32 %owner, %pid
  br i1 %alive, label %stop, label %release
stop:
  %word.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $word
  %threads.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $threads
  %mutex = getelementptr %fb.pool, ptr %pool, i32 0, i32 $mutex
  %work = getelementptr %fb.pool, ptr %pool, i32 0, i32 $work
  %done = getelementptr %fb.pool, ptr %pool, i32 0, i32 $done
  %word = load i64, ptr %word.p
  %final = or i64 %word, 131071
  store atomic i64 %final, ptr %word.p seq_cst, align 8
  %l0 = call i32 @pthread_mutex_lock(ptr %mutex)
  %c0 = call i32 @pthread_cond_broadcast(ptr %work)
  %l1 = call i32 @pthread_mutex_unlock(ptr %mutex)
  %threads = load i32, ptr %threads.p
  %count = zext i32 %threads to i64
  %workers = getelementptr %fb.pool, ptr %pool, i32 1
  br label %join
join:
  %i = phi i64 [ 1, %stop ], [ %i.next, %joining ]
  %left = icmp ult i64 %i, %count
  br i1 %left, label %joining, label %joined
joining:
  %thread.p = getelementptr %fb.worker, ptr %workers, i64 %i, i32 4
  %thread = load i64, ptr %thread.p
  %j0 = call i32 @pthread_join(i64 %thread, ptr null)
  %i.next = add i64 %i, 1
  br label %join
joined:
  %d0 = call i32 @pthread_cond_destroy(ptr %done)
  %d1 = call i32 @pthread_cond_destroy(ptr %work)
  %d2 = call i32 @pthread_mutex_destroy(ptr %mutex)
  br label %release
release:
  call void @free(ptr %pool)
  br label %exit
exit:
  ret void
}

define $linkage i64 @fb_pool_threads(ptr %pool) nounwind {
entry:
  %null = icmp eq ptr %pool, null
  br i1 %null, label %one, label %some
some:
  %threads.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $threads
  %threads = load i32, ptr %threads.p
  %count = zext i32 %threads to i64
  ret i64 %count
one:
  ret i64 1
}

define $linkage void @fb_parallel_for(ptr %pool, ptr %fn, ptr %ctx, i64 %n) nounwind {
entry:
  %empty = icmp sle i64 %n, 0
  br i1 %empty, label %exit, label %some
some:
  %null = icmp eq ptr %pool, null
  %single = icmp eq i64 %n, 1
  %plain = or i1 %null, %single
  br i1 %plain, label %whole, label %split
whole:
  call void %fn(ptr %ctx, i64 0, i64 %n, i64 0) nounwind
  br label %exit
split:
  %pid.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $pid
  %owner = load i32, ptr %pid.p
  %pid = call i32 @getpid()
  %alive = icmp eq i32 %owner, %pid
  br i1 %alive, label %acquire, label %whole
acquire:
  %busy.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $busy
  %pair = cmpxchg ptr %busy.p, i32 0, i32 1 acquire monotonic
  %mine = extractvalue { i32, i1 } %pair, 1
  br i1 %mine, label %prepare, label %whole
prepare:
  %threads.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $threads
  %word.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $word
  %active.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $active
  %waiting.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $waiting
  %sleepers.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $sleepers
  %fn.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $fn
  %ctx.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $ctx
  %n.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $n
  %units.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $units
  %mutex = getelementptr %fb.pool, ptr %pool, i32 0, i32 $mutex
  %done = getelementptr %fb.pool, ptr %pool, i32 0, i32 $done
  %workers = getelementptr %fb.pool, ptr %pool, i32 1
  %threads = load i32, ptr %threads.p
  %count = zext i32 %threads to i64
  %parts = call i64 @llvm.umin.i64(i64 %n, i64 %count)
  %most = mul i64 %parts, $units_each
  %units = call i64 @llvm.umin.i64(i64 %n, i64 %most)
  store ptr %fn, ptr %fn.p
  store ptr %ctx, ptr %ctx.p
  store i64 %n, ptr %n.p
  store i64 %units, ptr %units.p
  br label %share
share:
  %t = phi i64 [ 0, %prepare ], [ %t.next, %share ]
  %from = phi i64 [ 0, %prepare ], [ %to, %share ]
  %t.next = add i64 %t, 1
  %scaled = mul i64 %units, %t.next
  %to = udiv i64 %scaled, %parts
  %to.high = shl i64 %to, 32
  %range = or i64 %to.high, %from
  %share.p = getelementptr %fb.worker, ptr %workers, i64 %t
  store atomic i64 %range, ptr %share.p monotonic, align 8
  %more.shares = icmp ult i64 %t.next, %parts
  br i1 %more.shares, label %share, label %publish
publish:
  call void @fb_pool_place(ptr %pool)
  %word = load atomic i64, ptr %word.p monotonic, align 8
  %counter = and i64 %word, -131072
  %counter.next = add i64 %counter, 131072
  %parts.field = shl i64 %parts, 1
  %closed = or i64 %counter.next, %parts.field
  %open = or i64 %closed, 1
  store atomic i64 %open, ptr %word.p seq_cst, align 8
  %sleepers = load atomic i32, ptr %sleepers.p seq_cst, align 4
  %awake = icmp eq i32 %sleepers, 0
  br i1 %awake, label %together, label %begin
begin:
  call void @fb_pool_begin(ptr %pool, i64 %parts)
  br label %close
together:
  call void @fb_pool_work(ptr %pool, i64 0, i64 %parts)
  br label %close
close:
  store atomic i64 %closed, ptr %word.p seq_cst, align 8
  br label %join
join:
  %i = phi i32 [ 0, %close ], [ %i.next, %again ], [ %i.next, %yield ]
  %active = load atomic i32, ptr %active.p seq_cst, align 4
  %complete = icmp eq i32 %active, 0
  br i1 %complete, label %release, label %again
again:
  $pause
  %i.next = add i32 %i, 1
  %turn = and i32 %i.next, $yield_mask
  %due = icmp eq i32 %turn, 0
  br i1 %due, label %yield, label %join
yield:
  %y0 = call i32 @sched_yield()
  %more = icmp ult i32 %i.next, $spins
  br i1 %more, label %join, label %sleep
sleep:
  store atomic i32 1, ptr %waiting.p seq_cst, align 4
  %l2 = call i32 @pthread_mutex_lock(ptr %mutex)
  br label %check
check:
  %active.2 = load atomic i32, ptr %active.p seq_cst, align 4
  %complete.2 = icmp eq i32 %active.2, 0
  br i1 %complete.2, label %woken, label %wait
wait:
  %w0 = call i32 @pthread_cond_wait(ptr %done, ptr %mutex)
  br label %check
woken:
  store atomic i32 0, ptr %waiting.p seq_cst, align 4
  %l3 = call i32 @pthread_mutex_unlock(ptr %mutex)
  br label %release
release:
  store atomic i32 0, ptr %busy.p release, align 4
  br label %exit
exit:
  ret void
}
