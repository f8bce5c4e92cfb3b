"""What to ask the engine for a row, and how to read its answer. Pure Python."""
