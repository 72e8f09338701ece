@row_sum.shared0 = internal addrspace(3) global [32 x float] undef, align 16
define ptx_kernel void @row_sum(ptr noalias nocapture nonnull align 64 %x, ptr noalias nocapture nonnull align 64 %y, i64 %dim_N, i64 %dim_M) #0 {
entry:
  %v1.w = call i32 @llvm.nvvm.read.ptx.sreg.ctaid.x()
  %v1 = zext i32 %v1.w to i64
  %v2.w = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  %v2 = zext i32 %v2.w to i64
  %v3.w = call i32 @llvm.nvvm.read.ptx.sreg.ntid.x()
  %v3 = zext i32 %v3.w to i64
  %v4 = mul nsw i64 %dim_M, %v1
  br label %head5
head5:
  %i8 = phi i64 [ %v2, %entry ], [ %i15, %body6 ]
  %v9 = phi float [ 0x0000000000000000, %entry ], [ %v14, %body6 ]
  %v10 = icmp slt i64 %i8, %dim_M
  br i1 %v10, label %body6, label %exit7
body6:
  %v11 = add nsw i64 %v4, %i8
  %p12 = getelementptr inbounds float, ptr %x, i64 %v11
  %v13 = load float, ptr %p12, align 4
  %v14 = fadd contract float %v9, %v13
  %i15 = add nsw i64 %i8, %v3
  br label %head5
exit7:
  %v16.w = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  %v16 = zext i32 %v16.w to i64
  %v17.w = call i32 @llvm.nvvm.read.ptx.sreg.ntid.x()
  %v17 = zext i32 %v17.w to i64
  %v18 = call float @llvm.nvvm.shfl.sync.bfly.f32(i32 -1, float %v9, i32 16, i32 31)
  %v19 = fadd contract float %v9, %v18
  %v20 = call float @llvm.nvvm.shfl.sync.bfly.f32(i32 -1, float %v19, i32 8, i32 31)
  %v21 = fadd contract float %v19, %v20
  %v22 = call float @llvm.nvvm.shfl.sync.bfly.f32(i32 -1, float %v21, i32 4, i32 31)
  %v23 = fadd contract float %v21, %v22
  %v24 = call float @llvm.nvvm.shfl.sync.bfly.f32(i32 -1, float %v23, i32 2, i32 31)
  %v25 = fadd contract float %v23, %v24
  %v26 = call float @llvm.nvvm.shfl.sync.bfly.f32(i32 -1, float %v25, i32 1, i32 31)
  %v27 = fadd contract float %v25, %v26
  %v28 = urem i64 %v16, 32
  %v29 = icmp eq i64 %v28, 0
  %v30 = udiv i64 %v16, 32
  br i1 %v29, label %then31, label %join33
then31:
  %p34 = getelementptr inbounds float, ptr addrspacecast (ptr addrspace(3) @row_sum.shared0 to ptr), i64 %v30
  store float %v27, ptr %p34, align 4
  br label %join33
join33:
  call void @llvm.nvvm.barrier.cta.sync.aligned.all(i32 0)
  %v35 = udiv i64 %v17, 32
  %v36 = icmp slt i64 %v28, %v35
  br i1 %v36, label %then37, label %else38
then37:
  %p40 = getelementptr inbounds float, ptr addrspacecast (ptr addrspace(3) @row_sum.shared0 to ptr), i64 %v28
  %v41 = load float, ptr %p40, align 4
  br label %join39
else38:
  br label %join39
join39:
  %v42 = phi float [ %v41, %then37 ], [ 0x0000000000000000, %else38 ]
  %v43 = call float @llvm.nvvm.shfl.sync.bfly.f32(i32 -1, float %v42, i32 16, i32 31)
  %v44 = fadd contract float %v42, %v43
  %v45 = call float @llvm.nvvm.shfl.sync.bfly.f32(i32 -1, float %v44, i32 8, i32 31)
  %v46 = fadd contract float %v44, %v45
  %v47 = call float @llvm.nvvm.shfl.sync.bfly.f32(i32 -1, float %v46, i32 4, i32 31)
  %v48 = fadd contract float %v46, %v47
  %v49 = call float @llvm.nvvm.shfl.sync.bfly.f32(i32 -1, float %v48, i32 2, i32 31)
  %v50 = fadd contract float %v48, %v49
  %v51 = call float @llvm.nvvm.shfl.sync.bfly.f32(i32 -1, float %v50, i32 1, i32 31)
  %v52 = fadd contract float %v50, %v51
  call void @llvm.nvvm.barrier.cta.sync.aligned.all(i32 0)
  %v53.w = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  %v53 = zext i32 %v53.w to i64
  %v54 = icmp eq i64 %v53, 0
  br i1 %v54, label %then55, label %join57
then55:
  %p58 = getelementptr inbounds float, ptr %y, i64 %v1
  store float %v52, ptr %p58, align 4
  br label %join57
join57:
  ret void
}
attributes #0 = { nounwind "target-cpu"="sm_80" }
attributes #1 = { nounwind alwaysinline "target-cpu"="sm_80" }
