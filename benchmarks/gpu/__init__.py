"""Dolly's models on one GPU: are the answers right, how fast are they, and how far is that from what the GPU can do."""
