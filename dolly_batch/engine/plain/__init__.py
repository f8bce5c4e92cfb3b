"""The plain engine: padded batches, decoded to their end by Hugging Face's `forward`."""
