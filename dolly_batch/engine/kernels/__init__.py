"""Compiled kernels: `cpu` by numba, `gpu` by Triton. Imported only where they are used."""
