"""From the input table to a plan: keys, statuses, what the output already holds, shards and waves."""
