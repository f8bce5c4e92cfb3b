"""How good is it: a model on the model card's benchmarks, finished tables against a gold column."""
