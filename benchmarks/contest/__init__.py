"""What `benchmarks/peers.py` is made of: the work, the peers' own programs, their runs, and the tables."""
