"""Evaluate: the seven benchmarks of Dolly's model card, and the quality of the daily tasks against a gold column."""
