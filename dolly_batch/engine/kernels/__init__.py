"""Triton kernels for the pages of keys and values, and for sampling. Importing them needs triton; nothing else does."""
