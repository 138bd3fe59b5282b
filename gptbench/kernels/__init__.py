"""Our own Triton kernels: one file each, and in it the plain PyTorch twin of the same signature."""
