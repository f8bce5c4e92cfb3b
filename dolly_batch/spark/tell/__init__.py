"""Who else is told of a complete run, each by its own client. Counts, settings and names alone."""
