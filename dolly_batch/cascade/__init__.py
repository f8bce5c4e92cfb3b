"""The cascade of a classification: a small proxy for the model, and the bounds within which it may answer."""
