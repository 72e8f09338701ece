; The thread pool of flambeau.runtime.native.pool, where the protocol is described and the $$names are filled in.

%fb.pool = type {
  i64, [56 x i8],
  i32, i32, [56 x i8],
  ptr, ptr, i64, [40 x i8],
  i32, i32, i32, [52 x i8],
  i32, [60 x i8],
  [128 x i8], [128 x i8], [128 x i8]
}
%fb.worker = type { ptr, i64, i64 }
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
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
$pause_declaration

; fn(ctx, begin, end, worker) over chunk number `index` of `parts` of [0, n)
define internal void @fb_pool_chunk(ptr %fn, ptr %ctx, i64 %n, i64 %parts, i64 %index) nounwind {
  %size = udiv i64 %n, %parts
  %rest = urem i64 %n, %parts
  %base = mul i64 %size, %index
  %extra = call i64 @llvm.umin.i64(i64 %index, i64 %rest)
  %begin = add i64 %base, %extra
  %longer = icmp ult i64 %index, %rest
  %one = zext i1 %longer to i64
  %length = add i64 %size, %one
  %end = add i64 %begin, %length
  call void %fn(ptr %ctx, i64 %begin, i64 %end, i64 %index) nounwind
  ret void
}
declare i64 @llvm.umin.i64(i64, i64)
define internal ptr @fb_pool_worker(ptr %self) nounwind {
entry:
  %pool = load ptr, ptr %self
  %index.p = getelementptr %fb.worker, ptr %self, i32 0, i32 1
  %index = load i64, ptr %index.p
  %epoch.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $epoch
  %pending.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $pending
  %waiting.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $waiting
  %sleepers.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $sleepers
  %fn.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $fn
  %ctx.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $ctx
  %n.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $n
  %mutex = getelementptr %fb.pool, ptr %pool, i32 0, i32 $mutex
  %work = getelementptr %fb.pool, ptr %pool, i32 0, i32 $work
  %done = getelementptr %fb.pool, ptr %pool, i32 0, i32 $done
  br label %idle
idle:
  %last = phi i64 [ 0, %entry ], [ %epoch, %got ], [ %epoch, %finish ]
  br label %spin
spin:
  %i = phi i32 [ 0, %idle ], [ %i.next, %again ], [ %i.next, %yield ]
  %seen = load atomic i64, ptr %epoch.p acquire, align 8
  %changed = icmp ne i64 %seen, %last
  br i1 %changed, label %got, label %again
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
  %seen.2 = load atomic i64, ptr %epoch.p seq_cst, align 8
  %changed.2 = icmp ne i64 %seen.2, %last
  br i1 %changed.2, label %wake, label %wait
wait:
  %w0 = call i32 @pthread_cond_wait(ptr %work, ptr %mutex)
  br label %check
wake:
  %s1 = atomicrmw sub ptr %sleepers.p, i32 1 seq_cst
  %l1 = call i32 @pthread_mutex_unlock(ptr %mutex)
  br label %got
got:
  %epoch = phi i64 [ %seen, %spin ], [ %seen.2, %wake ]
  %parts = and i64 %epoch, 65535
  %mine = icmp ult i64 %index, %parts
  br i1 %mine, label %take, label %idle
take:
  %stop = icmp eq i64 %parts, 65535
  br i1 %stop, label %exit, label %run
run:
  %fn = load ptr, ptr %fn.p
  %ctx = load ptr, ptr %ctx.p
  %n = load i64, ptr %n.p
  call void @fb_pool_chunk(ptr %fn, ptr %ctx, i64 %n, i64 %parts, i64 %index)
  %left = atomicrmw sub ptr %pending.p, i32 1 seq_cst
  %last.one = icmp eq i32 %left, 1
  br i1 %last.one, label %notify, label %finish
notify:
  %waiting = load atomic i32, ptr %waiting.p seq_cst, align 4
  %sleeping = icmp ne i32 %waiting, 0
  br i1 %sleeping, label %signal, label %finish
signal:
  %l2 = call i32 @pthread_mutex_lock(ptr %mutex)
  %c0 = call i32 @pthread_cond_signal(ptr %done)
  %l3 = call i32 @pthread_mutex_unlock(ptr %mutex)
  br label %finish
finish:
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
  %mutex = getelementptr %fb.pool, ptr %pool, i32 0, i32 $mutex
  %work = getelementptr %fb.pool, ptr %pool, i32 0, i32 $work
  %done = getelementptr %fb.pool, ptr %pool, i32 0, i32 $done
  %pid = call i32 @getpid()
  store i32 %pid, ptr %pid.p
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
  %index.p = getelementptr %fb.worker, ptr %self, i32 0, i32 1
  %thread.p = getelementptr %fb.worker, ptr %self, i32 0, i32 2
  store ptr %pool, ptr %self
  store i64 %i, ptr %index.p
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
  %epoch.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $epoch
  %threads.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $threads
  %mutex = getelementptr %fb.pool, ptr %pool, i32 0, i32 $mutex
  %work = getelementptr %fb.pool, ptr %pool, i32 0, i32 $work
  %done = getelementptr %fb.pool, ptr %pool, i32 0, i32 $done
  %epoch = load i64, ptr %epoch.p
  %final = or i64 %epoch, 65535
  store atomic i64 %final, ptr %epoch.p seq_cst, align 8
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
  %thread.p = getelementptr %fb.worker, ptr %workers, i64 %i, i32 2
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
  %threads.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $threads
  %threads = load i32, ptr %threads.p
  %count = zext i32 %threads to i64
  %parts = call i64 @llvm.umin.i64(i64 %n, i64 %count)
  %pid.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $pid
  %owner = load i32, ptr %pid.p
  %pid = call i32 @getpid()
  %alive = icmp eq i32 %owner, %pid
  br i1 %alive, label %acquire, label %serial
acquire:
  %busy.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $busy
  %pair = cmpxchg ptr %busy.p, i32 0, i32 1 acquire monotonic
  %mine = extractvalue { i32, i1 } %pair, 1
  br i1 %mine, label %publish, label %serial
publish:
  %epoch.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $epoch
  %pending.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $pending
  %waiting.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $waiting
  %sleepers.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $sleepers
  %fn.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $fn
  %ctx.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $ctx
  %n.p = getelementptr %fb.pool, ptr %pool, i32 0, i32 $n
  %mutex = getelementptr %fb.pool, ptr %pool, i32 0, i32 $mutex
  %work = getelementptr %fb.pool, ptr %pool, i32 0, i32 $work
  %done = getelementptr %fb.pool, ptr %pool, i32 0, i32 $done
  store ptr %fn, ptr %fn.p
  store ptr %ctx, ptr %ctx.p
  store i64 %n, ptr %n.p
  %others = sub i64 %parts, 1
  %others.32 = trunc i64 %others to i32
  store atomic i32 %others.32, ptr %pending.p monotonic, align 4
  %epoch = load atomic i64, ptr %epoch.p monotonic, align 8
  %counter = and i64 %epoch, -65536
  %counter.next = add i64 %counter, 65536
  %epoch.next = or i64 %counter.next, %parts
  store atomic i64 %epoch.next, ptr %epoch.p seq_cst, align 8
  %sleepers = load atomic i32, ptr %sleepers.p seq_cst, align 4
  %awake = icmp eq i32 %sleepers, 0
  br i1 %awake, label %work.own, label %wake
wake:
  %l0 = call i32 @pthread_mutex_lock(ptr %mutex)
  %c0 = call i32 @pthread_cond_broadcast(ptr %work)
  %l1 = call i32 @pthread_mutex_unlock(ptr %mutex)
  br label %work.own
work.own:
  call void @fb_pool_chunk(ptr %fn, ptr %ctx, i64 %n, i64 %parts, i64 0)
  br label %join
join:
  %i = phi i32 [ 0, %work.own ], [ %i.next, %again ], [ %i.next, %yield ]
  %pending = load atomic i32, ptr %pending.p acquire, align 4
  %complete = icmp eq i32 %pending, 0
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
  %pending.2 = load atomic i32, ptr %pending.p seq_cst, align 4
  %complete.2 = icmp eq i32 %pending.2, 0
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
serial:
  br label %chunk
chunk:
  %k = phi i64 [ 0, %serial ], [ %k.next, %chunk ]
  call void @fb_pool_chunk(ptr %fn, ptr %ctx, i64 %n, i64 %parts, i64 %k)
  %k.next = add i64 %k, 1
  %rest = icmp ult i64 %k.next, %parts
  br i1 %rest, label %chunk, label %exit
exit:
  ret void
}
