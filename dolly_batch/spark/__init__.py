"""Tables, keys, plan, waves, publish and audit. Thin, and free of torch."""
