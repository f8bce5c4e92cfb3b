"""Makes model folders the engine can run: fetched once, plain tensors only, in place by one rename.

`stage_to` fills a folder the user names, `stage_under` finds or makes one below a job's stage folder. Neither imports
torch: what has to (reading pickled weights) runs in a process of its own.
"""

from dolly_batch.staging.stage import StagedModel, stage_to, stage_under

__all__ = ["StagedModel", "stage_to", "stage_under"]
