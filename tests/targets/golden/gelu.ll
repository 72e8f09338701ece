define ptx_kernel void @gelu(ptr noalias nocapture nonnull align 64 %x, ptr noalias nocapture nonnull align 64 %y, i64 %dim_N) #0 {
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
  %i11 = phi i64 [ %v6, %entry ], [ %i22, %body9 ]
  %v12 = icmp slt i64 %i11, %dim_N
  br i1 %v12, label %body9, label %exit10
body9:
  %p13 = getelementptr inbounds i16, ptr %x, i64 %i11
  %b14 = load i16, ptr %p13, align 2
  %v15 = bitcast i16 %b14 to half
  %v16 = fpext half %v15 to float
  %v17 = fmul contract float %v16, 0x3FE0000000000000
  %v18 = fmul contract float %v16, %v16
  %v19 = fadd contract float 0x3FF0000000000000, %v18
  %v20 = fmul contract float %v17, %v19
  %p21 = getelementptr inbounds float, ptr %y, i64 %i11
  store float %v20, ptr %p21, align 4
  %i22 = add nsw i64 %i11, %v7
  br label %head8
exit10:
  ret void
}
attributes #0 = { nounwind "target-cpu"="sm_80" }
attributes #1 = { nounwind alwaysinline "target-cpu"="sm_80" }
