; The same functions for targets without threads: every loop is one call on the caller's thread.

define $linkage ptr @fb_pool_create(i32 %wanted) nounwind {
  ret ptr null
}
define $linkage void @fb_pool_destroy(ptr %pool) nounwind {
  ret void
}
define $linkage i64 @fb_pool_threads(ptr %pool) nounwind {
  ret i64 1
}
define $linkage void @fb_parallel_for(ptr %pool, ptr %fn, ptr %ctx, i64 %n) nounwind {
  %some = icmp sgt i64 %n, 0
  br i1 %some, label %whole, label %exit
whole:
  call void %fn(ptr %ctx, i64 0, i64 %n, i64 0) nounwind
  br label %exit
exit:
  ret void
}
