"""Our own Triton kernels: one file each, and in it a reference in plain PyTorch."""
