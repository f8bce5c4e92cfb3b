"""Evaluation: a model on the model card's benchmarks, and finished tables compared with a gold column."""
