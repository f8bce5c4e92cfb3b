"""A model's folder: what it holds, which model it is, which GPU can run it. Standard library only, no torch."""
