; A function of CPython's (METH_FASTCALL): call(record, array...) -> status. It runs an entry on the arrays' memory.
;
; `record` is an array of 64-bit words: the entry's address, how many of the arrays are inputs, the address of the scratch
; memory, the thread pool, how many pointers follow, and these pointers, which the entry gets between inputs and outputs.
; An array's first field behind the object's head is the address of its data (${head} is the head's size).

declare ptr @PyEval_SaveThread()
declare void @PyEval_RestoreThread(ptr)
declare ptr @PyLong_FromLongLong(i64)
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)

define ptr @fb_call(ptr %self, ptr %objects, i64 %count) {
start:
  %record_object = load ptr, ptr %objects
  %record_field = getelementptr i8, ptr %record_object, i64 ${head}
  %record = load ptr, ptr %record_field
  %entry = load ptr, ptr %record
  %inputs_at = getelementptr i64, ptr %record, i64 1
  %inputs = load i64, ptr %inputs_at
  %arena_at = getelementptr i64, ptr %record, i64 2
  %arena = load ptr, ptr %arena_at
  %pool_at = getelementptr i64, ptr %record, i64 3
  %pool = load ptr, ptr %pool_at
  %held_at = getelementptr i64, ptr %record, i64 4
  %held = load i64, ptr %held_at
  %held_pointers = getelementptr i64, ptr %record, i64 5
  %arrays = sub i64 %count, 1
  %size = add i64 %count, %held
  %table = alloca ptr, i64 %size
  %held_place = getelementptr ptr, ptr %table, i64 %inputs
  %held_bytes = mul i64 %held, 8
  call void @llvm.memcpy.p0.p0.i64(ptr %held_place, ptr %held_pointers, i64 %held_bytes, i1 false)
  %first = getelementptr ptr, ptr %objects, i64 1
  br label %next

next:
  %i = phi i64 [ 0, %start ], [ %after, %body ]
  %more = icmp slt i64 %i, %arrays
  br i1 %more, label %body, label %run

body:
  %object_at = getelementptr ptr, ptr %first, i64 %i
  %object = load ptr, ptr %object_at
  %data_at = getelementptr i8, ptr %object, i64 ${head}
  %data = load ptr, ptr %data_at
  %is_input = icmp slt i64 %i, %inputs
  %shifted = add i64 %i, %held
  %number = select i1 %is_input, i64 %i, i64 %shifted
  %place = getelementptr ptr, ptr %table, i64 %number
  store ptr %data, ptr %place
  %after = add i64 %i, 1
  br label %next

run:
  %thread = call ptr @PyEval_SaveThread()
  %status = call i32 %entry(ptr %table, ptr null, ptr %arena, ptr %pool)
  call void @PyEval_RestoreThread(ptr %thread)
  %wide = sext i32 %status to i64
  %result = call ptr @PyLong_FromLongLong(i64 %wide)
  ret ptr %result
}
