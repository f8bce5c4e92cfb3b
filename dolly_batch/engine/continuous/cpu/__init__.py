"""KV cache and attention on CPUs."""
