"""GPU kernels, compiled by Triton."""

SPLIT_KEYS = 512  # of a row that one program of the decode kernel reads
