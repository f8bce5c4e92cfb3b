"""What trains `tiny`, the small model that comes with the package: `python -m tools.tiny.train`.

words      the vocabulary, and a source of random names that keeps some out of training
texts      one record type and the mixture of all families; rows for tests, by seed
knowledge  families answered from memory: facts, how-tos, lists, verses
passages   families answered from a context: questions, fields, JSON, summaries, labels
train      tokenizer, model and training, from nothing to the folder `dolly_batch/tiny/model`
measure    the share of rows that the model answers right, and whether it ends by itself
"""
