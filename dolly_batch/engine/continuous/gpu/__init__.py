"""KV cache, attention, graphs and the engine's step on a GPU."""
