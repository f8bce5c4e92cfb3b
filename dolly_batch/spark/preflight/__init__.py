"""Can the executors run this job? Checked before any work: the package, shared paths, GPUs."""
