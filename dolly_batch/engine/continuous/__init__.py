"""The continuous-batching engine: a sequence that ends leaves its slot to the next one."""
