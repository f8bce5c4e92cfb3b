"""The engine: prompts in, completions out. Needs torch and transformers only, and knows nothing of tables.

Nothing is imported here, so that `dolly_batch.models.folder` can be used where torch is not installed.
"""
