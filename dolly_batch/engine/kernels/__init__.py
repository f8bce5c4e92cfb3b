"""Triton kernels: attention over pages, sampling, int8 products. Importing them needs triton; nothing else does."""
