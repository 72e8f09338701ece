define ptx_kernel void @saxpy(float %a, ptr noalias nocapture nonnull align 64 %x, ptr noalias nocapture nonnull align 64 %y, i64 %dim_N) #0 {
entry:
  %v1.w = call i32 @llvm.nvvm.read.ptx.sreg.ntid.x()
  %v1 = zext i32 %v1.w to i64
  %v2.w = call i32 @llvm.nvvm.read.ptx.sreg.ctaid.x()
  %v2 = zext i32 %v2.w to i64
  %v3.w = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  %v3 = zext i32 %v3.w to i64
  %v4.w = call i32 @llvm.nvvm.read.ptx.sreg.nctaid.x()
  %v4 = zext i32 %v4.w to i64
  %v5 = mul nsw i64 %v2, %v1
  %v6 = add nsw i64 %v5, %v3
  %v7 = mul nsw i64 %v4, %v1
  br label %head8
head8:
  %i11 = phi i64 [ %v6, %entry ], [ %i20, %body9 ]
  %v12 = icmp slt i64 %i11, %dim_N
  br i1 %v12, label %body9, label %exit10
body9:
  %p13 = getelementptr inbounds float, ptr %x, i64 %i11
  %v14 = load float, ptr %p13, align 4
  %p15 = getelementptr inbounds float, ptr %y, i64 %i11
  %v16 = load float, ptr %p15, align 4
  %v17 = fmul contract float %a, %v14
  %v18 = fadd contract float %v17, %v16
  %p19 = getelementptr inbounds float, ptr %y, i64 %i11
  store float %v18, ptr %p19, align 4
  %i20 = add nsw i64 %i11, %v7
  br label %head8
exit10:
  ret void
}
attributes #0 = { nounwind "target-cpu"="sm_80" }
attributes #1 = { nounwind alwaysinline "target-cpu"="sm_80" }
