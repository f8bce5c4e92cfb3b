"""`tiny`: the small stand-in model that comes with the package, and how it is made.

    words      the vocabulary, and a source of random names that keeps some out of training
    texts      one record type and the mixture of all families; rows for tests, by seed
    knowledge  families answered from memory: facts, how-tos, lists, verses
    passages   families answered from a context: questions, fields, JSON, summaries, labels
    train      tokenizer, model and training, from nothing to the folder `model/`
    measure    how many of a set of rows the model answers right, and whether it ends by itself

It knows only what these templates say. It shows that a job works, not what a Dolly answers.
"""

from pathlib import Path

MODEL_FOLDER = Path(__file__).parent / "model"
