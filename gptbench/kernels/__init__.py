"""gptbench's Triton kernels: one file each, with a reference in plain PyTorch."""
