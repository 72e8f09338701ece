"""Graph kernels to loop-level IR."""
